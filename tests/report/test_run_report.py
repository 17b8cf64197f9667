"""The page made from a run's files: what it says, what it leaves out, what it never executes."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from made_up_runs import made_up_run, write_run

from mlecs_jax.errors import UserError
from mlecs_jax.report.__main__ import main
from mlecs_jax.report.run_report import write_report
from mlecs_jax.report.style import SCRIPT

VOID = {"meta", "br", "hr", "col"}


class Page(HTMLParser):
    """Parses strictly: every element must be closed by its own end tag."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.stack, self.words = source, [], []
        self.tags: dict[str, int] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.script = ""
        self.feed(source)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += attrs
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "script" in self.stack:
            self.script += data
        elif "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(folder, run) -> Page:
    path = write_report(write_run(folder, run))
    assert path == folder / "report.html"
    return Page(path.read_text("utf-8"))


def test_whole_run(tmp_path):
    run = made_up_run()
    page = report(tmp_path / "run", run)
    assert {"learning", "modalities", "confusion", "losses", "communication", "devices",
            "setup"} <= set(page.ids)
    assert "ML-ECS on UR-Fall" in page.text
    assert "Real data" in page.text and "Simulated" not in page.text
    assert "finished, 12 rounds" in page.text
    summary = run["summary"]
    for value in (summary["client"]["avg_f1"], summary["client"]["best_f1"],
                  summary["client"]["worst_f1"], summary["server"]["f1"]):
        assert f"{value:.3f}" in page.text
    assert "best on validation" in page.text and "after round 11" in page.text
    assert "98.3 kB" in page.text and "2.13 %" in page.text and "0.51 %" in page.text
    assert "3.54 MB" in page.text  # up: 98,304 B x 3 devices x 12 rounds
    for loss in ("Devices · CCL: volume", "Devices · AMT", "knowledge transfer to the SLM"):
        assert loss in page.text
    assert "only depth" in page.text and "unparsable" in page.text
    assert "model.slm.width" in page.text


def test_page_needs_nothing_from_elsewhere(tmp_path):
    page = report(tmp_path / "run", made_up_run())
    assert not re.search(r"https?:|url\(|@import|src=|<link|<img|<iframe", page.source)
    assert page.tags["script"] == 1 and page.script == SCRIPT
    policy, = (v for k, v in page.attributes if k == "content" and v and "script-src" in v)
    assert policy.startswith("default-src 'none'; ")
    assert {value for key, value in page.attributes if key == "href"} == {
        f"#{i}" for i in ("learning", "modalities", "confusion", "losses", "communication",
                          "devices", "setup")}


def test_simulated_data_are_unmistakable(tmp_path):
    page = report(tmp_path / "run", made_up_run(source="simulated"))
    assert page.text.count("Simulated data") >= 2 and "no evidence" in page.text
    assert "<title>SIMULATED: " in page.source
    assert "Real data" not in page.text


def test_one_simulated_round_makes_the_run_simulated(tmp_path):
    run = made_up_run()
    run["metrics"][3]["data_source"] = "simulated"
    page = report(tmp_path / "run", run)
    assert "Simulated data" in page.text and "Real data" not in page.text


@pytest.mark.parametrize("source", [None, "maybe", ["real"]])
def test_data_of_unknown_kind_are_not_called_real(tmp_path, source):
    run = made_up_run()
    run["metrics"][0]["data_source"] = source
    page = report(tmp_path / "run", run)
    assert "Unlabelled data" in page.text and "Real data" not in page.text


@pytest.mark.parametrize(("num_clients", "kib"), [(64, 500), (512, 1500)])
def test_many_devices_are_summed_up(tmp_path, num_clients, kib):
    page = report(tmp_path / "run", made_up_run(num_clients, 6))
    assert len(page.source) < kib * 1024
    assert page.tags["polyline"] < 40  # bands, not a line per device
    assert "middle half" in page.text
    assert f"All {num_clients} devices together" in page.text
    assert ("summary.json holds the others" in page.text) == (num_clients > 64)


def test_availability_that_changes_is_shown_over_rounds(tmp_path):
    few = report(tmp_path / "few", made_up_run(4, 8, changing=True))
    assert "Availability over the rounds, by device" in few.text
    assert "half of the rounds" in few.text
    many = report(tmp_path / "many", made_up_run(40, 8, changing=True))
    assert "Availability over the rounds, share of devices" in many.text
    static = report(tmp_path / "static", made_up_run(4, 8))
    assert "over the rounds," not in static.text


def test_run_under_way(tmp_path):
    run = made_up_run(rounds=5)
    run["metrics"], run["summary"] = run["metrics"][:2], None
    folder = write_run(tmp_path / "run", run)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "tra')  # killed while it wrote
    page = Page(write_report(folder).read_text("utf-8"))
    assert "under way: 2 of 5 rounds done, no summary yet" in page.text
    assert "confusion" not in page.ids and "learning" in page.ids
    f1 = run["metrics"][-1]["eval"]["test"]["after_amt"]["clients"]["f1"]
    assert f"best {max(f1):.3f}, worst {min(f1):.3f}" in page.text


def test_single_round_is_drawn_as_dots(tmp_path):
    page = report(tmp_path / "run", made_up_run(rounds=1))
    assert "polyline" not in page.tags and "Round 1: test" in page.text


def test_method_without_server_and_broadcast(tmp_path):
    run = made_up_run()
    for entry in run["metrics"]:
        del entry["train"]["server"], entry["communication"]
        for split in entry["eval"].values():
            del split["server"], split["after_broadcast"]
    for key in ("server", "communication", "ceilings", "best_val"):
        del run["summary"][key]
    del run["summary"]["client"]["after_broadcast"]
    page = report(tmp_path / "run", run)
    assert "learning" in page.ids and "communication" not in page.ids
    assert "Server" not in page.text and "broadcast" not in page.text
    assert "offline classifier" not in page.text


