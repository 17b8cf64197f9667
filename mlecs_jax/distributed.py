"""Many processes as one run: who takes part, what they agree on, and how they end together.

Every process runs the same program over the same global arrays (:mod:`mlecs_jax.transfers`); a
process that owns no device of a mesh passes through that mesh's programs without computing. What
is not an array, JAX's coordination service carries: the first process decides and writes, the
others learn what it decided. :class:`mlecs_jax.watch.Watch` sees to it that no process waits for
one that is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from mlecs_jax import roll_call
from mlecs_jax.errors import UserError
from mlecs_jax.roll_call import named
from mlecs_jax.watch import (
    GRACE,
    LOST_AFTER,
    STEPS,
    STUCK_AFTER,
    Board,
    CoordinatorBoard,
    Watch,
    said_on_abort,
)

T = TypeVar("T")
PATIENCE = STUCK_AFTER  # s at a barrier
START_PATIENCE = 300  # s; for all processes to come
SHUTDOWN_PATIENCE = 10  # s; after everyone has said that it is done
FAILED, REFUSED = 1, 2
"""Exit codes: an error of the program, an error of the user's."""


class Stopped(Exception):
    """The run was asked to end, by SIGTERM in any process, and did so after a complete round.

    Attributes:
      rounds: complete rounds, all saved.
    """

    def __init__(self, rounds: int):
        super().__init__(f"stopped after round {rounds}")
        self.rounds = rounds


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a process finds the others; all None: the cluster says (TPU pod, SLURM, Open MPI, …).

    Attributes:
      coordinator: ``host:port`` where process 0 is reached by all.
      processes: how many there are.
      process: which this one is, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


class Group:
    """The processes of a run; :data:`ALONE` is a group of one that nobody watches.

    All processes call its methods in the same order.

    Attributes:
      index: number of this process.
      count: how many there are.
      saved: complete rounds on disk, for messages.
    """

    def __init__(self, board: Board | None = None, index: int = 0, count: int = 1):
        self.index, self.count, self.saved = index, count, 0
        self._board = board
        self._calls = 0
        self._watch: Watch | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes logs and reports."""
        return self.index == 0

    @contextlib.contextmanager
    def watched(self, grace: float = GRACE) -> Iterator[Group]:
        """Watches over the run within the block, which ends by itself or by an error.

        Within it SIGTERM asks for an end after the current round (:meth:`stops`), a lost process
        ends all with :data:`mlecs_jax.watch.LOST`, and an error of one process is the error of all.

        Args:
          grace: seconds from SIGTERM to the end of a round; after them the process ends at once.
        """
        with Watch(self._board, self.index, self.count, lambda: self.saved,
                   grace=grace) as self._watch:
            try:
                yield self
            except BaseException as error:
                self._fail(error)
                raise
            self._leave()

    def gather(self, what: str, value: str = "", patience: float = PATIENCE) -> list[str]:
        """Everyone's value, by process number: a barrier that names who does not come.

        Args:
          what: is waited for, for messages.
          patience: seconds.

        Raises:
          UserError: somebody did not come in time.
        """
        self._calls += 1
        STEPS.take(f"'{what}'")
        if self._board is None:
            return [value]
        place = f"gather/{self._calls}"
        self._board.set(f"{place}/{self.index}", value)
        deadline, found, missing = time.monotonic() + patience, [], []
        for i in range(self.count):
            got = self._board.wait(f"{place}/{i}", max(deadline - time.monotonic(), 0.01))
            if got is None:
                missing.append(i)
            else:
                found.append(got)
        if missing:
            raise UserError(f"{named(missing, self.count)} did not come to '{what}' within "
                            f"{patience:.0f} s; see what its terminal says")
        return found

    def agree(self, what: str, look: Callable[[], str], patience: float = 0.0) -> None:
        """Checks that all processes see the same.

        Args:
          what: is seen, for messages.
          look: what this process sees now.
          patience: seconds for it to become what process 0 sees; shared file systems lag behind.

        Raises:
          UserError: they do not; names who differs from process 0.
        """
        first = self.shared(what, look)
        deadline = time.monotonic() + patience
        while (found := look()) != first and time.monotonic() < deadline:
            time.sleep(0.2)
        values = self.gather(what, "" if found == first else "other")
        other = [i for i, found in enumerate(values) if found]
        if other:
            raise UserError(f"{named(other, self.count)} has another {what} than process 0; start "
                            "all processes with the same command on the same files")

    def shared(self, what: str, decide: Callable[[], Any]) -> Any:
        """What ``decide`` returns in process 0, in every process; it is called there alone.

        Args:
          what: is decided, for messages.
          decide: returns plain values that JSON can hold.

        Raises:
          UserError: of ``decide``, in every process.
        """
        if self._board is None:
            return decide()
        said = ""
        if self.leads:
            try:
                said = json.dumps({"value": decide()})
            except UserError as error:
                said = json.dumps({"error": str(error)})
        heard = json.loads(self.gather(what, said)[0])
        if "error" in heard:
            raise UserError(heard["error"])
        return heard["value"]

    def led(self, what: str, act: Callable[[], T]) -> T | None:
        """What ``act`` returns in process 0, None in the others; its UserError is everyone's."""
        made: list[T] = []
        self.shared(what, lambda: made.append(act()))
        return made[0] if made else None

    def stops(self) -> bool:
        """Whether the run was asked to end; everyone hears the same. Ask between rounds."""
        return self.shared("end of a round", lambda: bool(self._watch and self._watch.stopping))

    def _leave(self) -> None:
        """Ends this process' part once everyone is done."""
        self.gather("end of the run")
        if self._board is not None:
            import jax

            assert self._watch is not None
            self._watch.rest()
            jax.distributed.shutdown()

    def _fail(self, error: BaseException) -> None:
        """Tells the others what happened here, and ends this process where they could not wait."""
        if self._board is None or self._watch is None:
            return
        if isinstance(error, UserError):
            self._watch.end_all(str(error), f"error: {error}", REFUSED)
        elif isinstance(error, KeyboardInterrupt):
            self._watch.end_all("stopped by the keyboard", "stopped; the same command resumes from "
                                "the last complete round", 130)
        elif isinstance(error, SystemExit):
            return
        # A collective breaks in many ways where a process is gone: who misses it ends us meanwhile.
        time.sleep(LOST_AFTER + 5)
        traceback.print_exc()
        self._watch.end_all(f"{type(error).__name__}: {_first_line(error)}", "", FAILED)


