"""The four corpora: what is input, what is target, and that neither leaks nor straddles."""

import json

import numpy as np
import pytest

from mlecs_jax.config import CaptionsConfig
from mlecs_jax.config import parse as parse_config
from mlecs_jax.configs import vast as vast_config
from mlecs_jax.data import featurise, omni_caption, sources, text, vast, vocabulary
from mlecs_jax.data.partition import PartitionConfig, partition
from mlecs_jax.errors import UserError

HASHED = featurise.featuriser(featurise.HASHED, 16)
COUNTS = {"vast": 120, "msrvtt": 1000, "audiocaps": 1867, "youcook2": 12499}


@pytest.fixture(scope="module")
def folder(real_data_dir):
    found = real_data_dir / "omni_caption"
    if omni_caption.missing(found, COUNTS):
        pytest.skip("no caption corpora in MLECS_DATA_DIR")
    return found


@pytest.mark.parametrize("name", COUNTS)
def test_real_corpora_hold_what_they_should(folder, name):
    clips = omni_caption.read_corpus(folder, name)
    assert len(clips) == COUNTS[name]
    there = np.array([[bool(t) for t in clip.texts] for clip in clips]).mean(axis=0)
    expected = {"vast": (1, 1, 1), "msrvtt": (1, 0.884, 0.762), "audiocaps": (1, 1, 0),
                "youcook2": (0, 0, 0.92)}[name]
    np.testing.assert_allclose(there, expected, atol=0.012)
    for clip in clips:
        assert not any(vast.reveals(t, clip.caption) for t in clip.texts)
        assert not any(t.strip() == clip.caption for t in clip.texts)


def test_real_videos_never_straddle_the_split(folder):
    corpora = {"msrvtt": 200, "youcook2": 800}
    samples = omni_caption.load(folder, corpora, HASHED)
    assert len(samples) <= 1000 and len(np.unique(samples.groups)) < len(samples)
    split = partition(samples, PartitionConfig(split="sequence"))
    held_out = set(samples.groups[np.concatenate([split.public.val, split.public.test])])
    for share in (split.public, *split.devices):
        assert not held_out & set(samples.groups[share.train])
    assert not set(samples.groups[split.public.val]) & set(samples.groups[split.public.test])
    np.testing.assert_array_equal(samples.inputs["vision"],
                                  omni_caption.load(folder, corpora, HASHED).inputs["vision"])


def test_real_captions_survive_the_tokenizer(folder):
    samples = omni_caption.load(folder, {"msrvtt": 60}, HASHED)
    bpe = vocabulary.trained_bpe(samples.texts, 400)
    assert len(bpe) <= 400
    again = vocabulary.trained_bpe(samples.texts, 400)
    assert bpe.begins(again) and again.begins(bpe)
    target = text.targets(samples, bpe, 70)
    found = [bpe.decode(row.tolist()).strip() for row in target]
    assert found == [t.strip() for t in samples.texts]


def write_msrvtt(folder, **changes):
    record = {"video_id": "v0", "desc": "a dog runs",
              "all_desc": ["a dog runs", "A dog runs.", "dog", "the dog goes home"],
              "subtitle": "woof", "audio_caption": "A dog runs"} | changes
    (folder / "msrvtt1k_omni.json").write_text(json.dumps([record]))


def test_the_target_is_in_no_input(tmp_path):
    """Not word by word, nor inside a longer text, nor as a part of it."""
    write_msrvtt(tmp_path)
    (clip,) = omni_caption.read_corpus(tmp_path, "msrvtt")
    assert clip.texts == ("the dog goes home", "", "woof")


def test_bad_files_and_names_are_named(tmp_path):
    (tmp_path / "msrvtt1k_omni.json").write_text('[{"video_id": "v0"}]')
    with pytest.raises(UserError, match="a record lacks 'desc'"):
        omni_caption.read_corpus(tmp_path, "msrvtt")
    write_msrvtt(tmp_path, desc=None)
    with pytest.raises(UserError, match="a record has null or something else"):
        omni_caption.read_corpus(tmp_path, "msrvtt")
    for entry in ("coco", "msrvtt:many", "vast,,x:3"):
        with pytest.raises(UserError, match="captions.corpora: cannot read"):
            omni_caption.parse_corpora(entry)
    with pytest.raises(UserError, match="captions.corpora is empty"):
        omni_caption.parse_corpora(" , ")
    assert omni_caption.parse_corpora("vast, youcook2:10") == {"vast": 0, "youcook2": 10}


def options(**changes):
    values = vast_config.get_config("smoke")
    for name, value in changes.items():
        group, key = name.split("__")
        values[group][key] = value
    config = parse_config(values.to_dict())
    return config.data, config.captions


def test_source_auto_takes_real_captions_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLECS_DATA_DIR", str(tmp_path))
    assert sources.load(*options()).source == "simulated"
    assert not capsys.readouterr().err  # nobody has put data there
    (tmp_path / "omni_caption").mkdir()
    write_msrvtt(tmp_path / "omni_caption")
    samples = sources.load(*options(captions__corpora="msrvtt"))
    assert samples.source == "real" and samples.name == "omni_caption" and len(samples) == 1
    assert sources.load(*options(captions__corpora="msrvtt,youcook2")).source == "simulated"
    (line,) = capsys.readouterr().err.splitlines()
    assert "lacks youcook2_train.json, youcook2_test.json: captions are simulated" in line
    with pytest.raises(UserError, match="lacks vast27m_sample120.json of captions.corpora=vast"):
        sources.load(*options(captions__corpora="vast", data__source="real"))


def test_options_that_do_not_fit_are_named(tmp_path):
    data, captions = options()
    with pytest.raises(UserError, match="begin with --config=vast"):
        sources.load(data, None)
    with pytest.raises(UserError, match="captions.features needs captions.annotations"):
        sources.load(*options(captions__features=str(tmp_path)))
    for name, value in (("val_rows", 0), ("test_every", -1), ("max_tokens", 0),
                        ("clips", -1)):
        with pytest.raises(UserError, match=f"captions.{name} is {value}"):
            options(**{f"captions__{name}": value})
    assert isinstance(captions, CaptionsConfig) and captions.clips is None
