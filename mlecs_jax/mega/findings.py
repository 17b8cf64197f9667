"""What the runs of an artefact show: scores, paired differences, the paper's figures beside them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

from mlecs_jax.mega import adapter_kinds, published
from mlecs_jax.mega import latency as latencies
from mlecs_jax.mega.adapter_kinds import AT_OUTPUT, BIAS, POOLED, SHARED
from mlecs_jax.mega.controls import ALONE, FEDAVG
from mlecs_jax.mega.runner import LATENCY, PARAMS
from mlecs_jax.report.blocks import proper
from mlecs_jax.repro.comparison import data_words, num_seeds, ranked_words, seeds_words, verdict
from mlecs_jax.repro.job import Label
from mlecs_jax.repro.options import Options
from mlecs_jax.repro.results import FINAL, Results, Run
from mlecs_jax.repro.statistics import common_means, paired
from mlecs_jax.repro.tables import (
    Cell,
    Findings,
    Labels,
    Table,
    difference_cell,
    difference_text,
    mark_best,
    mean_text,
    share,
)

OURS, FULL = "mega_ce2", "full"
SYNC, LIKE_OURS = "synchronous", "our recipe"
SCORES = {"acc2_non0": "Acc2 non0", "f1_non0": "F1 non0", "macro_f1_non0": "macro F1 non0",
          "acc2_has0": "Acc2 has0", "acc7": "Acc7", "f1_7": "F1, 7 classes",
          "macro_f1_7": "macro F1, 7 classes", "mae": "MAE", "corr": "Corr"}
COMPUTE_GOALS = {"small": 5.0, "paper": 45.0}
"""Milliseconds of compute by model; which response they are of is said with them."""
POINT = 0.01
"""Of Acc2, by which the federated model may be below the centralised one."""
LOWER = ("mae",)
MULT, FEDERATED = "mult", (OURS, ALONE, FEDAVG)
KINDS = {"client": "personalised", "server": "global"}
PAIRED = ("Paired by seed (same split, partition and clock), mean difference and 95 % confidence "
          "interval (Student's t over seeds), marked where it excludes 0; no correction for the "
          "number of comparisons. A lower MAE is better.")
PRINTED = ("Grey: as the paper prints them; it splits at random, does not say which Acc2, and its "
           "F1 cannot be that of the same binary predictions.")


@dataclasses.dataclass(frozen=True)
class Side:
    """One row of a table of scores.

    Attributes:
      name: for people.
      labels: of the runs.
      group: ``client`` (each segment by its own edge's model) or ``server`` (the one model).
      printed: the paper's figures, where it has this row.
    """

    name: str
    labels: Labels
    group: str
    printed: published.Printed | None = None

    def at(self, results: Results, score: str) -> dict[int, float]:
        """``{seed: value}``."""
        return results.at(f"{self.group}.{score}", self.labels)


def settings(results: Results) -> Iterator[dict[str, Label]]:
    """Every dataset and split of the results."""
    for dataset in results.distinct("dataset", {}):
        for split in results.distinct("split", {"dataset": dataset}):
            yield {"dataset": dataset, "split": split}


def score_table(results: Results, where: Labels, title: str, sides: Sequence[Side],
                note: str) -> Table:
    """Mean ± standard deviation of every score, the best of a column marked, and what the paper
    prints."""
    values = [[side.at(results, score) for score in SCORES] for side in sides]
    seeds = num_seeds(results, where)
    printed = published.COLUMNS if any(side.printed for side in sides) else ()
    rows = [(Cell(side.name, side.labels), *(Cell(mean_text(v, seeds), side.labels) for v in row),
             *(Cell(share(side.printed[i]) if side.printed else "", tone="quiet")
               for i in range(len(printed))))
            for side, row in zip(sides, values, strict=True)]
    ranked = [[{seed: -figure if score in LOWER else figure for seed, figure in v.items()}
               for score, v in zip(SCORES, row, strict=True)] for row in values]
    return Table(
        f"{title}, {data_words(results, where)}",
        ("", *SCORES.values(), *(f"paper: {name}" for name in printed)),
        mark_best(rows, ranked, [True] * len(rows)),
        f"Mean ± standard deviation over {seeds_words(results, where)}; bold: the best mean of a "
        f"column{ranked_words(results, where)}. {note}" + (f" {PRINTED}" if printed else ""))


def caution(results: Results, where: Labels) -> str:
    """What the runs say of their data, as a sentence; empty where they say nothing."""
    for run in results.of(where):
        summary = run.folder / "summary.json"
        said = json.loads(summary.read_text()).get("caution") if summary.exists() else None
        if said:
            return f" Data: {said}."
    return ""


def difference_table(results: Results, where: Labels, title: str,
                     pairs: Sequence[tuple[str, Side, Side]]) -> Table:
    """Paired differences, first side minus second, of every score."""
    return Table(f"{title}, {data_words(results, where)}", ("", *SCORES.values()), tuple(
        (Cell(name), *(difference_cell(paired(a.at(results, score), b.at(results, score)),
                                       a.labels) for score in SCORES))
        for name, a, b in pairs), PAIRED)


def sentence(results: Results, where: Labels, a: Side, b: Side, score: str) -> list[str]:
    """What a paired difference says; nothing where there is none."""
    found = paired(a.at(results, score), b.at(results, score))
    if found is None:
        return []
    seeds = f", {found.n} seeds" if found.n > 1 else ""
    return [f"{data_words(results, where)}: {a.name} minus {b.name}, {SCORES[score]}: "
            f"{difference_text(found)}{seeds}; {verdict(a.name, found, score in LOWER)}."]


def comparison(options: Options, results: Results) -> Findings:
    """Tables 1 and 2: all models, and what Mega-CE² gains or loses against each."""
    del options
    tables, said = [], []
    for where in settings(results):
        sides = _models(results, where)
        tables.append(score_table(
            results, where, "Test scores", sides,
            "Mega-CE² and the rows down to LF-LSTM, FedAvg are trained on unlike edges; the others "
            "centrally, on all training segments. Synchronous, global: FedAvg of MulT over the "
            "ends. Edges alone: no cloud. Our recipe: batches, rates and passes of the three-tier "
            "run. Personalised, and edges alone: each test segment by its own edge; which edge "
            f"that is says something about the label.{caution(results, where)}"))
        said += _goals(results, where, sides)
        for ours in (side for side in sides
                     if side.labels["method"] == OURS and not side.labels["variant"]):
            others = [side for side in sides if side != ours]
            if others:
                tables.append(difference_table(
                    results, where, f"{ours.name}, minus each other",
                    [(f"minus {other.name}", ours, other) for other in others]))
            if ours.group == "client":
                said += [line for other in others
                         for line in sentence(results, where, ours, other, "acc2_non0")]
    return Findings(tuple(tables), tuple(said))


def _models(results: Results, where: Labels) -> list[Side]:
    """Rows of Tables 1 and 2 that have runs."""
    sides = []
    for method in results.distinct("method", where):
        printed = published.COMPARED.get(str(where["dataset"]), {}).get(str(method))
        for variant in results.distinct("variant", {**where, "method": method}):
            labels = {**where, "method": method, "variant": variant}
            name = ", ".join(filter(None, (proper(str(method)), str(variant))))
            if method == OURS:
                sides += [Side(f"{name}, {word}", labels, group,
                               printed if group == "client" and not variant else None)
                          for group, word in KINDS.items()]
            else:
                sides.append(Side(name, labels, "client" if method == ALONE else "server",
                                  printed if not variant else None))
    return sides


def _goals(results: Results, where: Labels, sides: Sequence[Side]) -> list[str]:
    """Whether Mega-CE² is first among the federated, and near the centralised model."""
    means = common_means({side.name: side.at(results, "acc2_non0") for side in sides
                          if side.labels["method"] in FEDERATED})
    data, said = data_words(results, where), []
    if len(means) > len(KINDS):
        first = max(means, key=lambda name: means[name])
        said.append(f"{data}: of the {len(means)} federated rows, {first} has the highest mean "
                    f"{SCORES['acc2_non0']}{ranked_words(results, where)}, {share(means[first])}.")
    for ours in sides:
        if ours.labels["method"] != OURS or ours.labels["variant"]:
            continue
        for other in (side for side in sides if side.labels["method"] == MULT):
            found = paired(*(side.at(results, "acc2_non0") for side in (ours, other)))
            if found is None:
                continue
            near, low, high = found.mean >= -POINT, found.low, found.high
            shown = ""
            if low is not None and high is not None:
                whole = low >= -POINT or high < -POINT
                shown = "; so is the whole interval" if whole else "; the interval holds both"
            said.append(f"{data}: {ours.name} is {'no more' if near else 'more'} than 1 point of "
                        f"{SCORES['acc2_non0']} below {other.name}, {difference_text(found)}"
                        f"{shown}.")
    return said


def ablation(options: Options, results: Results) -> Findings:
    """Table 4: fewer modalities or targets, against the whole model."""
    del options
    tables, said = [], []
    for where in settings(results):
        printed = published.ABLATION.get(str(where["dataset"]), {})
        sides = {(variant, group): Side(f"{variant}, {word}", {**where, "variant": variant}, group,
                                        printed.get(variant) if group == "client" else None)
                 for variant in results.distinct("variant", where)
                 for group, word in KINDS.items()}
        tables.append(score_table(
            results, where, "Modalities and targets", list(sides.values()),
            "Alone: no other modality is read; adapters stand beside cross-modal transformers, of "
            "which there are none then, so that personalised is global. Target: the one stream "
            "that reads the two others."))
        pairs = [(side.name, side, sides[FULL, group]) for (variant, group), side in sides.items()
                 if variant != FULL and (FULL, group) in sides]
        if pairs:
            tables.append(difference_table(results, where, "Minus the full model", pairs))
            said += [line for _, a, b in pairs if a.group == "client"
                     for line in sentence(results, where, a, b, "mae")]
    return Findings(tuple(tables), tuple(said))


def adapters(options: Options, results: Results) -> Findings:
    """What personalisation gains over the global model of the same run, and what it sends."""
    del options
    tables, said = [], []
    for where in settings(results):
        kinds = {name: Side(name, where, f"extra.personal.{name}.client")
                 for name in adapter_kinds.KINDS}
        untuned = Side("global", where, "server")
        tables.append(score_table(
            results, where, "Adapters", [untuned, *kinds.values()],
            "All of the same runs, with their global model frozen. Shared: one block beside every "
            "cross-modal transformer; unshared: one each; added to the prediction: one block whose "
            "output does not pass through the model. Controls: one shared block tuned on the "
            "segments of all edges, and for each edge the median of its training residuals, added "
            f"to every prediction.{caution(results, where)}"))
        pairs = [(f"{name} minus global", side, untuned) for name, side in kinds.items()]
        tables.append(difference_table(results, where, "What adapters give", pairs))
        tables.append(difference_table(
            results, where, "Against the other reading of ⊕, and the controls",
            [(f"{SHARED} minus {name}", kinds[SHARED], kinds[name])
             for name in (AT_OUTPUT, POOLED, BIAS)]))
        tables.append(_sizes(results, where))
        said += _gain(results, where, kinds, untuned)
        said += [line for _, a, b in pairs for score in ("mae", "acc2_non0")
                 for line in sentence(results, where, a, b, score)]
    return Findings(tuple(tables), tuple(said))


def _gain(results: Results, where: Labels, kinds: Mapping[str, Side], untuned: Side) -> list[str]:
    """Whether an edge's own adapter gains, and more than either control does."""
    rivals = {"the global model": untuned, "one adapter for all edges": kinds[POOLED],
              "a constant of each edge": kinds[BIAS]}
    said = []
    for words, rival in rivals.items():
        found = paired(kinds[SHARED].at(results, "mae"), rival.at(results, "mae"))
        if found is None:
            continue
        told = ("one seed cannot say whether adapters are better than" if found.low is None else
                "adapters are better than" if found.below else
                "adapters are worse than" if found.above else
                "no gain of adapters is shown over")
        said.append(f"{data_words(results, where)}: {told} {words}, MAE "
                    f"{difference_text(found)}.")
    return said


def _sizes(results: Results, where: Labels) -> Table:
    """Numbers of parameters, and of bytes that left an edge on their account."""
    columns = {"of an adapter": "extra.personal.{}.parameters", "of the model": "extra.parameters",
               "bytes of it in an upload": "extra.personal.{}.bytes_sent"}
    return Table(f"Parameters, {data_words(results, where)}", ("", *columns), tuple(
        (Cell(name), *(Cell(_count(results.at(key.format(name), where)), where)
                       for key in columns.values()))
        for name in adapter_kinds.KINDS))


def latency(options: Options, results: Results) -> Findings:
    """Table 3 in both accountings, sizes, and packets by codec."""
    preset = latencies.PRESETS[options.preset]
    tables: list[Table] = []
    for run in results.of({"method": LATENCY}):
        tables += [_times(run, preset), _savings(run), _packets(run)]
    return Findings(tuple(tables), tuple(
        line for run in results.of({"method": LATENCY}) for line in _readings(run, preset)))


def _readings(run: Run, preset: latencies.LatencyPreset) -> list[str]:
    """Both readings of the paper's 45.2 ms against what was aimed at, at the 95th percentile."""
    extra, goal = _extra(run), COMPUTE_GOALS.get(preset.model)
    said = []
    for words, name in (("without inference, as the paper counts", "first"),
                        ("with inference", "full")):
        value = extra.get(f"realistic: edge {name} response, compute p95")
        if value is not None and goal is not None:
            said.append(f"Compute of the {name} response at the edge, {words}: {value:.1f} ms at "
                        f"the 95th percentile, {'within' if value <= goal else 'not within'} the "
                        f"{goal:g} ms aimed at for model '{preset.model}'.")
    return said


def _times(run: Run, preset: latencies.LatencyPreset) -> Table:
    """Milliseconds per link preset, and the paper's."""
    extra = _extra(run)
    kinds = list(dict.fromkeys(name.split(": ")[0] for name in extra if name.endswith(" p50")))
    steps = list(dict.fromkeys(name.split(": ")[1].removesuffix(" p50") for name in extra
                               if name.endswith(" p50")))
    return Table(
        "Latency, milliseconds",
        ("", *(f"{kind} links, {q}" for kind in kinds for q in ("p50", "p95")), "paper"),
        tuple((Cell(step), *(Cell(f"{extra[f'{kind}: {step} {q}']:,.2f}", run.labels)
                             for kind in kinds for q in ("p50", "p95")),
               Cell(f"{published.LATENCY[step]:,.1f}" if step in published.LATENCY else "",
                    tone="quiet")) for step in steps),
        f"Median and 95th percentile of {preset.readings:,} readings of random features, model "
        f"'{preset.model}'. Compute is measured on this machine; links are modelled. First "
        "response: without inference, as the paper's 45.2 ms; full response: with it. Devices "
        "choose the codec that their link carries within 50 ms: float32 but on the slow links. "
        "Paper accounting leaves the making of features out of the cloud's time.")


def _savings(run: Run) -> Table:
    """Sizes and shares, which have no percentiles."""
    extra = _extra(run)
    kinds = list(dict.fromkeys(name.split(": ")[0] for name in extra if name.endswith(" p50")))
    names = {"edge first response below cloud only": "%",
             "edge full response below cloud only": "%", "feature packets": "bytes",
             "answer": "bytes", "raw reading": "bytes"}
    return Table(
        "What the edge saves", ("", *(f"{kind} links" for kind in kinds)),
        tuple((Cell(f"{name}, {unit}"), *(
            Cell(f"{extra[f'{kind}: {name}']:,.{1 if unit == '%' else 0}f}", run.labels)
            for kind in kinds)) for name, unit in names.items()),
        "First response against the cloud in paper accounting, full against full; medians. The "
        "codec of the packets follows from the link. The paper prints 96.2 %, its own times give "
        "98.6 %; 96–98 kB of features, 5–10 MB raw.")


def _packets(run: Run) -> Table:
    """Bytes and errors of every codec and shape."""
    extra = _extra(run)
    names = [name.removesuffix(": bytes") for name in extra if name.endswith(": bytes")]
    return Table(
        "Packets of a reading", ("shapes", "codec", "bytes", "largest error", "its bound"),
        tuple((*map(Cell, name.split(": ")), Cell(f"{extra[f'{name}: bytes']:,.0f}", run.labels),
               *(Cell(f"{extra[f'{name}: {column}']:.2g}", run.labels)
                 for column in ("largest_error", "error_bound"))) for name in names),
        "Standard normal features, which compress least; errors in units of a feature.", names=2)


def params(options: Options, results: Results) -> Findings:
    """Table 5 beside the published column."""
    del options
    rows = []
    for run in results.of({"method": PARAMS}):
        for name, value in _extra(run).items():
            printed = published.PARAMETERS.get(name)
            rows.append((Cell(name.replace("_", "-")), Cell(f"{value:,.0f}", run.labels),
                         Cell("" if printed is None else f"{printed:,.0f}", tone="quiet")))
    return Findings((Table(
        "Parameters of the paper preset", ("", "exact", "paper"), tuple(rows),
        "Counted from shapes, nothing is trained. The paper's unit is called MB and is millions of "
        "parameters; its linear projections, 20.57 million, are not itemised, and its total may "
        "hold a word embedding."),))


def _extra(run: Run) -> Mapping[str, float]:
    return {name.removeprefix("extra."): value for (kind, name), value in run.values.items()
            if kind == FINAL and name.startswith("extra.")}


def _count(values: Mapping[int, float]) -> str:
    """A whole number that all seeds share, else mean and spread."""
    distinct = set(values.values())
    return f"{distinct.pop():,.0f}" if len(distinct) == 1 else mean_text(values)
