"""Losses on the vocabulary head against the same with logits written out, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec

from mlecs_jax.kernels import lm_head
from mlecs_jax.kernels.lm_head import cross_entropy, pallas_gpu, pallas_tpu, vocabulary
from mlecs_jax.kernels.lm_head.arg_specs import TEST_SPECS

SPEC = TEST_SPECS[1]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks and a shorter last one, at sizes a test can afford."""
    monkeypatch.setattr(vocabulary, "chunk_size", lambda tokens, size: min(size, 40))
    monkeypatch.setattr(vocabulary, "token_block", lambda size: 5)


def draw(spec, dtype=np.float64):
    r = np.random.default_rng(0)
    n, v = spec.tokens, spec.vocabulary
    labels = r.integers(0, v, n)
    labels[n // 2 :: 5] = -1
    models = {
        name: (r.normal(size=(n, d)), r.normal(size=(v, d)), r.normal(size=v))
        for name, d in (("student", spec.d), ("teacher", spec.teacher_d))
    }
    models = jax.tree.map(lambda x: jnp.asarray(x, dtype), models)
    return models["student"], models["teacher"], jnp.asarray(labels), jnp.asarray(r.normal(size=n))


def close(own, true, rtol=1e-10):
    for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(true), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * float(jnp.abs(y).max() + 1))


@pytest.mark.parametrize("spec", TEST_SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.01)])
def test_cross_entropy(spec, label_smoothing, z_loss):
    with jax.enable_x64(True):
        student, _, labels, weights = draw(spec)

        def of(implementation):
            def loss(h, w, b):
                values = lm_head.linear_cross_entropy(
                    h,
                    w,
                    labels,
                    bias=b,
                    label_smoothing=label_smoothing,
                    z_loss=z_loss,
                    implementation=implementation,
                )
                return jnp.vdot(weights, values), values

            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*student)

        own, true = of("xla"), of("reference")
        close(own, true)
        ignored = labels == -1
        assert (own[0][1][ignored] == 0).all()
        assert (own[1][0][ignored] == 0).all()


@pytest.mark.parametrize(
    ("pooling", "k"),
    [("full", 1), ("topk_rest", 7), ("topk_rest", 101), ("adaptive_avg", 9), ("sorted_topk", 7)],
)
def test_kl(pooling, k):
    with jax.enable_x64(True):
        student, (th, tw, tb), _, weights = draw(SPEC)

        def of(implementation):
            def loss(h, w, b):
                values = lm_head.linear_kl(
                    th,
                    tw,
                    h,
                    w,
                    teacher_bias=tb,
                    student_bias=b,
                    temperature=2.0,
                    pooling=pooling,
                    k=k,
                    implementation=implementation,
                )
                return jnp.vdot(weights, values), values

            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*student)

        own = of("xla")
        close(own, of("reference"))
        assert (own[0][1] >= -1e-12).all()


@pytest.mark.parametrize("pooling", ["full", "topk_rest", "adaptive_avg", "sorted_topk"])
def test_kl_of_a_model_with_itself_is_zero_and_the_teacher_gets_no_gradient(pooling):
    (h, w, _), *_ = draw(SPEC, np.float32)

    def loss(teacher, student):
        return lm_head.linear_kl(teacher, w, student, w, pooling=pooling, k=8).sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (to_teacher, to_student) = value_and_grad(h, h)
    np.testing.assert_allclose(value, 0, atol=1e-4)
    np.testing.assert_array_equal(to_teacher, 0)
    np.testing.assert_allclose(to_student, 0, atol=1e-5)


def test_confident_models_stay_finite():
    # One outcome holds all mass: the rest underflows on both sides.
    h = 100 * jnp.eye(4, dtype=jnp.float32)
    w = jnp.concatenate([jnp.eye(4), jnp.zeros((60, 4))]).astype(jnp.float32)
    labels = jnp.arange(4)

    def losses(h):
        kl = lm_head.linear_kl(jnp.flip(h, 0), w, h, w, k=2)
        return (kl + lm_head.linear_cross_entropy(h, w, labels)).sum()

    value, grad = jax.jit(jax.value_and_grad(losses))(h)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_bfloat16_products_sum_in_float32():
    (h, w, _), _, labels, _ = draw(SPEC, jnp.bfloat16)
    own = jax.jit(lm_head.linear_cross_entropy)(h, w, labels)
    true = lm_head.linear_cross_entropy(h, w, labels, implementation="reference")
    assert own.dtype == jnp.float32
    np.testing.assert_allclose(own, true, rtol=2e-2, atol=2e-2)


