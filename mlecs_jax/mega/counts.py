"""Table 5: exact parameter counts at the published size, by shape alone."""

from __future__ import annotations

import jax
import numpy as np

from mlecs_jax.data.sentiment import SentimentBatch
from mlecs_jax.models import adapters, crossmodal


def paper_counts() -> dict[str, float]:
    """Parameters of the ``paper`` preset on MOSI's shapes and of its adapters, shared and not, and
    bytes of float32."""
    shape = crossmodal.preset("paper")
    example = SentimentBatch(
        *(np.zeros((1, 50, width), np.float32) for width in (300, 5, 20)), np.zeros(1, np.float32))
    result = {name: float(value) for name, value in
              crossmodal.count_parameters(shape, example).items()}
    for share in (True, False):
        tree = adapters.init(jax.random.key(0), shape.pairs(), shape.width, share=share)
        sizes = {part: sum(leaf.size for block in tree.values() for name, leaf in block.items()
                           if name.startswith("linear") == (part == "linear"))
                 for part in ("attention", "linear")}
        words = "adapter" if share else "unshared adapters"
        result |= {f"{words} {part}": float(size) for part, size in sizes.items()}
    return result | {"bytes": 4 * result["total"]}
