"""A participant's :class:`~mlecs_jax.setting.Setting`: the simulation's, of one node alone.

Nothing here knows a method. What a device's setting lacks (the LLM's weights, other devices) and
what the cloud's lacks (any device) is simply not there: it is never built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import jax
import numpy as np

from mlecs_jax import assemble, backbones
from mlecs_jax.config import Config
from mlecs_jax.data import partition as partitioning
from mlecs_jax.data import text
from mlecs_jax.data.partition import Partition
from mlecs_jax.data.samples import Samples
from mlecs_jax.deploy import language
from mlecs_jax.deploy import share as shares
from mlecs_jax.deploy.language import Language
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.share import CLOUD, PARTS, Share
from mlecs_jax.errors import UserError
from mlecs_jax.federation import Federation, Rows
from mlecs_jax.setting import Cohort, Setting
from mlecs_jax.topology import Device, Topology


def device_setting(
    session: Session, number: int, data: Path, devices: Sequence[Device] | None = None
) -> Setting:
    """The setting of one device.

    Keys are functions of its number and rows are padded as the simulation's, so that it computes
    what its place in the simulation does.

    Args:
      data: the folder of its share.
      devices: accelerators; the first is used. None takes JAX's first.

    Raises:
      UserError: the share is another node's, or has more rows than the session allows; see also
        :func:`mlecs_jax.deploy.share.load` and :func:`mlecs_jax.deploy.language.load`.
    """
    share = shares.load(data)
    if share.node != number:
        raise UserError(f"the share is of {_who(share.node)}, not of {_who(number)}; "
                        "give this device its own folder")
    if len(share.parts["train"]) > session.train_rows:
        raise UserError(f"the share has {len(share.parts['train'])} training rows, the session "
                        f"says at most {session.train_rows}; provision again")
    config = session.experiment
    parts, samples, spoken = _rows(session, share, data)
    slm = assemble.model(config, samples, spoken.tokenizer, "slm", spoken.slm)
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
        # Nothing here asks the LLM; where it is a shape, programs are the simulation's.
        llm=slm if spoken.llm is None
        else assemble.model(config, samples, spoken.tokenizer, "llm", spoken.llm),
        tokenizer=spoken.tokenizer, answer_ids=_answer_ids(samples, spoken),
        edge=topology.to_edge({
            "slm": backbones.parameters(spoken.slm, slm, jax.random.fold_in(key, 0)),
            "public": federation.public, "moments": federation.moments, "held_out": None}),
        cloud={})


def cloud_setting(
    session: Session, data: Path, devices: Sequence[Device] | None = None
) -> Setting:
    """The setting of the cloud, of no devices; see :func:`device_setting`.

    Raises:
      UserError: the share is a device's.
    """
    share = shares.load(data)
    if share.node != CLOUD:
        raise UserError(f"the share is of {_who(share.node)}; give the cloud its own folder")
    config = session.experiment
    parts, samples, spoken = _rows(session, share, data)
    assert spoken.llm is not None  # the cloud has it
    slm, llm = (assemble.model(config, samples, spoken.tokenizer, which, getattr(spoken, which))
                for which in ("slm", "llm"))
    topology = Topology.create(1, list(devices or jax.devices())[:1])
    federation = _federation(config, share, samples, parts, 1, CLOUD)
    key = jax.random.key(config.model.backbone_seed)
    backbone = topology.to_cloud(
        backbones.parameters(spoken.slm, slm, jax.random.fold_in(key, 0)))
    return Setting(
        config=config, federation=federation, topology=topology, cohorts=(), slm=slm, llm=llm,
        tokenizer=spoken.tokenizer, answer_ids=_answer_ids(samples, spoken),
        edge={"slm": backbone},
        cloud=topology.to_cloud({
            "slm": backbone, "public": federation.public, "moments": federation.moments,
            "llm": backbones.parameters(spoken.llm, llm, jax.random.fold_in(key, 1)),
            "public_held_out": federation.public_held_out}))


def _rows(
    session: Session, share: Share, data: Path
) -> tuple[dict[str, Rows], Samples, Language]:
    """Rows of every part with their targets; all of them as one dataset; what they are read with.
    """
    config = session.experiment
    if share.captions != (config.captions is not None):
        raise UserError(f"the share holds {'captions' if share.captions else 'classes'}, the "
                        "session's configuration is of the other; provision it again")
    bare = {name: share.rows(name) for name in PARTS}
    told = [share.parts[name] for name in PARTS]
    count = sum(map(len, told))
    samples = Samples(
        name=share.name, source=cast(Literal["real", "simulated"], share.source),
        inputs={name: np.concatenate([rows.inputs[name] for rows in bare.values()])
                for name in share.modalities},
        present=np.concatenate([rows.available for rows in bare.values()]),
        labels=None if share.captions else np.concatenate(
            [np.asarray(part.labels) for part in told]),
        texts=tuple(text for part in told for text in part.texts or ()) if share.captions else None,
        context=tuple(words for part in told for words in part.context or ("",) * len(part))
        if any(part.context for part in told) else None,
        class_names=share.class_names, groups=np.zeros(count, np.int32),
        strata=np.zeros(count, np.int32))
    assemble.check_modalities(samples)
    if share.captions:
        spoken = language.load(config, data, session.language, cloud=share.node == CLOUD)
    else:
        names, tokenizer = backbones.resolve(config, samples)
        spoken = Language(tokenizer, **names)
    ends = np.cumsum([len(part) for part in told])[:-1]
    targets = np.split(_targets(config, share, samples, spoken), ends)
    parts = {name: dataclasses.replace(rows, target=target)
             for (name, rows), target in zip(bare.items(), targets, strict=True)}
    return parts, samples, spoken


def _targets(config: Config, share: Share, samples: Samples, spoken: Language) -> np.ndarray:
    """Answer tokens of all rows ``[n, T]``, padding where the answer is not told.

    Raises:
      UserError: tokens of a share that its texts do not make.
    """
    told = np.concatenate([share.parts[name].told for name in PARTS])[:, None]
    made = text.targets(samples, spoken.tokenizer,
                        config.captions.max_tokens if config.captions else 0)
    made = np.where(told, made, text.PADDING).astype(np.int32)
    given = [part.tokens for name in PARTS if (part := share.parts[name]).tokens is not None]
    if len(given) < len(PARTS):
        return made
    if len({tokens.shape[1] for tokens in given}) == 1:
        tokens = np.concatenate(given)
        width = max(tokens.shape[1], made.shape[1])
        if np.array_equal(_widened(tokens, width), _widened(made, width)):
            return tokens  # as wide as the simulation's, where they come from its rows
    raise UserError("the share's tokens are not what this deployment's tokenizer makes of its "
                    "texts; leave them out, or provision it again")


def _widened(tokens: np.ndarray, width: int) -> np.ndarray:
    return np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=text.PADDING)


def _answer_ids(samples: Samples, spoken: Language) -> tuple[int, ...]:
    return () if samples.labels is None else text.answer_ids(
        len(samples.class_names), spoken.tokenizer)


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
        public_labelled=share.parts["public"].told)
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
