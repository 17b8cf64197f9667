"""The command around a sweep of runs that train nothing: what it writes, and when."""

import dataclasses
import errno
import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from mlecs_jax.errors import UserError
from mlecs_jax.repro import command
from mlecs_jax.repro.display import SweepDisplay
from mlecs_jax.repro.docs_page import versions_text
from mlecs_jax.repro.engine import Outcome
from mlecs_jax.repro.job import Job
from mlecs_jax.repro.results import Results, Run


def test_ctrl_c_writes_what_there_is_and_says_what_is_not(sweep, tmp_path, monkeypatch, capsys):
    ended = SweepDisplay.end

    def stop(self, slot, outcome):
        ended(self, slot, outcome)
        raise KeyboardInterrupt

    with pytest.raises(UserError, match="none of the 2 runs is done"):
        sweep("--no-run")
    with monkeypatch.context() as patch:
        patch.setattr(SweepDisplay, "end", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep()  # stopped before the first was taken
        sweep_file = tmp_path / "mlecs-table1-ur_fall" / "sweep.json"
        assert not sweep_file.exists()
        assert sweep(ends=("well", "waits")) == 130  # the first is there now, the second ends
    written = json.loads(sweep_file.read_text())
    assert written["missing"] == 1 and written["sentences"] == ["ml_ecs is there: 0.5."]
    assert "1 of the planned runs is not there yet" in (sweep_file.parent / "tables.md").read_text()
    assert "1 not there yet" in (sweep_file.parent / "report.html").read_text()
    assert not (tmp_path / "results.md").exists() and "INCOMPLETE" in capsys.readouterr().out


def test_a_failed_run_leaves_the_page_as_it_was(sweep, tmp_path, capsys):
    assert sweep() == 0
    before = (tmp_path / "results.md").read_text()
    assert "2 runs," in before and "INCOMPLETE" not in before
    assert sweep(ends=("well", "user error")) == 1
    assert (tmp_path / "results.md").read_text() == before
    said = capsys.readouterr().out
    assert "is left as it was" in said and "1 of the planned runs is not there yet" in said
    folder = tmp_path / "mlecs-table1-ur_fall"
    assert "INCOMPLETE: 1 of" in (folder / "tables.md").read_text()
    assert json.loads((folder / "sweep.json").read_text())["missing"] == 1


def test_no_run_shows_what_is_there(sweep, tmp_path):
    assert sweep() == 0
    assert sweep("--no-run", "--name=part-1", ends=("well", "user error")) == 0
    page = (tmp_path / "results.md").read_text()
    part = page[page.index("<!-- mlecs-table1-ur_fall.part-1-simulated -->"):]
    assert "**INCOMPLETE: 1 of the planned runs" in part and "--name=part-1" in part
    assert "## ML-ECS · UR-Fall · Two runs · part-1" in part
    assert "INCOMPLETE" not in page[:page.index("<!-- mlecs-table1-ur_fall.part-1")]
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "mlecs-table1-ur_fall-simulated.csv", "mlecs-table1-ur_fall.part-1-simulated.csv"}
    assert (tmp_path / "mlecs-table1-ur_fall.part-1" / "report.html").exists()
    assert "The runs of each method are of one version of its sources." in page
    contents = page[page.index("<!-- contents -->"):page.index("<!-- end of contents -->")]
    assert contents.splitlines()[1:] == [
        "- [ML-ECS · UR-Fall · Two runs](#mlecs-table1-ur_fall-simulated)",
        "- [ML-ECS · UR-Fall · Two runs · part-1](#mlecs-table1-ur_fall.part-1-simulated)"]
    assert all(f'<a id="{name}"></a>' in page for name in (
        "mlecs-table1-ur_fall-simulated", "mlecs-table1-ur_fall.part-1-simulated"))


def test_two_data_sets_of_one_name_are_refused_before_anything_is_run(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("from mlecs_jax.configs.ur_fall import get_config\n")
    files = [str(tmp_path / name) for name in ("a.py", "b.py")]
    with pytest.raises(UserError, match=r"a\.py and .*b\.py are both data.name=ur_fall"):
        command.main(["mlecs", "table1", "--preset=smoke", "--data=simulated",
                      f"--dataset={','.join(files)}", f"--workdir={tmp_path / 'work'}"])
    assert not (tmp_path / "work").exists()


def test_an_error_text_is_shown_as_it_is(sweep, tmp_path, capsys):
    """Square brackets are no markup of ours."""
    assert sweep(ends=("brackets", "well")) == 1
    assert "no such place [/edge/0] in [batch, width]" in capsys.readouterr().out
    assert (tmp_path / "mlecs-table1-ur_fall" / "report.html").exists()


def test_the_folder_of_another_sweep_is_left_alone(sweep, tmp_path):
    assert sweep() == 0
    before = (tmp_path / "mlecs-table1-ur_fall" / "sweep.json").read_text()
    with pytest.raises(UserError, match=r"mlecs-table1-ur_fall holds the results of --preset=cpu "
                                        r"--data=auto; give this sweep a --name"):
        sweep("--preset=smoke", "--data=simulated")
    assert (tmp_path / "mlecs-table1-ur_fall" / "sweep.json").read_text() == before
    assert sweep("--preset=smoke", "--name=quick") == 0


def test_a_page_that_cannot_be_written_stays_whole(sweep, tmp_path, monkeypatch):
    assert sweep() == 0
    before = (tmp_path / "results.md").read_text()

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "write", lambda *_: None)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*results\.md: No space left"):
        sweep("--no-run")
    assert (tmp_path / "results.md").read_text() == before


def test_a_data_set_that_is_a_file_goes_by_its_name(sweep, tmp_path):
    (tmp_path / "my data.py").write_text("from mlecs_jax.configs.ur_fall import get_config\n")
    assert sweep(f"--dataset={tmp_path / 'my data.py'}") == 0
    assert (tmp_path / "results" / "mlecs-table1-my_data-simulated.csv").exists()
    assert '<a id="mlecs-table1-my_data-simulated"></a>' in (tmp_path / "results.md").read_text()


def test_runs_that_are_not_there_are_counted_once():
    jobs = [Job({"method": "m", "rho": rho}, {"score": score}) for rho, score in (
        (0.5, 1), (0.7, 1), (0.8, 2))]
    assert command.num_unmade(jobs, ()) == 2


def test_the_time_left_knows_what_a_resumed_run_had(monkeypatch):
    """Nine of ten rounds were there, the tenth took 5 s: 99 runs of 50 s are left."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = SweepDisplay(Console(file=io.StringIO()))
    job = Job({"method": "m"}, {})
    display.plan(100, 0)
    display.begin(0, job)
    display.round(0, 9, 10)
    assert display.left() == "…"
    now[0] = 5.0
    display.round(0, 10, 10)
    assert display.left() == "82 min 30 s left"
    display.end(0, Outcome(job, Path("x"), None, seconds=5.0))
    assert display.left() == "82 min 30 s left"


def test_versions_are_counted_method_by_method():
    def run(method, code):
        return Run({"method": method, "seed": 0}, {}, Path(code), "real", "d", code)

    each = Results((run("ml_ecs", "a"), run("localpub", "b"), run("standalone", "c")))
    assert versions_text(each) == "The runs of each method are of one version of its sources."
    counted = dataclasses.replace(run("ml_ecs", "e"), data_source="shapes")
    assert versions_text(Results((*each.runs, counted))) == versions_text(each)
    mixed = Results((*each.runs, run("ml_ecs", "d")))
    assert versions_text(mixed) == ("Versions of their sources that the runs of a method are of: "
                                    "ML-ECS 2; of every other method one.")
