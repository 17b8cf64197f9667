"""Rules on paths, and a sharded decoder that says what an unsharded one says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlecs_jax import lora, sharding
from mlecs_jax.errors import UserError
from mlecs_jax.lora import LoraConfig
from mlecs_jax.models import initial
from mlecs_jax.models.decoder import Decoder, DecoderConfig


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:8])


def shapes_of(config):
    decoder = Decoder(config)
    return jax.eval_shape(lambda: decoder.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))[
        "params"]


GPT2 = DecoderConfig("gpt2", 64, 2, 16, 4, max_positions=32, scan_layers=True, remat=True)
GPTJ = dataclasses.replace(GPT2, family="gptj", rotary_dim=2)
LLAMA = dataclasses.replace(GPT2, family="llama", num_kv_heads=2)


def test_a_mesh_is_as_square_as_it_gets(mesh):
    assert mesh.shape == {"fsdp": 4, "tensor": 2}
    assert [sharding.default_shape(n) for n in (1, 2, 7, 8, 16, 256)] == [
        (1, 1), (2, 1), (7, 1), (4, 2), (4, 4), (16, 16)]
    with pytest.raises(UserError, match="a mesh of 3x2 .* needs 6 devices, there are 8"):
        sharding.make_mesh(jax.devices()[:8], (3, 2))


def test_rules_speak_of_the_last_dimensions(mesh):
    specs = sharding.tree_specs(shapes_of(GPT2), mesh)
    attention = specs["blocks"]["attention"]
    assert attention["c_attn"]["kernel"] == P(None, "fsdp", None, "tensor")
    assert attention["c_attn"]["bias"] == P(None, None, "tensor")
    assert attention["c_proj"]["kernel"] == P(None, "tensor", "fsdp")
    assert attention["c_proj"]["bias"] == P()
    assert specs["blocks"]["mlp_c_fc"]["kernel"] == P(None, "fsdp", "tensor")
    assert specs["blocks"]["mlp_c_proj"]["kernel"] == P(None, "tensor", "fsdp")
    assert specs["wte"] == P(("tensor", "fsdp"), None) and specs["wpe"] == P(None, "fsdp")
    unrolled = sharding.tree_specs(shapes_of(dataclasses.replace(
        GPT2, scan_layers=False, remat=False)), mesh)
    assert unrolled["block_1"]["attention"]["c_attn"]["kernel"] == P("fsdp", None, "tensor")


@pytest.mark.parametrize("config", [GPT2, GPTJ, LLAMA], ids=lambda c: c.family)
def test_every_matrix_is_split_over_the_whole_mesh(config, mesh):
    """A family whose layers no rule knows would lie whole on every chip."""
    specs = sharding.tree_specs(shapes_of(config), mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes_of(config)):
        spec = specs
        for entry in path:
            spec = spec[entry.key]
        if sharding.path_name(path).endswith(("kernel", "wte", "lm_head")):
            split = set(jax.tree.leaves(tuple(spec)))
            assert {"fsdp", "tensor"} <= split, (sharding.path_name(path), spec)
        assert leaf.ndim >= len(spec)


def test_an_axis_that_does_not_divide_is_left_out(mesh):
    odd = {"wte": jax.ShapeDtypeStruct((63, 16), jnp.float32)}
    assert sharding.tree_specs(odd, mesh) == {"wte": P(None, None)}
    even = {"wte": jax.ShapeDtypeStruct((62, 16), jnp.float32)}
    assert sharding.tree_specs(even, mesh) == {"wte": P("tensor", None)}
    alone = sharding.make_mesh(jax.devices()[:1])
    assert sharding.tree_specs(odd, alone) == {"wte": P(None, None)}


def test_a_mesh_of_other_axes_replicates_and_constrains_nothing():
    clients = jax.make_mesh((2,), ("client",), devices=jax.devices()[:2],
                            axis_types=(jax.sharding.AxisType.Auto,))
    tree = {"wte": jax.ShapeDtypeStruct((64, 16), jnp.float32)}
    assert sharding.tree_specs(tree, clients) == {"wte": P(None, None)}
    x = jnp.ones((4, 2))
    assert sharding.constrain(x, None, "fsdp") is x
    assert sharding.constrain(x, sharding.make_mesh(jax.devices()[:1]), "fsdp") is x


@pytest.mark.parametrize("config", [GPT2, GPTJ], ids=lambda c: c.family)
def test_a_sharded_decoder_learns_what_a_whole_one_does(config, mesh):
    """Loss and adapters' gradient; frozen weights and adapters split, batch split over fsdp."""
    tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, 64)
    whole = Decoder(config, LoraConfig(16.0, 0.0))
    params = initial.draw(lambda key: whole.init(key, tokens), jax.random.key(0))
    adapters = lora.init(jax.random.key(2), params, config.lora_targets, 2)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)

    def gradient(decoder, params, adapters):
        def loss(adapters):
            hidden = decoder.apply({"params": params, "lora": adapters}, tokens, method="hidden")
            return jnp.mean(hidden ** 2 * jnp.arange(16))

        return jax.jit(jax.value_and_grad(loss))(adapters)

    expected = gradient(whole, params, adapters)
    on_mesh = Decoder(config, LoraConfig(16.0, 0.0), mesh=mesh)
    placed = [jax.device_put(tree, sharding.tree_shardings(tree, mesh))
              for tree in (params, adapters)]
    found = gradient(on_mesh, *placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
                 expected, jax.device_get(found))
