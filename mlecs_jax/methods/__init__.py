"""Learning methods, one file each; ``config.method.name`` picks one."""

from __future__ import annotations

from collections.abc import Callable

from mlecs_jax.errors import UserError
from mlecs_jax.methods import ml_ecs
from mlecs_jax.methods.method import Method
from mlecs_jax.setting import Setting

METHODS: dict[str, Callable[[Setting], Method]] = {"ml_ecs": ml_ecs.build}


def build(setting: Setting) -> Method:
    """The method named by the configuration.

    Raises:
      UserError: an unknown name.
    """
    name = setting.config.method.name
    if name not in METHODS:
        raise UserError(f"method.name is '{name}'; use {', '.join(METHODS)}")
    return METHODS[name](setting)
