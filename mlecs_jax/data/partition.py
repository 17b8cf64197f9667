"""Who owns which samples, and who has which modality when.

Samples: a quarter is public, three quarters are shared by N devices (ML-ECS); each node's share
is cut into train, validation and test. Under ``split=frame`` samples are dealt at random, as in
the paper, so that neighbouring frames of one recording fall on both sides (a leak). Under
``split=sequence`` whole recordings are held out, the same for every node; where the data say who
owns which rows, of every node its own, and none that another trains on.

Modalities: a boolean array with axes (round, client, sample, modality); an axis along which
nothing varies has length one. One mechanism serves device-level, round-level and sample-level
absence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PartitionConfig:
    """How samples and modalities are dealt.

    Attributes:
      num_clients: N ≥ 1; -1 takes as many as the data's device column names.
      rho: ρ in (0, 1], probability that a device has a modality.
      seed: of the partition alone; runs of different seeds can share one partition.
      split: ``frame`` (paper) or ``sequence`` (leak-free).
      mask_schedule: ``static`` (paper: fixed per device), ``per_round`` (drawn anew every round)
        or ``per_sample`` (drawn for every sample).
      mask_draw: ``bernoulli`` (paper) or ``stratified`` (round(ρ N) devices own each modality;
        static and per_round only).
      labelled: training samples each device keeps, drawn at random; 0 keeps all.
      server_labelled: share in (0, 1] of the public training samples that have labels; whole
        recordings under ``split=sequence``.
      public_fraction, val_fraction, test_fraction: shares of all samples, of a node's samples.
    """

    num_clients: int = 3
    rho: float = 0.8
    seed: int = 0
    split: str = "frame"
    mask_schedule: str = "static"
    mask_draw: str = "bernoulli"
    labelled: int = 0
    server_labelled: float = 1.0
    public_fraction: float = 0.25
    val_fraction: float = 0.1
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.num_clients < 1 and self.num_clients != -1:
            raise UserError(f"partition.num_clients is {self.num_clients}; give 1 or more devices "
                            "(-1: as many as the data's device column names)")
        if not 0 < self.rho <= 1:
            raise UserError(f"partition.rho is {self.rho}; give a probability in (0, 1]")
        for name, known in (("split", ("frame", "sequence")),
                            ("mask_schedule", ("static", "per_round", "per_sample")),
                            ("mask_draw", ("bernoulli", "stratified"))):
            if getattr(self, name) not in known:
                raise UserError(f"partition.{name} is '{getattr(self, name)}'; "
                                f"use {' or '.join(known)}")
        if self.labelled < 0:
            raise UserError(f"partition.labelled is {self.labelled}; give a number of samples, or "
                            "0 for all")
        if not 0 < self.server_labelled <= 1:
            raise UserError(f"partition.server_labelled is {self.server_labelled}; give a share "
                            "in (0, 1]")
        for name in ("public_fraction", "val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise UserError(f"partition.{name} is {getattr(self, name)}; give a share in "
                                "(0, 0.5)")
        if self.mask_draw == "stratified" and self.mask_schedule == "per_sample":
            raise UserError("partition.mask_draw=stratified deals modalities to devices; it does "
                            "not go with mask_schedule=per_sample")


@dataclasses.dataclass(frozen=True)
class Share:
    """Row indices of one node."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class Partition:
    """The public share and one share per device.

    Attributes:
      public_labelled: bool, one per training row of ``public``: its label is known.
    """

    public: Share
    devices: tuple[Share, ...]
    public_labelled: np.ndarray


def partition(samples: Samples, config: PartitionConfig) -> Partition:
    """Deals samples to the public pool and the devices.

    Raises:
      UserError: a device column that disagrees with ``num_clients`` or has no public rows, or too
        few samples or recordings to give every node all three parts.
    """
    rng = np.random.default_rng([config.seed, 0])
    if samples.devices is not None:
        public, devices = _by_device_column(samples, config, rng)
    elif config.num_clients == -1:
        raise UserError(f"{samples.name} has no device column; set partition.num_clients to 1 "
                        "or more")
    elif config.split == "frame":
        public, devices = _by_frame(len(samples), config, rng)
    else:
        public, devices = _by_sequence(samples, config, rng)
    for node, share in (("the public share", public),
                        *((f"device {j}", share) for j, share in enumerate(devices))):
        for part in ("train", "val", "test"):
            if not len(getattr(share, part)):
                raise UserError(f"{node} has no {part} samples: {len(samples)} samples are too few "
                                f"for {len(devices)} devices; use fewer or more data")
    return Partition(public=public, devices=tuple(_keep_labelled(devices, config)),
                     public_labelled=_labelled_public(samples, public, config))


def _keep_labelled(devices: Sequence[Share], config: PartitionConfig) -> list[Share]:
    """Devices with ``config.labelled`` of their training rows, or all where they have fewer."""
    if not config.labelled:
        return list(devices)
    rng = np.random.default_rng([config.seed, 3])
    return [dataclasses.replace(
        share, train=np.sort(rng.permutation(share.train)[:config.labelled])) for share in devices]


