"""Command lines: ``--config=NAME[:VARIANT]``, typed overrides, and plain options beside them."""

from __future__ import annotations

import difflib
import importlib.util
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

import mlecs_jax.configs as configs
from mlecs_jax.errors import UserError

ML_ECS, MEGA_CE2, TEXT = "runs of ML-ECS", "runs of Mega-CE²", "python -m mlecs_jax.pretrain"
"""What a configuration is for."""
RUNS = (ML_ECS, MEGA_CE2)
MEGA = "mega_ce2"
"""The one method of Mega-CE²; all others are of ML-ECS's configurations."""

_MARKS = {"amt": ML_ECS, "clock": MEGA_CE2, "tokenizer": TEXT}  # groups that no other kind has
_TYPES: Mapping[type, tuple[flags.ArgumentParser[Any], str]] = {
    bool: (flags.BooleanParser(), "True or False"), int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number")}
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def parse(
    argv: list[str], usage: str, options: Mapping[str, str], kinds: Sequence[str] = RUNS
) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration, overrides applied, as nested plain values; and the options' values.

    Args:
      argv: the command line, program name first.
      usage: shown by ``--help``.
      options: names of other string flags and their defaults.
      kinds: what the command takes configurations for. Those of :data:`RUNS` name a method of
        their system.

    Raises:
      UserError: an unknown config, key or flag (with the nearest known one), a wrong type, or a
        config or method of another kind.
      SystemExit: after ``--help``.
    """
    if {"-h", "--help"} & set(argv):
        print(usage)
        raise SystemExit(0)
    chosen, argv = _chosen(argv)
    config = _load(chosen, kinds) if chosen else ConfigDict()
    known = dict(_leaves(config.to_dict()))
    if chosen:
        _check_overrides(argv, known)
    else:
        argv = [word for word in argv if not _OVERRIDE.fullmatch(word)]
    values = flags.FlagValues()
    for name, default in options.items():
        flags.DEFINE_string(name, default, "", flag_values=values)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname, options, known)) from None
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise UserError(_line(error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument '{rest[1]}'; write overrides as --config.KEY=VALUE")
    if not chosen:
        raise UserError(f"no config given; use --config=NAME with one of {_listed(kinds)}")
    found = values.config.to_dict()
    _check_method(found, chosen, kinds)
    # A string flag whose default is a string always holds one.
    return found, {name: cast(str, values[name].value) for name in options}


def _chosen(argv: list[str]) -> tuple[str, list[str]]:
    """What the last ``--config=NAME`` or ``--config NAME`` says, and the other words."""
    chosen, rest, words = "", [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config"):
            chosen = value if equals else next(words, "")
        else:
            rest.append(word)
    return chosen, rest


def _load(chosen: str, kinds: Sequence[str]) -> ConfigDict:
    """The configuration of ``NAME[:VARIANT]``, which is of one of the kinds.

    Raises:
      UserError: there is none, a file that does not make one, or one of another kind.
    """
    name, _, variant = chosen.partition(":")
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"config file {name} does not exist")
    elif name in _shipped():
        path = _shipped()[name]
    else:
        raise UserError(f"unknown config '{name}'; use {_listed(kinds)}, or the path of a .py "
                        "file with get_config()")
    if ":" in variant:
        raise UserError(f"--config={chosen} names two variants; give one")
    config = _made(name, path, variant)
    kind = _kind(config)
    if kind is not None and kind not in kinds:
        raise UserError(f"{_called(name)} is for {kind}; use {_listed(kinds)}")
    if set(kinds) <= set(RUNS) and not (isinstance(method := config.get("method"), ConfigDict)
                                        and isinstance(method.get("name"), str)):
        raise UserError(f"{_called(name)} has no method.name; add it, or use {_listed(kinds)}")
    return config


def _made(name: str, path: Path, variant: str = "") -> ConfigDict:
    """What a file's ``get_config()`` returns.

    Args:
      name: for messages.

    Raises:
      UserError: there is no such function, or it returns something else or fails.
    """
    what = _called(name)
    try:
        make = runpy.run_path(str(path)).get("get_config")
        config = make(*filter(None, [variant])) if callable(make) else None
    except ValueError as error:  # of an unknown variant
        raise UserError(f"{what}: {_line(error)}") from None
    except SyntaxError as error:  # of it or of what it imports
        raise UserError(f"{what}: {error.filename} is no Python file: {error.msg}, line "
                        f"{error.lineno}") from None
    except Exception as error:  # whatever a user's file does
        raise UserError(f"{what} fails: {type(error).__name__}: {_line(error)}") from None
    if not callable(make):
        raise UserError(f"{what} has no get_config(); define one that returns a ConfigDict, as "
                        f"{_shipped()['ur_fall']} does")
    if not isinstance(config, ConfigDict):
        raise UserError(f"{what}: get_config() returns {type(config).__name__}; return an "
                        "ml_collections.ConfigDict")
    return config


def _check_overrides(argv: list[str], known: Mapping[str, Any]) -> None:
    """Raises UserError for an override of a value the config does not have, naming the nearest, or
    by one of another type."""
    for match in filter(None, map(_OVERRIDE.fullmatch, argv)):
        _, name, text = match.groups()
        if name not in known:
            near = _meant(name, known) or _near(name, known)
            hint = f"did you mean {' or '.join(near)}?" if near else "known: " + ", ".join(known)
            raise UserError(f"unknown config key '{name}'; {hint}")
        if text is None or type(known[name]) not in _TYPES:
            continue
        parser, wanted = _TYPES[type(known[name])]
        try:
            parser.parse(text)
        except (TypeError, ValueError):
            raise UserError(f"{name} is '{text}'; give {wanted}") from None


def _check_method(values: Mapping[str, Any], chosen: str, kinds: Sequence[str]) -> None:
    """Raises UserError for a method of the other system than the configuration's."""
    kind = _kind(values)
    if kind not in RUNS:
        return
    name = values["method"]["name"]
    if (name == MEGA) == (kind == MEGA_CE2):
        return
    others = [k for k in kinds if k != kind]
    instead = f", or use another config: {_listed(others)}" if others else ""
    raise UserError(f"method.name is '{name}', and {_called(chosen.partition(':')[0])} is for "
                    f"{kind}; leave it out{instead}")


def _unknown_flag(name: str, options: Mapping[str, str], known: Mapping[str, Any]) -> str:
    """What is said of a flag that there is not: which are like it, or which there are."""
    near = [f"config.{key}" for key in _meant(name, known)] or difflib.get_close_matches(
        name, ["config", *options, *(f"config.{key}" for key in known)], 1)
    if near:
        return f"unknown option '{name}'; did you mean {' or '.join(f'--{n}' for n in near)}?"
    return (f"unknown option '{name}'; there are "
            f"{', '.join(f'--{n}' for n in ('config', 'config.KEY', *options))}")


def _meant(name: str, known: Mapping[str, Any]) -> list[str]:
    """Keys that a name without its groups, or a group alone, may stand for; the shortest first."""
    return sorted((key for key in known if f".{key}".endswith(f".{name}") or key == f"{name}.name"),
                  key=len)


def _near(name: str, known: Mapping[str, Any]) -> list[str]:
    """Keys like a name, whole or without their groups."""
    found = difflib.get_close_matches(name, known, 3)
    last = difflib.get_close_matches(name, sorted({k.rpartition(".")[2] for k in known}), 1)
    return found or (_meant(last[0], known) if last else [])


def _kind(values: Mapping[str, Any] | ConfigDict) -> str | None:
    """What a configuration is for; None where its groups do not say."""
    return next((kind for mark, kind in _MARKS.items() if mark in values), None)


def _leaves(tree: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Values of all depths by dotted name."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{name}.")
        else:
            yield where + name, value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _called(name: str) -> str:
    return f"config file {name}" if name.endswith(".py") else f"config '{name}'"


def _listed(kinds: Sequence[str]) -> str:
    """Shipped configs of some kinds, for messages."""
    names = [name for name, path in _shipped().items() if _kind(_made(name, path)) in kinds]
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _shipped() -> dict[str, Path]:
    """Files of the shipped configs by name."""
    spec = importlib.util.find_spec(configs.__name__)
    assert spec is not None and spec.origin is not None
    return {path.stem: path for path in sorted(Path(spec.origin).parent.glob("*.py"))
            if path.stem != "__init__"}
