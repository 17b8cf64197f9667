"""``python -m mlecs_jax.pretrain --config=lm_small``: a small decoder from scratch on text.

The text is what every node of a captioning run may read, or files. Of all checks the weights that
predict held-out text best are kept. The result, ``WORKDIR/model``, is a Hugging Face directory:
``hf:WORKDIR/model`` names it as a backbone. The same command again resumes at the last checkpoint
and ends as it would have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlecs_jax import cli
from mlecs_jax.config import check_backbone, typed
from mlecs_jax.errors import UserError, exit_code

if TYPE_CHECKING:
    from mlecs_jax.models.decoder import Decoder

USAGE = """usage: python -m mlecs_jax.pretrain --config=lm_small[:smoke] [--config.KEY=VALUE …]
                                    [--workdir=DIR]

  KEY        any config value, e.g. --config.data.files='texts/*.txt', or for the captions of a run
             --config.data.experiment='vast --config.partition.seed=1'
  --workdir  folder of the run, the model in model/; the same command again resumes it
             (default: runs/lm-NAME-<hash of the config>)"""
MODEL = "model"
FINAL_FRACTION = 0.1  # of the learning rate, at the last step
EMBEDDING_STD = 0.05


@dataclasses.dataclass(frozen=True)
class DataConfig:
    experiment: str
    files: str
    held_out: float


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    directory: str
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str
    positions: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int
    batch_size: int
    length: int
    learning_rate: float
    warmup: int
    weight_decay: float
    clip: float
    check_every: int


@dataclasses.dataclass(frozen=True)
class Config:
    """One pretraining, whole; ``configs/lm_small.py`` says what each value is."""

    seed: int
    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    train: TrainConfig


def parse(values: Mapping[str, Any]) -> Config:
    """Typed configuration of nested plain values.

    Raises:
      UserError: an unknown or missing key, a value of the wrong type or out of range.
    """
    config = typed(Config, values)
    t = config.train
    for name, value in {"steps": t.steps, "batch_size": t.batch_size, "length": t.length,
                        "learning_rate": t.learning_rate, "clip": t.clip,
                        "check_every": t.check_every}.items():
        if not value > 0:
            raise UserError(f"train.{name} is {value}; give a positive number")
    for name, value in {"warmup": t.warmup, "weight_decay": t.weight_decay}.items():
        if not value >= 0:
            raise UserError(f"train.{name} is {value}; give 0 or a positive number")
    if not 0 < config.data.held_out < 1:
        raise UserError(f"data.held_out is {config.data.held_out}; give a share between 0 and 1")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"seed is {config.seed}; give a whole number from 0 to 2147483647")
    if config.model.positions < t.length:
        raise UserError(f"model.positions is {config.model.positions}; give at least train.length, "
                        f"{t.length}")
    check_backbone("model.name", config.model.name)
    return config


def run(
    config: Config, workdir: Path, *,
    on_check: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Trains to the end, from the last checkpoint on, and writes the model.

    Args:
      workdir: the run's folder; created if absent.
      on_check: called with the metrics record after every ``train.check_every`` steps.

    Returns:
      The contents of ``summary.json``.

    Raises:
      UserError: bad text, tokenizer or model name, or a folder that holds another run.
    """
    import jax
    import jax.numpy as jnp

    from mlecs_jax import seen_text
    from mlecs_jax.checkpoint import Checkpoints
    from mlecs_jax.data import corpus
    from mlecs_jax.models import hf, initial, zoo
    from mlecs_jax.models.decoder import Decoder
    from mlecs_jax.runlog import RunLog

    documents, source = read(config.data)
    tokenizer = corpus.tokenizer(config.tokenizer.directory, config.tokenizer.vocabulary, documents)
    training, held_out = corpus.streams(documents, tokenizer, config.data.held_out, config.seed,
                                        config.train.length)
    shape = dataclasses.replace(zoo.decoder_config(config.model.name, len(tokenizer)),
                                max_positions=config.model.positions)
    decoder = Decoder(shape)
    digest = hashlib.sha256(training.tobytes() + held_out.tobytes()).hexdigest()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(RunLog(
            workdir, dataclasses.asdict(config) | {"tokens": digest})))
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(workdir / "checkpoints")))
        params = initial.draw(lambda key: decoder.init(key, jnp.zeros((1, 1), jnp.int32)),
                              jax.random.key(config.seed), embedding_std=EMBEDDING_STD)
        trainer = Trainer(config, decoder, training, held_out)
        complete, state = checkpoints.restore(trainer.begin(params))
        log.resume(complete)
        checks = math.ceil(config.train.steps / config.train.check_every)
        for check in range(complete, checks):
            state, record = trainer.advance(state, check)
            record |= {"round": check, "rounds": checks, "data_source": source}
            log.append(record)
            checkpoints.save(check + 1, state)
            on_check(record)
        summary = {
            "rounds": checks, "model": config.model.name, "steps": config.train.steps,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "vocabulary": len(tokenizer), "documents": len(documents),
            "training_tokens": len(training), "held_out_tokens": held_out.size,
            "held_out_nats": float(state["best_nats"]), "data_source": source,
            "seconds": sum(record["seconds"] for record in log.records)}
        hf.save(workdir / MODEL, shape, jax.device_get(state["best"]),
                tokenizer=tokenizer.wrapped)
        seen_text.write(workdir / MODEL, documents)
        log.write_summary(summary)
    return summary


