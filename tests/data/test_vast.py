"""VAST-27M annotations and feature files as users have them; featurisers; simulated captions."""

import functools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlecs_jax.data import captions_simulated, featurise, records, vast
from mlecs_jax.errors import UserError

HASHED = featurise.featuriser(featurise.HASHED, 32)


def record(i, **changes):
    return {"clip_id": f"v{i // 2}.{i}", "url": f"http://v/{i // 2}",
            "vision_cap": ["a man runs.", "a man runs", f"man number {i}"],
            "audio_cap": ["steps"], "subtitle": "", "vast_cap": f"A man called {i} runs."} | changes


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([record(i) for i in range(6)]))
    return path


def test_texts_become_three_inputs_and_the_omni_caption_the_target(annotations):
    samples = vast.load(annotations, None, HASHED)
    assert samples.modalities == vast.MODALITIES and samples.source == "real"
    assert samples.texts[0] == "A man called 0 runs." and samples.labels is None
    assert samples.present.tolist() == [[True, True, False]] * 6
    assert not samples.inputs["subtitle"].any() and samples.inputs["vision"].shape == (6, 32)
    assert samples.context[1] == "a man runs. man number 1\nsteps"
    assert samples.groups.tolist() == [0, 0, 1, 1, 2, 2]  # clips of one video stay together


def test_one_object_a_line_reads_the_same(annotations, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(json.dumps(record(i)) for i in range(6)))
    a, b = (vast.load(path, None, HASHED) for path in (annotations, lines))
    assert a.texts == b.texts
    np.testing.assert_array_equal(a.inputs["vision"], b.inputs["vision"])


def test_an_input_that_holds_the_caption_is_taken_away(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record(0, subtitle="and so: a man CALLED 0 runs, he said"),
                                record(1, subtitle="a man called 10 runs")]))
    assert vast.load(path, None, HASHED).present[:, 2].tolist() == [False, True]


def test_feature_vectors_by_clip_id(annotations, tmp_path):
    folder = tmp_path / "features"
    (folder / "audio").mkdir(parents=True)
    vision = {f"v{i // 2}.{i}": np.full(5, i, np.float32) for i in range(5)}  # the last has none
    np.savez(folder / "vision.npz", **vision, other=np.zeros(5))
    for i in range(6):
        np.save(folder / "audio" / f"v{i // 2}.{i}.npy", np.full((4, 2), i, np.float64))
    samples = vast.load(annotations, folder, HASHED)
    assert samples.inputs["vision"].shape == (6, 5) and samples.inputs["audio"].shape == (6, 4, 2)
    np.testing.assert_array_equal(samples.inputs["vision"][:5, 0], np.arange(5))
    assert samples.present[:, 0].tolist() == [True] * 5 + [False]
    assert samples.inputs["subtitle"].shape == (6, 32)  # text, so it needs no file
    (folder / "vision.npz").unlink()
    save_file(vision, folder / "vision.safetensors")
    again = vast.load(annotations, folder, HASHED)
    np.testing.assert_array_equal(samples.inputs["vision"], again.inputs["vision"])


def test_a_modality_without_features_is_left_out(annotations, tmp_path):
    np.savez(tmp_path / "audio.npz", **{"v0.0": np.ones(3)})
    assert vast.load(annotations, tmp_path, HASHED).modalities == ("audio", "subtitle")


@pytest.mark.parametrize("make,message", [
    (lambda f: None, "holds no vectors"),
    (lambda f: np.savez(f / "vision.npz", x=np.ones(3)), "has none of the 6 clips"),
    (lambda f: np.savez(f / "vision.npz", **{"v0.0": np.ones(3), "v0.1": np.ones(2)}),
     "pool them to one shape"),
    (lambda f: (f / "vision.npz").write_bytes(b"torn"), "cannot be read"),
    (lambda f: (f / "vision.safetensors").write_bytes(b"torn"), "cannot be read")])
def test_bad_features_are_named(annotations, tmp_path, make, message):
    folder = tmp_path / "features"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=message):
        vast.load(annotations, folder, HASHED)


def test_clips_without_any_vector_are_left_out_and_counted(annotations, tmp_path, capsys):
    np.savez(tmp_path / "vision.npz", **{"v0.0": np.ones(3), "v1.3": np.ones(3)})
    np.savez(tmp_path / "audio.npz", **{"v0.0": np.ones(2), "v2.4": np.ones(2)})
    samples = vast.load(annotations, tmp_path, HASHED)
    assert [text.split()[3] for text in samples.texts] == ["0", "3", "4"]
    assert samples.present[:, :2].tolist() == [[True, True], [True, False], [False, True]]
    assert "3 of 6 clips have no vector of vision, audio" in capsys.readouterr().err


