"""Statistics, tables and what is said of them, against figures worked by hand."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from mlecs_jax.repro import paper, render, results
from mlecs_jax.repro.artefacts import ablation, regime
from mlecs_jax.repro.comparison import compare_all
from mlecs_jax.repro.engine import Outcome
from mlecs_jax.repro.job import Job, Provenance
from mlecs_jax.repro.methods import PUBLISHED
from mlecs_jax.repro.results import FINAL, Results, Run
from mlecs_jax.repro.statistics import common_means, mean_by_seed, paired, spread
from mlecs_jax.repro.tables import difference_text, mean_text, plain, share, signed
from tests.repro.command_line import parsed


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
               "has .660, ML-ECS+ as it is .710; 2 seeds." in said for said in shown.sentences)


def test_a_row_per_run_and_metric_leads_to_its_run(tmp_path):
    rows = results.tidy(made_up({"ml_ecs": {0: 0.8, 1: 0.5}}), Path("/w"))
    assert len(rows) == 2 * 4
    results.write(rows, tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert table == rows and table[0]["run"] == "runs/ml_ecs0"
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 9


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
    assert "in 3 of 3 cells (1 setting × avg, best, worst; ties count)" in "".join(
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
    assert common_means({"a": {0: 1.0, 1: 3.0, 2: float("nan")}, "b": {},
                         "c": {0: 5.0, 2: 1.0}}) == {"a": 1.0, "c": 5.0}
    assert common_means({"a": {0: 1.0}, "b": {1: 2.0}}) == {} and common_means({}) == {}
