"""One suite for every implementation of the volume contrastive loss.

Expected values come from the naive determinant in float64, gradients from autodiff through it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mlecs_jax.kernels import gram_volume
from mlecs_jax.kernels.gram_volume import (
    arg_specs,
    dispatch,
    pairs,
    pallas_gpu,
    pallas_tpu,
    reference,
    solve,
    xla,
    xla_tiled,
)

SPECS = arg_specs.TEST_SPECS
SMALL = (arg_specs.ArgSpec(37, 3, 48),)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(spec, seed=0, closeness=0.0):
    """Unit vectors; closeness near 1 puts every tuple next to its anchor (volumes near 0)."""
    r = np.random.default_rng(seed)
    anchors = unit(r.normal(size=(spec.batch, spec.d)))
    others = unit(r.normal(size=(spec.batch, spec.k, spec.d)))
    others = unit(closeness * anchors[:, None] + (1 - closeness) * others)
    mask = r.random((spec.batch, spec.k)) < 0.7
    mask[0] = False
    return anchors, others, mask


def relative(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-3)


def value_and_grads(loss, arrays, dtype, temperature=0.07, **options):
    anchors, others, mask = arrays

    def of(a, m, tau):
        return loss(a, m, jnp.asarray(mask), temperature=tau, **options)

    args = jnp.asarray(anchors, dtype), jnp.asarray(others, dtype), jnp.asarray(temperature)
    return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))(*args)


_EXPECTED = {}


def expected(arrays, dtype=None, temperature=0.07, **options):
    """The reference in float64, of inputs rounded to dtype; compiled once for all suites."""
    anchors, others, mask = arrays
    names = str(sorted(options.items()))
    key = (anchors.tobytes(), others.tobytes(), str(dtype), names)
    if key in _EXPECTED:
        return _EXPECTED[key]
    if dtype is not None:
        anchors, others = (np.asarray(jnp.asarray(x, dtype), np.float64) for x in arrays[:2])
        temperature = float(np.float32(temperature))
    with jax.enable_x64(True):
        value, grads = value_and_grads(
            reference.volume_contrastive_loss,
            (anchors, others, mask),
            jnp.float64,
            temperature,
            **options,
        )
        _EXPECTED[key] = np.asarray(value), [np.asarray(g) for g in grads]
    return _EXPECTED[key]


def check(own, true, bound):
    """Gradients of anchors and others within `bound`; the temperature's is a difference."""
    assert relative(own[0], true[0]) < bound
    assert relative(own[1], true[1]) < 2 * bound
    assert relative(own[2], true[2]) < max(100 * bound, 1e-9)


