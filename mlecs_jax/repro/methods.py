"""The methods of a comparison, in the order tables show them."""

from __future__ import annotations

from mlecs_jax.errors import UserError

OURS = ("ml_ecs", "ml_ecs_plus")
PUBLISHED = ("ml_ecs", "standalone", "multi_fedavg", "co_plms", "fedilora", "fedmllm")
CONTROLS = ("localpub", "localpub_mixed", "private_only", "fedavg_lora", "centralized")
ALL = ("ml_ecs", "ml_ecs_plus", *PUBLISHED[1:], *CONTROLS)

NOTES = {
    "ml_ecs_plus": "our own variant",
    "co_plms": "an approximation: its equations are not published in full",
    "localpub": "the same stages and public data, no communication",
    "localpub_mixed": "ML-ECS+'s schedule and the labelled public data, no communication",
    "private_only": "no public data",
    "centralized": "all data pooled: a ceiling",
}


def chosen(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The methods asked for, or all that exist.

    Raises:
      UserError: an unknown one; a user's own (``path/to/file.py``) is let through.
    """
    for name in names or ():
        if name not in ALL and ":" not in name and not name.endswith(".py"):
            raise UserError(f"unknown method '{name}'; use {', '.join(ALL)}, or a file or module "
                            "of your own")
    return names or ALL
