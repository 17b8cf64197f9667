"""Text generation with a key-value cache: greedy, sampling, beam search.

Every function is pure, compiled once per shape of its arguments, and may itself be mapped over
clients: the backbone is shared, adapters are applied on the side, and the loop over tokens stays
*one* loop that ends when every row of every client has ended.

Shape letters: B batch, P soft-prompt vectors, T prompt tokens, D width, V vocabulary, W beams.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mlecs_jax.errors import UserError
from mlecs_jax.lora import Lora, Params
from mlecs_jax.models.decoder import Cache, Decoder

PADDING = -1  # after the end-of-sequence token; never a token id
SMALLEST_BUCKET = 8
STATIC = ("decoder", "max_new_tokens", "eos_id", "vocab_size")

Prefix = Float[Array, "B P D"] | None
Prompt = Int[Array, "B T"] | Int[np.ndarray, "B T"]
PromptMask = Bool[Array, "B T"] | Bool[np.ndarray, "B T"]
Ends = int | np.integer | Sequence[int] | None
Given = ParamSpec("Given")
Result = TypeVar("Result")


def _program(*static: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Compiles an algorithm, once per shape of its arguments, and checks what it is called with."""
    def decorate(fn: Callable[Given, Result]) -> Callable[Given, Result]:
        compiled = jax.jit(fn, static_argnames=(*STATIC, *static))
        signature = inspect.signature(fn)

        @functools.wraps(compiled)
        def call(*args: Given.args, **options: Given.kwargs) -> Result:
            bound = signature.bind(*args, **options)
            _check(bound.arguments)
            return compiled(*bound.args, **bound.kwargs)

        return call
    return decorate


@_program()
def greedy(
    decoder: Decoder, backbone: Params, lora: Lora | None, prefix_embeddings: Prefix,
    prompt_ids: Prompt, prompt_mask: PromptMask, *,
    max_new_tokens: int, eos_id: Ends, vocab_size: int | None = None,
) -> Int[Array, "B new"]:
    """The likeliest token at every step.

    Args:
      backbone, lora: the decoder's parameters, and adapters or None.
      prefix_embeddings: soft prompt before the prompt, or None.
      prompt_ids, prompt_mask: prompts padded on the *left* (:func:`pad_prompts`), and which of
        their entries are tokens; T may be 0 behind a soft prompt.
      max_new_tokens: longest answer, at least 1.
      eos_id: the token that ends an answer, several of which each does, or None.
      vocab_size: ids from here on are never answered (rows that only pad the vocabulary).

    Returns:
      Answers, the end-of-sequence token included, then -1.

    Raises:
      UserError: prompt and answer are longer than the decoder's learned positions. Padding takes
        none of them, except where the mask is traced: columns count there.
    """
    def choose(logits, step):
        del step
        return jnp.argmax(logits, axis=-1)

    return _answers(decoder, backbone, lora, prefix_embeddings, prompt_ids, prompt_mask, choose,
                    max_new_tokens, eos_id, vocab_size)


@_program()
def sample(
    decoder: Decoder, backbone: Params, lora: Lora | None, prefix_embeddings: Prefix,
    prompt_ids: Prompt, prompt_mask: PromptMask, key: PRNGKeyArray, *,
    max_new_tokens: int, eos_id: Ends, vocab_size: int | None = None,
    temperature: float | Float[Array, ""] = 1.0, top_p: float | Float[Array, ""] = 1.0,
) -> Int[Array, "B new"]:
    """Tokens drawn from softmax(logits / temperature), the least likely left out.

    Args:
      key: step i draws with ``fold_in(key, i)``.
      temperature, top_p: traced, so that a sweep compiles once; temperature 0 is greedy, ``top_p``
        keeps the fewest tokens whose probabilities sum to it (Holtzman et al., 2020), the likeliest
        always.

    Other arguments, result and errors as in :func:`greedy`; also a UserError for a temperature
    below 0 that is not traced.
    """
    def choose(logits, step):
        logits = logits.astype(jnp.float32)
        # From the likeliest down, so that no temperature is too low to divide by.
        below = logits - jnp.max(logits, axis=-1, keepdims=True)
        inside = nucleus(below / jnp.where(temperature > 0, temperature, 1.0), top_p)
        drawn = jax.random.categorical(jax.random.fold_in(key, step), inside, axis=-1)
        return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))

    return _answers(decoder, backbone, lora, prefix_embeddings, prompt_ids, prompt_mask, choose,
                    max_new_tokens, eos_id, vocab_size)


