"""Parallel adapters of Mega-CE²: f_θ = Linear(MHSA(x)), beside a frozen cross-modal transformer.

Adapters are pure trees of their own, never part of the shared parameters, so that nothing has to
be taken out before an upload. A tree has one block for each place where one is inserted::

    {'text_with_audio': {'in_kernel': [d, 3d], 'in_bias': [3d], 'out_kernel': [d, d],
                         'out_bias': [d], 'linear_kernel': [d, d], 'linear_bias': [d]}, …}

or a single block ``'shared'`` used at all of them. At d = 300 a block has 361,200 parameters of
attention and 90,300 of its linear layer (Mega-CE², Table 5).

With ``'output': {'kernel': [d], 'bias': []}`` besides, the blocks add nothing to hidden states:
what they say of the last step, summed over places, is added to the prediction (the other reading of
⊕ in Eq. 5). ``{'output': {'bias': []}}`` alone is a constant, the least that can be personal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mlecs_jax.models import initial
from mlecs_jax.models.attention import attend

Adapters = dict[str, dict[str, Any]]
SHARED, OUTPUT = "shared", "output"
STD = 0.02


def init(
    key: PRNGKeyArray, places: Sequence[str], width: int, *, share: bool, output: bool = False
) -> Adapters:
    """Adapters with weights N(0, 0.02²) and zero biases (Mega-CE² §3.4).

    Args:
      places: names of the insertion points, :meth:`crossmodal.CrossModalConfig.pairs`.
      width: d, of the streams that the adapters read and add to.
      share: one block for all places (the size the paper reports) or one for each.
      output: they add to the prediction rather than to hidden states.
    """
    rng = initial.rng(key)
    shapes = {"in_kernel": (width, 3 * width), "out_kernel": (width, width),
              "linear_kernel": (width, width)}

    def block() -> dict[str, np.ndarray]:
        kernels = {name: STD * rng.standard_normal(shape, np.float32)
                   for name, shape in shapes.items()}
        biases = {name.replace("kernel", "bias"): np.zeros(shape[1], np.float32)
                  for name, shape in shapes.items()}
        return kernels | biases

    blocks: Adapters = {place: block() for place in ([SHARED] if share else places)}
    if output:
        blocks[OUTPUT] = {"kernel": STD * rng.standard_normal(width, np.float32),
                          "bias": np.float32(0)}
    return blocks


def biases(values: Float[Any, " C"]) -> Adapters:
    """Stacked trees of one constant each."""
    return {OUTPUT: {"bias": values}}


def to_hidden(
    adapters: Mapping[str, Any] | None, place: str, x: Float[Array, "B T d"], heads: int
) -> Float[Array, "B T d"] | float:
    """What is added to the hidden states at ``place``; 0 where nothing is."""
    if adapters is None or OUTPUT in adapters:
        return 0.0
    return apply(adapters, place, x, heads)


def to_output(
    adapters: Mapping[str, Any] | None, streams: Mapping[str, Float[Array, "B T d"]], heads: int
) -> Float[Array, "*B"] | float:
    """What is added to the prediction; 0 where nothing is.

    Args:
      streams: what the adapter at each place reads.
    """
    if adapters is None or OUTPUT not in adapters:
        return 0.0
    head = adapters[OUTPUT]
    said = [apply(adapters, place, x, heads)[:, -1] @ head["kernel"]
            for place, x in streams.items()] if "kernel" in head else []
    return sum(said, start=head["bias"])


def apply(
    adapters: Mapping[str, Mapping[str, Any]],
    place: str,
    x: Float[Array, "B T d"],
    heads: int,
) -> Float[Array, "B T d"]:
    """f_θ(x) of the adapter at ``place``: unmasked self-attention, then a linear layer.

    Raises:
      KeyError: a tree without a block for the place.
    """
    block = adapters[SHARED] if SHARED in adapters else adapters[place]
    query, key, value = jnp.split(x @ block["in_kernel"] + block["in_bias"], 3, axis=-1)
    mixed = attend(query, key, value, heads) @ block["out_kernel"] + block["out_bias"]
    return mixed @ block["linear_kernel"] + block["linear_bias"]
