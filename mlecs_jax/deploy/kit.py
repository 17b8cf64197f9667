"""A participant's folder: who it is, where the cloud is, its certificates, the session, its data.

::

    DIR/cloud/     kit.json session.json rootCA.pem server.crt server.key data/ state/
    DIR/edge-0/    kit.json session.json rootCA.pem client.crt client.key data/ state/

:mod:`mlecs_jax.deploy.provision` writes them; each goes to the machine of its name and nowhere
else, since its key is what proves who is speaking.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mlecs_jax.deploy import session, wire
from mlecs_jax.deploy.session import Session
from mlecs_jax.errors import UserError

FILE = "kit.json"
ROOT = "rootCA.pem"
SERVER = "server"
"""The cloud's name in its certificate, and on NVFlare's network."""


@dataclasses.dataclass(frozen=True)
class Kit:
    """What one participant was given.

    Attributes:
      folder: where it lies.
      name: :data:`mlecs_jax.deploy.wire.CLOUD`, or a device of the roster.
      host, port: where the cloud listens, and devices find it.
    """

    folder: Path
    name: str
    host: str
    port: int

    @property
    def root(self) -> Path:
        """Certificate of the authority that both ends trust, and no other."""
        return self.folder / ROOT

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self._role}.crt"

    @property
    def key(self) -> Path:
        return self.folder / f"{self._role}.key"

    @property
    def data(self) -> Path:
        """Its share of the dataset, where provisioning dealt it."""
        return self.folder / "data"

    @property
    def state(self) -> Path:
        """Where a device keeps its state."""
        return self.folder / "state"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def _role(self) -> str:
        return "server" if self.name == wire.CLOUD else "client"

    def session(self) -> Session:
        """The session of this folder.

        Raises:
          UserError: see :func:`mlecs_jax.deploy.session.load`.
        """
        return session.load(self.folder)

    def at(self, address: str) -> Kit:
        """The same kit with the cloud somewhere else, ``HOST:PORT``; empty changes nothing.

        Raises:
          UserError: not an address.
        """
        if not address:
            return self
        host, port = parse_address(address)
        return dataclasses.replace(self, host=host, port=port)

    def save(self) -> None:
        """Writes ``kit.json``."""
        values = {"name": self.name, "host": self.host, "port": self.port}
        (self.folder / FILE).write_text(json.dumps(values, indent=2) + "\n")


def load(folder: Path, *, cloud: bool | None = None) -> Kit:
    """The kit in a folder.

    Args:
      cloud: whether the cloud's is wanted, or a device's; None: either.

    Raises:
      UserError: no kit, a damaged one, or one of the other kind.
    """
    path = folder / FILE
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        kit = Kit(folder.absolute(), str(values["name"]), str(values["host"]), int(values["port"]))
    except FileNotFoundError:
        raise UserError(f"there is no {FILE} in {folder}; give the folder that provision wrote "
                        "for this machine by --kit=DIR") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{path} is damaged; copy it again from what provision wrote") from None
    if cloud is not None and cloud != (kit.name == wire.CLOUD):
        raise UserError(f"{folder} is the kit of {kit.name}; start it by "
                        f"'{'edge' if cloud else 'cloud'} --kit={folder}'")
    for file in (kit.root, kit.certificate, kit.key):
        if not file.is_file():
            raise UserError(f"{file} is missing; copy the whole folder that provision wrote")
    return kit


def parse_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` as its parts.

    Raises:
      UserError: not an address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"'{address}' is no address; write HOST:PORT, as in 127.0.0.1:8443")
    return host, int(port)
