"""Statistics, tables and what is said of them, against figures worked by hand."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from mlecs_jax.config import parse as parse_config
from mlecs_jax.errors import UserError
from mlecs_jax.methods import fedilora
from mlecs_jax.repro import code_version as code_version_module
from mlecs_jax.repro import job as job_module
from mlecs_jax.repro import options, paper, render, results
from mlecs_jax.repro.artefacts import ablation, regime, table1, table2
from mlecs_jax.repro.code_version import code_version
from mlecs_jax.repro.comparison import compare_all
from mlecs_jax.repro.engine import Outcome
from mlecs_jax.repro.job import Job, Provenance, configuration_key
from mlecs_jax.repro.methods import PUBLISHED
from mlecs_jax.repro.results import FINAL, Results, Run
from mlecs_jax.repro.statistics import common_means, mean_by_seed, paired, spread
from mlecs_jax.repro.systems import SYSTEMS
from mlecs_jax.repro.tables import difference_text, mean_text, plain, share, signed


def test_paired_interval_by_hand():
    """Differences .1, .2, .3: mean .2, sd .1, t(.975, 2) = 4.302653, half width
    4.302653 · .1 / √3 = .248414."""
    found = paired({0: 0.5, 1: 0.7, 2: 0.9, 7: 1.0}, {0: 0.4, 1: 0.5, 2: 0.6, 8: 0.0})
    assert found.n == 3 and found.mean == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - 0.248414, abs=1e-6)
    assert found.high == pytest.approx(0.2 + 0.248414, abs=1e-6)
    assert not found.above and not found.below
    assert difference_text(found) == "+.200 [−.048, +.448]"
    assert paired({0: 1.0}, {1: 1.0}) is None
    alone = paired({3: 0.5}, {3: 0.25})
    assert alone.low is None and not alone.above and difference_text(alone) == "+.250 (n=1)"


def test_mean_and_deviation():
    found = spread({0: 0.5, 1: 0.7, 2: float("nan")})
    assert (found.mean, found.n) == (pytest.approx(0.6), 2)
    assert found.sd == pytest.approx(0.1414214)  # sample deviation of two values .2 apart
    assert mean_text({0: 0.5, 1: 0.7}) == ".600 ± .141" and mean_text({0: 0.5}) == ".500"
    assert mean_text({}) == "–" and spread({}) is None
    assert mean_by_seed([{0: 1.0, 1: 2.0}, {1: 4.0, 2: 9.0}]) == {1: 3.0}


def test_numbers_as_papers_write_them():
    assert [share(v) for v in (0.8214, 1.0, -0.02, None)] == [".821", "1.000", "−.020", "–"]
    assert [signed(v) for v in (0.012, -0.012, 0.0004, -0.0004)] == ["+.012", "−.012", ".000",
                                                                     ".000"]
    assert [plain(v) for v in (0.5, 0.75, 10, 200)] == [".5", ".75", "10", "200"]


def made_up(scores, *, dataset="ur_fall", source="real", **labels):
    """Results of ``{method: {seed: device average}}`` in one cell."""
    base = {"dataset": dataset, "variant": "", "split": "frame", "rho": 0.5, "num_clients": 3,
            "labelled": 0, "public_labels": True, "server_labelled": 1.0,
            "mask_schedule": "static"} | labels
    return Results(tuple(
        Run(base | {"method": method, "seed": seed},
            {(FINAL, "client.avg_f1"): value, (FINAL, "client.best_f1"): value,
             (FINAL, "client.worst_f1"): value, (results.BEST_VAL, "client.avg_f1"): value},
            Path("/w/runs") / f"{method}{seed}", source, "hash", "c0de")
        for method, by_seed in scores.items() for seed, value in by_seed.items()))


def test_comparison_says_what_the_numbers_say():
    found = made_up({"ml_ecs": {0: 0.8, 1: 0.81, 2: 0.82}, "localpub": {0: 0.8, 1: 0.83, 2: 0.8},
                     "standalone": {0: 0.7, 1: 0.71, 2: 0.72}, "centralized": {0: 0.9}})
    shown = compare_all(found, "rho")
    text = render.markdown(shown)
    assert "| ρ=.5 | **ML-ECS** | **.810 ± .010** |" in text.replace("ML-ECS |", "**ML-ECS** |")
    assert "*.754*" in text  # the paper's figure beside ours, marked as not ours
    assert "**.900**" not in text  # the ceiling competes with none
    sentences = "\n".join(shown.sentences)
    assert "ML-ECS minus Standalone, macro-F1 of the devices: +.100 [+.100, +.100], 3 seeds; " \
        "ML-ECS is better" in sentences
    assert "ML-ECS minus Local + public" in sentences and "no difference is shown" in sentences
    assert "one seed says nothing" in sentences
    assert "highest mean of itself and Standalone in 3 of 3 cells" in sentences
    all_of_them = compare_all(made_up({name: {0: 0.5 + 0.01 * i} for i, name in enumerate(
        reversed(PUBLISHED))}), "rho")
    assert any("highest mean of the published methods in 3 of 3 cells" in sentence
               for sentence in all_of_them.sentences)
    assert "SIMULATED" not in text


def test_the_servers_differences_stand_cell_by_cell():
    found = made_up({"ml_ecs": {0: 0.8, 1: 0.9}, "localpub": {0: 0.8, 1: 0.8},
                     "private_only": {0: 0.7, 1: 0.7}})
    found = Results(tuple(run if run.labels["method"] == "private_only" else dataclasses.replace(
        run, values={**run.values, (FINAL, "server.f1"): run.values[FINAL, "client.avg_f1"] / 2})
        for run in found.runs))
    _, devices, server = compare_all(found, "rho").tables
    assert "of the devices" in devices.title and "of the server" in server.title
    assert server.columns == devices.columns == ("minus", "ρ=.5", "all")
    assert [row[0].text for row in devices.rows] == ["Local + public", "Private only"]
    (row,) = server.rows  # private_only has no server
    assert row[0].text == "Local + public" and row[1].text == row[2].text
    assert row[1].value == pytest.approx(0.025)


def test_a_users_own_method_is_compared_with_every_other():
    found = made_up({"localpub": {0: 0.8, 1: 0.81}, "mine.py": {0: 0.9, 1: 0.91}})
    shown = compare_all(found, "rho")
    assert [table.title for table in shown.tables if table.kind == "differences"] == [
        "mine.py minus each other method, macro-F1 of the devices, UR-Fall, frame split"]
    assert any(s.startswith("UR-Fall, frame split: mine.py minus Local + public, macro-F1 of the "
                            "devices: +.100") for s in shown.sentences)
    assert any("mine.py against Local + public, macro-F1 of the devices, 1 regime: better in 1"
               in s for s in regime.where_it_pays(found))


def test_every_dataset_is_scored_by_its_own_metric():
    """One sweep over classes and captions: no table of dashes."""
    classes = made_up({"ml_ecs": {0: 0.8}, "localpub": {0: 0.7}})
    captions = made_up({"ml_ecs": {0: 0.25}, "localpub": {0: 0.125}}, dataset="vast")
    captions = Results(tuple(dataclasses.replace(run, values={
        (selection, name.replace("f1", "rougeLsum")): value
        for (selection, name), value in run.values.items() if selection == FINAL})
        for run in captions.runs))
    both = Results(classes.runs + captions.runs)
    tables = compare_all(both, "rho").tables
    assert [table.title.split(",")[0] for table in tables if table.kind == "scores"] == [
        "macro-F1 on test data", "ROUGE-LSum on test data"]
    scores = {table.title: table for table in tables if table.kind == "scores"}
    assert [row[2].text for table in scores.values() for row in table.rows
            if row[2].tone != "quiet"] == [".800", ".700", ".250", ".125"]
    assert [heat.rows[0][1].text for heat in regime.heat_maps(both)] == ["+.100", "+.125"]
    # Where no round could be chosen (captions whose test rows are answered once), no best_val.
    widths = [any("best_val" in column for column in table.columns) for table in scores.values()]
    assert widths == [True, False] and "best_val" not in tables[-2].note


def test_no_round_is_chosen_of_captions_tested_once(tmp_path):
    summary = {"client": {"avg_rougeLsum": 0.25}, "best_val": {"client": {"avg_rougeLsum": 0.25}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text("{}\n" + json.dumps({"eval": {"val": {
        "after_amt": {"clients": {"rougeLsum": [0.5, 0.25]}}, "server": {"rougeLsum": 0.75}}}}))
    for every, chosen in ((0, {}), (2, {0: 0.25})):
        job = Job({"method": "ml_ecs", "seed": 0}, {"captions": {"test_every": every}})
        found = results.read([Outcome(job, tmp_path, Provenance(
            {"source": "real", "sha256": "d"}, "c0de"))])
        assert found.at("client.avg_rougeLsum", {}) == {0: 0.25}
        assert found.at("client.avg_rougeLsum", {}, results.BEST_VAL) == chosen
        assert found.at("validation.client.avg_rougeLsum", {}) == {0: 0.375}
        assert found.at("validation.server.rougeLsum", {}) == {0: 0.75}


def test_simulated_data_are_named_in_every_title():
    shown = compare_all(made_up({"ml_ecs": {0: 0.8}, "localpub": {0: 0.8}}, source="simulated"),
                        "rho")
    assert all("SIMULATED" in table.title for table in shown.tables)
    assert all("SIMULATED" in sentence for sentence in shown.sentences)


def test_paper_figures_stand_only_where_they_belong():
    assert paper.printed("ur_fall", "ml_ecs", "frame", 0.7, 3)["server.f1"] == 0.928
    assert paper.printed("ur_fall", "ml_ecs", "sequence", 0.7, 3) == {}
    assert paper.printed("ur_fall", "standalone", "frame", 0.7, 3) == {}
    for label in ({}, {"labelled": 25}, {"public_labels": False}, {"server_labelled": 0.1},
                  {"mask_schedule": "per_sample"}, {"uplink": "int8"}):
        found = made_up({"ml_ecs": {0: 0.8}}, **label)
        text = render.markdown(compare_all(found, *(label or ("rho",))))
        assert ("as printed" in text) == (not label)
    assert paper.printed("vast", "ml_ecs", "sequence", 0.8, 10)["client.worst_rougeLsum"] == 0.247


def test_where_collaboration_pays():
    better = made_up({"ml_ecs_plus": {0: 0.8, 1: 0.81, 2: 0.82}, "localpub": {
        0: 0.7, 1: 0.71, 2: 0.73}}, labelled=25, public_labels=False)
    equal = made_up({"ml_ecs_plus": {0: 0.8, 1: 0.81}, "localpub": {0: 0.81, 1: 0.8}})
    both = Results(better.runs + equal.runs)
    said = regime.where_it_pays(both)
    assert len(said) == 1
    assert "2 regimes: better in 1 (25 labels, public unlabelled, ρ=.5: +.097 [" in said[0]
    assert said[0].endswith("worse in 0.")
    assert regime.where_it_pays(made_up(
        {"ml_ecs_plus": {0: 0.9}, "localpub": {0: 0.5}}, labelled=25)) == []  # of one seed
    assert not regime.heat_maps(made_up({"ml_ecs_plus": {0: 0.8}}))  # nothing to compare with
    (heat,) = regime.heat_maps(both)
    assert heat.kind == "heat" and [cell.text for cell in heat.rows[0]] == [
        "ML-ECS+", "+.097", ".000"]


def test_levers_are_shown_by_what_chooses_them():
    """Two levers: validation prefers the one that test data do not."""
    def variant(name, test, validation):
        found = made_up({"ml_ecs_plus": {0: test, 1: test + 0.02}}, variant=name, split="sequence")
        return tuple(dataclasses.replace(run, values={**run.values, (
            FINAL, "validation.client.avg_f1"): validation}) for run in found.runs)

    found = Results(variant("", 0.7, 0.6) + variant("w/o LoRA", 0.75, 0.5)
                    + variant("+ encoders", 0.65, 0.625))
    shown = ablation.findings(parsed("ablation"), found)
    scores, test, validation = shown.tables
    assert [row[1].text for row in scores.rows] == ["ML-ECS+", "w/o LoRA", "+ encoders"]
    assert [row[4].text for row in scores.rows] == [".600 ± .000", ".500 ± .000", ".625 ± .000"]
    assert not any("lost" in column for column in scores.columns)
    assert test.rows[0][1].text == "−.050 [−.050, −.050]" and "validation" in validation.title
    assert validation.rows[0][1].text == "+.100 [+.100, +.100]"
    assert any("highest with + encoders (.625; ML-ECS+ as it is: .600); on test data that variant "
               "has .660, ML-ECS+ as it is .710." in sentence for sentence in shown.sentences)


def test_a_row_per_run_and_metric_leads_to_its_run(tmp_path):
    rows = results.tidy(made_up({"ml_ecs": {0: 0.8, 1: 0.5}}), Path("/w"))
    assert len(rows) == 2 * 4
    results.write(rows, tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert table == rows and table[0]["run"] == "runs/ml_ecs0"
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 9


def parsed(*arguments):
    return options.parse(["mlecs", *arguments], {s: tuple(a) for s, a in SYSTEMS.items()})


@pytest.mark.parametrize(("text", "seeds"), [
    ("3", (0, 1, 2)), ("10-12", (10, 11, 12)), ("7-7", (7,)), ("3,7", (3, 7)), ("1,0", (1, 0))])
def test_seeds_are_how_many_or_which(text, seeds):
    asked = parsed("table1", f"--seeds={text}", "--methods=ml_ecs", "--rho=0.5")
    assert asked.seeds == seeds and f"--seeds={text} " in asked.command
    jobs = table1.jobs(asked)
    assert [job.labels["seed"] for job in jobs[::2]] == list(seeds)
    assert {job.values["partition"]["seed"] for job in jobs} == set(seeds)


def test_grids_of_the_artefacts():
    asked = parsed("table1", "--seeds=5", "--data=real", "--splits=frame")
    jobs = table1.jobs(asked)
    assert len(jobs) == 12 * 3 * 5 and len({configuration_key(job, {}) for job in jobs}) == 180
    assert all(job.values["seed"] == job.values["partition"]["seed"] == job.labels["seed"]
               and job.values["data"]["source"] == "real" for job in jobs)
    assert {job.labels["seed"] for job in jobs[:36]} == {0}  # seed by seed
    assert asked.command == ("python -m mlecs_jax.repro mlecs table1 --preset=cpu --seeds=5 "
                             "--data=real --dataset=ur_fall --splits=frame")
    few = table2.jobs(parsed("table2", "--seeds=1", "--devices=3,50", "--splits=sequence"))
    assert [job.labels["num_clients"] for job in few] == [3] * 12 + [50] * 4
    without = {job.labels["variant"]: job.values["method"] for job in ablation.jobs(
        parsed("ablation", "--seeds=1", "--rho=0.5", "--splits=frame"))}
    assert not without["w/o MMA"]["mma"] and without["w/o MMA"]["ccl"] and without[""]["mma"]
    levers = ablation.jobs(parsed("ablation", "--seeds=1", "--rho=0.5", "--splits=sequence",
                                  "--methods=ml_ecs_plus", "--labelled=50,200",
                                  "--public=unlabelled,partly"))
    assert len(levers) == 4 * len(ablation.LEVERS) == len(
        {configuration_key(job, {}) for job in levers})
    assert all(parse_config(job.values) and not job.extras for job in levers)
    every = regime.jobs(parsed("regime", "--seeds=1", "--methods=ml_ecs"))
    assert {(j.labels["labelled"], regime.public_words(j.labels)) for j in every} == {
        (n, p) for n in (25, 50, 200, 0) for p in ("unlabelled", "10 % labelled", "labelled")}
    scarce = regime.jobs(parsed("regime", "--seeds=1", "--labelled=25", "--public=unlabelled"))
    assert {(j.labels["labelled"], regime.public_words(j.labels)) for j in scarce} == {
        (25, "unlabelled")}
    ten = regime.jobs(parsed("regime", "--seeds=1", "--labelled=25", "--public=partly",
                             "--devices=10", "--rho=0.5", "--methods=ml_ecs_plus,localpub"))
    assert {job.values["partition"]["num_clients"] for job in ten} == {10}
    assert {regime.words(job.labels) for job in ten} == {
        "10 devices, 25 labels, public 10 % labelled, ρ=.5"}
    # 12 methods × 3 kinds of labels × 80 cells, without those that differ in what nobody reads.
    whole = regime.jobs(parsed("regime", "--seeds=5"))
    assert len(whole) == 2880
    assert len({configuration_key(job, {}) for job in whole}) == 2880 - (9 + 5) * 80
    large = table2.jobs(parsed("table2", "--seeds=1", "--methods=ml_ecs"))
    assert {(j.labels["split"], j.labels["num_clients"] >= 50) for j in large} == {
        ("frame", False), ("sequence", False), ("sequence", True)}
    with pytest.raises(UserError, match="--public is 'some'"):
        parsed("regime", "--public=some")
    # Artefacts of one folder share runs: table 2's first cell is table 1's last.
    shared = {configuration_key(job, {}) for job in jobs} & {
        configuration_key(job, {}) for job in table2.jobs(parsed(
            "table2", "--seeds=1", "--devices=3", "--splits=frame", "--data=real"))}
    assert len(shared) == 12


@pytest.mark.parametrize(("method", "key"), [
    ("ml_ecs", "69e4ba086d"), ("ml_ecs_plus", "ee3fdd15b5"), ("standalone", "35e92eea98")])
def test_new_options_leave_the_keys_of_cached_runs(method, key):
    """The keys that the runs of docs/results.md were made under."""
    (job,) = table1.jobs(parsed("table1", "--seeds=1", "--data=real", "--splits=frame", "--rho=.5",
                                f"--methods={method}"))
    data = {"source": "real", "samples": 1, "sha256": "d"}
    assert configuration_key(job, data) == key
    job.values["plus"]["encoders"] = True
    assert configuration_key(job, data) != key


@pytest.mark.parametrize(("arguments", "message"), [
    (("table9",), "unknown artefact 'table9'"),
    (("table1", "--rho=many"), "--rho is 'many'"),
    (("table1", "--seeds=0"), "--seeds is '0'; give how many"),
    (("table1", "--seeds=9-5"), "--seeds is '9-5'; give how many"),
    (("table1", "--seeds=3,-7"), "--seeds is '3,-7'; give how many"),
    (("table1", "--seeds=few"), "--seeds is 'few'; give numbers"),
    (("table1", "strange"), "unknown argument 'strange'"),
    (("table1", "--config.lora.rnak=3"), "did you mean lora.rank"),
    (("table1", "--methods=ml_exc"), "unknown method 'ml_exc'"),
    (("table1", "--dataset=ur_fell"), "unknown config 'ur_fell'"),
    (("table1", "--name=a/b"), "--name is 'a/b'"),
    (("table1", "--devices=5"), "--devices means nothing to mlecs table1"),
    (("table1", "--config.partition.rho=0.3"), "use --rho"),
    (("table2", "--rho=.5,.8"), "takes one ρ"),
    (("comm", "--rho=.5,.8"), "takes one ρ"),
    (("ablation", "--methods=localpub"), "no variants of 'localpub'"),
    (("modality", "--labelled=50"), "--labelled means nothing to mlecs modality"),
    (("regime", "--public=partly", "--config.partition.server_labelled=0.3"), "use --public"),
    (("modality", "--methods=ml_exc"), "unknown method 'ml_exc'"),
    (("table2", "--methods=ml_exc"), "unknown method 'ml_exc'"),
    (("table1", "--methods=nowhere.py"), "there is no file nowhere.py"),
    (("table1", "--methods=json:dump_s"), "json has no function 'dump_s'"),
    (("table1", "--methods=ml_ecs,localpub,ml_ecs"), "has ml_ecs twice"),
    (("table1", "--rho=.5,0.50"), "has 0.5 twice"),
    (("table1", "--rho=,"), "--rho is ','; give numbers"),
    (("table1", "--methods="), "--methods is ''; give names"),
    (("ablation", "--config.method.mma=False"), "method.mma does nothing in mlecs ablation"),
    (("table1", "--dataset=mosi"), "--dataset=mosi is for mega"),
    (("table1", "--dataset=ur_fall:smoke"), "use --dataset=ur_fall --preset=smoke"),
])
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        SYSTEMS["mlecs"][arguments[0] if arguments[0] in SYSTEMS["mlecs"] else "table1"].jobs(
            parsed(*arguments))


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def build(setting:\n")
    with pytest.raises(UserError, match=r"mine\.py is no Python file: .*, line 1"):
        table1.jobs(parsed("table1", f"--methods={tmp_path / 'mine.py'}"))


def test_settings_that_lack_methods_or_seeds_are_counted_as_what_they_are():
    """Three devices with all methods and three seeds, fifty with two methods and two seeds."""
    few = made_up({"ml_ecs": {0: 0.7, 1: 0.7}, "localpub": {0: 0.9, 1: 0.9}}, num_clients=50)
    every = made_up({"ml_ecs": {0: 0.8, 1: 0.8, 2: 0.8}, "standalone": {0: 0.7, 1: 0.7, 2: 0.7},
                     "localpub": {0: 0.75, 1: 0.75, 2: 0.75}})
    shown = compare_all(Results(every.runs + few.runs), "num_clients")
    scores, differences = shown.tables
    assert [row[2].text for row in scores.rows if row[0].text == "N=50"] == [
        ".700 ± .000 (n=2)", ".900 ± .000 (n=2)"]
    assert "over 3 seeds, or as many as n says" in scores.note
    # Over all of them ML-ECS would be .075 below Local + public; Standalone ran in one only.
    assert [row[-1].text[:5] for row in differences.rows] == ["+.100", "+.050"]
    assert "in which every method has run, 1 of 2 settings" in differences.note
    assert "in 3 of 3 cells (1 setting × avg, best, worst, server; ties count)" in "".join(
        shown.sentences)


def test_the_highest_mean_is_bold_whosever_it_is():
    shown = compare_all(made_up({"ml_ecs": {0: 0.8}, "localpub": {0: 0.85}, "centralized": {
        0: 0.9}}), "rho")
    strong = [row[1].text for row in shown.tables[0].rows if row[2].strong]
    assert strong == ["Local + public"]
    alone = compare_all(made_up({"ml_ecs": {0: 0.8}}), "rho")
    assert not any(cell.strong for row in alone.tables[0].rows for cell in row)


def test_ranks_are_over_the_seeds_that_all_have():
    """Standalone is ahead on both common seeds; its third, a hard one that ML-ECS has not run yet,
    takes nothing from it."""
    shown = compare_all(made_up({"ml_ecs": {0: 0.90, 1: 0.90},
                                 "standalone": {0: 0.91, 1: 0.91, 2: 0.70}}), "rho")
    strong = [row[1].text for row in shown.tables[0].rows if row[2].strong]
    assert strong == ["Standalone"]
    assert "highest mean, over the seeds that all have;" in shown.tables[0].note
    assert "Standalone, over the seeds that all have in 0 of 3 cells" in "".join(shown.sentences)
    assert common_means([{0: 1.0, 1: 3.0, 2: float("nan")}, {}, {0: 5.0, 2: 1.0}]) == [
        1.0, None, 5.0]
    assert common_means([{0: 1.0}, {1: 2.0}]) == [None, None] and common_means([]) == []


def test_code_version_follows_what_computes_the_numbers(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text('"""Doc."""\nfrom mlecs_jax import train\n\n\ndef build(setting):\n'
                   '    return 1\n')
    first = code_version(str(own))
    other = tmp_path / "other.py"
    other.write_text('"""Others."""\n# why\nfrom mlecs_jax import train\ndef build(setting): '
                     'return 1\n')
    assert code_version(str(other)) == first  # comments and layout compute nothing
    third = tmp_path / "third.py"
    third.write_text("from mlecs_jax import train\ndef build(setting): return 2\n")
    assert code_version(str(third)) != first
    assert code_version("ml_ecs") != code_version("localpub") == code_version("standalone")


def test_code_version_follows_what_a_user_imports_of_their_own(tmp_path, monkeypatch):
    """By file or by module, relative or not, beside the method or elsewhere on Python's path; and
    in one process, since every run executes a user's file anew."""
    package, elsewhere = tmp_path / "mypackage", tmp_path / "elsewhere"
    (package / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (package / "__init__.py").write_text("")
    deep, helper = package / "deep" / "__init__.py", package / "helper.py"
    lib = elsewhere / "lib.py"
    deep.write_text("RANK = 1\n")
    (package / "method.py").write_text(
        "from mypackage.helper import scale\nfrom .deep import RANK\n"
        "from mlecs_jax.methods import fedilora\n\n\ndef build(setting):\n    return scale\n")
    helper.write_text("scale = 1\n")
    mine, sibling, lone = (tmp_path / name for name in ("mine.py", "sibling.py", "lone.py"))
    mine.write_text("import sibling\nimport lib\n\n\ndef build(setting):\n    return 1\n")
    sibling.write_text("import json\n")
    lone.write_text("import sibling\nfrom mlecs_jax import methods\n")
    lib.write_text("import numpy\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(elsewhere)
    module, file, top = "mypackage.method:build", f"{mine}", "lone:build"
    assert code_version(f"{file}:build") == code_version(file) != code_version(module)
    for entry in (module, top):
        reached = {path for path, _ in code_version_module._reached(entry)}
        assert Path(fedilora.__file__) in reached
    assert not any("numpy" in path.parts for path, _ in code_version_module._reached(file))
    for changed, entry in ((helper, module), (package / "method.py", module), (deep, module),
                           (sibling, file), (lib, file), (mine, file), (sibling, top)):
        known = code_version(entry)
        changed.write_text(changed.read_text() + f"MORE = '{entry}'\n")
        assert code_version(entry) != known, changed


def test_a_users_method_may_read_the_options_of_any():
    def key(method, ranks):
        (job,) = table1.jobs(parsed(
            "table1", "--seeds=1", "--splits=frame", "--rho=.5", "--methods=fedilora",
            f"--config.method.fedilora.ranks={ranks}"))
        job.values["method"]["name"] = method
        return configuration_key(job, {})

    assert key("mine.py", "24,16,8") != key("mine.py", "4,4,4")
    assert key("ml_ecs", "24,16,8") == key("ml_ecs", "4,4,4")


def test_a_fix_makes_runs_again_where_it_changed_them():
    """The server of localpub_mixed draws otherwise where some public labels are missing."""
    def key(*arguments):
        (job,) = regime.jobs(parsed("regime", "--seeds=1", "--methods=localpub_mixed",
                                    "--splits=frame", "--rho=.5", "--labelled=50", *arguments))
        return configuration_key(job, {})

    with_fix = key("--public=labelled"), key("--public=partly")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(job_module.REVISED, "localpub_mixed", lambda values: False)
        assert key("--public=labelled") == with_fix[0] and key("--public=partly") != with_fix[1]
