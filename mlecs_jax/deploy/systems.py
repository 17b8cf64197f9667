"""The two systems that are deployed, behind one interface: a configuration says which it is.

Commands, kits, sessions and transports know neither; what they need of one is a :class:`System`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mlecs_jax.errors import UserError

if TYPE_CHECKING:
    from mlecs_jax.deploy.kit import Kit
    from mlecs_jax.deploy.nvflare_edge import EdgeLink
    from mlecs_jax.deploy.session import Session
    from mlecs_jax.deploy.transport import Transport

Values = Mapping[str, Any]
OnEvent = Callable[[str, dict[str, Any]], None]
ASK_AGAIN_S = 0.5  # of an edge that has nothing to do


@dataclasses.dataclass(frozen=True)
class Deal:
    """What provisioning hands out.

    Attributes:
      save: what writes everyone's share into a folder, the cloud's first; empty where nothing is
        dealt.
      train_rows: of the device that has most (``Session.train_rows``).
      language: digests for ``Session.language``.
    """

    save: list[Callable[[Path], None]]
    train_rows: int
    language: Mapping[str, str] = dataclasses.field(default_factory=dict)


@runtime_checkable
class App(Protocol):
    """The cloud's process."""

    def run(self) -> dict[str, Any]: ...


@runtime_checkable
class System(Protocol):
    """What differs between deployments of the two systems.

    Attributes:
      name: of the method.
      devices: the value below ``partition`` that says how many devices there are.
    """

    name: str
    devices: str

    def parse(self, values: Values) -> Any:
        """The checked configuration; raises UserError, also for what a deployment cannot do."""
        ...

    def deal(self, values: Values, split: bool) -> Deal:
        """Everyone's share of the configured dataset, if it is to be split."""
        ...

    def cloud(
        self, session: Session, transport: Transport, workdir: Path, data: Path, on_event: OnEvent,
        latest: Callable[[], Session],
    ) -> App:
        """The cloud's process; ``latest`` is the session with devices that have been added."""
        ...

    def serve(
        self, kit: Kit, session: Session, link: EdgeLink, data: Path, state: Path,
        turns: Path | None,
    ) -> None:
        """A device, from preparing its programs to the end of the run."""
        ...

    def display(self, session: Session, workdir: Path) -> Any:
        """Terminal output: a context manager with ``event(kind, values)`` and
        ``finish(summary)``."""
        ...


class MlEcs:
    """ML-ECS: rounds, asked for by the cloud."""

    name, devices = "ml_ecs", "num_clients"

    def parse(self, values: Values) -> Any:
        from mlecs_jax import config
        from mlecs_jax.deploy.cloud import check_deployable

        parsed = config.parse(values)
        check_deployable(parsed)
        return parsed

    def deal(self, values: Values, split: bool) -> Deal:
        from mlecs_jax import assemble, backbones, federation
        from mlecs_jax.data import sources, text
        from mlecs_jax.data.vocabulary import VocabularyTokenizer
        from mlecs_jax.deploy import language, share

        config = self.parse(values)
        if not split:
            return Deal([], 0, language.of_directories(config) if config.captions else {})
        samples = sources.load(config.data, config.captions)
        if samples.texts is not None:
            assemble.check_captions(config, samples)
        names, tokenizer = backbones.resolve(config, samples)
        target = text.targets(samples, tokenizer,
                              config.captions.max_tokens if config.captions else 0)
        whole = federation.build(samples, target, config.partition_config(), config.train.rounds)
        shares = share.split(whole, public_labels=config.partition.public_labels)

        rows = max(len(part.parts["train"]) for part in shares[1:])
        if samples.texts is None:
            return Deal([functools.partial(share.save, part) for part in shares], rows)
        assert isinstance(tokenizer, VocabularyTokenizer)  # bytes are for classes

        def save(part: share.Share, folder: Path) -> None:
            share.save(part, folder)
            language.save(config, names, tokenizer, folder, cloud=part.node == share.CLOUD)

        return Deal([functools.partial(save, part) for part in shares], rows,
                    language.digests(tokenizer, names["slm"]))

    def cloud(
        self, session: Session, transport: Transport, workdir: Path, data: Path, on_event: OnEvent,
        latest: Callable[[], Session],
    ) -> App:
        from mlecs_jax.deploy.cloud import CloudApp

        return CloudApp(session, transport, workdir, data, on_event, latest=latest)

    def serve(
        self, kit: Kit, session: Session, link: EdgeLink, data: Path, state: Path,
        turns: Path | None,
    ) -> None:
        from mlecs_jax.deploy.edge import EdgeApp
        from mlecs_jax.deploy.turns import in_turns, turn

        with turn(turns):
            app = EdgeApp(session, kit.name, data, state)
        with contextlib.closing(app):
            link.connect()
            try:
                link.serve(in_turns(app.handle, turns))
            finally:
                if said := app.privacy():
                    print(f"{kit.name}: {said}", flush=True)

    def display(self, session: Session, workdir: Path) -> Any:
        from mlecs_jax.deploy.display import Display

        return Display(session, workdir)


