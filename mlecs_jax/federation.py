"""`Federation`: everything that can be an array is an array before the first round.

Devices are stacked on a leading client axis and padded to one length; modality availability is a
mask, so an absent modality costs no branch and no second program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from mlecs_jax.data import partition as partitioning
from mlecs_jax.data.partition import Partition, PartitionConfig
from mlecs_jax.data.samples import Samples
from mlecs_jax.models.multimodal import Batch, Leaf


@struct.dataclass
class Rows:
    """Samples of one node ``[n, …]`` or of stacked clients ``[C, n, …]``.

    Attributes:
      inputs: raw readings as the dataset gives them (uint8 images stay uint8: a quarter of the
        memory), standardised when a batch is gathered.
      available: bool ``[…, n, M]``: the reading exists (and, under ``per_sample`` absence, was
        not taken away).
      target: int32 ``[…, n, T]`` answer tokens, -1 at padding.
      count: int32 ``[…]``: rows that are samples; the rest is padding.
      modalities: names in the order of the masks' columns (JAX sorts the keys of ``inputs``).
    """

    inputs: Mapping[str, Leaf]
    available: Leaf
    target: Leaf
    count: Leaf
    modalities: tuple[str, ...] = struct.field(pytree_node=False)


@struct.dataclass
class Moments:
    """Per-channel mean and standard deviation of a modality over all training readings."""

    mean: Leaf
    std: Leaf


def exists(rows: Rows) -> Bool[Array, " n"]:
    """Rows that are samples and not padding, bool ``[n]``."""
    return jnp.arange(rows.target.shape[0]) < rows.count


def has_label(rows: Rows) -> Bool[Array, " n"]:
    """Rows whose answer is known, bool ``[n]``."""
    return exists(rows) & (rows.target >= 0).any(-1)


def gather(
    rows: Rows, owned: Bool[Array, "*n M"], moments: Mapping[str, Moments], index: Int[Array, " B"]
) -> Batch:
    """The standardised batch of the given rows of one node, absent readings zeroed.

    Args:
      owned: modalities the node has, ``[M]`` or broadcastable to ``[B, M]``.
    """
    mask = rows.available[index] & owned
    inputs = standardised({name: rows.inputs[name][index] for name in rows.modalities}, mask,
                          moments)
    return Batch(inputs=inputs, mask=mask, target=rows.target[index])


def standardised(
    readings: Mapping[str, Array], mask: Bool[Array, "B M"], moments: Mapping[str, Moments]
) -> dict[str, Array]:
    """Raw readings ``{modality: [B, …]}`` as models take them, float32, zero where the mask is
    False; modalities in the order of the mask's columns."""
    inputs = {}
    for i, (name, values) in enumerate(readings.items()):
        x = (values.astype(jnp.float32) - moments[name].mean) / moments[name].std
        inputs[name] = jnp.where(mask[:, i].reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)
    return inputs


@dataclasses.dataclass(frozen=True)
class Federation:
    """A partitioned dataset, ready for rounds.

    Attributes:
      samples, partition: what it was made from.
      train, held_out: the devices' rows ``[C, n, …]``; ``held_out`` holds validation rows, then
        test rows, of each device (``num_val [C]`` tells where the second begin).
      public: the server's training rows D′, targets all -1 where it has no label of a row;
        ``public_held_out`` its validation, then test rows
        (``public_num_val`` of them are validation).
      public_available: bool ``[C, n, M]``: what each device has of each sample of D′, or None
        where that is just what exists; only ``per_sample`` absence needs it.
      held_out_is_common: all devices are scored on the same recordings (``split=sequence``):
        inputs and targets of ``held_out`` are then stored once, without a client axis, and only
        ``available`` is per device.
      moments: standardisation of each modality, computed on all training rows.
      owned: device-level modality sets, bool ``[R, C, M]``, R = 1 unless drawn per round.
    """

    samples: Samples
    partition: Partition
    train: Rows
    held_out: Rows
    held_out_is_common: bool
    num_val: np.ndarray
    public: Rows
    public_held_out: Rows
    public_num_val: int
    public_available: np.ndarray | None
    moments: dict[str, Moments]
    owned: np.ndarray

    @property
    def num_clients(self) -> int:
        return len(self.partition.devices)

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.samples.modalities

    def owned_at(self, round_index: int) -> np.ndarray:
        """Modality sets of a round, bool ``[C, M]``."""
        return self.owned[round_index % len(self.owned)]

    def held_out_rows(self, client: int | None, part: str) -> np.ndarray:
        """Row numbers in ``samples`` of a device's (None: the server's) ``val`` or ``test``."""
        share = self.partition.public if client is None else self.partition.devices[client]
        return getattr(share, part)


