"""Differential privacy of a device's uploads: clip the difference, add noise, tell what it costs.

A device and the cloud both know what was broadcast last. The difference of the device's LoRA to it
is shortened to an L2 length C and every number of it gets Gaussian noise of deviation z·C before
it is encoded or sent, on the device. So nobody has to be trusted, and what is bounded is what any
reader of the messages can learn about **all of the device's data at once**. Encodings and their
error feedback read the noisy difference alone, which costs no further privacy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlecs_jax.config import PrivacyConfig
from mlecs_jax.errors import UserError

Tree = Any


def mechanism(options: PrivacyConfig | None) -> Callable[[Tree, Tree, jax.Array], Tree] | None:
    """``(trees [C, …], known […], keys [C]) → trees``, clipped and noisy; None where it is off."""
    if options is None or not options.clip:
        return None
    one = functools.partial(privatised, clip=options.clip, noise=options.noise)
    return jax.jit(jax.vmap(one, in_axes=(0, None, 0)))


def privatised(tree: Tree, known: Tree, key: jax.Array, *, clip: float, noise: float) -> Tree:
    """One device's tree with a clipped and noisy difference to ``known``.

    Args:
      key: must be secret where the noise is to protect anything.
      clip: C, the longest difference, L2 over all leaves.
      noise: z; every number gets N(0, (z·C)²).
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(
        lambda own, k: own.astype(jnp.float32) - k, tree, known))
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves))
    factor = jnp.minimum(1.0, clip / jnp.maximum(length, jnp.finfo(jnp.float32).tiny))
    drawn = [noise * clip * jax.random.normal(k, leaf.shape, jnp.float32)
             for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)]
    noisy = jax.tree.unflatten(structure, [leaf * factor + n for leaf, n in zip(
        leaves, drawn, strict=True)])
    return jax.tree.map(lambda k, difference: k + difference, known, noisy)


def longest(options: PrivacyConfig | None, numbers: int) -> float:
    """How long, L2, a privatised difference of so many numbers is at most, but for luck."""
    if options is None or not options.clip:
        return 0.0
    return options.clip * (1 + options.noise * math.sqrt(numbers))


def epsilon(options: PrivacyConfig, uploads: int) -> dict[str, float]:
    """ε at ``options.delta`` after some uploads of one device, by a library's accountant.

    Args:
      uploads: how many messages of the device have been sent, at least 1.

    Returns:
      ``left_out``: neighbours differ in whether the device's difference is sent or zero, of
      sensitivity C; ``replaced``: in which data the device has, of sensitivity 2·C.

    Raises:
      UserError: the accountant is not installed.
    """
    dp_accounting, accountant = _accountant()
    found = {}
    for relation, sensitivity in (("left_out", 1.0), ("replaced", 2.0)):
        # Gaussian mechanisms of one deviation compose to one of deviation z/√n, exactly.
        deviation = options.noise / sensitivity / math.sqrt(uploads)
        event = dp_accounting.GaussianDpEvent(deviation)
        # Losses grow with 1/σ², and with them the table of the accountant, unless its steps do.
        steps = 1e-4 * max(1.0, 1 / (2 * deviation**2))
        spent = accountant(value_discretization_interval=steps).compose(event)
        found[relation] = float(spent.get_epsilon(options.delta))
    return found


def _accountant() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise UserError("telling epsilon needs an accountant; pip install dp-accounting") from None
    return dp_accounting, PLDAccountant


def check(options: PrivacyConfig | None) -> None:
    """Raises UserError where noise is asked for and nobody could tell what it is worth."""
    if options is not None and options.clip:
        _accountant()


def told(options: PrivacyConfig, uploads: int) -> dict[str, Any]:
    """:func:`epsilon`, the number of uploads, and :func:`statement`: a summary's part."""
    found = epsilon(options, uploads)
    return found | {"uploads": uploads, "statement": _said(options, uploads, found)}


def statement(options: PrivacyConfig, uploads: int) -> str:
    """One line for people: what the uploads of a device reveal at most."""
    return _said(options, uploads, epsilon(options, uploads))


def _said(options: PrivacyConfig, uploads: int, found: dict[str, float]) -> str:
    return (f"uploads of a device: ({found['left_out']:.3g}, {options.delta:g})-differentially "
            f"private for the whole device left out, ε = {found['replaced']:.3g} for its data "
            f"replaced, after {uploads} uploads (clip {options.clip:g}, noise {options.noise:g} × "
            "clip); losses and scores that it reports are outside of this")