@_program("beams")
def beam(
    decoder: Decoder, backbone: Params, lora: Lora | None, prefix_embeddings: Prefix,
    prompt_ids: Prompt, prompt_mask: PromptMask, *,
    max_new_tokens: int, eos_id: Ends, vocab_size: int | None = None,
    beams: int = 4, length_penalty: float | Float[Array, ""] = 1.0,
) -> Int[Array, "B new"]:
    """The best of ``beams`` answers kept side by side.

    Answers compete by log-likelihood while they grow, ended ones keeping their place; the winner
    has the greatest log-likelihood / length^length_penalty.

    Other arguments, result and errors as in :func:`greedy`; also a UserError for no beam at all.
    """
    batch, width = prompt_ids.shape[0], beams
    step_fn, logits, cache = _begin(decoder, backbone, lora, prefix_embeddings, prompt_ids,
                                    prompt_mask, max_new_tokens, vocab_size)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    vocabulary = log_p.shape[-1]
    width_first = min(width, vocabulary)
    scores, first = jax.lax.top_k(log_p, width_first)
    pad = ((0, 0), (0, width - width_first))
    scores = jnp.pad(scores, pad, constant_values=-jnp.inf)
    first = jnp.pad(first, pad)
    cache = _rows(cache, jnp.repeat(jnp.arange(batch), width))
    tokens = jnp.full((batch, width, max_new_tokens), PADDING, jnp.int32).at[..., 0].set(first)
    alive = _goes_on(first, eos_id)

    def body(carry):
        step, tokens, scores, alive, cache = carry
        last = jnp.maximum(jnp.take(tokens, step - 1, axis=2), 0)
        logits, cache = step_fn(last.reshape(-1), cache)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, width, vocabulary)
        stay = jnp.where(jnp.arange(vocabulary) == 0, 0.0, -jnp.inf)  # an ended answer goes on once
        total = scores[..., None] + jnp.where(alive[..., None], log_p, stay)
        scores, best = jax.lax.top_k(total.reshape(batch, -1), width)
        parent, token = best // vocabulary, best % vocabulary
        alive = jnp.take_along_axis(alive, parent, axis=1)
        tokens = jnp.take_along_axis(tokens, parent[..., None], axis=1)
        tokens = tokens.at[..., step].set(jnp.where(alive, token, PADDING))
        alive &= _goes_on(token, eos_id)
        rows = (jnp.arange(batch)[:, None] * width + parent).reshape(-1)
        return step + 1, tokens, scores, alive, _rows(cache, rows)

    def unfinished(carry):
        return (carry[0] < max_new_tokens) & _any(carry[3])

    _, tokens, scores, _, _ = jax.lax.while_loop(
        unfinished, body, (jnp.int32(1), tokens, scores, alive, cache))
    lengths = jnp.sum(tokens != PADDING, axis=-1)
    best = jnp.argmax(scores / lengths ** jnp.asarray(length_penalty, jnp.float32), axis=1)
    return jnp.take_along_axis(tokens, best[:, None, None], axis=1)[:, 0]


