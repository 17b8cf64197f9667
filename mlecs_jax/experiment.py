"""The loop of a run: restore, round, evaluate, log, save. Nothing here knows a method.

With several processes all of them run this loop; the first one alone logs and reports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlecs_jax import assemble, captions, methods, model_files, runlog, scoring, seen_text
from mlecs_jax.ceilings import single_modality_ceilings
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.config import Config
from mlecs_jax.data.paths import cache_dir
from mlecs_jax.data.samples import Samples
from mlecs_jax.distributed import ALONE, Group, Stopped
from mlecs_jax.methods.method import Method, State
from mlecs_jax.report.run_report import write_report
from mlecs_jax.setting import Setting

OnRound = Callable[[dict[str, Any]], None]


def run(
    config: Config, workdir: Path, *, samples: Samples | None = None,
    on_start: Callable[[Setting, int], None] = lambda setting, complete: None,
    on_round: OnRound = lambda record: None, group: Group = ALONE, briefly: bool = False,
) -> dict[str, Any]:
    """Trains to the end, beginning where the folder's last complete round left off.

    A round's line is appended to the metrics, then its state is saved; a run killed at any moment
    continues from the last saved round and ends as it would have, on as many processes and
    accelerators as there are then.

    Args:
      workdir: the run's folder; created if absent. All processes see it.
      samples: the dataset that the configuration names, where it is in memory already.
      on_start: called once with the setting and the number of rounds already complete.
      on_round: called with every new metrics record; in the first process alone, as ``on_start``.
      group: the processes that take part.
      briefly: see :class:`mlecs_jax.setting.Setting`; the summary is the same.

    Returns:
      The contents of ``summary.json``, in every process.

    Raises:
      UserError: bad data or options, a folder that holds another run, or processes that do not run
        the same.
      Stopped: the run was asked to end after a round.
    """
    compiled_before = COMPILE_CLOCK.seconds
    setting = (assemble.setting(config) if samples is None
               else assemble.from_samples(config, samples))
    setting = dataclasses.replace(setting, briefly=briefly)
    method = methods.build(setting)
    identity = model_files.with_identity(dataclasses.asdict(config) | {
        "samples": runlog.data_identity(setting.federation.samples)}, config)
    warnings = seen_text.warnings(setting)
    if group.leads:
        for line in warnings:
            print(f"WARNING: {line}", file=sys.stderr, flush=True)
    group.agree("configuration or dataset", lambda: json.dumps(identity, sort_keys=True))
    with contextlib.ExitStack() as stack:
        log = group.led("workdir", lambda: stack.enter_context(
            contextlib.closing(runlog.RunLog(workdir, identity))))
        group.agree("workdir", lambda: runlog.stamp(workdir), runlog.SEEN_WITHIN)
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(workdir / "checkpoints", group)))
        everywhere, key = setting.topology.everywhere, jax.random.key(config.seed)
        state = method.init(jax.random.fold_in(key, 0))
        communication = method.communication(state)
        complete, found = checkpoints.restore(everywhere(state))
        state = setting.topology.placed_as(found, state)
        group.saved = complete

        def begin() -> dict[str, Any] | None:
            assert log is not None
            log.resume(complete)
            on_start(setting, complete)
            return log.finished_summary(complete) if complete == config.train.rounds else None

        if (done := group.shared("records", begin)):
            group.led("report", lambda: write_report(workdir))  # may be all that a kill prevented
            return done
        predictions = None
        for r in range(complete, config.train.rounds):
            if r > complete and group.stops():
                raise Stopped(r)
            state, predictions, record = _round(setting, method, state, r, key, communication,
                                                scored=log is not None)
            if log is not None:
                log.append(record)
            checkpoints.save(r + 1, everywhere(state))
            group.saved = r + 1
            if log is not None:
                on_round(record)
        if predictions is None:  # every round was complete already
            predictions = setting.topology.host(method.evaluate(state, config.train.rounds - 1))
        ceilings = single_modality_ceilings(setting) if config.eval.ceiling_steps else None

        def conclude() -> dict[str, Any]:
            assert log is not None
            summary = scoring.summary(
                setting, predictions, log.records, communication,
                scoring.parameters_held(setting, method, state),
                COMPILE_CLOCK.seconds - compiled_before, ceilings)
            if method.note:
                summary["note"] = method.note
            if warnings:
                summary["warnings"] = warnings
            if setting.federation.samples.texts is not None:
                log.write_samples(captions.shown(setting, predictions, scoring.PRIMARY))
            log.write_summary(summary)
            write_report(workdir)
            return summary

        return group.shared("summary", conclude)


def _round(
    setting: Setting, method: Method, state: State, r: int, key: jax.Array,
    communication: dict[str, int], *, scored: bool,
) -> tuple[State, dict[str, Any], dict[str, Any]]:
    """One round and its metrics record, without scores unless ``scored``."""
    host = setting.topology.host
    begun = time.perf_counter()
    state, diagnostics = method.round(state, r, jax.random.fold_in(key, 1))
    diagnostics = host(diagnostics)
    trained = time.perf_counter()
    predictions = host(method.evaluate(state, r))
    federation = setting.federation
    record = {
        "round": r,
        "rounds": setting.config.train.rounds,
        "data_source": federation.samples.source,
        "seconds": round(trained - begun, 4),
        "evaluation_seconds": round(time.perf_counter() - trained, 4),
        "train": jax.tree.map(lambda x: np.asarray(x).tolist(), diagnostics),
        "eval": {part: scoring.round_record(found) for part in ("val", "test")
                 if scored and (found := scoring.score(setting, predictions, part))},
        "modalities": federation.owned_at(r).tolist(),
        "communication": {"uplink_bytes": communication["uplink"],
                          "downlink_bytes": communication["downlink"]},
    }
    return state, predictions, record


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second run of the same shapes starts at once."""
    folder = cache_dir() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # only a cache: without it every process compiles anew
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class CompileClock:
    """Seconds this process has spent compiling, or fetching compiled programs, since creation."""

    _EVENT = "/jax/core/compile/backend_compile_duration"

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == self._EVENT:
            self.seconds += duration_secs


COMPILE_CLOCK = CompileClock()  # one listener a process: JAX keeps no way to take it off again