def test_score_that_is_not_f1(tmp_path):
    run = made_up_run(rounds=3)
    for entry in run["metrics"]:
        entry["eval"] = {"test": {"after_amt": {"clients": {"rouge_lsum": [0.25, 0.35, 0.45]}}}}
    run["summary"] = None
    page = report(tmp_path / "run", run)
    assert "mean test rouge lsum" in page.text and "0.350" in page.text


@pytest.mark.parametrize("keys", [
    ("eval",), ("train",), ("modalities",), ("seconds", "rounds", "learning_rate"),
    ("eval", "train", "modalities", "communication", "seconds", "data_source"),
])
def test_rounds_that_lack_keys(tmp_path, keys):
    run = made_up_run()
    for entry in run["metrics"]:
        for key in keys:
            del entry[key]
    report(tmp_path / "with_summary", run)
    run["summary"] = None
    report(tmp_path / "without", run)


def test_every_summary_key_may_be_absent_or_of_another_kind(tmp_path):
    run = made_up_run(rounds=1)
    del run["metrics"][0]["train"]
    whole = run["summary"]
    others = (None, "text", 3.5, [], {}, [None], {"x": [1]})
    for other in others:
        run["summary"] = dict.fromkeys(whole, other)
        report(tmp_path / "run", run)
    for i, key in enumerate(whole):
        run["summary"] = {**whole, key: others[i % len(others)]}
        report(tmp_path / "run", run)


def test_numbers_that_cannot_be_drawn_leave_gaps(tmp_path):
    run = made_up_run(rounds=5)
    run["metrics"][1]["train"]["server"]["se_ccl"]["llm_lm"] = math.nan
    run["metrics"][2]["train"]["server"]["se_ccl"]["llm_lm"] = math.inf
    run["metrics"][2]["eval"]["test"]["server"]["f1"] = None
    run["metrics"][3]["train"]["devices"]["amt"]["lm"] = [math.nan] * 3
    run["metrics"][3]["eval"]["val"]["after_amt"]["clients"]["f1"] = [0.5]
    run["metrics"][4]["train"]["devices"]["ccl"]["lm"] = [10**400, True, "x"]
    run["summary"]["client"]["per_client"][0]["f1"] = math.nan
    page = report(tmp_path / "run", run)
    geometry = [v or "" for k, v in page.attributes if k in ("points", "x", "y", "d", "cx", "cy")]
    assert not re.search("nan|inf", " ".join(geometry))


def test_nothing_from_the_files_is_markup(tmp_path):
    evil = "</title></script><script>alert(1)</script><img src=x onerror='alert(2)'>\"'&\ud800\x00"
    run = made_up_run(rounds=3)
    run["config"] |= {evil: {evil: evil}, "config_name": evil}
    summary = run["summary"]
    summary |= {"method": evil, "dataset": evil, "split": evil, "seed": evil,
                "modalities": [evil, "b", "c"], "class_names": [evil, evil, "z"],
                "versions": {evil: evil, "jax": evil}, "ceilings": {evil: 0.5}}
    for client in summary["client"]["per_client"]:
        client |= {"client": evil, "modalities": [evil], evil: 1.0}
    for entry in run["metrics"]:
        entry["train"] = {evil: {evil: [1.0, 2.0]}, "server": {evil: 0.5}}
        entry["eval"]["test"] = {evil: entry["eval"]["test"]["after_amt"]}
    page = report(tmp_path / "a<b>&", run)
    assert page.tags["script"] == 1 and page.script == SCRIPT and "img" not in page.tags
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert "alert(1)" in page.text


def test_later_of_two_lines_of_one_round_holds(tmp_path):
    run = made_up_run(rounds=3)
    again = json.loads(json.dumps(run["metrics"][2]))
    again["eval"]["test"]["server"]["f1"] = 0.1234
    run["metrics"].append(again)
    page = report(tmp_path / "run", run)
    assert "Round 3: test 0.123" in page.text and "Round 4" not in page.text


def _folder_with(tmp_path, **files: str | None):
    folder = write_run(tmp_path / "run", made_up_run(rounds=2))
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.unlink()
        if content is not None:
            path.write_text(content)
    return folder


@pytest.mark.parametrize(("files", "message"), [
    ({"config_json": None}, "no config.json"),
    ({"config_json": "{"}, "config.json"),
    ({"config_json": "[1]"}, "no JSON object"),
    ({"summary_json": "{,"}, "summary.json"),
    ({"metrics_jsonl": None}, "no metrics.jsonl"),
    ({"metrics_jsonl": ""}, "no complete round"),
    ({"metrics_jsonl": "{\n{}\n"}, "line 1 is not JSON"),
    ({"metrics_jsonl": "[]\n"}, "line 1 names no round"),
    ({"metrics_jsonl": '{"round": "1"}\n'}, "line 1 names no round"),
])
def test_bad_folders(tmp_path, capsys, files, message):
    folder = _folder_with(tmp_path, **files)
    with pytest.raises(UserError, match=message):
        write_report(folder)
    assert main([str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        write_report(tmp_path / "nowhere")


def test_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    folder = write_run(tmp_path / "run", made_up_run(rounds=2))
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_report(folder)
    assert not list(folder.glob("*.tmp"))


def test_command_line_makes_the_page_again(tmp_path):
    folder = write_run(tmp_path / "run", made_up_run(rounds=2))
    done = subprocess.run([sys.executable, "-m", "mlecs_jax.report", str(folder)],
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(folder / "report.html")
    Page((folder / "report.html").read_text("utf-8"))
