"""A participant's share of a dataset: what one device, or the cloud, may have of it.

``share.npz`` holds plain arrays (no pickles) and one JSON text, see :class:`Share`;
``moments.npz`` holds the mean and standard deviation of every channel over all training readings,
which everyone needs to standardise alike. Those two numbers a channel are the only thing that a
device learns of the others' readings, and they are handed out at provisioning, never uploaded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from mlecs_jax.errors import UserError
from mlecs_jax.federation import Federation, Moments, Rows

SHARE, MOMENTS = "share.npz", "moments.npz"
FORMAT = 1
CLOUD = -1  # as a node's number
UNKNOWN = -1  # as a label
PARTS = ("train", "held_out", "public")


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows: ``inputs`` of the modalities that the participant has, ``available [n, M]``,
    ``labels [n]`` (-1: not told)."""

    inputs: Mapping[str, np.ndarray]
    available: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Share:
    """Rows of one participant.

    Attributes:
      node: the device's number; -1 is the cloud.
      name, source, class_names: of the dataset, see :class:`mlecs_jax.data.samples.Samples`.
      shapes, dtypes: of one reading of every modality, in the order of the masks' columns; also of
        modalities that the participant does not have.
      parts: ``{'train' | 'held_out' | 'public': Part}``. A device's ``public`` rows are D′, the
        server's training rows; the cloud has them in ``public`` too, its own validation and test
        rows in ``held_out``, and nothing in ``train``.
      num_val: how many of the held-out rows are validation rows; the rest is for testing.
      owned: bool ``[R, M]``, the modality sets of the device in each round (R = 1: always the
        same); all true for the cloud.
      moments: of every modality.
    """

    node: int
    name: str
    source: str
    class_names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    parts: Mapping[str, Part]
    num_val: int
    owned: np.ndarray
    moments: Mapping[str, Moments]

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            arrays = {"available": part.available, **part.inputs}
            wrong = [key for key, values in arrays.items() if len(values) != len(part)]
            wrong += [key for key, values in part.inputs.items()
                      if values.shape[1:] != tuple(self.shapes.get(key, ()))
                      or str(values.dtype) != self.dtypes.get(key)]
            if wrong or part.available.shape[1:] != (len(self.shapes),):
                raise UserError(f"the share's {name} rows do not fit each other "
                                f"({', '.join(wrong) or 'available'}); provision it again")
            known = part.labels[part.labels != UNKNOWN]
            if len(known) and not (0 <= known.min() and known.max() < len(self.class_names)):
                raise UserError(f"the share's {name} rows have labels beyond its "
                                f"{len(self.class_names)} classes; provision it again")
            for key, values in part.inputs.items():
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    raise UserError(f"the share's {name} rows have NaN or infinity in '{key}'; "
                                    "mark such readings as missing (available) and zero them")
        if set(self.moments) != set(self.shapes) or self.owned.shape[1:] != (len(self.shapes),):
            raise UserError("the share's moments or modality sets are of other modalities; "
                            "provision it again")
        if self.node != CLOUD and not len(self.parts["train"]):
            raise UserError("the share has no training rows; give the device some")

    def rows(self, part: str) -> Rows:
        """Rows of a part ``[n, …]`` without targets; modalities the participant does not have are
        zero and not available."""
        found = self.parts[part]
        inputs = {name: found.inputs[name] if name in found.inputs
                  else np.zeros((len(found), *shape), self.dtypes[name])
                  for name, shape in self.shapes.items()}
        has = np.array([name in found.inputs for name in self.shapes])
        return Rows(inputs=inputs, available=found.available & has,
                    target=np.zeros((len(found), 0), np.int32), count=np.int32(len(found)),
                    modalities=self.modalities)


