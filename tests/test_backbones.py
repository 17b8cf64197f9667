"""Backbones that are directories: tokenizers that two can share, placement and dtype in a run."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import assemble, backbones, methods
from mlecs_jax import config as configs
from mlecs_jax.configs import ur_fall
from mlecs_jax.data.text import ByteTokenizer
from mlecs_jax.errors import UserError
from mlecs_jax.models import generate, hf
from mlecs_jax.repro.job import Job, configuration_key
from tests.small import config

GOLDEN = Path(__file__).parent / "golden"
WORDS = ["<end>", *"0123456789Clas?", *(f"w{i}" for i in range(44))]  # 60, in 64 rows


def checkpoint(folder, name, words=WORDS, extra=()):
    """A golden model with a tokenizer of one token a letter, and further tokens behind."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    own = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=words[0], unk_token=words[0])
    own.add_tokens(list(extra))
    directory = Path(shutil.copytree(GOLDEN / name, folder / name))
    own.save_pretrained(directory)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(
        values | {"bos_token_id": 0, "eos_token_id": 0}))
    return f"hf:{directory}"


def extra(count):
    return [f"<|extratoken_{i}|>" for i in range(1, count + 1)]


@pytest.mark.parametrize("larger", ["slm", "llm"])
def test_a_vocabulary_may_go_on_where_the_other_ends(tmp_path, larger):
    """As GPT-J's beside GPT-2's: the smaller is spoken."""
    names = {which: checkpoint(tmp_path, name, extra=extra(3 if which == larger else 0))
             for which, name in (("slm", "gpt2"), ("llm", "gptj"))}
    found = backbones.tokenizer_of_directories(names)
    assert len(found) == 60 and found.encode("C0") == [11, 1]


@pytest.mark.parametrize("words", [
    [*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]],  # two change places
    [*WORDS[:59], "another"],
    WORDS[:59] + ["new", WORDS[59]],  # what is more does not come after
])
def test_vocabularies_that_differ_are_refused(tmp_path, words):
    names = {"slm": checkpoint(tmp_path, "gpt2"), "llm": checkpoint(tmp_path, "gptj", words)}
    with pytest.raises(UserError, match="number their tokens differently"):
        backbones.tokenizer_of_directories(names)


def test_a_proxy_of_another_vocabulary_is_refused(tmp_path):
    spoken = backbones.tokenizer_of_directories({"slm": checkpoint(tmp_path, "gpt2")})
    backbones.check_vocabulary("gpt2-1x16", spoken)
    backbones.check_vocabulary(checkpoint(tmp_path, "gptj", extra=extra(2)), spoken)
    for name, tokenizer in ((checkpoint(tmp_path, "llama", WORDS[::-1]), spoken),
                            (checkpoint(tmp_path, "qwen2"), ByteTokenizer())):
        with pytest.raises(UserError, match="unlike the run's other backbones"):
            backbones.check_vocabulary(name, tokenizer)


def test_a_token_that_the_tokenizer_lacks_is_never_said(tmp_path):
    """Nor one of the rows beyond it, however likely."""
    names = {"slm": checkpoint(tmp_path, "gpt2"),
             "llm": checkpoint(tmp_path, "gptj", extra=extra(3))}
    tokenizer = backbones.tokenizer_of_directories(names)
    model, params = hf.load(names["llm"].removeprefix("hf:"))
    params["lm_head_bias"] = params["lm_head_bias"].at[60:].add(1e3)
    ids, mask = generate.pad_prompts([tokenizer.encode("C0")])
    free, bounded = (np.asarray(generate.greedy(
        model, params, None, None, ids, mask, max_new_tokens=3, eos_id=None, vocab_size=size))
        for size in (None, len(tokenizer)))
    assert (free >= 60).all() and (bounded < 60).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backbones_are_read_onto_their_meshes(tmp_path, monkeypatch, dtype):
    """In the type asked for, where they stay; what is trained is float32 whatever they are."""
    options = config(**{
        "model.slm": checkpoint(tmp_path, "gpt2"), "model.llm": checkpoint(tmp_path, "gptj"),
        "model.dtype": dtype, "topology.cloud_devices": 2})
    load, loaded = hf.load, []

    def recorded(*args, **kwargs):
        loaded.append(load(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(hf, "load", recorded)
    setting = assemble.setting(options)
    (_, slm), (_, llm) = loaded
    placed = {"edge": (slm, setting.edge["slm"]), "cloud": (llm, setting.cloud["llm"])}
    for tree, final in placed.values():
        for leaf, where in zip(jax.tree.leaves(tree), jax.tree.leaves(final), strict=True):
            assert leaf.committed and leaf.sharding.is_equivalent_to(where.sharding, leaf.ndim)
    kernel = llm["block_0"]["attention"]["q_proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (12, 24)
    assert {x.dtype for x in jax.tree.leaves((slm, llm))} == {jnp.dtype(dtype)}
    assert setting.llm.backbone_shapes()["wte"].dtype == dtype
    np.testing.assert_array_equal(
        kernel, load(GOLDEN / "gptj")[1]["block_0"]["attention"]["q_proj"]["kernel"].astype(dtype))
    state = methods.build(setting).init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)
            if jnp.issubdtype(leaf.dtype, jnp.floating)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_a_round_on_backbones_in_bfloat16(tmp_path):
    setting = assemble.setting(config(**{
        "model.slm": checkpoint(tmp_path, "gpt2"), "model.llm": checkpoint(tmp_path, "gptj"),
        "model.dtype": "bfloat16"}), jax.devices()[:1])
    method = methods.build(setting)
    before = method.init(jax.random.key(0))
    after, _ = method.round(before, 0, jax.random.key(1))
    leaves = [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in leaves)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))),
                         method.init(jax.random.key(0)).server, after.server)
    assert any(jax.tree.leaves(moved))


def test_the_dtype_of_before_is_no_other_run():
    """Runs made before there was the option say none; they are resumed, and found again."""
    values = ur_fall.get_config().to_dict()
    assert values["model"]["dtype"] == "float32"
    before = {**values, "model": {k: v for k, v in values["model"].items() if k != "dtype"}}
    assert configs.parse(values) == configs.parse(before)
    keys = {configuration_key(Job({}, each), {}) for each in (values, before)}
    values["model"]["dtype"] = "bfloat16"
    assert len(keys) == 1 and configuration_key(Job({}, values), {}) not in keys
    values["model"]["dtype"] = "int8"
    with pytest.raises(UserError, match="model.dtype is 'int8'; use float32 or bfloat16"):
        configs.parse(values)
