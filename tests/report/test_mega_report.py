"""The page of a three-tier run: every figure the run's files hold, over versions and over time."""

import json

import pytest
from browser import EXECUTABLE, Browser
from made_up_mega import made_up_mega
from made_up_runs import write_run
from test_run_report import Page

from mlecs_jax.report.__main__ import main
from mlecs_jax.report.run_report import write_report
from mlecs_jax.report.sweep_report import write_sweep_report


def report(folder, run) -> Page:
    return Page(write_report(write_run(folder, run)).read_text("utf-8"))


def test_a_three_tier_run_has_its_page(tmp_path):
    run = made_up_mega()
    page = report(tmp_path / "run", run)
    assert {"scores", "learning", "edges", "confusion", "communication", "setup"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "Mega-CE² on CMU-MOSI" in page.text and "finished, 14 versions" in page.text
    assert "Real data" in page.text and run["summary"]["caution"] in page.text
    assert "nan" not in page.text.lower().split()
    for part in ("server", "client"):
        for key in ("mae", "corr", "acc2_non0", "f1_non0", "acc7"):
            assert f"{run['summary'][part][key]:.3f}" in page.text
    for edge in run["summary"]["edges"]:
        assert f"{edge['personal']['mae']:.3f}" in page.text
        assert f"{edge['train_segments']} {', '.join(map(str, edge['end_segments']))}" in page.text
    last = run["metrics"][-1]
    assert f"Version 14: at {last['time']:,.1f} s, test {last['eval']['test']['mae']:.3f}" in (
        page.text)
    for title in ("MAE over versions", "MAE over simulated time", "Who reported when",
                  "Validation MAE against bytes", "Training MAE of the ends"):
        assert title in page.text
    assert "unparsable" not in page.text  # a real number always names a class


def test_staleness_and_bytes_are_those_of_the_records(tmp_path):
    """Edge 1 reports at versions 2 and 5 with staleness 1 and 2: mean 1.5, maximum 2. Two ends each
    way for three reports: 6 models; uploads 3 × 1,000,004 B."""
    run = made_up_mega(2, 3)
    for entry, edge, stale in zip(run["metrics"], (0, 1, 1), (0, 1, 2), strict=True):
        entry["edges"], entry["staleness"] = [edge], [stale]
    for edge, reports in zip(run["summary"]["edges"], (1, 2), strict=True):
        edge["reports"] = reports
    run["summary"]["communication"] |= {"uploads": 3, "downloads": 5}
    page = report(tmp_path / "run", run)
    assert "0.25 2 1.5 2" in page.text  # speed, reports, staleness mean and max
    assert "Uploads of all edges: 3 3 MB" in page.text
    assert "Downloads of all edges, the first included: 5 5 MB" in page.text
    assert "6 models each way 6 MB up, 6 MB down" in page.text


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_under_way_and_rarely_evaluated(tmp_path, mode):
    run = made_up_mega(mode=mode, source="simulated")
    run["summary"] = None
    for entry in run["metrics"][::2]:
        del entry["eval"]
    page = report(tmp_path / "run", run)
    assert "under way: 14 of 14 versions done" in page.text and "Simulated data" in page.text
    assert "learning" in page.ids and "scores" not in page.ids


def test_summary_and_records_of_other_kinds(tmp_path):
    whole = made_up_mega(2, 2)
    for other in (None, "text", 3.5, [], {}, [None], {"x": [1]}):
        run = made_up_mega(2, 2)
        run["summary"] = dict.fromkeys(whole["summary"], other)
        report(tmp_path / "run", run)
        for key in ("eval", "staleness", "time", "train"):
            run["metrics"][0][key] = other
        report(tmp_path / "run", run)


def test_an_epoch_is_no_round(tmp_path):
    """Centralised training: an epoch a record, no clock and no edges."""
    run = made_up_mega(2, 3)
    for entry in run["metrics"]:
        for key in ("time", "edges", "staleness"):
            del entry[key]
        entry["epoch"] = entry["round"] + 1
        entry["eval"] = {"val": {"mae": entry["eval"]["val"]["mae"]}}
    run["summary"] = {"method": "lf_lstm", "server": run["summary"]["server"], "rounds": 3}
    page = report(tmp_path / "run", run)
    assert "LF-LSTM on CMU-MOSI" in page.text and "finished, 3 epochs" in page.text
    assert "MAE over epochs" in page.text and "simulated time" not in page.text
    assert not {"edges", "communication"} & set(page.ids) and "own edge" not in page.text


def test_command_line_makes_it_again(tmp_path, capsys):
    folder = write_run(tmp_path / "run", made_up_mega())
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    (folder / "metrics.jsonl").write_text(json.dumps({"time": 1.0}) + "\n")
    assert main([str(folder)]) == 2


def write_sweep(base, *, seeds=2):
    """Asynchronous and synchronous runs, one counted job, and the sweep's own folder."""
    entries = []
    for seed in range(seeds):
        for i, mode in enumerate(("async", "sync")):
            run = made_up_mega(versions=6, mode=mode, source="simulated", seed=10 * seed + i)
            folder = write_run(base / "runs" / f"{mode}-{seed}", run)
            entries.append({"labels": {"dataset": "mosi", "method": "mega_ce2", "variant": mode,
                                       "split": "canonical", "seed": seed},
                            "run": f"../runs/{folder.name}", "failure": "", "cached": False,
                            "seconds": 5.0, "data_source": "simulated"})
    entries.append({"labels": {"dataset": "mosi", "method": "params", "variant": "",
                               "split": "canonical", "seed": 0}, "run": "../runs/params",
                    "failure": "", "cached": False, "seconds": 1.0, "data_source": "none"})
    folder = base / "mega-convergence"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({
        "title": "Fig. 3", "preset": "smoke", "seeds": seeds, "processes": 1, "seconds": 9.0,
        "written": "2026-01-01T00:00:00+00:00", "command": "python -m …", "sentences": [],
        "tables": [], "runs": entries}))
    return folder


