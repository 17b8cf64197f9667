"""Which answers count: everything a message claims is checked before anything is done with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from mlecs_jax import channel
from mlecs_jax.deploy.wire import SLACK, Header, Message, WireError

LONGEST = 100.0
"""Times the length of a model, the longest difference that a device's may have to it. Honest ones
are shorter than the model itself; robust rules (:mod:`mlecs_jax.robust`) look at the rest."""

MOST = 2**53
"""Samples, or parameters, of a device."""

Template = Mapping[str, Any]
"""Path → anything with ``shape`` and ``dtype``: the arrays that a message must have."""


def check_answer(asked: Header, name: str, answer: Message, num_modalities: int) -> None:
    """Checks that a header answers what was asked.

    Args:
      asked: header of the question.
      name: the device, as the transport knows it.

    Raises:
      WireError: it does not.
    """
    header = answer.header
    if header.sender != name:
        raise WireError("sender", f"says it is from '{header.sender[:60]}'")
    if header.session != asked.session:
        raise WireError("session", f"of session {header.session[:60]}, now is {asked.session}")
    if header.serial < asked.serial:
        raise WireError("replay", f"answers exchange {header.serial}, this is {asked.serial}")
    if header.serial > asked.serial or header.kind != asked.kind:
        raise WireError("kind", f"answers {header.kind} {header.serial}, asked was {asked.kind} "
                                f"{asked.serial}")
    if header.round != asked.round:
        raise WireError("round", f"of round {header.round}, this is {asked.round}")
    if not 1 <= header.modalities <= num_modalities:
        raise WireError("modalities", f"claims {header.modalities} modalities, there are "
                                      f"{num_modalities}")


def check_arrays(message: Message, template: Template, *, finite: bool = True) -> None:
    """Checks that a message has exactly the arrays of a template.

    Args:
      finite: also that every number is finite.

    Raises:
      WireError: a path, type, shape or number is not as it must be; the first by path.
    """
    arrays = message.arrays
    for path in sorted({*arrays, *template}):
        if path not in template:
            raise WireError("path", f"'{path[:80]}' is not asked for")
        if path not in arrays:
            raise WireError("path", f"'{path}' is missing")
        found, wanted = arrays[path], template[path]
        if np.dtype(found.dtype) != np.dtype(wanted.dtype):
            raise WireError("dtype", f"'{path}' is {found.dtype}, not {np.dtype(wanted.dtype)}")
        if found.shape != tuple(wanted.shape):
            raise WireError("shape", f"'{path}' is {found.shape}, not {tuple(wanted.shape)}")
        known = found if found.dtype.kind == "f" else found.astype(np.float32)  # bfloat16, too
        if finite and not np.isfinite(known).all():
            raise WireError("not_finite", f"'{path}' has NaN or infinity")


@dataclasses.dataclass(frozen=True)
class Expected:
    """What an answer has to be.

    Attributes:
      template: the arrays that it must have.
      check: raises WireError where it does not have them, or where they say what cannot be.
    """

    template: Template
    check: Callable[[Message, Template], None] = check_arrays

    def __call__(self, message: Message) -> None:
        """Raises WireError for a message that is not to be used."""
        self.check(message, self.template)

    @property
    def limit_bytes(self) -> int:
        """The longest message with these arrays."""
        return channel.num_bytes(dict(self.template)) + SLACK


def check_length(
    update: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray], besides: float = 0.0
) -> None:
    """Checks that what a device sends is no absurdity: numbers whose squares or sums have no
    float32, as one device could otherwise bring into everyone's model.

    Args:
      update: decoded, by path.
      known: what the device began from, finite.
      besides: how long an honest difference may be whatever ``known`` is, L2.

    Raises:
      WireError: NaN or infinity, or a difference to ``known`` that is longer than :data:`LONGEST`
        times the length of ``known`` (at least 1) and ``besides`` together.
    """
    def length(values: list[np.ndarray]) -> float:
        return math.sqrt(sum(float(np.sum(np.square(x))) for x in values))

    moved = length([update[path].astype(np.float64) - known[path] for path in known])
    own = length([values.astype(np.float64) for values in known.values()])
    limit = LONGEST * (max(own, 1.0) + besides)
    if not math.isfinite(moved):
        raise WireError("not_finite", "decoded, it has NaN or infinity")
    if moved > limit:
        raise WireError("length", f"differs by {moved:.3g} from what was sent, at most "
                                  f"{limit:.3g} is taken")


def check_upload(message: Message, template: Template) -> None:
    """Checks an upload: its arrays, and that it says one number of modalities throughout.

    Raises:
      WireError: see :func:`check_arrays`.
    """
    check_arrays(message, template)
    if int(message.arrays["modalities"]) != message.header.modalities:
        raise WireError("modalities", "header and upload claim different numbers of modalities")


def check_facts(message: Message, template: Template) -> None:
    """Checks what a device says of itself when a session begins: counts, and a model that is there
    (shares of its size are told).

    Raises:
      WireError: see :func:`check_arrays`; also a count that cannot be.
    """
    check_arrays(message, template)
    for path, values in message.arrays.items():
        least = 1 if path == "parameters" else 0
        if not ((least <= values) & (values <= MOST)).all():
            raise WireError("range", f"'{path}' is {values.tolist()}")


def check_scores(
    message: Message, template: Template, scored: Collection[str] = ()
) -> None:
    """Checks what a device says of itself: scores are shares or not there (NaN), counts positive.

    Args:
      scored: splits of which the device has rows; scores of these are there.

    Raises:
      WireError: see :func:`check_arrays`.
    """
    check_arrays(message, template, finite=False)
    for path, values in message.arrays.items():
        if path.startswith("scores/") and values.dtype.kind == "f":
            good = (values >= 0) & (values <= 1)
            if path.split("/")[1] not in scored:
                good |= np.isnan(values)
        elif values.dtype.kind == "i":
            good = values >= 0
        else:
            good = ~np.isinf(values)  # a loss of a stage that the device missed is NaN
        if not np.all(good):
            raise WireError("range", f"'{path}' is out of range")
