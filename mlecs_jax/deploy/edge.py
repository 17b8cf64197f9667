"""A device of a deployment: its data, its models, and answers to the cloud's messages."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import captions, channel, privacy, scoring
from mlecs_jax.deploy import admission, node, protocol
from mlecs_jax.deploy.crew import behind
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.state import EdgeState, Notes
from mlecs_jax.deploy.wire import CLOUD, Message, WireError
from mlecs_jax.methods import ml_ecs
from mlecs_jax.topology import Device

logger = logging.getLogger(__name__)


class EdgeApp:
    """A device's side of ML-ECS. One at a time handles messages; programs stay compiled between.

    Readings, answers, single predictions, encoders and connectors stay here; so do captions to
    read, ``samples.jsonl`` in the state's folder. What leaves is in
    :data:`mlecs_jax.deploy.wire.Kind`'s table and, array by array, in
    :mod:`mlecs_jax.deploy.protocol`.

    Args:
      session: what was provisioned.
      name: this device, as the roster has it.
      data_dir: its share of the dataset (:mod:`mlecs_jax.deploy.share`).
      state_dir: where it keeps its state after every round; a device that is killed comes back
        where it was. Created if absent.
      devices: accelerators; the first is used. None takes JAX's first.

    Raises:
      UserError: no such device, bad data or options, or a state folder in use.
    """

    def __init__(
        self, session: Session, name: str, data_dir: Path, state_dir: Path,
        devices: Sequence[Device] | None = None,
    ):
        self.name = name
        self._session, self._config = session, session.experiment
        self._number = session.number(name)
        self._setting = node.device_setting(session, self._number, data_dir, devices)
        self._part = ml_ecs.device_part(self._setting)
        options = self._config.privacy
        self._private = options if options and options.clip else None
        self._key = jax.random.key(self._config.seed)
        self._store = EdgeState(state_dir, session.run)
        self._nodes, self._notes = self._part.init(jax.random.fold_in(self._key, 0)), Notes()
        self._like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self._nodes)
        found = self._store.restore(self._nodes)
        if found is None:
            self._store.save(self._nodes, self._notes)  # a cloud may ask to begin anew
        else:
            self._nodes, self._notes = found

    @property
    def rounds(self) -> int:
        """Rounds of training that the device's present state has seen."""
        return self._notes.rounds

    def privacy(self) -> str | None:
        """What the uploads that have left this device reveal at most, for people; None where they
        are not privatised, or none has left."""
        sent = self._store.sent
        return privacy.statement(self._private, sent) if self._private and sent else None

    def handle(self, message: Message) -> Message:
        """Does what the cloud asks and answers.

        Raises:
          WireError: the message is not the cloud's, or not of the present session, or its arrays
            are not those of its kind. The state is as before, also after any other error.
        """
        header = message.header
        self._check(message)
        answers = {"begin": self._begin, "round": self._round, "evaluate": self._evaluate,
                   "finish": lambda message: {}}
        try:
            arrays = answers[header.kind](message)
            self._notes = dataclasses.replace(self._notes, session=header.session,
                                              serial=header.serial)
            self._store.save(self._nodes, self._notes)
        except Exception:
            self._recover()
            raise
        owned = self._setting.federation.owned_at(header.round)[self._number]
        return Message(dataclasses.replace(header, sender=self.name,
                                           modalities=int(owned.sum())), arrays)

    def close(self) -> None:
        """Lets go of the state folder."""
        self._store.close()

    def _check(self, message: Message) -> None:
        header, notes = message.header, self._notes
        if header.sender != CLOUD:
            raise WireError("sender", f"'{header.sender[:60]}' is not the cloud")
        if header.session.rpartition(".")[0] != self._session.run or (
                header.session != notes.session and header.kind != "begin"):
            raise WireError("session", f"of session {header.session[:60]}, this device is in "
                                       f"{notes.session or 'none'}")
        if header.session == notes.session and header.serial <= notes.serial:
            raise WireError("replay", f"exchange {header.serial} was answered")
        if not 0 <= header.round <= self._config.train.rounds:
            raise WireError("round", f"there is no round {header.round}")
        lora = self._nodes.broadcast if self._config.method.broadcast else {}
        told = np.atleast_1d(message.arrays.get(protocol.COUNTED, np.empty(0)))
        known = {**protocol.shapes({"lora": lora}), **protocol.counted(
            self._config, max(len(told), self._number + 1))}  # devices may have been added
        template = {
            "begin": lambda: known,
            "evaluate": lambda: known,
            "round": lambda: protocol.anchors(
                self._config, len(self._setting.federation.public.target)),
            "finish": dict}.get(header.kind)
        if template is None:
            raise WireError("kind", f"'{header.kind}' is nothing that this device does")
        admission.check_arrays(message, template())

    def _begin(self, message: Message) -> dict[str, np.ndarray]:
        """Goes back to where the cloud is, if need be, and says what it is."""
        self._go_back(message.header.round)
        self._receive(message)
        share, rounds = self._setting.federation.partition.devices[0], message.header.round
        if self._notes.rounds < rounds:
            logger.warning("%s", behind(self._notes.rounds, rounds))
        facts = {"rounds": self._notes.rounds,
                 "train_samples": len(share.train), "val_samples": len(share.val),
                 "test_samples": len(share.test),
                 "parameters": scoring.parameters_of_devices(
                     self._setting, self._nodes.devices)[0]}
        return {name: np.asarray(value, np.int64) for name, value in facts.items()}

    def _round(self, message: Message) -> dict[str, np.ndarray]:
        r = message.header.round
        self._go_back(r)
        received = self._setting.topology.to_edge(channel.unpack(message.arrays))
        # Noise that the cloud could draw itself would hide nothing.
        noise = jax.random.wrap_key_data(
            jnp.asarray(np.frombuffer(secrets.token_bytes(8), np.uint32)))
        self._nodes, uploads, diagnostics = self._part.train(
            self._nodes, received, r, jax.random.fold_in(self._key, 1), noise=noise)
        losses = {path: float(values[0]) for path, values in channel.pack(diagnostics).items()}
        self._notes = dataclasses.replace(self._notes, rounds=r + 1, losses=losses, losses_of=r)
        if self._private:
            self._store.count_upload()
        own = jax.tree.map(lambda x: np.asarray(x)[0], uploads)
        return channel.pack(own | {"modalities": np.asarray(own["modalities"], np.int32)})

    def _evaluate(self, message: Message) -> dict[str, np.ndarray]:
        r, setting = message.header.round, self._setting
        self._receive(message)
        predictions = jax.device_get(self._part.evaluate(self._nodes, r))
        owned = setting.federation.owned_at(r)[self._number]
        answer = {"readings": protocol.readings(setting.federation, owned)}
        if self._private:
            answer["sent"] = np.asarray(self._store.sent, np.int64)
        for stage, names in protocol.losses(self._config).items():
            for name in names:
                known = self._notes.losses_of == r
                value = self._notes.losses[f"{stage}/{name}"] if known else np.nan
                answer[f"losses/{stage}/{name}"] = np.asarray(value, np.float64)
        nothing = protocol.no_scores(self._config, len(setting.federation.samples.class_names))
        for split in protocol.splits(self._config, r):
            scored = scoring.score(setting, predictions, split)
            for when in protocol.ANSWERS:
                (found,) = scored.get(when, [nothing])
                packed = protocol.packed_scores(found)
                answer |= {f"scores/{split}/{when}/{name}": x for name, x in packed.items()}
        if self._config.captions and captions.tests_due(self._config, r):
            self._store.keep_samples(captions.shown(setting, predictions, scoring.PRIMARY))
        return answer

    def _receive(self, message: Message) -> None:
        arrays = dict(message.arrays)
        counted = arrays.pop(protocol.COUNTED, None)
        received = self._setting.topology.to_edge(channel.unpack(arrays))
        self._nodes = self._part.receive(self._nodes, received)
        if counted is not None and counted[self._number] != (last := self._notes.losses_of) >= 0:
            self._take_back(last)

    def _take_back(self, r: int) -> None:
        """Keeps back again what the upload of a round held of earlier ones: it did not count."""
        before = self._store.restore(self._nodes, r)
        if before is not None:
            self._nodes = dataclasses.replace(self._nodes, kept=before[0].kept)

    def _recover(self) -> None:
        """Takes up the state that was saved last: a program that failed in the middle may have
        used up the arrays it was given."""
        found = self._store.restore(self._like)
        assert found is not None  # saved from the beginning on
        self._take(*found)

    def _take(self, nodes: ml_ecs.Nodes, notes: Notes) -> None:
        """A saved state, in the present session."""
        self._nodes = nodes
        self._notes = dataclasses.replace(notes, session=self._notes.session,
                                          serial=self._notes.serial)

    def _go_back(self, rounds: int) -> None:
        """To the state before a round that this device trained already: the cloud was killed.

        Raises:
          WireError: the state is not kept any more.
        """
        if self._notes.rounds <= rounds:
            return
        found = self._store.restore(self._nodes, rounds)
        if found is None:
            raise WireError("round", f"the cloud is at round {rounds}, this device at "
                                     f"{self._notes.rounds}, and what it was then is not kept")
        self._take(*found)
        self._store.forget_after(rounds)
