"""Command lines: ``--config=NAME[:VARIANT]``, typed overrides, and plain options beside them."""

from __future__ import annotations

import difflib
import importlib.util
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from absl import flags
from ml_collections import config_flags

import mlecs_jax.configs as configs
from mlecs_jax.errors import UserError


def parse(
    argv: list[str], usage: str, options: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration, overrides applied, as nested plain values; and the options' values.

    Args:
      argv: the command line, program name first.
      usage: shown by ``--help``.
      options: names of other string flags and their defaults.

    Raises:
      UserError: an unknown config, key or flag (with the nearest known one), or a wrong type.
      SystemExit: after ``--help``.
    """
    if {"-h", "--help"} & set(argv):
        print(usage)
        raise SystemExit(0)
    argv = [_resolve(argument) for argument in _joined(argv)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    for name, default in options.items():
        flags.DEFINE_string(name, default, "", flag_values=values)
    try:
        _check_overrides(argv)
        rest = values(argv)
    except UserError:
        raise
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split()).strip("\"'")) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument '{rest[1]}'; write overrides as --config.KEY=VALUE")
    if values.config is None:
        raise UserError(f"no config given; use --config=NAME with one of {', '.join(_shipped())}")
    # A string flag whose default is a string always holds one.
    return values.config.to_dict(), {name: cast(str, values[name].value) for name in options}


def _joined(argv: list[str]) -> list[str]:
    """``--config NAME`` as ``--config=NAME``, which the rest reads."""
    if "--config" not in argv[:-1]:
        return argv
    at = argv.index("--config")
    return [*argv[:at], f"--config={argv[at + 1]}", *argv[at + 2:]]


def _resolve(argument: str) -> str:
    """``--config=ur_fall:smoke`` as the path of the shipped file, the variant kept."""
    for prefix in ("--config=", "-config="):
        if argument.startswith(prefix):
            name, colon, variant = argument.removeprefix(prefix).partition(":")
            if name.endswith(".py"):
                if not Path(name).is_file():
                    raise UserError(f"config file {name} does not exist")
                return argument
            if name not in _shipped():
                raise UserError(f"unknown config '{name}'; use {', '.join(_shipped())}, or the "
                                "path of a .py file with get_config()")
            return f"--config={_folder() / name}.py{colon}{variant}"
    return argument


def _check_overrides(argv: list[str]) -> None:
    """Raises UserError for an override of a value the config does not have, naming the nearest."""
    chosen = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    if not chosen:
        return
    path, _, variant = chosen[-1].partition(":")
    config = runpy.run_path(path)["get_config"](*filter(None, [variant]))
    known = list(_leaves(config.to_dict()))
    for argument in argv:
        name = argument.removeprefix("--config.").partition("=")[0]
        if argument.startswith("--config.") and name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "known: " + ", ".join(known)
            raise UserError(f"unknown config key '{name}'; {hint}")


def _leaves(tree: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield from (_leaves(value, f"{where}{name}.") if isinstance(value, Mapping)
                    else [where + name])


def _folder() -> Path:
    spec = importlib.util.find_spec(configs.__name__)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _shipped() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.py") if path.stem != "__init__")
