"""PEFT adapters: torch's answers by golden files, exact round trips, refusals, and live parity."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlecs_jax import lora, peft
from mlecs_jax.errors import UserError
from mlecs_jax.lora import LoraConfig
from mlecs_jax.models import hf
from mlecs_jax.models.decoder import Decoder, DecoderConfig

GOLDEN = Path(__file__).parent / "golden"


def seeded(config, targets, rank=3):
    shapes = jax.eval_shape(lambda: Decoder(config).init(
        jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32),
                        lora.init(jax.random.key(1), shapes, targets, rank))


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_an_adapter_of_peft_gives_its_logits_and_goes_out_as_it_came(name, scan_layers, tmp_path):
    model, params = hf.load(GOLDEN / name, scan_layers=scan_layers)
    adapters, settings = peft.load(GOLDEN / name / "adapter", model.config)
    assert settings == LoraConfig(alpha=6.0, dropout=0.1)
    expected = np.load(GOLDEN / name / "expected.npz")
    adapted = model.clone(lora_config=settings)
    logits = jax.jit(lambda tokens: adapted.apply({"params": params, "lora": adapters}, tokens))(
        jnp.asarray(expected["tokens"], jnp.int32))
    np.testing.assert_allclose(logits, expected["adapted_logits"], rtol=0, atol=1e-6)
    peft.save(tmp_path, model.config, adapters, settings)
    ours, theirs = (load_file(folder / "adapter_model.safetensors")
                    for folder in (tmp_path, GOLDEN / name / "adapter"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)


def test_any_tree_makes_the_round_trip_exactly(tmp_path):
    """Ranks that differ, and layers without an adapter, included."""
    config = DecoderConfig("gptj", 24, 2, 16, 2, rotary_dim=4)
    tree = seeded(config, ("q_proj$", "mlp_fc_out$"))
    tree["block_1"]["attention"]["q_proj"] = {"a": np.ones((16, 5), np.float32),
                                              "b": np.ones((5, 16), np.float32)}
    del tree["block_0"]["mlp_fc_out"]
    peft.save(tmp_path, config, tree, LoraConfig(8.0, 0.0), base_model="mine")
    back, settings = peft.load(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert settings == LoraConfig(8.0, 0.0)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["target_modules"] == ["attn.q_proj", "transformer.h.1.mlp.fc_out"]
    assert values["rank_pattern"] == {"transformer.h.1.attn.q_proj": 5} and values["r"] == 3
    with pytest.raises(UserError, match="scan_layers=False"):
        peft.load(tmp_path, DecoderConfig("gptj", 24, 2, 16, 2, rotary_dim=4, scan_layers=True))


@pytest.mark.parametrize(("values", "message"), [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"use_dora": True}, "use_dora = True"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"lora_alpha": None}, "lora_alpha"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = pissa_niter_4 changes the base"),
    ({"init_lora_weights": "olora"}, "init_lora_weights = olora changes the base"),
])
def test_adapters_of_another_kind_are_refused(tmp_path, values, message):
    folder = Path(shutil.copytree(GOLDEN / "gpt2/adapter", tmp_path / "a"))
    whole = json.loads((folder / "adapter_config.json").read_text()) | values
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=message):
        peft.load(folder, DecoderConfig("gpt2", 64, 2, 24, 3))


def test_adapters_of_another_model_are_refused(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "gpt2/adapter", tmp_path / "a"))
    with pytest.raises(UserError, match="'base_model.model.transformer.h.1.*adapts no layer"):
        peft.load(folder, DecoderConfig("gpt2", 64, 1, 24, 3))
    with pytest.raises(UserError, match=r"lora_A \(3, 24\).*another model's"):
        peft.load(folder, DecoderConfig("gpt2", 64, 2, 36, 3))
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="only one of lora_A and lora_B"):
        peft.load(folder, DecoderConfig("gpt2", 64, 2, 24, 3))
    with pytest.raises(UserError, match="adapter_config.json cannot be read"):
        peft.load(tmp_path / "absent", DecoderConfig("gpt2", 64, 2, 24, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # theirs
@pytest.mark.parametrize(("name", "targets"), [
    ("gpt2", ("c_attn$", "mlp_c_proj$")), ("gptj", ("proj$", "fc_out$")), ("llama", ("proj$",)),
    ("qwen2", ("proj$",)), ("qwen3", ("proj$",))])
def test_live_parity_with_torch_and_peft(name, targets, tmp_path):
    """An adapter written here gives torch the same logits on the side and merged."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model, params = hf.load(GOLDEN / name)
    adapters = jax.tree.map(lambda x: 0.1 * x, seeded(model.config, targets))
    settings = LoraConfig(4.0, 0.0)
    peft.save(tmp_path / "adapter", model.config, adapters, settings)
    hf.save(tmp_path / "merged", model.config, lora.merge(params, adapters, settings.alpha))
    tokens = np.random.default_rng(0).integers(0, 64, (2, 7))
    ours = model.clone(lora_config=settings).apply({"params": params, "lora": adapters},
                                                   jnp.asarray(tokens))
    base = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for other in (theirs.PeftModel.from_pretrained(base, tmp_path / "adapter"), merged):
        with torch.no_grad():
            logits = other.eval()(torch.from_numpy(tokens)).logits.numpy()
        np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-6)