def build(
    samples: Samples, target: np.ndarray, config: PartitionConfig, rounds: int
) -> Federation:
    """Deals, stacks and measures a dataset.

    Args:
      target: answer tokens ``[n, T]`` (:func:`mlecs_jax.data.text.targets`).
      rounds: number of modality draws under ``mask_schedule=per_round``.

    Raises:
      UserError: see :func:`mlecs_jax.data.partition.partition`.
    """
    split = partitioning.partition(samples, config)
    clients, modalities = len(split.devices), len(samples.modalities)

    def masked(client: int, part: int, rows: np.ndarray) -> np.ndarray:
        mask = partitioning.sample_mask(config, client, part, len(rows), modalities)
        return samples.present[rows] if mask is None else samples.present[rows] & mask

    train = [s.train for s in split.devices]
    held_out = [np.concatenate([s.val, s.test]) for s in split.devices]
    held_out_masks = [masked(j, 1, rows) for j, rows in enumerate(held_out)]
    common = all(np.array_equal(rows, held_out[0]) for rows in held_out)
    public, public_held_out = split.public.train, np.concatenate([split.public.val,
                                                                  split.public.test])
    readings = np.stack([samples.present[rows].any(axis=0) for rows in train])
    per_sample = config.mask_schedule == "per_sample"
    training_rows = np.unique(np.concatenate([public, *train]))
    return Federation(
        samples=samples,
        partition=split,
        train=_stack(samples, target, train, [masked(j, 0, r) for j, r in enumerate(train)]),
        held_out=_rows(samples, target, held_out[0], np.stack(held_out_masks)) if common
        else _stack(samples, target, held_out, held_out_masks),
        held_out_is_common=common,
        num_val=np.array([len(s.val) for s in split.devices]),
        public=_labelled_rows(
            _rows(samples, target, public, samples.present[public]), split.public_labelled),
        public_held_out=_rows(samples, target, public_held_out, samples.present[public_held_out]),
        public_num_val=len(split.public.val),
        public_available=np.stack([masked(j, 2, public) for j in range(clients)])
        if per_sample else None,
        moments=_moments(samples, training_rows),
        owned=partitioning.ownership(config, readings, rounds),
    )


def _rows(samples: Samples, target: np.ndarray, rows: np.ndarray, available: np.ndarray) -> Rows:
    return Rows(inputs={name: x[rows] for name, x in samples.inputs.items()}, available=available,
                target=target[rows], count=np.int32(len(rows)), modalities=samples.modalities)


def _labelled_rows(rows: Rows, labelled: np.ndarray) -> Rows:
    """Rows whose answers are known where ``labelled``, and all padding (-1) elsewhere."""
    return rows.replace(target=np.where(labelled[:, None], rows.target, -1))


def unlabelled(rows: Rows) -> Rows:
    """The same readings without any answer."""
    return rows.replace(target=np.full_like(rows.target, -1))


def _stack(
    samples: Samples, target: np.ndarray, shares: Sequence[np.ndarray],
    available: Sequence[np.ndarray],
) -> Rows:
    """Clients' rows on one leading axis; short clients repeat their rows as padding."""
    longest = max(map(len, shares))
    padded = np.stack([np.pad(rows, (0, longest - len(rows)), mode="wrap") for rows in shares])
    masks = np.stack([np.pad(a, ((0, longest - len(a)), (0, 0)), mode="wrap") for a in available])
    return Rows(inputs={name: x[padded] for name, x in samples.inputs.items()}, available=masks,
                target=target[padded], count=np.array([len(r) for r in shares], np.int32),
                modalities=samples.modalities)


def _moments(samples: Samples, rows: np.ndarray) -> dict[str, Moments]:
    """Mean and deviation per last-axis channel over readings that exist."""
    result = {}
    for i, (name, values) in enumerate(samples.inputs.items()):
        x = values[rows[samples.present[rows, i]]].astype(np.float64)
        axes = tuple(range(x.ndim - 1))
        if not len(x):
            mean, std = np.zeros(values.shape[-1]), np.ones(values.shape[-1])
        else:
            mean, std = x.mean(axes), x.std(axes)
        result[name] = Moments(mean=mean.astype(np.float32),
                               std=np.where(std > 1e-6, std, 1.0).astype(np.float32))
    return result
