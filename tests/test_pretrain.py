"""Pretraining: it learns, resumes exactly, writes what the rest can load, and refuses bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import cli, pretrain
from mlecs_jax.data import corpus
from mlecs_jax.errors import UserError
from mlecs_jax.models import generate, hf

ANIMALS, PLACES = ["cat", "dog", "cow"], ["house", "garden", "street"]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"the {a} is in the {p}\n" for a in ANIMALS for p in PLACES) * 40)
    return path


def config(texts, **changes):
    values, _ = cli.parse(["pretrain", "--config=lm_small:smoke", f"--config.data.files={texts}",
                           *(f"--config.{k}={v}" for k, v in changes.items())], "", {"workdir": ""})
    return pretrain.parse(values)


class Killed(Exception):
    pass


def test_it_learns_resumes_exactly_and_writes_a_directory_the_rest_loads(texts, tmp_path):
    options = {"train.steps": 50, "train.check_every": 20, "train.learning_rate": 0.01}
    records = []
    summary = pretrain.run(config(texts, **options), tmp_path / "whole", on_check=records.append)
    assert [record["step"] for record in records] == [20, 40, 50]
    assert records[-1]["held_out_nats"] < 0.6 * records[0]["held_out_nats"]
    assert summary["held_out_nats"] == records[-1]["held_out_nats"]

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
    prompts = generate.pad_prompts([tokenizer.encode("the cow is in")])
    answer = generate.greedy(model, params, None, None, *prompts, max_new_tokens=8,
                             eos_id=tokenizer.eos_token_id)
    text = tokenizer.decode(generate.strip(answer, tokenizer.eos_token_id)[0])
    assert text.strip() in [f"the {place}" for place in PLACES]
    with pytest.raises(UserError, match="another.*train.steps"):
        pretrain.run(config(texts, **options | {"train.steps": 60}), tmp_path / "whole")


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
    ({"model.name": "gpt5"}, "unknown backbone 'gpt5'"),
    ({"train.length": 200}, "make no window of 201"),
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
