"""`Pairs` as the Pallas kernels take them: padded to whole tiles, vectors beside the matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlecs_jax.kernels.gram_volume.pairs import Pairs, Settings, Weights, floors
from mlecs_jax.kernels.tiles import pad


class Padded(NamedTuple):
    """U and V below are the padded sizes. A padded tuple has own = -1 and pairs with nobody."""

    a: jax.Array  # [U, d] in the operand type
    square: jax.Array  # [U] |a|^2
    least: jax.Array  # [U] clamp of rho^2
    q: jax.Array  # [k, V, d] in the operand type
    t: jax.Array  # [V]
    own: jax.Array  # int32 [V], the row of each tuple's own anchor


def pad_sides(w: Weights, u: int, v: int) -> list[jax.Array]:
    """[U] and [V] numbers of `Weights`, rows' then columns', grown to u and v."""
    return [pad(x, u, 0) for x in w.row] + [pad(x, v, 0) for x in w.column]


def padded(settings: Settings, p: Pairs, u: int, v: int, d: int) -> Padded:
    """`p` grown to u anchors, v tuples, width d."""
    square, least = floors(p.a)
    own = jnp.arange(p.t.shape[0], dtype=jnp.int32) + p.offset
    return Padded(
        a=pad(pad(p.a.astype(settings.operand), u, 0), d, 1),
        square=pad(square, u, 0),
        least=pad(least, u, 0, fill=1.0),
        q=pad(pad(p.q.astype(settings.operand), v, 1), d, 2),
        t=pad(p.t, v, 0),
        own=pad(own, v, 0, fill=-1.0),
    )