class Suite:
    """Inherited by each implementation, which names its solver."""

    solver = xla.DENSE
    specs = small = SMALL
    wide = False  # takes float64
    takes_negatives = False

    @pytest.fixture(autouse=True)
    def only_this_solver(self, monkeypatch):
        monkeypatch.setattr(dispatch, "choose", lambda implementation, problem: self.solver)

    def run(self, arrays, dtype=jnp.float32, **options):
        value, grads = value_and_grads(
            gram_volume.volume_contrastive_loss, arrays, dtype, **options
        )
        return np.asarray(value), [np.asarray(g) for g in grads]

    @pytest.mark.parametrize(
        ("label_smoothing", "mode"), [(0.0, "exact"), (0.1, "exact"), (0.1, "gram_parity")]
    )
    def test_float32(self, label_smoothing, mode):
        for spec in self.small:
            arrays = draw(spec)
            options = {"label_smoothing": label_smoothing, "mode": mode}
            value, grads = self.run(arrays, **options)
            true_value, true_grads = expected(arrays, jnp.float32, **options)
            np.testing.assert_allclose(value, true_value, rtol=2e-6, atol=2e-6)
            check(grads, true_grads, 5e-6)

    @pytest.mark.parametrize("mode", ["exact", "gram_parity"])
    def test_float64(self, mode):
        if not self.wide:
            pytest.skip("sums in float32")
        for spec in self.specs if mode == "exact" else SMALL:
            arrays = draw(spec)
            options = {"label_smoothing": 0.1, "mode": mode}
            with jax.enable_x64(True):
                value, grads = self.run(arrays, jnp.float64, **options)
            true_value, true_grads = expected(arrays, **options)
            np.testing.assert_allclose(value, true_value, rtol=1e-12, atol=1e-12)
            check(grads, true_grads, 1e-10)

    def test_bfloat16(self):
        arrays = draw(SMALL[0])
        _, grads = self.run(arrays, jnp.bfloat16)
        _, true = expected(arrays, jnp.bfloat16)
        assert grads[0].dtype == jnp.bfloat16
        assert relative(grads[0], true[0]) < 1e-2
        assert relative(grads[1], true[1]) < 2e-2

    def test_near_collapse(self):
        # Every tuple within a hundredth of its anchor: the positives' volumes are about 1e-5.
        arrays = draw(SMALL[0], closeness=0.99)
        _, grads = self.run(arrays)
        _, true = expected(arrays, jnp.float32)
        assert relative(grads[0], true[0]) < 5e-6
        # Rounding a gradient to bfloat16 costs 1.7e-3, whatever it is; what was computed is closer.
        _, true = expected(arrays, jnp.bfloat16)
        settings = pairs.Settings(
            0.0, False, jnp.dtype(jnp.bfloat16), jax.lax.Precision.DEFAULT
        )
        a, m = (jnp.asarray(x, jnp.bfloat16).astype(jnp.float32) for x in arrays[:2])

        def loss(a, m):
            mask, tau = jnp.asarray(arrays[2]), jnp.float32(0.07)
            return solve.solve(self.solver, settings, a, m, mask, tau, None)

        own = jax.jit(jax.grad(loss))(a, m)
        assert relative(own, true[0]) < 1e-3

    def test_negatives(self):
        arrays = draw(arg_specs.ArgSpec(13, 3, 33))
        chosen = jnp.asarray(np.random.default_rng(3).random((13, 13)) < 0.5)
        if not self.takes_negatives:
            pytest.skip("negatives_mask is for XLA")
        options = {"negatives_mask": chosen, "label_smoothing": 0.1}
        value, grads = self.run(arrays, **options)
        true_value, true_grads = expected(arrays, jnp.float32, **options)
        np.testing.assert_allclose(value, true_value, rtol=2e-6)
        check(grads, true_grads, 5e-6)

    def test_degenerate_inputs_stay_finite(self):
        anchors, others, mask = draw(arg_specs.ArgSpec(6, 3, 8))
        mask[1:] = True
        others[1, 1] = others[1, 0]  # duplicate modalities
        others[2, 0] = 0  # a zero vector
        others[3] = anchors[3]  # all equal
        anchors[4], others[4] = np.eye(8)[0], np.eye(8)[:3]  # exact one-hot, volume 0
        anchors[5] = 0
        for temperature in (0.07, 1e-3):
            value, grads = self.run((anchors, others, mask), temperature=temperature)
            assert np.isfinite(value)
            assert all(np.isfinite(g).all() for g in grads)

    def test_one_pair_alone(self):
        value, grads = self.run(draw(arg_specs.ArgSpec(1, 2, 8)))
        assert value == 0
        assert all((g == 0).all() for g in grads)

    def test_vmap_over_clients(self):
        spec = arg_specs.ArgSpec(5, 2, 16)
        a, m, mask = (np.stack(x) for x in zip(draw(spec, 0), draw(spec, 1), strict=True))

        def loss(a, m, mask):
            return gram_volume.volume_contrastive_loss(a, m, mask)

        args = jnp.asarray(a, jnp.float32), jnp.asarray(m, jnp.float32), jnp.asarray(mask)
        grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
        together = jax.jit(jax.vmap(grad))(*args)
        for i in range(2):
            alone = grad(*(x[i] for x in args))
            for x, y in zip(together, alone, strict=True):
                np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-5)


class TestDense(Suite):
    specs, wide, takes_negatives = SPECS[:3], True, True


@pytest.mark.slow  # the reference's eight others compile for a minute
class TestDenseOfEight(TestDense):
    specs = SPECS[3:]


