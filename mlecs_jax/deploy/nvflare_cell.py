"""One node on NVFlare's network: a cell of its CellNet over gRPC with mutual TLS.

Why cells and not NVFlare jobs: a job ends when one of its client processes dies, and one that
restarts cannot join again. A cell is the layer below: the same provisioned certificates, gRPC,
streams and reconnecting, and none of that. What jobs would have added is here: :class:`Gate`.

CellNet binds the name that a peer claims when it connects to its certificate, but believes what
later frames say of where they come from, forwards them, and unpacks objects that they hold. The
gate lets none of that through.
"""

from __future__ import annotations

import dataclasses
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import (
    CellChannel,
    Encoding,
    MessageHeaderKey,
    MessagePropKey,
    ReturnCode,
)
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.message import Message as Frame
from nvflare.fuel.f3.stats_pool import StatsPoolManager
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, StreamHeaderKey

from mlecs_jax.deploy import wire
from mlecs_jax.deploy.kit import SERVER, Kit
from mlecs_jax.errors import UserError

CHANNEL = "mlecs"
HELLO, EXCHANGE, PUSH = "hello", "exchange", "push"
"""What a device says when it connects; what the cloud asks; what a device says unasked."""

STRANGER_BYTES = 4096  # of a peer that is on no roster, enough to be told so, and of any hello
FOREVER = 10.0**8  # seconds; we end waiting ourselves


def open_cell(kit: Kit, gate: Gate) -> Cell:
    """A node's cell, not started yet."""
    cloud = kit.name == wire.CLOUD
    end = ((DriverParams.SERVER_CERT, DriverParams.SERVER_KEY) if cloud
           else (DriverParams.CLIENT_CERT, DriverParams.CLIENT_KEY))
    credentials = {DriverParams.CA_CERT.value: str(kit.root), end[0].value: str(kit.certificate),
                   end[1].value: str(kit.key)}
    name = SERVER if cloud else kit.name
    cell = Cell(fqcn=name, root_url=f"grpc://{kit.address}", secure=True, credentials=credentials,
                auth_identity_map={SERVER: SERVER})
    cell.core_cell.add_incoming_filter("*", "*", gate.check)
    return cell


def close_cell(cell: Cell) -> None:
    """Says goodbye and lets go of the network."""
    cell.stop()
    name = cell.core_cell.get_fqcn()  # which NVFlare would not give out again in this process
    CoreCell.ALL_CELLS.pop(name, None)
    for pool in [pool for pool in StatsPoolManager.pools if pool.endswith(f"@{name}")]:
        StatsPoolManager.delete_pool(pool)


@dataclasses.dataclass
class Gate:
    """Drops every frame that is not from whom it says, for us, and plain bytes.

    Attributes:
      me: name of this cell.
      peers: those that may speak; others may say a few bytes, to be told that they may not.
      limit_bytes: longest message of a peer.
      refused: dropped frames by ``(name of the connection, why)``.
    """

    me: str
    peers: frozenset[str]
    limit_bytes: int
    refused: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def check(self, frame: Frame) -> Frame | None:
        """CellNet's filter: a frame in answer drops the one that came."""
        name = frame.get_prop(MessagePropKey.ENDPOINT).name
        reason = self.reason(name, frame)
        if reason is None:
            return None
        with self._lock:
            self.refused[name, reason] += 1
        return Frame()

    def reason(self, name: str, frame: Frame) -> str | None:
        """Why a frame of the connection of ``name`` is dropped; None lets it through."""
        header = frame.get_header
        if header(MessageHeaderKey.ORIGIN) != name or header(MessageHeaderKey.FROM_CELL) != name:
            return "forged sender"
        if header(MessageHeaderKey.DESTINATION) != self.me:
            return "not for us"
        if header(MessageHeaderKey.CHANNEL) not in (STREAM_CHANNEL, CellChannel.CELLNET):
            return "unknown channel"
        for key in (MessageHeaderKey.PAYLOAD_ENCODING, StreamHeaderKey.PAYLOAD_ENCODING):
            if header(key) not in (None, Encoding.BYTES, Encoding.NONE):
                return "objects"
        greets = header(StreamHeaderKey.TOPIC) == HELLO
        limit = self.limit_bytes if name in self.peers and not greets else STRANGER_BYTES
        size = header(StreamHeaderKey.SIZE) or 0
        if not isinstance(size, int) or max(size, len(frame.payload or b"")) > limit:
            return "oversized" if name in self.peers else "not on the roster"
        return None


def reply(payload: bytes = b"", error: str = "") -> Frame:
    """An answer, or one line that says why there is none."""
    code = ReturnCode.INVALID_REQUEST if error else ReturnCode.OK
    return Frame({MessageHeaderKey.RETURN_CODE: code}, error.encode() if error else payload)


def sender(frame: Frame) -> str:
    """Who sent a frame that passed the gate."""
    return str(frame.get_header(MessageHeaderKey.ORIGIN))


def asked(cell: Cell, target: str, topic: str, payload: bytes, timeout: float,
          abort: Any = None) -> bytes:
    """Sends bytes and returns the answer's.

    Raises:
      PermissionError: the other side refuses, and says why.
      ConnectionError: no answer.
    """
    answer = cell.send_request(channel=CHANNEL, target=target, topic=topic,
                               request=Frame({}, payload), timeout=timeout, optional=True,
                               abort_signal=abort)
    code = answer.get_header(MessageHeaderKey.RETURN_CODE)
    content = bytes(answer.payload or b"")
    if code == ReturnCode.INVALID_REQUEST:
        raise PermissionError(content[:500].decode(errors="replace"))
    if code != ReturnCode.OK:
        raise ConnectionError(f"no answer from {target} ({code})")
    return content


def check_listening(kit: Kit) -> None:
    """Raises UserError where the cloud cannot listen on its address: gRPC would say nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((kit.host, kit.port))
            probe.listen(1)
    except OSError as error:
        raise UserError(f"cannot listen on {kit.address}: {error.strerror or error}; give another "
                        "by --listen=HOST:PORT") from None


def find_cloud(kit: Kit, stopped: Callable[[float], bool], on_wait: Callable[[], None]) -> None:
    """Returns once the cloud is there and takes this kit's certificate.

    Args:
      stopped: sleeps some seconds; True ends the waiting.
      on_wait: called when there is nobody yet.

    Raises:
      UserError: the other end is not the cloud of this kit, or refuses the kit.
      ConnectionError: stopped.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(kit.root)
    context.load_cert_chain(kit.certificate, kit.key)
    context.set_alpn_protocols(["h2"])
    while True:
        try:
            with (socket.create_connection((kit.host, kit.port), timeout=5) as plain,
                  context.wrap_socket(plain, server_hostname=kit.host) as secure):
                # In TLS 1.3 a refusal comes after the handshake, in place of HTTP/2's first bytes.
                if secure.recv(1):
                    return
        except ssl.SSLCertVerificationError as error:
            raise UserError(f"{kit.address} is not the cloud of this kit ({error.verify_message}); "
                            "nothing was sent") from None
        except ssl.SSLError as error:
            raise UserError(f"the cloud at {kit.address} refuses this kit's certificate "
                            f"({error.reason}); use the kit of its own provisioning") from None
        except OSError:
            pass  # not there yet
        on_wait()
        if stopped(1.0):
            raise ConnectionError("stopped")
