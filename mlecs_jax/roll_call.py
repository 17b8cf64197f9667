"""Before processes join: who is there, so that who is not can be named.

JAX's own rendezvous aborts a process that waited in vain, without a word about the others. So where
the coordinator is known, process 0 first listens on its port itself, hears every number once and
says ``go``; then JAX takes the port over. Who comes with other numbers is told so and sent away: a
mistake can be mended while the others wait, and a stranger ends nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections.abc import Iterator, Sequence

from mlecs_jax.errors import UserError

HELLO, GO = "mlecs", "go"
LONGEST = 1000  # bytes of a line


def hold(coordinator: str, count: int, index: int, patience: float) -> None:
    """Returns in every process once all have come.

    Args:
      coordinator: ``host:port`` of process 0.
      count: how many processes there are.
      index: number of this one.
      patience: seconds.

    Raises:
      UserError: in every process: who did not come; in one: it was started with other numbers,
        cannot reach process 0, or open its port.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + patience
    if index:
        _answer(host.strip("[]"), int(port), count, index, deadline)
    elif count > 1:
        _call(host.strip("[]"), int(port), count, deadline, patience)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own address, so that nobody else is to reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def named(processes: Sequence[int], count: int) -> str:
    """``process 1 of 4``, ``processes 1, 2 of 4``."""
    return f"process{'es' * (len(processes) > 1)} {', '.join(map(str, processes))} of {count}"


def _call(host: str, port: int, count: int, deadline: float, patience: float) -> None:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_listening(host, port))
        except OSError as error:
            raise UserError(f"process 0 cannot listen on port {port} ({error.strerror}); choose "
                            "another port in --coordinator") from None
        here: dict[int, socket.socket] = {}
        sent_away, problem = "", ""
        while len(here) < count - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5.0)
                hello, *numbers = _line(connection).split()
                other, others = map(int, numbers)
            except TimeoutError:
                if time.monotonic() > deadline:
                    missing = [i for i in range(1, count) if i not in here]
                    problem = (f"{named(missing, count)} did not come within {patience:.0f} s; see "
                               f"what its terminal says{sent_away}")
                continue
            except (ValueError, OSError):
                continue  # not one of ours
            if hello != HELLO:
                continue
            if wrong := _wrong(other, others, count, here):
                sent_away = f" ({wrong})"
                _say(connection, wrong)
            else:
                here[other] = connection
            here = {i: found for i, found in here.items() if not _gone(found)}
        for connection in here.values():
            _say(connection, problem or GO)
    if problem:
        raise UserError(problem)


def _wrong(other: int, others: int, count: int, here: dict[int, socket.socket]) -> str:
    """What is wrong with the numbers of a process; empty: nothing."""
    if others != count:
        return f"process {other} was started with --processes={others}, not {count}"
    if not 0 < other < count or other in here and not _gone(here[other]):
        return f"two processes were started with --process={other}"
    return ""


def _gone(connection: socket.socket) -> bool:
    """Whether the other end has hung up; nothing else is to come from there."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(5.0)


def _say(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # gone meanwhile: JAX's rendezvous misses it
        connection.sendall(f"{line}\n".encode())


def _answer(host: str, port: int, count: int, index: int, deadline: float) -> None:
    said = ""
    while not said:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UserError(f"process 0 cannot be reached at {host}:{port}; is it started, and the "
                            "port open between the hosts?")
        try:
            with socket.create_connection((host, port), timeout=min(left, 5.0)) as connection:
                connection.sendall(f"{HELLO} {index} {count}\n".encode())
                connection.settimeout(left + 10.0)  # process 0 speaks at its own deadline
                said = _line(connection)
        except OSError:
            time.sleep(0.2)
    if said != GO:
        raise UserError(said)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """On the host alone where it is this machine's own, else on all addresses: the name that others
    reach this machine by need not be one of its own."""
    if is_loopback(host):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as server:
            yield server
        return
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", port), family=family, dualstack_ipv6=both) as server:
        yield server


def _line(connection: socket.socket) -> str:
    with connection.makefile("r", encoding="utf-8") as file:
        return file.readline(LONGEST).strip()
