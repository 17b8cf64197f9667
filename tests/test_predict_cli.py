"""Nodes of run folders answer new readings: in the run's process, and from an exported file."""

import csv
import fcntl
import json
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_captions import options as caption_options

from mlecs_jax import answers as node_answers
from mlecs_jax import captions, export, missing, predict, restore, scoring, served
from mlecs_jax.data.text import ByteTokenizer
from mlecs_jax.errors import UserError
from mlecs_jax.federation import gather
from mlecs_jax.lora import Params
from mlecs_jax.serving import predictor as predictors
from mlecs_jax.serving import readings
from tests import serving_runs
from tests.small import config

LAST = 1  # both runs have two rounds

ISOLATED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from mlecs_jax.serving import predictor
rows = json.loads(sys.argv[2])
answers = predictor.load(sys.argv[1]).predict(rows)
print(json.dumps([answers, sorted(
    name for name in sys.modules if name.split(".")[0] in ("flax", "optax", "orbax", "mlecs_jax")
)]))
"""


OPTIONS = {"partition.rho": 0.5, "partition.seed": 1}  # device 0 lacks something


@pytest.fixture(scope="module")
def falls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "falls"
    return folder, *serving_runs.write(config(**OPTIONS), folder)


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """A method without a server, its last device of another structure."""
    folder = tmp_path_factory.mktemp("runs") / "unlike"
    return folder, *serving_runs.write(config(**{
        "method.name": "fedavg_lora", "model.cohorts": "2=encoder_hidden:20"}), folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "clips"
    return folder, *serving_runs.write(caption_options(), folder)


@pytest.fixture(scope="module")
def nodes(falls, clips):
    """Every node that tests ask, restored once."""
    classes, texts = (restore.restored(folder, unanswered=True) for folder in (falls[0], clips[0]))
    return {("falls", j): served.node(classes, j) for j in (0, 1, 2, None)} | {
        ("clips", j): served.node(texts, j) for j in (1, None)}


@pytest.fixture(scope="module")
def exported(nodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for name, node in (("falls", ("falls", 2)), ("clips", ("clips", 1))):
        export.write(nodes[node], folder / name)
    return folder


def call(*arguments):
    return predict.main([*map(str, arguments)])


@pytest.mark.slow
def test_a_node_says_what_the_run_says_of_its_test_rows(tmp_path):
    """After some training, so that answers are classes: devices with few modalities, the server."""
    setting, method, state = serving_runs.write(config(**OPTIONS, **{
        "train.learning_rate": 0.02, "train.ccl_steps": 30, "train.amt_steps": 30,
        "train.server_steps": 30}), tmp_path / "run", trained=True)
    said = jax.device_get(method.evaluate(state, LAST))
    run = restore.restored(tmp_path / "run", unanswered=True)
    assert not setting.federation.owned_at(LAST)[0].all()
    kinds = set()
    for j in (0, 1, 2, None):
        node, federation = served.node(run, j), setting.federation
        own = said["server"] if j is None else said["after_amt"][j]
        start = federation.public_num_val if j is None else int(federation.num_val[j])
        expected = own[start:start + len(node.rows)]
        names = [None if n < 0 else setting.federation.samples.class_names[n] for n in expected]
        answers = node.predictor().predict(node.rows)
        assert [answer["class"] for answer in answers] == names
        for answer in answers:
            p = answer["probabilities"]
            assert 0 < sum(p.values()) <= 1 + 1e-6
            assert answer["class"] in (None, max(p, key=p.__getitem__))
        kinds |= {answer["class"] for answer in answers}
    assert len(kinds) > 1 and kinds != {None}


def test_a_caption_node_says_what_the_run_says(clips, nodes):
    _, setting, method, state = clips
    said = jax.device_get(method.evaluate(state, LAST))
    for j, own in ((1, said["after_amt"][1]), (None, said["server"])):
        federation, node = setting.federation, nodes["clips", j]
        num_val = federation.public_num_val if j is None else int(federation.num_val[j])
        _, tokens = captions.captioned(setting, j, own, num_val, "test")
        answers = node.predictor().predict(node.rows)
        assert [a["caption"] for a in answers] == captions.texts_of(setting, tokens)
    assert len({a["caption"] for a in answers}) > 1


def test_an_exported_file_answers_alike_in_a_process_without_training_code(exported, nodes):
    """Any number of rows; flax, optax and the training code are never imported."""
    for name, key, rows in (("falls", ("falls", 2), 3), ("clips", ("clips", 1), 2)):
        node = nodes[key]
        asked = [{k: v.tolist() for k, v in row.items()} for row in node.rows[:rows]]
        done = subprocess.run([sys.executable, "-I", "-c", ISOLATED, str(exported / name),
                               json.dumps(asked)], capture_output=True, text=True, check=True)
        answers, modules = json.loads(done.stdout.splitlines()[-1])
        expected = node.predictor().predict(node.rows[:rows])
        assert set(modules) <= {"mlecs_jax", *(module.__name__ for module in export.CARRIED),
                                *export.PACKAGES}
        for answer, wanted in zip(answers, expected, strict=True):
            if name == "clips":
                assert answer == wanted
            else:
                assert answer["class"] == wanted["class"]
                assert answer["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-6)


def test_a_modality_that_is_not_given_is_masked(unlike, tmp_path):
    """A device of another structure, with a modality less, against the model's own mask by hand."""
    folder, setting, _, state = unlike
    run = restore.restored(folder, unanswered=True)
    node = served.node(run, 2)
    export.write(node, tmp_path / "device")
    first, *others = node.description.owned
    assert others
    row = dict(node.rows[0])
    lacking = {name: value for name, value in row.items() if name != first}
    cohort = setting.cohorts[1]
    held_out = jax.tree.map(lambda x: x[0], cohort.held_out)
    params: Params = jax.tree.map(lambda x: x[0], state.devices[1])
    available = np.ones_like(held_out.available)
    owned = jnp.array([name in lacking for name in setting.federation.modalities])
    batch = gather(held_out.replace(available=jnp.asarray(available)), owned,
                   setting.edge["moments"], jnp.asarray(setting.federation.num_val[2:3]))
    logits = node_answers.first_logits(cohort.model, setting.edge["slm"], params, batch)[0]
    p = jax.nn.softmax(logits)[jnp.asarray(setting.answer_ids)]
    loaded = predictors.load(tmp_path / "device")
    got, whole = (loaded.predict([r])[0]["probabilities"] for r in (lacking, row))
    np.testing.assert_allclose(list(got.values()), p, rtol=1e-5)
    assert got != pytest.approx(whole, rel=1e-2)
    with pytest.raises(UserError, match="fedavg_lora has no server that answers"):
        served.node(run, None)


