"""`MegaSetting`: what the three-tier method is given. Data, model, tree of nodes, clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mlecs_jax import channel
from mlecs_jax.clients import ClientFn, for_each_client
from mlecs_jax.data import sentiment_sources
from mlecs_jax.data.sentiment import SentimentBatch, SentimentData
from mlecs_jax.mega import clock, federation, links
from mlecs_jax.mega.clock import Arrival, Pace, Timing
from mlecs_jax.mega.config import DataConfig, MegaConfig
from mlecs_jax.mega.federation import MegaFederation
from mlecs_jax.models import crossmodal
from mlecs_jax.models.crossmodal import CrossModalConfig
from mlecs_jax.models.sentiment import Params, SentimentModel
from mlecs_jax.topology import Device, Topology


@dataclasses.dataclass(frozen=True)
class MegaSetting:
    """A cloud, edges and ends ready to learn.

    Attributes:
      shape: of the model.
      topology: its root is the cloud, its leaves are the ends.
      segments: every segment, on the edge mesh; nodes read the rows that are theirs.
    """

    config: MegaConfig
    federation: MegaFederation
    topology: Topology
    shape: CrossModalConfig
    model: SentimentModel
    segments: SentimentBatch

    def example(self) -> SentimentBatch:
        """One segment, to fix shapes at initialisation."""
        return self.federation.data.batch(slice(0, 1))

    def for_each_client(self, fn: ClientFn) -> Callable:
        """:func:`mlecs_jax.clients.for_each_client` with this run's back end."""
        options = self.config.clients
        return for_each_client(fn, backend=options.backend, chunk=options.chunk,
                               mesh=self.topology.edge)

    def steps(self) -> np.ndarray:
        """Training steps of every end before it reports, int32 ``[ends]``."""
        batches = -(-self.federation.ends.counts // self.config.train.batch_size)
        return (batches * self.config.train.local_epochs).astype(np.int32)

    def timing(self, message: Params) -> Timing:
        """How long the cycles of the edges take when ``message`` carries the model."""
        options, parents = self.config.clock, self.topology.root.parents(2)
        paces = tuple(
            Pace(tuple(float(steps) * options.step_seconds / options.speed(edge)
                       for steps in self.steps()[parents == edge]),
                 links.preset(options.link(edge)))
            for edge in range(self.config.partition.edges))
        return Timing(paces, channel.num_bytes(message), options.jitter, options.seed)

    def schedule(self, timing: Timing) -> list[Arrival]:
        """The versions of the run. Both modes are given the same simulated time."""
        rounds = clock.synchronous(timing, self.config.train.rounds)
        if self.config.method.mode == "sync":
            return rounds
        return clock.asynchronous(timing, rounds[-1].time)


def load(options: DataConfig) -> SentimentData:
    """The dataset of a configuration.

    Raises:
      UserError: see :func:`sentiment_sources.load`.
    """
    return sentiment_sources.load(
        options.name, source=options.source, form=options.form, window=options.window or None,
        simulated_seed=options.simulated_seed, simulated_segments=options.simulated_segments)


def build(
    config: MegaConfig, data: SentimentData, devices: list[Device] | None = None
) -> MegaSetting:
    """The setting of a configuration over a dataset.

    Raises:
      UserError: bad options for this data, see the parts.
    """
    dealt = federation.build(data, config)
    topology = Topology.create((config.partition.edges, config.partition.ends), devices,
                               config.topology.cloud_devices)
    shape = config.model_config()
    return MegaSetting(config=config, federation=dealt, topology=topology, shape=shape,
                       model=crossmodal.model(shape, "Mega-CE²"),
                       segments=topology.to_edge(dealt.data.batch()))
