"""Sentiment data: pickles read without running them, real features, simulated ones, splits."""

import builtins
import dataclasses
import os
import pickle

import numpy as np
import pytest

from mlecs_jax.data import (
    mosei,
    mosi,
    mult_pickles,
    prepare,
    sentiment,
    sentiment_files,
    sentiment_simulated,
    sentiment_sources,
)
from mlecs_jax.data.sentiment import TEST, TRAIN, VALID, SentimentData
from mlecs_jax.errors import UserError

STEPS, WIDTHS = {"text": 3, "audio": 5, "vision": 4}, {"text": 6, "audio": 2, "vision": 3}
SIZES = {"train": 4, "valid": 2, "test": 3}


def made_up(n: int = 60, seed: int = 0) -> SentimentData:
    rng = np.random.default_rng(seed)
    streams = {m: rng.normal(3, 2, (n, STEPS[m], WIDTHS[m])).astype(np.float32) for m in STEPS}
    return SentimentData(
        name="mosi", source="simulated", form="made_up", **streams,
        labels=rng.uniform(-3, 3, n).astype(np.float32),
        videos=(np.arange(n) // 5).astype(np.int32),
        canonical=np.select([np.arange(n) < 40, np.arange(n) < 45], [0, 1], 2).astype(np.int8))


# ---- users' pickle files


def mult_parts() -> dict:
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in SIZES.items():
        parts[part] = {m: rng.standard_normal((n, STEPS[m], WIDTHS[m])) for m in STEPS}
        parts[part]["labels"] = np.linspace(-3, 3, n).reshape(n, 1, 1)
        parts[part]["id"] = [np.array([f"{part}{i // 2}".encode(), 1.5, 2.5], object)
                             for i in range(n)]
        parts[part]["audio"][0, 1, 0] = -np.inf
    return parts


def mmsa_parts() -> dict:
    parts = mult_parts()
    for part, n in SIZES.items():
        own = parts[part]
        own["regression_labels"] = own.pop("labels").reshape(n)
        own["id"] = [f"{part}{i // 2}$_${i}" for i in range(n)]
        own["raw_text"] = np.array(["good"] * n)
        own["vision"][:, -1] = 0  # padded on the right
    return parts


def write(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("file,form,parts", [
    ("mosi_data.pkl", "mult", mult_parts), ("aligned_50.pkl", "mmsa_aligned", mmsa_parts)])
def test_pickles_are_prepared_once_and_loaded(tmp_path, cache_dir, protocol, file, form, parts):
    write(tmp_path / file, parts(), protocol)
    assert prepare.main(["mosi", f"--source={tmp_path}"]) == 0
    assert not mosi.prepare(tmp_path)  # made already
    data = mosi.load()
    assert (data.name, data.source, data.form) == ("mosi", "real", form)
    assert len(data) == sum(SIZES.values()) and data.shapes == {
        m: (STEPS[m], WIDTHS[m]) for m in STEPS}
    np.testing.assert_array_equal(data.canonical, [TRAIN] * 4 + [VALID] * 2 + [TEST] * 3)
    np.testing.assert_array_equal(data.videos[[0, 2]] == data.videos[[1, 3]], True)
    assert len(np.unique(data.videos)) == 2 + 1 + 2
    np.testing.assert_allclose(data.labels[:4], [-3, -1, 1, 3])
    written = parts()["train"]
    np.testing.assert_allclose(data.text[:4], written["text"], rtol=1e-6)
    assert data.audio[0, 1, 0] == 0 and data.audio[0, 1, 1] == np.float32(written["audio"][0, 1, 1])
    vision = np.roll(written["vision"], 1, axis=1) if form == "mmsa_aligned" else written["vision"]
    np.testing.assert_allclose(data.vision[:4], vision, rtol=1e-6)


class Malicious:
    """Runs a function of its choice when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("attack", [
    Malicious(os.mkdir, "pwned"), Malicious(builtins.eval, "__import__('os').mkdir('pwned')"),
    Malicious(np.fromfile, "/etc/hostname"), Malicious(np.load, "x.npy"),
    {"train": {"text": Malicious(os.system, "mkdir pwned")}}, np.polynomial.Polynomial([1.0])])
def test_a_pickle_that_asks_for_more_than_arrays_is_refused_and_not_run(
        attack, tmp_path, cache_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mosi_data.pkl", attack)
    assert prepare.main(["mosi", f"--source={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "is refused: a pickle may build NumPy arrays alone" in error and "\n" not in error[:-1]
    assert not (tmp_path / "pwned").exists()


def test_the_one_codec_of_old_pickles_is_the_only_one(tmp_path):
    path = tmp_path / "x.pkl"
    write(path, np.arange(3), protocol=2)
    np.testing.assert_array_equal(mult_pickles.read_pickle(path), [0, 1, 2])
    path.write_bytes(b"c_codecs\nencode\n(Vaaa\nVrot13\ntR.")
    with pytest.raises(UserError, match="refused.*codec 'rot13'"):
        mult_pickles.read_pickle(path)


def without(key):
    parts = mult_parts()
    del parts["valid"][key]
    return parts


def changed(part, key, value):
    parts = mult_parts()
    parts[part][key] = value
    return parts


@pytest.mark.parametrize("content,message", [
    ([1, 2], "no parts train, valid and test"), ({"train": {}}, "no parts train, valid and test"),
    (without("vision"), "part 'valid' has no 'vision'"),
    (changed("test", "audio", np.zeros((3, 5))), r"'audio' is \[3, 5\]"),
    (changed("test", "text", np.zeros((2, 3, 6))), r"expected \[3, time, features\]"),
    (changed("test", "text", np.zeros((3, 3, 7))), "'text' differs in shape"),
    (changed("train", "text", np.full((4, 3, 6), np.nan)), "not finite")])
def test_wrong_content_is_one_clear_line(content, message, tmp_path):
    write(tmp_path / "x.pkl", content)
    with pytest.raises(UserError, match=message):
        mult_pickles.read_segments(tmp_path / "x.pkl")


def test_broken_and_absent_files_are_one_clear_line(tmp_path, cache_dir, monkeypatch):
    whole = pickle.dumps(mult_parts())
    (tmp_path / "cut.pkl").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="no whole pickle|refused"):
        mult_pickles.read_pickle(tmp_path / "cut.pkl")
    with pytest.raises(UserError, match="cannot read"):
        mult_pickles.read_pickle(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="none of mosei_senti_data.pkl"):
        mosei.prepare(tmp_path)
    monkeypatch.setenv("MLECS_DATA_DIR", str(tmp_path / "nowhere"))
    for load in (mosi.load, mosei.load):
        with pytest.raises(UserError, match="does not exist; set MLECS_DATA_DIR"):
            load()
    with pytest.raises(UserError, match="not prepared as mult"):
        mosi.load("mult")
    for module in (mosi, mosei):
        with pytest.raises(UserError, match="no public download"):
            module.download(tmp_path)
    np.savez(tmp_path / "mosi_utterance.npz", text=np.zeros(3))
    with pytest.raises(UserError, match="has no column 'clip'"):
        sentiment_files.read_archive(tmp_path / "mosi_utterance.npz", ("text", "clip"))


def test_videos_that_no_file_names_are_kept_apart_by_no_split(tmp_path, cache_dir):
    parts = mult_parts()
    del parts["valid"]["id"]
    write(tmp_path / "mosi_data.pkl", parts)
    mosi.prepare(tmp_path)
    data = mosi.load("mult")
    assert set(data.videos) == {sentiment.NO_VIDEO}
    assert len(sentiment.split(data, "canonical").train) == 4
    with pytest.raises(UserError, match="which video a segment is of.*use canonical"):
        sentiment.split(data, "video")
    with pytest.raises(UserError, match="data.window is 3; mosi as mult has sequences"):
        mosi.load("mult", window=3)


def test_what_would_be_ignored_is_refused(tmp_path, cache_dir, monkeypatch):
    monkeypatch.setenv("MLECS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="mosi is not prepared as mult"):
        sentiment_sources.load("mosi", form="mult")  # and not simulated data in its place
    for options, message in (({"source": "simulated", "form": "mult"}, "data.form is of real"),
                             ({"window": 4}, "data.window is of real")):
        with pytest.raises(UserError, match=message):
            sentiment_sources.load("mosi", **options)


def test_trailing_padding_moves_to_the_front():
    x = np.zeros((3, 4, 2), np.float32)
    x[0, 0], x[0, 2], x[1, 3] = 1, 2, 3
    moved = mult_pickles.left_padded(x)
    np.testing.assert_array_equal(moved[:, :, 0], [[0, 1, 0, 2], [0, 0, 0, 3], [0] * 4])


# ---- real features


def test_real_mosi_has_its_published_counts_and_contexts(real_data_dir):
    data = mosi.utterances(window=4)
    assert len(data) == 2199 and len(np.unique(data.videos)) == 93
    assert data.shapes == {"text": (4, 100), "audio": (4, 73), "vision": (4, 100)}
    assert (data.canonical == TEST).sum() == 752
    assert ((data.canonical == TRAIN) | (data.canonical == VALID)).sum() == 1447
    parts = [set(data.videos[data.canonical == part]) for part in (TRAIN, VALID, TEST)]
    assert [len(part) for part in parts] == [51, 11, 31]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    first = np.flatnonzero(np.diff(data.videos, prepend=-1))
    assert not data.text[first, :-1].any()
    row = first[1] - 1  # the last utterance of the first video
    np.testing.assert_array_equal(data.text[row, :-1], data.text[row - 1, 1:])
    held = sentiment.split(data, "heldout", seed=0)
    assert [len(set(data.videos[part])) for part in (held.train, held.val, held.test)] == [
        62, 10, 21]
    assert (len(held.train), len(held.val) + len(held.test)) == (1447, 752)


def test_real_mosei_is_one_step_per_certain_video(real_data_dir):
    data = mosei.video_level()
    assert data.shapes == {"text": (1, 768), "audio": (1, 39), "vision": (1, 35)}
    assert len(data) == 922 - 6 and len(np.unique(data.videos)) == len(data)
    assert np.isfinite(data.audio).all()
    with np.load(real_data_dir / mosei.VIDEO_FILE) as archive:
        certain = ~archive["id_uncertain"]
        mean, theirs = (archive[name][certain] for name in ("sentiment_mean7", "repo_label"))
    np.testing.assert_array_equal(data.labels, mean)
    # The other label in the file is a mean over emotions besides: much smaller, and no sentiment.
    assert np.abs(theirs).mean() < 0.5 * np.abs(mean).mean()
    assert 0.6 < np.corrcoef(mean, theirs)[0, 1] < 0.9
    parts = sentiment.split(data, "canonical")
    assert len(parts.train) > 600 and len(parts.val) > 80 and len(parts.test) > 170
    with pytest.raises(UserError, match="no neighbours"):
        mosei.load("video", window=3)


def test_sources_prefer_real_and_say_which(tmp_path, cache_dir, monkeypatch, real_data_dir):
    assert sentiment_sources.load("mosi").source == "real"
    assert sentiment_sources.load("mosi", source="simulated").source == "simulated"
    monkeypatch.setenv("MLECS_DATA_DIR", str(tmp_path))
    assert sentiment_sources.load("mosei", simulated_segments=120).source == "simulated"
    for options, message in (({"name": "iemocap"}, "data.name"), (
            {"name": "mosi", "source": "made"}, "data.source")):
        with pytest.raises(UserError, match=message):
            sentiment_sources.load(**options)


# ---- simulated


def test_simulated_data_are_seeded_and_need_all_three_streams():
    data = sentiment_simulated.simulate("mosei", seed=3, segments=300)
    same = sentiment_simulated.simulate("mosei", seed=3, segments=300)
    other = sentiment_simulated.simulate("mosei", seed=4, segments=300)
    for field in dataclasses.fields(data):
        np.testing.assert_array_equal(getattr(data, field.name), getattr(same, field.name))
    assert (data.labels != other.labels).mean() > 0.5
    assert data.shapes == {"text": (12, 300), "audio": (24, 74), "vision": (20, 35)}
    assert set(data.canonical) == {TRAIN, VALID, TEST}
    assert 0 < (data.labels == 0).mean() < 0.2 and np.abs(data.labels).max() == 3
    padded = ~data.text.any(-1)
    assert padded.any() and not (padded[:, 1:] & ~padded[:, :-1]).any()  # on the left alone
    for bad, message in (({"name": "x"}, "no simulated 'x'"),
                         ({"name": "mosi", "segments": 9}, "simulated_segments is 9")):
        with pytest.raises(UserError, match=message):
            sentiment_simulated.simulate(**bad)


# ---- splits, scaling, dealing


@pytest.mark.parametrize("kind", sentiment.SPLITS)
def test_splits_are_disjoint_and_whole(kind):
    data = made_up()
    parts = sentiment.split(data, kind, seed=1)
    rows = np.concatenate([parts.train, parts.val, parts.test])
    assert len(rows) == len(set(rows)) == 60
    again, other = (sentiment.split(data, kind, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(parts.train, again.train)
    assert (len(parts.train) == len(other.train) and (parts.train == other.train).all()) == (
        kind in ("canonical", "heldout"))  # no feature of this data was learnt with labels
    if kind == "segment":
        assert [len(parts.train), len(parts.val), len(parts.test)] == [42, 6, 12]
    if kind == "video":
        assert not set(data.videos[parts.train]) & set(data.videos[parts.test])


def test_validation_videos_are_new_where_features_were_learnt_with_labels():
    """Published test videos 9, 10 and 11: one of them validates, another one with every seed."""
    data = dataclasses.replace(made_up(), supervised=True, caution="learnt with labels")
    known = np.flatnonzero(data.canonical != TEST)
    validated = []
    for seed in range(4):
        parts = sentiment.split(data, "heldout", seed)
        np.testing.assert_array_equal(parts.train, known)
        assert not set(data.videos[parts.val]) & set(data.videos[parts.test])
        assert set(data.canonical[np.concatenate([parts.val, parts.test])]) == {TEST}
        validated.append(*set(data.videos[parts.val]))
    assert set(validated[:3]) == {9, 10, 11} and validated[3] == validated[0]
    for kind in sentiment.SPLITS:
        said = sentiment.caution(data, kind)
        assert said.startswith("learnt with labels; ")
        assert ("too" in said) == (kind != "heldout")
    assert sentiment.caution(made_up(), "canonical") == ""


def test_scaling_takes_training_rows_alone_and_leaves_padding():
    data = made_up()
    data.text[:, 0] = 0
    data.audio[..., 1] = 7
    rows = np.arange(30)
    scaled = sentiment.standardise(data, rows)
    assert not scaled.text[:, 0].any() and not scaled.audio[..., 1].any()
    x = data.text[:30, 1:].reshape(-1, 6)
    expected = np.clip((data.text[40, 2] - x.mean(0)) / x.std(0), -5, 5)
    np.testing.assert_allclose(scaled.text[40, 2], expected, rtol=1e-5)


def test_dealing_gives_every_row_once_and_skews_labels():
    data = made_up(2000)
    rows = np.arange(0, 2000, 2)
    skewed = sentiment.deal(data, rows, edges=3, ends=2, alpha=0.5, minimum=20, seed=0)
    even = sentiment.deal(data, rows, edges=3, ends=2, alpha=float("inf"), seed=0)

    def spread(dealt):
        counts = np.stack([np.bincount(sentiment.bins(data.labels[np.concatenate(edge)]),
                                       minlength=7) for edge in dealt])
        return np.abs(counts / counts.sum(1, keepdims=True) - counts.sum(0) / counts.sum()).sum()

    for dealt in (skewed, even):
        assert [len(edge) for edge in dealt] == [2, 2, 2]
        parts = [part for edge in dealt for part in edge]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), rows)
        assert min(map(len, parts)) >= 16
    assert spread(skewed) > 5 * spread(even)


@pytest.mark.parametrize("call,message", [
    (lambda: sentiment.split(made_up(), "random"), "data.split is 'random'"),
    (lambda: sentiment.split(made_up(3), "segment"), "no val segments"),
    (lambda: sentiment.deal(made_up(), np.arange(60), minimum=11), "fewer ends"),
    (lambda: sentiment.deal(made_up(), np.arange(60), edges=0), "1 or more"),
    (lambda: sentiment.deal(made_up(), np.arange(60), alpha=0.0), "concentration"),
    (lambda: sentiment.context_windows(np.zeros((2, 1)), np.zeros(2, int), 0), "data.window is 0"),
    (lambda: dataclasses.replace(made_up(), labels=np.full(60, 4, np.float32)), r"\[-3, 3\]"),
    (lambda: dataclasses.replace(made_up(), text=np.zeros((60, 3), np.float32)), "text is"),
    (lambda: dataclasses.replace(made_up(), audio=np.full((60, 1, 1), np.inf, np.float32)),
     "not finite"),
    (lambda: dataclasses.replace(made_up(), videos=np.zeros(3, np.int32)), "videos is")])
def test_bad_requests_are_one_clear_line(call, message):
    with pytest.raises(UserError, match=message):
        call()
