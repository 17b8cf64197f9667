"""Every back end of for_each_client means the same: losses, gradients and updates agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax.clients import for_each_client
from mlecs_jax.errors import UserError
from mlecs_jax.topology import Topology

CLIENTS, FEATURES = 6, 5
RNG = np.random.default_rng(0)


def sgd_client(shared, weights, data):
    """One step of SGD on a noisy least-squares problem of the client's own."""
    noise = jax.random.normal(data["key"], data["y"].shape)

    def loss(w):
        return jnp.mean((data["x"] @ (w * shared["scale"]) - data["y"] - 0.1 * noise) ** 2)

    value, grad = jax.value_and_grad(loss)(weights)
    return weights - 0.1 * grad, {"loss": value, "grad": grad}


def problem(clients=CLIENTS):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(clients))
    data = {"x": jnp.asarray(RNG.standard_normal((clients, 8, FEATURES)), jnp.float32),
            "y": jnp.asarray(RNG.standard_normal((clients, 8)), jnp.float32), "key": keys}
    weights = jnp.asarray(RNG.standard_normal((clients, FEATURES)), jnp.float32)
    return {"scale": jnp.float32(0.5)}, weights, data


@pytest.mark.parametrize("backend,chunk", [("scan", 1), ("scan", 2), ("scan", 4), ("scan", 99),
                                           ("shard_map", 1), ("shard_map", 3)])
def test_backends_agree_with_the_loop(backend, chunk):
    shared, weights, data = problem()
    expected = for_each_client(sgd_client, backend="loop")(shared, weights.copy(), data)
    topology = Topology.create(CLIENTS, cloud_devices=2)
    if backend == "shard_map":
        assert topology.edge.size == 6
        shared = topology.to_edge(shared)
        weights, data = (topology.to_edge(x, per_client=True) for x in (weights, data))
    got = for_each_client(sgd_client, backend=backend, chunk=chunk, mesh=topology.edge)(
        shared, weights, data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, got)


def test_an_error_names_the_client():
    def fails(shared, state, data):
        raise ValueError("no")

    with pytest.raises(ValueError) as caught:
        for_each_client(fails, backend="loop")((), jnp.zeros(2), {"x": jnp.zeros((2, 3))})
    assert any("client 0" in note for note in caught.value.__notes__)


def test_the_shared_backbone_is_not_copied_per_client():
    """Temporary memory of the compiled map does not hold clients × frozen weights."""
    clients, width = 16, 256

    def client(shared, state, data):
        return state + jnp.sum(jnp.tanh(data @ shared)), ()

    compiled = for_each_client(client, chunk=4).lower(
        jnp.zeros((width, width)), jnp.zeros(clients), jnp.zeros((clients, 2, width))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < clients * width * width * 4 / 4


def test_bad_options_are_named():
    with pytest.raises(UserError, match="clients.chunk is 0"):
        for_each_client(sgd_client, chunk=0)
    with pytest.raises(UserError, match="needs an edge mesh"):
        for_each_client(sgd_client, backend="shard_map")
