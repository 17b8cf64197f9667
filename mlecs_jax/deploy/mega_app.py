"""The cloud's process of Mega-CE²: versions as they come, files as of a simulated run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlecs_jax import channel, runlog
from mlecs_jax.deploy import mega_scores, mega_share
from mlecs_jax.deploy.crew import OnEvent
from mlecs_jax.deploy.mega_cloud import PLACES, MegaCloud
from mlecs_jax.deploy.mega_edge import versions as versions_of
from mlecs_jax.deploy.mega_scores import Tally
from mlecs_jax.deploy.mega_store import EdgeNotes, Version
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.share import CLOUD
from mlecs_jax.deploy.transport import Transport
from mlecs_jax.deploy.wire import Message, WireError
from mlecs_jax.errors import UserError
from mlecs_jax.experiment import COMPILE_CLOCK
from mlecs_jax.mega import config as configs
from mlecs_jax.mega.config import MegaConfig
from mlecs_jax.mega.experiment import sizes
from mlecs_jax.mega.personal import untuned
from mlecs_jax.metrics.sentiment import CLASSES
from mlecs_jax.models import crossmodal
from mlecs_jax.report.run_report import write_report

POLL_S = 0.5  # seconds between looks at who is there
GOODBYE_S = 5.0  # seconds that edges have to hear that it is over
KINDS = ("global", "personal")  # of models
STATE = "cloud"  # folder of the cloud's state, in the run's


class MegaCloudApp:
    """The cloud's side of Mega-CE² behind a transport; see :class:`~.cloud.CloudApp`.

    It holds the model and what edges have sent, and no segment of any dataset.

    Args:
      session, transport, workdir, on_event: as :class:`~mlecs_jax.deploy.cloud.CloudApp`'s.
      data_dir: where the share of provisioning is, which says what segments look like.
      versions: the run ends with this one; None: as many as synchronous rounds would take in.
      latest: the session with edges that have been added meanwhile, asked when a new one speaks.

    Raises:
      UserError: bad options or data.
    """

    def __init__(
        self, session: Session, transport: Transport, workdir: Path, data_dir: Path,
        on_event: OnEvent = lambda kind, values: None, versions: int | None = None,
        latest: Callable[[], Session] | None = None,
    ):
        self._session, self._transport, self._workdir = session, transport, workdir
        self._on_event, self._config = on_event, checked(session.config)
        self._share = mega_share.load(data_dir)
        if self._share.edge != CLOUD:
            raise UserError(f"the share is of edge {self._share.edge}; give the cloud its own "
                            "folder")
        self._versions = versions or versions_of(self._config)
        self._latest = latest or (lambda: session)
        self._changed = threading.Condition()
        self._log: runlog.RunLog | None = None
        self._failed: Exception | None = None

    def run(self) -> dict[str, Any]:
        """Takes in models to the end, from the last version; returns ``summary.json``'s contents.

        Raises:
          UserError: the folder holds another run, or no edge says anything for ``limits.wait_s``
            seconds; the same command resumes.
        """
        compiled_before = COMPILE_CLOCK.seconds
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(contextlib.closing(
                runlog.RunLog(self._workdir, self._identity())))
            self._cloud = self._opened()
            books = self._cloud.books
            self._log.resume(books.closed)
            self._closed_at = time.monotonic()
            self._on_event("start", {"complete": books.closed, "rounds": self._versions})
            if self._cloud.chosen and (done := self._log.finished_summary(self._versions)):
                write_report(self._workdir)  # a kill may have come between summary and report
                return done
            self._transport.on_push(self._handle, self._cloud.limit_bytes)
            self._wait()
            summary = self._summary(COMPILE_CLOCK.seconds - compiled_before)
            self._log.write_summary(summary)
            write_report(self._workdir)
            self._let_go()
        return summary

    def _identity(self) -> dict[str, Any]:
        return dataclasses.asdict(self._config) | {"deployment": {
            "run": self._session.run, "roster": list(self._session.founders),
            "versions": self._versions}}

    def _opened(self) -> MegaCloud:
        config = self._config
        key = jax.random.fold_in(jax.random.key(config.seed), 0)
        initial = crossmodal.model(config.model_config(), "Mega-CE²").init(
            key, self._share.example())
        return MegaCloud(
            jax.tree.map(np.asarray, initial), config.method.staleness_exponent,
            self._session.roster, self._session.id(1), self._versions, self._workdir / STATE,
            ends=config.partition.ends, train_rows=self._session.train_rows,
            every=config.eval.every, epochs=config.adapter.epochs, on_closed=self._on_closed)

    def _handle(self, name: str, message: Message) -> Message:
        """Answers an edge; called by the transport, from any thread."""
        with self._changed:
            cloud = self._cloud
            if name not in cloud.roster:
                self._session = self._latest()
                cloud.roster = self._session.roster
            begun, version = set(cloud.books.edges), cloud.books.version
            try:
                answer = cloud.handle(name, message)
            except WireError as error:
                self._on_event("fault", {"device": name, "round": version,
                                         "what": f"{message.header.kind}: refused: {error}"})
                raise
            except Exception as error:  # such as a full disk: the run's to end, not the edge's
                self._failed = error
                self._changed.notify_all()
                raise
            if set(cloud.books.edges) > begun:
                self._on_event("session", {
                    "count": 1, "round": version,
                    "members": [who for who in cloud.roster if who in cloud.books.edges]})
            self._changed.notify_all()
        return answer

    def _wait(self) -> None:
        """Returns once enough edges have said their last word."""
        limits, cloud = self._session.limits, self._cloud
        heard = complete = chosen = time.monotonic()
        with self._changed:
            while not cloud.chosen or len(cloud.finished) < len(cloud.books.edges):
                if self._changed.wait(POLL_S) or self._transport.names():
                    heard = time.monotonic()
                if self._failed is not None:
                    raise self._failed
                now = time.monotonic()
                complete = complete if cloud.complete else now
                chosen = chosen if cloud.chosen else now
                if now - complete > limits.deadline_s:
                    cloud.close_open()
                if (now - chosen > limits.first_deadline_s
                        and len(cloud.finished) >= limits.min_devices):
                    return
                if now - heard > limits.wait_s:
                    raise UserError(
                        f"no edge was there for {limits.wait_s:g} s at version "
                        f"{cloud.books.version} of {self._versions}; start them, then the same "
                        "command goes on")

    def _on_closed(self, version: Version) -> None:
        """The line of a version whose scores are complete."""
        assert self._log is not None
        now = time.monotonic()
        record: dict[str, Any] = {
            "round": version.number - 1, "rounds": self._versions,
            "data_source": self._share.source, "time": version.time, "edges": [version.edge],
            "staleness": [version.staleness]}
        if version.tallies:
            record["eval"] = {split: mega_scores.scores(mega_scores.pooled(
                mega_scores.from_plain(own[split]) for own in version.tallies.values()))
                for split in mega_scores.SPLITS}
        record |= {
            "seconds": round(now - self._closed_at, 4),
            "deployment": {"scored_by": [name for name in self._session.roster
                                         if name in version.tallies]}}
        self._closed_at = now
        self._log.append(record)
        self._on_event("round", record)

    def _summary(self, compile_seconds: float) -> dict[str, Any]:
        """The simulation's summary, of the edges that have said their last word."""
        cloud, config, log = self._cloud, self._config, self._log
        assert log is not None and cloud.books.best is not None
        answers = {name: cloud.books.edges[name].answers or {} for name in cloud.finished}
        tallies = {place: {name: mega_scores.from_plain(own[place])
                           for name, own in answers.items()} for place in PLACES}
        whole = {place: mega_scores.pooled(found.values()) for place, found in tallies.items()}
        scores = {place: mega_scores.scores(found) for place, found in whole.items()}
        edges = [self._edge(number, tallies) for number in range(len(cloud.roster))]
        known = [edge for edge in edges if edge["global"]]
        model = cloud.store.model(cloud.books.best.number)
        size = channel.num_bytes(model)
        return {
            "method": config.method.name, "mode": config.method.mode,
            "data_source": self._share.source, "caution": self._share.caution,
            "split": config.data.split, "rounds": self._versions,
            "best_version": cloud.books.best.number,
            "server": scores["global/test"], "client": scores["personal/test"],
            "validation": {"server": scores["global/val"], "client": scores["personal/val"]},
            "edges": edges, "class_names": list(CLASSES),
            "confusion": {kind: whole[f"{kind}/test"]["seven"].tolist() for kind in KINDS},
            "communication": {
                "uplink_bytes": size + np.dtype(np.int32).itemsize, "downlink_bytes": size,
                "uploads": sum(edge["reports"] for edge in edges),
                "downloads": cloud.books.downloads,
                "adapter_bytes_sent": 0},  # a model with any other leaf is refused
            "timing": {
                "train_seconds": round(sum(record["seconds"] for record in log.records), 2),
                "elapsed_seconds": round(cloud.books.seconds, 2),
                "compile_seconds": round(compile_seconds, 2)},
            "extra": self._sizes(model) | {"worst_edge_mae": {
                kind: max(edge[kind]["mae"] for edge in known) for kind in KINDS}},
            "personalisation_history": np.mean(
                [own["history"] for own in answers.values()], axis=0).tolist(),
            "deployment": {
                "sessions": 1, "uploads": {name: edge["reports"] for name, edge in
                                           zip(cloud.roster, edges, strict=True)},
                "missed": {}, "refused": cloud.books.refused,
                "refused_of": cloud.books.refused_of, "finished": cloud.finished,
                "dropped": {name: 1 for name in cloud.roster if name not in answers}}}

    def _edge(self, number: int, tallies: dict[str, dict[str, Tally]]) -> dict[str, Any]:
        """What is known of an edge; its scores are None where it has not said its last word. Its
        speed and its links are its own affair."""
        name = self._cloud.roster[number]
        notes = self._cloud.books.edges.get(name, EdgeNotes(0))
        found: dict[str, Any] = {
            "edge": number, "train_segments": notes.count, "end_segments": notes.ends}
        for split in mega_scores.SPLITS:
            own = tallies[f"global/{split}"].get(name)
            found[f"{split}_segments"] = None if own is None else int(own["seven"].sum())
        found |= {"speed": None, "links": None, "reports": notes.serial}
        for kind in KINDS:
            own = tallies[f"{kind}/test"].get(name)
            found[kind] = None if own is None else mega_scores.scores(own) | {
                "confusion": own["seven"].tolist()}
        return found

    def _sizes(self, model: Any) -> dict[str, int]:
        """Parameters of the model and of one edge's adapter."""
        adapter = untuned(self._config.adapter, self._config.model_config(), jax.random.key(0))
        return sizes(model, adapter)

    def _let_go(self) -> None:
        """Gives edges the time to hear that it is over."""
        until = time.monotonic() + GOODBYE_S
        while self._transport.names() and time.monotonic() < until:
            time.sleep(0.05)


def checked(values: Any) -> MegaConfig:
    """The configuration of a deployment, typed.

    Raises:
      UserError: see :func:`mlecs_jax.mega.config.parse`; also what a deployment cannot do.
    """
    config = configs.parse(json.loads(json.dumps(dict(values))))
    if config.method.mode != "async":
        raise UserError(f"method.mode is {config.method.mode}; over a network nobody waits: use "
                        "async, or simulate barriers with mlecs_jax.run")
    if config.cloud_steps:
        raise UserError(f"cloud.steps is {config.cloud_steps}; a deployed cloud has no segments to "
                        "train on: use 0, or simulate it with mlecs_jax.run")
    return config