def test_vmap_over_clients_shares_the_head():
    (h, w, _), _, labels, _ = draw(SPEC, np.float32)
    stacked = jnp.stack([h, 2 * h])

    @jax.jit
    def grad(h):
        return jax.grad(lambda h: lm_head.linear_cross_entropy(h, w, labels).sum())(h)

    together = jax.jit(jax.vmap(grad))(stacked)
    for own, one in zip(together, stacked, strict=True):
        np.testing.assert_allclose(own, grad(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kernel",
    [
        pallas_tpu.kernel((16, 128), True),
        pallas_tpu.kernel((16, 128), pltpu.InterpretParams()),  # sees blocks returned to
        pallas_gpu.kernel((16, 16), True),
    ],
    ids=["tpu", "tpu-interpreter", "gpu"],
)
def test_pallas_cross_entropy(kernel):
    (h, w, b), _, labels, weights = draw(SPEC, np.float32)

    def of(kernel):
        options = cross_entropy.Options(-1, 0.1, 0.01, jax.lax.Precision.HIGHEST, 40, kernel)

        def loss(*model):
            values = cross_entropy.cross_entropy(options, vocabulary.Model(*model), labels)
            return jnp.vdot(weights, values), values

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(h, w, b)

    close(of(kernel), of(None), rtol=2e-6)


def test_pallas_says_why_it_cannot_run():
    (h, w, _), _, labels, _ = draw(SPEC, np.float32)
    with pytest.raises(NotImplementedError, match="pallas_tpu: it runs on tpu"):
        lm_head.linear_cross_entropy(h, w, labels, implementation="pallas_tpu")
    with pytest.raises(NotImplementedError, match="linear_kl runs on XLA alone"):
        lm_head.linear_kl(h, w, h, w, implementation="pallas_gpu")
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="sums in float32"):
        (h, w, _), _, labels, _ = draw(SPEC)
        lm_head.linear_cross_entropy(h, w, labels, implementation="pallas_gpu")


def test_pallas_refuses_inside_shard_map():
    (h, w, _), _, labels, _ = draw(SPEC, np.float32)
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))

    def of_shard(h, labels):
        return lm_head.linear_cross_entropy(h, w, labels, implementation="pallas_gpu")

    rows = PartitionSpec("batch")
    sharded = jax.shard_map(of_shard, mesh=mesh, in_specs=rows, out_specs=rows)
    with pytest.raises(NotImplementedError, match="inside shard_map"):
        sharded(h, labels)


def test_no_logits_are_written():
    (h, w, _), (th, tw, _), labels, _ = draw(SPEC, np.float32)

    def temp(implementation):
        def loss(h):
            own = lm_head.linear_cross_entropy(h, w, labels, implementation=implementation)
            return (own + lm_head.linear_kl(th, tw, h, w, implementation=implementation)).sum()

        text = jax.jit(jax.grad(loss)).lower(h).as_text()
        return f"{SPEC.tokens}x{SPEC.vocabulary}xf32" in text

    assert temp("reference")
    assert not temp("xla")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h, w, y: lm_head.linear_cross_entropy(h, w[:, :-1], y), "expected hidden"),
        (lambda h, w, y: lm_head.linear_cross_entropy(h, w, y[:-1]), "labels must be"),
        (lambda h, w, y: lm_head.linear_cross_entropy(h, w, y, bias=y), "expected bias"),
        (lambda h, w, y: lm_head.linear_cross_entropy(h, w, y, label_smoothing=2.0), "smoothing"),
        (lambda h, w, y: lm_head.linear_cross_entropy(h, w, y, implementation="x"), "must be one"),
        (lambda h, w, y: lm_head.linear_kl(h, w, h[:-1], w), "tokens"),
        (lambda h, w, y: lm_head.linear_kl(h, w, h, w[:-1]), "one vocabulary"),
        (lambda h, w, y: lm_head.linear_kl(h, w, h, w, k=1000), "k must be"),
        (lambda h, w, y: lm_head.linear_kl(h, w, h, w, pooling="other"), "pooling"),
        (lambda h, w, y: lm_head.linear_kl(h, w, h, w, temperature=0.0), "temperature"),
    ],
)
def test_wrong_arguments(call, message):
    (h, w, _), _, labels, _ = draw(SPEC, np.float32)
    with pytest.raises(Exception, match=message):
        call(h, w, labels)
