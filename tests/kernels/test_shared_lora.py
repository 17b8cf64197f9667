"""Shared-base LoRA against merged weights, and proof that the base is never copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax.kernels import shared_lora
from mlecs_jax.kernels.shared_lora import reference
from mlecs_jax.kernels.shared_lora.arg_specs import TEST_SPECS


def draw(spec):
    r = np.random.default_rng(0)
    c, n, d, f, rank = spec
    shapes = {"x": (c, n, d), "w": (d, f), "a": (c, d, rank), "b": (c, rank, f), "bias": (f,)}
    return {name: jnp.asarray(r.normal(size=shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("spec", TEST_SPECS, ids=lambda s: s.name)
def test_batched_single_and_vmapped_equal_merged_weights(spec):
    with jax.enable_x64(True):
        p = draw(spec)

        def batched(x, a, b):
            return shared_lora.linear(x, p["w"], a, b, bias=p["bias"], scale=0.5)

        def merged(x, a, b):
            return jnp.stack(
                [
                    reference.merged_linear(x[i], p["w"], a[i], b[i], p["bias"], 0.5)
                    for i in range(spec.clients)
                ]
            )

        def single(x, a, b):
            return jax.vmap(batched)(x, a, b)  # `batched` takes one client as well

        args = p["x"], p["a"], p["b"]

        def with_gradients(form):
            def loss(*args):
                out = form(*args)
                return jnp.vdot(out, jnp.cos(jnp.arange(out.size))), out

            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*args)

        true = with_gradients(merged)
        for form in (batched, single):
            own = with_gradients(form)
            for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(true), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


def test_the_frozen_weight_gets_no_gradient_and_no_copy_per_client():
    clients, tokens, d, f = 8, 4, 256, 512

    def loss(adapters, x, w):
        return (shared_lora.linear(x, w, *adapters, scale=2.0) ** 2).sum()

    adapters = (jnp.ones((clients, d, 4)), jnp.ones((clients, 4, f)))
    x, w = jnp.ones((clients, tokens, d)), jnp.ones((d, f))
    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    memory = step.lower(adapters, x, w).compile().memory_analysis()
    assert memory.temp_size_in_bytes < w.nbytes  # not one copy, where merging takes eight
    assert f"f32[{clients},{d},{f}]" not in str(jax.make_jaxpr(step)(adapters, x, w))
    np.testing.assert_array_equal(jax.grad(loss, argnums=2)(adapters, x, w), 0)


def sgd(w):
    """One step of many clients' adapters on a shared weight."""

    def step(adapters, x):
        def loss(adapters):
            return (jnp.tanh(shared_lora.linear(x, w, *adapters, scale=2.0)) ** 2).sum()

        return jax.tree.map(lambda p, g: p - 0.1 * g, adapters, jax.grad(loss)(adapters))

    return step


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_clients_in_chunks_step_as_all_at_once(size):
    r = np.random.default_rng(1)
    shapes = (5, 3, 8), (8, 6), (5, 8, 2), (5, 2, 6)
    x, w, a, b = (jnp.asarray(r.normal(size=shape), jnp.float32) for shape in shapes)
    own = jax.jit(lambda s, x: shared_lora.in_chunks(sgd(w), s, x, size=size))((a, b), x)
    for got, want in zip(own, sgd(w)((a, b), x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_memory_in_flight_is_that_of_a_chunk():
    def temp(clients):
        def shape(*size):
            return jax.ShapeDtypeStruct(size, jnp.float32)

        def run(state, x, w):
            return shared_lora.in_chunks(sgd(w), state, x, size=2)

        state = shape(clients, 64, 4), shape(clients, 4, 512)
        step = jax.jit(run, donate_argnums=0)
        compiled = step.lower(state, shape(clients, 256, 64), shape(64, 512)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp(16) < 1.1 * temp(4)


@pytest.mark.parametrize(("size", "clients"), [(0, 4), (2, 3)])
def test_wrong_chunks(size, clients):
    with pytest.raises(ValueError, match="in_chunks"):
        shared_lora.in_chunks(lambda s, x: s, jnp.ones((4, 2)), jnp.ones((clients, 2)), size=size)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 5), (5, 7), (5, 2), (2, 8)), "widths"),
        (((3, 5), (5, 7), (4, 2), (2, 7)), "widths"),
        (((3, 4, 5), (5, 7), (2, 5, 2), (2, 2, 7)), "clients"),
        (((3, 5), (5, 7), (5, 2), (1, 2, 7)), "both batched"),
    ],
)
def test_wrong_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        shared_lora.linear(*(jnp.ones(s) for s in shapes))
