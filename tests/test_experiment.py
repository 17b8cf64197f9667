"""A run end to end: its files, resuming, and what it refuses."""

import contextlib
import dataclasses
import fcntl
import json
import shutil

import jax
import numpy as np
import pytest

from mlecs_jax import assemble, experiment, methods, runlog, scoring
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.errors import UserError
from tests.small import config, samples

ROUNDS = 3


def options(**overrides):
    return config(**({"train.rounds": ROUNDS} | overrides))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An unbroken run on simulated data."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, experiment.run(options(), workdir)


def without_timing(summary):
    return {key: value for key, value in summary.items() if key != "timing"}


def final_state(workdir, like):
    """Number of complete rounds, and the last saved state."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        return jax.device_get(checkpoints.restore(like))


def assert_same_end(a, b, run_config):
    """Summaries (timing apart) and final states are equal to the last bit."""
    assert without_timing(json.loads((a / "summary.json").read_text())) == without_timing(
        json.loads((b / "summary.json").read_text()))
    method = methods.build(assemble.setting(run_config))
    like = method.init(jax.random.key(1))
    (steps_a, state_a), (steps_b, state_b) = final_state(a, like), final_state(b, like)
    assert steps_a == steps_b == run_config.train.rounds
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)


def test_files_and_the_summary_contract(finished):
    workdir, summary = finished
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert {"method", "dataset", "data_source", "split", "seed", "partition_seed", "rho",
            "num_clients", "rounds", "client", "server", "communication", "timing",
            "versions"} <= set(summary)
    assert {"avg_f1", "best_f1", "worst_f1", "per_client"} <= set(summary["client"])
    assert {"uplink_bytes_per_round", "downlink_bytes_per_round", "share_of_parameters"} <= set(
        summary["communication"])
    assert {"compile_s", "seconds_per_round"} <= set(summary["timing"])
    f1 = [client["f1"] for client in summary["client"]["per_client"]]
    np.testing.assert_allclose(summary["client"]["avg_f1"], np.mean(f1))
    assert summary["client"]["worst_f1"] == min(f1) and summary["client"]["best_f1"] == max(f1)
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints", "events",
        ".lock"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(ROUNDS))
    assert set(lines[0]["eval"]["test"]) == {"after_amt", "after_broadcast", "server"}


def test_every_output_says_simulated(finished):
    workdir, summary = finished
    assert summary["data_source"] == "simulated"
    assert json.loads((workdir / "config.json").read_text())["samples"]["source"] == "simulated"
    assert all(json.loads(line)["data_source"] == "simulated"
               for line in (workdir / "metrics.jsonl").read_text().splitlines())
    assert "imulated" in (workdir / "report.html").read_text()


def test_best_val_is_chosen_by_validation_alone(finished):
    workdir, summary = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    val = [np.nanmean(line["eval"]["val"]["after_amt"]["clients"]["f1"]) for line in lines]
    best = lines[int(np.argmax(val))]
    assert summary["best_val"]["round"] == best["round"]
    np.testing.assert_allclose(summary["best_val"]["client"]["avg_f1"],
                               np.mean(best["eval"]["test"]["after_amt"]["clients"]["f1"]))


def test_a_stopped_run_resumes_and_ends_bit_equal(finished, tmp_path):
    class Stop(Exception):
        pass

    def stop(record):
        if record["round"] == 1:
            raise Stop

    with pytest.raises(Stop):
        experiment.run(options(), tmp_path, on_round=stop)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"round": 2, "torn')  # killed while writing
    started = []
    experiment.run(options(), tmp_path, on_start=lambda setting, done: started.append(done))
    assert started == [2]
    assert_same_end(finished[0], tmp_path, options())


def test_a_finished_run_is_not_trained_again(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    seen = []
    again = experiment.run(options(), copy, on_round=seen.append)
    assert not seen and again == finished[1]


def test_back_end_may_change_on_resuming_and_nothing_else(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    experiment.run(options(**{"clients.chunk": 2}), copy)
    with pytest.raises(UserError, match="another lora.rank, seed"):
        experiment.run(options(seed=5, **{"lora.rank": 3}), copy)


def test_an_option_that_came_later_and_is_off_makes_no_other_run(tmp_path):
    """A folder of an earlier version goes on; with the option in use it is another run's."""
    with contextlib.closing(runlog.RunLog(tmp_path, {"seed": 0})) as log:
        log.append({"round": 0, "data_source": "simulated"})
    off = {"steps": 0, "share": 0.1}
    with contextlib.closing(runlog.RunLog(tmp_path, {"seed": 0, "cloud": off})):
        assert json.loads((tmp_path / "config.json").read_text())["cloud"] == off
    for other, name in (({"seed": 0, "cloud": off | {"steps": 5}}, "cloud"), ({"seed": 1}, "seed")):
        with pytest.raises(UserError, match=f"another {name}"):
            runlog.RunLog(tmp_path, other)


