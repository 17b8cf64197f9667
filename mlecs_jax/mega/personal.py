"""What an edge tunes beside a frozen w_g and never sends, and predictions on held-out segments.

Three things can be tuned: an adapter of every edge's own (the method), one adapter on the segments
of all edges, and a constant that is added to an edge's predictions. The latter two are controls:
they say how much of a gain is further training, and how much a shift towards an edge's sentiments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import train
from mlecs_jax.clients import for_each_client
from mlecs_jax.errors import UserError
from mlecs_jax.mega.config import AdapterConfig
from mlecs_jax.mega.federation import Padded, pad
from mlecs_jax.mega.setting import MegaSetting
from mlecs_jax.methods.method import Predictions
from mlecs_jax.models import adapters as adapter_blocks
from mlecs_jax.models.adapters import Adapters
from mlecs_jax.models.crossmodal import CrossModalConfig

Params = Any
Personalise = Callable[[Params, jax.Array], tuple[Adapters, Predictions]]
TUNE, ADAPTERS = 1, 2  # stages, folded into keys
PREDICTED_TOGETHER = 128  # segments


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Who tunes on what.

    Attributes:
      edges: numbers of the edges that are served.
      nodes: numbers that keys are drawn by: the edges, or 0 where one tunes for all.
      train: training rows of each node, a row of the table by the node's number.
      val: validation rows of each node, in the order of ``nodes``.
      owner: for every edge that is served the place of its node in ``nodes``.
    """

    edges: np.ndarray
    nodes: np.ndarray
    train: Padded
    val: list[np.ndarray]
    owner: np.ndarray


def tuned(setting: MegaSetting, edges: Sequence[int] | None) -> Tuned:
    """Who tunes under ``adapter.scope``.

    Raises:
      UserError: one adapter for all, and not all edges are here.
    """
    federation = setting.federation
    numbers = (np.arange(setting.config.partition.edges) if edges is None else np.asarray(edges))
    if setting.config.adapter.scope == "pooled":
        if edges is not None:
            raise UserError("adapter.scope is pooled, which tunes on the segments of all edges in "
                            "one place; use edge")
        return Tuned(numbers, np.zeros(1, int), pad([federation.private]),
                     [federation.split.val], np.zeros(len(numbers), int))
    val = [federation.val.rows[edge][federation.val.real[edge]] for edge in numbers]
    return Tuned(numbers, numbers, federation.edges, val, np.arange(len(numbers)))


def personaliser(
    setting: MegaSetting, predict: Predictor, edges: Sequence[int] | None = None
) -> Personalise:
    """``(w_g, key) → (θ of every edge, predictions)``; predictions besides hold ``history``, the
    mean validation error of who tunes after each epoch.

    Each node keeps the epoch with its lowest validation error; epoch 0 is untuned.

    Args:
      edges: whose; None all edges. What an edge gets does not depend on who else is there.

    Raises:
      UserError: see :func:`tuned`.
    """
    who = tuned(setting, edges)
    tune = (_biases if setting.config.adapter.kind == "bias" else _blocks)(setting, predict, who)

    def personalise(model: Params, key: jax.Array) -> tuple[Adapters, Predictions]:
        model = setting.topology.to_edge(model)
        best, history = tune(model, key)
        if len(who.nodes) != len(who.edges):
            best = jax.tree.map(lambda x: x[who.owner], best)
        return best, predict.own(model, best, who.edges) | {"history": history}

    return personalise


def untuned(options: AdapterConfig, shape: CrossModalConfig, key: jax.Array) -> Adapters:
    """θ of one edge before it is tuned."""
    if options.kind == "bias":
        return adapter_blocks.biases(np.float32(0))
    return adapter_blocks.init(key, shape.pairs(), shape.width, share=options.share,
                               output=options.kind == "output")


