"""`Method`: a small record of pure functions over a state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

State = Any
Diagnostics = dict[str, Any]
"""``{'devices': {stage: {name: [C]}}, 'server': {stage: {name: scalar}}}``, stage means."""
Predictions = dict[str, Any]
"""``{'after_amt': [C, n], 'after_broadcast': [C, n], 'server': [n]}`` class answers on held-out
rows (-1: unparsable); a method leaves out what it does not have."""

UPLOADS = ("channel", "aggregation", "privacy")
"""Groups of options that say what becomes of uploads: :class:`mlecs_jax.codecs.Uplink`,
:mod:`mlecs_jax.robust` and :mod:`mlecs_jax.privacy`."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One learning method.

    Attributes:
      init: ``key → state``.
      round: ``(state, round_index, key) → (state, diagnostics)``; the state's buffers may be
        donated. Randomness is ``fold_in`` of the key with round, stage, client and step, so that
        any round can be computed again from its number.
      evaluate: ``(state, round_index) → predictions``.
      communication: ``state → {'uplink', 'downlink'}``, bytes per device and round; means over
        devices and rounds where they differ.
      beyond: ``state → [C]``: how many parameters each device holds beyond its model as
        ``state.devices`` has it, a second model for instance; below 0 where less. None: no more.
      honours: which of :data:`UPLOADS` the method's uploads go by; what is set and not honoured is
        refused (:func:`mlecs_jax.methods.build`).
      note: what every output of the method must say beside its name; empty for most.
    """

    init: Callable[[jax.Array], State]
    round: Callable[[State, int, jax.Array], tuple[State, Diagnostics]]
    evaluate: Callable[[State, int], Predictions]
    communication: Callable[[State], dict[str, int]]
    beyond: Callable[[State], Sequence[int]] | None = None
    honours: tuple[str, ...] = ()
    note: str = ""
