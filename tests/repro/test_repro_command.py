"""The command around a sweep of runs that train nothing: what it writes, and when."""

import dataclasses
import json
from pathlib import Path

import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.repro import command
from mlecs_jax.repro.display import SweepDisplay
from mlecs_jax.repro.docs_page import versions_text
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
        sweep_file = tmp_path / "mlecs-table1" / "sweep.json"
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
    folder = tmp_path / "mlecs-table1"
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
    assert (tmp_path / "mlecs-table1.part-1" / "report.html").exists()
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
