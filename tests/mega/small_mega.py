"""A small Mega-CE² setting for tests: simulated MOSI, a tiny model, three edges of two ends."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from mlecs_jax.data import sentiment_simulated
from mlecs_jax.mega import config, setting

FILE = Path(__file__).parents[2] / "configs" / "mosi.py"


def values(**changes: Any) -> dict[str, Any]:
    """Plain configuration values; ``changes`` by name with ``__`` for the dot."""
    result = runpy.run_path(str(FILE))["get_config"]("smoke").to_dict()
    result["data"]["source"] = "simulated"
    result["train"]["batch_size"] = result["adapter"]["batch_size"] = 8
    result["partition"]["minimum"] = 8
    result["model"].update(modalities="text,vision", targets="text")
    for name, value in changes.items():
        *groups, key = name.split("__")
        place = result
        for group in groups:
            place = place[group]
        assert key in place
        place[key] = value
    return result


DATA = sentiment_simulated.simulate("mosi", seed=3, segments=120)


def build(devices=None, **changes: Any) -> setting.MegaSetting:
    return setting.build(config.parse(values(**changes)), DATA, devices)
