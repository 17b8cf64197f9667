"""``python -m mlecs_jax.deploy COMMAND``: a real network between a cloud and devices."""

from __future__ import annotations

import importlib
import sys

from mlecs_jax.errors import UserError, exit_code

USAGE = """usage: python -m mlecs_jax.deploy COMMAND …

  local      a cloud and devices on this machine, one command
  provision  certificates, session and data, one folder per machine
  cloud      the cloud of a deployment
  edge       one device
  status     what a deployment is doing
  drill      what goes wrong, and what it costs, in one process
  outages    the same with real processes that die and hang

COMMAND --help says more."""

COMMANDS = {"local": ("local", "main"), "provision": ("provision", "main"),
            "cloud": ("nodes", "cloud_main"), "edge": ("nodes", "edge_main"),
            "status": ("status", "main"), "drill": ("drill", "main"),
            "outages": ("outages", "main")}


def main(argv: list[str]) -> int:
    """Runs a command; returns the exit code."""
    if len(argv) < 2 or argv[1] in ("-h", "--help"):
        print(USAGE)
        return 0 if len(argv) > 1 else 2
    if argv[1] not in COMMANDS:
        raise UserError(f"unknown command '{argv[1]}'; use {', '.join(COMMANDS)}")
    module, function = COMMANDS[argv[1]]
    command = getattr(importlib.import_module(f"mlecs_jax.deploy.{module}"), function)
    return command(argv[1:])


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv),
                       "the same command resumes from the last complete round"))