class TestTiled(Suite):
    solver = xla_tiled.tiled((8, 16))
    specs, wide, takes_negatives = SPECS[2:3], True, True


@pytest.mark.slow  # interpreted kernels take minutes
class TestPallasTpu(Suite):
    solver = pallas_tpu.solver((16, 128), True)


@pytest.mark.slow  # interpreted kernels take minutes
class TestPallasTpuInterpreter(Suite):
    """The TPU interpreter also reports output blocks that are returned to after being left."""

    solver = pallas_tpu.solver((16, 128), pltpu.InterpretParams())
    small = (arg_specs.ArgSpec(37, 2, 48),)

    def test_vmap_over_clients(self):
        pytest.skip("this interpreter has no vmap; TestPallasTpu covers it")


@pytest.mark.slow  # interpreted kernels take minutes
class TestPallasGpu(Suite):
    solver = pallas_gpu.solver((16, 16), True)


@pytest.mark.parametrize("solver", [TestPallasTpu.solver, TestPallasGpu.solver],
                         ids=["tpu", "gpu"])
def test_pallas_kernels_at_a_glance(solver, monkeypatch):
    """One shape of what the slow suites go through whole."""
    monkeypatch.setattr(dispatch, "choose", lambda implementation, problem: solver)
    arrays = draw(SMALL[0])
    value, grads = value_and_grads(
        gram_volume.volume_contrastive_loss, arrays, jnp.float32, label_smoothing=0.1)
    true_value, true_grads = expected(arrays, jnp.float32, label_smoothing=0.1)
    np.testing.assert_allclose(value, true_value, rtol=2e-6, atol=2e-6)
    check([np.asarray(g) for g in grads], true_grads, 5e-6)


def test_volume_is_the_root_of_the_gram_determinant():
    with jax.enable_x64(True):
        for spec in SPECS[:3]:
            arrays = [jnp.asarray(x) for x in draw(spec)]
            own, true = (jax.jit(f)(*arrays) for f in (gram_volume.volume, reference.gram_volume))
            np.testing.assert_allclose(own, true, rtol=1e-11, atol=1e-14)


def test_volume_of_a_row_without_others_is_the_length_of_its_anchor():
    anchors = jnp.asarray([[3.0, 4.0], [0.0, 2.0]])
    others = jnp.full((2, 3, 2), jnp.nan)  # absent entries may hold anything
    mask = jnp.zeros((2, 3), bool)
    value, grad = jax.value_and_grad(lambda a: gram_volume.volume(a, others, mask).sum())(anchors)
    assert value == 7.0
    np.testing.assert_allclose(grad, [[0.6, 0.8], [0, 1]], rtol=1e-6)
    loss = gram_volume.volume_contrastive_loss(anchors, others, mask)
    assert np.isfinite(loss)


def test_two_vectors_are_blind_to_sign():
    # V = |sin angle|: opposite vectors span no more than equal ones.
    a = jnp.asarray([[1.0, 0.0], [1.0, 0.0]])
    m = jnp.asarray([[[1.0, 0.0]], [[-1.0, 0.0]]])
    np.testing.assert_array_equal(gram_volume.volume(a, m, jnp.ones((2, 1), bool)), [0.0, 0.0])


def test_near_collinear_others_keep_their_volume():
    # Two vectors at angle delta; s is sin(delta) to rounding, where det loses it altogether.
    for delta in (1e-3, 1e-5):
        m = jnp.asarray([[[1.0, 0.0, 0.0], [np.cos(delta), np.sin(delta), 0.0]]], jnp.float32)
        a = jnp.asarray([[0.0, 0.0, 1.0]], jnp.float32)
        own = gram_volume.volume(a, m, jnp.ones((1, 2), bool))
        np.testing.assert_allclose(own, [np.sin(np.float32(delta))], rtol=1e-5)


def test_gram_parity_is_the_gradient_of_each_half():
    arrays = draw(arg_specs.ArgSpec(9, 2, 16))
    value, grads = value_and_grads(
        gram_volume.volume_contrastive_loss, arrays, jnp.float32, mode="gram_parity"
    )
    exact_value, exact = value_and_grads(
        gram_volume.volume_contrastive_loss, arrays, jnp.float32, mode="exact"
    )
    np.testing.assert_allclose(value, exact_value, rtol=1e-6)
    np.testing.assert_allclose(grads[2], exact[2], rtol=1e-4)  # temperature sees both halves
    assert relative(grads[0], exact[0]) > 0.1


