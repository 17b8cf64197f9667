"""Pretraining: it learns, resumes exactly, writes what the rest can load, and refuses bad input."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import cli, pretrain
from mlecs_jax import config as configs
from mlecs_jax.data import corpus, sources
from mlecs_jax.data.partition import partition
from mlecs_jax.data.text import ByteTokenizer
from mlecs_jax.errors import UserError
from mlecs_jax.models import generate, hf, zoo
from mlecs_jax.models.decoder import Decoder

COLOURS, ANIMALS, PLACES = (text.split() for text in (
    "red green blue black white", "cat dog cow pig hen", "house garden street barn wood"))


@pytest.fixture
def texts(tmp_path):
    """Every sentence that three words make, each many times: what is held out was never read, but
    can be told from what was."""
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"the {c} {a} is in the {p}\n" for c in COLOURS for a in ANIMALS
                            for p in PLACES) * 10)
    return path


def config(texts, **changes):
    changes = {"data.held_out": 0.2} | changes
    values, _ = cli.parse(["pretrain", "--config=lm_small:smoke", f"--config.data.files={texts}",
                           *(f"--config.{k}={v}" for k, v in changes.items())], "", {"workdir": ""},
                          (cli.TEXT,))
    return pretrain.parse(values)


class Killed(Exception):
    pass


def test_it_learns_resumes_exactly_and_writes_a_directory_the_rest_loads(texts, tmp_path):
    options = {"train.steps": 70, "train.check_every": 30, "train.learning_rate": 0.01}
    records = []
    summary = pretrain.run(config(texts, **options), tmp_path / "whole", on_check=records.append)
    assert [record["step"] for record in records] == [30, 60, 70]
    assert summary["documents"] == 125 and summary["data_source"] == "real"
    # Held-out sentences were not trained on: who knows their form and guesses thrice among five
    # words has 3 log 5 nats a sentence.
    guessed = 3 * np.log(5) * 25 / summary["held_out_tokens"]
    assert records[-1]["held_out_nats"] < 2.3 * guessed < 3 * guessed < records[0]["held_out_nats"]
    assert summary["held_out_nats"] == min(record["held_out_nats"] for record in records)

    def kill(record):
        raise Killed

    with pytest.raises(Killed):
        pretrain.run(config(texts, **options), tmp_path / "killed", on_check=kill)
    pretrain.run(config(texts, **options), tmp_path / "killed")
    whole, resumed = (tmp_path / name / "model/model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()

    directory = tmp_path / "whole/model"
    model, params = hf.load(directory)
    tokenizer = hf.load_tokenizer(directory)
    assert summary["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    prompts = generate.pad_prompts([tokenizer.encode("the red cow is in")])
    answer = generate.greedy(model, params, None, None, *prompts, max_new_tokens=8,
                             eos_id=tokenizer.eos_token_id)
    text = tokenizer.decode(generate.strip(answer, tokenizer.eos_token_id)[0])
    assert text.strip() in [f"the {place}" for place in PLACES]
    with pytest.raises(UserError, match="another.*train.steps"):
        pretrain.run(config(texts, **options | {"train.steps": 60}), tmp_path / "whole")


def test_the_weights_that_predict_held_out_text_best_are_kept(texts):
    """Of checks that score 3, 1 and 2 nats, those of the second."""
    options = config(texts, **{"train.steps": 3, "train.check_every": 1, "train.warmup": 0})
    documents, _ = pretrain.read(options.data)
    decoder = Decoder(dataclasses.replace(zoo.decoder_config(options.model.name, 300),
                                          max_positions=options.model.positions))
    trainer = pretrain.Trainer(options, decoder, *corpus.streams(
        documents, corpus.tokenizer("", 300, documents), 0.2, 0, options.train.length))
    scores = iter((3.0, 1.0, 2.0))
    trainer._score = lambda params, windows: jnp.float32(next(scores))
    params = decoder.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    state, seen = trainer.begin(params), []
    for check in range(3):
        state, _ = trainer.advance(state, check)
        seen.append(jax.device_get(state["params"]))
    assert float(state["best_nats"]) == 1.0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state["best"]), seen[1])
    assert not all(map(np.array_equal, *map(jax.tree.leaves, (seen[1], seen[2]))))


def test_no_document_is_on_both_sides(tmp_path):
    path = tmp_path / "twice.txt"
    path.write_text("".join(f"{'abcdefgh'[i % 8]}\n" for i in range(80)))
    documents = corpus.read(str(path))
    assert documents == list("abcdefgh")
    training, held_out = corpus.streams(documents, ByteTokenizer(), 0.25, 0, 2)
    assert not {int(t) for t in training if t < 256} & {int(t) for t in held_out.ravel()
                                                        if t < 256}


def test_the_default_reads_public_training_text_alone(monkeypatch, tmp_path):
    """What the experiment validates and tests on, and what its devices hold, is not read."""
    monkeypatch.setenv("MLECS_DATA_DIR", str(tmp_path))  # nothing there: simulated captions
    flags = "vast:smoke --config.partition.seed=3 --config.captions.simulated_clips=60"
    values, _ = cli.parse(["run", *f"--config={flags}".split()], "", {})
    experiment = configs.parse(values)
    samples = sources.load(experiment.data, experiment.captions)
    split = partition(samples, experiment.partition_config())
    default, _ = cli.parse(["pretrain", "--config=lm_small"], "", {}, (cli.TEXT,))
    assert default["data"]["experiment"] == "vast" and not default["data"]["files"]
    documents, source = pretrain.read(pretrain.DataConfig(flags, "", 0.02))
    assert source == "simulated"
    assert {samples.texts[row] for row in split.public.train} <= set(documents)
    others = [row for share in split.devices for row in share.train]
    others += [row for share in (split.public, *split.devices) for row in (*share.val, *share.test)]
    assert not {samples.texts[row] for row in others} & set(documents)
    with pytest.raises(UserError, match="'ur_fall', which has no captions"):
        pretrain.read(pretrain.DataConfig("ur_fall", "", 0.02))
    for experiment, message in (
            ("nowhere", "data.experiment is 'nowhere': unknown config 'nowhere'"),
            ("lm_small", "data.experiment is 'lm_small': config 'lm_small' is for python -m"),
            ("mosi", "data.experiment is 'mosi': config 'mosi' is for runs of Mega-CE²"),
            ("vast 'x", "data.experiment is 'vast 'x': No closing quotation")):
        with pytest.raises(UserError, match=message):
            pretrain.read(pretrain.DataConfig(experiment, "", 0.02))


def test_documents_of_text_and_json(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one line\n\n  another \n")
    (tmp_path / "b.json").write_text(json.dumps(
        [{"id": "x 1", "caption": "a man  sings\nloudly", "more": ["no", "two dogs run"]}]))
    monkeypatch.setenv("TEXTS", str(tmp_path))
    assert corpus.read("$TEXTS/a.txt, $TEXTS/*.json") == ["one line", "another",
                                                          "a man sings loudly", "two dogs run"]


def test_windows_are_shifted_streams_of_disjoint_documents():
    class Letters:
        eos_token_id = 99

        def __len__(self):
            return 100

        def encode(self, text):
            return [ord(c) - 97 for c in text]

        def decode(self, token_ids):
            raise NotImplementedError

    documents = ["ab", "cd", "ef", "gh"] * 5
    training, held_out = corpus.streams(documents, Letters(), 0.25, 0, 3)
    assert held_out.shape == (3, 4) and len(training) == 45
    pairs = np.concatenate([training.reshape(-1, 3), held_out.reshape(-1)[:12].reshape(-1, 3)])
    assert (pairs[:, 2] == 99).all() and (pairs[:, 1] - pairs[:, 0] == 1).all()


def test_gpt2_files_are_a_tokenizer(tmp_path):
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(letters)} | {"th": 256, "<|endoftext|>": 257}
    (tmp_path / "gpt2_encoder.json").write_text(json.dumps(vocabulary))
    (tmp_path / "gpt2_vocab.bpe").write_text("#version: 0.2\nt h\n")
    ours = corpus.tokenizer(str(tmp_path), 0, [])
    assert ours.encode("th")[0] == 256 and ours.eos_token_id == 257 and len(ours) == 258
    assert ours.decode(ours.encode("the tail")) == "the tail"


@pytest.mark.parametrize(("changes", "message"), [
    ({"train.steps": 0}, "train.steps is 0"),
    ({"train.warmup": -1}, "train.warmup is -1"),
    ({"data.held_out": 1.0}, "data.held_out is 1.0"),
    ({"model.positions": 8}, "model.positions is 8; give at least train.length, 32"),
    ({"seed": -1}, "seed is -1"),
])
def test_values_out_of_range(texts, changes, message):
    with pytest.raises(UserError, match=message):
        config(texts, **changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"data.files": "absent/*.txt"}, "no file matches absent"),
    ({"data.files": "$MLECS_UNSET/x"}, "environment variable MLECS_UNSET"),
    ({"tokenizer.vocabulary": 12}, "tokenizer.vocabulary is 12"),
    ({"tokenizer.directory": "absent"}, "holds neither tokenizer.json nor"),
    ({"model.name": "gpt5"}, "^model.name: unknown backbone 'gpt5'"),
    ({"train.length": 200, "data.held_out": 0.1}, "make no window of 201"),
])
def test_what_cannot_be_trained_on(texts, tmp_path, changes, message):
    files = changes.pop("data.files", texts)
    with pytest.raises(UserError, match=message):
        pretrain.run(config(files, **changes), tmp_path / "run")


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "c.txt").write_text("\n")
    for name, message in (("a.json", "cannot be read"), ("b.txt", "cannot be read"),
                          ("c.txt", "no text in them")):
        with pytest.raises(UserError, match=message):
            corpus.read(str(tmp_path / name))


@pytest.mark.slow
def test_captions(real_data_dir, tmp_path, monkeypatch):
    """On real captions the smoke variant beats the uniform guess, with the real GPT-2 vocabulary
    too."""
    monkeypatch.setenv("MLECS_DATA_DIR", str(real_data_dir))
    summary = pretrain.run(config("$MLECS_DATA_DIR/omni_caption/vast*.json",
                                  **{"tokenizer.directory": str(real_data_dir / "lm")}),
                           tmp_path / "run")
    assert summary["vocabulary"] == 50257
    assert summary["held_out_nats"] < np.log(50257)
    assert jnp.isfinite(summary["held_out_nats"])
