"""Figures printed in the Mega-CE² paper (Cheng, Wang and Bie, ACML 2025, PMLR 304:750–765).

They stand beside ours for reading, not for testing: the paper splits segments at random, does not
say which of the two binary accuracies it means, and its "weighted F1" cannot be that of the same
binary predictions.
"""

from __future__ import annotations

from collections.abc import Mapping

Printed = tuple[float, float, float]

COLUMNS = ("Acc2", "F1", "MAE")
"""Of a row of Tables 1, 2 and 4; accuracies and F1 as shares."""

COMPARED: Mapping[str, Mapping[str, Printed]] = {
    "mosi": {  # Table 1
        "ef_lstm": (0.741, 0.440, 0.680), "lf_lstm": (0.766, 0.458, 0.678),
        "mctn": (0.783, 0.504, 0.586), "raven": (0.804, 0.531, 0.575),
        "v2em_lite": (0.825, 0.563, 0.554), "mega_ce2": (0.853, 0.592, 0.529)},
    "mosei": {  # Table 2
        "ef_lstm": (0.745, 0.447, 0.675), "lf_lstm": (0.768, 0.461, 0.667),
        "mctn": (0.792, 0.513, 0.581), "raven": (0.812, 0.511, 0.564),
        "v2em_lite": (0.822, 0.549, 0.529), "mega_ce2": (0.866, 0.597, 0.514)},
}
"""By dataset and method; V2EM's row is that of the original, ours is re-targeted."""

ABLATION: Mapping[str, Mapping[str, Printed]] = {
    "mosei": {  # Table 4
        "full": (0.866, 0.597, 0.514), "text alone": (0.794, 0.502, 0.583),
        "audio alone": (0.656, 0.486, 0.664), "vision alone": (0.664, 0.483, 0.659),
        "target text": (0.821, 0.526, 0.575), "target vision": (0.797, 0.521, 0.611),
        "target audio": (0.792, 0.514, 0.620)},
}
"""By dataset and variant; the paper has MOSEI alone."""

LATENCY: Mapping[str, float] = {  # Table 3, milliseconds
    "edge generation": 45.0, "edge inference": 3208.6, "edge first response": 45.2,
    "edge full response": 3253.8, "cloud only, paper accounting": 3132.2}
"""The full response is not printed: it is the first one plus inference."""

PARAMETERS: Mapping[str, float] = {  # Table 5, whose "MB" are millions of parameters
    "attention": 19.48e6, "total": 50.41e6, "adapter attention": 0.36e6, "adapter linear": 0.09e6}