def nucleus(
    logits: Float[Array, "*batch V"], top_p: float | Float[Array, ""]
) -> Float[Array, "*batch V"]:
    """Logits, -inf outside the fewest tokens whose probabilities sum to ``top_p``."""
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    inside = (before < top_p).at[..., 0].set(True)
    threshold = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def bucket(length: int) -> int:
    """The least of 8, 16, 32, … that holds ``length``: prompts of one bucket share a program."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def pad_prompts(
    prompts: Sequence[Sequence[int]],
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Token ids padded on the left to the longest prompt's bucket, and which are tokens.

    Raises:
      UserError: no prompts, or an empty one.
    """
    if not prompts or not all(prompts):
        raise UserError("nothing to continue: give prompts of at least one token each")
    width = bucket(max(map(len, prompts)))
    ids = np.zeros((len(prompts), width), np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, kept, prompt in zip(ids, mask, prompts, strict=True):
        row[width - len(prompt):], kept[width - len(prompt):] = prompt, True
    return ids, mask


def strip(tokens: Int[Array, "B new"] | Int[np.ndarray, "B new"],
          eos_id: Ends) -> list[list[int]]:
    """Answers as lists of token ids, without end-of-sequence token and padding."""
    left_out = (PADDING, *_ends(eos_id))
    return [[int(t) for t in row if t not in left_out] for row in np.asarray(tokens)]


def _ends(eos_id: Ends) -> tuple[int, ...]:
    if eos_id is None:
        return ()
    return (int(eos_id),) if isinstance(eos_id, int | np.integer) else tuple(map(int, eos_id))


def _goes_on(tokens: Int[Array, "*batch"], ends: Ends) -> Bool[Array, "*batch"]:
    """Whether an answer goes on after these tokens."""
    alive = jnp.ones(tokens.shape, bool)
    for end in _ends(ends):
        alive &= tokens != end
    return alive


def _check(given: dict[str, Any]) -> None:
    """Checks the arguments of an algorithm, and makes ends hashable and prompts narrow enough.

    A bucket may be wider than the learned positions left for its prompts: such columns are cut
    where all of them are padding, so that a prompt is refused for its own length alone.
    """
    decoder, prefix, new = (given[name] for name in (
        "decoder", "prefix_embeddings", "max_new_tokens"))
    if new < 1:
        raise UserError(f"max_new_tokens is {new}; give 1 or more")
    if given.get("beams", 1) < 1:
        raise UserError(f"beams is {given['beams']}; give 1 or more")
    temperature = given.get("temperature", 1.0)
    if not isinstance(temperature, Tracer) and not temperature >= 0:
        raise UserError(f"temperature is {temperature}; give 0 (greedy) or a positive number")
    given["eos_id"] = _ends(given["eos_id"])
    if decoder.config.family != "gpt2":
        return
    soft = 0 if prefix is None else prefix.shape[1]
    room = decoder.config.max_positions - soft - new + 1
    ids, mask = given["prompt_ids"], given["prompt_mask"]
    length = ids.shape[1]
    if length > room and not isinstance(mask, Tracer):
        used = np.flatnonzero(np.asarray(mask).any(axis=0))
        length -= int(used[0]) if len(used) else length
    if length > room:
        raise UserError(f"a prompt of {soft + length} positions and an answer of {new} do not fit "
                        f"the backbone's {decoder.config.max_positions}; shorten them")
    if ids.shape[1] > room:
        given["prompt_ids"], given["prompt_mask"] = (x[:, x.shape[1] - room:] for x in (ids, mask))


def _answers(decoder, backbone, lora, prefix, prompt_ids, prompt_mask, choose, max_new_tokens,
             eos_id, vocab_size) -> Int[Array, "B new"]:
    """Answers grown a token a step: ``choose(logits [B, V], step) → ids [B]``."""
    step_fn, logits, cache = _begin(decoder, backbone, lora, prefix, prompt_ids, prompt_mask,
                                    max_new_tokens, vocab_size)
    last = choose(logits, 0).astype(jnp.int32)
    tokens = jnp.full((last.shape[0], max_new_tokens), PADDING, jnp.int32).at[:, 0].set(last)
    alive = _goes_on(last, eos_id)

    def body(carry):
        step, tokens, last, alive, cache = carry
        logits, cache = step_fn(last, cache)
        last = choose(logits, step).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice_in_dim(
            tokens, jnp.where(alive, last, PADDING)[:, None], step, axis=1)
        return step + 1, tokens, last, alive & _goes_on(last, eos_id), cache

    def unfinished(carry):
        return (carry[0] < max_new_tokens) & _any(carry[3])

    return jax.lax.while_loop(unfinished, body, (jnp.int32(1), tokens, last, alive, cache))[1]


def _begin(
    decoder, backbone, lora, prefix, prompt_ids, prompt_mask, max_new_tokens, vocab_size
) -> tuple[Callable[[Array, Cache], tuple[Array, Cache]], Array, Cache]:
    """The step function, the logits ``[B, V]`` of the first new token, and the cache."""
    variables: dict[str, Any] = {"params": backbone} | ({"lora": lora} if lora else {})
    length = prompt_ids.shape[1] + (0 if prefix is None else prefix.shape[1])
    keep = jnp.asarray(prompt_mask)
    if prefix is not None:
        keep = jnp.concatenate([jnp.ones(prefix.shape[:2], bool), keep], axis=1)

    def logits_of(hidden):
        logits = decoder.apply({"params": backbone}, hidden[:, -1], method="logits")
        return cast(Array, logits)[:, :vocab_size]

    def step(last, cache):
        hidden, cache = decoder.apply(variables, last[:, None], cache, method="extend")
        return logits_of(hidden), cache

    hidden, cache = decoder.apply(
        variables, jnp.asarray(prompt_ids), capacity=length + max_new_tokens - 1, prefix=prefix,
        keep=keep, last=1, method="prefill")
    return step, logits_of(hidden), cache


def _rows(cache: Cache, rows: Int[Array, " rows"]) -> Cache:
    """The cache of other rows: a layer's leaves are [B, K, C, H], or [L, B, K, C, H] stacked."""
    layers = jax.tree.map(lambda x: jnp.take(x, rows, axis=x.ndim - 4), cache.layers)
    return Cache(layers, cache.keep[rows], cache.length, cache.count[rows])


@custom_vmap
def _any(alive: Array) -> Array:
    return jnp.any(alive)


@_any.def_vmap
def _any_of_all(axis_size, in_batched, alive):
    """Over a mapped axis too: were the loop's condition mapped, every step would copy the caches
    of the clients that have ended."""
    del axis_size, in_batched
    return _any(jnp.any(alive, axis=0)), False
