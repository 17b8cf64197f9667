"""Writes the golden files: tiny random models as transformers saves them, and what torch says.

    python tests/golden/make.py [NAME …]

Needs torch, transformers and peft. A folder each: config.json, model.safetensors and expected.npz
(inputs, logits or hidden states, greedy answers), adapters in ``adapter/``. Every weight, norms
and biases too, is random: a layout error in a constant one would not show.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

FOLDER = Path(__file__).parent
VOCABULARY, NEW = 64, 12
GPT = dict(vocab_size=VOCABULARY, n_layer=2, n_embd=24, n_head=3, n_positions=40,
           bos_token_id=7, eos_token_id=7, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
LLAMA = dict(vocab_size=VOCABULARY, num_hidden_layers=2, hidden_size=24, num_attention_heads=4,
             num_key_value_heads=2, intermediate_size=40, max_position_embeddings=64,
             rms_norm_eps=1e-5, bos_token_id=7, eos_token_id=7)
ENCODER = dict(vocab_size=VOCABULARY, num_hidden_layers=3, hidden_size=24, num_attention_heads=3,
               intermediate_size=40, max_position_embeddings=24)
DECODERS = {
    "gpt2": transformers.GPT2Config(**GPT),
    "gptj": transformers.GPTJConfig(**GPT, rotary_dim=4),
    "llama": transformers.LlamaConfig(**LLAMA, rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=16)),
    "llama_linear": transformers.LlamaConfig(**LLAMA, rope_parameters=dict(
        rope_type="linear", rope_theta=500.0, factor=4.0)),
    "smollm2": transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True, attention_bias=True),
    "qwen2": transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True, rope_parameters=dict(
        rope_type="default", rope_theta=1e6)),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=10),
}
ENCODERS = {
    "bert": transformers.BertConfig(**ENCODER),
    "roberta": transformers.RobertaConfig(**ENCODER, pad_token_id=1, type_vocab_size=1),
}
ADAPTED = {"gpt2": ["c_attn", "attn.c_proj", "mlp.c_proj"], "qwen3": ["q_proj", "v_proj"]}


def drawn(family: str, seed: int) -> transformers.PretrainedConfig:
    """A random tiny shape of a family."""
    r = np.random.default_rng(seed)

    def one(*choices: int) -> int:
        return int(r.choice(choices))

    layers, heads, head, tied = one(1, 2, 3), one(2, 4), one(4, 6, 8), bool(one(0, 1))
    common = dict(vocab_size=one(48, 61), bos_token_id=7, eos_token_id=7, tie_word_embeddings=tied)
    if family in ("gpt2", "gptj"):
        own = dict(n_layer=layers, n_embd=heads * head, n_head=heads, n_positions=one(16, 40),
                   n_inner=one(20, 36), attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
        if family == "gptj":
            own |= dict(rotary_dim=one(2, 4))
            common |= dict(tie_word_embeddings=False)
        return {"gpt2": transformers.GPT2Config, "gptj": transformers.GPTJConfig}[family](
            **common, **own)
    kind = str(r.choice(["default", "linear"]))
    rope = dict(rope_type=kind, rope_theta=float(one(500, 10_000)))
    own = dict(num_hidden_layers=layers, hidden_size=heads * head, num_attention_heads=heads,
               num_key_value_heads=one(1, heads // 2, heads), intermediate_size=one(20, 36),
               max_position_embeddings=64, rms_norm_eps=1e-5,
               rope_parameters=rope | (dict(factor=2.5) if kind == "linear" else {}))
    if family == "qwen3":
        own |= dict(head_dim=one(4, 10))
    return {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config,
            "qwen3": transformers.Qwen3Config}[family](**common, **own)


def randomise(model: torch.nn.Module, seed: int) -> None:
    r = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.from_numpy(r.standard_normal(p.shape).astype(np.float32))
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.1 * noise if is_scale else 0.1 * noise)


def inputs(seed: int) -> dict[str, np.ndarray]:
    """Three rows of tokens and the same padded on the left to one length."""
    r = np.random.default_rng(seed)
    mask = np.arange(9) >= np.array([[0], [3], [5]])
    return {"tokens": r.integers(8, VOCABULARY, (3, 9)), "mask": mask}


def decoder(name: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(DECODERS[name]).eval()
    randomise(model, 1)
    model.save_pretrained(FOLDER / name)
    expected = inputs(2)
    tokens, mask = (torch.from_numpy(expected[k]) for k in ("tokens", "mask"))
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected["logits"] = model(tokens).logits.numpy()
        expected["padded_logits"] = model(tokens, attention_mask=mask.long(),
                                          position_ids=positions).logits.numpy()
        greedy = functools.partial(model.generate, tokens, attention_mask=mask.long(),
                                   do_sample=False, max_new_tokens=NEW, pad_token_id=0)
        whole = greedy(eos_token_id=VOCABULARY + 1)[:, tokens.shape[1]:].numpy()
        eos = int(whole[0, 4])
        ended = greedy(eos_token_id=eos)[:, tokens.shape[1]:].numpy()
        expected |= {"greedy": whole, "eos": np.array(eos),
                     "greedy_to_eos": np.pad(ended, ((0, 0), (0, NEW - ended.shape[1])))}
    if name in ADAPTED:
        adapted = get_peft_model(model, LoraConfig(
            r=3, lora_alpha=6, target_modules=ADAPTED[name], lora_dropout=0.1, bias="none",
            fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM"))
        r = np.random.default_rng(3)
        with torch.no_grad():
            for key, p in sorted(adapted.named_parameters()):
                if "lora_" in key:
                    p.copy_(0.2 * torch.from_numpy(r.standard_normal(p.shape).astype(np.float32)))
            adapted.eval()
            expected["adapted_logits"] = adapted(tokens).logits.numpy()
        adapted.save_pretrained(FOLDER / name / "adapter")
        (FOLDER / name / "adapter" / "README.md").unlink(missing_ok=True)
    finish(name, expected)


def encoder(name: str) -> None:
    model = transformers.AutoModel.from_config(ENCODERS[name]).eval()
    randomise(model, 1)
    model.save_pretrained(FOLDER / name)
    expected = inputs(2)
    expected["mask"] = expected["mask"][:, ::-1].copy()  # encoders pad on the right
    expected["tokens"] = np.where(expected["mask"], expected["tokens"],
                                  ENCODERS[name].pad_token_id)
    with torch.no_grad():
        out = model(torch.from_numpy(expected["tokens"]), output_hidden_states=True,
                    attention_mask=torch.from_numpy(expected["mask"]).long())
        expected["hidden"] = np.stack([h.numpy() for h in out.hidden_states])
    finish(name, expected)


def finish(name: str, expected: dict[str, np.ndarray]) -> None:
    (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(FOLDER / name / "expected.npz", **expected)
    size = sum(f.stat().st_size for f in (FOLDER / name).rglob("*") if f.is_file())
    print(name, f"{size / 1024:.0f} KiB", *(f"{k} |{np.abs(v).max():.2f}|"
                                            for k, v in expected.items() if v.dtype == np.float32))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or [*DECODERS, *ENCODERS]:
        (decoder if chosen in DECODERS else encoder)(chosen)
