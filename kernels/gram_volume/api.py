"""Public functions: volumes of tuples of vectors, and the contrastive loss on them."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mlecs_jax.kernels.gram_volume import pairs, reference, schur, xla

Implementation = Literal["reference", "xla", "xla_dense"]
IMPLEMENTATIONS: tuple[str, ...] = ("reference", "xla", "xla_dense")
Mode = Literal["exact", "gram_parity"]


def _check(anchors: jax.Array, others: jax.Array, mask: jax.Array) -> None:
    if anchors.ndim != 2 or others.ndim != 3 or mask.ndim != 2:
        raise ValueError(
            "expected anchors [B, d], others [B, k, d], mask [B, k]; got "
            f"{anchors.shape}, {others.shape}, {mask.shape} (use jax.vmap for more axes)"
        )
    b, k, d = others.shape
    if anchors.shape != (b, d) or mask.shape != (b, k):
        raise ValueError(
            f"anchors {anchors.shape}, others {others.shape} and mask {mask.shape} disagree: "
            "expected [B, d], [B, k, d] and [B, k]"
        )
    if not 1 <= k <= 8 or b == 0 or d == 0:
        raise ValueError(f"others {others.shape}: k must be 1 to 8, and B and d at least 1")
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask must be boolean (True = present), got {mask.dtype}")


def _prepare(
    anchors: ArrayLike, others: ArrayLike, mask: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checked inputs in the accumulation type, anchors saturated."""
    a, m, present = jnp.asarray(anchors), jnp.asarray(others), jnp.asarray(mask)
    _check(a, m, present)
    dtype = schur.accumulation_dtype(a.dtype, m.dtype)
    top = schur.limit(dtype)
    return jnp.clip(schur.widen(a, dtype), -top, top), schur.widen(m, dtype), present


def volume(anchors: ArrayLike, others: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Volume of each anchor with its own others: sqrt(det Gram{a_u, present m_ui}).

    Args:
      anchors: [B, d], any floating type.
      others: [B, k, d], k = 1..8. Absent entries may hold anything.
      mask: [B, k] bool, True = present. A row with no one present has volume |a_u|, the
        determinant of what is left being that of the anchor alone.

    Returns:
      [B] in float32 or the widest input type. Gradients are finite everywhere, 0 being the one
      chosen where the volume has a kink. Components of anchors and volumes of others saturate at
      4e9 in float32 (1e77 in float64).

    Raises:
      ValueError: shapes or types that disagree.
    """
    a, m, present = _prepare(anchors, others, mask)
    q, s = schur.factor(m, present)
    return s * schur.own_distance(a, q)


def volume_contrastive_loss(
    anchors: ArrayLike,
    others: ArrayLike,
    mask: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    label_smoothing: float = 0.0,
    negatives_mask: ArrayLike | None = None,
    mode: Mode = "exact",
    implementation: Implementation | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Half the row plus half the column cross-entropy of -V/temperature, positives on the diagonal.

    V[u, v] is the volume of anchor u with the others of v. Rows compare one anchor with all
    tuples (A2O of ML-ECS Eqs. 7-8, GRAM's two directions), columns one tuple with all anchors.

    Args:
      anchors: [B, d]; others: [B, k, d]; mask: [B, k] bool. See `volume`. Vectors are used as
        they come: normalise them first, or the loss can be lowered by shrinking lengths.
      temperature: positive scalar, differentiable.
      label_smoothing: share of the target spread evenly over a row's or column's counted pairs.
      negatives_mask: [B, B] bool, [u, v] True where tuple v counts as a negative of anchor u;
        False leaves the pair out of both softmaxes. The diagonal always counts. None: all count.
      mode: 'exact', the gradient of the loss; or 'gram_parity', GRAM's own, in which the row
        half reaches only the anchors and the column half only the others.
      implementation: one of `IMPLEMENTATIONS`, or None for the fastest that fits.
      precision: of the matrix products; None is the highest for float32 and float64. bfloat16
        inputs are multiplied as bfloat16 and summed in float32.

    Returns:
      Scalar in float32 or the widest input type, finite for finite inputs.

    Raises:
      ValueError: shapes, types or option values that are wrong.
    """
    if mode not in ("exact", "gram_parity"):
        raise ValueError(f"mode must be 'exact' or 'gram_parity', got {mode!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    a, m, present = _prepare(anchors, others, mask)
    negatives = None if negatives_mask is None else jnp.asarray(negatives_mask)
    if negatives is not None and (
        negatives.shape != (a.shape[0], a.shape[0]) or negatives.dtype != jnp.bool_
    ):
        raise ValueError(
            f"negatives_mask must be bool [B, B] with B = {a.shape[0]}, got "
            f"{negatives.dtype} {negatives.shape}"
        )
    tau = jnp.asarray(temperature, a.dtype)
    if implementation == "reference":
        return reference.volume_contrastive_loss(
            a,
            m,
            present,
            temperature=tau,
            label_smoothing=label_smoothing,
            negatives_mask=negatives,
            mode=mode,
        )
    if implementation not in (None, "xla", "xla_dense","xla_tiled"):
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    operand = jnp.result_type(jnp.asarray(anchors).dtype, jnp.asarray(others).dtype)
    settings = pairs.Settings(
        label_smoothing=label_smoothing,
        parity=mode == "gram_parity",
        operand=operand,
        precision=_precision(precision, operand),
    )
    solver = xla.DENSE if implementation!="xla_tiled" else __import__("mlecs_jax.kernels.gram_volume.xla_tiled",fromlist=["a"]).tiled(eval(__import__("os").environ.get("TILE","256,256")))
    return _solve(solver, settings, a, m, present, tau, negatives)


def _precision(precision: jax.lax.PrecisionLike, operand: jnp.dtype) -> jax.lax.Precision:
    """Explicit: 'default' would mean TF32 on a GPU and bfloat16 on a TPU for float32."""
    if precision is not None:
        return jax.lax.Precision(precision)
    narrow = jnp.finfo(operand).bits < 32
    return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST


def _solve(
    solver: pairs.Solver,
    settings: pairs.Settings,
    a: jax.Array,
    m: jax.Array,
    present: jax.Array,
    tau: jax.Array,
    negatives: jax.Array | None,
) -> jax.Array:
    q, s = schur.factor(m, present)
    stop = jax.lax.stop_gradient if settings.parity else lambda x: x
    row_t, column_t = stop(s) / tau, s / tau
    row_positive = -row_t * schur.own_distance(a, stop(q))
    column_positive = -column_t * schur.own_distance(stop(a), q) if settings.parity else row_positive
    offset = pairs.match_varying(jnp.int32(0), a)
    return pairs.loss(
        solver, settings, a, q, row_t, column_t, row_positive, column_positive, offset, negatives
    )
