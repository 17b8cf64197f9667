"""Every kind of adapter beside one and the same trained model: the artefact ``adapters``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlecs_jax import lora
from mlecs_jax.mega import experiment
from mlecs_jax.mega.personal import Predictor, personaliser
from mlecs_jax.mega.served import restored
from mlecs_jax.methods import mega_ce2

SHARED, AT_OUTPUT = "shared", "added to the prediction"
POOLED, BIAS = "one for all edges", "a constant each"
KINDS: Mapping[str, Mapping[str, Any]] = {
    SHARED: {"kind": "block", "share": True, "scope": "edge"},
    "unshared": {"kind": "block", "share": False, "scope": "edge"},
    AT_OUTPUT: {"kind": "output", "share": True, "scope": "edge"},
    POOLED: {"kind": "block", "share": True, "scope": "pooled"},
    BIAS: {"kind": "bias", "share": True, "scope": "edge"}}
"""Options of ``adapter`` by kind; the last two are controls."""


def scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Test scores of a finished run with its edges personalised in every way.

    Returns:
      By kind: scores under ``client`` (each segment by its own edge's model), ``parameters`` of one
      edge's adapter, and ``bytes_sent`` of it in an upload.

    Raises:
      UserError: see :func:`mlecs_jax.mega.served.restored`.
    """
    run = restored(folder, personal=False)
    config = run.setting.config
    message = mega_ce2.upload(run.model, np.int32(0), run.model)
    found = {}
    for name, changes in KINDS.items():
        own = dataclasses.replace(config.adapter, **changes)
        setting = dataclasses.replace(run.setting, config=dataclasses.replace(config, adapter=own))
        adapters, predictions = personaliser(setting, Predictor(setting))(
            run.model, experiment.personal_key(config))
        one = jax.tree.map(lambda x: x[0], adapters)
        found[name] = {"client": experiment.score(setting, predictions)["test"],
                       "parameters": lora.count(one),
                       "bytes_sent": mega_ce2.adapter_bytes(message, one)}
    return found
