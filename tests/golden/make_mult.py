"""Writes ``mult_*.npz``: inputs, weights and outputs of MulT in PyTorch.

``python tests/golden/make_mult.py`` in an environment with torch and numpy.
"""

from pathlib import Path

import numpy as np
import torch
from mult_torch import NAMES, MulT, randomised

CASES = {
    "unaligned": {"widths": (6, 5, 4), "kernels": (1, 3, 3), "d": 8, "heads": 2, "layers": 2,
                  "ratio": 4, "targets": NAMES, "steps": (5, 9, 7)},
    "one_target": {"widths": (8, 5, 4), "kernels": (1, 1, 1), "d": 8, "heads": 4, "layers": 3,
                   "ratio": 2, "targets": ("audio",), "steps": (6, 6, 6)},
}


def main() -> None:
    for number, (case, shape) in enumerate(CASES.items()):
        shape = dict(shape)
        steps = shape.pop("steps")
        rng = np.random.default_rng(number)
        model = randomised(MulT(**shape), number)
        inputs = {name: rng.standard_normal((4, t, d)).astype(np.float32)
                  for name, t, d in zip(NAMES, steps, shape["widths"], strict=True)}
        for name in NAMES:
            inputs[name][1, :2] = 0  # padding, on the left
        tensors = {name: torch.tensor(x, requires_grad=True) for name, x in inputs.items()}
        output = model(tensors)
        output.abs().sum().backward()
        arrays = {f"input/{name}": x for name, x in inputs.items()}
        arrays |= {f"gradient/{name}": x.grad.numpy() for name, x in tensors.items()}
        arrays |= {f"weight/{name}": p.detach().numpy() for name, p in model.named_parameters()}
        np.savez_compressed(Path(__file__).with_name(f"mult_{case}.npz"), output=output.detach(),
                            **arrays)


if __name__ == "__main__":
    main()
