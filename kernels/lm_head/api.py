"""Public functions: cross-entropy and KL straight from hidden states and vocabulary heads.

The head's layout is [V, D], a row an outcome: that of a tied token embedding. For a head stored
as [D, V] pass its transpose (under jit that costs nothing but the layout of the products).
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mlecs_jax.kernels.lm_head import cross_entropy as chunked
from mlecs_jax.kernels.lm_head import kl, pallas_gpu, pallas_tpu, reference, vocabulary

IMPLEMENTATIONS: tuple[str, ...] = ("reference", "xla", "pallas_gpu", "pallas_tpu")
PALLAS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "pallas_gpu": (pallas_gpu, ("gpu", "cuda")),
    "pallas_tpu": (pallas_tpu, ("tpu",)),
}
Pooling = Literal["full", "topk_rest", "adaptive_avg", "sorted_topk"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
# Poolings that forget which outcome is which, so that the two vocabularies may differ.
ANONYMOUS = ("adaptive_avg", "sorted_topk")


def _check_implementation(implementation: str | None) -> bool:
    """Whether the reference was asked for."""
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation must be one of {IMPLEMENTATIONS} or None, got {implementation!r}"
        )
    return implementation == "reference"


def _kernel(implementation: str | None, hidden: jax.Array) -> Any:
    """The Pallas kernel that was asked for, or None for the walk in XLA."""
    if implementation not in PALLAS:
        return None
    module, platforms = PALLAS[implementation]
    tile, backend = module.default_tile(hidden.shape[1]), jax.default_backend()
    reason = None
    if hidden.dtype.itemsize > 4:
        reason = f"it sums in float32, and the hidden states are {hidden.dtype}"
    elif jax.sharding.get_abstract_mesh().manual_axes:
        reason = "it has not been made to run inside shard_map"
    elif tile is None:
        reason = f"a width of {hidden.shape[1]} does not fit in on-chip memory"
    elif backend not in platforms:
        reason = f"it runs on {platforms[0]}, and the default device is a {backend}"
    if reason is not None:
        raise NotImplementedError(f"{implementation}: {reason}; None chooses what runs here")
    return module.kernel(tile)


def _check_model(who: str, hidden: jax.Array, head: jax.Array, bias: jax.Array | None) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(
            f"{who}: expected hidden [N, D] and head [V, D], got {hidden.shape} and {head.shape}"
        )
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"{who}: expected bias [{head.shape[0]}], got {bias.shape}")


def _optional(x: ArrayLike | None) -> jax.Array | None:
    return None if x is None else jnp.asarray(x)


def linear_cross_entropy(
    hidden: ArrayLike,
    head: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    implementation: str | None = None,
    precision: Any = None,
) -> jax.Array:
    """Cross-entropy of softmax(hidden head^T + bias) per token, without writing the logits.

    Args:
      hidden: [N, D], float32 or bfloat16. Products run in this type and are summed in float32.
      head: [V, D]; labels: int [N], each in [0, V) or `ignore_index`; bias: [V].
      ignore_index: label of tokens that do not count.
      label_smoothing: share of the target spread evenly over the vocabulary.
      z_loss: adds z_loss * (log-sum-exp of the logits)^2, as PaLM does to keep them small.
      implementation: 'xla' (vocabulary in chunks), 'reference' (logits written out),
        'pallas_gpu' or 'pallas_tpu' (logits never leave the chip; a head's gradient is 'xla'
        still), or None for 'xla': no kernel has been timed on a device yet.
      precision: of the matrix products; None is JAX's default for the platform.

    Returns:
      [N] in float32 or wider, 0 where ignored. Differentiable in hidden, head and bias; the
      hidden states' gradient is formed on the way forward, and under jit the head's costs
      nothing where nobody asks for it.

    Raises:
      ValueError: shapes or options that are wrong.
      NotImplementedError: the kernel asked for cannot run this; says why.
    """
    h, w, y, b = jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(labels), _optional(bias)
    _check_model("linear_cross_entropy", h, w, b)
    if y.shape != h.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"labels must be int [{h.shape[0]}], got {y.dtype} {y.shape}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if _check_implementation(implementation):
        return reference.cross_entropy(h, w, b, y, ignore_index, label_smoothing, z_loss)
    options = chunked.Options(
        ignore_index,
        label_smoothing,
        z_loss,
        precision,
        vocabulary.chunk_size(h.shape[0], w.shape[0]),
        _kernel(implementation, h),
    )
    return chunked.cross_entropy(options, vocabulary.Model(h, w, b), y)


def linear_kl(
    teacher_hidden: ArrayLike,
    teacher_head: ArrayLike,
    student_hidden: ArrayLike,
    student_head: ArrayLike,
    *,
    teacher_bias: ArrayLike | None = None,
    student_bias: ArrayLike | None = None,
    temperature: float = 1.0,
    pooling: Pooling = "topk_rest",
    k: int = 32,
    implementation: str | None = None,
    precision: Any = None,
) -> jax.Array:
    """KL(teacher || student) of next-token distributions per token, without writing the logits.

    The teacher is under stop_gradient. The two may differ in width, and with 'adaptive_avg' and
    'sorted_topk' in vocabulary. No factor temperature^2 is applied.

    Args:
      teacher_hidden: [N, Dt]; teacher_head: [Vt, Dt]; student_hidden: [N, Ds];
        student_head: [Vs, Ds]; biases [Vt], [Vs].
      temperature: divides both models' logits.
      pooling: what the distributions are over. 'full': the vocabulary. 'topk_rest': the
        teacher's k likeliest outcomes and one for all others. 'adaptive_avg': k bins, logits
        averaged over runs of neighbouring ids (id v of V falls in bin floor(v k / V)); since
        pooling commutes with the head, the heads are pooled instead. 'sorted_topk': the k largest
        logits of each model in order, softmax over these alone.
      k: outcomes or bins of a pooled distribution.
      implementation: 'xla', 'reference' (logits written out), or None for 'xla'.
      precision: of the matrix products; None is JAX's default for the platform.

    Returns:
      [N] in float32 or wider, at least 0 up to rounding.

    Raises:
      ValueError: shapes or options that are wrong.
      NotImplementedError: a Pallas implementation, of which there is none.
    """
    stop = jax.lax.stop_gradient
    th, tw, tb = stop(
        (jnp.asarray(teacher_hidden), jnp.asarray(teacher_head), _optional(teacher_bias))
    )
    sh, sw, sb = jnp.asarray(student_hidden), jnp.asarray(student_head), _optional(student_bias)
    _check_model("linear_kl, teacher", th, tw, tb)
    _check_model("linear_kl, student", sh, sw, sb)
    if th.shape[0] != sh.shape[0]:
        raise ValueError(f"teacher has {th.shape[0]} tokens, student {sh.shape[0]}")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {POOLINGS}, got {pooling!r}")
    if pooling not in ANONYMOUS and tw.shape[0] != sw.shape[0]:
        raise ValueError(
            f"pooling={pooling!r} needs one vocabulary, got {tw.shape[0]} and {sw.shape[0]} "
            f"outcomes: slice the heads to the shared ids, or use one of {ANONYMOUS}"
        )
    if pooling != "full" and not 1 <= k <= min(tw.shape[0], sw.shape[0]):
        raise ValueError(f"k must be in 1..{min(tw.shape[0], sw.shape[0])}, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    teacher, student = _tempered(th, tw, tb, temperature), _tempered(sh, sw, sb, temperature)
    if implementation in PALLAS:
        raise NotImplementedError(f"{implementation}: linear_kl runs on XLA alone; leave None")
    if _check_implementation(implementation):
        return reference.pooled_kl(
            reference.logits(*teacher), reference.logits(*student), pooling, k
        )
    n, v = sh.shape[0], sw.shape[0]
    if pooling == "topk_rest":
        options = kl.Options(precision, max(k, vocabulary.chunk_size(n, v)))
        return kl.topk_rest(options, student, kl.teacher_topk(options, teacher, k))
    if pooling == "adaptive_avg":
        teacher, student = _pooled(teacher, k), _pooled(student, k)
    if pooling == "sorted_topk":
        options = kl.Options(precision, max(k, vocabulary.chunk_size(n, max(v, tw.shape[0]))))
        best, _, _ = kl.largest(options, teacher, k)
        return kl.sorted_topk(options, student, jax.nn.log_softmax(best))
    options = kl.Options(precision, vocabulary.token_block(student.head.shape[0]))
    return kl.full(options, student, teacher)


def _tempered(
    hidden: jax.Array, head: jax.Array, bias: jax.Array | None, temperature: float
) -> vocabulary.Model:
    """Logits divided by the temperature, by way of the small factors."""
    if temperature == 1:
        return vocabulary.Model(hidden, head, bias)
    bias = None if bias is None else bias / temperature
    return vocabulary.Model(hidden / temperature, head, bias)


def _pooled(model: vocabulary.Model, bins: int) -> vocabulary.Model:
    """Head and bias averaged over runs of neighbouring ids: [V, D] -> [bins, D]."""
    size = model.head.shape[0]
    which = jnp.arange(size) * bins // size
    counts = jnp.bincount(which, length=bins)

    def mean(x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.result_type(jnp.float32, x.dtype))
        total = jax.ops.segment_sum(wide, which, bins, indices_are_sorted=True)
        return total / counts.reshape(-1, *[1] * (x.ndim - 1)).astype(wide.dtype)

    bias = None if model.bias is None else mean(model.bias)
    return vocabulary.Model(model.hidden, mean(model.head), bias)
