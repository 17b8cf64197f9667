"""The decoder against an independent NumPy forward pass written from the published equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.models import initial, zoo
from mlecs_jax.models.decoder import Decoder, DecoderConfig


def norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotate(x, rotary_dim):
    """GPT-J: pairs (0,1), (2,3), … of the first channels, angle position / 10000^(2i/dim)."""
    out = x.copy()
    for t in range(x.shape[0]):
        for i in range(0, rotary_dim, 2):
            angle = t / 10000 ** (i / rotary_dim)
            a, b = x[t, :, i], x[t, :, i + 1]
            out[t, :, i] = a * np.cos(angle) - b * np.sin(angle)
            out[t, :, i + 1] = b * np.cos(angle) + a * np.sin(angle)
    return out


def forward(p, c, tokens):
    """Logits [S, V] of one sequence, layer by layer, head by head."""
    n, h = c.num_heads, c.head_width
    x = p["wte"][tokens] + (p["wpe"][: len(tokens)] if c.family == "gpt2" else 0)
    for layer in range(c.num_layers):
        block = p[f"block_{layer}"]
        attention, y = block["attention"], norm(x, block["ln_1"])
        if c.family == "gpt2":
            w, b = attention["c_attn"]["kernel"], attention["c_attn"]["bias"]
            q, k, v = (y @ w[:, i] + b[i] for i in range(3))
        else:
            q, k, v = (y @ attention[f"{m}_proj"]["kernel"] for m in "qkv")
        q, k, v = (t.reshape(len(tokens), n, h) for t in (q, k, v))
        if c.family == "gptj":
            q, k = rotate(q, c.rotary_dim), rotate(k, c.rotary_dim)
        scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(h)
        scores = np.where(np.tril(np.ones((len(tokens),) * 2, bool)), scores, -np.inf)
        mixed = np.einsum("nts,snh->tnh", softmax(scores), v).reshape(len(tokens), -1)
        out = attention["c_proj" if c.family == "gpt2" else "out_proj"]
        attended = mixed @ out["kernel"] + out.get("bias", 0)
        up, down = (("mlp_c_fc", "mlp_c_proj") if c.family == "gpt2"
                    else ("mlp_fc_in", "mlp_fc_out"))

        def mlp(z, block=block, up=up, down=down):
            z = gelu(z @ block[up]["kernel"] + block[up]["bias"])
            return z @ block[down]["kernel"] + block[down]["bias"]

        if c.family == "gptj":
            x = x + attended + mlp(y)
        else:
            x = x + attended
            x = x + mlp(norm(x, block["ln_2"]))
    x = norm(x, p["ln_f"])
    return x @ p["wte"].T if c.family == "gpt2" else x @ p["lm_head"].T + p["lm_head_bias"]


def make(family, **options):
    config = DecoderConfig(family, 24, 2, 16, 2, rotary_dim=4, **options)
    model = Decoder(config)
    params = initial.draw(lambda key: model.init(key, jnp.zeros((1, 3), jnp.int32)),
                          jax.random.key(3), embedding_std=0.5)
    rng = np.random.default_rng(0)  # biases and scales too, or a layout error could hide
    return model, jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape), jnp.float32), params)


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_logits_equal_numpy(family):
    model, params = make(family)
    tokens = np.array([3, 1, 4, 1, 5, 9, 2])
    expected = forward(jax.tree.map(lambda x: np.asarray(x, np.float64), params), model.config,
                       tokens)
    np.testing.assert_allclose(model.apply({"params": params}, jnp.asarray(tokens)[None])[0],
                               expected, atol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_left_padding_is_harmless(family):
    model, params = make(family)
    tokens = jnp.array([[3, 1, 4]])
    padded = jnp.array([[7, 7, 3, 1, 4]])
    keep = jnp.array([[False, False, True, True, True]])
    np.testing.assert_allclose(
        model.apply({"params": params}, padded, keep=keep)[:, 2:],
        model.apply({"params": params}, tokens), atol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_scanned_layers_equal_unrolled_ones(family):
    model, params = make(family)
    scanned = Decoder(DecoderConfig(family, 24, 2, 16, 2, rotary_dim=4, scan_layers=True,
                                    remat=True))
    stacked = {name: leaf for name, leaf in params.items() if not name.startswith("block_")}
    stacked["blocks"] = jax.tree.map(lambda a, b: jnp.stack([a, b]), params["block_0"],
                                     params["block_1"])
    tokens = jnp.array([[3, 1, 4, 1]])
    np.testing.assert_allclose(scanned.apply({"params": stacked}, tokens),
                               model.apply({"params": params}, tokens), atol=2e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "qwen2", "qwen3"])
def test_the_last_states_alone_equal_those_among_all(family, scan_layers):
    """Values and gradients, behind a soft prompt and with padding on the left."""
    model, params = make(family, scan_layers=scan_layers, num_kv_heads=None if family in (
        "gpt2", "gptj") else 1)
    tokens, prefix = jnp.array([[3, 1, 4, 1], [7, 5, 9, 2]]), params["wte"][jnp.array([[1, 2]] * 2)]
    keep = jnp.array([[True] * 6, [False] * 2 + [True] * 4])

    def states(params, prefix, last):
        found = model.apply({"params": params}, tokens, prefix=prefix, keep=keep, last=last,
                            method="hidden")
        return found[:, -3:]

    def loss(params, prefix, last):
        return jnp.sum(states(params, prefix, last) ** 3)

    np.testing.assert_allclose(states(params, prefix, 3), states(params, prefix, None), atol=2e-5)
    for some, every in zip(*(jax.tree.leaves(jax.grad(loss, (0, 1))(params, prefix, last))
                             for last in (3, None)), strict=True):
        np.testing.assert_allclose(some, every, atol=2e-4, rtol=2e-4)


def test_soft_prompt_comes_before_the_tokens():
    """Prefixing the embeddings of tokens is the same as prefixing the tokens."""
    model, params = make("gpt2")
    tokens = jnp.array([[3, 1, 4, 1]])
    split = model.apply({"params": params}, tokens[:, 2:], prefix=params["wte"][tokens[:, :2]])
    np.testing.assert_allclose(split, model.apply({"params": params}, tokens), atol=2e-5)


def test_zoo_shapes_and_refusals():
    large = zoo.decoder_config("gpt2-large", 257)
    assert (large.num_layers, large.width, large.num_heads, large.vocab_size) == (36, 1280, 20,
                                                                                 50400)
    assert zoo.decoder_config("gptj-3x128", 257).vocab_size == 264
    with pytest.raises(UserError, match="unknown backbone 'gpt5'"):
        zoo.decoder_config("gpt5", 257)
    with pytest.raises(UserError, match="multiple of twice"):
        zoo.decoder_config("gpt2-2x63", 257)
