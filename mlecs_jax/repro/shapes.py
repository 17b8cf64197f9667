"""What methods send at full size, by shapes alone: a runner that holds no full-size weights."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mlecs_jax import assemble, lora, methods, scoring
from mlecs_jax import config as configs
from mlecs_jax.config import Config
from mlecs_jax.data import sources
from mlecs_jax.data.samples import Samples
from mlecs_jax.models.multimodal import MultimodalModel
from mlecs_jax.repro.code_version import code_version
from mlecs_jax.repro.job import Provenance, Values
from mlecs_jax.repro.results import SHAPES
from mlecs_jax.setting import Setting

STAND_INS = {"slm": "gpt2-1x16x2", "llm": "gptj-1x24x2"}  # hold the setting together, then go


def provenance(values: Values) -> Provenance:
    """Counts depend on shapes: the data are whatever has them."""
    return Provenance({"source": SHAPES, "samples": 0, "sha256": ""},
                      code_version(values["method"]["name"], __name__))


def run(
    values: Values, folder: Path, extras: Sequence[str], on_round: Callable[[int, int], None]
) -> None:
    """Writes ``summary.json`` with the group ``communication`` of one method.

    Raises:
      UserError: bad options.
    """
    del extras
    on_round(0, 1)
    config = configs.parse(values)
    samples = sources.load(config.data, config.captions)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({
        "method": config.method.name, "dataset": samples.name, "data_source": SHAPES,
        "rounds": 0, "communication": counted(config, samples)}, indent=2) + "\n", "utf-8")
    on_round(1, 1)


def counted(config: Config, samples: Samples) -> dict[str, Any]:
    """Bytes per device and round, and what they are a share of."""
    setting = at_full_size(config, samples)
    method = methods.build(setting)
    state = method.init(jax.random.key(0))
    sent = method.communication(state)
    owned = statistics.fmean(scoring.parameters_held(setting, method, state))
    adapter = lora.count(lora.init(jax.random.key(0), setting.edge["slm"],
                                   setting.slm.lora_targets, setting.slm.lora_rank))
    return {"uplink_bytes_per_round": sent["uplink"], "downlink_bytes_per_round": sent["downlink"],
            "device_parameters": owned, "lora_parameters": adapter,
            "uplink_share_of_parameters": sent["uplink"] / 4 / owned,
            "downlink_share_of_parameters": sent["downlink"] / 4 / owned}


def at_full_size(config: Config, samples: Samples) -> Setting:
    """The setting of a configuration with shapes in the place of its backbones' weights.

    What methods count, adapters, encoders and messages, is real; nothing can be trained in it.
    """
    small = dataclasses.replace(config, model=dataclasses.replace(config.model, **STAND_INS))
    setting = assemble.from_samples(small, samples)
    slm, llm = (assemble.model(config, samples, setting.tokenizer, which)
                for which in ("slm", "llm"))
    shapes = {"slm": backbone_shapes(slm), "llm": backbone_shapes(llm)}
    groups = assemble.cohort_clients(config.model, setting.federation.num_clients)
    cohorts = tuple(dataclasses.replace(cohort, model=assemble.widen(slm, widths))
                    for cohort, (_, widths) in zip(setting.cohorts, groups, strict=True))
    return dataclasses.replace(
        setting, config=config, slm=slm, llm=llm, cohorts=cohorts,
        edge=setting.edge | {"slm": shapes["slm"]}, cloud=setting.cloud | shapes)


def backbone_shapes(model: MultimodalModel) -> Any:
    """Shapes of the frozen parameters; no array is made."""
    return jax.eval_shape(
        lambda key: model.decoder.init(key, jnp.zeros((1, 1), jnp.int32))["params"],
        jax.random.key(0))
