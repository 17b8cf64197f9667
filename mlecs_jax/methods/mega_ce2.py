"""Mega-CE² (2025): end devices, edges and a cloud that waits for no one.

A version of the global model w_g, in the paper's order:

1. an idle edge requests w_g and broadcasts it to its ends (§3.3);
2. the ends train it on their own segments;
3. the edge waits for its ends and averages them ∝ n (synchronous);
4. it uploads its model w_i and n_i, nothing else;
5. the cloud aggregates at once, over the last model of every edge (asynchronous, Eq. 4), and may
   train the result on segments of its own (``cloud.steps``; none in the paper's experiments);
6. the edge has the new version, and begins again.

Then every edge freezes w_g and tunes an adapter θ_i on what its ends sent it; w_g ⊕ θ_i serves
(§3.4). Adapters are never part of a message.

Who reports when is the schedule's (:mod:`mlecs_jax.mega.clock`): a synchronous round is an arrival
of all edges at once, and is FedAvg over the ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct, traverse_util

from mlecs_jax import aggregate, channel, train
from mlecs_jax.mega import clock
from mlecs_jax.mega.clock import Arrival, Report
from mlecs_jax.mega.config import MegaConfig
from mlecs_jax.mega.personal import Predictor, batches, end_keys, personaliser, rows_of
from mlecs_jax.mega.setting import MegaSetting
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.models.adapters import Adapters

Params = Any
CLOUD = 2**31 - 1  # the cloud's number where keys are drawn; no end has it


@struct.dataclass
class State:
    """What lives between versions.

    Attributes:
      cloud: w_g.
      received: the version that each edge's ends are training, stacked over edges.
      last: the last model of each edge, w_i of Eq. 4; at first the initial one.
      best: ``model``, ``version`` and ``mae`` of the version with the lowest validation error.
    """

    cloud: Params
    received: Params
    last: Params
    best: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MegaMethod(Method):
    """Adds to :class:`Method`, whose rounds are versions here:

    Attributes:
      arrivals: what makes each version, and when.
      keep_best: ``(state, r, validation MAE) → state``.
      personalise: ``(w_g, key) → (θ of every edge, predictions)``; predictions as
        :meth:`Method.evaluate` has them, each segment's from the model of its own edge, and
        the mean validation error of the edges after each epoch.
    """

    arrivals: list[Arrival]
    keep_best: Callable[[State, int, float], State]
    personalise: Callable[[Params, jax.Array], tuple[Adapters, Predictions]]


@dataclasses.dataclass(frozen=True)
class EdgePart:
    """What edges and their ends do; needs nothing of the cloud but the version they requested.

    Attributes:
      train: ``(models [k, …], reports, rates [k], key) → (models [k, …], diagnostics)``: the
        versions that k edges received, trained by their ends and averaged.
      counts: training segments of every edge, n_i.
    """

    train: Callable[..., tuple[Params, Any]]
    counts: jax.Array


def build(setting: MegaSetting) -> MegaMethod:
    """The three-tier method over a setting."""
    config, topology = setting.config, setting.topology
    num_edges = config.partition.edges
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                            setting.model.init(jax.random.key(0), setting.example()))
    timing = setting.timing(upload(template, np.int32(0), template))
    arrivals = setting.schedule(timing)
    staleness = clock.staleness(arrivals, num_edges)
    edge, train_cloud = edge_part(setting), cloud_part(setting)
    together = max(1, config.clients.chunk // config.partition.ends)  # edges that train at once
    predict = Predictor(setting)

    def init(key: jax.Array) -> State:
        model = setting.model.init(key, setting.example())
        stacked = jax.tree.map(lambda x: np.stack([x] * num_edges), model)
        best = {"model": model, "version": np.int32(0), "mae": np.float32(np.inf)}
        return State(cloud=topology.to_cloud(model), received=topology.to_edge(stacked),
                     last=topology.to_cloud(stacked), best=topology.to_cloud(best))

    def train_edges(state: State, reports: Sequence[Report], key: jax.Array):
        """1–3. The new models of some edges and what their ends say of the training."""
        edges = np.array([report.edge for report in reports])
        rates = [_rate(setting, arrivals, report.began) for report in reports]
        return edge.train(_of(state.received, edges), reports, rates, key)

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        arrival = arrivals[r]
        edges = np.array(arrival.edges)
        # 1–3. A few edges at a time, so that one program serves every number of reports.
        parts = [train_edges(state, arrival.reports[i:i + together], key)
                 for i in range(0, len(edges), together)]
        models, diagnostics = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        # 4. Upload.
        messages = topology.to_cloud(upload(models, edge.counts[edges], template))
        # 5. Eq. 4 over the last model of every edge.
        weights = aggregate.staleness_weights(
            edge.counts, jnp.asarray(staleness[r]), config.method.staleness_exponent)
        cloud, last = take_in(state.last, edges, messages["model"], topology.to_cloud(weights))
        cloud = train_cloud(cloud, _rate(setting, arrivals, arrival.time), end_keys(
            key, np.array([r]), np.array([CLOUD]))[0])
        # 6. Download.
        received = _replace(state.received, edges, topology.to_edge(
            _broadcast_one(cloud, len(edges))))

        return (state.replace(cloud=cloud, received=received, last=last),
                {"ends": diagnostics})

    def keep_best(state: State, r: int, mae: float) -> State:
        if mae >= float(topology.host(state.best["mae"])):
            return state
        best = {"model": state.cloud, "version": np.int32(r + 1), "mae": np.float32(mae)}
        return state.replace(best=topology.to_cloud(best))

    def evaluate(state: State, r: int) -> Predictions:
        del r
        return predict.all(topology.to_edge(state.cloud))

    def communication(state: State) -> dict[str, int]:
        message = channel.num_bytes(upload(state.cloud, np.int32(0), template))
        return {"uplink": message, "downlink": channel.num_bytes(state.cloud)}

    return MegaMethod(init=init, round=round, evaluate=evaluate, communication=communication,
                      arrivals=arrivals, keep_best=keep_best,
                      personalise=personaliser(setting, predict))


def edge_part(setting: MegaSetting) -> EdgePart:
    """The edges of :func:`build`: all of them in a simulation, in a deployment each in its own
    process."""
    topology, federation, num_ends = (
        setting.topology, setting.federation, setting.config.partition.ends)
    steps, train_ends = setting.steps(), setting.for_each_client(
        functools.partial(train_end, setting))

    def train(models: Params, reports: Sequence[Report], rates: Sequence[float], key: jax.Array):
        edges = np.array([report.edge for report in reports])
        ends = (edges[:, None] * num_ends + np.arange(num_ends)).ravel()
        # 1. Every end has the version that its edge requested.
        models = topology.to_edge(_copies(models, num_ends), per_client=True)
        # 2. Ends train.
        own = rows_of(federation.ends, ends) | {
            "steps": steps[ends], "rate": np.repeat(rates, num_ends).astype(np.float32),
            "key": end_keys(key, np.repeat([report.cycle for report in reports], num_ends), ends)}
        models, diagnostics = train_ends(
            setting.segments, models, topology.to_edge(own, per_client=True))
        # 3. Edges average their ends ∝ n.
        parents = np.repeat(np.arange(len(edges)), num_ends)
        return _group_mean(models, own["count"], parents, len(edges)), diagnostics

    return EdgePart(train, jnp.asarray(federation.edges.counts))


def cloud_part(setting: MegaSetting) -> Callable[[Params, float, jax.Array], Params]:
    """``(w_g, rate, key) → w_g``: training in the cloud, if there is any. Its time is not on the
    clock: the cloud is the strongest machine by far."""
    steps, topology, rows = setting.config.cloud_steps, setting.topology, setting.federation.public
    if not steps:
        return lambda model, rate, key: model
    segments = topology.to_cloud(setting.federation.data.batch(rows))
    own = {"rows": np.arange(len(rows)), "count": np.int32(len(rows)), "steps": np.int32(steps)}
    compiled = jax.jit(functools.partial(train_end, setting))

    def train(model: Params, rate: float, key: jax.Array) -> Params:
        now = {"rate": np.float32(rate), "key": key}
        return compiled(segments, model, topology.to_cloud(own | now))[0]

    return train


def take_in(
    last: Params, edges: np.ndarray, models: Params, weights: jax.Array
) -> tuple[Params, Params]:
    """The cloud's part of a version: ``(w_g, last model of every edge)``, Eq. 4.

    Args:
      last: the last model of every edge before, ``[E, …]``.
      edges: who reports, and ``models``, what.
      weights: α_i (:func:`mlecs_jax.aggregate.staleness_weights`).
    """
    last = _replace(last, edges, models)
    return _weighted_mean(last, weights), last


def train_end(setting: MegaSetting, segments: Any, model: Params, own: Mapping[str, Any]):
    """Local training of one end, or of the cloud: L1 with the model's dropout, a fresh optimiser.

    Args:
      segments: all of them; the end reads its own rows alone.
      own: ``rows``, ``count`` and ``steps`` of the end, its learning ``rate`` and ``key``.
    """
    options = setting.config.train
    return train.fit(
        setting.model.loss, model, batches(segments, own, options.batch_size), own["steps"],
        own["rate"], own["key"], transform=train.optimiser(options.clip))


def upload(model: Params, count: Any, template: Params) -> dict[str, Any]:
    """What an edge sends to the cloud: its model and how many segments it stands for.

    Raises:
      ValueError: the model holds a leaf that w_g does not have, such as an adapter's.
    """
    if jax.tree.structure(model) != jax.tree.structure(template):
        raise ValueError("an upload may hold the leaves of the global model and nothing else")
    return {"model": model, "count": count}


def adapter_bytes(message: Mapping[str, Any], adapters: Adapters) -> int:
    """Bytes of those leaves of a message that stand where adapters have theirs; none should."""
    private = {("model", *path) for path in traverse_util.flatten_dict(adapters)}
    return channel.num_bytes({path: leaf for path, leaf in traverse_util.flatten_dict(
        message).items() if path in private})


def _rate(setting: MegaSetting, arrivals: list[Arrival], began: float) -> float:
    """Learning rate of a cycle: linear in simulated time, from its start to the run's end."""
    return learning_rate(setting.config, began / arrivals[-1].time)


def learning_rate(config: MegaConfig, share: float) -> float:
    """Learning rate of a cycle that begins when ``share`` of the run is over; linear."""
    options = config.train
    return options.learning_rate * (1.0 - (1.0 - options.final_rate_fraction) * share)


@jax.jit
def _of(models: Params, edges: jax.Array) -> Params:
    """The models of some edges."""
    return jax.tree.map(lambda x: x[edges], models)


@functools.partial(jax.jit, static_argnums=1)
def _copies(models: Params, copies: int) -> Params:
    """Stacked models, each as often as its edge has ends."""
    return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), models)


@functools.partial(jax.jit, static_argnums=1)
def _broadcast_one(model: Params, copies: int) -> Params:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *x.shape)), model)


@jax.jit
def _replace(models: Params, edges: jax.Array, new: Params) -> Params:
    """Stacked models with those of some edges replaced."""
    return jax.tree.map(lambda old, new: old.at[edges].set(new), models, new)


_group_mean = jax.jit(aggregate.group_mean, static_argnums=3)
_weighted_mean = jax.jit(aggregate.weighted_mean)
