"""Learning methods, one file each; ``config.method.name`` picks one."""

from __future__ import annotations

from collections.abc import Callable

from mlecs_jax.errors import UserError
from mlecs_jax.methods import fedavg_lora, ml_ecs, ml_ecs_plus, multi_fedavg, standalone
from mlecs_jax.methods.method import Method
from mlecs_jax.setting import Setting

METHODS: dict[str, Callable[[Setting], Method]] = {
    "ml_ecs": ml_ecs.build,
    "ml_ecs_plus": ml_ecs_plus.build,
    "standalone": standalone.standalone,
    "multi_fedavg": multi_fedavg.build,
    "localpub": standalone.localpub,
    "private_only": standalone.private_only,
    "fedavg_lora": fedavg_lora.build,
}


def build(setting: Setting) -> Method:
    """The method named by the configuration.

    Raises:
      UserError: an unknown name.
    """
    name = setting.config.method.name
    if name not in METHODS:
        raise UserError(f"method.name is '{name}'; use {', '.join(METHODS)}")
    return METHODS[name](setting)
