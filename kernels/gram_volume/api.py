"""Public functions: volumes of tuples of vectors, and the contrastive loss on them."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mlecs_jax.kernels.gram_volume import dispatch, pairs, reference, schur, solve

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
    for name, x in (("anchors", anchors), ("others", others)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {x.dtype}")


def _prepare(
    anchors: ArrayLike, others: ArrayLike, mask: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """Checked inputs in the accumulation type, anchors saturated; and the inputs' own type."""
    a, m, present = jnp.asarray(anchors), jnp.asarray(others), jnp.asarray(mask)
    _check(a, m, present)
    own = jnp.result_type(a.dtype, m.dtype)
    dtype = schur.accumulation_dtype(own)
    top = schur.limit(dtype)
    return jnp.clip(schur.widen(a, dtype), -top, top), schur.widen(m, dtype), present, own


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
    a, m, present, _ = _prepare(anchors, others, mask)
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
    implementation: str | None = None,
    precision: jax.lax.PrecisionLike = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Half the row plus half the column cross-entropy of -V/temperature, diagonal positives.

    V[u, v] is the volume of anchor u with the others of v. Rows compare one anchor with all
    tuples, columns one tuple with all anchors: the two directions of ML-ECS Eqs. 7-8, which are
    those of GRAM (Cicchetti et al., 2025). The result is a mean over the batch.

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
      axis_name: for a batch spread over a mesh axis: see `sharded_volume_contrastive_loss`.

    Returns:
      Scalar in float32 or the widest input type, finite for finite inputs.

    Raises:
      ValueError: shapes, types or option values that are wrong.
      NotImplementedError: the implementation asked for cannot run this; says why.
    """
    if mode not in ("exact", "gram_parity"):
        raise ValueError(f"mode must be 'exact' or 'gram_parity', got {mode!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    a, m, present, own = _prepare(anchors, others, mask)
    (v, k, d), u = m.shape, m.shape[0]
    if axis_name is not None:
        u *= jax.lax.axis_size(axis_name)
    negatives = None if negatives_mask is None else jnp.asarray(negatives_mask)
    if negatives is not None and (negatives.shape != (u, v) or negatives.dtype != jnp.bool_):
        raise ValueError(
            f"negatives_mask must be bool {[u, v]}, got {negatives.dtype} {list(negatives.shape)}"
        )
    tau = jnp.asarray(temperature, a.dtype)
    if implementation == "reference":
        if axis_name is not None:
            raise NotImplementedError("the reference is for one device: gather the batch first")
        return reference.volume_contrastive_loss(
            a,
            m,
            present,
            temperature=tau,
            label_smoothing=label_smoothing,
            negatives_mask=negatives,
            mode=mode,
        )
    settings = pairs.Settings(
        label_smoothing=label_smoothing,
        parity=mode == "gram_parity",
        operand=own,
        precision=_precision(precision, own),
        axis_name=axis_name,
    )
    problem = dispatch.Problem(u, v, k, d, settings, a.dtype.itemsize, negatives is not None)
    solver = dispatch.choose(implementation, problem)
    return solve.solve(solver, settings, a, m, present, tau, negatives)


def sharded_volume_contrastive_loss(
    anchors: ArrayLike, others: ArrayLike, mask: ArrayLike, *, axis_name: str, **options: Any
) -> jax.Array:
    """`volume_contrastive_loss` of a batch whose rows are spread over mesh axis `axis_name`.

    Call it inside `jax.shard_map` (with its default `check_vma=True`, on which the gradient of a
    replicated loss relies). Every device gathers all anchors and keeps its own others.

    Args:
      anchors: [b, d], others: [b, k, d], mask: [b, k]: this device's rows, b the same everywhere.
      axis_name: the mesh axis the batch is split over.
      options: those of `volume_contrastive_loss`; a negatives_mask is bool [B, b], this device's
        columns of the [B, B] mask.

    Returns:
      Scalar, the loss of the whole batch, equal on all devices.

    Raises:
      ValueError, NotImplementedError: as `volume_contrastive_loss`. The Pallas kernels do not run
        inside a shard_map; None chooses among those that do.
    """
    return volume_contrastive_loss(anchors, others, mask, axis_name=axis_name, **options)


def _precision(precision: jax.lax.PrecisionLike, operand: Any) -> jax.lax.Precision:
    """Explicit: 'default' would mean TF32 on a GPU and bfloat16 on a TPU for float32."""
    if precision is not None:
        if not isinstance(precision, (str, jax.lax.Precision)):
            raise ValueError(f"precision must be one jax.lax.Precision, got {precision!r}")
        return jax.lax.Precision(precision)
    narrow = jnp.finfo(operand).bits < 32
    return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST
