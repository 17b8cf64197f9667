"""Loss at inference: trained nodes answer with fewer modalities than they trained with."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlecs_jax import assemble, methods, scoring
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.config import Config
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError
from mlecs_jax.metrics.classification import spread
from mlecs_jax.setting import Setting

REMOVED = (1, 2)  # modalities taken from every held-out sample, as far as one is left
SEED = 20  # of what is taken; the same for all methods, so that differences are paired


def scores_without(config: Config, samples: Samples, folder: Path) -> dict[str, Any]:
    """Test scores of a finished run with modalities removed at inference.

    Each held-out sample loses that many of the modalities its node has, at random, keeping at
    least one: a device with a single sensor loses nothing.

    Returns:
      ``{'removed_1': {'client': {'avg_f1': …}, 'server': {'f1': …}}, …}``.

    Raises:
      UserError: the folder has no checkpoint of the last round.
    """
    result = {}
    setting = assemble.from_samples(config, samples)
    state = _final_state(setting, folder)
    metric = scoring.primary_metric(samples)
    for count in REMOVED:
        poorer = without(setting, count)
        predictions = jax.device_get(methods.build(poorer).evaluate(state,
                                                                    config.train.rounds - 1))
        test = scoring.score(poorer, predictions, "test")
        scores: dict[str, Any] = {"client": {
            f"{key}_{metric}": value for key, value in spread(
                [s.metrics[metric] for s in test[scoring.PRIMARY]]).items()}}
        if "server" in test:
            scores["server"] = {metric: test["server"].metrics[metric]}
        result[f"removed_{count}"] = scores
    return result


def _final_state(setting: Setting, folder: Path) -> Any:
    config = setting.config
    like = methods.build(setting).init(jax.random.fold_in(jax.random.key(config.seed), 0))
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        complete, state = checkpoints.restore(like)
    if complete != config.train.rounds:
        raise UserError(f"{folder} has no checkpoint of its last round, which a measurement on "
                        "trained nodes needs; remove the folder, and it is run again")
    return state


def without(setting: Setting, count: int) -> Setting:
    """The setting with ``count`` modalities fewer in every held-out sample."""
    rng = np.random.default_rng([SEED, count])
    last = setting.config.train.rounds - 1

    def fewer(available: Any, owned: np.ndarray) -> np.ndarray:
        """``available [..., n, M]`` of nodes that own ``owned [..., M]``."""
        has = np.asarray(available) & owned[..., None, :]
        order = np.argsort(np.argsort(rng.random(has.shape) - has, axis=-1), axis=-1)
        left = np.maximum(has.sum(-1, keepdims=True) - count, np.minimum(1, has.sum(
            -1, keepdims=True)))
        return has & (order < left)

    owned = setting.federation.owned_at(last)
    cohorts = tuple(
        dataclasses.replace(cohort, held_out_available=setting.topology.to_edge(
            fewer(cohort.held_out_available, owned[cohort.clients]), per_client=True))
        for cohort in setting.cohorts)
    rows = setting.cloud["public_held_out"]
    every = np.ones(rows.available.shape[-1], bool)
    cloud = setting.cloud | {"public_held_out": rows.replace(
        available=setting.topology.to_cloud(fewer(rows.available, every)))}
    return dataclasses.replace(setting, cohorts=cohorts, cloud=cloud)
