"""UR-Fall: made-up official files, every kind of bad file, and the real ones."""

import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from official_ur_fall import write_accelerometer, write_labels, write_official, write_video
from PIL import Image

from mlecs_jax.data import ur_fall, ur_fall_files
from mlecs_jax.data.ur_fall_files import SEQUENCES, align_accelerometer
from mlecs_jax.errors import UserError


@pytest.fixture
def official(tmp_path) -> Path:
    return write_official(tmp_path / "official")


@pytest.fixture
def no_data(tmp_path, cache_dir, monkeypatch) -> None:
    monkeypatch.setenv("MLECS_DATA_DIR", str(tmp_path / "nowhere"))


def load(**options):
    return ur_fall.load(rgb_size=16, **options)


# ---- what comes out of good files


def test_samples_hold_the_files_in_order(official, no_data):
    assert ur_fall.prepare(official, rgb_size=16, partial=True)
    samples = load()

    assert "tensorflow" not in sys.modules
    assert samples.name == "ur_fall" and samples.source == "real"
    assert samples.modalities == ("acce", "rgb", "depth")
    np.testing.assert_array_equal(samples.labels, [0, 0, 1, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(samples.groups, [SEQUENCES.index("fall-01")] * 5 + [0] * 4)
    np.testing.assert_array_equal(samples.strata, [1] * 5 + [0] * 4)
    assert samples.labels.dtype == samples.groups.dtype == samples.strata.dtype == np.int32
    assert samples.present.all() and samples.present.shape == (9, 3)
    np.testing.assert_array_equal(
        samples.inputs["depth"],
        np.tile(np.float32([1.5, 2.5, 0.5, 120.25, 1.0, 1900.0, 1050.0, 0.05]), (9, 1)))

    # Frame times 0, 33.3, 66.7, 100, 133.3 ms; readings every 20 ms, of two equally near the first.
    nearest = np.array([0.0, 0.04, 0.06, 0.10, 0.14, 0.0, 0.04, 0.06, 0.10], np.float32)
    np.testing.assert_allclose(samples.inputs["acce"],
                               np.stack([nearest, np.ones(9), -nearest], 1), atol=1e-7)

    rgb = samples.inputs["rgb"]
    assert rgb.shape == (9, 16, 16, 3) and rgb.dtype == np.uint8
    red = 40 + 20 * np.array([0, 1, 2, 3, 4, 0, 1, 2, 3])
    wanted = np.stack([red, np.full(9, 120), np.full(9, 200)], 1)[:, None, None]
    assert np.abs(rgb.astype(int) - wanted)[:, :, 1:].max() <= 6  # column 0 borders on the depth


def test_window_ends_at_the_frame_and_is_clamped_at_the_start(official, no_data):
    ur_fall.prepare(official, rgb_size=16, partial=True)
    window = load(acce="window").inputs["acce"]
    assert window.shape == (9, 32, 3)
    t = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3]) / 30
    times = t[:, None] + np.linspace(-1, 0, 32)
    np.testing.assert_allclose(window[..., 0], np.maximum(times, -0.04), atol=1e-6)


def test_depth_images_come_from_wide_videos_and_are_missing_elsewhere(official, no_data):
    ur_fall.prepare(official, rgb_size=16, partial=True)
    samples = load(depth="image")
    depth = samples.inputs["depth"]
    assert depth.shape == (9, 16, 16, 1) and depth.dtype == np.uint8
    np.testing.assert_array_equal(samples.present[:, 2], [True] * 5 + [False] * 4)
    wanted = (60 + 20 * np.arange(5))[:, None, None, None]
    assert np.abs(depth[:5].astype(int) - wanted)[:, :, :-1].max() <= 6
    assert not depth[5:].any()


def test_depth_images_nowhere_is_an_error(official, no_data):
    write_video(official / "fall-01-cam0.mp4", 5, 320)
    ur_fall.prepare(official, rgb_size=16, partial=True)
    with pytest.raises(UserError, match="none of the prepared videos holds depth"):
        load(depth="image")


