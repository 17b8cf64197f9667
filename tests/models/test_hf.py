"""Hugging Face directories: parity with torch by golden files, round trips, refusals."""

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from mlecs_jax.errors import UserError
from mlecs_jax.models import generate, hf, zoo

GOLDEN = Path(__file__).parents[1] / "golden"
DECODERS = ["gpt2", "gptj", "llama", "llama_linear", "smollm2", "qwen2", "qwen3"]


@functools.cache
def golden(name):
    return hf.load(GOLDEN / name), dict(np.load(GOLDEN / name / "expected.npz"))


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, keep=None):
    return model.apply({"params": params}, tokens, keep=keep)


@pytest.fixture
def copy(tmp_path):
    """A directory of a golden model that a test may spoil."""
    def make(name):
        return Path(shutil.copytree(GOLDEN / name, tmp_path / name))
    return make


@pytest.mark.parametrize("name", DECODERS)
def test_logits_equal_torch(name):
    (model, params), expected = golden(name)
    ours = logits(model, params, jnp.asarray(expected["tokens"], jnp.int32))
    np.testing.assert_allclose(ours, expected["logits"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] if name in (
        "llama_linear", "smollm2", "qwen2") else [])
    for name in DECODERS])  # those go the way of llama and qwen3
def test_padded_logits_and_greedy_answers_equal_torch(name):
    (model, params), expected = golden(name)
    tokens, mask = jnp.asarray(expected["tokens"], jnp.int32), jnp.asarray(expected["mask"])
    ours = logits(model, params, tokens, mask)
    np.testing.assert_allclose(ours[mask], expected["padded_logits"][mask], rtol=0, atol=1e-6)
    options = dict(max_new_tokens=12)
    answers = generate.greedy(model, params, None, None, tokens, mask, eos_id=None, **options)
    np.testing.assert_array_equal(answers, expected["greedy"])
    if name == "llama":  # ending is the same code in all
        answers = generate.greedy(model, params, None, None, tokens, mask,
                                  eos_id=int(expected["eos"]), **options)
        np.testing.assert_array_equal(np.maximum(answers, 0), expected["greedy_to_eos"])  # 0: pad


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("seed", [0, 1])
def test_live_parity_with_torch_on_drawn_shapes(family, seed, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("peft")
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    theirs = transformers.AutoModelForCausalLM.from_config(make.drawn(family, seed)).eval()
    make.randomise(theirs, seed)
    theirs.save_pretrained(tmp_path)
    tokens = np.random.default_rng(seed).integers(0, 48, (3, 12))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    model, params = hf.load(tmp_path)
    ours = logits(model, params, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_stacked_layers_are_the_same_model(name):
    (model, params), expected = golden(name)
    scanned, stacked = hf.load(GOLDEN / name, scan_layers=True)
    assert scanned.config.remat and stacked["blocks"]["ln_1"]["scale"].shape == (2, 24)
    tokens = jnp.asarray(expected["tokens"], jnp.int32)
    np.testing.assert_allclose(logits(scanned, stacked, tokens), logits(model, params, tokens),
                               atol=1e-5)


@pytest.mark.parametrize(("name", "scan_layers"), [(name, False) for name in DECODERS]
                         + [("gpt2", True), ("qwen3", True)])
def test_saving_what_was_loaded_gives_the_same_tensors(name, scan_layers, tmp_path):
    model, params = hf.load(GOLDEN / name, scan_layers=scan_layers)
    hf.save(tmp_path, model.config, params, shard_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours = {k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}
    theirs = load_file(GOLDEN / name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)
    again, params_again = hf.load(tmp_path, scan_layers=scan_layers)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


def test_dtype_and_sharding_on_load():
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))

    def placed(path, shape):
        split = path.endswith("c_attn/kernel")
        return NamedSharding(mesh, PartitionSpec(None, None, None, "model") if split
                             else PartitionSpec())

    _, params = hf.load(GOLDEN / "gpt2", dtype=jnp.bfloat16, sharding=placed, scan_layers=True)
    (_, plain), _ = golden("gpt2")
    kernel = params["blocks"]["attention"]["c_attn"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 24, 3, 12)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(
        kernel[1], plain["block_1"]["attention"]["c_attn"]["kernel"].astype(jnp.bfloat16))


def test_types_in_the_file_are_kept_if_asked(copy):
    directory = copy("qwen2")
    weights = load_file(directory / "model.safetensors")
    save_file({k: v.astype(jnp.bfloat16) for k, v in weights.items()},
              directory / "model.safetensors")
    assert hf.load(directory, dtype=None)[1]["wte"].dtype == jnp.bfloat16
    wide = hf.load(directory)[1]["wte"]
    np.testing.assert_array_equal(
        wide, weights["model.embed_tokens.weight"].astype(jnp.bfloat16).astype(np.float32))


def test_bare_names_and_old_buffers_are_read(copy):
    directory = copy("gpt2")
    weights = load_file(directory / "model.safetensors")
    bare = {k.removeprefix("transformer."): v for k, v in weights.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32),
             "lm_head.weight": bare["wte.weight"]}
    save_file(bare, directory / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, hf.load(directory)[1], golden("gpt2")[0][1])


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.pop("transformer.h.1.ln_2.bias"), "lacks tensor 'transformer.h.1.ln_2.bias'"),
    (lambda w: w.update({"transformer.h.2.ln_2.bias": w["transformer.h.1.ln_2.bias"]}),
     "unexpected tensor 'transformer.h.2.ln_2.bias'"),
    (lambda w: w.update({"transformer.wpe.weight": w["transformer.wpe.weight"][:3]}),
     r"'transformer.wpe.weight' has shape \(3, 24\), config.json asks for \(40, 24\)"),
])
def test_tensors_that_do_not_fit_are_named(copy, change, message):
    directory = copy("gpt2")
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(UserError, match=message):
        hf.load(directory)


