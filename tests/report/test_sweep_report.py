"""A sweep's page: everything it must show, every number a link, no file trusted."""

import dataclasses
import json
import re
import shutil

import pytest
from browser import A4, A4_SIDEWAYS, EXECUTABLE, TOO_WIDE_ON_PAPER, Browser
from made_up_runs import made_up_run, write_run
from made_up_sweeps import MANY_METHODS, METHODS, write_sweep, write_wide_sweep

from mlecs_jax.errors import UserError
from mlecs_jax.report.__main__ import main
from mlecs_jax.report.sweep_charts import metric_of, metric_words
from mlecs_jax.report.sweep_files import read_sweep
from mlecs_jax.report.sweep_report import write_sweep_report


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweep"), failed=True)


@pytest.fixture(scope="module")
def page(sweep):
    return write_sweep_report(sweep).read_text()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two settings of 12 with all runs, and rows of an earlier sweep."""
    folder = write_wide_sweep(tmp_path_factory.mktemp("wide"))
    write_sweep_report(folder)
    return folder


def part_of(page: str, anchor: str) -> str:
    start = page.index(f'<section id="{anchor}"')
    return page[start:page.index("</section>", start)]


def test_all_parts_are_there(page):
    assert re.findall(r'<section id="(\w+)"', page) == [
        "findings", "differences", "tables", "learning", "communication", "modalities",
        "confusion", "runs", "setup"]
    assert "Real data" in page and "SIMULATED" not in page
    assert "36 runs, 1 failed" in page and "a &lt;value&gt; is bad" in page


def test_every_link_leads_somewhere(sweep, page):
    targets = set(re.findall(r'href="([^"]+)"', page))
    anchors = {t[1:] for t in targets if t.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]+)"', page))
    assert len([a for a in anchors if a.startswith("g")]) == 2 * len(METHODS)
    runs = {t for t in targets if not t.startswith("#")}
    assert len(runs) == 36 and all((sweep / t).parent.is_dir() for t in runs)


def test_every_figure_of_ours_leads_to_its_runs(page):
    tables = part_of(page, "tables")
    assert "Every figure of ours leads to its runs" in tables
    bare = re.findall(r'<td class="([^"]*)"[^>]*>(?:<b>)?([^<]+)<', tables)
    assert {text for kind, text in bare if "quiet" not in kind} == {"–"}
    assert any("quiet" in kind for kind, _ in bare)  # the paper's own lead nowhere
    others = len(METHODS) - 1
    assert tables.count('href="#runs"') == 2 * 2 * others  # columns 'all' of two methods of ours


def test_figures_of_several_groups_of_runs_lead_to_the_list(sweep, tmp_path):
    """A group that names a part of the labels, or a seed."""
    content = json.loads((sweep / "sweep.json").read_text())
    runs = [run["labels"] for run in content["runs"]]
    cells = [{"text": text, "group": group} for text, group in (
        ("1", {"method": "ml_ecs"}), ("2", {"method": "ml_ecs", "rho": 0.5}), ("3", runs[0]),
        ("4", runs[0] | {"seed": 9}), ("5", {"method": "nobody"}), ("6", None), ("7", {}))]
    content["tables"] = [{"title": "x", "columns": [""] * 8, "rows": [[{"text": "row"}, *cells]]}]
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    tables = part_of(write_sweep_report(tmp_path).read_text(), "tables")
    found = dict(re.findall(r'<a href="#(\w+)">(\d)</a>', tables))
    assert [key for key, text in found.items() if text == "1"] == ["runs"]
    assert sorted(re.findall(r">(\d)</a>", tables)) == ["1", "2", "3"]
    assert len({anchor for anchor in found if anchor.startswith("g")}) == 1  # 2 and 3 are one row


def test_a_page_says_which_sweep_it_is(sweep, page, wide, tmp_path):
    assert "<title>Table 1: every method · UR-Fall</title>" in page
    assert '<h1>Table 1: every method <span class="which">· UR-Fall</span></h1>' in page
    assert "<dt>data set</dt><dd>UR-Fall</dd>" in page and "<dt>name</dt>" not in page
    named = (wide / "report.html").read_text()
    assert "<title>Where collaboration pays · UR-Fall · ten</title>" in named
    assert '· UR-Fall</span> <span class="which">· ten</span></h1>' in named
    assert "<dt>name</dt><dd>ten</dd>" in named
    content = json.loads((sweep / "sweep.json").read_text()) | {"name": ""}
    content["runs"][0]["labels"]["dataset"] = "vast"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    both = write_sweep_report(tmp_path).read_text()
    assert "<title>Table 1: every method · VAST, UR-Fall</title>" in both
    assert "<dt>data sets</dt><dd" in both and "<dt>name</dt>" not in both
    (tmp_path / "sweep.json").write_text(json.dumps(content | {"name": "<b>"}))
    assert " · &lt;b&gt;</title>" in write_sweep_report(tmp_path).read_text()


def test_rows_of_an_earlier_sweep_are_in_tables_and_charts_say_that_they_lack_them(wide):
    page = (wide / "report.html").read_text()
    count = 11 * len(MANY_METHODS)
    assert f"{24 * len(MANY_METHODS)} runs, {count} of them rows of an earlier sweep" in page
    for anchor in ("learning", "communication", "modalities", "confusion"):
        assert "Without runs that are rows of an earlier sweep: 11 of 24 of each." in (
            part_of(page, anchor))
    runs = part_of(page, "runs")
    assert runs.count(">1: row</span>") == count
    assert f"{count} are rows of an earlier sweep: tables have them, charts leave them out" in runs
    assert ">25 labels, public unlabelled, ρ=.5</th>" in part_of(page, "tables")
    files = read_sweep(wide)
    some = [dataclasses.replace(run, earlier=run.labels["method"] == "co_plms")
            for run in files.runs]
    assert dataclasses.replace(files, runs=tuple(some)).left_out == (
        " Without runs that are rows of an earlier sweep: 24 of 24 of Co-PLMs (approximation).")


def test_a_page_of_rows_alone_has_tables_and_no_charts(wide, tmp_path):
    """Settings are named as in a sweep that made its runs: by what sets them apart."""
    content = json.loads((wide / "sweep.json").read_text())
    content["runs"] = [run for run in content["runs"] if run["earlier"]]
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    page = write_sweep_report(tmp_path).read_text()
    assert re.findall(r'<section id="(\w+)"', page) == [
        "findings", "differences", "tables", "runs", "setup"]
    assert "Real data" in page
    assert "<td>ρ 0.8, labels per device 25, public labels: no, labelled at the server 1</td>" in (
        part_of(page, "runs"))


def test_curves_have_bands_and_forests_their_intervals(page):
    learning = page[page.index('<section id="learning"'):page.index('<section id="communication"')]
    assert learning.count("<figure") == 2 and learning.count('class="band') == 2 * 4
    differences = page[page.index('<section id="differences"'):page.index('<section id="tables"')]
    others = len(METHODS) - 1  # two methods of ours minus each, on devices and at the server
    assert differences.count('class="dot') == differences.count('class="line') == 2 * 2 * others


def test_methods_that_send_nothing_stand_left_of_the_axis(page):
    part = page[page.index('<section id="communication"'):page.index('<section id="modalities"')]
    assert part.count("0 B") >= 2 and ">0</text>" in part


def test_confusions_are_summed_over_devices_and_seeds(tmp_path):
    folder = write_sweep(tmp_path, seeds=2)
    page = write_sweep_report(folder).read_text()
    found = read_sweep(folder)
    corner = sum(c["confusion"][0][0] for run in found.runs
                 if run.labels["method"] == "ml_ecs" and run.labels["rho"] == 0.5
                 for c in run.files.clients)
    part = page[page.index('<section id="confusion"'):]
    assert f">{corner:,.0f}</td>" in part


def test_variants_stand_side_by_side_for_devices_and_server(sweep, tmp_path):
    """Every other method of a cell taken for a variant of the first."""
    content = json.loads((sweep / "sweep.json").read_text())
    for run in content["runs"]:
        if run["labels"]["method"] != "ml_ecs":
            run["labels"] |= {"method": "ml_ecs", "variant": f"w/o {run['labels']['method']}"}
    folder = tmp_path / "mlecs-ablation"
    shutil.copytree(sweep.parent / "runs", tmp_path / "runs")
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(content))
    page = write_sweep_report(folder).read_text()
    ablation = page[page.index('<section id="ablation"'):page.index('<section id="learning"')]
    assert ablation.count("<figure") == 2 * 2 and "devices, " in ablation
    assert [ablation.count(f'class="mean {style}') for style in ("dev", "srv")] == [
        2 * len(METHODS)] * 2
    assert "w/o localpub, seed 2" in ablation


def test_cells_of_several_tasks_have_their_own_metrics(sweep):
    """A sweep of classes and captions draws either."""
    files = read_sweep(sweep)
    captions = [dataclasses.replace(run, labels={**run.labels, "dataset": "vast"})
                for run in files.runs if not run.failure]
    for run in captions:
        renamed = json.dumps(run.files.rounds).replace('"f1"', '"rougeLsum"')
        made = dataclasses.replace(run.files, rounds=json.loads(renamed))
        object.__setattr__(run, "files", made)
    both = dataclasses.replace(files, runs=(*files.runs, *captions))
    assert metric_words(both) == "macro-F1 or ROUGE-LSum"
    assert {metric_of(runs) for runs in both.cells().values()} == {"f1", "rougeLsum"}


def test_a_page_of_a_part_says_so(sweep, tmp_path):
    content = json.loads((sweep / "sweep.json").read_text()) | {"missing": 7}
    folder = tmp_path / "mlecs-table1"
    shutil.copytree(sweep.parent / "runs", tmp_path / "runs")
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(content))
    page = write_sweep_report(folder).read_text()
    assert "1 failed, 6 not there yet" in page and "Incomplete" in page


def test_simulated_runs_make_a_simulated_page(tmp_path):
    page = write_sweep_report(write_sweep(tmp_path, source="simulated", seeds=1)).read_text()
    assert '<aside class="banner"' in page and "<title>SIMULATED: " in page


def test_captions_are_shown_where_there_are_some(tmp_path):
    folder = write_sweep(tmp_path, seeds=1)
    run = tmp_path / "runs" / "ml_ecs-0.5-0"
    (run / "samples.jsonl").write_text(json.dumps({
        "node": "device 0", "modalities": ["rgb"], "reference": "a man sits",
        "generated": "a man <b>runs</b>", "rougeLsum": 0.5}) + "\n")
    page = write_sweep_report(folder).read_text()
    assert 'id="captions"' in page and "a man &lt;b&gt;runs&lt;/b&gt;" in page
    assert ('Of one run: <a href="../runs/ml_ecs-0.5-0/report.html">ML-ECS, ρ 0.5, seed 0</a>. '
            "1 test samples") in part_of(page, "captions")


def test_a_run_that_stands_for_several_settings_is_one_run(sweep, tmp_path):
    """Twice one run and thrice a failure: two runs, one failed."""
    content = json.loads((sweep / "sweep.json").read_text())
    ran, failed = content["runs"][0], content["runs"][-1]
    folder = tmp_path / "mlecs-table1"
    shutil.copytree(sweep.parent / "runs", tmp_path / "runs")
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(content | {"missing": 3, "runs": [
        *({**ran, "labels": ran["labels"] | {"labelled": n}} for n in (25, 50)),
        *({**failed, "labels": failed["labels"] | {"labelled": n}} for n in (25, 50, 200))]}))
    page = write_sweep_report(folder).read_text()
    assert '<span class="state">1 run, 1 failed, 2 not there yet</span>' in page
    assert page.count("a &lt;value&gt; is bad") == 1
    assert "1 run. The last call took" in page and "spent 51 s of worker time" in page


def test_matrices_have_the_names_of_their_own_classes(tmp_path):
    folder = write_sweep(tmp_path, seeds=1)
    content = json.loads((folder / "sweep.json").read_text())
    for entry in content["runs"]:
        if entry["labels"]["rho"] == 0.8:
            entry["labels"]["dataset"] = "weather"
            path = folder / entry["run"] / "summary.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {
                "class_names": ["sunny", "rainy", "snowy"]}))
    (folder / "sweep.json").write_text(json.dumps(content))
    part = part_of(write_sweep_report(folder).read_text(), "confusion")
    falls, weather = part.split('<div class="matrices"')[1:]
    assert "sunny" in weather and "sunny" not in falls and "weather" not in falls


def test_curves_are_of_validation_data_where_tests_wait_for_the_end(tmp_path):
    folder = write_sweep(tmp_path, seeds=2)
    for file in (tmp_path / "runs").glob("*/metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines[:-1]:
            del line["eval"]["test"]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_sweep_report(folder).read_text()
    assert ", validation</h3>" in page
    assert "Round 1: ML-ECS –" not in page


def test_lost_or_broken_runs_do_not_stop_the_page(tmp_path):
    folder = write_sweep(tmp_path, seeds=2)
    shutil.rmtree(tmp_path / "runs" / "ml_ecs-0.5-0")
    (tmp_path / "runs" / "localpub-0.8-1" / "metrics.jsonl").write_text("{broken\n{}\n")
    assert "Learning curves" in write_sweep_report(folder).read_text()


def test_the_command_makes_either_page(tmp_path, capsys):
    folder = write_sweep(tmp_path, seeds=1)
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert main([str(write_run(tmp_path / "run", made_up_run()))]) == 0
    (folder / "sweep.json").write_text("[]")
    assert main([str(folder)]) == 2 and "cannot read" in capsys.readouterr().err
    with pytest.raises(UserError, match="no sweep.json"):
        read_sweep(tmp_path)


_TOO_WIDE = """
[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map(e => e.tagName + '.' + e.className).join(' ')
"""


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium installed")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_page_fits_is_silent_and_prints(sweep, page, tmp_path, width, dark):
    del page
    path = sweep / "report.html"
    with Browser(tmp_path / "profile") as browser:
        browser.open(path, width=width, dark=dark)
        picture = browser.screenshot(tmp_path / f"sweep-{width}.png")
        assert picture.stat().st_size > 10_000
        assert browser.evaluate(_TOO_WIDE) == ""
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.complaints == []
        assert set(browser.requests) == {path.resolve().as_uri()}
        printed = browser.pdf(tmp_path / "sweep.pdf").read_bytes()
        assert printed.startswith(b"%PDF") and 2 <= printed.count(b"/Type /Page\n") <= 20
        browser.on_paper(width=A4)
        assert browser.evaluate(TOO_WIDE_ON_PAPER) == ""


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium installed")
def test_wide_tables_fit_on_paper(wide, tmp_path):
    """Those of many columns lie on their side, in type that can be read."""
    with Browser(tmp_path / "profile") as browser:
        browser.open(wide / "report.html", width=1200)
        printed = browser.pdf(tmp_path / "wide.pdf").read_bytes()
        assert printed.count(b"/MediaBox [0 0 595") > 1 and printed.count(b"/MediaBox [0 0 841") > 1
        for width in (A4, A4_SIDEWAYS):
            browser.on_paper(width=width)
            assert browser.evaluate(TOO_WIDE_ON_PAPER) == ""
            assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate("Math.min(...[...document.querySelectorAll('.figures td')].map("
                                "cell => parseFloat(getComputedStyle(cell).fontSize)))") >= 9


_HEADINGS = """
(() => {
  const found = [];
  for (const box of document.querySelectorAll('.scroll:has(.figures)'))
    for (const far of [0, 60, 120, 200, 1e6]) {
      box.scrollLeft = far;
      const left = box.getBoundingClientRect().left;
      for (const row of box.querySelectorAll('tbody tr')) {
        const names = [...row.querySelectorAll('th')].map(name => name.getBoundingClientRect());
        const last = names.at(-1);
        found.push({wide: last.width / box.clientWidth, moved: box.scrollLeft,
                    off: last.left - left, last: far === 1e6,
                    covered: names.length > 1 ? names[0].right - last.left : 0});
      }
    }
  return found;
})()
"""


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium installed")
def test_one_heading_of_a_row_stays_on_a_phone(wide, tmp_path):
    """The method; the setting before it scrolls away. Neither covers the other, and there is room
    for figures beside them."""
    with Browser(tmp_path / "profile") as browser:
        browser.open(wide / "report.html", width=360)
        rows = browser.evaluate(_HEADINGS)
        assert browser.evaluate("document.documentElement.scrollWidth") == 360
    assert len([row for row in rows if row["moved"]]) > 100
    assert max(row["covered"] for row in rows) < 1 and max(row["wide"] for row in rows) < 0.5
    assert max(abs(row["off"]) for row in rows if row["last"]) < 1
