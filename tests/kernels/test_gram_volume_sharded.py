"""The sharded loss equals the single-device one, in value and gradients, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mlecs_jax.kernels import gram_volume

B, K, D = 16, 3, 24


@pytest.fixture(scope="module")
def mesh():
    if jax.device_count() < 8:
        pytest.skip("needs eight (fake) devices")
    return jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("implementation", ["xla_dense", "xla_tiled"])
@pytest.mark.parametrize("mode", ["exact", "gram_parity"])
@pytest.mark.parametrize("with_negatives", [False, True])
def test_equals_single_device(mesh, implementation, mode, with_negatives):
    r = np.random.default_rng(0)
    with jax.enable_x64(True):
        a, m = jnp.asarray(r.normal(size=(B, D))), jnp.asarray(r.normal(size=(B, K, D)))
        mask = jnp.asarray(r.random((B, K)) < 0.7)
        negatives = jnp.asarray(r.random((B, B)) < (0.6 if with_negatives else 2))
        options = {"label_smoothing": 0.1, "mode": mode, "implementation": implementation}

        def single(a, m, tau):
            return gram_volume.volume_contrastive_loss(
                a, m, mask, temperature=tau, negatives_mask=negatives, **options
            )

        def of_shard(a, m, mask, negatives, tau):
            return gram_volume.sharded_volume_contrastive_loss(
                a,
                m,
                mask,
                axis_name="batch",
                temperature=tau,
                negatives_mask=negatives if with_negatives else None,
                **options,
            )

        rows = P("batch")
        sharded = jax.shard_map(
            of_shard,
            mesh=mesh,
            in_specs=(rows, rows, rows, P(None, "batch"), P()),
            out_specs=P(),
        )

        def together(a, m, tau):
            return sharded(a, m, mask, negatives, tau)

        args = (a, m, jnp.asarray(2.0))
        own = jax.jit(jax.value_and_grad(together, argnums=(0, 1, 2)))(*args)
        true = jax.jit(jax.value_and_grad(single, argnums=(0, 1, 2)))(*args)
        for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(true), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)


def test_reference_refuses(mesh):
    def of_shard(a, m, mask):
        return gram_volume.sharded_volume_contrastive_loss(
            a, m, mask, axis_name="batch", implementation="reference"
        )

    rows = P("batch")
    with pytest.raises(NotImplementedError, match="gather the batch"):
        jax.shard_map(of_shard, mesh=mesh, in_specs=(rows,) * 3, out_specs=P())(
            np.ones((8, 4), np.float32), np.ones((8, 1, 4), np.float32), np.ones((8, 1), bool)
        )
