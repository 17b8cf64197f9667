"""Aggregation against NumPy by hand."""

import jax.numpy as jnp
import numpy as np

from mlecs_jax import aggregate


def test_weighted_mean():
    trees = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])}
    got = aggregate.weighted_mean(trees, jnp.array([1, 2, 1]))
    np.testing.assert_allclose(got["x"], [(1 + 6 + 5) / 4, (2 + 8 + 9) / 4])


def test_modality_weights_are_eq_13():
    """Devices with 3, 1 and 2 modalities weigh 3/6, 1/6, 2/6."""
    counts = jnp.array([3, 1, 2])
    np.testing.assert_allclose(aggregate.modality_weights(counts), [3 / 6, 1 / 6, 2 / 6])
    np.testing.assert_allclose(aggregate.modality_weights(counts, equal=True), [1 / 3] * 3)


def test_equal_modality_counts_are_the_uniform_mean():
    trees = jnp.arange(12.0).reshape(4, 3)
    weights = aggregate.modality_weights(jnp.full(4, 3))
    np.testing.assert_allclose(aggregate.weighted_mean(trees, weights), trees.mean(0), rtol=1e-6)


def test_fedilora_averages_each_rank_over_the_devices_that_have_it():
    """FediLoRA by hand. Three devices of ranks 3, 1, 2 and 10, 30, 20 samples, one layer with
    d_in = 2, d_out = 2; A is [d_in, r], B [r, d_out].

    rank 0: all three,      shares 10/60, 30/60, 20/60
    rank 1: devices 0 and 2, shares 10/30, 20/30
    rank 2: device 0 alone,  share 1

    What lies beyond a device's rank must not count, so it is filled with 99 here::

        A0 = [[1, 2, 3], [4, 5, 6]]   A1 = [[7, ·, ·], [8, ·, ·]]   A2 = [[9, 10, ·], [11, 12, ·]]
        A[:, 0] = [(10·1 + 30·7 + 20·9)/60, (10·4 + 30·8 + 20·11)/60] = [400/60, 500/60]
        A[:, 1] = [(10·2 + 20·10)/30, (10·5 + 20·12)/30]               = [220/30, 290/30]
        A[:, 2] = [3, 6]

    B the same with rows: B_k = A_kᵀ gives B = Aᵀ. (In the published code devices 1 and 2 would
    keep column 0 of B only, and B[1] = [2, 5] would be device 0's alone.)
    """
    x = 99.0
    a = np.array([[[1, 2, 3], [4, 5, 6]], [[7, x, x], [8, x, x]], [[9, 10, x], [11, 12, x]]])
    tree = {"block_0": {"c_attn": {"a": jnp.asarray(a), "b": jnp.asarray(a.swapaxes(1, 2))}}}
    got = aggregate.dimension_wise(tree, jnp.array([10, 30, 20]), jnp.array([3, 1, 2]))
    want = np.array([[400 / 60, 220 / 30, 3], [500 / 60, 290 / 30, 6]])
    np.testing.assert_allclose(got["block_0"]["c_attn"]["a"], want, rtol=1e-6)
    np.testing.assert_allclose(got["block_0"]["c_attn"]["b"], want.T, rtol=1e-6)
    stacked = {"blocks": {"c_attn": {name: leaf[:, None] for name, leaf
                                     in tree["block_0"]["c_attn"].items()}}}
    got = aggregate.dimension_wise(stacked, jnp.array([10, 30, 20]), jnp.array([3, 1, 2]))
    np.testing.assert_allclose(got["blocks"]["c_attn"]["b"][0], want.T, rtol=1e-6)


def test_a_rank_nobody_has_is_zero_and_kept_ranks_cut_both_factors():
    tree = {"a": jnp.ones((2, 4, 3)), "b": jnp.ones((2, 3, 5))}
    got = aggregate.dimension_wise(tree, jnp.ones(2), jnp.array([2, 1]))
    np.testing.assert_array_equal(got["a"][0], [1, 1, 0])
    cut = aggregate.keep_ranks(tree, jnp.array([2, 1]))
    np.testing.assert_array_equal(cut["a"].sum(1), [[4, 4, 0], [4, 0, 0]])
    np.testing.assert_array_equal(cut["b"].sum(2), [[5, 5, 0], [5, 0, 0]])


def test_per_modality_means_are_over_owners():
    """Weights 1, 2, 3. Modality x of devices 0 and 2: (1·10 + 3·30)/4 = 25; y of device 1 alone:
    21; nobody owns z, which keeps its last value."""
    trees = {name: {"w": jnp.array([10.0, 20.0, 30.0]) + i}
             for i, name in enumerate(("x", "y", "z"))}
    trees = dict(sorted(trees.items(), reverse=True))  # the order of keys says nothing
    owned = jnp.array([[True, False, False], [False, True, False], [True, False, False]])
    previous = {name: {"w": jnp.array(-1.0)} for name in trees}
    got = aggregate.per_modality(trees, jnp.array([1, 2, 3]), owned, previous,
                                 ("x", "y", "z"))
    assert [float(got[name]["w"]) for name in ("x", "y", "z")] == [25.0, 21.0, -1.0]


def test_tier_by_tier_is_fedavg_over_the_leaves():
    """Σ n_k w_k / Σ n_k over five ends, whatever edges stand between."""
    ends = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    counts = np.array([5.0, 1.0, 2.0, 8.0, 4.0], np.float32)
    parents = np.array([0, 0, 1, 2, 2])
    edges = aggregate.group_mean({"w": jnp.asarray(ends)}, jnp.asarray(counts),
                                 jnp.asarray(parents), 3)
    np.testing.assert_allclose(edges["w"][0], (5 * ends[0] + ends[1]) / 6, rtol=1e-5)
    np.testing.assert_allclose(edges["w"][1], ends[2], rtol=1e-5)
    cloud = aggregate.weighted_mean(edges, jnp.array([6.0, 2.0, 12.0]))
    np.testing.assert_allclose(cloud["w"], counts @ ends / counts.sum(), rtol=1e-5)


def test_staleness_discounts_and_zero_is_eq_4_as_printed():
    counts, staleness = jnp.array([10, 30]), jnp.array([0, 3])
    np.testing.assert_allclose(aggregate.staleness_weights(counts, staleness, 0.0), [0.25, 0.75])
    # a = 1/2: 10 · 1 and 30 · 4^(−1/2) = 15.
    np.testing.assert_allclose(aggregate.staleness_weights(counts, staleness, 0.5), [0.4, 0.6],
                               rtol=1e-6)