def test_runs_inside_scan():
    a, m, mask = draw(arg_specs.ArgSpec(6, 2, 16))
    args = jnp.asarray(a, jnp.float32), jnp.asarray(m, jnp.float32), jnp.asarray(mask)

    def step(total, _):
        return total + gram_volume.volume_contrastive_loss(*args), None

    total, _ = jax.lax.scan(step, jnp.float32(0), length=3)
    np.testing.assert_allclose(total, 3 * gram_volume.volume_contrastive_loss(*args), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": np.ones((3, 4), np.float32)}, "disagree"),
        ({"mask": np.ones((2, 1))}, "boolean"),
        ({"others": np.ones((2, 9, 4), np.float32), "mask": np.ones((2, 9), bool)}, "k must be"),
        ({"anchors": np.ones((2, 4), np.int32)}, "floating"),
        ({"mode": "other"}, "mode"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"negatives_mask": np.ones((3, 3), bool)}, "negatives_mask"),
        ({"implementation": "other"}, "implementation must be"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "anchors": np.ones((2, 4), np.float32),
        "others": np.ones((2, 1, 4), np.float32),
        "mask": np.ones((2, 1), bool),
    } | change
    # The suite's import hook checks literal types too; without it these are the op's own errors.
    with pytest.raises(Exception, match=message):
        gram_volume.volume_contrastive_loss(**arguments)


def test_unsupported_implementations_say_why():
    a, m, mask = draw(arg_specs.ArgSpec(3, 1, 8))
    with pytest.raises(NotImplementedError, match="pallas_tpu: it runs on tpu"):
        gram_volume.volume_contrastive_loss(a, m, mask, implementation="pallas_tpu")
    with pytest.raises(NotImplementedError, match="negatives_mask"):
        gram_volume.volume_contrastive_loss(
            a, m, mask, negatives_mask=np.eye(3, dtype=bool), implementation="pallas_gpu"
        )


def problem(axis_name=None, itemsize=4, has_negatives=False):
    settings = pairs.Settings(
        0.0, False, jnp.dtype(jnp.float32), jax.lax.Precision.HIGHEST, axis_name
    )
    return dispatch.Problem(8192, 8192, 3, 512, settings, itemsize, has_negatives)


@pytest.mark.parametrize("name", ["pallas_gpu", "pallas_tpu"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"axis_name": "batch"}, "inside shard_map"),
        ({"itemsize": 8}, "an input is wider"),
        ({"has_negatives": True}, "negatives_mask"),
    ],
)
def test_a_tuned_kernel_gives_way_where_it_cannot_run(name, options, reason, monkeypatch, caplog):
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(dispatch.TUNED, kind, {"implementation": name, "tile": [128, 128]})
    monkeypatch.setattr(jax, "default_backend", lambda: name.removeprefix("pallas_"))
    assert dispatch.choose(None, problem()).name == f"{name}128x128"
    with caplog.at_level("INFO"):
        solver = dispatch.choose(None, problem(**options))
    assert solver.name.startswith("xla_tiled")
    assert reason in caplog.text and name in caplog.text
    with pytest.raises(NotImplementedError, match=reason):
        dispatch.choose(name, problem(**options))


def test_large_batches_go_to_tiles(monkeypatch):
    monkeypatch.setattr(dispatch, "DENSE_BYTES", 1000)
    a, m, mask = draw(arg_specs.ArgSpec(20, 2, 8))
    chosen = []
    true_choose = dispatch.choose
    monkeypatch.setattr(
        dispatch, "choose", lambda *args: chosen.append(true_choose(*args)) or chosen[-1]
    )
    for batch in (20, 5):
        gram_volume.volume_contrastive_loss(a[:batch], m[:batch], mask[:batch])
    assert [solver.name for solver in chosen] == ["xla_tiled1024x256", "xla_dense"]
