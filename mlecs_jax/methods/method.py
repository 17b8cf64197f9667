"""`Method`: a small record of pure functions over a state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

State = Any
Diagnostics = dict[str, Any]
"""``{'devices': {stage: {name: [C]}}, 'server': {stage: {name: scalar}}}``, stage means."""
Predictions = dict[str, Any]
"""``{'after_amt': [C, n], 'after_broadcast': [C, n], 'server': [n]}`` class answers on held-out
rows (-1: unparsable); a method leaves out what it does not have."""


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
      note: what every output of the method must say beside its name; empty for most.
    """

    init: Callable[[jax.Array], State]
    round: Callable[[State, int, jax.Array], tuple[State, Diagnostics]]
    evaluate: Callable[[State, int], Predictions]
    communication: Callable[[State], dict[str, int]]
    note: str = ""
