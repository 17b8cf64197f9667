"""Rows of an earlier sweep's file in the place of runs."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.repro import earlier
from mlecs_jax.repro.job import Job, Provenance
from tests.repro.conftest import run_sweep

CSV = "results/mlecs-table1-ur_fall-simulated.csv"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The file that a sweep on another machine left."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        assert run_sweep(patch, folder, extras=("absence",)) == 0
    return folder / CSV


def made_in(folder):
    return sorted(path.parent.name.split("-")[1] for path in folder.glob("runs/*/begun"))


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_does_for_a_run(sweep, first, tmp_path, capsys):
    here = tmp_path / "here"
    assert sweep(f"--rows={first}", workdir=here, scores=(0.5, 0.75)) == 0
    assert made_in(here) == ["localpub"]  # configured otherwise: no row tells of it
    assert "1 run made in" in (said := capsys.readouterr().out) and "1 done before (1 by" in said
    page = (here / "results.md").read_text()
    assert "ml_ecs is there: 0.5." in page and "localpub is there: 0.75." in page
    assert "2 runs, " in page and ", 1 of them rows of an earlier sweep" in page
    (known, made), (before, _) = rows_of(here / CSV), rows_of(first)
    assert known == before and made["run"] != before["run"]
    report = (here / "mlecs-table1-ur_fall" / "report.html").read_text()
    assert f'title="{before["run"]}"' in report and "1 are rows of an earlier sweep" in report
    # The file that was written serves a third sweep; nothing is left to make.
    there = tmp_path / "there"
    assert sweep(f"--rows={here / CSV}", workdir=there, scores=(0.5, 0.75)) == 0
    assert made_in(there) == [] and rows_of(there / CSV) == [known, made]


def test_a_run_that_is_here_goes_before_its_row(sweep, first, tmp_path):
    here = tmp_path / "here"
    assert sweep(workdir=here) == 0
    assert sweep(f"--rows={first}", workdir=here) == 0
    assert "rows of an earlier" not in (here / "results.md").read_text()
    written = json.loads((here / "mlecs-table1-ur_fall" / "sweep.json").read_text())
    assert [run["earlier"] for run in written["runs"]] == [False, False]


def test_rows_of_other_sources_are_taken_where_asked_for(sweep, first, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CODE", "c1de1111")
    here = tmp_path / "here"
    assert sweep(f"--rows={first}", "--code=any", workdir=here) == 0
    assert made_in(here) == []
    assert sweep(f"--rows={first}", workdir=here) == 0
    assert made_in(here) == ["localpub", "ml_ecs"]


def test_a_row_must_tell_all_that_is_measured(first):
    job = Job({"method": "ml_ecs", "seed": 0},
              {"method": {"name": "ml_ecs"}, "ends": "well", "score": 0.5},
              runner="tests.repro.fake_runner", extras=("absence",))
    origin = Provenance({"source": "simulated", "samples": 1, "sha256": "d" * 8}, "c0de0000")
    runs = earlier.read([first])
    found = runs.find(job, origin, any_code=False)
    assert found.values["final", "client.avg_f1"] == 0.5
    assert found.values["best_val", "client.avg_f1"] == 0.375
    assert found.seconds is not None
    more = dataclasses.replace(job, extras=("absence", "masking"))
    assert runs.find(more, origin, any_code=False) is None
    other = dataclasses.replace(job, values=job.values | {"score": 0.25})
    assert runs.find(other, origin, any_code=False) is None
    twin = dataclasses.replace(other, twins=(job.values,))
    assert runs.find(twin, origin, any_code=False) == found
    real = Provenance(origin.data | {"source": "real"}, origin.code)
    assert runs.find(job, real, any_code=True) is None


def test_files_without_times_are_read_and_said_to_be(sweep, first, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(first)]
    old = tmp_path / "old.csv"
    with open(old, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert sweep(f"--rows={old}", workdir=tmp_path / "here", scores=(0.5, 0.75)) == 0
    assert "in all but for 1 of which it is not known" in (
        tmp_path / "here" / "results.md").read_text()


def test_bad_files_are_one_line(sweep, first, tmp_path):
    with pytest.raises(UserError, match="--rows: cannot read .*absent.csv: No such file"):
        sweep(f"--rows={tmp_path / 'absent.csv'}")
    strange = tmp_path / "strange.csv"
    strange.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="strange.csv has no column 'run'; give a CSV file that"):
        sweep(f"--rows={first},{strange}")
    strange.write_text("run,code,data_sha256,final.x\nr,c,d,high\n")
    with pytest.raises(UserError, match="strange.csv is no CSV file of a sweep: .*'high'"):
        sweep(f"--rows={strange}")
    for row in ("r,c,d,1,2", "r", ",c,d,1"):
        strange.write_text(f"run,code,data_sha256,final.x\n{row}\n")
        with pytest.raises(UserError, match="strange.csv is no CSV file of a sweep: a row is"):
            sweep(f"--rows={strange}")
    strange.write_bytes(b"\xff\xfe\x00run")
    with pytest.raises(UserError, match="strange.csv is no CSV file of a sweep"):
        sweep(f"--rows={strange}")
    with pytest.raises(UserError, match="--rows means nothing to mlecs table1, which reads"):
        sweep(f"--rows={first}", of_figures=False)
    assert not list(tmp_path.glob("runs/*/begun"))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "docs/results").glob(
    "mlecs-*.csv")), ids=lambda path: path.stem)
def test_every_committed_file_can_be_taken(path):
    """Full-size counts, which no data are behind, among them."""
    assert sum(map(len, earlier.read([path]).by_key.values())) == len(rows_of(path))