def test_a_part_of_the_clips_is_drawn_and_the_same_for_everyone(tmp_path, annotations):
    path = tmp_path / "many.json"
    path.write_text(json.dumps([record(i) for i in range(200)]))
    part = vast.load(path, None, HASHED, 31)
    assert len(part) == 31 and len(set(part.texts)) == 31
    numbers = [int(text.split()[3]) for text in part.texts]
    assert numbers == sorted(numbers) and max(numbers) > 100  # not the first ones
    videos = np.bincount([number // 2 for number in numbers])
    assert (videos == 1).sum() == 1  # whole videos, but the last
    path.write_text(json.dumps([record(i) for i in reversed(range(200))]))
    again = vast.load(path, None, HASHED, 30)
    assert set(again.texts) < set(part.texts)  # a smaller draw is part of a larger one
    assert len(vast.load(annotations, None, HASHED, 9680)) == 6


def test_records_longer_than_what_is_read_at_a_time(annotations, monkeypatch):
    whole = list(records.records(annotations))
    monkeypatch.setattr(records, "CHUNK", 7)
    assert list(records.records(annotations)) == whole and len(whole) == 6


@pytest.mark.parametrize("content,message", [
    ("{torn", "cannot be read"), ("[1]", "something else than objects"),
    (json.dumps([record(0)])[:-1], "cannot be read"), ("[] []", "text behind the list"),
    (json.dumps([record(0, vision_cap=None)]), "record 0: vision_cap is null; give a list"),
    (json.dumps([record(0), record(1, audio_cap=["a", None])]),
     r"record 1: audio_cap is \['a', None\]; give a list of texts"),
    (json.dumps([record(0, clip_id=None)]), "clip_id is null; give a text"),
    (json.dumps([record(0, subtitle=["a"])]), "subtitle is .'a'.; give a text"),
    (json.dumps([record(0, vast_cap=None)]), "no captioned clip"),
    ('[{"clip_id": "a"}]', "record 0 lacks 'vision_cap'"), ("[]", "no captioned clip")])
def test_bad_annotations_are_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        vast.load(tmp_path / "a.json", None, HASHED)
    with pytest.raises(UserError, match="is not a folder"):
        (tmp_path / "a.json").write_text(json.dumps([record(0)]))
        vast.load(tmp_path / "a.json", tmp_path / "nowhere", HASHED)


def test_hashed_ngrams_depend_on_nothing_but_the_text():
    """Fixed values: a change of the featuriser needs a new name."""
    texts = ["A dog runs in the park", "a DOG runs in the park!", "", "stock markets fell"]
    vectors = HASHED(texts)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert not vectors[2].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 3]], axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors[3], HASHED(texts[3:])[0])
    wide = functools.partial(featurise.hashed_ngrams, width=512)(
        ["a dog runs in the park", "the dog is running in a park", "stock markets fell"])
    assert wide[0] @ wide[1] > 0.5 > 0.2 > abs(wide[0] @ wide[2])
    np.testing.assert_allclose(vectors[0, :3], EXPECTED, atol=1e-6)


EXPECTED = (0.0817432, -0.1095827, -0.2975577)


def test_an_unknown_featuriser_is_named():
    with pytest.raises(UserError, match="captions.featuriser is 'x'; use hashed-ngrams-v1"):
        featurise.featuriser("x", 8)


def test_simulated_slots_are_each_known_to_one_modality():
    samples = captions_simulated.load(seed=3, num_clips=200, featurise=HASHED)
    assert samples.source == "simulated" and samples.present.all()
    slots = (captions_simulated.WHO, captions_simulated.SOUNDS, captions_simulated.TOPICS)
    for text, context in zip(samples.texts, samples.context, strict=True):
        for slot, line in zip(slots, context.split("\n"), strict=True):
            (word,) = [w for w in slot if f" {w}" in text]
            assert word in line
            assert not any(w in line for other in slots if other is not slot for w in other)
    again = captions_simulated.load(seed=3, num_clips=200, featurise=HASHED)
    assert again.texts == samples.texts
    assert captions_simulated.load(seed=4, num_clips=200, featurise=HASHED).texts != samples.texts
    with pytest.raises(UserError, match="simulated_clips is 5"):
        captions_simulated.load(seed=0, num_clips=5, featurise=HASHED)
