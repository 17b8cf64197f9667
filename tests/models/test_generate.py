"""Generation with a cache against the plain forward pass, token for token."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import lora
from mlecs_jax.errors import UserError
from mlecs_jax.lora import LoraConfig
from mlecs_jax.models import generate, initial
from mlecs_jax.models.decoder import Decoder, DecoderConfig

VOCABULARY, NEW, EOS = 24, 6, 3
SHAPES = {
    "gpt2": DecoderConfig("gpt2", VOCABULARY, 2, 16, 2),
    "gptj": DecoderConfig("gptj", VOCABULARY, 2, 16, 2, rotary_dim=4, scan_layers=True),
    "qwen3": DecoderConfig("qwen3", VOCABULARY, 2, 16, 4, num_kv_heads=2, head_dim=6),
}


@functools.cache
def model(name):
    decoder = Decoder(SHAPES[name], LoraConfig(alpha=8.0, dropout=0.0))
    params = initial.draw(lambda key: decoder.init(key, jnp.zeros((1, 3), jnp.int32)),
                          jax.random.key(3), embedding_std=0.4)
    adapters = lora.init(jax.random.key(5), params, SHAPES[name].lora_targets, rank=2)
    rng = np.random.default_rng(0)
    return decoder, *jax.tree.map(
        lambda x: jnp.asarray(x + 0.2 * rng.standard_normal(x.shape), jnp.float32),
        (params, adapters))


PROMPTS = [[5, 9], [1, 2, 7, 11, 4], [8]]
PREFIX = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 16)), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def forward(decoder, params, adapters, tokens, prefix):
    logits = decoder.apply({"params": params, "lora": adapters}, tokens, prefix=prefix)
    return jax.nn.log_softmax(logits)


def log_p(name, prompt, prefix):
    """Next-token log-probabilities of one prompt, by a whole forward pass; what stands after the
    prompt cannot matter, and spares a compilation for every length."""
    tokens = np.zeros((1, 12), np.int32)
    tokens[0, :len(prompt)] = prompt
    all_positions = forward(*model(name), tokens, prefix[None])
    return np.asarray(all_positions[0, len(prefix) + len(prompt) - 1])


def slow_greedy(name, prompt, prefix):
    answer = []
    while len(answer) < NEW and EOS not in answer:
        answer.append(int(np.argmax(log_p(name, prompt + answer, prefix))))
    return answer + [generate.PADDING] * (NEW - len(answer))


@pytest.mark.parametrize("name", ["gpt2", "gptj",
                                  pytest.param("qwen3", marks=pytest.mark.slow)])
def test_greedy_equals_the_plain_forward_pass(name):
    ids, mask = generate.pad_prompts(PROMPTS)
    assert ids.shape == (3, 8)
    answers = generate.greedy(*model(name), PREFIX, ids, mask, max_new_tokens=NEW, eos_id=EOS)
    expected = [slow_greedy(name, p, x) for p, x in zip(PROMPTS, PREFIX, strict=True)]
    np.testing.assert_array_equal(answers, expected)


def test_an_answer_ends_and_others_go_on():
    ids, mask = generate.pad_prompts(PROMPTS)
    free = np.asarray(generate.greedy(*model("gptj"), PREFIX, ids, mask, max_new_tokens=NEW,
                                      eos_id=None))
    end = int(free[0, 2])
    ended = generate.greedy(*model("gptj"), PREFIX, ids, mask, max_new_tokens=NEW, eos_id=end)
    lengths = [list(row).index(end) + 1 if end in row else NEW for row in free]
    assert len(set(lengths)) > 1
    for row, whole, stop in zip(np.asarray(ended), free, lengths, strict=True):
        np.testing.assert_array_equal(row[:stop], whole[:stop])
        assert (row[stop:] == generate.PADDING).all()
    assert generate.strip(ended, end) == [[t for t in row[:stop] if t != end]
                                          for row, stop in zip(free.tolist(), lengths, strict=True)]


def test_padding_rows_of_the_vocabulary_are_never_answered():
    ids, mask = generate.pad_prompts(PROMPTS)
    answers = generate.greedy(*model("gpt2"), PREFIX, ids, mask, max_new_tokens=NEW, eos_id=None,
                              vocab_size=5)
    assert answers.max() < 5


def test_mapped_over_clients_as_one_by_one():
    """Each client has its adapters and stops where it would alone; the backbone is shared."""
    decoder, params, adapters = model("gpt2")
    ids, mask = generate.pad_prompts(PROMPTS)
    many = jax.tree.map(lambda x: jnp.stack([x, -x, 0 * x]), adapters)

    def answer(adapters):
        return generate.greedy(decoder, params, adapters, PREFIX, ids, mask, max_new_tokens=NEW,
                               eos_id=EOS)

    mapped = jax.jit(jax.vmap(answer))
    np.testing.assert_array_equal(
        mapped(many), [answer(jax.tree.map(lambda x, i=i: x[i], many)) for i in range(3)])
    program = str(jax.make_jaxpr(mapped)(many))
    assert "while[" in program
    assert not re.search(r"f32\[3,3,2,\d+,8\] = select_n", program)  # no cache copied a step


def test_sampling_follows_the_distribution():
    """600 draws of one token: the frequencies are the nucleus's renormalised probabilities."""
    decoder, params, adapters = model("gpt2")
    ids, mask = generate.pad_prompts([PROMPTS[0]] * 600)
    prefix = jnp.broadcast_to(PREFIX[:1], (600, 2, 16))
    temperature, top_p = 1.5, 0.6
    drawn = np.asarray(generate.sample(
        decoder, params, adapters, prefix, ids, mask, jax.random.key(0), max_new_tokens=1,
        eos_id=EOS, temperature=temperature, top_p=top_p))[:, 0]
    p = np.exp(log_p("gpt2", PROMPTS[0], PREFIX[0]) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    inside = order[:1 + np.searchsorted(np.cumsum(p[order]), top_p)]
    expected = np.where(np.isin(np.arange(VOCABULARY), inside), p, 0)
    frequencies = np.bincount(drawn, minlength=VOCABULARY) / 600
    assert set(drawn) <= set(inside) and len(inside) > 1
    np.testing.assert_allclose(frequencies, expected / expected.sum(), atol=0.08)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1e-38},
                                     {"top_p": 1e-6}])