def _blocks(setting: MegaSetting, predict: Predictor, who: Tuned) -> Callable:
    """Adapters tuned on the nodes' training rows, epoch by epoch."""
    config, topology, nodes = setting.config, setting.topology, who.nodes
    options = config.adapter
    steps = -(-who.train.counts // options.batch_size)

    def tune_node(shared: Mapping[str, Any], adapters: Adapters, own: Mapping[str, Any]):
        def loss(adapters, batch, key):
            answer = setting.model.apply(shared["model"], batch, train=True, key=key,
                                         adapters=adapters)  # pyright: ignore[reportCallIssue]
            error = jnp.mean(jnp.abs(answer - batch.labels))
            return error, {"mae": error}

        return train.fit(
            loss, adapters, batches(shared["segments"], own, options.batch_size), own["steps"],
            shared["rate"], own["key"], transform=train.optimiser(config.train.clip))

    # One node cannot be shared out among the devices of a mesh.
    tune = (for_each_client if options.scope == "pooled" else setting.for_each_client)(tune_node)

    def tune_all(model: Params, key: jax.Array) -> tuple[Adapters, list[float]]:
        drawn = [untuned(options, setting.shape,
                         end_keys(key, np.array([ADAPTERS]), np.array([node]))[0])
                 for node in nodes]
        adapters = topology.to_edge(jax.tree.map(lambda *x: np.stack(x), *drawn))
        best, errors = adapters, predict.errors(model, adapters, who.val)
        history = [float(errors.mean())]
        shared = {"segments": setting.segments, "model": model,
                  "rate": np.float32(options.learning_rate)}
        for epoch in range(options.epochs):
            own = rows_of(who.train, nodes) | {
                "steps": steps[nodes].astype(np.int32),
                "key": end_keys(jax.random.fold_in(key, TUNE), np.full(len(nodes), epoch),
                                nodes)}
            adapters, _ = tune(shared, jax.tree.map(jnp.copy, adapters), topology.to_edge(own))
            found = predict.errors(model, adapters, who.val)
            best = _where(found < errors, adapters, best)
            errors = np.minimum(errors, found)
            history.append(float(found.mean()))
        return best, history

    return tune_all


def _biases(setting: MegaSetting, predict: Predictor, who: Tuned) -> Callable:
    """The median of each node's training residuals, which no rate or epoch could improve."""
    labels = setting.federation.data.labels

    def tune_all(model: Params, key: jax.Array) -> tuple[Adapters, list[float]]:
        del key
        rows = [who.train.rows[node][who.train.real[node]] for node in who.nodes]
        shifts = np.array([np.median(labels[own] - predict.on(model, None, own)) for own in rows],
                          np.float32)
        none, some = (adapter_blocks.biases(x) for x in (np.zeros_like(shifts), shifts))
        before, after = (predict.errors(model, x, who.val) for x in (none, some))
        best = adapter_blocks.biases(np.where(after < before, shifts, np.float32(0)))
        return (setting.topology.to_edge(best), [float(before.mean()), float(after.mean())])

    return tune_all


class Predictor:
    """Predictions on held-out segments: by one model for all, or by each edge's own."""

    def __init__(self, setting: MegaSetting):
        self._setting = setting
        split = setting.federation.split
        self._rows = np.concatenate([split.val, split.test])
        self._place = {int(row): i for i, row in enumerate(self._rows)}

        def predict(segments, model, adapters, rows):
            def chunk(rows):
                return setting.model.apply(
                    model, _take(segments, rows),
                    adapters=adapters)  # pyright: ignore[reportCallIssue]

            return jax.lax.map(chunk, rows).ravel()

        self._predict = jax.jit(predict)

    def all(self, model: Params) -> Predictions:
        """``{'val': [a], 'test': [b]}`` by one model, in the order of the split's rows."""
        return self._parts(self.on(model, None, self._rows))

    def own(self, model: Params, adapters: Adapters, edges: np.ndarray) -> Predictions:
        """The same, each segment by its edge's model and adapter; NaN where the edge is not among
        those whose adapters are given."""
        answers = np.full(len(self._rows), np.nan, np.float32)
        federation = self._setting.federation
        for held_out in (federation.val, federation.test):
            for i, edge in enumerate(edges):
                rows = held_out.rows[edge][held_out.real[edge]]
                own = jax.tree.map(lambda x, i=i: x[i], adapters)
                answers[[self._place[int(row)] for row in rows]] = self.on(model, own, rows)
        return self._parts(answers)

    def errors(
        self, model: Params, adapters: Adapters, rows: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Mean absolute error of each of some stacked adapters on rows of its own."""
        labels = self._setting.federation.data.labels
        return np.array([
            np.abs(self.on(model, jax.tree.map(lambda x, i=i: x[i], adapters), own)
                   - labels[own]).mean() for i, own in enumerate(rows)])

    def on(self, model: Params, adapters: Adapters | None, rows: np.ndarray) -> np.ndarray:
        """Predictions ``[a]`` on any rows, in chunks of one size, so that one program serves every
        set of rows of about a size."""
        chunks = 2 ** int(np.ceil(np.log2(-(-len(rows) // PREDICTED_TOGETHER))))
        padded = np.resize(rows, chunks * PREDICTED_TOGETHER).reshape(chunks, -1)
        answers = self._predict(self._setting.segments, model, adapters, padded)
        return self._setting.topology.host(answers)[:len(rows)]

    def _parts(self, answers: np.ndarray) -> Predictions:
        val = len(self._setting.federation.split.val)
        return {"val": answers[:val], "test": answers[val:]}


def rows_of(padded: Padded, nodes: np.ndarray) -> dict[str, np.ndarray]:
    """``rows`` and ``count`` of some nodes, stacked."""
    return {"rows": padded.rows[nodes], "count": padded.counts[nodes]}


def batches(segments: Any, own: Mapping[str, Any], batch_size: int) -> Callable[[Any], Any]:
    """The batch of a step, from the node's own rows in random order."""
    rows = own["rows"]
    order = train.shuffle(jax.random.fold_in(own["key"], 2**31 - 1),  # no step has this number
                          jnp.arange(rows.shape[0]) < own["count"])
    return lambda step: _take(segments, rows[train.batch_rows(order, step, batch_size)])


def end_keys(key: jax.Array, cycles: np.ndarray, nodes: np.ndarray) -> jax.Array:
    """One key per node, a function of its number and of how often it has trained alone: what a
    node draws does not depend on who else reports."""
    def one(cycle, node):
        return jax.random.fold_in(jax.random.fold_in(key, cycle), node)

    return jax.vmap(one)(jnp.asarray(cycles), jnp.asarray(nodes))


def _take(segments: Any, rows: Any) -> Any:
    return jax.tree.map(lambda x: x[rows], segments)


@jax.jit
def _where(chosen: jax.Array, new: Params, old: Params) -> Params:
    """Per edge the new tree or the old one."""
    return jax.tree.map(
        lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
