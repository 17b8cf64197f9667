"""What a comparison on captions shows, of made-up runs with figures worked by hand."""

import json

import pytest

from mlecs_jax.repro import render, results
from mlecs_jax.repro.artefacts import table1
from mlecs_jax.repro.job import configuration_key
from mlecs_jax.repro.results import Results, Run
from tests.repro.command_line import parsed

METHODS = ("ml_ecs", "standalone", "localpub", "ml_ecs_plus")
COMMAND = ("table1", "--dataset=vast", f"--methods={','.join(METHODS)}", "--seeds=3",
           "--rho=0.5,0.8", "--data=real")


def test_the_jobs_of_the_comparison():
    jobs = table1.jobs(parsed(*COMMAND))
    assert len(jobs) == 4 * 3 * 2 and len({configuration_key(job, {}) for job in jobs}) == 24
    assert {job.labels["split"] for job in jobs} == {"sequence"}
    assert {job.values["data"]["source"] for job in jobs} == {"real"}
    assert {(job.labels["method"], job.extras) for job in jobs} == {
        ("ml_ecs", ("masking",)), ("standalone", ("masking",)), ("localpub", ()),
        ("ml_ecs_plus", ())}
    (usual,) = {job.extras for job in table1.jobs(parsed("table1", "--seeds=1"))}
    assert usual == ()


def test_all_clips_have_the_key_of_runs_before_there_was_a_choice():
    (job, *_) = table1.jobs(parsed(*COMMAND))
    key = configuration_key(job, {})
    assert job.values["captions"].pop("clips") == 0
    assert configuration_key(job, {}) == key
    job.values["captions"]["clips"] = 50
    assert configuration_key(job, {}) != key


def change(value, rows=9, **corpora):
    return {"change": value, "rows": rows, **({"corpus": corpora} if corpora else {})}


def masking(seed):
    """Device 0 has vision in every seed, device 1 in seed 0 alone; nobody has audio."""
    vision = {"device_0": change(-0.02 - 0.01 * seed, msrvtt=-0.04, youcook2=0.0),
              "server": change(-0.01 * (seed + 1))}
    if not seed:
        vision["device_1"] = change(-0.04, msrvtt=-0.06)
    return {"vision": vision, "audio": {}}


def made_up_run(folder, method, seed, rho, value):
    scores = {name: value + shift for name, shift in (
        ("rougeLsum", 0.0), ("rouge1", 0.1), ("rouge2", -0.1), ("rougeL", 0.05),
        ("bertscore_tiny", 0.2))}
    client = {f"{key}_{name}": score + shift for name, score in scores.items()
              for key, shift in (("avg", 0.0), ("best", 0.02), ("worst", -0.02))}
    summary = {"client": client | {"per_client": []}, "server": scores,
               "best_val": {"round": 1, "client": {"avg_rougeLsum": value},
                            "server": {"rougeLsum": value}}}
    if method == "ml_ecs":
        summary["extra"] = {"masking": masking(seed)}
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps({
        "node": "server" if i % 2 else "device 0", "row": i, "modalities": ["vision", "audio"][:i],
        "reference": f"reference {seed} {rho} {i}", "generated": f"output | {i}" if i else "",
        "rougeLsum": 0.25, "inputs": f"seen {i}\n{'word ' * 100}", "data_source": "real",
    }) + "\n" for i in range(6)))
    labels = {"dataset": "vast", "method": method, "variant": "", "split": "sequence", "rho": rho,
              "num_clients": 3, "labelled": 0, "public_labels": True, "server_labelled": 1.0,
              "mask_schedule": "static", "seed": seed}
    return Run(labels, dict(results._numbers(summary)), folder, "real", "hash", "c0de")


@pytest.fixture
def found(tmp_path):
    runs = Results(tuple(
        made_up_run(tmp_path / f"{method}-{seed}-{rho}", method, seed, rho, 0.3 + 0.01 * i)
        for i, method in enumerate(reversed(METHODS)) for seed in range(3) for rho in (0.5, 0.8)))
    return table1.findings(parsed(*COMMAND), runs)


def test_every_score_has_average_best_worst_and_server(found):
    text = render.markdown(found)
    for name in ("ROUGE-LSum", "ROUGE-1", "ROUGE-2", "ROUGE-L", "BERTScore (tiny)"):
        assert f"### {name} on test data, VAST, sequence split" in text
    assert "Local + public" in text
    (rouge1,) = [t for t in found.tables if t.title.startswith("ROUGE-1 ")]
    assert rouge1.columns == ("setting", "method", "devices, avg", "best", "worst", "server")
    (row,) = [row for row in rouge1.rows if row[0].text == "ρ=.8" and row[1].text == "ML-ECS"]
    assert [cell.text.split(" ")[0] for cell in row[2:]] == [".430", ".450", ".410", ".430"]
    assert "as printed" not in "".join(cell.text for row in rouge1.rows for cell in row)
    (leading,) = [t for t in found.tables if t.title.startswith("ROUGE-LSum on")]
    assert any("as printed" in row[1].text for row in leading.rows)  # the paper's, at ρ = .8


def test_what_a_modality_is_worth_is_counted_over_seeds(found):
    """Seed by seed −.03 (the mean of device 0's −.02 and device 1's −.04), −.03 and −.04; the
    server's −.01, −.02 and −.03. Both ρ have the same figures, which are no further samples."""
    (table,) = [t for t in found.tables if t.title.startswith("What a modality is worth")]
    (row,) = table.rows
    assert row[0].text == "ML-ECS without vision"
    named = dict(zip(table.columns, row, strict=True))
    assert named["devices, ρ=.5"].value == pytest.approx(-0.1 / 3)
    assert named["devices, all"].value == pytest.approx(-0.1 / 3)
    assert named["server, all"].value == pytest.approx(-0.02)
    assert named["devices, msrvtt"].value == pytest.approx((-0.05 - 0.04 - 0.04) / 3)
    assert named["devices, youcook2"].value == pytest.approx(0)
    # Of three numbers .0333 ± .0058 (sample deviation): t(.975, 2) = 4.302653.
    half = 4.302653 * 0.005773503 / 3**0.5
    for column in ("devices, ρ=.5", "devices, all"):
        assert named[column].low == pytest.approx(-0.1 / 3 - half, abs=1e-6)
    assert named["devices, ρ=.5"].tone == "down"
    said = [s for s in found.sentences if "vision taken from trained nodes of ML-ECS" in s]
    assert len(said) == 2 and "of the devices by −.033 [" in said[0] and "3 seeds" in said[0]


def test_captions_to_read_are_drawn_and_stand_in_markdown_alone(found, capsys):
    from rich.console import Console

    (table,) = [t for t in found.tables if t.title.startswith("Captions to read, ML-ECS")]
    assert len(table.rows) == 20 and "20 of the 36 test captions" in table.note
    assert len({row[4].text for row in table.rows}) == 20
    references = {f"reference {seed} {rho} {i}" for seed in range(3) for rho in (0.5, 0.8)
                  for i in range(6)}
    assert {row[4].text for row in table.rows} < references
    assert {row[2].text for row in table.rows} <= {"nothing", "vision", "vision, audio"}
    assert all(len(row[3].text) < 230 and row[3].text.endswith("…") for row in table.rows)
    lines = render.markdown(found).splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.startswith("### Captions to read")]
    body = [line for line in lines[head:] if line.startswith("| .")]
    assert len(body) == 20 and all(line.replace("\\|", "").count("|") == 8 for line in body)
    render.print_findings(found, Console())
    assert "Captions to read" not in capsys.readouterr().out
