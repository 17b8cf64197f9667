"""The cloud of a deployment: rounds with whoever answers, files as of a simulated run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import captions, channel, privacy, robust, runlog, scoring
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.codecs import Uplink
from mlecs_jax.config import Config
from mlecs_jax.deploy import admission, node, protocol
from mlecs_jax.deploy.admission import Expected
from mlecs_jax.deploy.crew import Crew, OnEvent, Roll
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.transport import Transport
from mlecs_jax.deploy.wire import Message, WireError
from mlecs_jax.errors import UserError
from mlecs_jax.experiment import COMPILE_CLOCK
from mlecs_jax.lora import Params
from mlecs_jax.methods import ml_ecs
from mlecs_jax.report.run_report import write_report
from mlecs_jax.scoring import NodeFacts, NodeScores
from mlecs_jax.topology import Device

SENDS = 16  # times that a round's upload may have been asked for
FACTS = Expected(protocol.facts(), admission.check_facts)


class CloudApp:
    """The cloud's side of ML-ECS behind a transport.

    It holds what the server holds and nothing private: its model, the public data, what devices
    have sent. Its folder has the files of a simulated run (``metrics.jsonl``, ``summary.json``,
    ``report.html``, ``checkpoints/``), so that the same command resumes it.

    Args:
      session: what was provisioned.
      transport: the way to the devices.
      workdir: the run's folder.
      data_dir: the cloud's share of the dataset (:mod:`mlecs_jax.deploy.share`).
      on_event: called with ``(kind, values)`` for a display: ``('start', {'complete', 'rounds'})``,
        ``('round', the metrics record)``, ``('session', {'count', 'members', 'round'})``,
        ``('fault', {'device', 'round', 'what'})``, ``('privacy', {'statement'})``.
      devices: accelerators; the first is used. None takes JAX's first.
      latest: the session with devices that have been added meanwhile, asked before every round;
        None: it does not grow.

    Raises:
      UserError: bad options or data.
    """

    def __init__(
        self, session: Session, transport: Transport, workdir: Path, data_dir: Path,
        on_event: OnEvent = lambda kind, values: None,
        devices: Sequence[Device] | None = None, latest: Callable[[], Session] | None = None,
    ):
        check_deployable(session.experiment)
        robust.check(session.experiment.aggregation, len(session.roster))
        self._session, self._transport, self._workdir = _enough(session), transport, workdir
        self._on_event, self._latest = on_event, latest or (lambda: session)
        self._setting = node.cloud_setting(session, data_dir, devices)
        self._part = ml_ecs.cloud_part(self._setting)
        self._uplink = Uplink(self._setting.config.channel)
        options = self._setting.config.privacy
        self._private = options if options and options.clip else None
        self._readings: dict[str, int] = {}  # modalities that devices have readings of
        self._claims: dict[tuple[str, int], int] = {}  # of uploads, by device and round
        self._counted: dict[str, int] = {}  # last rounds whose uploads counted
        self._key = jax.random.key(self._setting.config.seed)

    def run(self) -> dict[str, Any]:
        """Trains to the end from the last complete round; returns ``summary.json``'s contents.

        Raises:
          UserError: the folder holds another run, or no device answers for ``limits.wait_s``
            seconds; the same command resumes.
        """
        compiled_before = COMPILE_CLOCK.seconds
        rounds = self._setting.config.train.rounds
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(contextlib.closing(
                runlog.RunLog(self._workdir, self._identity())))
            checkpoints = stack.enter_context(
                contextlib.closing(Checkpoints(self._workdir / "checkpoints")))
            fresh = {"server": self._part.init(jax.random.fold_in(self._key, 0))}
            complete, saved = checkpoints.restore(fresh)
            server = saved["server"]
            log.resume(complete)
            self._on_event("start", {"complete": complete, "rounds": rounds})
            if complete == rounds and (done := log.finished_summary(complete)):
                write_report(self._workdir)  # a kill may have come between summary and report
                return done
            crew = Crew(self._session, self._transport, len(self._setting.federation.modalities),
                        _sessions(log.records), self._on_event)
            self._counted = {name: record["round"] for record in log.records
                             for name in record["deployment"]["answered"]}
            for r in range(complete, rounds):
                self._session = crew.session = _enough(self._latest())
                server, record = self._round(crew, server, r)
                log.append(record)
                checkpoints.save(r + 1, {"server": server})
                self._on_event("round", record)
            if complete == rounds:  # killed between the last round and its summary
                crew.ready(rounds, self._broadcast(server), FACTS)
                self._evaluated(crew, server, rounds - 1)
            crew.finish(rounds)
            summary = self._summary(crew, server, log.records,
                                    COMPILE_CLOCK.seconds - compiled_before)
            if self._setting.config.captions is not None:  # devices keep theirs
                log.write_samples(captions.shown(self._setting, self._answers, scoring.PRIMARY))
            log.write_summary(summary)
            write_report(self._workdir)
        return summary

    def _identity(self) -> dict[str, Any]:
        return dataclasses.asdict(self._setting.config) | {
            "samples": runlog.data_identity(self._setting.federation.samples),
            "deployment": {"run": self._session.run, "roster": list(self._session.founders)}}

    def _round(
        self, crew: Crew, server: Params, r: int
    ) -> tuple[Params, dict[str, Any]]:
        """One round with whoever answers, and its metrics record."""
        begun = time.perf_counter()
        broadcast = self._broadcast(server)
        anchors = channel.pack(self._part.speak(server))
        upload = Expected(protocol.shapes(self._part.upload(server)), functools.partial(
            self._check_upload, jax.device_get({"lora": server["slm"]["lora"]})))
        uploads, limits, attempts = {}, self._session.limits, 0
        while len(uploads) < limits.min_devices:
            if attempts > limits.misses:
                raise UserError(f"round {r}: fewer than {limits.min_devices} usable answers in "
                                f"{attempts} attempts ({crew.roll.refused or crew.roll.missed}); "
                                "mend the devices, then the same command goes on")
            attempts += 1
            crew.ready(r, broadcast, FACTS)
            crew.catch_up(r, broadcast, FACTS)
            uploads = crew.ask("round", r, anchors, upload)
            crew.after_round(r, uploads)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(
            channel.unpack(message.arrays) for message in uploads.values()))
        server, on_server = self._part.learn(
            server, self._setting.topology.to_cloud(stacked), r, jax.random.fold_in(self._key, 1))
        on_server = jax.device_get(on_server)
        if not _is_finite(server):
            raise UserError(
                f"round {r}: the server's model has NaN or infinity after learning from "
                f"{', '.join(uploads)}; nothing of the round is saved. Lower the learning rate, "
                "use an aggregation.rule that stands up to liars, or stop a device; the same "
                "command goes on from the round before")
        self._counted |= dict.fromkeys(uploads, r)
        trained = time.perf_counter()
        said = self._evaluated(crew, server, r)
        record = self._record(r, said, on_server, server, crew.roll)
        return server, record | {"seconds": round(trained - begun, 4),
                                 "evaluation_seconds": round(time.perf_counter() - trained, 4)}

    def _check_upload(
        self, known: dict[str, Any], message: Message, template: admission.Template
    ) -> None:
        """Raises WireError for an upload that is not as asked, or decodes to nothing sane."""
        admission.check_upload(message, template)
        claims, name = message.header.modalities, message.header.sender
        if claims != self._readings.get(name, claims):
            raise WireError("modalities", f"claims {claims}, has readings of "
                                          f"{self._readings[name]}")
        self._claims[name, message.header.round] = claims
        stacked = jax.tree.map(lambda x: x[None], channel.unpack(message.arrays)["lora"])
        decoded = jax.tree.map(lambda x: np.asarray(x)[0],
                               self._uplink.receive(stacked, known["lora"]))
        noise = privacy.longest(self._setting.config.privacy, sum(
            leaf.size for leaf in jax.tree.leaves(known)))
        admission.check_length(channel.pack({"lora": decoded}), channel.pack(known), noise)

    def _check_readings(self, message: Message, r: int) -> None:
        """Raises WireError where a device's claim, its weight, and its readings differ, or where it
        says that it has sent more uploads than it can have been asked for."""
        schedule = self._setting.config.partition.mask_schedule
        claims, arrays = message.header.modalities, message.arrays
        name, found = message.header.sender, int((arrays["readings"] > 0).sum())
        if schedule == "static":  # what it has read in one round it has in the next
            self._readings[name] = found
        if claims != self._claims.get((name, r), claims):
            raise WireError("modalities", f"claims {claims}, its upload {self._claims[name, r]}")
        # Where samples lack modalities one by one, a device may own one that no row of it has.
        if claims < found or (claims > found and schedule != "per_sample"):
            raise WireError("modalities", f"claims {claims}, has readings of {found}")
        if "sent" in arrays and arrays["sent"] > SENDS * (r + 2):
            raise WireError("range", f"'sent' is {arrays['sent']} after {r + 1} rounds")

    def _broadcast(self, server: Params) -> dict[str, np.ndarray]:
        """The LoRA, and whose uploads counted, where devices have to know."""
        template = protocol.counted(self._setting.config, len(self._session.roster))
        rounds = np.array([self._counted.get(name, -1) for name in self._session.roster], np.int32)
        return channel.pack(self._part.broadcast(server)) | dict.fromkeys(template, rounds)

    def _evaluated(self, crew: Crew, server: Params, r: int) -> dict[str, Message]:
        """What devices say of themselves after a round; keeps everyone's scores."""
        samples, config = self._setting.federation.samples, self._setting.config
        template = protocol.metrics(config, len(samples.class_names), len(samples.modalities), r)

        def check(message: Message, template: admission.Template) -> None:
            counts = crew.facts[message.header.sender]
            admission.check_scores(message, template, [
                split for split in protocol.SPLITS if counts[f"{split}_samples"]])
            self._check_readings(message, r)

        said = crew.ask("evaluate", r, self._broadcast(server), Expected(template, check))
        self._answers = jax.device_get({"server": self._part.evaluate(server, r)})
        self._last = {split: self._scores(said, split)
                      | scoring.score(self._setting, self._answers, split)
                      for split in protocol.splits(config, r)}
        nobody = np.zeros(len(self._setting.federation.modalities), np.int64)
        self._owned = [(said[name].arrays["readings"] if name in said else nobody) > 0
                       for name in self._session.roster]
        return said

    def _record(
        self, r: int, said: Mapping[str, Message], on_server: dict[str, Any], server: Params,
        roll: Roll,
    ) -> dict[str, Any]:
        """The round's line: a simulation's, and who took part."""
        setting, roster = self._setting, self._session.roster
        on_devices = {stage: {name: [
            float(said[who].arrays[f"losses/{stage}/{name}"]) if who in said else np.nan
            for who in roster] for name in names}
            for stage, names in protocol.losses(setting.config).items()}
        traffic = self._communication(server)
        return {
            "round": r, "rounds": setting.config.train.rounds,
            "data_source": setting.federation.samples.source,
            "train": {"devices": on_devices,
                      "server": jax.tree.map(lambda x: np.asarray(x).tolist(), on_server)},
            "eval": {split: scoring.round_record(found) for split, found in self._last.items()},
            "modalities": [owned.tolist() for owned in self._owned],
            "communication": {"uplink_bytes": traffic["uplink"],
                              "downlink_bytes": traffic["downlink"]},
            "deployment": dataclasses.asdict(roll) | ({
                "sent": {name: int(own.arrays["sent"]) for name, own in said.items()}}
                if self._private else {})}

    def _scores(self, said: Mapping[str, Message], split: str) -> dict[str, list[NodeScores]]:
        config = self._setting.config
        nothing = protocol.no_scores(
            config, len(self._setting.federation.samples.class_names))
        return {when: [protocol.unpacked_scores(config, said[name].arrays, split, when)
                       if name in said else nothing
                       for name in self._session.roster] for when in protocol.ANSWERS}

    def _communication(self, server: Params) -> dict[str, int]:
        down = {**protocol.shapes(self._part.broadcast(server)), **protocol.anchors(
            self._setting.config, len(self._setting.federation.public.target))}
        return {"uplink": channel.num_bytes(self._part.upload(server)),
                "downlink": channel.num_bytes(down)}

    def _summary(
        self, crew: Crew, server: Params, records: list[dict[str, Any]], compile_seconds: float
    ) -> dict[str, Any]:
        roster, modalities = self._session.roster, self._setting.federation.modalities
        unknown = dict.fromkeys(protocol.FACTS, 0)
        facts = []
        for name, owned in zip(roster, self._owned, strict=True):
            said = crew.facts.get(name, unknown)
            facts.append(NodeFacts(
                tuple(m for m, has in zip(modalities, owned, strict=True) if has),
                said["train_samples"], said["test_samples"], said["parameters"]))
        summary = scoring.summarise(
            self._setting, self._last["test"], facts, records, self._communication(server),
            compile_seconds, None)
        summary["deployment"] = faults(roster, records)
        if options := self._setting.config.privacy:
            if options.clip:
                told = [record["deployment"].get("sent", {}) for record in records]
                summary["privacy"] = privacy.told(options, max(
                    1, *summary["deployment"]["uploads"].values(),
                    *(count for sent in told for count in sent.values())))
                self._on_event("privacy", {"statement": summary["privacy"]["statement"]})
        return summary


