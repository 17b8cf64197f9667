"""An edge of Mega-CE² with its ends: does what the cloud tells it, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from mlecs_jax import channel, durable
from mlecs_jax.deploy import mega_scores, mega_share
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.state import EdgeState
from mlecs_jax.deploy.wire import Header, Kind, Message, WireError
from mlecs_jax.errors import UserError
from mlecs_jax.mega import config as configs
from mlecs_jax.mega.clock import Report
from mlecs_jax.methods import mega_ce2
from mlecs_jax.topology import Device

Params = Any
PERSONAL = "personal.safetensors"
"""In the state folder of an edge that has finished: ``model/…`` and ``adapter/…``; the metadata say
of which version the model is."""
REFUSALS = 5  # in a row, after which an edge gives up


class MegaEdgeApp:
    """An edge's side of Mega-CE² (:mod:`mlecs_jax.deploy.mega_cloud` has the messages).

    Segments, labels, single answers and the adapter stay here. It keeps nothing between messages
    that the cloud does not know: one that is killed begins again.

    Args:
      session: what was provisioned.
      name: this edge, as the roster has it.
      data_dir: its share of the dataset (:mod:`mlecs_jax.deploy.mega_share`).
      state_dir: where it puts its own model in the end; one process at a time. Created if absent.
      share: of the run that is over at a version, in [0, 1]; sets the learning rate. None: versions
        made over versions to make.
      devices: accelerators; the first is used. None takes JAX's first.

    Raises:
      UserError: no such edge, bad data or options, or a state folder in use.
    """

    def __init__(
        self, session: Session, name: str, data_dir: Path, state_dir: Path,
        share: Callable[[int], float] | None = None, devices: Sequence[Device] | None = None,
    ):
        self.name, self._session = name, session.id(1)
        self._number = session.number(name)
        config = configs.parse(session.config)
        self._setting = mega_share.edge_setting(
            config, mega_share.load(data_dir), self._number, session.train_rows, devices)
        total = versions(config)
        self._share = share or (lambda version: version / total)
        self._part = mega_ce2.edge_part(self._setting)
        self._predict = mega_ce2.Predictor(self._setting)
        self._personalise = mega_ce2.personaliser(self._setting, self._predict, [self._number])
        self._key = jax.random.key(config.seed)
        self._count = np.asarray(int(self._part.counts[self._number]), np.int32)
        self._state_dir, self._lock = state_dir, EdgeState(state_dir, session.run)
        self._model: Params = None
        self._version, self._serial = -1, 0
        self.task: Kind = "begin"

    def warm_up(self) -> None:
        """Trains and scores once for nothing, so that programs are compiled when it begins."""
        self._model = jax.tree.map(np.asarray, self._setting.model.init(
            jax.random.fold_in(self._key, 0), self._setting.example()))
        self._trained(0)
        self._tallies(self._model)
        self._model = None

    def run(
        self, push: Callable[[Message], Message], pause: Callable[[], None],
        on_finish: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        """Does what it is told until the run is over.

        Args:
          push: carries a message to the cloud and returns its answer
            (:class:`mlecs_jax.deploy.transport.Uplink`).
          pause: called where there is nothing to do.
          on_finish: called with the last work, which compiles a program of its own.

        Raises:
          UserError: the cloud refuses what this edge says, again and again.
        """
        refused = 0
        while self.task != "over":
            done = self.task
            try:
                (on_finish if done == "finish" else _at_once)(lambda: self.step(push))
                refused *= done == "begin"
            except WireError as error:
                refused += 1
                if refused == REFUSALS:
                    raise UserError(f"the cloud refuses what {self.name} says ({error})") from None
                self._version, self.task = -1, "begin"  # as one that has just come
            if self.task == "begin":
                pause()

    def step(self, push: Callable[[Message], Message]) -> None:
        """Does its present task, tells the cloud, and hears what is next.

        Raises:
          WireError: the cloud refuses the message.
        """
        work = {"begin": self._begin, "evaluate": self._evaluate, "push": self._push,
                "finish": self._finish}
        arrays = work[self.task]()
        modalities = len(self._setting.shape.modalities)
        answer = push(Message(
            Header(self.task, self._session, self._version, self.name, modalities,
                   self._serial + (self.task == "push")), channel.pack(arrays)))
        header = answer.header
        if header.session != self._session:
            raise WireError("session", f"an answer of session {header.session[:60]}")
        self.task, self._version, self._serial = header.kind, header.round, header.serial
        if answer.arrays:
            self._model = channel.unpack(answer.arrays)["model"]

    def close(self) -> None:
        """Lets go of the state folder."""
        self._lock.close()

    def _begin(self) -> dict[str, Any]:
        ends = self._setting.config.partition.ends
        own = self._setting.federation.ends.counts[self._number * ends:(self._number + 1) * ends]
        return {"count": self._count, "ends": own}

    def _push(self) -> dict[str, Any]:
        return {"model": self._trained(self._serial), "count": self._count}

    def _evaluate(self) -> dict[str, Any]:
        return {split: found for split, found in self._tallies(self._model).items()}

    def _finish(self) -> dict[str, Any]:
        model = jax.tree.map(jnp.asarray, self._model)
        adapters, answers = self._personalise(model, jax.random.fold_in(self._key, 2))
        adapter = jax.tree.map(lambda x: np.ascontiguousarray(np.asarray(x)[0]), adapters)
        path = self._state_dir / PERSONAL
        temporary = path.with_name(f".{PERSONAL}.new")
        save_file(channel.pack({"model": self._model, "adapter": adapter}), temporary,
                  metadata={"version": str(self._version)})
        durable.replace(temporary, path)
        return {"global": self._tallies(self._model), "personal": self._tallied(answers),
                "history": np.asarray(answers["history"], np.float64)}

    def _trained(self, cycle: int) -> Params:
        """The model after one cycle of the ends, averaged."""
        rate = mega_ce2.learning_rate(self._setting.config, self._share(max(self._version, 0)))
        report = Report(self._number, cycle, self._version, 0.0)
        stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], self._model)
        models, _ = self._part.train(
            stacked, [report], [rate], jax.random.fold_in(self._key, 1))
        return jax.tree.map(lambda x: np.asarray(x)[0], models)

    def _tallies(self, model: Params) -> dict[str, Any]:
        return self._tallied(self._predict.all(jax.tree.map(jnp.asarray, model)))

    def _tallied(self, answers: Any) -> dict[str, Any]:
        split, labels = self._setting.federation.split, self._setting.federation.data.labels
        return {part: mega_scores.tally(labels[getattr(split, part)], answers[part])
                for part in mega_scores.SPLITS}


def versions(config: configs.MegaConfig) -> int:
    """Versions of a deployed run: as many models as its synchronous rounds would take in."""
    return config.train.rounds * config.partition.edges


def _at_once(work: Callable[[], None]) -> None:
    work()
