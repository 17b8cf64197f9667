"""Encoders that travel: each modality's, with its projector, shared by the devices that own it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import aggregate, channel
from mlecs_jax.lora import Params
from mlecs_jax.setting import Cohort, Setting

Encoders = tuple[dict[str, Params], ...]
"""Per structure, ``{modality: {'encoder': tree, 'projector': tree}}``."""


class ModalityExchange:
    """Means of encoders over owners, and back.

    Cohorts whose encoders have equal shapes form one *structure* and average together; between
    structures nothing can be averaged.
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        self._mean = jax.jit(functools.partial(_mean, setting.federation.modalities))

    def first(self, devices: tuple[Params, ...]) -> Encoders:
        """What the server sends before it has heard anyone: in each structure, the encoders of its
        first device, so that all begin alike."""
        return tuple(jax.tree.map(lambda x: x[0], self._of(devices[group[0]]))
                     for group in self._groups(devices))

    def mean(self, devices: tuple[Params, ...], previous: Encoders, r: int) -> Encoders:
        """Sample-weighted mean of each modality's encoder over the owners in round ``r``."""
        federation, topology = self.setting.federation, self.setting.topology
        result = []
        for group, old in zip(self._groups(devices), previous, strict=True):
            clients = np.concatenate([self.setting.cohorts[i].clients for i in group])
            stacked = jax.tree.map(lambda *parts: jnp.concatenate(parts),
                                   *(self._of(devices[i]) for i in group))
            uploads = topology.to_cloud({
                "encoders": stacked, "samples": federation.train.count[clients],
                "owned": federation.owned_at(r)[clients], "previous": old})
            result.append(topology.to_edge(self._mean(uploads)))
        return tuple(result)

    def receive(
        self, devices: tuple[Params, ...], encoders: Encoders, r: int
    ) -> tuple[Params, ...]:
        """Devices with the received encoders of the modalities they own in round ``r``; what they
        do not own stays as it is."""
        received = list(devices)
        for group, new in zip(self._groups(devices), encoders, strict=True):
            for i in group:
                received[i] = self._overwrite(self.setting.cohorts[i], devices[i], new, r)
        return tuple(received)

    def num_bytes(self, encoders: Encoders, devices: tuple[Params, ...]) -> int:
        """Payload of one device and round, one way: the encoders it owns, averaged over devices
        and rounds."""
        owned = self.setting.federation.owned
        sent = np.zeros(owned.shape[:2])
        for group, tree in zip(self._groups(devices), encoders, strict=True):
            clients = np.concatenate([self.setting.cohorts[i].clients for i in group])
            sizes = [channel.num_bytes(tree[name]) for name in self.setting.federation.modalities]
            sent[:, clients] = owned[:, clients] @ np.array(sizes)
        return round(sent.mean())

    def _overwrite(self, cohort: Cohort, params: Params, new: dict[str, Params], r: int) -> Params:
        owned = self.setting.owned(r, cohort)
        extractor, connector = dict(params["extractor"]), dict(params["connector"])
        for m, name in enumerate(self.setting.federation.modalities):
            own = {"encoder": extractor[name], "projector": connector[f"projector_{name}"]}
            mixed = jax.tree.map(
                lambda x, y, has=owned[:, m]: jnp.where(
                    has.reshape(-1, *(1,) * (x.ndim - 1)), y, x), own, new[name])
            extractor[name], connector[f"projector_{name}"] = mixed["encoder"], mixed["projector"]
        return params | {"extractor": extractor, "connector": connector}

    def _of(self, params: Params) -> dict[str, Params]:
        return {name: {"encoder": params["extractor"][name],
                       "projector": params["connector"][f"projector_{name}"]}
                for name in self.setting.federation.modalities}

    def _groups(self, devices: tuple[Params, ...]) -> list[list[int]]:
        """Cohorts of equal encoder shapes."""
        groups: dict[str, list[int]] = {}
        for i, params in enumerate(devices):
            shapes = jax.tree.map(lambda x: x.shape[1:], self._of(params))
            groups.setdefault(str(shapes), []).append(i)
        return list(groups.values())


def _mean(modalities, uploads):
    return aggregate.per_modality(uploads["encoders"], uploads["samples"], uploads["owned"],
                                  uploads["previous"], modalities)
