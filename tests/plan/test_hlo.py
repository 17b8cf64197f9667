"""Collectives are found where they are, as often as loops run them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlecs_jax import sharding
from mlecs_jax.plan import hlo

TEXT = """HloModule jit_f, num_partitions=16

%cond (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(28)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%wide.region_1_spmd (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]) parameter(0)
  %w = bf16[1024,4096]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=[4,4]<=[16], \
dimensions={0}, metadata={op_name="jit(f)/while/body/dot_general"}
  %r = f32[16]{0} all-reduce(%y), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %r)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8] parameter(0)
  %w = (s32[], f32[4,8]) while(%t), condition=%cond, body=%wide.region_1_spmd
  %s = (f32[8], f32[32]) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %d = f32[32] all-gather-done(%s)
  ROOT %q = f32[8] reduce-scatter(%z), replica_groups=[2,8]<=[16], to_apply=%add
}
"""


def test_kinds_sizes_groups_and_trips():
    found = {(c.kind, c.bytes, c.group, c.times) for c in hlo.collectives(TEXT)}
    assert found == {("all-gather", 1024 * 4096 * 2, 4, 28), ("all-reduce", 64, 2, 28),
                     ("all-gather", 128, 4, 1), ("reduce-scatter", 32, 8, 1)}


def test_what_a_ring_sends():
    expected = 28 * (1024 * 4096 * 2 * 3 / 4 + 2 * 64 / 2) + 128 * 3 / 4 + 32 * 7
    assert hlo.sent_bytes(hlo.collectives(TEXT)) == expected
    gather = hlo.largest_gather(hlo.collectives(TEXT))
    assert gather is not None and gather.what == "jit(f)/while/body/dot_general"


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.collectives("nothing")


def test_a_real_program_of_known_traffic():
    """x [8, 32] W [32, 16], W split by rows over 4 chips, x whole: partial sums meet, 3 times."""
    mesh = sharding.make_mesh(jax.devices()[:4], (4, 1))

    def f(x, w):
        return jax.lax.fori_loop(0, 3, lambda i, y: y @ w @ w.T, x)

    x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
    w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    text = jax.jit(f, out_shardings=NamedSharding(mesh, P())).lower(x, w).compile().as_text()
    found = hlo.collectives(text)
    assert found and all(c.group == 4 for c in found)
    assert {3} <= {c.times for c in found}
