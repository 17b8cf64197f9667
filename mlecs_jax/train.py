"""Gradient descent as one compiled scan: the inner loop of every stage of every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Tree = Any
LossFn = Callable[[Tree, Tree, PRNGKeyArray], tuple[Float[Array, ""], dict[str, Array]]]


FLAT_BELOW = 2**22  # scalars


def optimiser(clip: float = 1.0) -> optax.GradientTransformation:
    """Global-norm clipping, then Adam's direction; the caller scales it by its rates.

    Works on one flat vector: a tree of many small leaves would cost more to compile and dispatch
    than to compute. Trees of :data:`FLAT_BELOW` scalars and more keep their leaves: joining them
    would cost memory, and undo the sharding of each.
    """
    rule = optax.chain(optax.clip_by_global_norm(clip), optax.scale_by_adam())
    flat = optax.flatten(rule)

    def of(tree: Tree) -> optax.GradientTransformation:
        return flat if sum(x.size for x in jax.tree.leaves(tree)) < FLAT_BELOW else rule

    return optax.GradientTransformation(
        lambda params: of(params).init(params),
        lambda updates, state, params=None: of(updates).update(updates, state, params))


def per_learner(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same rule for each top-level key of a parameter dict, with its own norm and moments."""

    def init(params):
        return {name: transform.init(tree) for name, tree in params.items()}

    def update(updates, state, params=None):
        pairs = {name: transform.update(tree, state[name], params and params[name])
                 for name, tree in updates.items()}
        return ({name: pair[0] for name, pair in pairs.items()},
                {name: pair[1] for name, pair in pairs.items()})

    return optax.GradientTransformation(init, update)


def fit(
    loss_fn: LossFn,
    params: Tree,
    batch_at: Callable[[Int[Array, ""]], Tree],
    steps: int | Int[Array, ""],
    rates: Tree,
    key: PRNGKeyArray,
    *,
    transform: optax.GradientTransformation,
) -> tuple[Tree, dict[str, Float[Array, ""]]]:
    """A stage of training: ``steps`` steps with a fresh optimiser, as one compiled loop.

    Args:
      loss_fn: ``(params, batch, key) → (loss, {name: scalar})``.
      batch_at: the batch of a step, by its number.
      steps: how many, at least 1; traced, as are the rates, so that stages of any length, learning
        rate schedules and ablations reuse one compiled program.
      rates: learning rate of each parameter group, a prefix of the tree ``params``; 0 freezes a
        group, and its gradient is dropped *before* the global norm is taken.
      key: step i uses ``fold_in(key, i)``.

    Returns:
      New parameters, and each diagnostic averaged over the steps.
    """
    rates = jax.tree.broadcast(rates, params)

    def step(i, carry):
        params, state, sums = carry
        grads, diagnostics = jax.grad(loss_fn, has_aux=True)(
            params, batch_at(i), jax.random.fold_in(key, i))
        grads = jax.tree.map(lambda g, rate: jnp.where(rate > 0, g, 0.0), grads, rates)
        direction, state = transform.update(grads, state)
        params = jax.tree.map(lambda p, u, rate: p - rate * u, params, direction, rates)
        return params, state, jax.tree.map(jnp.add, sums, diagnostics)

    names = jax.eval_shape(loss_fn, params, jax.eval_shape(batch_at, 0), key)[1]
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), names)
    params, _, sums = jax.lax.fori_loop(0, steps, step, (params, transform.init(params), sums))
    return params, jax.tree.map(lambda x: x / steps, sums)


@struct.dataclass
class Order:
    """A random order of some of a node's rows.

    Attributes:
      index: int32 ``[n]``, the chosen row numbers first.
      count: int32, how many are chosen.
    """

    index: Any
    count: Any


def shuffle(key: PRNGKeyArray, chosen: Bool[Array, " n"]) -> Order:
    """The chosen rows in random order."""
    index = jnp.argsort(jax.random.uniform(key, chosen.shape) + ~chosen)
    return Order(index, jnp.sum(chosen))


def batch_rows(order: Order, step: Int[Array, ""], batch_size: int) -> Int[Array, " B"]:
    """Row numbers of a step: one pass over the chosen rows, begun again when it ends."""
    position = step * batch_size + jnp.arange(batch_size)
    return order.index[position % jnp.maximum(order.count, 1)]


def decayed(rate: float, final_fraction: float, round_index: int, rounds: int) -> float:
    """Learning rate of a round: linear from ``rate`` to ``rate · final_fraction`` at the last."""
    progress = round_index / max(rounds - 1, 1)
    return rate * (1.0 - (1.0 - final_fraction) * progress)
