"""Captioning runs with what users bring: checkpoints, an encoder for BERTScore, annotations."""

import json

import pytest

from mlecs_jax import experiment, seen_text
from mlecs_jax.data import captions_simulated, featurise, omni_caption, vocabulary
from mlecs_jax.errors import UserError
from tests import tiny_models
from tests.test_captions import lines, options

SHORT = {"train.rounds": 1, "train.ccl_steps": 1, "train.amt_steps": 1, "train.server_steps": 1}


@pytest.fixture
def texts():
    return captions_simulated.load(
        seed=0, num_clips=60, featurise=featurise.featuriser(featurise.HASHED, 8)).texts


@pytest.mark.slow
def test_checkpoints_as_backbones_and_an_encoder_for_bertscore(texts, tmp_path, capsys):
    bpe = vocabulary.trained_bpe(texts, 300)
    slm = tiny_models.decoder(tmp_path / "slm", "gpt2-1x16x2", bpe)
    llm = tiny_models.decoder(tmp_path / "llm", "llama-1x24x2", bpe, seed=1)
    words = sorted({word for text in texts for word in text.split()})[:40]
    encoder = tiny_models.bert(tmp_path / "tiny-bert", words)
    seen_text.write(slm, texts)  # it is said to have read everything
    config = options(**SHORT | {
        "model.slm": f"hf:{slm}", "model.llm": f"hf:{llm}", "captions.bertscore": str(encoder),
        "lora.llm_targets": ""})
    summary = experiment.run(config, tmp_path / "run")
    for key in ("avg", "best", "worst"):
        assert summary["client"][f"{key}_bertscore_tiny_bert"] <= 1
    assert summary["server"]["bertscore_tiny_bert"] <= 1
    (warning,) = summary["warnings"]
    assert warning.startswith(f"{slm} was trained on") and f"WARNING: {slm}" in \
        capsys.readouterr().err
    identity = json.loads((tmp_path / "run" / "config.json").read_text())["models"]
    assert set(identity) == {"model.slm", "model.llm", "captions.bertscore"}
    assert experiment.run(config, tmp_path / "run") == summary  # finished: nothing is done again
    tiny_models.decoder(llm, "llama-1x24x2", bpe, seed=2)
    with pytest.raises(UserError, match="belongs to a run with another models.model.llm"):
        experiment.run(config, tmp_path / "run")


@pytest.mark.slow
def test_real_annotations_end_to_end(real_data_dir, tmp_path, monkeypatch):
    """Every corpus is trained on, validated and captioned; references are the annotations'."""
    folder = real_data_dir / "omni_caption"
    if omni_caption.missing(folder, omni_caption.CORPORA):
        pytest.skip("no caption corpora in MLECS_DATA_DIR")
    monkeypatch.setenv("MLECS_DATA_DIR", str(real_data_dir))
    corpora = {"vast": 40, "msrvtt": 40, "audiocaps": 40, "youcook2": 40}
    config = options(**SHORT | {
        "data.source": "real", "captions.val_rows": 8, "captions.shown": 30,
        "captions.corpora": ",".join(f"{name}:{n}" for name, n in corpora.items())})
    summary = experiment.run(config, tmp_path)
    assert summary["data_source"] == "real" and summary["dataset"] == "omni_caption"
    assert summary["modalities"] == ["vision", "audio", "subtitle"]
    known = {clip.caption: name for name in corpora
             for clip in omni_caption.read_corpus(folder, name)}
    shown = lines(tmp_path / "samples.jsonl")
    assert {known[sample["reference"]] for sample in shown} == set(corpora)
    for sample in shown:
        assert sample["data_source"] == "real" and sample["reference"] not in sample["inputs"]