def test_synchronisation_file_sets_the_times(official, no_data):
    (official / "fall-01-data.csv").write_text("".join(
        f"{frame},{100 * frame},1.0\n" for frame in range(1, 8)))
    ur_fall.prepare(official, rgb_size=16, partial=True)
    samples = load()
    np.testing.assert_allclose(samples.inputs["acce"][:5, 0], [0.1, 0.2, 0.3, 0.4, 0], atol=1e-7)
    # The record ends at 400 ms: frame 5, at 500 ms, has no reading.
    np.testing.assert_array_equal(samples.present[:, 0], [True] * 4 + [False] + [True] * 4)


def test_frames_without_reading_are_missing_modalities_not_dropped_rows(official, no_data):
    write_accelerometer(official / "adl-01-acc.csv", last_ms=40)
    for suffix in ("-acc.csv", "-cam0.mp4"):
        shutil.copy(official / f"fall-01{suffix}", official / f"fall-10{suffix}")
    with (official / "urfall-cam0-falls.csv").open("a") as falls:
        falls.write("fall-10,1,-1,1,1,1,1,1,1,1,1\n")
    ur_fall.prepare(official, rgb_size=16, partial=True)
    for acce in ("sample", "window"):
        samples = load(acce=acce)
        # adl-01 frame 3 (66.7 ms) is within 50 ms of the last reading, frame 4 (100 ms) is not;
        # fall-10 is known to be out of step.
        np.testing.assert_array_equal(
            samples.present[:, 0], [True] * 5 + [False] + [True] * 3 + [False])
        assert not samples.inputs["acce"][~samples.present[:, 0]].any()


def png_archives(folder: Path) -> None:
    for kind, frames in (("rgb", range(1, 5)), ("d", (2, 3))):
        with zipfile.ZipFile(folder / f"adl-01-cam0-{kind}.zip", "w") as archive:
            for frame in frames:
                name = f"adl-01-cam0-{kind}-{frame:03d}.png"
                picture = (np.full((480, 640, 3), 10 * frame, np.uint8) if kind == "rgb"
                           else np.full((480, 640), 6553 * frame, np.uint16))
                Image.fromarray(picture).save(folder / "picture.png")
                archive.write(folder / "picture.png", f"adl-01-cam0-{kind}/{name}")
    (folder / "picture.png").unlink()


@pytest.mark.parametrize("unpacked", [False, True])
def test_png_archives_come_before_videos(official, no_data, unpacked):
    png_archives(official)
    if unpacked:
        for archive in official.glob("*.zip"):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(official)
            archive.unlink()
        (official / "adl-01-cam0.mp4").unlink()
    ur_fall.prepare(official, rgb_size=16, partial=True)
    samples = load(depth="image")
    np.testing.assert_array_equal(samples.inputs["rgb"][5:, 3, 3, 0], [10, 20, 30, 40])
    np.testing.assert_array_equal(samples.present[:, 2], [True] * 5 + [False, True, True, False])
    # 16 bits to 8: 6553 frame / 257
    np.testing.assert_array_equal(samples.inputs["depth"][5:, 3, 3, 0], [0, 51, 76, 0])


def test_alignment_takes_the_earlier_of_two_and_sees_no_future():
    t_ms = np.arange(0.0, 3000.0, 20.0)
    xyz = np.random.default_rng(0).normal(size=(150, 3)).astype(np.float32)
    frames = np.array([1010.0, 2000.0])
    sample, window, valid = align_accelerometer("adl-01", frames, t_ms, xyz)
    np.testing.assert_array_equal(sample, xyz[[50, 100]])
    assert valid.all()
    later = xyz.copy()
    later[101:] += 9  # readings after 2000 ms
    np.testing.assert_array_equal(
        window, align_accelerometer("adl-01", frames, t_ms, later)[1])


# ---- precomputed rgb features


def test_rgb_features_from_files(official, no_data, tmp_path):
    ur_fall.prepare(official, rgb_size=16, partial=True)
    features = np.arange(18, dtype=np.float64).reshape(9, 2)
    np.save(tmp_path / "f.npy", features)
    by_row = load(rgb=tmp_path / "f.npy").inputs["rgb"]
    np.testing.assert_array_equal(by_row, features)
    assert by_row.dtype == np.float32

    order = np.random.default_rng(0).permutation(9)
    frame = np.array([1, 2, 3, 4, 5, 1, 2, 3, 4])[order]
    index = np.array([40] * 5 + [0] * 4)[order]
    for seq in (index, np.array(SEQUENCES)[index]):
        np.savez(tmp_path / "f.npz", seq=seq, frame=frame, features=features[order])
        np.testing.assert_array_equal(load(rgb=str(tmp_path / "f.npz")).inputs["rgb"], features)