def check_deployable(config: Config) -> None:
    """Raises UserError for what a deployment cannot do, before any work."""
    if config.method.name != "ml_ecs":
        raise UserError(f"method.name is {config.method.name}; this cloud is of "
                        "ml_ecs")
    if config.captions is not None and config.captions.bertscore:
        raise UserError("captions.bertscore is scaled by everyone's references, which no node of a "
                        "deployment has; leave it empty")
    if config.eval.ceiling_steps:
        raise UserError("eval.ceiling_steps trains on everyone's data at one place; set it to 0")
    privacy.check(config.privacy)


def faults(roster: Sequence[str], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What went wrong in a run, and what was done with it, from its records.

    Returns:
      ``sessions``; ``uploads`` that counted, by device; ``missed`` and ``refused``, how often for
      which reason; ``refused_of`` and ``dropped``, by device.
    """
    rolls = [record["deployment"] for record in records]
    missed: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    refused_of: Counter[str] = Counter()
    for roll in rolls:
        missed.update(line.partition(":")[0] for line in roll["missed"].values())
        refused.update(line.partition(":")[0] for line in roll["refused"].values())
        refused_of.update(key.partition(" ")[0] for key in roll["refused"])
    return {
        "sessions": max((roll["session"] for roll in rolls), default=0),
        "uploads": {name: sum(name in roll["answered"] for roll in rolls) for name in roster},
        "missed": dict(missed), "refused": dict(refused), "refused_of": dict(refused_of),
        "dropped": dict(Counter(name for roll in rolls for name in roll["dropped"]))}


def _enough(session: Session) -> Session:
    """The session, with as many answers in every round as the aggregation's rule needs."""
    rule, limits = session.experiment.aggregation, session.limits
    needed = max(limits.min_devices, robust.fewest(rule, len(session.roster)))
    return dataclasses.replace(session, limits=dataclasses.replace(limits, min_devices=needed))


@jax.jit
def _is_finite(tree: Params) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _sessions(records: Sequence[Mapping[str, Any]]) -> int:
    return max((record["deployment"]["session"] for record in records), default=0)