def test_sampling_at_no_temperature_is_greedy(options):
    ids, mask = generate.pad_prompts(PROMPTS)
    common = dict(max_new_tokens=NEW, eos_id=EOS)
    drawn = generate.sample(*model("gpt2"), PREFIX, ids, mask, jax.random.key(0), **common,
                            **{"temperature": 1.0, "top_p": 1.0} | options)
    np.testing.assert_array_equal(
        drawn, generate.greedy(*model("gpt2"), PREFIX, ids, mask, **common))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_answers(penalty):
    """As wide as there are answers of three tokens out of four, it is exhaustive search."""
    ids, mask = generate.pad_prompts(PROMPTS[:1])
    found = generate.beam(*model("gpt2"), PREFIX[:1], ids, mask, max_new_tokens=3, eos_id=EOS,
                          vocab_size=4, beams=64, length_penalty=penalty)

    @functools.cache
    def step(done):
        logits = log_p("gpt2", PROMPTS[0] + list(done), PREFIX[0])[:4]
        return logits - np.log(np.exp(logits).sum())

    def likelihood(answer):
        return sum(step(answer[:i])[token] for i, token in enumerate(answer))

    every = {tuple(a[:a.index(EOS) + 1] if EOS in a else a)
             for a in itertools.product(range(4), repeat=3)}
    best = max(every, key=lambda a: likelihood(a) / len(a) ** penalty)
    assert [t for t in found[0].tolist() if t != generate.PADDING] == list(best)


def slow_beam(name, prompt, prefix, beams, penalty):
    """A list of (tokens, log-likelihood), pruned to the ``beams`` likeliest after every token."""
    kept = [([], 0.0)]
    for _ in range(NEW):
        grown = []
        for tokens, score in kept:
            if EOS in tokens:
                grown.append((tokens, score))
                continue
            following = log_p(name, prompt + tokens, prefix)
            grown += [(tokens + [t], score + float(following[t])) for t in range(VOCABULARY)]
        kept = sorted(grown, key=lambda one: -one[1])[:beams]
    tokens, _ = max(kept, key=lambda one: one[1] / len(one[0]) ** penalty)
    return tokens + [generate.PADDING] * (NEW - len(tokens))


@pytest.mark.parametrize("name", ["gpt2", "gptj"])  # a cache per layer, a stack of them
def test_a_narrow_beam_prunes_as_a_plain_search(name):
    """Three prompts at once, three beams of 24 tokens each; at least one is not the greedy answer
    and the beams change places, or caches that stay behind would not show."""
    ids, mask = generate.pad_prompts(PROMPTS)
    found = generate.beam(*model(name), PREFIX, ids, mask, max_new_tokens=NEW, eos_id=EOS,
                          beams=3, length_penalty=0.6)
    expected = [slow_beam(name, p, x, 3, 0.6) for p, x in zip(PROMPTS, PREFIX, strict=True)]
    np.testing.assert_array_equal(found, expected)
    assert expected != [slow_greedy(name, p, x) for p, x in zip(PROMPTS, PREFIX, strict=True)]


