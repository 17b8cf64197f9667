"""A setting of shapes alone: what :mod:`mlecs_jax.assemble` builds, with no weight made.

Data are zeros of the dataset's size, dealt as a run deals them; models are traced for their shapes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import assemble, lora
from mlecs_jax import federation as federations
from mlecs_jax.config import Config
from mlecs_jax.data import sources, text
from mlecs_jax.data.samples import Samples
from mlecs_jax.federation import Federation
from mlecs_jax.models.multimodal import MultimodalModel
from mlecs_jax.models.zoo import PRETRAINED
from mlecs_jax.setting import Outline

Tree = Any
ROWS = {"vast": 9_680, "ur_fall": 11_544}  # samples of the papers' datasets
PROBES = 48  # simulated samples that tell the shape of one


class PlannedTokenizer(text.ByteTokenizer):
    """A token a byte: an upper bound of an instruction's length under any tokenizer."""

    def __init__(self, size: int):
        self._size = size

    def __len__(self) -> int:
        return max(self._size, super().__len__())


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a round is made of.

    Attributes:
      federation: zeros of the right shapes.
      cohorts: device numbers and model of each cohort.
      slm, llm: the server's models.
    """

    config: Config
    federation: Federation
    cohorts: tuple[tuple[np.ndarray, MultimodalModel], ...]
    slm: MultimodalModel
    llm: MultimodalModel
    tokenizer: text.Tokenizer

    @property
    def outline(self) -> Outline:
        """What the stages are compiled with."""
        return Outline(self.config, self.slm, self.llm, ())

    @property
    def positions(self) -> int:
        """Tokens a sample is in a training step: soft prompt, instruction, answer but its last."""
        return (self.config.model.soft_tokens + len(self.slm.prompt)
                + self.federation.public.target.shape[-1] - 1)


def plan(config: Config, rows: int | None = None) -> Plan:
    """Shapes of everything in a round.

    Args:
      rows: samples of the dataset; None: as many as the papers have, or as there are.

    Raises:
      UserError: options that a run would refuse too.
    """
    samples = _samples(config, rows)
    assemble.check_modalities(samples)
    captions = config.captions
    tokenizer = PlannedTokenizer(captions.vocabulary if captions else 0)
    width = captions.max_tokens if captions else 2
    federation = federations.build(
        samples, np.zeros((len(samples), width), np.int32), config.partition_config(),
        config.train.rounds)
    slm, llm = (assemble.model(config, samples, tokenizer, which, getattr(
        config.model, which).removeprefix(PRETRAINED)) for which in ("slm", "llm"))
    cohorts = tuple((clients, assemble.widen(slm, widths)) for clients, widths in
                    assemble.cohort_clients(config.model, federation.num_clients))
    return Plan(config, federation, cohorts, slm, llm, tokenizer)


def trainable(model: MultimodalModel, federation: Federation) -> Tree:
    """Shapes of :meth:`MultimodalModel.init`: the groups that a node trains."""
    inputs = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)
              for name, x in federation.samples.inputs.items()}
    encoded = jax.ShapeDtypeStruct((1, len(inputs), model.extractor.latent), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, len(inputs)), jnp.bool_)
    fused = jax.ShapeDtypeStruct((1, model.extractor.latent), jnp.float32)
    key = jax.random.key(0)

    def shapes(module: Any, *arguments: Any, **options: Any) -> Tree:
        return jax.eval_shape(lambda *a: module.init(key, *a, **options), *arguments)["params"]

    return {"extractor": shapes(model.extractor, inputs),
            "connector": shapes(model.connector, encoded, mask),
            "generator": shapes(model.generator, fused, deterministic=True),
            "lora": lora.shapes(model.backbone_shapes(), model.lora_targets, model.lora_rank)}


def stacked(tree: Tree, clients: int) -> Tree:
    """Shapes of ``clients`` such trees on a leading axis."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((clients, *x.shape), x.dtype), tree)


def of(tree: Tree) -> Tree:
    """Shapes and types of arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), tree)


def _samples(config: Config, rows: int | None) -> Samples:
    """Zeros with the shapes that the loader gives, ``rows`` of them."""
    captions = config.captions
    data = config.data
    if data.name != "table":
        data = dataclasses.replace(data, source="simulated", simulated_sequences=6)
        captions = captions and dataclasses.replace(
            captions, simulated_clips=PROBES, annotations="", features="")
    probe = sources.load(data, captions)
    count = rows or ROWS.get(data.name, len(probe))
    index = np.arange(count) % len(probe)
    labels = None if probe.labels is None else np.asarray(probe.labels)[index]
    return dataclasses.replace(
        probe, inputs={name: np.broadcast_to(np.zeros((1, *x.shape[1:]), x.dtype),
                                             (count, *x.shape[1:]))
                       for name, x in probe.inputs.items()},
        present=np.ones((count, len(probe.modalities)), bool), labels=labels,
        groups=np.arange(count, dtype=np.int32), strata=np.zeros(count, np.int32),
        texts=None if probe.texts is None else ("",) * count, context=None,
        devices=None if probe.devices is None else np.asarray(probe.devices)[index])
