"""``python -m mlecs_jax.repro SYSTEM ARTEFACT``: a table or figure of a paper."""

from __future__ import annotations

import sys

from mlecs_jax.errors import exit_code

if __name__ == "__main__":
    from mlecs_jax.repro import command

    sys.exit(exit_code(lambda: command.main(sys.argv[1:]),
                       "the same command goes on where it was"))
