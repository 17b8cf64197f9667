"""Answers of trained nodes on their held-out rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlecs_jax import programs
from mlecs_jax.captions import CaptionPredictor
from mlecs_jax.federation import Moments, Rows, gather
from mlecs_jax.lora import Params
from mlecs_jax.models.multimodal import Batch, MultimodalModel
from mlecs_jax.setting import Setting, held_out_rows

Tree = Any
CHUNK = 128  # rows per forward pass


def predict_rows(
    model: MultimodalModel, answer_ids: tuple[int, ...], backbone: Params, params: Params,
    rows: Rows, owned: Array, moments: dict[str, Moments],
) -> Int[Array, " n"]:
    """Greedy class answers of a node on all its rows; -1 where the model's likeliest first token
    is no answer at all. Rows without any modality are answered too, from the prompt alone."""
    ids = jnp.asarray(answer_ids)

    def chunk(index):
        logits = first_logits(model, backbone, params, gather(rows, owned, moments, index))
        matches = jnp.argmax(logits, axis=-1)[:, None] == ids
        return jnp.where(matches.any(1), jnp.argmax(matches, axis=1), -1)

    return map_rows(chunk, rows.target.shape[0])


def first_logits(
    model: MultimodalModel, backbone: Params, params: Params, batch: Batch
) -> Float[Array, "B V"]:
    """Scores of the first answer token, which names a class; the batch's targets are not read."""
    _, fused = model.represent(params, batch.inputs, batch.mask)
    return model.answer(backbone, params, fused, batch.target[:, :1]).logits()[:, 0]


def map_rows(fn: Callable[[Int[Array, " B"]], Tree], n: int, chunk: int = CHUNK) -> Tree:
    """``fn`` over row numbers 0…n-1 in chunks of one size, results joined: ``[n, …]``."""
    chunk = min(chunk, n)
    index = jnp.arange(math.ceil(n / chunk) * chunk) % n
    out = jax.lax.map(fn, index.reshape(-1, chunk))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], out)


@dataclasses.dataclass(frozen=True)
class Question:
    """Who would answer, in place of the answers where :attr:`Setting.unanswered` says so: with
    this, the nodes of any method can be taken out of its state.

    Attributes:
      setting: as the method has it (FedMLLM, for one, asks with an instruction of its own).
      params: stacked trainable groups per cohort, or the server's groups.
    """

    setting: Setting
    params: Any


class Predictor:
    """Compiled answers of devices and server on their held-out rows: classes or captions."""

    def __init__(self, setting: Setting):
        self._setting = setting
        kind = ClassPredictor if setting.federation.samples.texts is None else CaptionPredictor
        self._answers = kind(setting)

    def devices(self, params: tuple[Params, ...], r: int):
        """Answers of every device after round ``r``: classes ``[C, n]``, -1 if unparsable, or
        caption tokens ``[C, n, T]`` (:class:`mlecs_jax.captions.CaptionPredictor`)."""
        if self._setting.unanswered:
            return Question(self._setting, params)
        return self._answers.devices(params, r)

    def after_broadcast(
        self, received: Callable[[], tuple[Params, ...]], r: int
    ) -> dict[str, Any]:
        """``{'after_broadcast': answers}`` of every device with what ends round ``r``, where they
        are asked for (:meth:`Setting.asks_after_broadcast`), else nothing.

        Args:
          received: the devices with the broadcast; called where there is somebody to ask.
        """
        if not self._setting.asks_after_broadcast(r):
            return {}
        return {"after_broadcast": self.devices(received(), r)}

    def server(self, params: Params, r: int | None = None):
        """Answers of the server, ``[n]`` or ``[n, T]``; without a round as after the last one."""
        if self._setting.unanswered:
            return Question(self._setting, params)
        return self._answers.server(params, r)


def _device_answers(answer_ids: tuple[int, ...], model: MultimodalModel, shared, params, data):
    """A device's class answers; ``params`` is the state of for_each_client, which stays as it is:
    the parameters that answer are data."""
    answers = predict_rows(model, answer_ids, shared["slm"], data["params"],
                           held_out_rows(shared, data), data["owned"], shared["moments"])
    return params, answers


def _server_answers(answer_ids: tuple[int, ...], model: MultimodalModel, cloud, params: Params):
    """The server's class answers, with every modality that a row has."""
    rows: Rows = cloud["public_held_out"]
    every = jnp.ones(rows.available.shape[-1], bool)
    return predict_rows(model, answer_ids, cloud["llm"], params, rows, every, cloud["moments"])


class ClassPredictor:
    """Class answers of devices and server."""

    def __init__(self, setting: Setting):
        self.setting = setting

        self._devices = [
            setting.for_each_client_shared(_device_answers, setting.answer_ids, cohort.model)
            for cohort in setting.cohorts]
        self._server = programs.compiled(_server_answers, setting.answer_ids, setting.llm)

    def devices(self, params: tuple[Params, ...], r: int):
        """Class answers ``[C, n]`` of every device on its held-out rows, -1 if unparsable."""
        answers = [
            run(self.setting.edge, (), {"params": own, "owned": self.setting.owned(r, cohort)}
                | self.setting.held_out(cohort))[1]
            for run, own, cohort in zip(self._devices, params, self.setting.cohorts, strict=True)]
        widest = max(a.shape[1] for a in answers)
        padded = [jnp.pad(a, ((0, 0), (0, widest - a.shape[1])), constant_values=-1)
                  for a in answers]
        return self.setting.join(padded)

    def server(self, params: Params, r: int | None = None):
        """Class answers ``[n]`` of the server on its held-out rows, the same after any round."""
        del r
        return self._server(self.setting.cloud, params)
