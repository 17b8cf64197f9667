"""LoRA trees: which layers they touch, that they start as nothing, and that merging is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import lora
from mlecs_jax.errors import UserError
from mlecs_jax.lora import LoraConfig
from mlecs_jax.models import initial, zoo
from mlecs_jax.models.decoder import Decoder, DecoderConfig

TOKENS = jnp.arange(10).reshape(2, 5)


def backbone(family: str, scan_layers: bool):
    shape = DecoderConfig(family, 24, 2, 16, 2, rotary_dim=4, scan_layers=scan_layers)
    model = Decoder(shape, LoraConfig(alpha=16.0, dropout=0.0))
    params = initial.draw(lambda key: model.init(key, TOKENS), jax.random.key(0),
                          embedding_std=0.15)
    return model, jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_side_path_starts_as_identity_and_equals_merged_weights(family, scan_layers):
    model, params = backbone(family, scan_layers)
    adapters = lora.init(jax.random.key(1), params, model.config.lora_targets, rank=3)
    plain = model.apply({"params": params}, TOKENS)
    np.testing.assert_array_equal(model.apply({"params": params, "lora": adapters}, TOKENS), plain)
    adapters = jax.tree.map(lambda x: jnp.asarray(x) + 0.1, adapters)
    side = model.apply({"params": params, "lora": adapters}, TOKENS)
    merged = model.apply({"params": lora.merge(params, adapters, alpha=16.0)}, TOKENS)
    np.testing.assert_allclose(side, merged, atol=1e-5)
    assert np.abs(side - plain).max() > 0.05


def test_only_targets_are_adapted():
    model, params = backbone("gptj", scan_layers=False)
    adapters = lora.init(jax.random.key(1), params, ("q_proj$", "v_proj$"), rank=3)
    assert sorted(adapters["block_0"]["attention"]) == ["q_proj", "v_proj"]
    assert adapters["block_1"]["attention"]["q_proj"]["a"].shape == (16, 3)
    del model


def test_count_of_the_paper_configuration():
    """GPT-2-large, r=8 on c_attn and both c_proj: 36·8·(1280+3840 + 1280+1280 + 5120+1280)."""
    model = Decoder(zoo.decoder_config("gpt2-large", 257))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS))["params"]
    adapters = lora.init(jax.random.key(0), shapes, ("c_attn$", "c_proj$"), rank=8)
    assert lora.count(adapters) == 36 * 8 * (5120 + 2560 + 6400) == 4_055_040


def test_bad_rank_and_target_are_named():
    _, params = backbone("gpt2", scan_layers=False)
    with pytest.raises(UserError, match="lora.rank is 0"):
        lora.init(jax.random.key(0), params, ("c_attn$",), rank=0)
    with pytest.raises(UserError, match="'q_proj' matches no layer.*c_attn"):
        lora.init(jax.random.key(0), params, ("q_proj",), rank=2)
