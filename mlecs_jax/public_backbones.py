"""Small decoders trained on a run's public training text, once, and kept in the cache.

A frozen backbone of random weights cannot write a sentence. Where no checkpoint is at hand,
``pretrained:SHAPE`` trains one on what every node of the federation may read anyway.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax.data import paths, prepared
from mlecs_jax.data.vocabulary import VocabularyTokenizer
from mlecs_jax.models import initial, zoo
from mlecs_jax.models.decoder import Decoder, DecoderConfig
from mlecs_jax.train import fit, optimiser

WINDOW, BATCH = 64, 16  # tokens, windows
RATE, FINAL_FRACTION = 2e-3, 0.1
CHECKS = 6  # times that held-back text is scored; the best weights are kept
HELD_BACK = 0.05  # share of the documents
_VERSION = 1  # of this recipe; part of the cache's key


@dataclasses.dataclass(frozen=True)
class Documents:
    """Public training text.

    Attributes:
      captions: targets; half of what the model reads.
      context: other sentences, the words behind inputs.
      prompt: what stands before a caption in the run.
    """

    captions: Sequence[str]
    context: Sequence[str]
    prompt: str


def directory(
    shape: str, documents: Documents, tokenizer: VocabularyTokenizer, steps: int, seed: int
) -> Path:
    """The Hugging Face directory of a decoder trained on the documents, training it if need be.

    Args:
      shape: a name of :mod:`mlecs_jax.models.zoo`.
      steps: batches of :data:`BATCH` windows of :data:`WINDOW` tokens.

    Raises:
      UserError: an unknown shape, or a cache that cannot be written.
    """
    config = zoo.decoder_config(shape, len(tokenizer))
    vocabulary = sorted(tokenizer.wrapped.get_vocab().items())
    recipe = json.dumps([_VERSION, dataclasses.asdict(documents), dataclasses.asdict(config),
                         vocabulary, steps, seed, WINDOW, BATCH, RATE])
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    folder = paths.cache_dir() / "pretrained" / f"{shape}-{digest[:12]}"

    def write(staging: Path) -> Path:
        from mlecs_jax.models import hf  # imports safetensors

        print(f"pretraining {shape} on {len(documents.captions)} public captions and "
              f"{len(documents.context)} public sentences, once; kept in {folder}",
              file=sys.stderr, flush=True)
        made = staging / "model"
        params = train(config, documents, tokenizer, steps, seed, shape)
        hf.save(made, config, params, tokenizer=tokenizer.wrapped)
        return made

    prepared.prepare_once(folder, digest, write)
    return folder


def train(
    config: DecoderConfig, documents: Documents, tokenizer: VocabularyTokenizer, steps: int,
    seed: int, title: str = "decoder",
) -> initial.Params:
    """Parameters that predict held-back text best among :data:`CHECKS` points of training."""
    rng = np.random.default_rng(seed)
    streams, held_back = _streams(documents, tokenizer, rng)
    decoder = Decoder(config)
    params = initial.draw(lambda key: decoder.init(key, jnp.zeros((1, 1), jnp.int32)),
                          jax.random.key(seed), embedding_std=0.05)
    key = jax.random.key(seed + 1)

    def nll(params, windows):
        # flax's type allows for mutated variables beside the output; there are none.
        logits = cast(jax.Array, decoder.apply({"params": params}, windows[:, :-1]))
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, windows[:, 1:, None], axis=-1).mean()

    def batch_at(key, step):
        """Half of the windows of each stream, cut at random places."""
        keys = jax.random.split(jax.random.fold_in(key, step), len(streams))
        starts = [jax.random.randint(k, (BATCH // len(streams),), 0, len(s) - WINDOW - 1)
                  for k, s in zip(keys, streams, strict=True)]
        return jnp.concatenate([s[start[:, None] + jnp.arange(WINDOW + 1)]
                                for s, start in zip(streams, starts, strict=True)])

    @functools.partial(jax.jit, donate_argnums=0)
    def stage(params, key, rate):
        return fit(lambda p, batch, _: (nll(p, batch), {}), params,
                   functools.partial(batch_at, key), max(1, steps // CHECKS), rate, key,
                   transform=optimiser())[0]

    score = jax.jit(nll)
    best, best_score = params, np.inf
    with prepared.progress_bar(title, CHECKS) as advance:
        for check in range(CHECKS):
            rate = RATE * (1 - (1 - FINAL_FRACTION) * check / (CHECKS - 1))
            params = stage(params, jax.random.fold_in(key, check), rate)
            found = float(score(params, held_back))
            advance(f"{found:.2f} nats a token of held-back text")
            if found < best_score:
                best, best_score = jax.device_get(params), found
    return best


def _streams(
    documents: Documents, tokenizer: VocabularyTokenizer, rng: np.random.Generator
) -> tuple[list[jax.Array], jax.Array]:
    """Token streams to train on, and windows ``[n, WINDOW + 1]`` of held-back captions."""
    prompted = [f"{documents.prompt} {text.strip()}" for text in documents.captions]
    training, held_back = [], np.empty(0, np.int32)
    for texts in (prompted, list(documents.context)):
        rows = rng.permutation(len(texts))
        cut = max(1, round(HELD_BACK * len(texts)))
        if len(texts):
            stream = _joined([texts[i] for i in rows[cut:]], tokenizer)
            training.append(jnp.asarray(np.resize(stream, max(len(stream), 2 * WINDOW + 2))))
        if texts is prompted:
            held_back = _joined([texts[i] for i in rows[:cut]], tokenizer)
    windows = max(1, len(held_back) // (WINDOW + 1))
    return training, jnp.asarray(np.resize(held_back, (windows, WINDOW + 1)))


def _joined(texts: Sequence[str], tokenizer: VocabularyTokenizer) -> np.ndarray:
    ids = [token for text in texts for token in (*tokenizer.encode(text), tokenizer.eos_token_id)]
    return np.asarray(ids or [tokenizer.eos_token_id], np.int32)
