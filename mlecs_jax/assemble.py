"""From a configuration to a :class:`Setting`: data, models, frozen backbones, placement."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from mlecs_jax import backbones
from mlecs_jax import federation as federations
from mlecs_jax.config import Config, ModelConfig
from mlecs_jax.data import sources, text
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError
from mlecs_jax.federation import Federation
from mlecs_jax.lora import LoraConfig
from mlecs_jax.models import zoo
from mlecs_jax.models.connector import Connector, PromptGenerator
from mlecs_jax.models.decoder import Decoder
from mlecs_jax.models.encoders import ENCODER_BY_RANK, Extractor
from mlecs_jax.models.multimodal import MultimodalModel
from mlecs_jax.setting import Cohort, Setting
from mlecs_jax.topology import Device, Topology

MAX_MODALITIES = 8  # of the volume kernel
COHORT_KEYS = ("encoder_hidden", "connector_hidden")


def setting(config: Config, devices: list[Device] | None = None) -> Setting:
    """Everything a method needs, placed on the edge and cloud meshes.

    Args:
      devices: accelerators to use; None takes all.

    Raises:
      UserError: bad data or options, see the parts.
    """
    return from_samples(config, sources.load(config.data, config.captions), devices)


def from_samples(
    config: Config, samples: Samples, devices: list[Device] | None = None
) -> Setting:
    """The setting of an already loaded dataset."""
    if samples.texts is not None:
        check_captions(config, samples)
    check_modalities(samples)
    found, tokenizer = backbones.resolve(config, samples)
    target = text.targets(samples, tokenizer, config.captions.max_tokens if config.captions else 0)
    federation = federations.build(samples, target, config.partition_config(), config.train.rounds)
    groups = cohort_clients(config.model, federation.num_clients)
    slm, llm = (model(config, samples, tokenizer, which, found[which]) for which in ("slm", "llm"))
    topology = Topology.create(
        math.gcd(*(len(clients) for clients, _ in groups))
        if config.clients.backend == "shard_map" else 1,
        devices, config.topology.cloud_devices)
    key = jax.random.key(config.model.backbone_seed)
    slm_backbone = backbones.parameters(found["slm"], slm, jax.random.fold_in(key, 0),
                                        topology.placing(split=False))
    llm_backbone = backbones.parameters(found["llm"], llm, jax.random.fold_in(key, 1),
                                        topology.placing(split=True))
    shared = {"public": federation.public, "moments": federation.moments}
    return Setting(
        config=config, federation=federation, topology=topology,
        cohorts=tuple(_cohort(federation, topology, clients, widen(slm, widths))
                      for clients, widths in groups),
        slm=on_mesh(slm, topology.cloud), llm=on_mesh(llm, topology.cloud), tokenizer=tokenizer,
        answer_ids=() if samples.labels is None
        else text.answer_ids(len(samples.class_names), tokenizer),
        edge=topology.to_edge(shared | {
            "slm": slm_backbone,
            "public": federation.public if config.partition.public_labels
            else federations.unlabelled(federation.public),
            "held_out": dataclasses.replace(federation.held_out, available=None)
            if federation.held_out_is_common else None}),
        cloud=topology.to_cloud(shared | {"public_held_out": federation.public_held_out})
        | topology.to_cloud({"slm": slm_backbone, "llm": llm_backbone}, split=True))


def check_captions(config: Config, samples: Samples) -> None:
    """Raises UserError for options that text targets need, or cannot have, before any work."""
    if config.captions is None:
        raise UserError(f"{samples.name} has text targets; its config needs a group captions, as "
                        "configs/vast.py has")
    if config.eval.ceiling_steps:
        raise UserError("eval.ceiling_steps trains classifiers; captions have no classes, set it "
                        "to 0")
    if config.captions.bertscore and not Path(config.captions.bertscore).expanduser().is_dir():
        raise UserError(f"captions.bertscore: there is no folder {config.captions.bertscore}; name "
                        "the directory of a BERT or RoBERTa encoder, or leave it empty")


def check_modalities(samples: Samples) -> None:
    """Raises UserError for what no encoder or kernel here can take."""
    if len(samples.modalities) > MAX_MODALITIES:
        raise UserError(f"{samples.name} has {len(samples.modalities)} modalities; at most "
                        f"{MAX_MODALITIES} can be aligned")
    for name, values in samples.inputs.items():
        if values.ndim - 1 not in ENCODER_BY_RANK:
            raise UserError(f"{samples.name}: modality '{name}' has shape {values.shape[1:]} per "
                            "sample; give a vector, a [time, channels] window or an image")


def model(
    config: Config, samples: Samples, tokenizer: text.Tokenizer, which: str,
    backbone: str | None = None,
) -> MultimodalModel:
    """The unified model around the ``slm`` or ``llm`` backbone.

    Args:
      backbone: its name where it is not the configuration's (:func:`backbones.resolve`).
    """
    options, lora = config.model, config.lora
    name = backbone or getattr(options, which)
    shape = zoo.decoder_config(name, len(tokenizer), options.dtype)
    targets = getattr(lora, f"{which}_targets")
    prompt = tuple(tokenizer.encode(options.prompt))
    if not prompt:
        raise UserError("model.prompt is empty; give an instruction of at least one token")
    # The longest answer: a caption, or a class and the end-of-sequence token.
    answer = config.captions.max_tokens if config.captions else 2
    length = options.soft_tokens + len(prompt) + answer
    if shape.family == "gpt2" and length > shape.max_positions:
        raise UserError(f"model.{which}: soft prompt, instruction and answer make {length} "
                        f"positions, {name} has {shape.max_positions}; shorten "
                        "model.prompt or model.soft_tokens")
    return MultimodalModel(
        extractor=Extractor(samples.modalities, options.encoder_hidden, options.latent),
        connector=Connector(samples.modalities, options.latent, options.connector_hidden),
        generator=PromptGenerator(options.soft_tokens, shape.width, options.connector_hidden,
                                  options.prompt_dropout),
        decoder=Decoder(shape, LoraConfig(lora.alpha, lora.dropout)),
        prompt=prompt,
        lora_targets=tuple(targets.split(",")) if targets else shape.lora_targets,
        lora_rank=lora.rank)


def on_mesh(model: MultimodalModel, mesh: Mesh) -> MultimodalModel:
    """A model whose backbone is split over a mesh (:mod:`mlecs_jax.sharding`); of one chip, whole.
    """
    return model if mesh.size == 1 else dataclasses.replace(
        model, decoder=model.decoder.clone(mesh=mesh))


def widen(base: MultimodalModel, widths: dict[str, int]) -> MultimodalModel:
    """A device model of other encoder or connector width."""
    extractor, connector, generator = base.extractor, base.connector, base.generator
    if hidden := widths.get("encoder_hidden"):
        extractor = extractor.clone(hidden=hidden)
    if hidden := widths.get("connector_hidden"):
        connector, generator = connector.clone(hidden=hidden), generator.clone(hidden=hidden)
    return dataclasses.replace(base, extractor=extractor, connector=connector, generator=generator)


def cohort_clients(
    options: ModelConfig, num_clients: int
) -> list[tuple[np.ndarray, dict[str, int]]]:
    """Device numbers, ascending, and differing widths of each cohort; devices not named form the
    first.

    Raises:
      UserError: ``model.cohorts`` cannot be read, or names a device twice or one that is not.
    """
    rest, cohorts = list(range(num_clients)), []
    for entry in filter(None, options.cohorts.split(";")):
        try:
            numbers, widths = entry.split("=")
            clients = [int(x) for x in numbers.split(",")]
            pairs = dict(pair.split(":") for pair in widths.split(","))
            parsed = {name: int(value) for name, value in pairs.items()}
            unknown = set(parsed) - set(COHORT_KEYS)
            if unknown or min(parsed.values()) < 1:
                raise ValueError
        except ValueError:
            raise UserError(f"model.cohorts: cannot read '{entry}'; write e.g. "
                            f"'0,2=encoder_hidden:256' with {' or '.join(COHORT_KEYS)}") from None
        for client in clients:
            if client not in rest:
                raise UserError(f"model.cohorts: device {client} is named twice or does not exist "
                                f"(devices are 0 to {num_clients - 1})")
            rest.remove(client)
        cohorts.append((np.array(sorted(clients)), parsed))
    return [(np.array(rest), {}), *cohorts] if rest else cohorts


def _cohort(
    federation: Federation, topology: Topology, clients: np.ndarray, model: MultimodalModel
) -> Cohort:
    def own(tree):
        return topology.to_edge(jax.tree.map(lambda x: x[clients], tree), per_client=True)

    return Cohort(clients=clients, model=model, train=own(federation.train),
                  held_out=None if federation.held_out_is_common else own(federation.held_out),
                  held_out_available=own(federation.held_out.available),
                  public_available=own(federation.public_available))
