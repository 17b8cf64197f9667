"""A user's own files become `Samples`; every mistake in them is named in one line."""

import copy
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from mlecs_jax import config as configs
from mlecs_jax import federation
from mlecs_jax.configs import table as table_config
from mlecs_jax.data import example, table
from mlecs_jax.errors import UserError

ROWS = 6


@pytest.fixture
def folder(tmp_path):
    """Six rows in every format, correct; `manifest` describes it and tests break one thing."""
    np.save(tmp_path / "vib.npy", np.arange(ROWS * 4.0).reshape(ROWS, 4))
    np.savez(tmp_path / "more.npz", a=np.arange(ROWS), b=np.ones((ROWS, 2, 3), np.int16))
    pa.parquet.write_table(pa.table({
        "hot": [1.5, 2.5, None, 4.5, 5.5, 6.5],
        "cold": [1, 2, None, 4, 5, 6],
        "state": ["ok", "worn", "ok", "broken", "ok", "worn"],
        "grade": [0, 1, 0, 2, 0, 1],
        "shift": ["b", "b", "a", "a", "c", "c"],
        "line": [1, 1, 0, 0, 1, 1],
        "hall": ["north", "", "south", "public", None, "north"],
        "note": ["all well", "some wear", "fine", "gone", "good", "worn"],
        "tags": [["x"]] * ROWS,
    }), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text(
        "id,hot,state\n" + "".join(f"{i:03d},{i / 2},{'yes' if i % 2 else 'no'}\n"
                                   for i in range(ROWS)))
    (tmp_path / "images").mkdir()
    for row in range(ROWS):
        Image.new("RGB", (20, 10), (10 * row, 0, 255)).save(tmp_path / f"images/{row:03d}.png")
    return tmp_path


@pytest.fixture
def manifest():
    return {"name": "mine", "modalities": {"vib": {"file": "vib.npy"}},
            "target": {"file": "t.parquet", "column": "state", "kind": "label"}}


def load(folder, manifest):
    path = folder / "mine.json"
    path.write_text(json.dumps(manifest))
    return table.load(path)


def put(manifest, where, value):
    """A copy of `manifest` with `value` at the dotted path `where`."""
    manifest = copy.deepcopy(manifest)
    *above, last = where.split(".")
    entry = manifest
    for key in above:
        entry = entry.setdefault(key, {})
    entry[last] = value
    return manifest


def test_every_format_in_one_manifest(folder, manifest):
    manifest["modalities"] |= {
        "one": {"file": "more.npz", "key": "a"},
        "block": {"file": "more.npz", "key": "b"},
        "heat": {"file": "t.parquet", "columns": ["hot", "cold"], "missing": "nan"},
        "csv": {"file": "t.csv", "columns": ["hot"]},
        "photo": {"images": "images", "pattern": "{id}.png", "size": 8},
    }
    manifest |= {"id": {"file": "t.csv", "column": "id"},
                 "group": {"file": "t.parquet", "column": "shift"},
                 "stratum": {"file": "t.parquet", "column": "line"},
                 "device": {"file": "t.parquet", "column": "hall"}}
    samples = load(folder, manifest)
    assert (samples.name, samples.source) == ("mine", "real")
    assert samples.modalities == ("vib", "one", "block", "heat", "csv", "photo")
    shapes = {name: array.shape[1:] for name, array in samples.inputs.items()}
    assert shapes == {"vib": (4,), "one": (1,), "block": (2, 3), "heat": (2,), "csv": (1,),
                      "photo": (8, 8, 3)}
    assert {a.dtype for n, a in samples.inputs.items() if n != "photo"} == {np.dtype("float32")}
    np.testing.assert_array_equal(samples.inputs["csv"][:, 0], np.arange(ROWS) / 2)
    assert samples.inputs["photo"].dtype == np.uint8
    np.testing.assert_array_equal(samples.inputs["photo"][:, 3, 4, 0], 10 * np.arange(ROWS))
    expected = np.ones((ROWS, 6), bool)
    expected[2, 3] = False  # the row of `heat` that is empty
    np.testing.assert_array_equal(samples.present, expected)
    assert not samples.inputs["heat"][2].any()
    assert samples.class_names == ("broken", "ok", "worn")
    assert samples.labels.tolist() == [1, 2, 1, 0, 1, 2]
    assert samples.groups.tolist() == [1, 1, 0, 0, 2, 2]
    assert samples.strata.tolist() == [1, 1, 0, 0, 1, 1]
    assert samples.devices.tolist() == [0, -1, 1, -1, -1, 0]


def test_defaults(folder, manifest):
    samples = load(folder, manifest)
    assert samples.groups.tolist() == list(range(ROWS))
    assert not samples.strata.any()
    assert samples.devices is None and samples.texts is None
    assert samples.present.all()


def test_toml(folder):
    path = folder / "mine.toml"
    path.write_text('name = "mine"\n[modalities.vib]\nfile = "vib.npy"\n'
                    '[target]\nfile = "t.parquet"\ncolumn = "state"\nkind = "label"\n')
    assert len(table.load(str(path))) == ROWS


def test_classes_fix_the_order_by_name_or_by_position(folder, manifest):
    named = load(folder, put(manifest, "target.classes", ["ok", "worn", "broken"]))
    graded = put(put(manifest, "target.column", "grade"), "target.classes",
                 ["ok", "worn", "broken"])
    assert named.labels.tolist() == [0, 1, 0, 2, 0, 1]
    assert load(folder, graded).labels.tolist() == [0, 1, 0, 2, 0, 1]
    assert load(folder, put(manifest, "target.column", "grade")).class_names == ("0", "1", "2")


def test_text_target(folder, manifest):
    manifest["target"] = {"file": "t.parquet", "column": "note", "kind": "text"}
    samples = load(folder, manifest)
    assert samples.labels is None and samples.class_names == ()
    assert samples.texts[:2] == ("all well", "some wear")


def test_array_columns(folder, manifest):
    np.save(folder / "y.npy", np.array([0, 1, 0, 1, 0, 1]))
    np.save(folder / "g.npy", np.array([5, 5, 7, 7, 9, 9]))
    np.save(folder / "d.npy", np.array([3.0, 3, np.nan, np.nan, 10, 10]))
    manifest |= {"target": {"file": "y.npy", "kind": "label"}, "group": {"file": "g.npy"},
                 "device": {"file": "d.npy"}}
    samples = load(folder, manifest)
    assert samples.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert samples.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.devices.tolist() == [0, 0, -1, -1, 1, 1]


def test_row_numbers_are_the_ids_without_an_id_column_and_images_may_be_missing(folder, manifest):
    (folder / "images/004.png").unlink()
    manifest["modalities"]["photo"] = {"images": "images", "pattern": "{id:03d}.png",
                                       "missing": "nan"}
    samples = load(folder, manifest)
    assert samples.inputs["photo"].shape == (ROWS, 32, 32, 3)
    assert samples.present[:, 1].tolist() == [True] * 4 + [False, True]
    assert not samples.inputs["photo"][4].any()


HEAT = {"file": "t.parquet", "columns": ["hot"]}
PHOTO = {"images": "images", "pattern": "{id:03d}.png"}
MISTAKES = {  # where, value, what the message says
    "unknown key": ("modality", {}, r"unknown key 'modality'; did you mean 'modalities'\?"),
    "unknown inner key": ("target.colum", "x", r"target: unknown key 'colum'; did you mean 'col"),
    "no such key at all": ("target.zzz", 1, r"unknown key 'zzz'; choose from classes, column"),
    "not an object": ("target", "t.csv", "target: must be an object"),
    "name not a text": ("name", 3, "'name' must be a text"),
    "name of ours": ("name", "ur_fall", "names the data 'ur_fall', which are this program's own"),
    "kind": ("target.kind", "labels", r"did you mean 'label'\?"),
    "missing file": ("modalities.vib.file", "vibe.npy", r"modalities.vib: .*vibe.npy does not ex"),
    "unreadable format": ("modalities.vib.file", "mine.json", "cannot read '.json' files"),
    "folder for a file": ("modalities.vib.file", "images", "cannot read '' files"),
    "no modality": ("modalities", {}, "modalities: is empty"),
    "modality name": ("modalities.a/b", {"file": "vib.npy"}, "'a/b' cannot name a modality"),
    "key of npy": ("modalities.vib.key", "a", "remove 'key'"),
    "key missing": ("modalities.z", {"file": "more.npz"}, "\"key\" is one of a, b"),
    "key unknown": ("modalities.z", {"file": "more.npz", "key": "q"}, "more.npz: has no array 'q'"),
    "columns of npy": ("modalities.vib.columns", ["a"], "has no 'columns'"),
    "columns missing": ("modalities.z", {"file": "t.csv"}, "t.csv: say which columns"),
    "columns no list": ("modalities.z", HEAT | {"columns": "hot"}, "must be a list of texts"),
    "columns twice": ("modalities.z", HEAT | {"columns": ["hot", "hot"]}, "the same thing twice"),
    "column unknown": ("modalities.z", HEAT | {"columns": ["hat"]},
                       r"t.parquet: has no column 'hat'; did you mean 'hot'\?"),
    "column and key": ("target.key", "a", "'key' is for .npz"),
    "not numeric": ("modalities.z", HEAT | {"columns": ["state"]},
                    "column 'state' is not numeric: row 0 .* holds 'ok'"),
    "lists in cells": ("modalities.z", HEAT | {"columns": ["tags"]}, "'tags' is not numeric"),
    "lists as target": ("target.column", "tags", "holds lists"),
    "NaN": ("modalities.z", HEAT, r"z: t.parquet: row 2 \(from 0\), column 'hot' is empty or NaN"),
    "missing": ("modalities.vib.missing", "yes", "the one choice is \"nan\""),
    "label column absent": ("target", {"file": "t.csv", "kind": "label"}, "say which column"),
    "column of npy": ("target.file", "vib.npy", "an array file has no 'column'"),
    "two dimensions": ("target", {"file": "vib.npy", "kind": "label"}, r"has shape \(6, 4\)"),
    "outside classes": ("target.classes", ["ok", "worn"],
                        "target: t.parquet: row 3 .*column 'state' holds 'broken'; this is none"),
    "position outside": ("target", {"file": "t.parquet", "column": "grade", "kind": "label",
                                    "classes": ["a", "b"]}, "row 3 .* holds 2"),
    "classes twice": ("target.classes", ["ok", "ok"], "the same thing twice"),
    "fraction as label": ("target", {"file": "t.csv", "column": "hot", "kind": "label"},
                          "t.csv: row 1 .*column 'hot' holds 0.5; a label is a text or a whole"),
    "empty label": ("target.column", "hall", "row 1 .* is empty"),
    "classes of text": ("target", {"file": "t.parquet", "column": "note", "kind": "text",
                                   "classes": ["a"]}, "'classes' is for kind 'label'"),
    "number as text": ("target", {"file": "t.parquet", "column": "grade", "kind": "text"},
                       "row 0 .* holds 0; a target text"),
    "empty group": ("group", {"file": "t.parquet", "column": "hall"}, "group: .*row 1 .*is empty"),
    "size": ("modalities.z", PHOTO | {"size": "8"}, "'size' must be a number of pixels"),
    "pattern without id": ("modalities.z", PHOTO | {"pattern": "x.png"}, "write it like {id}.png"),
    "pattern of other": ("modalities.z", PHOTO | {"pattern": "{row}.png"}, "write it like {id}"),
    "images no folder": ("modalities.z", PHOTO | {"images": "t.csv"}, "is not a folder"),
    "image key": ("modalities.z", PHOTO | {"sise": 8}, r"did you mean 'size'\?"),
    "no image": ("modalities.z", PHOTO | {"pattern": "{id}.png"}, "no image for row 0 .*6 rows in"),
    "all missing": ("modalities.z", PHOTO | {"pattern": "{id}.png", "missing": "nan"},
                    "every reading is missing"),
    "empty id": ("", {}, "modalities.z: row 1 .*has no id"),
}


@pytest.mark.parametrize("where, value, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_in_the_manifest_are_named(folder, manifest, where, value, message):
    if where:
        manifest = put(manifest, where, value)
    else:
        np.save(folder / "ids.npy", np.array([0, np.nan, 2, 3, 4, 5]))
        manifest = put(put(manifest, "modalities.z", PHOTO), "id", {"file": "ids.npy"})
    with pytest.raises(UserError, match=message) as caught:
        load(folder, manifest)
    assert str(folder / "mine.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_left_out(folder, manifest):
    for key in ("name", "modalities", "target"):
        with pytest.raises(UserError, match=f"key '{key}' is missing"):
            load(folder, {k: v for k, v in manifest.items() if k != key})


@pytest.mark.parametrize("array, message", [
    (np.zeros((5, 2)), "modalities.vib: vib.npy: has 5 rows but the target has 6"),
    (np.array(list("abcdef")), "holds <U1, not numbers"),
    (np.array([0, 1, np.inf, 3, 4, 5]), r"row 2 \(from 0\) holds infinity"),
    (np.array([0, 1e300, 2, 3, 4, 5]), r"row 1 \(from 0\) holds infinity, or a number beyond"),
    (np.array([0, 1, 2, np.nan, 4, 5]), r"row 3 \(from 0\), value 0 is empty or NaN"),
    (np.zeros((6, 0)), "no numbers in a row"),
    (np.float32(1), "holds a single number"),
    (np.array([{}] * 6, dtype=object), "vib.npy: cannot be read"),
])
def test_arrays_that_cannot_be_used(folder, manifest, array, message):
    np.save(folder / "vib.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        load(folder, manifest)


def test_only_whole_rows_count_as_missing(folder, manifest):
    values = np.ones((ROWS, 3))
    values[1] = np.nan
    values[4, 2] = np.nan
    np.save(folder / "other.npy", values)
    manifest["modalities"]["z"] = {"file": "other.npy", "missing": "nan"}
    with pytest.raises(UserError, match=r"row 4 \(from 0\), value 2 .*NaN in the whole row"):
        load(folder, manifest)
    values[4] = np.nan
    np.save(folder / "other.npy", values)
    assert load(folder, manifest).present[:, 1].tolist() == [True, False, True, True, False, True]


def test_a_row_needs_one_reading(folder, manifest):
    manifest["modalities"] = {"heat": HEAT | {"missing": "nan"}}
    with pytest.raises(UserError, match=r"row 2 \(from 0\) has no reading of any modality"):
        load(folder, manifest)


@pytest.mark.parametrize("name, content, message", [
    ("vib.npy", b"", "vib.npy: cannot be read"),
    ("vib.npy", b"not an array", "vib.npy: cannot be read"),
    ("t.parquet", b"PAR1 torn", "t.parquet: cannot be read"),
    ("t.csv", b"", "t.csv: cannot be read"),
    ("t.csv", b"id,hot,state\n1,2\n", "t.csv: cannot be read"),
    ("t.csv", b"id,hot,state\n", "target: t.csv: has no rows"),
    ("t.csv", b"id,hot,state\n1,2,a\n2,3,a\n", "every row has the class 'a'; at least 2"),
    ("more.npz", b"PK torn", "more.npz: cannot be read"),
    ("images/003.png", b"not an image", r"003.png, row 3 \(from 0\): cannot be read as an image"),
])
def test_files_that_cannot_be_used(folder, manifest, name, content, message):
    if name.endswith("csv"):
        manifest["target"] |= {"file": "t.csv"}
    elif name == "more.npz":
        manifest["modalities"]["z"] = {"file": "more.npz", "key": "a"}
    elif name.endswith("png"):
        manifest["modalities"]["z"] = PHOTO
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(folder, manifest)


def test_deep_images_are_refused_rather_than_clipped(folder, manifest):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(folder / "images/002.png")
    manifest["modalities"]["z"] = PHOTO
    with pytest.raises(UserError, match="002.png, row 2 .* more than 8 bits"):
        load(folder, manifest)


def test_a_device_column_names_a_device(folder, manifest):
    np.save(folder / "d.npy", np.array(["public", ""] * 3))
    with pytest.raises(UserError, match="device: no row names a device"):
        load(folder, manifest | {"device": {"file": "d.npy"}})


def test_a_group_lies_in_one_stratum(folder, manifest):
    manifest |= {"group": {"file": "t.parquet", "column": "shift"},
                 "stratum": {"file": "t.parquet", "column": "state"}}
    with pytest.raises(UserError, match=r"stratum: row 1 \(from 0\) has another stratum"):
        load(folder, manifest)


@pytest.mark.parametrize("name, content, message", [
    ("absent.json", None, "no such manifest"),
    ("mine.yaml", "name: mine", "a .json or a .toml file"),
    ("mine.json", "{", "not valid JSON"),
    ("mine.toml", "name =", "not valid TOML"),
    ("mine.json", "[]", "must hold an object"),
])
def test_files_that_are_no_manifest(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        table.load(tmp_path / name)


def test_the_example_is_loadable_the_same_each_time_and_has_what_it_shows(tmp_path, capsys):
    assert example.main([str(tmp_path / "a")]) == 0
    assert "--config=table" in capsys.readouterr().out
    first = table.load(tmp_path / "a" / "factory.json")
    again = table.load(example.write(tmp_path / "a"))  # over itself
    for name, array in first.inputs.items():
        np.testing.assert_array_equal(array, again.inputs[name])
    assert first.modalities == ("vibration", "temperature", "camera")
    assert first.class_names == ("ok", "worn", "broken") and len(first) == 600
    assert set(first.devices.tolist()) == {-1, 0, 1, 2}
    assert len(np.unique(first.groups)) == 30
    absent = {device: (~first.present[first.devices == device]).mean(axis=0)
              for device in (-1, 0, 1, 2)}
    for device, without in ((-1, ()), (0, ()), (1, (2,)), (2, (1,))):  # hall B, hall C
        assert absent[device][0] == 0
        for m in (1, 2):
            assert absent[device][m] == 1 if m in without else 0 < absent[device][m] < 0.05


def test_devices_own_the_sensors_that_they_have_in_the_data(tmp_path):
    values = table_config.get_config("smoke").to_dict()
    values["data"]["manifest"] = str(example.write(tmp_path / "a"))
    config = configs.parse(values)
    samples = table.load(Path(config.data.manifest))
    made = federation.build(samples, samples.labels[:, None], config.partition_config(), 2)
    np.testing.assert_array_equal(made.owned_at(0), [[1, 1, 1], [1, 1, 0], [1, 0, 1]])


def test_the_example_refuses_a_folder_in_use(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert example.main([str(tmp_path)]) == 2
    assert "is not an example folder" in capsys.readouterr().err
    assert example.main([]) == 2