class MegaCe2:
    """Mega-CE²: versions, made of what edges push."""

    name, devices = "mega_ce2", "edges"

    def parse(self, values: Values) -> Any:
        from mlecs_jax.deploy.mega_app import checked

        return checked(values)

    def deal(self, values: Values, split: bool) -> Deal:
        from mlecs_jax.data import sentiment
        from mlecs_jax.deploy import mega_share
        from mlecs_jax.mega import federation, setting

        config = self.parse(values)
        if not split:
            return Deal([], 0)
        data = setting.load(config.data)
        whole = federation.build(data, config)
        moments = sentiment.moments(data, whole.split.train)
        return Deal([functools.partial(mega_share.save, part)
                     for part in mega_share.split(whole, moments)], int(whole.ends.counts.max()))

    def cloud(
        self, session: Session, transport: Transport, workdir: Path, data: Path, on_event: OnEvent,
        latest: Callable[[], Session],
    ) -> App:
        from mlecs_jax.deploy.mega_app import MegaCloudApp

        return MegaCloudApp(session, transport, workdir, data, on_event, latest=latest)

    def serve(
        self, kit: Kit, session: Session, link: EdgeLink, data: Path, state: Path,
        turns: Path | None,
    ) -> None:
        from mlecs_jax.deploy.mega_edge import MegaEdgeApp
        from mlecs_jax.deploy.turns import turn

        with turn(turns):
            app = MegaEdgeApp(session, kit.name, data, state)
            if turns is not None:
                app.warm_up()

        def in_turn(work: Callable[[], None]) -> None:
            with turn(turns):
                work()

        with contextlib.closing(app):
            link.connect()
            app.run(link.persist, lambda: time.sleep(ASK_AGAIN_S), in_turn)

    def display(self, session: Session, workdir: Path) -> Any:
        from mlecs_jax.deploy.mega_display import MegaDisplay

        return MegaDisplay(session, workdir)


SYSTEMS: dict[str, System] = {system.name: system for system in (MlEcs(), MegaCe2())}


def of(values: Values) -> System:
    """The system of a configuration.

    Raises:
      UserError: its method is none that is deployed.
    """
    name = values["method"]["name"]
    if name not in SYSTEMS:
        raise UserError(f"method.name is {name}; a deployment runs {' or '.join(SYSTEMS)}, "
                        "simulate it with mlecs_jax.run")
    return SYSTEMS[name]


def with_devices(values: Values, count: int) -> dict[str, Any]:
    """A configuration of so many devices; without groups to say it in, as it is, for ``parse`` to
    refuse."""
    if not isinstance(values.get("partition"), Mapping):
        return dict(values)
    return {**values, "partition": {**values["partition"], of(values).devices: count}}