@pytest.mark.parametrize(("arrays", "message"), [
    ({"seq": ["adl-01"], "frame": [1]}, "lack the array 'features'"),
    ({"seq": ["adl-01"], "frame": [1, 2], "features": [[1.0]]}, "disagree"),
    ({"seq": [70], "frame": [1], "features": [[1.0]]}, "indices 0 to 69"),
    ({"seq": ["adl-01"], "frame": [1], "features": [[1.0]]},
     r"lack 8 labelled frames \(first: fall-01 frame 1\)"),
])
def test_bad_rgb_features_are_named(official, no_data, tmp_path, arrays, message):
    ur_fall.prepare(official, rgb_size=16, partial=True)
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load(rgb=tmp_path / "f.npz")


def test_rgb_feature_file_absent_or_of_another_length(official, no_data, tmp_path):
    ur_fall.prepare(official, rgb_size=16, partial=True)
    with pytest.raises(UserError, match="cannot be read"):
        load(rgb="frame")
    np.save(tmp_path / "f.npy", np.zeros((8, 2)))
    with pytest.raises(UserError, match=r"\(8, 2\), not \[9, F\]"):
        load(rgb=tmp_path / "f.npy")


# ---- bad files


def edit(name: str, old: str, new: str):
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
    return change


def truncate(name: str, keep: float):
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:int(len(data) * keep)])
    return change


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def broken_png(folder: Path) -> None:
    (folder / "adl-01-cam0-rgb").mkdir()
    (folder / "adl-01-cam0-rgb" / "adl-01-cam0-rgb-001.png").write_bytes(b"\x89PNG\r\n\x1a\n12")


def small_png(folder: Path) -> None:
    (folder / "adl-01-cam0-d").mkdir()
    Image.new("I;16", (320, 240)).save(folder / "adl-01-cam0-d" / "adl-01-cam0-d-001.png")


def grey_png(folder: Path) -> None:
    (folder / "adl-01-cam0-d").mkdir()
    Image.new("L", (640, 480)).save(folder / "adl-01-cam0-d" / "adl-01-cam0-d-001.png")


