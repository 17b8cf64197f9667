"""The loss over a batch spread across devices: anchors travel, others stay.

Anchors are small ([B, d], 32 MiB at B = 16,384 and d = 512 in float32), the others k times that;
so every device gathers all anchors and pairs them with its own tuples. A column of the volume
matrix is then local; a row's log-sum-exp needs one pmax and one psum. Going back, autodiff turns
the gather into a reduce-scatter of the anchors' gradients.
"""

import jax
import jax.numpy as jnp

from mlecs_jax.kernels.gram_volume import pairs, schur


def solve(
    solver: pairs.Solver,
    settings: pairs.Settings,
    a: jax.Array,
    m: jax.Array,
    present: jax.Array,
    tau: jax.Array,
    negatives: jax.Array | None,
) -> jax.Array:
    """The loss of checked inputs in the accumulation type; on one device axis_name is None."""
    q, s = schur.factor(m, present)
    stop = jax.lax.stop_gradient if settings.parity else lambda x: x
    row_t, column_t = stop(s) / tau, s / tau
    row_positive = -row_t * schur.own_distance(a, stop(q))
    column_positive = row_positive
    if settings.parity:
        column_positive = -column_t * schur.own_distance(stop(a), q)
    own = pairs.Inputs(
        a, q, row_t, column_t, row_positive, column_positive, jnp.int32(0), negatives
    )
    # Inside a shard_map all must vary over the same axes, or the gradients would not.
    own = pairs.Inputs(
        *(pairs.match_varying(x, row_positive, column_positive) for x in own[:-1]), negatives
    )
    if settings.axis_name is not None:
        own = own._replace(
            offset=jax.lax.axis_index(settings.axis_name) * jnp.int32(a.shape[0]),
            a=jax.lax.all_gather(own.a, settings.axis_name, tiled=True),
        )
    return pairs.loss(solver, settings, own)
