"""A real sweep from the command line to its page: trained, cached, resumed, reported."""

import json
import re

import pytest

from mlecs_jax.repro import command, docs_page
from tests.small import SHRUNK

SMALL = [f"--config.{name}={value}" for name, value in SHRUNK.items() if name != "data.source"] + [
    "--config.train.rounds=1"]
RUN = ["--preset=smoke", "--data=simulated", "--rho=0.5", "--splits=frame", "--seeds=1",
       "--processes=1"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Table 1 of two methods in a folder, and the page written beside it."""
    workdir = tmp_path_factory.mktemp("sweep")
    arguments = ["mlecs", "table1", *RUN, f"--workdir={workdir}",
                 f"--write-docs={workdir / 'docs' / 'results.md'}", *SMALL]
    code = command.main([*arguments, "--methods=ml_ecs,private_only"])
    return workdir, arguments, code


def runs_of(workdir, artefact="table1"):
    return json.loads((workdir / f"mlecs-{artefact}-ur_fall" / "sweep.json").read_text())["runs"]


def test_every_number_leads_to_its_run(swept):
    workdir, _, code = swept
    assert code == 0
    folder = workdir / "mlecs-table1-ur_fall"
    assert {p.name for p in folder.iterdir()} == {
        "results.csv", "results.parquet", "tables.md", "sweep.json", "report.html"}
    runs = runs_of(workdir)
    assert len(runs) == 2 and not any(run["cached"] or run["failure"] for run in runs)
    for run in runs:
        own = folder / run["run"]
        summary = json.loads((own / "summary.json").read_text())
        assert summary["method"] == run["labels"]["method"] and (own / "report.html").exists()
        row = (f"final,client.avg_f1,{summary['client']['avg_f1']},simulated,")
        assert any(row in line and own.name in line
                   for line in (folder / "results.csv").read_text().splitlines())
        assert f'href="{run["run"]}/report.html"' in (folder / "report.html").read_text()


def test_all_of_it_says_simulated(swept):
    workdir, _, _ = swept
    for path in ("mlecs-table1-ur_fall/report.html", "mlecs-table1-ur_fall/tables.md",
                 "docs/results.md"):
        assert "imulated" in (workdir / path).read_text().replace("SIMULATED", "simulated")


def test_the_docs_are_replaced_part_by_part(swept):
    workdir, _, _ = swept
    page = (workdir / "docs" / "results.md").read_text()
    assert page.count("<!-- mlecs-table1-ur_fall-simulated -->") == 1 and "ML-ECS" in page
    changed = docs_page.arranged(docs_page.replaced(
        page, "mlecs-table1-ur_fall-simulated", "new"))
    assert "ML-ECS" not in changed and changed.startswith("# Results")
    both = docs_page.replaced(changed, "another", "part")
    assert both.count("<!-- end of ") == 3 and "new" in both
    table = workdir / "docs" / "results" / "mlecs-table1-ur_fall-simulated.csv"
    assert len(table.read_text().splitlines()) == 3


def test_the_docs_have_their_parts_in_the_order_of_the_artefacts_table():
    page = docs_page.HEAD + "\nby hand\n"
    names = ["mega-table1", "mlecs-comm-ur_fall", "own", "mlecs-table1-vast", "mega-latency.paper",
             "mega-latency", "mlecs-table1-ur_fall"]
    for name in names:
        page = docs_page.arranged(docs_page.replaced(
            page, name, f'<a id="{name}"></a>\n\n## Title of {name}\n\ntext'))
    ordered = ["mlecs-table1-ur_fall", "mlecs-table1-vast", "mlecs-comm-ur_fall", "mega-table1",
               "mega-latency", "mega-latency.paper", "own"]
    assert re.findall(r"\(#(.+?)\)", page) == ordered
    assert re.findall(r"## Title of (\S+)", page) == ordered
    assert page.startswith(docs_page.HEAD + "\nby hand\n") and page.count("text\n") == len(names)
    assert docs_page.arranged(page) == page


def test_the_same_again_trains_nothing_and_a_failure_is_exit_1(swept, capsys):
    workdir, arguments, _ = swept
    before = (workdir / "docs" / "results.md").read_text()
    assert command.main([*arguments, "--methods=ml_ecs,private_only"]) == 0
    assert all(run["cached"] for run in runs_of(workdir))
    assert (workdir / "docs" / "results.md").read_text() == before
    broken = workdir / "broken.py"
    broken.write_text("def build(setting):\n    raise ArithmeticError('no method')\n")
    assert command.main([*arguments, f"--methods=ml_ecs,{broken}"]) == 1
    assert "1 done before, 1 failed" in capsys.readouterr().out
    assert (workdir / "docs" / "results.md").read_text() == before
    assert [bool(run["failure"]) for run in runs_of(workdir)] == [False, True]


@pytest.mark.slow
def test_lost_modalities_are_measured_on_the_trained_run(swept):
    workdir, arguments, _ = swept
    again = ["mlecs", "ablation", *arguments[2:]]
    assert command.main([*again, "--config.kt.weight=0.2"]) == 0
    runs = runs_of(workdir, "ablation")
    assert [run["labels"]["variant"] for run in runs] == [
        "", "w/o MMA", "w/o SE-CCL", "w/o CCL", "w/o KT"]
    folder = workdir / "mlecs-ablation-ur_fall" / runs[0]["run"]
    assert runs[0]["run"] in {run["run"] for run in runs_of(workdir)}  # table 1's, not retrained
    found = json.loads((folder / "absence.json").read_text())
    assert set(found) == {"removed_1", "removed_2"}
    assert all(0 <= part["client"]["avg_f1"] <= 1 and 0 <= part["server"]["f1"] <= 1
               for part in found.values())