FALLS, ADLS = "urfall-cam0-falls.csv", "urfall-cam0-adls.csv"
BAD_FILES = {
    "no labels": (lambda f: (f / FALLS).unlink(), f"{FALLS} is missing"),
    "empty labels": (write(ADLS, "\n"), f"{ADLS} is empty"),
    "binary labels": (lambda f: (f / ADLS).write_bytes(b"\xff\xfe\x00"), f"{ADLS} cannot be read"),
    "torn line": (truncate(FALLS, 0.97), f"{FALLS}, line 5: 10 columns instead of 11"),
    "not a number": (edit(ADLS, "120.25", "12o.25"), f"{ADLS}, line 1, column 7: '12o.25'"),
    "nan feature": (edit(ADLS, "120.25", "nan"), f"{ADLS}, line 1, column 7: 'nan'"),
    "label 2": (edit(FALLS, "fall-01,5,1", "fall-01,5,2"), f"{FALLS}, line 5: label '2'"),
    "label .5": (edit(FALLS, "fall-01,5,1", "fall-01,5,.5"), f"{FALLS}, line 5: label '.5'"),
    "frame 0": (edit(FALLS, "fall-01,1,", "fall-01,0,"), f"{FALLS}, line 1: frame '0'"),
    "frame twice": (edit(FALLS, "fall-01,2,", "fall-01,1,"), "fall-01 frame 1 is labelled twice"),
    "unknown sequence": (edit(ADLS, "adl-01", "adl-41"), "line 1: unknown sequence 'adl-41'"),
    "wrong kind": (edit(ADLS, "adl-01", "fall-02"), "line 1: unknown sequence 'fall-02'"),
    "no accelerometer": (lambda f: (f / "adl-01-acc.csv").unlink(), "first: adl-01-acc.csv"),
    "empty accelerometer": (write("adl-01-acc.csv", ""), "adl-01-acc.csv is empty"),
    "nan accelerometer": (edit("adl-01-acc.csv", "1.0", "NaN"), "adl-01-acc.csv, line 1, column 2"),
    "torn accelerometer": (write("adl-01-acc.csv", "1,2,3"), "line 1: 3 columns instead of 5"),
    "sync too short": (write("adl-01-data.csv", "1,0,1\n2,33,1"),
                       "adl-01-data.csv has no time for frame 3"),
    "no video": (lambda f: (f / "adl-01-cam0.mp4").unlink(), "first: adl-01-cam0.mp4"),
    "short video": (lambda f: write_video(f / "fall-01-cam0.mp4", 3, 640),
                    "fall-01-cam0.mp4 has 3 frames but frame 5 is labelled"),
    "truncated video": (truncate("adl-01-cam0.mp4", 0.5), "adl-01-cam0.mp4 cannot be decoded"),
    "not a video": (write("adl-01-cam0.mp4", "<html>"), "adl-01-cam0.mp4 cannot be decoded"),
    "size of video": (lambda f: write_video(f / "adl-01-cam0.mp4", 6, 640, 480),
                      "adl-01-cam0.mp4 has frames of 640x480"),
    "broken archive": (write("adl-01-cam0-d.zip", "no"), "adl-01-cam0-d.zip cannot be read"),
    "empty archive": (lambda f: (f / "adl-01-cam0-d").mkdir(), "adl-01-cam0-d holds no"),
    "broken png": (broken_png, "adl-01-cam0-rgb-001.png is not a whole PNG"),
    "small png": (small_png, "adl-01-cam0-d-001.png is 320x240, not 640x480"),
    "8-bit depth": (grey_png, "mode L, not 16-bit"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_and_nothing_is_prepared(official, no_data, cache_dir, case):
    spoil, message = BAD_FILES[case]
    spoil(official)
    with pytest.raises(UserError) as caught:
        ur_fall.prepare(official, rgb_size=16, partial=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not ur_fall.is_available(16)
    assert not list(cache_dir.rglob("*.array_record*"))


def test_a_part_of_the_dataset_needs_to_be_asked_for(official, no_data):
    with pytest.raises(UserError, match="has 5 rows, the published file 2995.*--partial"):
        ur_fall.prepare(official, rgb_size=16)


def test_partial_leaves_out_sequences_without_files(official, no_data):
    for path in official.glob("fall-01*"):
        path.unlink()
    ur_fall.prepare(official, rgb_size=16, partial=True)
    np.testing.assert_array_equal(load().groups, [0] * 4)
    for path in official.glob("adl-01*"):
        path.unlink()
    with pytest.raises(UserError, match="neither accelerometer files nor pictures"):
        ur_fall.prepare(official, rgb_size=16, partial=True)


def test_damaged_prepared_files_are_named(official, no_data, cache_dir):
    ur_fall.prepare(official, rgb_size=16, partial=True)
    (shard,) = cache_dir.rglob("*.array_record*")
    truncate(shard.name, 0.5)(shard.parent)
    with pytest.raises(UserError, match="is damaged .*; remove it and prepare again"):
        load()


# ---- where data are looked for, and arguments


def test_without_data_the_error_says_how_to_get_them(no_data):
    assert not ur_fall.is_available()
    for call in (ur_fall.load, ur_fall.prepare):
        with pytest.raises(UserError, match="data.prepare ur_fall --source=FOLDER.*--download"):
            call()


@pytest.mark.parametrize("place", ["ur_fall", "urfall/official"])
def test_load_prepares_from_the_default_folders(tmp_path, cache_dir, monkeypatch, place):
    monkeypatch.setenv("MLECS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(ur_fall_files, "LABEL_ROWS", {"fall": 5, "adl": 4})
    write_official(tmp_path / "data" / place)
    assert ur_fall.is_available(16)
    assert len(load()) == 9
    shutil.rmtree(tmp_path / "data")
    assert ur_fall.is_available(16) and not ur_fall.is_available(32)
    assert len(load()) == 9


def test_a_folder_given_to_load_is_used_even_if_another_was_prepared(
        official, no_data, tmp_path, monkeypatch):
    monkeypatch.setattr(ur_fall_files, "LABEL_ROWS", {"fall": 5, "adl": 4})
    assert load(folder=official).labels[8] == 0
    other = write_official(tmp_path / "other")
    write_labels(other / ADLS, "adl-01", [-1, 0, 1, 1])
    assert load(folder=other).labels[8] == 2


@pytest.mark.parametrize("options", [
    {"acce": "samples"}, {"depth": "images"}, {"rgb_size": 31}])
def test_unknown_choices_name_the_known_ones(no_data, options):
    with pytest.raises(UserError, match="is unknown; use one of"):
        ur_fall.load(**options)


# ---- the real files


def compare_with_index(root: Path, official: Path, partial: bool) -> None:
    """Prepares ``official`` and compares every column with the index made independently of it.

    The index assumes 30 frames per second throughout; where a synchronisation file is in
    ``official``, times are within 5.4 ms of that (SOURCE.md) and readings are not compared.
    """
    ur_fall.prepare(official, partial=partial)
    columns = ur_fall.read_columns()
    samples = ur_fall.load()
    with np.load(root / "urfall_index.npz") as stored:
        index = {key: stored[key] for key in stored.files}
    assert tuple(index["seq_names"]) == SEQUENCES
    kept = np.isin(index["seq"], np.unique(columns["group"]))
    index = {key: index[key][kept] for key in
             ("seq", "frame", "label", "is_fall_seq", "t_ms", "depth_feat", "acc_nearest",
              "acc_win1s", "acc_valid")}
    assert len(samples) == len(index["seq"])
    np.testing.assert_array_equal(samples.groups, index["seq"])
    np.testing.assert_array_equal(columns["frame"], index["frame"])
    np.testing.assert_array_equal(samples.labels, index["label"] + 1)
    np.testing.assert_array_equal(samples.strata, index["is_fall_seq"])
    np.testing.assert_array_equal(samples.inputs["depth"], index["depth_feat"])
    np.testing.assert_array_equal(samples.present[:, 0], index["acc_valid"])
    np.testing.assert_allclose(columns["t_ms"], index["t_ms"], atol=5.4, rtol=0)

    synced = [SEQUENCES.index(path.name[:7]) for path in official.glob("*-data.csv")]
    assumed = ~np.isin(samples.groups, synced)
    np.testing.assert_array_equal(columns["t_ms"][assumed], index["t_ms"][assumed])
    np.testing.assert_array_equal(columns["acce"][assumed], index["acc_nearest"][assumed, 1:])
    np.testing.assert_allclose(columns["acce_window"][assumed], index["acc_win1s"][assumed],
                               rtol=2**-11, atol=1e-4)  # half a unit in float16's last place


def test_three_real_sequences_agree_with_the_index(real_data_dir, tmp_path, cache_dir):
    source = real_data_dir / "urfall" / "official"
    part = tmp_path / "part"
    part.mkdir()
    for pattern in ("urfall-*.csv", "fall-01-*", "fall-10-*", "adl-25-*"):
        for path in source.glob(pattern):
            (part / path.name).symlink_to(path)
    compare_with_index(real_data_dir / "urfall", part, partial=True)


@pytest.mark.slow
def test_the_real_dataset_agrees_with_the_index(real_data_dir, tmp_path, cache_dir):
    source = real_data_dir / "urfall" / "official"
    assumed = tmp_path / "assumed"  # without the synchronisation file, as the index was made
    assumed.mkdir()
    for path in source.iterdir():
        if not path.name.endswith("-data.csv"):
            (assumed / path.name).symlink_to(path)
    compare_with_index(real_data_dir / "urfall", assumed, partial=False)
    samples = ur_fall.load(acce="window")
    assert len(samples) == 11_544 and (~samples.present[:, 0]).sum() == 143
    assert np.bincount(samples.labels).tolist() == [7452, 1719, 2373]
    compare_with_index(real_data_dir / "urfall", source, partial=False)