def test_a_sweep_is_drawn_over_its_clocks(tmp_path):
    folder = write_sweep(tmp_path)
    page = Page(write_sweep_report(folder).read_text("utf-8"))
    assert {"times", "confusion", "runs"} <= set(page.ids) and "learning" not in page.ids
    part = page.source[page.source.index('id="times"'):page.source.index('id="confusion"')]
    assert part.count("<polyline") == 4  # two modes of two seeds
    assert "Mega-CE², async" in part and "By " in part
    error = json.loads((tmp_path / "runs" / "sync-1" / "summary.json").read_text())["client"]["mae"]
    assert f"1: MAE {error:.3f}" in page.text and "counted" in page.text
    assert "Simulated data" in page.text


def test_runs_without_files_of_their_own_do_not_hide_the_kind_of_data(tmp_path):
    folder = write_sweep(tmp_path)
    content = json.loads((folder / "sweep.json").read_text())
    content["runs"] = content["runs"][-1:]
    (folder / "sweep.json").write_text(json.dumps(content))
    page = write_sweep_report(folder).read_text()
    assert '<span class="badge counted">Counted</span>' in page and "<aside" not in page
    assert "counted::before" not in page  # ⚠ is for data that are not real
    content["runs"][0]["data_source"] = "simulated"
    (folder / "sweep.json").write_text(json.dumps(content))
    assert "Simulated data" in write_sweep_report(folder).read_text()
    content["runs"][0]["data_source"] = None
    (folder / "sweep.json").write_text(json.dumps(content))
    assert '<span class="badge none">Unlabelled data</span>' in (
        write_sweep_report(folder).read_text())


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium installed")
def test_fits_a_desk_and_a_phone(tmp_path):
    page = write_report(write_run(tmp_path / "run", made_up_mega(source="simulated")))
    with Browser(tmp_path / "profile") as browser:
        for width in (1200, 390):
            browser.open(page, width=width)
            browser.screenshot(tmp_path / f"mega-{width}.png")
            assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.complaints == [] and set(browser.requests) == {page.resolve().as_uri()}
