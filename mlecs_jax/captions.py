"""Captions of trained nodes: greedy generation on held-out rows, and their scores.

Generation costs a forward pass a token, so after most rounds only ``captions.val_rows`` validation
rows are captioned, of all corpora; the test rows are after the last round and every
``captions.test_every`` rounds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mlecs_jax import programs
from mlecs_jax.config import CaptionsConfig, Config
from mlecs_jax.federation import Rows, gather
from mlecs_jax.lora import Params
from mlecs_jax.metrics import bertscore
from mlecs_jax.metrics.rouge import PRIMARY, rouge
from mlecs_jax.models import generate
from mlecs_jax.models.multimodal import Batch, MultimodalModel
from mlecs_jax.setting import Setting, held_out_rows

CHUNK = 64  # rows per call of the generator
NOT_CAPTIONED = -2  # in place of the tokens of a row that was not asked for


def options_of(setting: Setting) -> CaptionsConfig:
    """The run's captioning options."""
    options = setting.config.captions
    assert options is not None  # captions are loaded by them
    return options


def tests_due(config: Config, r: int | None) -> bool:
    """Whether test rows are captioned after round ``r`` (None: as after the last)."""
    assert config.captions is not None
    every = config.captions.test_every
    return r is None or r == config.train.rounds - 1 or bool(every and (r + 1) % every == 0)


def validated(num_val: int, wanted: int, seed: int) -> np.ndarray:
    """Which of a node's validation rows are captioned after every round, int ``[n]`` ascending.

    Evenly spaced from a drawn place on: rows lie corpus by corpus, so that each has its share.
    Nodes with the same rows draw the same, and a deployed node what a simulated one does.
    """
    n = min(wanted, num_val)
    begin = np.random.default_rng([seed, num_val]).random()
    return ((np.arange(n) + begin) * num_val / max(n, 1)).astype(int)


def generate_batch(
    setting: Setting, model: MultimodalModel, backbone: Params, params: Params, batch: Batch
) -> Int[Array, "B T"]:
    """Greedy captions of a batch: tokens up to and with the end of sequence."""
    return _generated(limits_of(setting), model, backbone, params, batch)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a caption can be, for programs that runs share.

    Attributes:
      longest: tokens, with the end of sequence.
      end: the token that ends it.
      vocabulary: tokens that there are.
    """

    longest: int
    end: int
    vocabulary: int


def limits_of(setting: Setting) -> Limits:
    """Of a run's captions."""
    return Limits(options_of(setting).max_tokens, setting.tokenizer.eos_token_id,
                  len(setting.tokenizer))


def _generated(
    limits: Limits, model: MultimodalModel, backbone: Params, params: Params, batch: Batch
) -> Int[Array, "B T"]:
    _, fused = model.represent(params, batch.inputs, batch.mask)
    prefix = cast(Array, model.generator.apply(
        {"params": params["generator"]}, fused, deterministic=True))
    prompt = jnp.broadcast_to(jnp.asarray(model.prompt, jnp.int32),
                              (fused.shape[0], len(model.prompt)))
    return generate.greedy(
        model.decoder, backbone, params["lora"], prefix, prompt, jnp.ones(prompt.shape, bool),
        max_new_tokens=limits.longest, eos_id=limits.end, vocab_size=limits.vocabulary)


def _device_captions(limits: Limits, model: MultimodalModel, shared, params, data):
    """A device's captions of the rows ``data['index']``; ``params`` is the state of
    for_each_client, which stays as it is: the parameters that answer are data."""
    batch = gather(held_out_rows(shared, data), data["owned"], shared["moments"], data["index"])
    return params, _generated(limits, model, shared["slm"], data["params"], batch)


def _server_captions(limits: Limits, model: MultimodalModel, cloud, params: Params, index):
    """The server's captions of some of its rows, with every modality that a row has."""
    rows: Rows = cloud["public_held_out"]
    every = jnp.ones(rows.available.shape[-1], bool)
    return _generated(limits, model, cloud["llm"], params,
                      gather(rows, every, cloud["moments"], index))