def test_the_program_is_for_all_platforms_and_any_number_of_rows(exported):
    with zipfile.ZipFile(exported / "falls") as archive:
        found = jax.export.deserialize(bytearray(archive.read(predictors.PROGRAM)))
    assert found.platforms == ("cpu", "cuda", "tpu")
    assert not isinstance(found.in_avals[-1].shape[0], int)
    description = predictors.load(exported / "falls").description
    assert description.class_names == ("not lying", "temporary pose", "lying")
    assert description.data_source == "simulated"


def test_files_of_every_kind_give_the_same_answer(falls, nodes, tmp_path, capsys):
    """npz, json, csv and NAME=VALUE pairs, pictures as files."""
    folder, node = falls[0], nodes["falls", None]
    row = next(row for row in node.rows if len(row) == 3)
    Image.fromarray(row["rgb"].astype(np.uint8)).save(tmp_path / "frame.png")
    np.savez(tmp_path / "a.npz", **row)
    listed = {name: x.tolist() for name, x in row.items() if name != "rgb"} | {"rgb": "frame.png"}
    (tmp_path / "a.json").write_text(json.dumps([listed, listed | {"acce": None, "truth": "x"}]))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([
            ["rgb", *(f"{name}.{i}" for name in ("acce", "depth") for i in range(len(row[name])))],
            ["frame.png", *row["acce"], *row["depth"]]])
    inputs = [[tmp_path / f"a.{end}"] for end in ("npz", "json", "csv")] + [
        [f"rgb={tmp_path / 'frame.png'}", *(f"{name}=" + ",".join(map(str, row[name].tolist()))
                                            for name in ("acce", "depth"))]]
    found = []
    for given in inputs:
        parsed = readings.read([str(text) for text in given], node.description)
        found.append(node.predictor().predict(parsed.rows[:1])[0]["probabilities"])
    assert all(p == pytest.approx(found[0], abs=1e-6) for p in found)
    assert call(f"--run={folder}", "--device=server", f"--input={tmp_path / 'a.json'}",
                "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["probabilities"] == pytest.approx(found[0], abs=1e-6)
    assert second["modalities"] == ["rgb", "depth"] and second["truth"] == "x"
    assert call(f"--run={folder}", "--device=server", f"--input={tmp_path / 'a.json'}") == 0
    table = capsys.readouterr().out
    assert "SIMULATED" in table and "p(lying)" in table and "acce rgb depth" in table


def test_words_are_read_as_the_dataset_reads_them(clips, nodes):
    samples, node = clips[1].federation.samples, nodes["clips", None]
    vision, audio, subtitle = samples.context[0].split("\n")
    parsed = readings.read([f"vision={vision}", f"audio={audio}", f"subtitle={subtitle}"],
                           node.description)
    for name, values in samples.inputs.items():
        np.testing.assert_array_equal(parsed.rows[0][name], values[0])


@pytest.mark.slow
def test_rows_export_and_the_exported_command(falls, tmp_path, capsys):
    """The whole way of the documentation."""
    folder = falls[0]
    out, rows = tmp_path / "device2", tmp_path / "rows.npz"
    assert call("rows", f"--run={folder}", "--device=2", "--count=3", f"--out={rows}") == 0
    assert call("export", f"--run={folder}", "--device=2", f"--out={out}") == 0
    capsys.readouterr()
    assert call(f"--run={folder}", "--device=2", f"--input={rows}", "--json") == 0
    here = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(here) == 3 and all("truth" in entry for entry in here)
    there = subprocess.run([sys.executable, "-I", str(out), f"--input={rows}", "--json"],
                           capture_output=True, text=True, check=True).stdout.splitlines()
    for one, other in zip(here, map(json.loads, there), strict=True):
        assert one.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-6)
        assert one == other
    wrong = subprocess.run([sys.executable, "-I", str(out), "--input=nowhere.json"],
                           capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


def test_the_cost_of_missing_modalities(clips, capsys):
    """The first line is the run's own test score; without everything, nothing is read."""
    folder, setting, method, state = clips
    test = scoring.score(setting, jax.device_get(method.evaluate(state, LAST)), "test")
    own = [node.metrics["rougeLsum"] for node in test["after_amt"]]
    summary = folder / "summary.json"
    summary.write_text(json.dumps({"client": {"avg_rougeLsum": float(np.mean(own)) + 0.05}}))
    with pytest.raises(UserError, match="its backbones or the code have changed"):
        missing.check_same(folder, "rougeLsum", {"avg_rougeLsum": float(np.mean(own))})
    summary.write_text(json.dumps({"client": {"avg_rougeLsum": float(np.mean(own))}}))
    assert call("score", f"--run={folder}", "--without=vision", "--without=vision,audio,subtitle",
                "--without=1", "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["without"] for entry in found] == [
        "nothing", "vision", "vision, audio, subtitle", "1 at random"]
    assert found[0]["devices"] == pytest.approx(own)
    assert found[0]["client"]["avg_rougeLsum"] == pytest.approx(np.mean(own))
    assert found[2]["unread"] == {"devices": [1.0, 1.0], "server": 1.0}
    assert found[0]["unread"]["server"] == found[3]["unread"]["server"] == 0


@pytest.mark.parametrize("arguments, message", [
    (["--input=x.npz"], "the following arguments are required: --run, --device"),
    (["--run=nowhere", "--device=0", "--input=x.npz"], "nowhere is not the folder of a run"),
    (["--run=RUN", "--device=first", "--input=x.npz"], "give a number from 0, or server"),
    (["--run=RUN", "--device=7", "--input=x.npz"], "there is no device 7; the run has devices 0"),
    (["--run=RUN", "--device=server", "--input=x.npz"], "x.npz cannot be read"),
    (["--run=RUN", "--device=server", "--input=x.txt"], "give a .npz, .json or .csv file"),
    (["score", "--run=RUN", "--without=smell"], "'smell' is no modality of this run"),
    (["rows", "--run=RUN", "--device=0", "--out=x.csv"], "ends in .npz"),
    (["--frobnicate"], "required"),
    (["anwser", "--run=x"], "unknown command 'anwser'; did you mean answer?"),
    (["frobnicate"], "unknown command 'frobnicate'; use answer, rows, export, score"),
])
def test_bad_commands_are_one_line(falls, capsys, arguments, message):
    assert call(*(a.replace("RUN", str(falls[0])) for a in arguments)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and message in said[0]


@pytest.mark.parametrize("record, message", [
    ({"acc": [0, 0, 0]}, "'acc' is no modality of this run; did you mean acce"),
    ({"acce": [0, 0]}, r"acce: has shape \[2\], this model reads \[3\]"),
    ({"acce": "up"}, "cannot read 'up' as numbers"),
    ({"acce": [0, None, 1]}, "holds NaN or infinity|cannot read"),
    ({"acce": [0, float("nan"), 1]}, "holds NaN or infinity"),
    ({"acce": None}, "there is no reading of acce, rgb, depth"),
    ({"rgb": "nowhere.png"}, "nowhere.png cannot be read as an image"),
])
def test_bad_readings_are_named(nodes, tmp_path, record, message):
    (tmp_path / "a.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=message):
        readings.read([str(tmp_path / "a.json")], nodes["falls", None].description)


def test_what_a_device_lacks_is_refused_and_can_be_left_out(nodes, tmp_path):
    node = nodes["falls", 0]
    lacked = next(name for name in node.description.modalities
                  if name not in node.description.owned)
    everything = {name: np.zeros(m.shape) for name, m in node.description.modalities.items()}
    np.savez(tmp_path / "a.npz", **everything)
    with pytest.raises(UserError, match=f"device 0 was trained without {lacked}; leave it out"):
        readings.read([str(tmp_path / "a.npz")], node.description)
    without = frozenset(set(everything) - set(node.description.owned))
    found = readings.read([str(tmp_path / "a.npz")], node.description, without)
    assert set(found.rows[0]) == set(node.description.owned)
    with pytest.raises(UserError, match="nothing is left to answer from"):
        node.description.without(node.description.owned)
    with pytest.raises(UserError, match="row 0: device 0 has no"):
        node.predictor().predict([{lacked: everything[lacked]}])


@pytest.mark.parametrize("text, message", [
    ("acce.0,acce.1\n1,2\n", "lacks column 'acce.2'"),
    ("acce.0,acce.1,acce.2,smell\n1,2,3,4\n", "column 'smell' belongs to no modality"),
    ("acce.0,acce.1,acce.2\n1,2\n", "row 0 .from 0.: has 2 cells, the header 3"),
    ("", "is empty"),
    ("acce.0,acce.1,acce.2\n", "has no rows"),
])
def test_bad_tables_are_named(nodes, tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        readings.read([str(tmp_path / "a.csv")], nodes["falls", None].description)


def test_runs_that_cannot_be_restored_are_named(falls, tmp_path):
    folder = falls[0]
    values = json.loads((folder / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    changed = values | {"samples": values["samples"] | {"sha256": "0" * 64}}
    (other / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="was trained on other data"):
        restore.restored(other)
    (other / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="has no checkpoints"):
        restore.restored(other)


def test_a_run_in_progress_is_left_alone(falls, tmp_path):
    folder = falls[0]
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being trained now"):
            restore.load(folder, falls[3])


def test_damaged_files_and_other_tokenizers(exported, tmp_path):
    whole = (exported / "falls").read_bytes()
    (tmp_path / "torn").write_bytes(whole[:len(whole) // 2])
    middle = whole.index(b"NUMPY") + 200  # in an array
    (tmp_path / "turned").write_bytes(
        whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1:])
    (tmp_path / "text").write_text("no predictor")
    for name in ("torn", "turned", "text", "nowhere"):
        with pytest.raises(UserError, match="holds no predictor, or a damaged one"):
            predictors.load(tmp_path / name)
    table = export.token_bytes(ByteTokenizer())
    assert table[65] == b"A" and table[256] == b"" and len(table) == 257
