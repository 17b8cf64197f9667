"""Language models here beside transformers, torch and peft: generation and LoRA training.

    python bench/language.py [--only generate|train|clients] [--repeats 3] [--json F]

Needs torch, transformers and peft beside this package. Both sides have one processor, the same
random GPT-2 weights, adapters and tokens, run in one process in turns, and nothing is timed unless
they say the same tokens, and losses that agree within 1e-4. `speedup` is torch's time to ours.
"""

import os

os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})  # before any pool of threads starts
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import peft as torch_peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from timing import measure, save, table  # noqa: E402

from mlecs_jax import peft  # noqa: E402
from mlecs_jax.kernels import lm_head  # noqa: E402
from mlecs_jax.lora import LoraConfig  # noqa: E402
from mlecs_jax.models import generate, hf  # noqa: E402

VOCABULARY, PROMPT, NEW, BATCH = 50_257, 16, 64, 8
RATE, RANK, CLIENTS = 1e-3, 8, 8
SAME_LOSS = 1e-4


def models(layers: int, width: int) -> tuple[Any, Any, Any]:
    """The same random GPT-2: torch's, our decoder and our parameters."""
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_layer=layers, n_embd=width, n_head=width // 64, attn_pdrop=0.0, resid_pdrop=0.0,
        embd_pdrop=0.0, initializer_range=0.1)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours, params = hf.load(folder, scan_layers=False)
    return theirs, ours, params


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, shape)


def generation(layers: int, width: int) -> dict[str, Any]:
    """Greedy answers of 64 tokens to 8 prompts of 16, no end of sequence."""
    theirs, ours, params = models(layers, width)
    prompts = tokens(BATCH, PROMPT)
    mask = np.ones(prompts.shape, bool)
    as_torch = torch.from_numpy(prompts)

    def torch_call() -> Any:
        with torch.inference_mode():
            return theirs.generate(as_torch, attention_mask=torch.ones_like(as_torch),
                                   do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW,
                                   pad_token_id=0)[:, PROMPT:].numpy()

    def our_call() -> Any:
        return generate.greedy(ours, params, None, None, jnp.asarray(prompts, jnp.int32), mask,
                               max_new_tokens=NEW, eos_id=None)

    # min_new_tokens forbids torch the end of sequence, which random weights may well prefer
    agree = float(np.mean(torch_call() == np.asarray(our_call())))
    if agree < 1:
        raise SystemExit(f"{layers}x{width}: only {agree:.3f} of the tokens are the same")
    return {"torch": torch_call, "ours": our_call, "agree": f"{agree:.3f} of tokens"}


def adapted(theirs: Any, ours: Any, count: int) -> tuple[Any, list[Any], Any]:
    """torch's model with ``count`` adapters, and the same adapters here."""
    options = torch_peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["c_attn"],
                                    fan_in_fan_out=True, init_lora_weights=False)
    model = torch_peft.get_peft_model(theirs, options, adapter_name="c0")
    for i in range(1, count):
        model.add_adapter(f"c{i}", options)
    trees = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for i in range(count):
            trees.append(peft.load(Path(folder) / f"c{i}", ours.config)[0])
    return model.train(), trees, LoraConfig(16.0, 0.0)


def training(
    layers: int, width: int, rows: int, length: int, clients: int, chunk: int = 1
) -> dict[str, Any]:
    """A LoRA step (forward, backward, Adam) for one client, or for several, ``chunk`` at once."""
    theirs, ours, params = models(layers, width)
    model, trees, settings = adapted(theirs, ours, clients)
    ours = ours.clone(lora_config=settings)
    batches = tokens(clients, rows, length)
    as_torch = [torch.from_numpy(batch) for batch in batches]
    optimisers = []
    for i in range(clients):
        model.set_adapter(f"c{i}")
        own = [p for name, p in model.named_parameters() if f".c{i}." in name]
        optimisers.append(torch.optim.Adam(own, lr=RATE))

    def torch_call() -> list[float]:
        losses = []
        for i in range(clients):
            if clients > 1:
                model.set_adapter(f"c{i}")
            loss = model(as_torch[i], labels=as_torch[i]).loss
            optimisers[i].zero_grad()
            loss.backward()
            optimisers[i].step()
            losses.append(float(loss.detach()))
        return losses

    transform = optax.flatten(optax.adam(RATE))

    def loss_of(lora: Any, batch: Any, params: Any) -> Any:
        hidden = ours.apply({"params": params, "lora": lora}, batch, method="hidden")
        head, _ = ours.apply({"params": params}, method="head")
        return lm_head.linear_cross_entropy(
            hidden[:, :-1].reshape(-1, width), head, batch[:, 1:].reshape(-1)).mean()

    def client_step(params: Any, one: tuple[Any, Any, Any]) -> Any:
        lora, state, batch = one
        loss, gradient = jax.value_and_grad(loss_of)(lora, batch, params)
        updates, state = transform.update(gradient, state)
        return (optax.apply_updates(lora, updates), state), loss

    @jax.jit
    def step(params: Any, loras: Any, states: Any, batches: Any) -> Any:
        return jax.lax.map(lambda one: client_step(params, one), (loras, states, batches),
                           batch_size=chunk if chunk > 1 else None)

    loras = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    held = [loras, jax.vmap(transform.init)(loras)]
    ids = jnp.asarray(batches, jnp.int32)

    def our_call() -> Any:
        (held[0], held[1]), losses = step(params, *held, ids)
        return losses

    pairs = [(torch_call(), np.asarray(our_call()).tolist()) for _ in range(3)]
    gap = max(abs(a - b) for theirs_, ours_ in pairs for a, b in zip(theirs_, ours_, strict=True))
    if not gap <= SAME_LOSS:
        raise SystemExit(f"{layers}x{width}: losses of three steps differ by {gap:.1e}")
    return {"torch": torch_call, "ours": our_call, "agree": f"losses to {gap:.0e}"}


CASES = {
    "generate 6x384": lambda: generation(6, 384),
    "generate 12x768": lambda: generation(12, 768),
    "train 6x384, 8 x 64 tokens": lambda: training(6, 384, 8, 64, 1),
    "train 12x768, 8 x 64 tokens": lambda: training(12, 768, 8, 64, 1),
    "clients 8, 6x384, 2 x 16 tokens each": lambda: training(6, 384, 2, 16, CLIENTS, CLIENTS),
    "clients 8, 6x384, 8 x 64 tokens each": lambda: training(6, 384, 8, 64, CLIENTS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, build in CASES.items():
        if options.only not in name:
            continue
        case = build()
        times = measure({side: case[side] for side in ("torch", "ours")}, options.repeats)
        rows.append({"case": name, "agree": case["agree"],
                     **{f"{side}_{kind}_ms": times[side][kind] for side in times
                        for kind in ("min", "cpu")},
                     "speedup": times["torch"]["min"] / times["ours"]["min"],
                     "speedup_cpu": times["torch"]["cpu"] / times["ours"]["cpu"]})
        print(table(rows[-1:]), flush=True)
    for row in rows:
        row |= {"torch": torch.__version__, "transformers": transformers.__version__}
    save(options.json, rows)


if __name__ == "__main__":
    main()
