"""`python -m mlecs_jax.repro mega …` from the command line to its tables and pages, with toys in
the place of the models."""

import csv
import json

import pytest
from in_process import execute
from small_mega import toy

from mlecs_jax.errors import UserError
from mlecs_jax.mega import runner
from mlecs_jax.repro import command

SMALL = ["--preset=smoke", "--data=simulated", "--seeds=2",
         "--config.data.simulated_segments=120", "--config.partition.minimum=8",
         "--config.train.rounds=2", "--config.clock.speeds=1,1,0.5",
         "--config.train.batch_size=8", "--config.adapter.batch_size=8"]
JOBS = {"table1": 8, "convergence": 6, "adapters": 2}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Every trained artefact in one folder, and the exit codes."""
    workdir = tmp_path_factory.mktemp("mega")
    codes = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlecs_jax.models.crossmodal.model", lambda shape, name="": toy(shape.width))
        patch.setattr(command.engine, "execute", execute)
        patch.setattr(runner.experiments, "use_compilation_cache", lambda: None)
        for artefact in JOBS:
            more = ["--methods=mega_ce2,mult"] if artefact == "table1" else [
                "--dataset=mosi"]
            codes[artefact] = command.main([
                "mega", artefact, *SMALL, *more, f"--workdir={workdir}",
                f"--write-docs={workdir / 'results.md'}"])
    return workdir, codes


def part(artefact):
    """What an artefact's folder is called, by the data set that ``swept`` asks for."""
    return f"mega-{artefact}-mosi" if artefact in JOBS and artefact != "table1" else (
        f"mega-{artefact}")


def sweep_of(workdir, artefact):
    return json.loads((workdir / part(artefact) / "sweep.json").read_text())


def texts(table):
    return [[cell["text"] for cell in row] for row in table["rows"]]


@pytest.mark.slow
@pytest.mark.parametrize("artefact", JOBS)
def test_every_artefact_ends_in_tables_and_a_page(swept, artefact):
    workdir, codes = swept
    found, folder = sweep_of(workdir, artefact), workdir / part(artefact)
    assert codes[artefact] == 0 and len(found["runs"]) == JOBS[artefact]
    assert not any(run["failure"] for run in found["runs"])
    assert {run["data_source"] for run in found["runs"]} == {"simulated"}
    assert {p.name for p in folder.iterdir()} == {
        "results.csv", "results.parquet", "tables.md", "sweep.json", "report.html"}
    for table in found["tables"]:
        assert "SIMULATED" in table["title"] and {len(row) for row in table["rows"]} == {
            len(table["columns"])}
        assert table["title"].startswith("Parameters") or any(
            "±" in text or "[" in text for row in texts(table) for text in row)
    page = (folder / "report.html").read_text()
    assert "Simulated data" in page and f'href="{found["runs"][0]["run"]}/report.html"' in page
    assert "ur_fall" not in found["command"] and f"<!-- {part(artefact)}-simulated -->" in (
        workdir / "results.md").read_text()


@pytest.mark.slow
def test_every_number_leads_to_its_run(swept):
    workdir, _ = swept
    found = sweep_of(workdir, "table1")
    rows = list(csv.DictReader(
        (workdir / "mega-table1" / "results.csv").read_text().splitlines()))
    for run in found["runs"]:
        folder = workdir / "mega-table1" / run["run"]
        summary = json.loads((folder / "summary.json").read_text())
        assert (folder / "report.html").exists() and (folder / "config.json").exists()
        value, = [float(row["value"]) for row in rows if row["metric"] == "server.mae"
                  and row["run"] == f"runs/{folder.name}"]
        assert value == summary["server"]["mae"]
    assert "Over simulated time" in (workdir / "mega-table1" / "report.html").read_text()


@pytest.mark.slow
def test_artefacts_share_the_runs_they_have_in_common(swept):
    """The asynchronous run, the one that is personalised in every way and Table 1's are one; so is
    MulT."""
    workdir, _ = swept
    folders = {artefact: {run["run"] for run in sweep_of(workdir, artefact)["runs"]}
               for artefact in JOBS}
    assert len(folders["table1"] & folders["convergence"]) == 6
    assert len(folders["table1"] & folders["adapters"]) == 2


@pytest.mark.slow
def test_the_centralised_models_records_are_its_epochs(swept):
    workdir, _ = swept
    run = next(run for run in sweep_of(workdir, "table1")["runs"]
               if run["labels"]["method"] == "mult" and not run["labels"]["variant"])
    folder = workdir / "mega-table1" / run["run"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["validation"]["server"]["mae"] == pytest.approx(
        min(line["eval"]["val"]["mae"] for line in lines), abs=1e-6)


def test_a_cheap_artefact_runs_through_real_workers(tmp_path):
    arguments = ["mega", "params", "--preset=smoke", "--processes=1", f"--workdir={tmp_path}"]
    assert command.main(arguments) == 0
    found = sweep_of(tmp_path, "params")
    assert ["attention", "19,483,200", "19,480,000"] in texts(found["tables"][0])
    assert "Simulated" not in (tmp_path / "mega-params" / "report.html").read_text()


@pytest.mark.parametrize(("arguments", "message"), [
    (["table1", "--rho=0.5"], "--rho means nothing to mega table1"),
    (["table1", "--dataset=mosei"], "--dataset means nothing"),
    (["ablation", "--methods=mult"], "--methods means nothing"),
    (["adapters", "--dataset=vast"], "'vast' is no dataset of mega"),
    (["table2", "--methods=bert"], "unknown method 'bert'"),
    (["params", "--splits=video"], "--splits means nothing"),
])
def test_filters_that_would_do_nothing_are_refused(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        command.main(["mega", *arguments, "--preset=smoke", f"--workdir={tmp_path}"])


def test_a_runner_is_asked_for_no_more_than_it_has(tmp_path):
    with pytest.raises(ValueError, match="absence"):
        runner.run(command.SYSTEMS["mega"]["params"].jobs(command.parse(
            ["mega", "params", "--preset=smoke"], {"mega": ["params"]}))[0].values,
            tmp_path, ("absence",), lambda *_: None)