def split(federation: Federation, *, public_labels: bool) -> tuple[Share, ...]:
    """Shares of all participants of a partitioned dataset: the cloud's first, then the devices'.

    A device's share has no reading of a modality that it never owns.

    Args:
      public_labels: devices are told the labels of the public rows (``partition.public_labels``).

    Raises:
      UserError: the dataset has text targets.
    """
    samples, dealt = federation.samples, federation.partition
    if samples.labels is None:
        raise UserError(f"{samples.name} has text targets; a deployment learns classes so far, "
                        "simulate captions with mlecs_jax.run")
    labels = samples.labels
    public = dealt.public.train
    public_told = np.where(dealt.public_labelled, labels[public], UNKNOWN)

    def part(rows: np.ndarray, available: np.ndarray, told: np.ndarray, has: np.ndarray) -> Part:
        names = [name for name, own in zip(samples.modalities, has, strict=True) if own]
        return Part({name: samples.inputs[name][rows] for name in names}, np.asarray(available),
                    told.astype(np.int32))

    def share(node: int, owned: np.ndarray, num_val: int, **parts: Part) -> Share:
        return Share(
            node=node, name=samples.name, source=samples.source, class_names=samples.class_names,
            shapes={name: values.shape[1:] for name, values in samples.inputs.items()},
            dtypes={name: str(values.dtype) for name, values in samples.inputs.items()},
            parts=parts, num_val=num_val, owned=owned, moments=federation.moments)

    every = np.ones((1, len(samples.modalities)), bool)
    own = np.concatenate([dealt.public.val, dealt.public.test])
    none = np.empty(0, int)
    cloud = share(
        CLOUD, every, federation.public_num_val,
        train=part(none, np.empty((0, len(samples.modalities)), bool), labels[none], every[0]),
        held_out=part(own, federation.public_held_out.available, labels[own], every[0]),
        public=part(public, federation.public.available, public_told, every[0]))
    shares = [cloud]
    for j, device in enumerate(dealt.devices):
        owned = np.asarray(federation.owned)[:, j]
        has = np.asarray(owned.any(axis=0))
        own = np.concatenate([device.val, device.test])
        seen = federation.public.available if federation.public_available is None \
            else federation.public_available[j]
        shares.append(share(
            j, owned, len(device.val),
            train=part(device.train, federation.train.available[j][:len(device.train)],
                       labels[device.train], has),
            held_out=part(own, federation.held_out.available[j][:len(own)], labels[own], has),
            public=part(public, seen, public_told if public_labels
                        else np.full(len(public), UNKNOWN), has)))
    return tuple(shares)


def save(share: Share, folder: Path) -> None:
    """Writes ``share.npz`` and ``moments.npz`` into a folder."""
    facts = {"format": FORMAT, "node": share.node, "name": share.name, "source": share.source,
             "class_names": list(share.class_names), "num_val": share.num_val,
             "modalities": [{"name": name, "shape": list(share.shapes[name]),
                             "dtype": share.dtypes[name]} for name in share.modalities]}
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts)), "owned": share.owned}
    for name, part in share.parts.items():
        arrays |= {f"{name}/available": part.available, f"{name}/labels": part.labels}
        arrays |= {f"{name}/inputs/{key}": values for key, values in part.inputs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / SHARE, **arrays)
    moments = {f"{name}/{key}": np.asarray(getattr(share.moments[name], key))
               for name in share.modalities for key in ("mean", "std")}
    np.savez(folder / MOMENTS, **cast(Any, moments))


def load(folder: Path) -> Share:
    """The share in a folder.

    Raises:
      UserError: files are missing, damaged, or do not fit each other.
    """
    arrays, moments = read_arrays(folder / SHARE), read_arrays(folder / MOMENTS)
    try:
        facts = json.loads(str(arrays["facts"]))
        if facts["format"] != FORMAT:
            raise UserError(f"{folder / SHARE} is of format {facts['format']}, this is for "
                            f"{FORMAT}; provision it again")
        listed = facts["modalities"]
        parts = {name: Part(
            {entry["name"]: arrays[f"{name}/inputs/{entry['name']}"] for entry in listed
             if f"{name}/inputs/{entry['name']}" in arrays},
            arrays[f"{name}/available"].astype(bool), arrays[f"{name}/labels"].astype(np.int32))
            for name in PARTS}
        return Share(
            node=int(facts["node"]), name=facts["name"],
            source=cast(Literal["real", "simulated"], facts["source"]),
            class_names=tuple(facts["class_names"]),
            shapes={entry["name"]: tuple(entry["shape"]) for entry in listed},
            dtypes={entry["name"]: entry["dtype"] for entry in listed},
            parts=parts, num_val=int(facts["num_val"]), owned=arrays["owned"].astype(bool),
            moments={entry["name"]: Moments(mean=moments[f"{entry['name']}/mean"],
                                            std=moments[f"{entry['name']}/std"])
                     for entry in listed})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / SHARE} is damaged ({error}); provision it again") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``npz`` file.

    Raises:
      UserError: it is missing, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except FileNotFoundError:
        raise UserError(f"there is no {path}; name the folder that provision wrote, or your own "
                        "in the same form (docs/deploy.md)") from None
    except Exception as error:  # a damaged archive fails in many ways
        raise UserError(f"{path} is damaged ({type(error).__name__}); provision it again") from None
