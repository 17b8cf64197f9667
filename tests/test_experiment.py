"""A run end to end: its files, resuming, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest

from mlecs_jax import assemble, experiment, methods
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.errors import UserError
from tests.small import config

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
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return checkpoints.latest, jax.device_get(checkpoints.restore(like))
    finally:
        checkpoints.close()


def assert_same_end(a, b, run_config):
    """Summaries (timing apart) and final states are equal to the last bit."""
    assert without_timing(json.loads((a / "summary.json").read_text())) == without_timing(
        json.loads((b / "summary.json").read_text()))
    method = methods.build(assemble.setting(run_config))
    like = method.init(jax.random.key(1))
    (steps_a, state_a), (steps_b, state_b) = final_state(a, like), final_state(b, like)
    assert steps_a == steps_b == ROUNDS
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
        "config.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints", "events"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(ROUNDS))
    assert set(lines[0]["eval"]["test"]) == {"after_amt", "after_broadcast", "server"}


def test_every_output_says_simulated(finished):
    workdir, summary = finished
    assert summary["data_source"] == "simulated"
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
    assert not seen and without_timing(again) == without_timing(finished[1])


def test_back_end_may_change_on_resuming_and_nothing_else(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    experiment.run(options(**{"clients.chunk": 2}), copy)
    with pytest.raises(UserError, match="another lora.rank, seed"):
        experiment.run(options(seed=5, **{"lora.rank": 3}), copy)


def test_a_checkpoint_of_another_shape_is_named(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    (copy / "config.json").unlink()
    (copy / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="of another shape"):
        experiment.run(options(**{"lora.rank": 3}), copy)


def test_lost_metrics_are_named(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    (copy / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has 0 lines but 3 rounds are saved"):
        experiment.run(options(), copy)


def test_ceilings_are_reported(tmp_path):
    summary = experiment.run(options(**{"eval.ceiling_steps": 20, "train.rounds": 1}), tmp_path)
    assert set(summary["ceilings"]) == {"acce", "rgb", "depth"}
    assert all(0 < value <= 1 for value in summary["ceilings"].values())
