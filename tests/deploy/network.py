"""A cloud of this process on a loopback port, and echoing devices in another, for tests."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from mlecs_jax.deploy.wire import CLOUD, Header, Message

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Of a process of a deployment: one host device, as outside of tests."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
        "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def echoes(*devices: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of :mod:`tests.deploy.echo_edge`, killed at the end."""
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "tests.deploy.echo_edge", *devices],
                                   stdout=file, stderr=file, env=environment(), cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


Address = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def listening(pids: Iterable[int]) -> set[Address]:
    """Addresses that processes listen on, as the kernel knows them."""
    return {local for local, _, state in _sockets(pids) if state == "0A"}


def peers(pids: Iterable[int]) -> set[Address]:
    """Addresses that processes are connected to, or trying to be."""
    return {remote for _, remote, state in _sockets(pids) if state != "0A"}


def _sockets(pids: Iterable[int]) -> list[tuple[Address, Address, str]]:
    """TCP sockets of processes, from /proc: local address, remote address, state."""
    inodes, tables = set(), {}
    for pid in pids:
        with contextlib.suppress(OSError):  # a process that has just ended
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(file).removeprefix("socket:[").removesuffix("]"))
            network = os.readlink(f"/proc/{pid}/ns/net")  # it may have one of its own
            for table in ("tcp", "tcp6"):
                text = Path(f"/proc/{pid}/net/{table}").read_text()
                tables[network, table] = text.splitlines()[1:]
    found = []
    for lines in tables.values():
        for words in map(str.split, lines):
            if words[9] in inodes:
                found.append((_address(words[1]), _address(words[2]), words[3]))
    return found


ALONE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
"""Before a command: it runs in a network that has the loopback address and nothing else."""


def alone() -> list[str]:
    """:data:`ALONE` where this machine lets us, else nothing."""
    try:
        possible = subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0
    except OSError:
        possible = False
    return ALONE if possible else []


def _address(text: str) -> Address:
    """``0100007F:1F90``: words of four bytes, the lowest first, and the port."""
    digits, _, port = text.partition(":")
    words = bytes.fromhex(digits)
    address = ipaddress.ip_address(b"".join(
        words[i:i + 4][::-1] for i in range(0, len(words), 4)))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address, int(port, 16)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Returns when a condition holds; fails when it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def message(session: str, serial: int = 1, size: int = 4, kind: str = "round") -> Message:
    """A message of the cloud with an array of ``size`` numbers."""
    return Message(Header(kind, session, 0, CLOUD, 0, serial),  # type: ignore[arg-type]
                   {"x": np.arange(size, dtype=np.float32)})
