"""BERT and RoBERTa encoders against torch's hidden states in golden files."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlecs_jax.errors import UserError
from mlecs_jax.models import bert

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("layer", [0, 2, None])
def test_hidden_states_equal_torch(name, layer):
    expected = np.load(GOLDEN / name / "expected.npz")
    encode = bert.load_encoder(GOLDEN / name, layer=layer)
    mask = expected["mask"]
    ours = np.asarray(encode(expected["tokens"].astype(np.int32), mask))
    np.testing.assert_allclose(ours[mask], expected["hidden"][-1 if layer is None else layer][mask],
                               rtol=1e-6, atol=1e-6)


def test_wider_padding_changes_nothing():
    """Though it is wider than the encoder's 22 positions."""
    expected = np.load(GOLDEN / "roberta/expected.npz")
    encode = bert.load_encoder(GOLDEN / "roberta")
    wider = [jnp.pad(jnp.asarray(expected[k]), ((0, 0), (0, 23))) for k in ("tokens", "mask")]
    mask = expected["mask"]
    ours = np.asarray(encode(*wider))[:, :9]
    np.testing.assert_allclose(ours[mask], expected["hidden"][-1][mask], rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="a text of 30 tokens is longer than the encoder's 22"):
        encode(np.zeros((1, 30), np.int32), np.ones((1, 30), bool))


def test_heads_prefixes_and_old_names_are_read(tmp_path):
    directory = Path(shutil.copytree(GOLDEN / "bert", tmp_path / "bert"))
    names = {k: v for k, v in load_file(directory / "model.safetensors").items()
             if not k.startswith("pooler")}
    old = {f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma")
           .replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in names.items()}
    save_file(old | {"cls.predictions.bias": np.ones(4, np.float32)},
              directory / "model.safetensors")
    expected = np.load(GOLDEN / "bert/expected.npz")
    args = expected["tokens"].astype(np.int32), expected["mask"]
    np.testing.assert_array_equal(bert.load_encoder(directory)(*args),
                                  bert.load_encoder(GOLDEN / "bert")(*args))


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="model_type is 'gpt2'"):
        bert.load_encoder(GOLDEN / "gpt2")
    with pytest.raises(UserError, match="3 layers; layer 4 is none"):
        bert.load_encoder(GOLDEN / "bert", layer=4)
    with pytest.raises(UserError, match="holds no tokenizer"):
        bert.load(GOLDEN / "bert")
    directory = Path(shutil.copytree(GOLDEN / "bert", tmp_path / "bert"))
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match="lacks tensor 'encoder.layer.3"):
        bert.load_encoder(directory)
    (directory / "config.json").write_text(json.dumps(values | {"intermediate_size": 41}))
    with pytest.raises(UserError, match=r"intermediate.dense.weight' has shape \(40, 24\)"):
        bert.load_encoder(directory)
