"""Downloads that can be interrupted and gone on with."""

from __future__ import annotations

import dataclasses
import http.client
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from mlecs_jax.errors import UserError

TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file on a server; an ``optional`` one may be absent there."""

    name: str
    optional: bool = False


def download_files(
    base_url: str, remotes: Sequence[Remote], folder: Path, advance: Callable[[str], None]
) -> int:
    """Downloads files into ``folder``, keeping those that are there already.

    A file arrives as ``<name>.part`` and is renamed when complete; a ``.part`` left behind by an
    interruption is gone on with where the server allows it.

    Args:
      base_url: URL the names are relative to.
      remotes: files to fetch.
      folder: where to put them; made if absent.
      advance: called with the name of each file when it is done.

    Returns:
      The number of files fetched now.

    Raises:
      UserError: a file that is not optional is absent, the server cannot be reached, a transfer
        broke off, or ``folder`` cannot be written.
    """
    fetched = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for remote in remotes:
            if not (folder / remote.name).exists():
                url = urllib.parse.urljoin(base_url.rstrip("/") + "/", remote.name)
                fetched += _fetch(url, folder / remote.name, optional=remote.optional)
            advance(remote.name)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error}); name another folder with "
                        "--source") from error
    return fetched


def _fetch(url: str, target: Path, *, optional: bool) -> bool:
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
            length = response.headers.get("Content-Length")
            total = None if length is None else int(length) + (have if resumed else 0)
            with part.open("ab" if resumed else "wb") as file:
                shutil.copyfileobj(response, file)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            # What is there is not a beginning of the server's file (or is all of it): start over.
            part.unlink()
            return _fetch(url, target, optional=optional)
        if error.code == http.HTTPStatus.NOT_FOUND and optional:
            return False
        raise UserError(f"{url}: the server answers {error.code} {error.reason}; check the "
                        "address, or get the files by hand and pass --source") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as e:
        raise UserError(f"{url}: {getattr(e, 'reason', e)}; check the connection and run the same "
                        "command again, or get the files by hand and pass --source") from e
    size = part.stat().st_size
    if total is not None and size != total:
        raise UserError(f"{url}: the transfer broke off at {size} of {total} bytes; run the same "
                        "command again to go on from here")
    os.replace(part, target)
    return True