class CaptionPredictor:
    """Compiled captions of devices and server on their held-out rows."""

    def __init__(self, setting: Setting):
        self._setting, limits = setting, limits_of(setting)
        # One device at a time: its rows fill a chip, and caches of several would not fit.
        self._devices = [
            setting.for_each_client_shared(_device_captions, limits, cohort.model, chunk=1)
            for cohort in setting.cohorts]
        self._server = programs.compiled(_server_captions, limits, setting.llm)

    def devices(self, params: tuple[Params, ...], r: int) -> np.ndarray:
        """Caption tokens ``[C, n, T]`` of every device on its held-out rows after round ``r``;
        :data:`NOT_CAPTIONED` where the round asks for no caption."""
        setting, federation = self._setting, self._setting.federation
        rows = [self._asked(r, int(num_val), len(federation.held_out_rows(j, "test")))
                for j, num_val in enumerate(federation.num_val)]
        captions = self._empty((len(rows), federation.held_out.target.shape[-2]))
        places = [np.searchsorted(setting.numbers, cohort.clients) for cohort in setting.cohorts]
        for index in _chunks(rows):
            for run, own, cohort, place in zip(self._devices, params, setting.cohorts, places,
                                               strict=True):
                data = {"params": own, "owned": setting.owned(r, cohort), "index":
                        setting.topology.to_edge(index[place], per_client=True)}
                tokens = run(setting.edge, (), data | setting.held_out(cohort))[1]
                captions[place[:, None], index[place]] = setting.topology.host(tokens)
        for own, asked in zip(captions, rows, strict=True):
            if not len(asked):  # kept company with the others
                own[:] = NOT_CAPTIONED
        return captions

    def server(self, params: Params, r: int | None = None) -> np.ndarray:
        """Caption tokens ``[n, T]`` of the server on its held-out rows; None asks for all."""
        federation = self._setting.federation
        rows = self._asked(r, federation.public_num_val,
                           len(federation.held_out_rows(None, "test")))
        captions = self._empty((len(federation.public_held_out.target),))
        for index in _chunks([rows]):
            where = self._setting.topology.to_cloud(index[0])
            captions[index[0]] = self._setting.topology.host(
                self._server(self._setting.cloud, params, where))
        return captions

    def _asked(self, r: int | None, num_val: int, num_test: int) -> np.ndarray:
        """Held-out rows to caption after a round (None: as after the last)."""
        config = self._setting.config
        val = validated(num_val, options_of(self._setting).val_rows, config.partition.seed)
        due = tests_due(config, r)
        return np.concatenate([val, num_val + np.arange(num_test)]) if due else val

    def _empty(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full((*shape, options_of(self._setting).max_tokens), NOT_CAPTIONED, np.int32)


def _chunks(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Row numbers of every node ``[C, CHUNK]``, call by call; short nodes repeat their first, and
    those that are asked for none the first they have."""
    longest = max(map(len, rows))
    width = -(-longest // CHUNK) * CHUNK
    padded = np.stack([np.concatenate([own, np.full(
        width - len(own), own[0] if len(own) else 0, own.dtype)]) for own in rows])
    return [padded[:, start:start + CHUNK] for start in range(0, width, CHUNK)]


def texts_of(setting: Setting, tokens: np.ndarray) -> list[str]:
    """Captions as text, outer blanks cut off."""
    return [setting.tokenizer.decode(row).strip() for row in tokens.tolist()]


def metric_scores(
    setting: Setting, references: Sequence[str], generated: Sequence[str], part: str
) -> dict[str, np.ndarray]:
    """Every metric of each pair, ``[n]``; BERTScore on test rows where an encoder is given."""
    table = rouge(references, generated)
    directory = options_of(setting).bertscore
    if directory and part == "test":
        encoder = bertscore.load_encoder(Path(directory).expanduser())
        table[f"bertscore_{encoder.name}"] = bertscore.bertscore(
            encoder, references, generated, _baseline(encoder, _references(setting)))
    return table


@functools.lru_cache(maxsize=2)
def _baseline(encoder: bertscore.DirectoryEncoder, references: tuple[str, ...]) -> float:
    return bertscore.corpus_baseline(encoder, references)


def _references(setting: Setting) -> tuple[str, ...]:
    texts = setting.federation.samples.texts
    assert texts is not None
    return texts


def captioned(
    setting: Setting, client: int | None, tokens: np.ndarray, num_val: int, part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in ``samples`` that a node captioned, and the captions' tokens."""
    rows = setting.federation.held_out_rows(client, part)
    start = num_val if part == "test" else 0
    own = tokens[start:start + len(rows)]
    done = own[:, 0] != NOT_CAPTIONED
    return rows[done], own[done]


def score_node(
    setting: Setting, client: int | None, tokens: np.ndarray, num_val: int, part: str
) -> dict[str, float] | None:
    """Mean of every metric over a node's captioned rows; None where there are none."""
    rows, own = captioned(setting, client, tokens, num_val, part)
    if not len(rows):
        return None
    references = [_references(setting)[row] for row in rows]
    scores = metric_scores(setting, references, texts_of(setting, own), part)
    return {name: float(values.mean()) for name, values in scores.items()}


def shown(setting: Setting, predictions: Mapping[str, Any], stage: str) -> list[dict[str, Any]]:
    """Captions to read: test rows drawn at random (not chosen by score), the server's and each
    device's by turns, beside reference, inputs and score; of the nodes that have predictions."""
    federation, count = setting.federation, options_of(setting).shown
    nodes: list[tuple[int | None, np.ndarray, int]] = [
        (j, np.asarray(tokens), int(federation.num_val[j]))
        for j, tokens in enumerate(predictions.get(stage, ()))]
    if "server" in predictions:
        nodes.insert(0, (None, np.asarray(predictions["server"]), federation.public_num_val))
    rng = np.random.default_rng(setting.config.seed)
    owned = federation.owned_at(setting.config.train.rounds - 1)[setting.numbers]
    queues = []
    for client, tokens, num_val in nodes:
        rows, own = captioned(setting, client, tokens, num_val, "test")
        order = rng.permutation(len(rows))[:count]
        queues.append([_sample(setting, client, int(rows[i]), own[i], owned) for i in order])
    turns = itertools.zip_longest(*queues)
    return [entry for turn in turns for entry in turn if entry is not None][:count]


def _sample(
    setting: Setting, client: int | None, row: int, tokens: np.ndarray, owned: np.ndarray
) -> dict[str, Any]:
    samples = setting.federation.samples
    has = np.asarray(samples.present[row]) & (True if client is None else owned[client])
    reference, text = _references(setting)[row], texts_of(setting, tokens[None])[0]
    return {
        "node": "server" if client is None else f"device {setting.numbers[client]}",
        "row": row,
        "modalities": [name for name, there in zip(samples.modalities, has, strict=True) if there],
        "reference": reference,
        "generated": text,
        PRIMARY: round(float(rouge([reference], [text])[PRIMARY][0]), 4),
        "inputs": None if samples.context is None else samples.context[row],
        "data_source": samples.source,
    }
