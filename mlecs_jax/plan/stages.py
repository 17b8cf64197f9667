"""The stages of a round as programs to compile: function, shapes with their places, costs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from mlecs_jax import aggregate, assemble, captions, rounds, sharding
from mlecs_jax import federation as federations
from mlecs_jax.answers import predict_rows
from mlecs_jax.clients import for_each_client
from mlecs_jax.federation import gather
from mlecs_jax.methods import ml_ecs
from mlecs_jax.models.multimodal import MultimodalModel
from mlecs_jax.plan import flops, shapes
from mlecs_jax.plan.shapes import Plan
from mlecs_jax.setting import held_out_rows
from mlecs_jax.stages import device_stage, fuse_public, lone_stage, se_ccl_stage

Tree = Any
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
COUNT = jax.ShapeDtypeStruct((), jnp.int32)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One compiled program of a round.

    Attributes:
      function, arguments: what to lower; shapes carry their shardings.
      donate: arguments whose buffers the result takes.
      runs: executions of the innermost counted step in a round, per chip: what the program's
        figures of one step are multiplied by.
      flops: of all chips together in a round.
      read: bytes that a chip must read from its memory in a round: frozen weights, once a pass.
      tier: ``edge`` or ``cloud``, whose chips run it.
      chips: how many of them work.
    """

    name: str
    what: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    runs: int = 1
    flops: float = 0.0
    read: float = 0.0
    tier: str = "cloud"
    chips: int = 1


@dataclasses.dataclass(frozen=True)
class Round:
    """Every stage in order, and what stays on a chip.

    Attributes:
      held: bytes on a chip of each tier between its stages.
      shared: whether a chip serves both tiers, and so holds both.
    """

    stages: tuple[Stage, ...]
    held: dict[str, float]
    shared: bool

    def beside(self, stage: Stage) -> float:
        """Bytes of the other tier that stay on a chip while a stage runs."""
        return self.held["edge" if stage.tier == "cloud" else "cloud"] if self.shared else 0.0


