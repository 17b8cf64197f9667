"""What missing modalities cost the nodes of a finished run, on their own test rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlecs_jax import restore, runlog, scoring
from mlecs_jax.errors import UserError
from mlecs_jax.federation import Federation
from mlecs_jax.repro import absence
from mlecs_jax.setting import Setting

Case = tuple[str, Setting]
TOLERANCE = 0.01  # of scores: rounding may turn a few answers


def cases(setting: Setting, asked: Sequence[str]) -> list[Case]:
    """What is taken away, and the setting without it; first nothing.

    Args:
      asked: each names modalities with commas, or says how many of each sample's go at random
        (one is always left); empty: every modality by itself.

    Raises:
      UserError: an unknown name.
    """
    result = [("nothing", setting)]
    for text in asked or setting.federation.modalities:
        if text.isdecimal():
            result.append((f"{text} at random", absence.without(setting, int(text))))
        else:
            names = [name for name in text.split(",") if name]
            result.append((", ".join(names), absence.without_named(setting, names)))
    return result


def report(folder: Path, asked: Sequence[str], as_json: bool) -> None:
    """Prints the scores of a run with modalities taken away at inference.

    Raises:
      UserError: no finished run, or an unknown modality.
    """
    run = restore.restored(folder)
    setting, metric = run.setting, scoring.primary_metric(run.setting.federation.samples)
    if run.rounds != setting.config.train.rounds:
        raise UserError(f"{folder} has {run.rounds} of {setting.config.train.rounds} rounds; let "
                        "it end first")
    found = [{"without": name, "metric": metric, "data_source": setting.federation.samples.source,
              **absence.test_scores(case, run.state), "unread": unread(case)}
             for name, case in cases(setting, asked)]
    check_same(folder, metric, found[0]["client"])
    if as_json:
        for entry in found:
            print(json.dumps(entry))
        return
    print(f"{setting.config.method.name} on {setting.federation.samples.name} "
          f"({setting.federation.samples.source} data): test {metric}, and in brackets the share "
          "of rows left without any modality")
    for entry in found:
        print(_line(entry, metric))


def check_same(folder: Path, metric: str, scores: dict[str, float]) -> None:
    """Raises UserError where a restored run does not score as its summary says: a checkpoint holds
    no frozen backbone, and a ``pretrained:`` one made again by other versions is another one."""
    try:
        known = json.loads((folder / runlog.SUMMARY).read_text())["client"][f"avg_{metric}"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} has no readable {runlog.SUMMARY}; let the run end first"
                        ) from None
    value = scores[f"avg_{metric}"]
    if abs(value - known) > TOLERANCE:
        raise UserError(f"{folder} scores {value:.4f} as restored and {known:.4f} in its summary; "
                        "its backbones or the code have changed (MLECS_CACHE_DIR keeps them)")


def unread(setting: Setting) -> dict[str, Any]:
    """Share of test rows in which a node has no modality at all."""
    federation = setting.federation
    owned = federation.owned_at(setting.config.train.rounds - 1)
    shares = np.zeros(federation.num_clients)
    for cohort in setting.cohorts:
        available = np.asarray(cohort.held_out_available) & owned[cohort.clients][:, None]
        for client, has in zip(cohort.clients, available, strict=True):
            shares[client] = 1 - _test(has.any(-1), federation, int(client)).mean()
    server = np.asarray(setting.cloud["public_held_out"].available).any(-1)
    return {"devices": shares.tolist(), "server": float(
        1 - server[federation.public_num_val:].mean())}


def _test(has: np.ndarray, federation: Federation, client: int) -> np.ndarray:
    start = int(federation.num_val[client])
    return has[start:start + len(federation.held_out_rows(client, "test"))]


def _line(entry: dict[str, Any], metric: str) -> str:
    parts = [f"without {entry['without']:<24} devices avg {entry['client'][f'avg_{metric}']:.3f}"]
    for j, (value, share) in enumerate(
            zip(entry["devices"], entry["unread"]["devices"], strict=True)):
        parts.append(f"{j}: {value:.3f}" + (f" ({share:.0%})" if share else ""))
    if "server" in entry:
        share = entry["unread"]["server"]
        parts.append(f"server {entry['server'][metric]:.3f}" + (f" ({share:.0%})" if share else ""))
    return "  ".join(parts)
