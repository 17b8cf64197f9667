"""``python -m mlecs_jax.repro SYSTEM ARTEFACT``: a table or figure of a paper."""

from __future__ import annotations

import sys

from mlecs_jax.errors import UserError

if __name__ == "__main__":
    from mlecs_jax.repro import command

    try:
        sys.exit(command.main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
