"""The methods of a comparison, in the order tables show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlecs_jax.errors import UserError

OURS = ("ml_ecs", "ml_ecs_plus")
PUBLISHED = ("ml_ecs", "standalone", "multi_fedavg", "co_plms", "fedilora", "fedmllm")
CONTROLS = ("localpub", "localpub_mixed", "private_only", "fedavg_lora", "centralized")
ALL = ("ml_ecs", "ml_ecs_plus", *PUBLISHED[1:], *CONTROLS)

NOTES = {
    "ml_ecs_plus": "our own variant",
    "co_plms": "an approximation: we had no equations of it, see docs/baselines.md",
    "fedmllm": "its server's default rate, at which little moves",
    "localpub": "ML-ECS's stages, labelled public data, no communication",
    "localpub_mixed": "ML-ECS+'s schedule and the labelled public data, no communication",
    "private_only": "no public data",
    "centralized": "all data pooled at one place",
}

UNREAD = {
    "partition.public_labels": ("standalone", "multi_fedavg", "fedmllm", "fedilora", "localpub",
                                "localpub_mixed", "private_only", "fedavg_lora", "centralized"),
    "partition.server_labelled": ("multi_fedavg", "fedmllm", "fedilora", "private_only",
                                  "fedavg_lora")}
"""Options of the public data that some methods do not read: labels on devices, where devices see
private data alone or are given the server's; labels at all, where nobody sees public data."""


def is_own(name: str) -> bool:
    """A method of the user's: ``path/to/file.py`` or ``package.module:function``."""
    return ":" in name or name.endswith(".py")


def chosen(
    names: tuple[str, ...] | None, usual: tuple[str, ...] = ALL
) -> tuple[str, ...]:
    """The methods asked for, or the ``usual`` ones.

    Raises:
      UserError: an unknown one, or a user's own (``path/to/file.py``) that cannot be read.
    """
    for name in names or ():
        if name in ALL:
            continue
        if not is_own(name):
            raise UserError(f"unknown method '{name}'; use {', '.join(ALL)}, or a file or module "
                            "of your own")
        from mlecs_jax import methods  # imports jax: for a user's own alone

        methods.find(name)
    return names or usual


def compared(methods: Sequence[str]) -> list[str]:
    """Those that tables compare with every other one: ML-ECS, ML-ECS+ and a user's own."""
    return [*(m for m in OURS if m in methods), *(m for m in methods if m not in ALL)]


def read_of(method: str, options: Mapping[str, Any], captions: bool) -> dict[str, Any]:
    """Those of some options of the public data that a method's numbers depend on.

    Args:
      captions: the task is captioning: tokenizer and pretrained backbones then read the captions
        of labelled public data, whatever the method does.
    """
    return {name: value for name, value in options.items()
            if method not in UNREAD.get(name, ())
            or captions and name == "partition.server_labelled"}