class Builder:
    """Stages of a plan on given devices.

    With ``topology.cloud_devices`` 0 both tiers use every chip, in turn; else the last of them are
    the cloud's. Devices of the federation lie whole on a chip, so that their stages send nothing:
    one chip's share of them is compiled. The cloud's models are split over its mesh.
    """

    def __init__(self, plan: Plan, devices: list[Any], mesh_shape: tuple[int, int] | None = None):
        self.plan, self.config = plan, plan.config
        cloud = plan.config.topology.cloud_devices
        own = devices if cloud == 0 or len(devices) == 1 else devices[-cloud:]
        edge = devices if own is devices else devices[:-cloud]
        clients = math.gcd(*(len(numbers) for numbers, _ in plan.cohorts))
        spread = plan.config.clients.backend == "shard_map"
        self.edge_size = max(n for n in range(1, len(edge) + 1) if clients % n == 0 and (
            spread or n == 1))
        self.edge = list(edge[:self.edge_size])
        self.shared = own is devices
        self.mesh = sharding.make_mesh(own, mesh_shape)
        self.slm, self.llm = (assemble.on_mesh(model, self.mesh) for model in (plan.slm, plan.llm))

    def round(self) -> Round:
        """All stages in order, and what stays."""
        edge, cloud = self._edge_shared(), self._cloud_shared()
        devices = [self._devices(i) for i in range(len(self.plan.cohorts))]
        held = (edge, devices, [self._device_data(i) for i in range(len(self.plan.cohorts))])
        fuse = (self._fuse(),) if ml_ecs.hears_anchors(self.config) else ()
        stages = (*fuse, *self._training(), self._aggregation(), self._server(),
                  *self._evaluation())
        return Round(stages, {"edge": chip_bytes(held),
                              "cloud": chip_bytes((cloud, self._learners()))}, self.shared)

    # --- places -------------------------------------------------------------------------------

    def _on_edge(self, tree: Tree) -> Tree:
        return _placed(shapes.of(tree), SingleDeviceSharding(self.edge[0]))

    def _on_cloud(self, tree: Tree, split: bool = False) -> Tree:
        tree = shapes.of(tree)
        if self.mesh.size == 1:
            return _placed(tree, SingleDeviceSharding(self.mesh.devices.flat[0]))
        if not split:
            return _placed(tree, NamedSharding(self.mesh, PartitionSpec()))
        return jax.tree.map(_with_sharding, tree, sharding.tree_shardings(tree, self.mesh))

    def _edge_shared(self) -> Tree:
        federation = self.plan.federation
        every: Any = federation.held_out
        held_out = every.replace(available=None) if federation.held_out_is_common else None
        public = (federation.public if self.config.partition.public_labels
                  else federations.unlabelled(federation.public))
        return self._on_edge({"slm": self.plan.slm.backbone_shapes(), "public": public,
                              "moments": federation.moments, "held_out": held_out})

    def _cloud_shared(self) -> Tree:
        federation = self.plan.federation
        return self._on_cloud({
            "public": federation.public, "moments": federation.moments,
            "public_held_out": federation.public_held_out}) | self._on_cloud(
                {"slm": self.slm.backbone_shapes(), "llm": self.llm.backbone_shapes()}, split=True)

    def _learners(self) -> Tree:
        llm = shapes.trainable(self.llm, self.plan.federation)
        slm = shapes.trainable(self.slm, self.plan.federation)
        return self._on_cloud({"llm": llm, "slm": {k: slm[k] for k in ("generator", "lora")}},
                              split=True)

    def _per_chip(self, cohort: int) -> int:
        return len(self.plan.cohorts[cohort][0]) // self.edge_size

    def _devices(self, cohort: int) -> Tree:
        groups = shapes.trainable(self.plan.cohorts[cohort][1], self.plan.federation)
        return self._on_edge(shapes.stacked(groups, self._per_chip(cohort)))

    def _device_data(self, cohort: int) -> Tree:
        federation, clients = self.plan.federation, self._per_chip(cohort)

        def some(tree: Tree) -> Tree:
            return jax.tree.map(lambda x: x[:clients], tree)

        return self._on_edge({
            "train": some(federation.train), "owned": federation.owned[0][:clients],
            "public_available": some(federation.public_available)}) | {
                "key": _placed(_keys(clients), SingleDeviceSharding(self.edge[0]))}

    # --- stages -------------------------------------------------------------------------------

    def _fuse(self) -> Stage:
        rows = len(self.plan.federation.public.target)
        own = self._learners()["llm"]
        groups = {name: own[name] for name in ("extractor", "connector")}
        cloud = {name: self._cloud_shared()[name] for name in ("public", "moments")}
        return Stage("fuse public", f"{rows:,} public samples to anchors",
                     functools.partial(fuse_public, self.llm), (cloud, groups),
                     flops=flops.outside(groups, rows, training=False), chips=self.mesh.size)

    def _anchors(self) -> Tree:
        rows = len(self.plan.federation.public.target)
        return self._on_edge(
            jax.ShapeDtypeStruct((rows, self.config.model.latent), jnp.float32))

    def _training(self) -> list[Stage]:
        """CCL and AMT of every cohort: one program, run twice with other traced values."""
        options, clients = self.config, self.config.clients
        stages = []
        for i, (numbers, model) in enumerate(self.plan.cohorts):
            steps = {"CCL": options.train.ccl_steps, "AMT": options.train.amt_steps}
            if not options.method.public:
                steps = {"AMT": rounds.local_steps(options)}
            traced = {"on_public": SCALAR, "steps": COUNT,
                      "rates": dict.fromkeys(rounds.every_group(0.0), SCALAR),
                      "weights": dict.fromkeys(ml_ecs.amt_weights(), SCALAR)}
            shared = self._edge_shared() | self._on_edge(traced)
            if ml_ecs.hears_anchors(options):
                shared["anchors"] = self._anchors()
            function = for_each_client(
                functools.partial(device_stage, self.plan.outline, model), backend="scan",
                chunk=clients.chunk)
            groups = shapes.trainable(model, self.plan.federation)
            per_chip = self._per_chip(i)
            step = self._step_flops(model, groups, heads=flops.CROSS_ENTROPY)
            weights = _bytes(model.backbone_shapes())
            for name, count in steps.items():
                chunks = math.ceil(per_chip / min(clients.chunk, per_chip))
                stages.append(Stage(
                    f"device {name}" + (f", cohort {i}" if len(self.plan.cohorts) > 1 else ""),
                    f"{per_chip} of {len(numbers)} devices on a chip, "
                    f"{min(clients.chunk, per_chip)} at a time, {count} steps",
                    function, (shared, self._devices(i), self._device_data(i)), donate=(1,),
                    runs=count * chunks, flops=step * count * len(numbers),
                    read=_passes(model) * weights * count * chunks, tier="edge",
                    chips=self.edge_size))
        return stages

    def _aggregation(self) -> Stage:
        """Uploads meet on the cloud: gathered, weighted by modality counts, averaged."""
        clients = self.plan.federation.num_clients
        lora = shapes.stacked(shapes.trainable(self.plan.slm, self.plan.federation)["lora"],
                              clients)
        spread = self.mesh.size > 1 and clients % self.mesh.size == 0
        if self.mesh.size == 1:
            where: Any = SingleDeviceSharding(self.mesh.devices.flat[0])
        else:
            where = NamedSharding(self.mesh, PartitionSpec(sharding.AXES if spread else None))
        counts = jax.ShapeDtypeStruct((clients,), jnp.int32)
        own = self._learners()["slm"]["lora"]

        def average(loras: Tree, modalities: Tree) -> Tree:
            weights = aggregate.modality_weights(modalities, equal=not self.config.method.mma)
            mean = aggregate.weighted_mean(loras, weights)
            return jax.tree.map(
                lambda x, like: jax.lax.with_sharding_constraint(x, like.sharding), mean, own)

        return Stage("aggregation", f"LoRA of {clients} devices", average,
                     (_placed(lora, where), _placed(counts, where)),
                     flops=2.0 * flops.entries(lora), chips=self.mesh.size)

    def _server(self) -> Stage:
        options = self.config
        traced = {"steps": COUNT, "rates": dict.fromkeys(("llm", "slm"), SCALAR),
                  "weights": dict.fromkeys(ml_ecs.se_ccl_weights(options), SCALAR)}
        cloud = {k: v for k, v in self._cloud_shared().items() if k != "public_held_out"}
        learners = self._learners()
        steps = options.train.server_steps
        passes = flops.CROSS_ENTROPY + flops.TEACHER + flops.STUDENT
        step = sum(self._step_flops(model, learners[name], heads=passes)
                   for name, model in (("llm", self.llm), ("slm", self.slm)))
        split = self.mesh.shape[sharding.TENSOR]
        read = sum(_passes(model) * _bytes(model.backbone_shapes()) / split
                   for model in (self.llm, self.slm))
        outline = dataclasses.replace(self.plan.outline, slm=self.slm, llm=self.llm)
        train = functools.partial(se_ccl_stage, outline)
        return Stage("SE-CCL", f"LLM and SLM, {steps} steps", train,
                     (cloud | self._on_cloud(traced), learners, self._key_on_cloud()),
                     donate=(1,), runs=steps, flops=step * steps, read=read * steps,
                     chips=self.mesh.size)

    def lone(self) -> Stage:
        """The LLM by itself on the public data, as methods without synergy train it."""
        steps, cloud, own = self.config.train.server_steps, self._cloud_shared(), self._learners()
        traced = {"steps": COUNT, "rates": dict.fromkeys(rounds.every_group(0.0), SCALAR),
                  "owned": jax.ShapeDtypeStruct((len(self.plan.federation.modalities),), jnp.bool_)}
        shared = {"backbone": cloud["llm"], "rows": cloud["public"], "moments": cloud["moments"]}
        train = functools.partial(lone_stage, self.plan.outline, self.llm)
        return Stage("LLM alone", f"{steps} steps", train,
                     (shared | self._on_cloud(traced), own["llm"], self._key_on_cloud()),
                     donate=(1,), runs=steps, chips=self.mesh.size,
                     flops=steps * self._step_flops(self.llm, own["llm"],
                                                    heads=flops.CROSS_ENTROPY),
                     read=steps * _passes(self.llm) * _bytes(self.llm.backbone_shapes())
                     / self.mesh.shape[sharding.TENSOR])

    def _key_on_cloud(self) -> Tree:
        where = self._on_cloud(COUNT).sharding
        return _placed(jax.eval_shape(lambda: jax.random.key(0)), where)

    def _step_flops(self, model: MultimodalModel, groups: Tree, *, heads: int) -> float:
        """One step of one learner on one batch."""
        batch, length = self.config.train.batch_size, self.plan.positions
        shape, backbone = model.decoder.config, model.backbone_shapes()
        answer = self.plan.federation.public.target.shape[-1]
        return (flops.block_training(shape, backbone, groups["lora"], batch, length)
                + flops.head(shape, batch, answer, heads)
                + flops.outside(groups, batch, training=True))

    # --- evaluation ---------------------------------------------------------------------------

    def _evaluation(self) -> list[Stage]:
        """Answers on one chunk of held-out rows: captions, or a class from the first token."""
        stages = []
        for i, (numbers, model) in enumerate(self.plan.cohorts[:1]):
            del numbers
            federation, clients = self.plan.federation, self._per_chip(i)
            own = jax.tree.map(lambda x, n=clients: x[:n], federation.held_out.available)
            held_out = None if federation.held_out_is_common else jax.tree.map(
                lambda x, n=clients: x[:n], federation.held_out)
            index = jax.ShapeDtypeStruct((clients, captions.CHUNK), jnp.int32)
            data = {"params": self._devices(i)} | self._on_edge({
                "owned": federation.owned[0][:clients], "held_out_available": own,
                "held_out": held_out, "index": index})
            at_once = 1 if self.config.captions else min(self.config.clients.chunk, clients)
            function = for_each_client(functools.partial(self._answer_device, model),
                                       backend="scan", chunk=at_once)
            stages.append(self._answering(
                "device evaluation", model, function, (self._edge_shared(), (), data),
                nodes=clients, per_chunk=at_once,
                total=federation.num_clients, split=1, tier="edge"))
        index = jax.ShapeDtypeStruct((captions.CHUNK,), jnp.int32)
        stages.append(self._answering(
            "server evaluation", self.llm, self._answer_server,
            (self._cloud_shared(), self._learners()["llm"], self._on_cloud(index)),
            nodes=1, per_chunk=1, total=1, split=self.mesh.shape[sharding.TENSOR], tier="cloud"))
        return stages

    def _answering(
        self, name: str, model: MultimodalModel, function: Any, arguments: Any, *, nodes: int,
        per_chunk: int, total: int, split: int, tier: str,
    ) -> Stage:
        """Generation of whole captions, or one forward pass for classes."""
        batch, shape = captions.CHUNK, model.decoder.config
        groups, backbone = shapes.trainable(model, self.plan.federation), model.backbone_shapes()
        prompt = self.config.model.soft_tokens + len(model.prompt)
        new = self.config.captions.max_tokens if self.config.captions else 1
        one = flops.block_forward(shape, backbone, groups["lora"], batch, prompt)
        one += (new - 1) * flops.block_forward(shape, backbone, groups["lora"], batch, 1,
                                               prompt + new)
        one += flops.head(shape, batch, new, 1) + flops.outside(groups, batch, training=False)
        chunks = math.ceil(nodes / per_chunk)
        return Stage(name, f"{batch} rows, {new} new tokens each", function, arguments,
                     runs=new * chunks, flops=one * total,
                     read=new * chunks * _bytes(backbone) / split, tier=tier,
                     chips=self.edge_size if tier == "edge" else self.mesh.size)

    def _answer(self, model: MultimodalModel, backbone: Tree, params: Tree, rows: Any,
                owned: Any, moments: Any, index: Any) -> jax.Array:
        if self.config.captions is None:
            chunk = jax.tree.map(lambda x: x[index], rows.replace(count=None))
            return predict_rows(model, (0, 1, 2), backbone, params, chunk, owned, moments)
        batch = gather(rows, owned, moments, index)
        setting: Any = self.plan  # its config and tokenizer are all that generation reads
        return captions.generate_batch(setting, model, backbone, params, batch)

    def _answer_device(self, model: MultimodalModel, shared: Tree, params: Tree, data: Tree):
        rows = held_out_rows(shared, data)
        return params, self._answer(model, shared["slm"], data["params"], rows, data["owned"],
                                    shared["moments"], data["index"])

    def _answer_server(self, cloud: Tree, params: Tree, index: jax.Array) -> jax.Array:
        rows = cloud["public_held_out"]
        every = jnp.ones(rows.available.shape[-1], bool)
        return self._answer(self.llm, cloud["llm"], params, rows, every, cloud["moments"], index)


def chip_bytes(tree: Tree) -> float:
    """Bytes of a placed tree on one chip."""
    return float(sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf)
        for leaf in jax.tree.leaves(tree)))


def _itemsize(leaf: Any) -> int:
    return 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize


def _bytes(tree: Tree) -> float:
    return float(sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def _passes(model: MultimodalModel) -> int:
    """Times that a training step reads the frozen weights."""
    return 3 if model.decoder.config.remat else 2


def _keys(clients: int) -> Tree:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clients))


def _placed(tree: Tree, where: Any) -> Tree:
    return jax.tree.map(lambda x: _with_sharding(x, where), tree)


def _with_sharding(x: Any, where: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
