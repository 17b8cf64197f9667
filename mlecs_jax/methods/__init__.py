"""Learning methods, one file each; ``config.method.name`` picks one."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mlecs_jax.config import is_off
from mlecs_jax.errors import UserError
from mlecs_jax.methods import (
    centralized,
    co_plms,
    fedavg_lora,
    fedilora,
    fedmllm,
    ml_ecs,
    ml_ecs_plus,
    multi_fedavg,
    standalone,
)
from mlecs_jax.methods.method import UPLOADS, Method
from mlecs_jax.setting import Setting

METHODS: dict[str, Callable[[Setting], Method]] = {
    "ml_ecs": ml_ecs.build,
    "ml_ecs_plus": ml_ecs_plus.build,
    "standalone": standalone.standalone,
    "multi_fedavg": multi_fedavg.build,
    "fedmllm": fedmllm.build,
    "fedilora": fedilora.build,
    "co_plms": co_plms.build,
    "localpub": standalone.localpub,
    "localpub_mixed": standalone.localpub_mixed,
    "private_only": standalone.private_only,
    "fedavg_lora": fedavg_lora.build,
    "centralized": centralized.build,
}

NEUTRAL = {"channel": "channel.uplink=none", "aggregation": "aggregation.rule=mean and clip=0",
           "privacy": "privacy.clip=0"}
"""What leaves uploads as they are."""


def build(setting: Setting) -> Method:
    """The method named by the configuration.

    Raises:
      UserError: an unknown name, a method of the user's that cannot be read or is none, or one
        whose uploads are not compressed, made private or aggregated as asked.
    """
    config = setting.config
    name = config.method.name
    method = find(name)(setting)
    if not isinstance(method, Method):
        raise UserError(f"{name} returned {type(method).__name__} and no Method; see "
                        "docs/add_a_method.md")
    asked = {"channel": config.channel.uplink != "none",
             "aggregation": not is_off("aggregation", _plain(config.aggregation)),
             "privacy": not is_off("privacy", _plain(config.privacy))}
    for group in UPLOADS:
        if asked[group] and group not in method.honours:
            what = f"channel.uplink={config.channel.uplink}" if group == "channel" else group
            raise UserError(f"{what} is not for {name}, whose uploads do not go by it; use it with "
                            f"ml_ecs, or {NEUTRAL[group]}")
    return method


def _plain(group: Any) -> dict[str, Any] | None:
    return None if group is None else dataclasses.asdict(group)


def find(name: str) -> Callable[[Setting], Method]:
    """The builder of a method.

    Args:
      name: one of :data:`METHODS`; a user's ``path/to/file.py``, which defines ``build``; or
        ``package.module:function`` (or ``path/to/file.py:function``).

    Raises:
      UserError: nothing of that name, a file that is no Python, or one without the function.
    """
    if name in METHODS:
        return METHODS[name]
    source, _, function = name.partition(":")
    if not source.endswith(".py") and not function:
        raise UserError(f"method.name is '{name}'; use {', '.join(METHODS)}, or your own "
                        "path/to/file.py or package.module:function")
    try:
        module, function = _load(source), function or "build"
    except SyntaxError as error:  # of it or of what it imports
        raise UserError(f"method.name: {error.filename} is no Python file: {error.msg}, line "
                        f"{error.lineno}") from None
    builder = getattr(module, function, None)
    if not callable(builder):
        raise UserError(f"{source} has no function '{function}'; define {function}(setting) that "
                        "returns a Method")
    return cast(Callable[[Setting], Method], builder)


def _load(source: str) -> types.ModuleType:
    """A module by its dotted name or its file."""
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise UserError(f"method.name: there is no module '{error.name}'; give the path of a "
                            ".py file, or install it") from None
    path = Path(source)
    if not path.is_file():
        raise UserError(f"method.name: there is no file {source}")
    spec = importlib.util.spec_from_file_location(f"user_method_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # of any .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
