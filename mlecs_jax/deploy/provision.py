"""``python -m mlecs_jax.deploy provision``: certificates, session and data, one folder each.

Certificates are NVFlare's (:mod:`nvflare.lighter`), signed by an authority of this deployment
alone. A name in a certificate is the name on the network: the cloud is ``server``, devices are as
the roster names them.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlecs_jax import cli
from mlecs_jax.deploy import nvflare_needed, session, systems, wire
from mlecs_jax.deploy.kit import ROOT, SERVER, Kit, parse_address
from mlecs_jax.deploy.session import Limits, Session
from mlecs_jax.errors import UserError

AUTHORITY = "authority"
KEY = "rootCA.key"
DAYS = 360
PATIENCE = Limits()
LIMITS = {"deadline": ("deadline_s", float), "first-deadline": ("first_deadline_s", float),
          "misses": ("misses", int), "min-devices": ("min_devices", int),
          "wait": ("wait_s", float), "limit-bytes": ("limit_bytes", int)}
"""Options of a deployment's limits: field of :class:`Limits` and type."""

USAGE = """usage: python -m mlecs_jax.deploy provision --config=NAME [--config.KEY=VALUE …]
         --devices=3|NAME,NAME,… --out=DIR [--address=HOST:PORT] [--split-dataset]
         [--train-rows=N] [--deadline=S] [--first-deadline=S] [--misses=K]
         [--min-devices=N] [--wait=S] [--limit-bytes=N] [--days=N]
       python -m mlecs_jax.deploy provision --add=NAME --out=DIR [--days=N]

  --devices        how many (edge-0, edge-1, …), or their names; of one alone: NAME,
  --out            a new folder; one folder per participant is written into it
  --address        where the cloud listens and devices find it (default: 127.0.0.1:8443)
  --split-dataset  deal the config's dataset: every participant's folder gets its own rows
  --train-rows     training rows of the device that has most, where a device brings its own
  --deadline, --first-deadline
                   seconds a device has for an answer, later and in the first round
  --misses         rounds missed in a row after which a device is out (default: 3)
  --min-devices    usable answers without which a round is not made (default: 1)
  --wait           seconds the cloud waits for that many devices (default: 600)
  --limit-bytes    longest message that is looked at (default: 268435456)
  --days           validity of the certificates
  --add            one more device of the deployment in --out; everyone else keeps what they have"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # no dots: they separate levels in NVFlare


def main(argv: list[str]) -> int:
    """Writes kits; returns the exit code."""
    if any(word.partition("=")[0] == "--add" for word in argv):
        from mlecs_jax.deploy import addition

        return addition.main(argv)
    argv = ["--split-dataset=yes" if word == "--split-dataset" else word for word in argv]
    values, options = cli.parse(argv, USAGE, {
        "devices": "", "out": "", "address": "127.0.0.1:8443", "split-dataset": "",
        "train-rows": "", "days": str(DAYS)} | dict.fromkeys(LIMITS, ""))
    if not options["out"]:
        raise UserError("no folder given; use --out=DIR")
    limits = {field: number(option, options[option], kind)
              for option, (field, kind) in LIMITS.items() if options[option]}
    rows = number("train-rows", options["train-rows"], int) if options["train-rows"] else None
    host, port = parse_address(options["address"])
    kits = write(Path(options["out"]), values, roster(options["devices"]), host, port,
                 limits=Limits(**limits), days=number("days", options["days"], int),
                 train_rows=rows, split=options["split-dataset"] not in ("", "no", "false"))
    for kit in kits:
        role = "cloud" if kit.name == wire.CLOUD else "edge"
        print(f"{kit.folder}: to its machine, then  python -m mlecs_jax.deploy {role} "
              f"--kit={kit.name}")
    print(f"{Path(options['out']) / AUTHORITY}: keep it; whoever has its key can name devices")
    return 0


def number(option: str, text: str, kind: type) -> Any:
    """An option's number.

    Raises:
      UserError: it is none.
    """
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"--{option} is '{text}'; give a number") from None


def roster(devices: str) -> tuple[str, ...]:
    """Names of the devices, of a number or a list.

    Raises:
      UserError: neither; also one name alone, which may be a number with a typing error.
    """
    if devices.isdecimal() and int(devices) > 0:
        return tuple(f"edge-{j}" for j in range(int(devices)))
    names = tuple(name.strip() for name in devices.split(",") if name.strip())
    if not names:
        raise UserError("no devices given; use --devices=3 or --devices=NAME,NAME,…")
    if "," not in devices:
        raise UserError(f"--devices is '{devices}'; give a number from 1, or names with commas "
                        "between them (one device: 'NAME,')")
    return names


def write(
    out: Path, values: Mapping[str, Any], names: Sequence[str], host: str, port: int, *,
    limits: Limits = PATIENCE, days: int = DAYS, split: bool = True, train_rows: int | None = None,
) -> list[Kit]:
    """Writes the folders of a deployment.

    Args:
      out: a folder that does not exist, or is empty.
      values: the configuration; its number of devices is taken from ``names``.
      split: deal the configured dataset.
      train_rows: needed where it is not dealt, see :class:`Session`; where it is, for devices that
        will bring more rows than were dealt.

    Returns:
      The cloud's kit, then the devices'.

    Raises:
      UserError: bad names, data or options, or files in the way.
    """
    check_names(names, host)
    if days < 1:
        raise UserError(f"--days is {days}; give at least 1")
    if not split and train_rows is None:
        raise UserError("without --split-dataset, say by --train-rows=N how many training rows "
                        "the device has that has most")
    system, values = systems.of(values), systems.with_devices(values, len(names))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; use another --out")
    system.parse(values)  # refuses a bad configuration before anything is written
    dealt = system.deal(values, split)
    agreed = session.create(values, names, max(dealt.train_rows, train_rows or 0), limits,
                            dealt.language)
    try:
        kits = _write_kits(out, agreed, host, port, days)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; use another --out") from None
    for kit, save in zip(kits, dealt.save, strict=False):
        kit.data.mkdir(mode=0o700)
        save(kit.data)
    return kits


def check_names(names: Sequence[str], host: str) -> None:
    """Raises UserError for names that could pass for the cloud's or an address."""
    for name in names:
        if not _NAME.fullmatch(name) or name.lower() in (SERVER, wire.CLOUD, AUTHORITY, "localhost",
                                                         host.lower()) or _is_address(name):
            raise UserError(f"'{name}' is no name for a device; use letters, digits, '_' and '-', "
                            f"and not '{SERVER}', '{wire.CLOUD}', '{AUTHORITY}' or a host's name")


