"""``python -m mlecs_jax.deploy provision --add=NAME``: one more device of a deployment.

Its kit is signed by the authority that provisioning left behind, and its name is put at the end of
the roster, so that everyone else keeps number and kit. Only the cloud has to learn of it: from its
own ``session.json``, which it reads again when a stranger says hello. The device joins at the next
session.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import provision, session, wire
from mlecs_jax.deploy.kit import Kit
from mlecs_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Writes the kit of one more device; returns the exit code."""
    from mlecs_jax.deploy.nodes import Arguments

    arguments = Arguments("provision", "One more device of a deployment.")
    arguments.add_argument("--add", required=True, metavar="NAME", help="of the new device")
    arguments.add_argument("--out", type=Path, required=True,
                           help="the folder that provision wrote, with authority and cloud")
    arguments.add_argument("--days", type=int, default=provision.DAYS,
                           help="validity of the certificate")
    options = arguments.parse_args(argv[1:])
    kit = add(options.out, options.add, options.days)
    print(f"{kit.folder}: to its machine, its share of data with it (edge --data=DIR), then  "
          f"python -m mlecs_jax.deploy edge --kit={kit.name}")
    print(f"{options.out / wire.CLOUD / session.FILE}: over the one in the cloud's kit, where that "
          "is somewhere else; the cloud need not be stopped")
    return 0


def add(out: Path, name: str, days: int = provision.DAYS) -> Kit:
    """Writes the kit of one more device, then the cloud's session with it.

    Args:
      out: of :func:`mlecs_jax.deploy.provision.write`.

    Raises:
      UserError: no such deployment, its authority's key is gone, or the name is taken or none.
    """
    if days < 1:
        raise UserError(f"--days is {days}; give at least 1")
    cloud = kits.load(out / wire.CLOUD, cloud=True)
    provision.check_names([name], cloud.host)
    grown = cloud.session().with_device(name)
    authority = provision.Authority.load(out / provision.AUTHORITY, days)
    folder, unfinished = (out / name).absolute(), out / f".{name}"
    if folder.exists() or unfinished.exists():
        raise UserError(f"{folder if folder.exists() else unfinished} exists; remove it, or use "
                        "another name")
    try:
        unfinished.mkdir(mode=0o700)
        kit = Kit(unfinished, name, cloud.host, cloud.port)
        kit.save()
        grown.save(kit.folder)
        authority.issue(kit)
        os.rename(unfinished, folder)  # whole or not at all
        grown.save(cloud.folder)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    return kits.load(folder, cloud=False)