def test_other_data_do_not_resume(finished, tmp_path):
    """What `auto` found the first time binds the folder: real data prepared later do not mix in."""
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    identity = json.loads((copy / "config.json").read_text())
    identity["samples"] |= {"source": "real", "sha256": "0"}
    (copy / "config.json").write_text(json.dumps(identity))
    with pytest.raises(UserError, match="another samples.sha256, samples.source"):
        experiment.run(options(), copy)


def test_what_was_asked_for_matters_less_than_what_was_found(tmp_path):
    """A run of ``data.source=simulated`` goes on under ``auto`` where that finds the same data, and
    not with data of another source."""
    def claim(asked, found):
        identity = {"data": {"source": asked}, "samples": {"source": found, "sha256": found}}
        with contextlib.closing(runlog.RunLog(tmp_path, identity)) as log:
            log.append({"round": 0, "data_source": found})

    claim("simulated", "simulated")
    claim("auto", "simulated")
    with pytest.raises(UserError, match="belongs to a run with another samples.sha256"):
        claim("auto", "real")


def test_a_failed_start_does_not_claim_the_folder(finished, tmp_path):
    with pytest.raises(UserError, match="too few"):
        experiment.run(options(**{"partition.num_clients": 10_000}), tmp_path)
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    assert experiment.run(options(), tmp_path) == finished[1]


def test_two_processes_do_not_write_one_run(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    with open(copy / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is running"):
            experiment.run(options(), copy)


def test_a_checkpoint_of_another_shape_is_named(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    (copy / "config.json").unlink()
    (copy / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"of another shape .*expected \(16, 3\), found \(16, 2\)"):
        experiment.run(options(**{"lora.rank": 3}), copy)


def test_a_torn_checkpoint_gives_way_to_the_round_before(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    for path in (copy / "checkpoints" / "3").rglob("*"):
        if path.is_file() and path.parent.name != "3":
            path.write_bytes(path.read_bytes()[:10])
    (copy / "summary.json").unlink()
    seen = []
    experiment.run(options(), copy, on_round=seen.append)
    assert [record["round"] for record in seen] == [2]
    assert_same_end(finished[0], copy, options())


@pytest.mark.parametrize("name,content,message", [
    ("metrics.jsonl", "", "0 whole lines but 3 rounds are saved"),
    ("metrics.jsonl", "{\n{}\n{}\n", "2 whole lines but 3 rounds are saved"),
    ("config.json", "{torn", "config.json is damaged"),
    ("config.json", "[1]", "config.json is damaged")])
def test_torn_records_are_named(finished, tmp_path, name, content, message):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=message):
        experiment.run(options(), copy)


def test_records_are_kept_when_the_checkpoints_are_gone(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="3 rounds but only 0 are saved"):
        experiment.run(options(), copy)
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == ROUNDS


def test_unusable_folders_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to workdir"):
        experiment.run(options(), tmp_path / "file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints is not a folder"):
        experiment.run(options(), tmp_path / "run")


def test_ceilings_are_reported(tmp_path):
    summary = experiment.run(options(**{"eval.ceiling_steps": 20, "train.rounds": 1}), tmp_path)
    assert set(summary["ceilings"]) == {"acce", "rgb", "depth"}
    assert all(0 < value <= 1 for value in summary["ceilings"].values())


def test_what_a_manifest_says_of_its_data_is_part_of_what_they_are():
    """Strata decide who has what, classes what may be answered; of data built here readings tell
    all."""
    data = samples()
    whole = runlog.data_identity(data)["sha256"]
    for change in ({"strata": data.strata + 1}, {"class_names": (*data.class_names, "d")},
                   {"context": ("words",) * len(data)},
                   {"inputs": {f"{name}_": x for name, x in data.inputs.items()}},
                   {"inputs": {name: x.reshape(len(x), -1) for name, x in data.inputs.items()}}):
        assert runlog.data_identity(dataclasses.replace(data, **change))["sha256"] != whole
    ours = dataclasses.replace(data, name="ur_fall")
    assert runlog.data_identity(ours) == runlog.data_identity(
        dataclasses.replace(ours, strata=ours.strata + 1))


def test_a_device_holds_what_it_owns_on_the_mean_of_the_rounds():
    """As the bytes that a share divides are means over rounds."""
    setting = assemble.setting(options(**{"partition.mask_schedule": "per_round"}))
    method = methods.build(setting)
    devices = method.init(jax.random.key(0)).devices
    found = scoring.parameters_of_devices(setting, devices)
    owned = setting.federation.owned
    assert len(owned) == ROUNDS and (owned != owned[0]).any()
    by_round = [scoring.parameters_of_devices(dataclasses.replace(
        setting, federation=dataclasses.replace(setting.federation, owned=owned[r:r + 1])), devices)
        for r in range(ROUNDS)]
    np.testing.assert_allclose(found, np.mean(by_round, axis=0), atol=1)
    assert by_round[0] != by_round[1] or by_round[0] != by_round[2]