def test_one_beam_is_greedy():
    ids, mask = generate.pad_prompts(PROMPTS)
    options = dict(max_new_tokens=NEW, eos_id=EOS)
    np.testing.assert_array_equal(
        generate.beam(*model("gpt2"), PREFIX, ids, mask, beams=1, **options),
        generate.greedy(*model("gpt2"), PREFIX, ids, mask, **options))


def test_prompts_of_one_bucket_share_a_program():
    program = generate.greedy.__wrapped__
    program.clear_cache()
    for prompts in ([[1, 2, 3]], [[1, 2, 3, 4, 5]], [[4]]):
        generate.greedy(*model("gpt2"), None, *generate.pad_prompts(prompts), max_new_tokens=2,
                        eos_id=EOS)
    assert program._cache_size() == 1


def test_each_of_several_ends_ends_an_answer():
    """The rows end at different tokens of those that they would say without any end."""
    ids, mask = generate.pad_prompts(PROMPTS)
    arguments = (*model("gptj"), PREFIX, ids, mask)
    free = np.asarray(generate.greedy(*arguments, max_new_tokens=NEW, eos_id=None))
    ends = [int(free[0, 2]), int(free[1, 1])]
    assert len({*ends, *free[2][:2].tolist()}) > 2
    ended = generate.greedy(*arguments, max_new_tokens=NEW, eos_id=ends)
    expected = [row[:1 + next((i for i, t in enumerate(row) if t in ends), NEW)]
                for row in free.tolist()]
    assert [[t for t in row if t != generate.PADDING] for row in ended.tolist()] == expected
    assert generate.strip(ended, ends) == [[t for t in row if t not in ends] for row in expected]
    drawn = generate.sample(*arguments, jax.random.key(0), max_new_tokens=NEW, eos_id=ends,
                            temperature=0.0)
    np.testing.assert_array_equal(drawn, ended)
    beam = generate.beam(*arguments, max_new_tokens=NEW, eos_id=ends, beams=1)
    np.testing.assert_array_equal(beam, ended)


def test_a_prompt_is_as_long_as_its_tokens_not_as_its_bucket():
    """17 tokens stand in 32 columns; with 6 new ones they need 22 positions."""
    shape = DecoderConfig("gpt2", VOCABULARY, 1, 8, 1, max_positions=22)
    decoder, roomy = Decoder(shape), Decoder(dataclasses.replace(shape, max_positions=40))
    params = initial.draw(lambda key: roomy.init(key, jnp.zeros((1, 3), jnp.int32)),
                          jax.random.key(0), embedding_std=0.4)
    ids, mask = generate.pad_prompts([list(range(17)), [4, 5]])
    options = dict(max_new_tokens=6, eos_id=None)
    expected = generate.greedy(roomy, params, None, None, ids, mask, **options)
    own = params | {"wpe": params["wpe"][:22]}
    found = generate.greedy(decoder, own, None, None, ids, mask, **options)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(UserError, match="prompt of 17 positions and an answer of 7 .* 22"):
        generate.greedy(decoder, own, None, None, ids, mask, max_new_tokens=7, eos_id=None)


def test_what_cannot_be_answered_is_said():
    with pytest.raises(UserError, match="at least one token"):
        generate.pad_prompts([[1], []])
    short = Decoder(DecoderConfig("gpt2", VOCABULARY, 1, 8, 1, max_positions=10))
    params = jax.eval_shape(lambda: short.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    ids, mask = generate.pad_prompts(PROMPTS)

    def answers(p, mask, **options):
        return generate.sample(short, p["params"], None, None, ids, mask, jax.random.key(0),
                               **{"max_new_tokens": 4, "eos_id": None} | options)

    with pytest.raises(UserError, match="8 positions and an answer of 4 do not fit.*10"):
        jax.eval_shape(answers, params, mask)
    for options, message in (({"temperature": -0.5}, "temperature is -0.5; give 0"),
                             ({"temperature": float("nan")}, "temperature is nan"),
                             ({"max_new_tokens": 0}, "max_new_tokens is 0")):
        with pytest.raises(UserError, match=message):
            answers(params, mask, **options)
    with pytest.raises(UserError, match="beams is 0"):
        generate.beam(short, params, None, None, ids, mask, max_new_tokens=2, eos_id=None, beams=0)


def test_a_forward_pass_beyond_the_learned_positions_is_refused():
    short = Decoder(DecoderConfig("gpt2", VOCABULARY, 1, 8, 1, max_positions=10))
    key = jax.random.key(0)
    jax.eval_shape(lambda: short.init(key, jnp.zeros((1, 10), jnp.int32)))
    with pytest.raises(ValueError, match="11 positions, the backbone has 10"):
        jax.eval_shape(lambda: short.init(key, jnp.zeros((1, 9), jnp.int32),
                                          prefix=jnp.zeros((1, 2, 8))))