def _write_kits(out: Path, agreed: Session, host: str, port: int, days: int) -> list[Kit]:
    authority = Authority(agreed.run, days)
    authority.save(out / AUTHORITY)
    kits = []
    for name in (wire.CLOUD, *agreed.roster):
        kit = Kit((out / name).absolute(), name, host, port)
        kit.folder.mkdir(mode=0o700, parents=True)  # what is private stays so, whatever the umask
        kit.save()
        agreed.save(kit.folder)
        authority.issue(kit)
        kits.append(kit)
    return kits


class Authority:
    """Signs the certificates of one deployment.

    Args:
      run: the deployment's identity.
      days: validity.
    """

    def __init__(self, run: str, days: int = DAYS):
        lighter = _lighter()
        self._days = days
        self._identity = lighter.Identity(f"mlecs-{run}")
        self._key, public = lighter.generate_keys()
        self._root = lighter.generate_cert(
            subject=self._identity, issuer=self._identity, signing_pri_key=self._key,
            subject_pub_key=public, valid_days=days, ca=True)

    @classmethod
    def load(cls, folder: Path, days: int = DAYS) -> Authority:
        """The authority of a folder that :meth:`save` wrote.

        Args:
          days: validity of what it signs from now on; never longer than its own.

        Raises:
          UserError: certificate or key is missing or damaged, or the certificate has expired.
        """
        lighter = _lighter()
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.x509.oid import NameOID

        try:
            root = x509.load_pem_x509_certificate((folder / ROOT).read_bytes())
            key = serialization.load_pem_private_key((folder / KEY).read_bytes(), None)
            name = root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        except OSError as error:
            raise UserError(f"{folder} has no {ROOT} and {KEY} to read ({error.strerror}); without "
                            "the authority's key a deployment is provisioned anew") from None
        except (ValueError, TypeError, IndexError):
            raise UserError(f"{folder} holds a damaged certificate or key; restore it") from None
        left = (root.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days
        if left < 1:
            raise UserError(f"the authority in {folder} has expired; provision anew")
        found = cls.__new__(cls)
        found._days, found._key, found._root = min(days, left), key, root
        found._identity = lighter.Identity(str(name))
        return found

    def save(self, folder: Path) -> None:
        """Writes the authority's certificate and key, the latter for the owner's eyes alone."""
        lighter = _lighter()
        folder.mkdir(mode=0o700, parents=True)
        (folder / ROOT).write_bytes(lighter.serialize_cert(self._root))
        _write_secret(folder / KEY, lighter.serialize_pri_key(self._key))

    def issue(self, kit: Kit, name: str | None = None) -> None:
        """Writes a kit's certificate and key.

        A device's certificate is good for connecting and a cloud's for being connected to, so
        that no device can pass for the cloud.

        Args:
          name: in the certificate, where it is not the kit's.
        """
        from cryptography.x509 import ExtendedKeyUsage
        from cryptography.x509.oid import ExtendedKeyUsageOID

        lighter = _lighter()
        cloud = kit.name == wire.CLOUD
        hosts: dict[str, Any] = {}
        if cloud:
            hosts = {"server_default_host": kit.host,
                     "server_additional_hosts": ["localhost"] if is_loopback(kit.host) else []}
        usage = ExtendedKeyUsageOID.SERVER_AUTH if cloud else ExtendedKeyUsageOID.CLIENT_AUTH
        key, public = lighter.generate_keys()
        certificate = lighter.generate_cert(
            subject=lighter.Identity(name or (SERVER if cloud else kit.name)),
            issuer=self._identity, signing_pri_key=self._key, subject_pub_key=public,
            valid_days=self._days, extra_extensions=[(ExtendedKeyUsage([usage]), False)], **hosts)
        kit.root.write_bytes(lighter.serialize_cert(self._root))
        kit.certificate.write_bytes(lighter.serialize_cert(certificate))
        _write_secret(kit.key, lighter.serialize_pri_key(key))


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    return host == "localhost" or _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _lighter() -> Any:
    """NVFlare's provisioning tools."""
    nvflare_needed.check()
    from nvflare.lighter import utils

    return utils


def _write_secret(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
