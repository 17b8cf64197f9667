"""A participant's :class:`~mlecs_jax.setting.Setting`: the simulation's, of one node alone.

Nothing here knows a method. What a device's setting lacks (the LLM's weights, other devices) and
what the cloud's lacks (any device) is simply not there: it is never built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, cast

import jax
import numpy as np

from mlecs_jax import assemble, backbones
from mlecs_jax.config import Config
from mlecs_jax.data import partition as partitioning
from mlecs_jax.data import text
from mlecs_jax.data.partition import Partition
from mlecs_jax.data.samples import Samples
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.share import CLOUD, Share
from mlecs_jax.errors import UserError
from mlecs_jax.federation import Federation, Rows
from mlecs_jax.setting import Cohort, Setting
from mlecs_jax.topology import Device, Topology


def device_setting(
    session: Session, number: int, share: Share, devices: Sequence[Device] | None = None
) -> Setting:
    """The setting of one device.

    Keys are functions of its number and rows are padded as the simulation's, so that it computes
    what its place in the simulation does.

    Args:
      devices: accelerators; the first is used. None takes JAX's first.

    Raises:
      UserError: the share is another node's, or has more rows than the session allows.
    """
    if share.node != number:
        raise UserError(f"the share is of {_who(share.node)}, not of {_who(number)}; "
                        "give this device its own folder")
    if len(share.parts["train"]) > session.train_rows:
        raise UserError(f"the share has {len(share.parts['train'])} training rows, the session "
                        f"says at most {session.train_rows}; provision again")
    config = session.experiment
    parts, samples, tokenizer = _rows(config, share)
    found, _ = backbones.resolve(config, samples)
    slm, llm = (assemble.model(config, samples, tokenizer, which, found[which])
                for which in ("slm", "llm"))
    groups = assemble.cohort_clients(config.model, len(session.roster))
    widths = next(widths for clients, widths in groups if number in clients)
    topology = Topology.create(1, list(devices or jax.devices())[:1])
    federation = _federation(config, share, samples, parts, session.train_rows, number)
    key = jax.random.key(config.model.backbone_seed)

    def own(tree):
        return topology.to_edge(tree, per_client=True)

    cohort = Cohort(
        clients=np.array([number]), model=assemble.widen(slm, widths), train=own(federation.train),
        held_out=own(federation.held_out), held_out_available=own(federation.held_out.available),
        public_available=own(federation.public_available))
    return Setting(
        config=config, federation=federation, topology=topology, cohorts=(cohort,), slm=slm,
        llm=llm, tokenizer=tokenizer,
        answer_ids=text.answer_ids(len(samples.class_names), tokenizer),
        edge=topology.to_edge({
            "slm": backbones.parameters(found["slm"], slm, jax.random.fold_in(key, 0)),
            "public": federation.public, "moments": federation.moments, "held_out": None}),
        cloud={})


def cloud_setting(
    session: Session, share: Share, devices: Sequence[Device] | None = None
) -> Setting:
    """The setting of the cloud, of no devices.

    Raises:
      UserError: the share is a device's.
    """
    if share.node != CLOUD:
        raise UserError(f"the share is of {_who(share.node)}; give the cloud its own folder")
    config = session.experiment
    parts, samples, tokenizer = _rows(config, share)
    found, _ = backbones.resolve(config, samples)
    slm, llm = (assemble.model(config, samples, tokenizer, which, found[which])
                for which in ("slm", "llm"))
    topology = Topology.create(1, list(devices or jax.devices())[:1])
    federation = _federation(config, share, samples, parts, 1, CLOUD)
    key = jax.random.key(config.model.backbone_seed)
    backbone = topology.to_cloud(
        backbones.parameters(found["slm"], slm, jax.random.fold_in(key, 0)))
    return Setting(
        config=config, federation=federation, topology=topology, cohorts=(), slm=slm, llm=llm,
        tokenizer=tokenizer, answer_ids=text.answer_ids(len(samples.class_names), tokenizer),
        edge={"slm": backbone},
        cloud=topology.to_cloud({
            "slm": backbone, "public": federation.public, "moments": federation.moments,
            "llm": backbones.parameters(found["llm"], llm, jax.random.fold_in(key, 1)),
            "public_held_out": federation.public_held_out}))


def _rows(config: Config, share: Share) -> tuple[dict[str, Rows], Samples, text.Tokenizer]:
    """Rows of every part with their targets; all of them as one dataset; the tokenizer."""
    bare = {name: share.rows(name) for name in ("train", "held_out", "public")}
    labels = np.concatenate([share.parts[name].labels for name in bare])
    samples = Samples(
        name=share.name, source=cast(Literal["real", "simulated"], share.source),
        inputs={name: np.concatenate([rows.inputs[name] for rows in bare.values()])
                for name in share.modalities},
        present=np.concatenate([rows.available for rows in bare.values()]), labels=labels,
        class_names=share.class_names, groups=np.zeros(len(labels), np.int32),
        strata=np.zeros(len(labels), np.int32))
    assemble.check_modalities(samples)
    _, tokenizer = backbones.resolve(config, samples)
    told = text.targets(samples, tokenizer)
    told = np.where(labels[:, None] >= 0, told, text.PADDING).astype(np.int32)
    ends = np.cumsum([len(rows.target) for rows in bare.values()])[:-1]
    parts = {name: dataclasses.replace(rows, target=target) for (name, rows), target in
             zip(bare.items(), np.split(told, ends), strict=True)}
    return parts, samples, tokenizer


def _federation(
    config: Config, share: Share, samples: Samples, parts: dict[str, Rows], train_rows: int,
    number: int,
) -> Federation:
    """The federation of one node; of a device all but its own modality sets are empty."""
    counts = [len(rows.target) for rows in parts.values()]
    train, held_out, public = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    val, test = held_out[:share.num_val], held_out[share.num_val:]
    none = np.empty(0, int)
    cloud = number == CLOUD
    dealt = Partition(
        public=partitioning.Share(train=public, val=val if cloud else none,
                                  test=test if cloud else none),
        devices=() if cloud else (partitioning.Share(train=train, val=val, test=test),),
        public_labelled=share.parts["public"].labels >= 0)
    owned = np.zeros((len(share.owned), max(number, 0) + 1, len(share.modalities)), bool)
    owned[:, -1] = share.owned
    one = jax.tree.map(lambda x: x[None], parts["held_out"])
    per_sample = config.partition.mask_schedule == "per_sample"
    return Federation(
        samples=samples, partition=dealt, train=_padded(parts["train"], train_rows), held_out=one,
        held_out_is_common=False, num_val=np.array([share.num_val]), public=parts["public"],
        public_held_out=parts["held_out"], public_num_val=share.num_val,
        public_available=parts["public"].available[None] if per_sample else None,
        moments=dict(share.moments), owned=owned)


def _padded(rows: Rows, length: int) -> Rows:
    """Rows ``[n, …]`` as those of one client, ``[1, length, …]``; padding is never looked at."""
    count = rows.count
    padded = jax.tree.map(lambda x: np.resize(x, (length, *x.shape[1:]))[None] if len(x)
                          else np.zeros((1, length, *x.shape[1:]), x.dtype),
                          dataclasses.replace(rows, count=None))
    return dataclasses.replace(padded, count=np.array([count], np.int32))


def _who(node: int) -> str:
    return "the cloud" if node == CLOUD else f"device {node}"
