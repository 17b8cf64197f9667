"""`Setting`: what every method is given. Data, models, frozen backbones and where they live."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mlecs_jax import programs
from mlecs_jax.clients import ClientFn, for_each_client
from mlecs_jax.config import Config
from mlecs_jax.data.text import Tokenizer
from mlecs_jax.errors import UserError
from mlecs_jax.federation import Federation, Rows
from mlecs_jax.lora import Params
from mlecs_jax.models.multimodal import MultimodalModel
from mlecs_jax.topology import Topology

Tree = Any


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Devices of one structure: they share a compiled program and stack their parameters.

    Attributes:
      clients: device numbers, int ``[C]``.
      model: their M = {E, C, B}.
      train: their training rows on the edge mesh, ``[C, n, …]``.
      held_out: their validation and test rows; None where all devices share ``edge['held_out']``.
      held_out_available: bool ``[C, n, M]``.
      public_available: bool ``[C, n, M]`` or None, see :class:`Federation`.
    """

    clients: np.ndarray
    model: MultimodalModel
    train: Rows
    held_out: Rows | None
    held_out_available: Array
    public_available: Array | None


@dataclasses.dataclass(frozen=True)
class Outline:
    """The part of a :class:`Setting` that compiled programs may depend on; hashable.

    Seeds, split and ρ of ``config`` are not the run's: programs that runs share cannot know them.
    """

    config: Config
    slm: MultimodalModel
    llm: MultimodalModel
    answer_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A federation of nodes ready to learn.

    Attributes:
      cohorts: the devices. Extractors and connectors may differ between cohorts; LoRA trees may
        not, since they meet in aggregation.
      llm: the server's model; its SLM is ``slm`` (decoder and generator; no extractor of its own).
      answer_ids: the token of each class; empty where answers are texts.
      tokenizer: of the backbones.
      edge, cloud: frozen backbones and shared data of each tier, placed on its mesh:
        ``slm``, ``llm`` (cloud only), ``public`` rows, ``moments``.
      unanswered: nodes are not made to answer; see :class:`mlecs_jax.answers.Question`.
      briefly: devices answer after the broadcast in the last round alone, of which a summary tells.
    """

    config: Config
    federation: Federation
    topology: Topology
    cohorts: tuple[Cohort, ...]
    slm: MultimodalModel
    llm: MultimodalModel
    answer_ids: tuple[int, ...]
    tokenizer: Tokenizer
    edge: dict[str, Any]
    cloud: dict[str, Any]
    unanswered: bool = False
    briefly: bool = False

    def asks_after_broadcast(self, r: int) -> bool:
        """Whether devices answer after the broadcast that ends round ``r`` too."""
        return not self.briefly or r == self.config.train.rounds - 1

    def place(self, device: int) -> tuple[int, int]:
        """Cohort of a device and its number therein."""
        for number, cohort in enumerate(self.cohorts):
            if device in cohort.clients:
                return number, int(np.flatnonzero(cohort.clients == device)[0])
        raise AssertionError(f"device {device} is in no cohort")

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the devices that are here, int ``[N]``, ascending: 0 … N-1 in a simulation,
        one in a deployed device, none in a deployed cloud."""
        return np.sort(np.concatenate([np.empty(0, int), *(c.clients for c in self.cohorts)]))

    def for_each_client(
        self, fn: ClientFn, *, chunk: int | None = None
    ) -> Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]:
        """:func:`mlecs_jax.clients.for_each_client` with this run's back end, and its number of
        devices at a time unless another is given."""
        clients = self.config.clients
        return for_each_client(fn, backend=clients.backend, chunk=chunk or clients.chunk,
                               mesh=self.topology.edge)

    def for_each_client_shared(
        self, fn: Callable[..., tuple[Tree, Tree]], *static: Hashable, chunk: int | None = None
    ) -> Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]:
        """:meth:`for_each_client` of ``fn`` with its first arguments fixed, compiled once for all
        runs of this process (:mod:`mlecs_jax.programs`)."""
        clients = self.config.clients
        while isinstance(fn, functools.partial) and not fn.keywords:
            fn, static = fn.func, (*fn.args, *static)
        return programs.compiled_for_clients(fn, *static, backend=clients.backend,
                                             chunk=chunk or clients.chunk,
                                             mesh=self.topology.edge)

    @functools.cached_property
    def outline(self) -> Outline:
        """What a compiled program may know of this setting: everything but data and seeds."""
        config = dataclasses.replace(
            self.config, seed=0, data=dataclasses.replace(self.config.data, split="frame"),
            aggregation=None, privacy=None,  # between programs, not in them
            train=dataclasses.replace(self.config.train, rounds=1),  # how often they run
            partition=dataclasses.replace(self.config.partition, seed=0, rho=1.0))
        return Outline(config, self.slm, self.llm, self.answer_ids)

    def on_devices(self, stage: Callable[..., tuple[Params, Tree]]) -> Callable[..., Any]:
        """A device stage compiled for every cohort.

        Args:
          stage: ``(outline, model, shared, params, device) → (params, diagnostics)`` for one
            device; a function of a module, so that runs can share it. ``shared`` holds the edge's
            backbone ``slm``, ``public`` rows and ``moments`` and whatever the call adds;
            ``device`` its ``train`` rows, ``owned [M]``, ``public_available`` and ``key``.

        Returns:
          ``(devices, round_index, key, **shared) → (devices, diagnostics stacked [N])``.
        """
        runs = [self.for_each_client_shared(stage, self.outline, cohort.model)
                for cohort in self.cohorts]

        def run(devices: tuple[Params, ...], r: int, key: jax.Array, **shared: Tree):
            results = []
            for cohort, params, compiled in zip(self.cohorts, devices, runs, strict=True):
                data = {"train": cohort.train, "public_available": cohort.public_available,
                        "owned": self.owned(r, cohort), "key": self.client_keys(key, cohort)}
                results.append(compiled(self.edge | shared, params, data))
            return (tuple(params for params, _ in results),
                    self.join([diagnostics for _, diagnostics in results]))

        return run

    def held_out(self, cohort: Cohort) -> dict[str, Any]:
        """What :func:`held_out_rows` needs of each device of a cohort, stacked."""
        return {"held_out": cohort.held_out, "held_out_available": cohort.held_out_available}

    def client_keys(self, key: jax.Array, cohort: Cohort) -> jax.Array:
        """One key per device, a function of the device's number alone."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(cohort.clients))
        return self.topology.to_edge(keys, per_client=True)

    def owned(self, round_index: int, cohort: Cohort) -> jax.Array:
        """Modality sets of a cohort in a round, bool ``[C, M]`` on the edge."""
        owned = self.federation.owned_at(round_index)[cohort.clients]
        return self.topology.to_edge(owned, per_client=True)

    def example_inputs(self) -> dict[str, Array]:
        """One sample of every modality, float32 ``[1, …]``, to fix shapes at initialisation."""
        return {name: jnp.zeros((1, *x.shape[1:]), jnp.float32)
                for name, x in self.federation.samples.inputs.items()}

    def join(self, parts: list[Tree]) -> Tree:
        """Stacked results of the cohorts as one stack in device order."""
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate([cohort.clients for cohort in self.cohorts]))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[order], *parts)

    def init_devices(self, key: jax.Array, lora: Params) -> tuple[Params, ...]:
        """Stacked parameters per cohort: extractor, connector and generator drawn per device, the
        LoRA that of the server."""
        stacked = []
        for cohort in self.cohorts:
            drawn = [cohort.model.init(jax.random.fold_in(key, client), self.edge["slm"],
                                       self.example_inputs()) for client in cohort.clients]
            check_same_lora(lora, drawn[0]["lora"])
            stack = jax.tree.map(lambda *leaves: np.stack(leaves),
                                 *(params | {"lora": lora} for params in drawn))
            stacked.append(self.topology.to_edge(stack, per_client=True))
        return tuple(stacked)


def held_out_rows(shared: dict[str, Any], device: dict[str, Any]) -> Rows:
    """A device's held-out rows, from ``shared['held_out']`` or its own, with its availability."""
    rows = shared["held_out"] if device["held_out"] is None else device["held_out"]
    return rows.replace(available=device["held_out_available"])


def check_same_lora(server: Params, device: Params) -> None:
    """Raises UserError where a device's LoRA tree could not be averaged with the others."""
    expected, found = (jax.tree.map(lambda x: x.shape, tree) for tree in (server, device))
    if expected != found:
        raise UserError(f"a cohort's LoRA leaves are {found}, the server SLM's {expected}; devices "
                        "may differ in encoders and connectors, not in backbone or LoRA rank")
