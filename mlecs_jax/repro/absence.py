"""Loss at inference: trained nodes answer with fewer modalities than they trained with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection
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
    setting = assemble.from_samples(config, samples)
    state = final_state(setting, folder)
    found = {f"removed_{count}": test_scores(without(setting, count), state) for count in REMOVED}
    return {name: {node: scores for node, scores in one.items() if node != "devices"}
            for name, one in found.items()}


def test_scores(setting: Setting, state: Any) -> dict[str, Any]:
    """Test scores of a state as after the last round: ``{'client': {avg_f1, …}, 'server': {f1}}``
    and under ``devices`` each device's."""
    metric = scoring.primary_metric(setting.federation.samples)
    predictions = jax.device_get(
        methods.build(setting).evaluate(state, setting.config.train.rounds - 1))
    test = scoring.score(setting, predictions, "test")
    own = [s.metrics[metric] for s in test[scoring.PRIMARY]]
    scores: dict[str, Any] = {
        "client": {f"{key}_{metric}": value for key, value in spread(own).items()},
        "devices": own}
    if "server" in test:
        scores["server"] = {metric: test["server"].metrics[metric]}
    return scores


def final_state(setting: Setting, folder: Path) -> Any:
    """State after the last round of the run in a folder.

    Raises:
      UserError: the folder has no checkpoint of it.
    """
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

    def fewer(has: np.ndarray) -> np.ndarray:
        order = np.argsort(np.argsort(rng.random(has.shape) - has, axis=-1), axis=-1)
        left = np.maximum(has.sum(-1, keepdims=True) - count, np.minimum(1, has.sum(
            -1, keepdims=True)))
        return has & (order < left)

    return masked(setting, fewer)


def without_named(setting: Setting, names: Collection[str]) -> Setting:
    """The setting without some modalities in any held-out sample; a sample may keep none, and is
    then answered from the instruction alone.

    Raises:
      UserError: an unknown name.
    """
    modalities = setting.federation.modalities
    for name in names:
        if name not in modalities:
            raise UserError(f"'{name}' is no modality of this run; it has {', '.join(modalities)}")
    kept = np.array([name not in names for name in modalities])
    return masked(setting, lambda has: has & kept)


def masked(setting: Setting, fewer: Callable[[np.ndarray], np.ndarray]) -> Setting:
    """The setting with less in its held-out samples.

    Args:
      fewer: of what nodes have of their samples, bool ``[..., n, M]``, what they are left.
    """
    owned = setting.federation.owned_at(setting.config.train.rounds - 1)
    cohorts = tuple(
        dataclasses.replace(cohort, held_out_available=setting.topology.to_edge(fewer(
            np.asarray(cohort.held_out_available) & owned[cohort.clients][:, None]),
            per_client=True))
        for cohort in setting.cohorts)
    rows = setting.cloud["public_held_out"]
    cloud = setting.cloud | {"public_held_out": rows.replace(
        available=setting.topology.to_cloud(fewer(np.asarray(rows.available))))}
    return dataclasses.replace(setting, cohorts=cohorts, cloud=cloud)