def _labelled_public(samples: Samples, public: Share, config: PartitionConfig) -> np.ndarray:
    """Which public training rows have a label; at least one row or recording does."""
    unit = np.arange(len(public.train))
    if config.split == "sequence":
        _, unit = np.unique(samples.groups[public.train], return_inverse=True)
    rng = np.random.default_rng([config.seed, 4])
    count = int(unit.max()) + 1
    chosen = rng.permutation(count)[:max(1, round(config.server_labelled * count))]
    return np.isin(unit, chosen)


def ownership(config: PartitionConfig, readings: np.ndarray, rounds: int) -> np.ndarray:
    """Device-level modality sets, bool ``[R, C, M]``; R = 1 unless drawn per round.

    Of the modalities that a device has readings of, each is its own with probability ρ. Every
    device has at least one: an empty draw is repeated (ML-ECS gives no rule). Under ``per_sample``
    a device has all of them, and :func:`sample_mask` takes single readings away.

    Args:
      readings: bool ``[C, M]``: a training row of the device has a reading of the modality.

    Raises:
      UserError: a device without any reading.
    """
    if (silent := np.flatnonzero(~readings.any(axis=1))).size:
        raise UserError(f"device {silent[0]} has no reading of any modality to train on; leave it "
                        "out of the data, or give it some")
    if config.mask_schedule == "per_sample":
        return readings[None]
    rounds = rounds if config.mask_schedule == "per_round" else 1
    rng = np.random.default_rng([config.seed, 1])
    draw = _bernoulli if config.mask_draw == "bernoulli" else _stratified
    return draw(rng, np.broadcast_to(readings, (rounds, *readings.shape)), config.rho)


def sample_mask(
    config: PartitionConfig, client: int, part: int, num_samples: int, num_modalities: int
) -> np.ndarray | None:
    """Sample-level modality mask ``[n, M]`` of a client's part; None unless ``per_sample``."""
    if config.mask_schedule != "per_sample":
        return None
    rng = np.random.default_rng([config.seed, 2, client, part])
    return _bernoulli(rng, np.ones((num_samples, num_modalities), bool), config.rho)


def _bernoulli(rng: np.random.Generator, possible: np.ndarray, rho: float) -> np.ndarray:
    """Bernoulli(ρ) of what is possible, ``[…, M]``, with empty rows drawn again."""
    mask = (rng.random(possible.shape) < rho) & possible
    while (empty := ~mask.any(axis=-1)).any():
        mask[empty] = (rng.random((int(empty.sum()), possible.shape[-1])) < rho) & possible[empty]
    return mask


def _stratified(rng: np.random.Generator, possible: np.ndarray, rho: float) -> np.ndarray:
    """Of the C devices that can own a modality round(ρ C) do, at least one; a device that is left
    without any draws one of those it can have."""
    mask = np.zeros(possible.shape, bool)
    for mine, able in zip(mask, possible, strict=True):
        for m in range(able.shape[1]):
            candidates = rng.permutation(np.flatnonzero(able[:, m]))
            mine[candidates[:max(1, round(rho * len(candidates)))], m] = True
        for device in np.flatnonzero(~mine.any(axis=-1)):
            mine[device, rng.choice(np.flatnonzero(able[device]))] = True
    return mask


def _cut(rows: np.ndarray, config: PartitionConfig) -> Share:
    """Shuffled rows into test, validation and the rest."""
    n_test = max(1, round(config.test_fraction * len(rows)))
    n_val = max(1, round(config.val_fraction * len(rows)))
    return Share(test=np.sort(rows[:n_test]), val=np.sort(rows[n_test:n_test + n_val]),
                 train=np.sort(rows[n_test + n_val:]))


def _by_frame(
    n: int, config: PartitionConfig, rng: np.random.Generator
) -> tuple[Share, list[Share]]:
    order = rng.permutation(n)
    n_public = round(config.public_fraction * n)
    return _cut(order[:n_public], config), [
        _cut(rows, config) for rows in np.array_split(order[n_public:], config.num_clients)]


def _by_sequence(
    samples: Samples, config: PartitionConfig, rng: np.random.Generator
) -> tuple[Share, list[Share]]:
    """Held-out recordings common to all nodes; the others dealt to public pool and devices."""
    groups = rng.permutation(np.unique(samples.groups))
    pieces = [np.flatnonzero(samples.groups == group) for group in groups]
    if len(pieces) < 4:
        raise UserError(f"{samples.name} has {len(pieces)} groups; split=sequence needs at least "
                        "4, use split=frame")
    held_out, rest = [[], []], []
    for stratum in np.unique(samples.strata):
        own = [p for p in pieces if samples.strata[p[0]] == stratum]
        n_test, n_val = (max(1, round(f * len(own)))
                         for f in (config.test_fraction, config.val_fraction))
        held_out[0] += own[:n_test]
        held_out[1] += own[n_test:n_test + n_val]
        rest.append(own[n_test + n_val:])
    test, val = (np.sort(np.concatenate(part)) if part else np.empty(0, int) for part in held_out)
    shares = np.full(config.num_clients + 1, (1 - config.public_fraction) / config.num_clients)
    shares[0] = config.public_fraction
    dealt: list[list[np.ndarray]] = [[] for _ in shares]
    for own in rest:
        for node, piece in _deal(own, shares):
            dealt[node].append(piece)
    nodes = [Share(np.sort(np.concatenate(rows)) if rows else np.empty(0, int), val, test)
             for rows in dealt]
    return nodes[0], nodes[1:]


