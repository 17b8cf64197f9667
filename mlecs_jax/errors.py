"""The one exception a user is meant to see, and how every command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

BAD_INPUT, INTERRUPTED = 2, 130


class UserError(Exception):
    """Bad input: the message is one line that names what is wrong and what to do.

    Entry points print it without a traceback and exit with code 2.
    """


def exit_code(command: Callable[[], int | None], interrupted: str = "") -> int:
    """Runs a command; returns its exit code, 2 after a :class:`UserError`, 130 after Ctrl-C.

    Args:
      interrupted: what the same command would do next, said after Ctrl-C.
    """
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("; ".join(filter(None, ("stopped", interrupted))), file=sys.stderr)
        return INTERRUPTED
