"""Plans and findings of ``repro mega`` from made-up runs; exact counts of Table 5."""

import json

import pytest

from mlecs_jax.mega import artefacts, config, counts
from mlecs_jax.repro import options
from mlecs_jax.repro.results import Results, Run
from mlecs_jax.repro.systems import SYSTEMS


def asked(artefact, *more):
    return options.parse(["mega", artefact, "--preset=smoke", "--data=simulated", *more],
                         {name: list(table) for name, table in SYSTEMS.items()})


@pytest.mark.parametrize("artefact", artefacts.TABLE)
def test_every_job_is_a_configuration_that_can_be_run(artefact):
    jobs = SYSTEMS["mega"][artefact].jobs(asked(artefact, "--seeds=2"))
    assert jobs and all(config.parse(job.values) for job in jobs)
    assert len({json.dumps([job.labels, job.values], sort_keys=True) for job in jobs}) == len(jobs)
    assert SYSTEMS["mega"][artefact].findings(asked(artefact), Results(())) is not None


def test_tables_1_and_2_are_mosi_and_mosei_with_six_models_and_ours():
    for artefact, dataset in (("table1", "mosi"), ("table2", "mosei")):
        jobs = SYSTEMS["mega"][artefact].jobs(asked(artefact, "--seeds=1"))
        assert {job.labels["dataset"] for job in jobs} == {dataset}
        assert {job.values["data"]["name"] for job in jobs} == {dataset}
        assert len(jobs) == 7


def made(folder, mode, points, **values):
    path = folder / mode
    path.mkdir()
    lines = [json.dumps({"time": time, "eval": {"val": {"mae": error}}}) for time, error in points]
    (path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"time": 99.0})]) + "\n")
    labels = {"dataset": "mosi", "method": "mega_ce2", "variant": mode, "seed": 0}
    numbers = {("final", name): value for name, value in values.items()}
    return Run(labels, numbers, path, "simulated", "", "")


def test_convergence_compares_at_the_synchronous_runs_best_error(tmp_path):
    """Sync is best, .70, at 30 s; async goes below first at 12 s: .4 of the time."""
    runs = (made(tmp_path, "sync", [(10.0, 0.9), (20.0, 0.8), (30.0, 0.7), (40.0, 0.75)]),
            made(tmp_path, "async", [(4.0, 0.85), (8.0, 0.71), (12.0, 0.69), (16.0, 0.6)]))
    found = artefacts.convergence(asked("convergence"), Results(runs))
    assert [cell.text for cell in found.tables[0].rows[0]] == [
        "mosi seed 0", "0.7000", "30.0", "12.0", "0.40"]
    assert "0.40 of its simulated time" in found.sentences[0]
    assert artefacts.reached([(1.0, 0.9)], 0.8) is None


def test_adapters_are_compared_with_the_global_model_of_the_same_run(tmp_path):
    run = made(tmp_path, "shared", [], **{
        "client.mae": 0.8, "server.mae": 0.9, "extra.adapter_parameters": 5248.0,
        "communication.adapter_bytes_sent": 0.0})
    table = artefacts.adapters(asked("adapters"), Results((run,))).tables[1]
    assert "−.100" in table.rows[0][6].text  # column of the MAE
    assert table.rows[0][-1].text == ".000"


def test_counts_are_those_behind_table_5():
    """MHSA 4d² + 4d and a linear layer d² + d at d = 300; attention of six cross-modal
    transformers of 3 layers at 300 and three of 3 layers at 600."""
    found = counts.paper_counts()
    assert found["adapter attention"] == 4 * 300**2 + 4 * 300 == 361_200
    assert found["adapter linear"] == 300**2 + 300 == 90_300
    assert found["attention"] == 18 * 361_200 + 9 * (4 * 600**2 + 4 * 600) == 19_483_200
    assert found["unshared adapters linear"] == 6 * 90_300
    assert found["bytes"] == 4 * found["total"]