def read(data: DataConfig) -> tuple[list[str], str]:
    """Documents, each once, and ``real`` or ``simulated``.

    Raises:
      UserError: files without text, or an experiment that has no captions.
    """
    from mlecs_jax import backbones
    from mlecs_jax import config as configs
    from mlecs_jax.data import corpus, sources

    if data.files:
        return corpus.read(data.files), "real"
    try:
        name, *flags = shlex.split(data.experiment) or [""]
        values, _ = cli.parse(["pretrain", f"--config={name}", *flags], USAGE, {}, (cli.ML_ECS,))
    except (UserError, ValueError) as error:  # ValueError: of quotes that do not close
        raise UserError(f"data.experiment is '{data.experiment}': {error}") from None
    if not values.get("captions"):
        raise UserError(f"data.experiment is '{data.experiment}', which has no captions; name a "
                        "captioning config such as vast, or text in data.files")
    experiment = configs.parse(values)
    samples = sources.load(experiment.data, experiment.captions)
    public = backbones.public_text(experiment, samples)
    return list(dict.fromkeys([*public.captions, *public.context])), samples.source


class Trainer:
    """Compiled training of a decoder on windows of a token stream.

    Args:
      training: int32 ``[tokens]``; held_out: int32 ``[windows, length + 1]``.
    """

    def __init__(self, config: Config, decoder: Decoder, training, held_out):
        import jax
        import jax.numpy as jnp
        import optax

        from mlecs_jax.kernels import lm_head

        t = config.train
        self._options = t
        self._held_out = jnp.asarray(held_out)
        key = jax.random.key(config.seed + 1)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if t.warmup else t.learning_rate, t.learning_rate, t.warmup,
            max(t.steps, t.warmup + 1), FINAL_FRACTION * t.learning_rate)
        self._transform = optax.chain(
            optax.clip_by_global_norm(t.clip),
            optax.adamw(schedule, b2=0.95, weight_decay=t.weight_decay,
                        mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)))
        stream = jnp.asarray(training)

        def nats(params, windows):
            """Mean cross-entropy of every next token, in nats."""
            # flax's type of `apply` also allows for mutated variables
            hidden = cast(jax.Array, decoder.apply({"params": params}, windows[:, :-1],
                                                   method="hidden"))
            head, bias = cast(Any, decoder.apply({"params": params}, method="head"))
            return lm_head.linear_cross_entropy(
                hidden.reshape(-1, hidden.shape[-1]), head, windows[:, 1:].reshape(-1),
                bias=bias).mean()

        def step(i, carry):
            state, total = carry
            starts = jax.random.randint(jax.random.fold_in(key, i), (t.batch_size,), 0,
                                        len(stream) - t.length)
            windows = stream[starts[:, None] + jnp.arange(t.length + 1)]
            loss, gradient = jax.value_and_grad(nats)(state["params"], windows)
            updates, optimiser = self._transform.update(gradient, state["optimiser"],
                                                        state["params"])
            params = optax.apply_updates(state["params"], updates)
            return {"params": params, "optimiser": optimiser}, total + loss

        @functools.partial(jax.jit, donate_argnums=0)
        def advance(state, first, last):
            return jax.lax.fori_loop(first, last, step, (state, 0.0))

        @jax.jit
        def score(params, windows):
            return jax.lax.map(lambda window: nats(params, window[None]), windows).mean()

        self._advance, self._score = advance, score

    def begin(self, params) -> dict[str, Any]:
        """The state before the first step: ``params``, ``optimiser``, and the ``best``
        parameters of all checks with their held-out loss ``best_nats``."""
        import jax
        import jax.numpy as jnp

        params = jax.tree.map(jnp.asarray, params)
        return {"params": params, "optimiser": self._transform.init(params),
                "best": jax.tree.map(jnp.copy, params), "best_nats": jnp.float32(jnp.inf)}

    def advance(self, state: dict[str, Any], check: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state after the steps of a check, and its losses in nats a token."""
        import jax
        import jax.numpy as jnp

        begun = time.perf_counter()
        first = check * self._options.check_every
        last = min(first + self._options.check_every, self._options.steps)
        trained, total = self._advance({k: state[k] for k in ("params", "optimiser")}, first, last)
        nats = self._score(trained["params"], self._held_out)
        if nats < state["best_nats"]:
            # Copied: the next call gives the buffers of `params` away.
            best = jax.tree.map(jnp.copy, trained["params"])
            state = state | {"best": best, "best_nats": nats}
        return state | trained, {
            "step": last, "train_nats": float(total) / (last - first), "held_out_nats": float(nats),
            "seconds": round(time.perf_counter() - begun, 3)}


def default_workdir(config: Config) -> str:
    """A folder named after what is trained, so that the same command finds it again."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    name = config.model.name.replace("/", "_")
    return f"runs/lm-{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def main(argv: list[str]) -> int:
    """Trains or resumes; returns the exit code."""
    values, options = cli.parse(argv, USAGE, {"workdir": ""}, (cli.TEXT,))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's cache chatter is not the user's
    config = parse(values)
    workdir = Path(options["workdir"] or default_workdir(config))

    from mlecs_jax import experiment  # imports jax: after the flags are known to be right
    from mlecs_jax.data.prepared import progress_bar

    experiment.use_compilation_cache()
    checks = math.ceil(config.train.steps / config.train.check_every)
    text = config.data.files or f"the public text of {config.data.experiment}"
    with progress_bar(f"{config.model.name} on {text}", checks) as advance:
        def show(record):
            advance(f"step {record['step']}: {record['train_nats']:.3f} nats a token, held out "
                    f"{record['held_out_nats']:.3f}")

        summary = run(config, workdir, on_check=show)
    if summary["data_source"] == "simulated":
        print("SIMULATED captions: no real ones are in MLECS_DATA_DIR", file=sys.stderr)
    print(f"{summary['parameters']:,} parameters, {summary['training_tokens']:,} tokens of text, "
          f"held out {summary['held_out_nats']:.3f} nats a token\nbackbone: hf:{workdir / MODEL}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv), "the same command resumes from the last checkpoint"))
