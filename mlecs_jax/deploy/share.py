"""A participant's share of a dataset: what one device, or the cloud, may have of it.

``share.npz`` holds plain arrays (no pickles) and one JSON text, see :class:`Share`;
``moments.npz`` holds the mean and standard deviation of every channel over all training readings,
which everyone needs to standardise alike. Those two numbers a channel are the only thing that a
device learns of the others' readings, and they are handed out at provisioning, never uploaded.
Captions need a third thing, :mod:`mlecs_jax.deploy.language`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError
from mlecs_jax.federation import Federation, Moments, Rows

SHARE, MOMENTS = "share.npz", "moments.npz"
FORMAT = 1
CLOUD = -1  # as a node's number
UNKNOWN = -1  # as a label, and as a token
PARTS = ("train", "held_out", "public")


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of a participant; either classes or captions are their answers.

    Attributes:
      inputs: of the modalities that the participant has.
      available: bool ``[n, M]``.
      labels: int32 ``[n]``, -1: not told; None where captions are the answers.
      texts: ``n`` captions, empty: not told; None where classes are the answers.
      tokens: int32 ``[n, T]``, the captions as they are learnt, padded with -1; all -1: not told.
        None: they are made of the texts, of at most ``captions.max_tokens`` and the end.
      context: ``n`` texts, the words behind the inputs, for readers; None: not told. A device gets
        none, since they tell of sensors that it may not have.
    """

    inputs: Mapping[str, np.ndarray]
    available: np.ndarray
    labels: np.ndarray | None = None
    texts: tuple[str, ...] | None = None
    tokens: np.ndarray | None = None
    context: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.available)

    @property
    def told(self) -> np.ndarray:
        """Rows whose answer the participant knows, bool ``[n]``."""
        if self.labels is not None:
            return self.labels != UNKNOWN
        if self.tokens is not None:
            return (self.tokens != UNKNOWN).any(axis=1)
        return np.array([bool(text) for text in self.texts or ()], bool)


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

    @property
    def captions(self) -> bool:
        """Whether answers are texts."""
        return self.parts["held_out"].texts is not None

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            columns = {"labels": part.labels, "texts": part.texts, "tokens": part.tokens,
                       "context": part.context, **part.inputs}
            wrong = [key for key, values in columns.items()
                     if values is not None and len(values) != len(part)]
            if (part.labels is None) == (part.texts is None) or self.captions != (
                    part.texts is not None):
                wrong.append("labels or texts")
            if part.tokens is not None and (part.tokens.ndim != 2 or part.texts is None):
                wrong.append("tokens")
            wrong += [key for key, values in part.inputs.items()
                      if values.shape[1:] != tuple(self.shapes.get(key, ()))
                      or str(values.dtype) != self.dtypes.get(key)]
            if wrong or part.available.shape[1:] != (len(self.shapes),):
                raise UserError(f"the share's {name} rows do not fit each other "
                                f"({', '.join(wrong) or 'available'}); provision it again")
            known = np.empty(0) if part.labels is None else part.labels[part.told]
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
        if not len(self.parts["held_out"]):
            raise UserError("the share has no rows to score by (held_out); give it some")

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
      public_labels: devices are told the answers to the public rows (``partition.public_labels``).
    """
    samples, dealt = federation.samples, federation.partition
    every, none = np.ones((1, len(samples.modalities)), bool), np.empty(0, int)
    public, public_target = dealt.public.train, np.asarray(federation.public.target)

    def share(node: int, owned: np.ndarray, num_val: int, **parts: Part) -> Share:
        return Share(
            node=node, name=samples.name, source=samples.source, class_names=samples.class_names,
            shapes={name: values.shape[1:] for name, values in samples.inputs.items()},
            dtypes={name: str(values.dtype) for name, values in samples.inputs.items()},
            parts=parts, num_val=num_val, owned=owned, moments=federation.moments)

    own = np.concatenate([dealt.public.val, dealt.public.test])
    held_out = federation.public_held_out
    shares = [share(
        CLOUD, every, federation.public_num_val,
        train=_part(samples, none, every[:0], public_target[:0], every[0]),
        held_out=_part(samples, own, held_out.available, held_out.target, every[0], cloud=True),
        public=_part(samples, public, federation.public.available, public_target, every[0],
                     cloud=True))]
    for j, device in enumerate(dealt.devices):
        owned = np.asarray(federation.owned)[:, j]
        has = np.asarray(owned.any(axis=0))
        own, rows = np.concatenate([device.val, device.test]), federation.held_out
        seen = federation.public.available if federation.public_available is None \
            else federation.public_available[j]
        shares.append(share(
            j, owned, len(device.val),
            train=_part(samples, device.train, federation.train.available[j][:len(device.train)],
                        federation.train.target[j][:len(device.train)], has),
            held_out=_part(samples, own, rows.available[j][:len(own)],
                           rows.target if federation.held_out_is_common
                           else rows.target[j][:len(own)], has),
            public=_part(samples, public, seen, public_target if public_labels
                         else np.full_like(public_target, UNKNOWN), has)))
    return tuple(shares)


def _part(
    samples: Samples, rows: np.ndarray, available: Any, target: Any, has: np.ndarray, *,
    cloud: bool = False,
) -> Part:
    """Rows of a dataset as a participant gets them.

    Args:
      target: answer tokens ``[n, T]``, all -1 where the answer is not told.
      has: modalities that the participant has, bool ``[M]``.
    """
    inputs = {name: values[rows]
              for (name, values), own in zip(samples.inputs.items(), has, strict=True) if own}
    tokens, available = np.asarray(target, np.int32), np.asarray(available)
    told = (tokens != UNKNOWN).any(axis=1)
    if samples.labels is not None:
        return Part(inputs, available, np.where(told, samples.labels[rows], UNKNOWN).astype(
            np.int32))
    texts, context = samples.texts, samples.context
    assert texts is not None  # there is one or the other
    return Part(
        inputs, available, tokens=tokens,
        texts=tuple(texts[row] if known else "" for row, known in zip(rows, told, strict=True)),
        context=tuple(context[row] for row in rows) if cloud and context is not None else None)


def save(share: Share, folder: Path) -> None:
    """Writes ``share.npz`` and ``moments.npz`` into a folder."""
    facts = {"format": FORMAT, "node": share.node, "name": share.name, "source": share.source,
             "class_names": list(share.class_names), "num_val": share.num_val,
             "modalities": [{"name": name, "shape": list(share.shapes[name]),
                             "dtype": share.dtypes[name]} for name in share.modalities]}
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts)), "owned": share.owned}
    for name, part in share.parts.items():
        arrays[f"{name}/available"] = part.available
        arrays |= {f"{name}/{key}": getattr(part, key) for key in ("labels", "tokens")
                   if getattr(part, key) is not None}
        arrays |= {f"{name}/{key}": np.array(getattr(part, key), np.str_) for key in (
            "texts", "context") if getattr(part, key) is not None}
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
        parts = {name: _read_part({path.removeprefix(f"{name}/"): values
                                   for path, values in arrays.items()
                                   if path.startswith(f"{name}/")},
                                  [entry["name"] for entry in listed]) for name in PARTS}
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


def _read_part(arrays: Mapping[str, np.ndarray], modalities: Sequence[str]) -> Part:
    """A part of its arrays; raises KeyError, ValueError or TypeError for what is none."""
    def numbers(key: str) -> np.ndarray | None:
        return arrays[key].astype(np.int32) if key in arrays else None

    def words(key: str) -> tuple[str, ...] | None:
        return tuple(arrays[key].astype(np.str_).tolist()) if key in arrays else None

    return Part(
        {name: arrays[f"inputs/{name}"] for name in modalities if f"inputs/{name}" in arrays},
        arrays["available"].astype(bool), numbers("labels"), words("texts"), numbers("tokens"),
        words("context"))


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