def _deal(pieces: list[np.ndarray], shares: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Pieces to nodes so that sample counts follow ``shares``.

    With fewer than two recordings per node, recordings are cut into consecutive parts; that leaks
    nothing into the held-out ones.
    """
    pieces = list(pieces)
    while pieces and len(pieces) < 2 * len(shares) and max(map(len, pieces)) > 1:
        longest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        piece = pieces.pop(longest)
        pieces += [piece[:len(piece) // 2], piece[len(piece) // 2:]]
    filled = np.zeros(len(shares))
    result = []
    for piece in sorted(pieces, key=len, reverse=True):
        node = int(np.argmin((filled + len(piece)) / shares))
        filled[node] += len(piece)
        result.append((node, piece))
    return result


def _by_device_column(
    samples: Samples, config: PartitionConfig, rng: np.random.Generator
) -> tuple[Share, list[Share]]:
    assert samples.devices is not None
    names = np.unique(samples.devices[samples.devices >= 0])
    if config.num_clients not in (-1, len(names)):
        raise UserError(f"{samples.name}: the device column names {len(names)} devices, "
                        f"partition.num_clients is {config.num_clients}; use -1 to take the data's")
    if not (samples.devices < 0).any():
        raise UserError(f"{samples.name}: no sample is public; leave the device column empty in "
                        "rows that all nodes may see")

    rows = [np.flatnonzero(samples.devices == node) for node in (-1, *names)]
    if config.split == "frame":
        nodes = [_cut(rng.permutation(own), config) for own in rows]
    else:
        nodes = _by_groups_of_nodes(samples, rows, config, rng)
    return nodes[0], nodes[1:]


def _by_groups_of_nodes(
    samples: Samples, rows: Sequence[np.ndarray], config: PartitionConfig, rng: np.random.Generator
) -> list[Share]:
    """Whole groups of every node held out, and on the same side for all nodes that have rows of
    them: each in turn adds to what others hold out until it has its share, first of what most
    others lack too."""
    groups, first = np.unique(samples.groups, return_index=True)
    has = np.stack([np.isin(groups, samples.groups[own]) for own in rows])
    for node, count in enumerate(has.sum(axis=1)):
        if count < 3:
            raise UserError(f"{samples.name}: {_node_words(node)} has {count} groups; "
                            "split=sequence needs at least 3 (train, validation, test), use "
                            "split=frame")
    side = np.full(len(groups), "train", dtype="<U5")
    held = {"test": np.zeros(len(rows), int), "val": np.zeros(len(rows), int)}
    for part, fraction in (("test", config.test_fraction), ("val", config.val_fraction)):
        for node, own in enumerate(has):
            missing = int(max(1, round(fraction * own.sum())) - held[part][node])
            free = _stratified_order(
                samples.strata[first], np.flatnonzero(own & (side == "train")), missing, rng)
            for _ in range(missing):
                # Nobody gives a group away that is needed for another part.
                needs = 1 + sum((held[other] == 0).astype(int) for other in held if other != part)
                short = (has & (side == "train")).sum(axis=1) - 1 < needs
                able = free[~has[short][:, free].any(axis=0)]
                if not len(able):
                    break
                lacking = has[held[part] == 0][:, able].sum(axis=0)
                group = able[np.argmax(lacking)]
                side[group], free = part, free[free != group]
                held[part] += has[:, group]
    nodes = []
    for node, own in enumerate(rows):
        sides = side[np.searchsorted(groups, samples.groups[own])]
        if set(sides.tolist()) != {"train", "val", "test"}:
            raise UserError(f"{samples.name}: {_node_words(node)} cannot be given whole groups for "
                            "training, validation and test, each on the same side for all nodes; "
                            "use split=frame, or give it more groups")
        nodes.append(Share(**{part: own[sides == part] for part in ("train", "val", "test")}))
    return nodes


def _stratified_order(
    strata: np.ndarray, groups: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Groups at random, so that the first ``count`` have of every stratum the share that all have:
    a systematic sample of them stratum by stratum, from a random start."""
    groups = rng.permutation(groups)
    groups = groups[np.argsort(strata[groups], kind="stable")]
    count = min(max(count, 0), len(groups))
    chosen = ((rng.random() + np.arange(count)) * len(groups) / max(count, 1)).astype(int)
    others = np.setdiff1d(np.arange(len(groups)), chosen)
    return groups[np.concatenate([rng.permutation(chosen), rng.permutation(others)])]


def _node_words(node: int) -> str:
    return f"device {node - 1}" if node else "the public share"