ALONE = Group()


def launch(options: Mapping[str, str]) -> Launch | None:
    """The launch of the flags ``--distributed``, ``--coordinator``, ``--processes`` and
    ``--process``; None for a process alone.

    Raises:
      UserError: they do not fit together.
    """
    coordinator, numbers = options["coordinator"], (options["processes"], options["process"])
    given = [bool(value) for value in (coordinator, *numbers)]
    if not any(given):
        return Launch() if options["distributed"] else None
    if not all(given):
        raise UserError("--coordinator, --processes and --process go together; on a TPU pod, SLURM "
                        "or Open MPI give none of them")
    if not all(number.isdigit() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
        raise UserError(f"--processes={numbers[0]} --process={numbers[1]}; give how many there are "
                        "and which this one is, from 0")
    if not coordinator.rpartition(":")[2].isdigit() or coordinator.startswith(":"):
        raise UserError(f"--coordinator is {coordinator}; give HOST:PORT of process 0")
    return Launch(coordinator, *map(int, numbers))


def grace(options: Mapping[str, str]) -> float:
    """Seconds of the flag ``--grace``.

    Raises:
      UserError: it is no positive number.
    """
    try:
        seconds = float(options["grace"] or GRACE)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UserError(f"--grace is {options['grace']}; give seconds from SIGTERM to the end of "
                        "a round, some less than the scheduler waits before it kills")
    return seconds


def spread(config: Any) -> Any:
    """The configuration, of either system, with its devices spread over the edge mesh.

    ``scan`` keeps them on one accelerator; ``shard_map`` scans on each over its share of them.

    Raises:
      UserError: the back end ``loop``, which is for debugging.
    """
    if config.clients.backend == "loop":
        raise UserError("clients.backend=loop is for debugging in one process; use shard_map")
    return dataclasses.replace(
        config, clients=dataclasses.replace(config.clients, backend="shard_map"))


@contextlib.contextmanager
def joined(launch: Launch | None, grace: float = GRACE) -> Iterator[Group]:
    """Within the block this process is one of the launch's, watched; alone without a launch.

    Args:
      grace: see :meth:`Group.watched`.

    Raises:
      UserError: the processes did not find each other.
    """
    group = Group() if launch is None else join(launch)
    with group.watched(grace):
        yield group


def join(launch: Launch) -> Group:
    """Meets the other processes; to be called before JAX touches a device.

    Raises:
      UserError: no cluster is known, or it cannot be joined.
    """
    if launch.coordinator and launch.processes is not None and launch.process is not None:
        roll_call.hold(launch.coordinator, launch.processes, launch.process, START_PATIENCE)
    import jax

    from mlecs_jax import transfers

    # JAX's own would swallow SIGTERM; ours lets a round end first (mlecs_jax.watch).
    jax.config.update("jax_enable_preemption_service", False)
    at = launch.coordinator or "process 0"
    # JAX's service listens on all addresses unless it is told which.
    own = at if roll_call.is_loopback(at.rpartition(":")[0].strip("[]")) else None
    with said_on_abort(f"error: not all processes came within {START_PATIENCE} s: {at} cannot be "
                       "reached, or fewer were started than were said"):
        try:
            jax.distributed.initialize(
                launch.coordinator, launch.processes, launch.process,
                initialization_timeout=START_PATIENCE, shutdown_timeout_seconds=SHUTDOWN_PATIENCE,
                coordinator_bind_address=own)
        except (ValueError, TypeError):
            raise UserError("--distributed finds no cluster here (TPU pod, SLURM, Open MPI); give "
                            "--coordinator=HOST:PORT --processes=N --process=I") from None
        except RuntimeError as error:
            raise UserError(f"processes cannot be joined: {_first_line(error)}") from None
    if jax.process_count() == 1:
        return Group()
    transfers.spare_absent_programs()
    return Group(CoordinatorBoard(), jax.process_index(), jax.process_count())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
