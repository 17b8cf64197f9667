"""What a round costs on the network: a cloud and devices as processes, mutual TLS, loopback.

    python bench/deploy.py [--devices 3] [--megabytes 0 1 10 30] [--repeats 5] [--json F]

A round of a deployment is two exchanges: anchors go down and LoRA comes up, then the broadcast goes
down and scores come up. Every payload has the given size, devices answer at once, and so what is
measured is what the network adds to a simulated round. Beside it, taking turns in the same run:
the same messages encoded and decoded once more without a network (`bytes`), and the same payloads
through bare TLS sockets (`sockets`), one after another. On a busy machine look at processor time:
`cpu` of the cloud and `devices_cpu` of all devices, over the number of cores, is what a round takes
when nothing else runs.
"""

import argparse
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import measure, save, table

from mlecs_jax.configs import ur_fall
from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import nvflare_needed, provision, wire
from mlecs_jax.deploy.kit import Kit
from mlecs_jax.deploy.local import HOST, free_port
from mlecs_jax.deploy.wire import Header, Message

SCORES = {"scores": np.zeros(64)}


def device(folder: str) -> None:
    """A device process: gives back in a round what it is sent, and scores otherwise."""
    kit = kits.load(Path(folder), cloud=False)
    nvflare_needed.prepare(limit_bytes=kit.session().limits.limit_bytes, loopback=True)
    from mlecs_jax.deploy.nvflare_edge import EdgeLink

    link = EdgeLink(kit, kit.session())
    with contextlib.closing(link):
        link.connect()
        link.serve(lambda message: Message(
            message.header, message.arrays if message.header.kind == "round" else SCORES))


def message(kind: Any, arrays: dict[str, np.ndarray]) -> Message:
    return Message(Header(kind, "bench", 0, wire.CLOUD, 0, 1), arrays)


def network(transport: Any, names: list[str], arrays: dict[str, np.ndarray]) -> None:
    """One round's two exchanges with all devices."""
    for kind in ("round", "evaluate"):
        answers, failures = transport.exchange(names, message(kind, arrays), 300.0)
        if failures:
            raise RuntimeError(str(failures))


def through_bytes(arrays: dict[str, np.ndarray], devices: int) -> None:
    """The cloud's and the devices' share of encoding and decoding, in this process."""
    for kind, answer in (("round", arrays), ("evaluate", SCORES)):
        said = wire.encode(message(kind, arrays))
        for _ in range(devices):
            wire.decode(said, limit_bytes=1 << 30)
            wire.decode(wire.encode(message(kind, answer)), limit_bytes=1 << 30)


@contextlib.contextmanager
def echoing_socket(cloud: Kit, client: Kit) -> Iterator[Callable[[bytes, int], None]]:
    """A bare mutual-TLS connection whose other end takes bytes and sends some back."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(cloud.root))
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(cloud.certificate, cloud.key)
    own = ssl.create_default_context(cafile=str(client.root))
    own.load_cert_chain(client.certificate, client.key)
    with socket.create_server((HOST, 0)) as listener:
        def serve() -> None:
            with contextlib.suppress(OSError, ssl.SSLError):
                plain, _ = listener.accept()
                with server.wrap_socket(plain, server_side=True) as end:
                    while header := receive(end, 16):
                        size, back = (int.from_bytes(header[i:i + 8]) for i in (0, 8))
                        end.sendall(receive(end, size)[:back])

        threading.Thread(target=serve, daemon=True).start()
        with (socket.create_connection(listener.getsockname()) as plain,
              own.wrap_socket(plain, server_hostname=HOST) as end):
            def ask(data: bytes, back: int) -> None:
                end.sendall(len(data).to_bytes(8) + back.to_bytes(8) + data)
                receive(end, back)

            yield ask


def receive(end: ssl.SSLSocket, size: int) -> bytes:
    """So many bytes, or none at the end."""
    data = bytearray()
    while len(data) < size:
        part = end.recv(min(1 << 20, size - len(data)))
        if not part:
            return b""
        data += part
    return bytes(data)


def cpu_ms(pid: int) -> float:
    """Processor time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1e3 * (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    names = provision.roster(str(options.devices))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        values = ur_fall.get_config("smoke").to_dict()
        cloud, *others = provision.write(folder / "kits", values, names, HOST, free_port(),
                                         split=False, train_rows=1)
        session = cloud.session()
        nvflare_needed.prepare(limit_bytes=session.limits.limit_bytes, loopback=True)
        from mlecs_jax.deploy.nvflare_cloud import NVFlareTransport

        transport = stack.enter_context(contextlib.closing(NVFlareTransport(cloud, session)))
        devices = []
        for kit in others:
            process = subprocess.Popen([sys.executable, __file__, "--device", str(kit.folder)])
            devices.append(process.pid)
            stack.callback(process.wait)
            stack.callback(process.kill)
        while len(transport.names()) < len(names):
            time.sleep(0.05)
        ask = stack.enter_context(echoing_socket(cloud, others[0]))
        rows = []
        for megabytes in options.megabytes:
            arrays = {"x": np.random.default_rng(0).standard_normal(
                megabytes * 250_000).astype(np.float32)}
            payload = arrays["x"].tobytes()

            def sockets(payload: bytes = payload) -> None:
                for _ in names:
                    ask(payload, len(payload))
                    ask(payload, 0)

            calls: dict[str, Callable[[], None]] = {
                "network": lambda arrays=arrays: network(transport, list(names), arrays),
                "bytes": lambda arrays=arrays: through_bytes(arrays, len(names)),
                "sockets": sockets}
            before = sum(map(cpu_ms, devices))
            for name, times in measure(calls, options.repeats).items():
                own = (sum(map(cpu_ms, devices)) - before) / (options.repeats + 1)
                rows.append({"megabytes": megabytes, "devices": len(names), "what": name,
                             **{key: round(value, 1) for key, value in times.items()},
                             "devices_cpu": round(own * (name == "network"), 1)})
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[0, 1, 10, 30])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device:
        device(options.device)
        return
    rows = run(options)
    print(table(rows))
    save(options.json, rows)


if __name__ == "__main__":
    main()