@pytest.mark.parametrize(("name", "change", "message"), [
    ("gpt2", {"model_type": "opt"}, "model_type is 'opt'"),
    ("gpt2", {"n_layer": None}, "'n_layer' is missing"),
    ("gpt2", {"n_layer": "two"}, "invalid literal"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ("gpt2", {"activation_function": "mish"}, "activation 'mish'"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rotary scaling 'yarn'"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "'factor' of the linear rotary sca"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "'low_freq_factor'"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True"),
])
def test_configs_beyond_this_decoder_are_refused(copy, name, change, message):
    directory = copy(name)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(UserError, match=message):
        hf.load(directory)


def test_rotary_settings_of_older_configs(copy):
    directory = copy("llama")
    model = golden("llama")[0][0]
    values = json.loads((directory / "config.json").read_text())
    rope = values.pop("rope_parameters")
    values |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (directory / "config.json").write_text(json.dumps(values))
    assert hf.load(directory)[0].config == model.config


def test_unreadable_directories(copy, tmp_path):
    with pytest.raises(UserError, match="absent/config.json cannot be read"):
        hf.load(tmp_path / "absent")
    directory = copy("gpt2")
    (directory / "config.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        hf.load(directory)
    directory = copy("qwen2")
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        hf.load(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        hf.load(directory)
    (directory / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle"):
        hf.load(directory)


def test_an_index_that_promises_too_much(copy):
    directory = copy("qwen3")
    index = dict.fromkeys(load_file(directory / "model.safetensors"), "model.safetensors")
    index["model.layers.2.mlp.up_proj.weight"] = "model.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UserError, match="lacks tensor 'model.layers.2.mlp.up_proj.weight'"):
        hf.load(directory)
    index["model.layers.2.mlp.up_proj.weight"] = "model-2.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UserError, match="model-2.safetensors cannot be read"):
        hf.load(directory)


def tokenizer(words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=words[0], unk_token=words[0])


def test_a_tokenizer_goes_out_and_comes_back(tmp_path):
    (model, params), _ = golden("gpt2")
    ours = tokenizer([f"w{i}" for i in range(60)])
    hf.save(tmp_path, model.config, params, tokenizer=ours)
    assert hf.load_tokenizer(tmp_path).get_vocab() == ours.get_vocab()
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (None, 0)  # it begins with none


def with_tokenizer(directory, words, **values):
    """A directory with a tokenizer of so many words, and values of its config changed."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))
    tokenizer([f"w{i}" for i in range(words)]).save_pretrained(directory)
    return directory


def test_what_a_source_has_beside_its_weights_goes_along(copy, tmp_path):
    """A merged export of a chat model: begin, several ends, tokenizer and generation settings."""
    source = with_tokenizer(copy("llama"), 60, bos_token_id=3, eos_token_id=[0, 4])
    (source / "generation_config.json").write_text('{"eos_token_id": [0, 4, 5]}')
    assert hf.end_ids(source) == (0, 4, 5)
    model, params = hf.load(source)
    out = tmp_path / "merged"
    hf.save(out, model.config, params, source=source)
    written = json.loads((out / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (3, [0, 4])
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for name in names:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    (out / "generation_config.json").unlink()
    assert hf.end_ids(out) == (0, 4)
    (out / "config.json").write_text("{}")
    with pytest.raises(UserError, match="names no eos_token_id"):
        hf.end_ids(out)
    with pytest.raises(UserError, match="not both"):
        hf.save(out, model.config, params, source=source, tokenizer=tokenizer(["a", "b"]))


def test_weights_of_before_do_not_stay(tmp_path):
    """Several files and their index, then one file, then several again."""
    (model, params), _ = golden("gpt2")
    other = jax.tree.map(lambda x: x + 1, params)
    (tmp_path / "notes.safetensors").touch()
    for written, shard_bytes in ((params, 20_000), (other, 10**9), (params, 30_000)):
        hf.save(tmp_path, model.config, written, shard_bytes=shard_bytes)
        jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path)[1], written)
        found = {path.name for path in tmp_path.glob("model*.safetensors")}
        index = tmp_path / "model.safetensors.index.json"
        assert found == (set(json.loads(index.read_text())["weight_map"].values())
                         if index.exists() else {"model.safetensors"})
    assert (tmp_path / "notes.safetensors").exists()


def test_a_home_directory_is_found(monkeypatch):
    monkeypatch.setenv("HOME", str(GOLDEN))
    assert hf.load("~/gpt2")[0].config == golden("gpt2")[0][0].config
    assert zoo.decoder_config("hf:~/gpt2", 60) == golden("gpt2")[0][0].config


@pytest.mark.parametrize(("words", "rows"), [
    (60, 64), (606, 1024), (1500, 1500), (100_015, 102_400)])
def test_rows_that_only_pad_the_vocabulary_are_taken(copy, words, rows):
    directory = with_tokenizer(copy("gpt2"), words, vocab_size=rows, bos_token_id=None,
                               eos_token_id=50256 if rows < 50256 else 0)
    assert len(hf.load_tokenizer(directory)) == words


@pytest.mark.parametrize(("words", "values", "message"), [
    (600, {"vocab_size": 1200}, "token ids up to 599, the model 1200 rows.*another model's"),
    (30_522, {"vocab_size": 50_257}, "another model's"),
    (60, {"eos_token_id": 9, "bos_token_id": None}, "has eos_token_id 9, which is no special"),
    (60, {"bos_token_id": 9}, "has bos_token_id 9, which is no special"),
])
def test_a_tokenizer_of_another_model_is_refused(copy, words, values, message):
    with pytest.raises(UserError, match=message):
        hf.load_tokenizer(with_tokenizer(copy("gpt2"), words, **{"eos_token_id": 0} | values))


def test_missing_empty_and_foreign_tokenizers_are_caught(tmp_path, copy):
    directory = copy("gpt2")
    with pytest.raises(UserError, match="holds no tokenizer"):
        hf.load_tokenizer(directory)
    tokenizer([f"w{i}" for i in range(65)]).save_pretrained(directory)
    with pytest.raises(UserError, match="token ids up to 64, the model 64 rows.*another model's"):
        hf.load_tokenizer(directory)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer in .* cannot be read"):
        hf.load_tokenizer(directory)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"vocab_size": 50257}))
    tokenizer([f"w{i}" for i in range(60)]).save_pretrained(directory)
    with pytest.raises(UserError, match="another model's"):
        hf.load_tokenizer(directory)


def test_the_zoo_knows_directories():
    assert zoo.decoder_config(f"hf:{GOLDEN / 'qwen3'}", 60) == golden("qwen3")[0][0].config
    with pytest.raises(UserError, match="64 rows for 70 tokens"):
        zoo.decoder_config(f"hf:{GOLDEN / 'qwen3'}", 70)


@pytest.mark.slow
def test_a_checkpoint_of_many_files_streams(tmp_path):
    """What is held beside the parameters is no more than a file; see bench/load_hf.py."""
    script = Path(__file__).parents[2] / "bench/load_hf.py"
    subprocess.run([sys.executable, str(script), "--directory", str(tmp_path / "model"), "--model",
                    "gpt2", "--shard-bytes", "160000000", "--json", str(tmp_path / "row.json")],
                   check=True, capture_output=True, cwd=script.parent)
    row = json.loads((tmp_path / "row.json").read_text())["rows"][0]
    assert row["parameters"] == 124_439_808 and row["files"] >= 3
    assert row["beside_parameters_to_largest_file"] <= 1.3


@pytest.mark.slow
def test_774_million_parameters_load_quickly_in_little_memory(tmp_path):
    """By processor time, which a busy machine does not stretch; see bench/load_hf.py."""
    script = Path(__file__).parents[2] / "bench/load_hf.py"
    subprocess.run([sys.executable, str(script), "--directory", str(tmp_path / "model"),
                    "--json", str(tmp_path / "row.json")], check=True, capture_output=True,
                   cwd=script.parent)
    row = json.loads((tmp_path / "row.json").read_text())["rows"][0]
    assert row["parameters"] == 774_030_080
    assert row["cpu"] <= 20 and row["peak_to_largest_file"] <= 1.3
