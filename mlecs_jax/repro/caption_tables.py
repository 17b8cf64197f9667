"""What a comparison on captions shows beside the leading score: the other scores, what a missing
modality costs, and captions to read."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Iterator

import numpy as np

from mlecs_jax.metrics import rouge
from mlecs_jax.report.axes import counted
from mlecs_jax.report.blocks import proper
from mlecs_jax.repro.comparison import cells_of, data_words, score_table
from mlecs_jax.repro.job import Label
from mlecs_jax.repro.results import FINAL, Results, Run
from mlecs_jax.repro.statistics import Difference, paired
from mlecs_jax.repro.tables import (
    TEXTS,
    Cell,
    Findings,
    Labels,
    Table,
    difference_cell,
    difference_text,
    plain,
    share,
)
from mlecs_jax.runlog import SAMPLES

MASKED = ("ml_ecs", "standalone")
"""Methods whose trained nodes caption again without each modality."""
READ_FROM = "ml_ecs"  # whose captions are shown
SHOWN, SEED = 20, 0  # captions to read, and of their draw
_LONGEST = 220  # characters of an input shown


def added(found: Findings, results: Results) -> Findings:
    """The findings, with the tables of captions where there are such runs."""
    tables, sentences = [*found.tables], [*found.sentences]
    for dataset in results.distinct("dataset", {}):
        for split in results.distinct("split", {"dataset": dataset}):
            where: dict[str, Label] = {"dataset": dataset, "split": split}
            runs = results.of(where)
            if not any((FINAL, f"client.avg_{rouge.PRIMARY}") in run.values for run in runs):
                continue
            cells = cells_of(results, where, ("rho",))
            tables += [score_table(results, where, cells, other=metric)
                       for metric in other_metrics(runs)]
            table, said = masking_table(results, where)
            tables += [table] if table else []
            sentences += said
            if (samples := samples_table(results, where)) is not None:
                tables.append(samples)
    return dataclasses.replace(found, tables=tuple(tables), sentences=tuple(sentences))


def other_metrics(runs: list[Run]) -> list[str]:
    """Scores of captions that the runs have beside the leading one: ROUGE, then BERTScore."""
    there = {name.removeprefix("client.avg_") for run in runs for _, name in run.values
             if name.startswith("client.avg_")}
    known = [name for name in rouge.NAMES if name != rouge.PRIMARY and name in there]
    return known + sorted(name for name in there if name.startswith("bertscore_"))


def masking_table(results: Results, where: Labels) -> tuple[Table | None, list[str]]:
    """Change of ROUGE-LSum by each modality that is taken from trained nodes, per method: of the
    devices and the server at each ρ, of both over all, and of the devices per corpus."""
    rhos = results.distinct("rho", where)
    masked = [method for method in MASKED if any(
        _prefix("") in name for run in results.of({**where, "method": method})
        for _, name in run.values)]
    corpora = list(dict.fromkeys(
        name.rpartition(".corpus.")[2] for run in results.of(where) for _, name in run.values
        if name.startswith(_prefix("")) and ".corpus." in name))
    rows, said = [], []
    for method in masked:
        group = {**where, "method": method, "variant": ""}
        for modality in _modalities(results, group):
            overall = {who: _change(results, group, modality, who)
                       for who in ("device", "server")}
            rows.append((
                Cell(f"{proper(method)} without {modality}"),
                *(difference_cell(_change(results, {**group, "rho": rho}, modality, who),
                                  {**group, "rho": rho})
                  for who in ("device", "server") for rho in rhos),
                difference_cell(overall["device"], None), difference_cell(overall["server"], None),
                *(difference_cell(_change(results, group, modality, "device", f"corpus.{corpus}"),
                                  None) for corpus in corpora)))
            said += [_sentence(results, where, method, modality, who, found)
                     for who, found in overall.items() if found]
    if not rows:
        return None, []
    settings = [f"{who}, ρ={plain(float(rho))}" for who in ("devices", "server")
                for rho in rhos]
    return Table(
        f"What a modality is worth: ROUGE-LSum without it minus with it, "
        f"{data_words(results, where)}",
        ("nodes of", *settings, "devices, all", "server, all",
         *(f"devices, {corpus}" for corpus in corpora)), tuple(rows),
        "The same trained nodes caption the same test clips twice, and only clips count that have "
        "the modality on that node; some are left with none. Mean change and 95 % confidence "
        "interval (Student's t) over seeds: of each the mean over its devices that have the "
        "modality and, in “all”, over ρ, since nodes of one seed share their test clips.",
        "differences"), said


def _sentence(results: Results, where: Labels, method: str, modality: str, who: str,
              found: Difference) -> str:
    nodes = "devices" if who == "device" else "server"
    return (f"{data_words(results, where)}: {modality} taken from trained nodes of "
            f"{proper(method)} changes the ROUGE-LSum of the {nodes} by {difference_text(found)}, "
            + counted(found.n, "seed") + ".")


def _prefix(modality: str) -> str:
    return f"extra.masking.{modality}"


def _modalities(results: Results, group: Labels) -> list[str]:
    return list(dict.fromkeys(
        name.split(".")[2] for run in results.of(group) for _, name in run.values
        if name.startswith(_prefix(""))))


def _change(
    results: Results, group: Labels, modality: str, who: str, what: str = "change"
) -> Difference | None:
    """Mean change over seeds, of each the mean over its nodes of a kind in the runs of a group;
    None where no node has the modality. A seed that lacks a ρ of the group is left out."""
    pattern = re.compile(re.escape(_prefix(modality)) + rf"\.{who}\w*\.{re.escape(what)}")
    changes: dict[int, list[float]] = {}
    every = set(results.distinct("rho", group))
    for run in results.of(group):
        if set(results.distinct("rho", {**group, "seed": run.labels["seed"]})) != every:
            continue
        found = [value for (_, name), value in run.values.items() if pattern.fullmatch(name)]
        changes.setdefault(int(run.labels["seed"]), []).extend(found)
    by_seed = {seed: statistics.fmean(own) for seed, own in changes.items() if own}
    return paired(by_seed, dict.fromkeys(by_seed, 0.0))


def samples_table(results: Results, where: Labels) -> Table | None:
    """:data:`SHOWN` of the test captions that ML-ECS's runs wrote down, drawn by a fixed seed."""
    runs = sorted(results.of({**where, "method": READ_FROM}),
                  key=lambda run: (float(run.labels["rho"]), int(run.labels["seed"])))
    written = [(run, sample) for run in runs for sample in _samples(run)]
    if not written:
        return None
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(written))[:SHOWN])
    rows = tuple(_row(*written[i]) for i in chosen)
    return Table(
        f"Captions to read, {proper(READ_FROM)}, {data_words(results, where)}",
        ("ρ, seed", "node", "has", "the clip in words", "reference", "output", "ROUGE-LSum"), rows,
        f"{len(rows)} of the {len(written)} test captions in the runs' samples.jsonl, drawn at "
        "random and not chosen by score. Of the clip a node sees what it has.", TEXTS, names=6)


def _samples(run: Run) -> Iterator[dict[str, object]]:
    path = run.folder / SAMPLES
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)


def _row(run: Run, sample: dict[str, object]) -> tuple[Cell, ...]:
    held, score = sample["modalities"], sample[rouge.PRIMARY]
    assert isinstance(held, list) and isinstance(score, int | float)
    seed = f"{plain(float(run.labels['rho']))}, {run.labels['seed']}"
    texts = (sample["node"], ", ".join(held) or "nothing", _short(sample["inputs"]),
             _short(sample["reference"]), _short(sample["generated"]) or "(nothing)")
    return (Cell(seed), *(Cell(str(text)) for text in texts),
            Cell(share(float(score)), dict(run.labels)))


def _short(text: object) -> str:
    """In one line, cut where it is long."""
    line = " ".join(str(text or "").split())
    return line if len(line) <= _LONGEST else line[:_LONGEST].rsplit(" ", 1)[0] + " …"
