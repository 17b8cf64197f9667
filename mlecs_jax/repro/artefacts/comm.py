"""Fig. 3: what each method sends, and what compressed uploads cost."""

from __future__ import annotations

import dataclasses

from mlecs_jax.report.axes import byte_text, figure
from mlecs_jax.report.blocks import proper
from mlecs_jax.repro.artefacts.table1 import splits_of
from mlecs_jax.repro.comparison import data_words, num_seeds, seeds_words, with_seeds
from mlecs_jax.repro.job import Job, Label
from mlecs_jax.repro.methods import NOTES, chosen
from mlecs_jax.repro.options import Options, one_rho, only
from mlecs_jax.repro.results import FINAL, Results
from mlecs_jax.repro.statistics import paired
from mlecs_jax.repro.tables import (
    METRICS,
    Cell,
    Findings,
    Table,
    difference_cell,
    mean_text,
    primary,
)

TITLE = "Fig. 3: communication"
RHO = 0.8
UPLINKS = ("none", "bf16", "int8", "topk")
FULL_SIZE = "full size"  # variant of the runs that only count
PAPER_PARAMETERS = 720e6  # of MiniLLM-gpt2-720M, what the paper divides by
PAPER_VECTORS = 2420 * 256  # fused representations of VAST's public clips (release)
PAPER_SHARE = 0.00649  # (ML-ECS, abstract: 0.65 %)
LARGEST_RANK = "24"  # of FediLoRA's devices in ML-ECS
COUNTED_AS = {
    "co_plms": f"is {NOTES['co_plms']}; its proxy has the size of method.co_plms.proxy",
    "fedilora": f"is counted with rank {LARGEST_RANK} on all devices",
    "centralized": "pools data, which are not counted"}
CLIPS = 9680  # of VAST in the paper: what the full-size count of captions supposes


def jobs(options: Options) -> list[Job]:
    """Full-size counts of every method; ML-ECS with every uplink and all methods, trained."""
    only(options, "datasets", "methods", "splits", "rhos")
    rho, methods = one_rho(options, RHO), chosen(options.methods)
    counts = [_full_size(options, dataset, method, uplink)
              for dataset in options.datasets for method in methods
              for uplink in (UPLINKS if method == "ml_ecs" else UPLINKS[:1])]
    trained = [options.job(dataset, method, seed, {
                   "data.split": split, "partition.rho": rho, "channel.uplink": uplink})
               for seed in options.seeds
               for dataset in options.datasets
               for split in options.splits or splits_of(dataset)
               for method in methods
               for uplink in (UPLINKS if method == "ml_ecs" else UPLINKS[:1])]
    return counts + trained


def _full_size(options: Options, dataset: str, method: str, uplink: str) -> Job:
    """A job that counts the paper preset by shapes; FediLoRA with its largest rank everywhere, as
    Fig. 3 has it."""
    paper = dataclasses.replace(options, preset="paper", data="simulated")
    changes: dict[str, object] = {"channel.uplink": uplink, "partition.rho": 1.0}
    if method == "fedilora":
        changes["method.fedilora.ranks"] = LARGEST_RANK
    if dataset.startswith("vast"):
        changes["captions.simulated_clips"] = CLIPS
    job = paper.job(dataset, method, 0, changes, FULL_SIZE)
    return dataclasses.replace(job, runner="mlecs_jax.repro.shapes")


def findings(options: Options, results: Results) -> Findings:
    """Bytes and shares at full size, then the price of compression in scores."""
    tables: list[Table] = []
    said: list[str] = []
    for dataset in results.distinct("dataset", {}):
        found = _counts(results, {"dataset": dataset, "variant": FULL_SIZE})
        if found:
            tables.append(found[0])
            said += found[1]
        for split in results.distinct("split", {"dataset": dataset, "variant": ""}):
            where: dict[str, Label] = {"dataset": dataset, "split": split, "variant": ""}
            table, sentences = _price(results, where)
            tables.append(table)
            said += sentences
    return Findings(tuple(tables), tuple(said))


def _counts(results: Results, where: dict[str, Label]) -> tuple[Table, list[str]] | None:
    rows, said = [], []
    for run in results.of(where):
        method, uplink = str(run.labels["method"]), str(run.labels["uplink"])
        value = {name: run.values[FINAL, f"communication.{name}"] for name in (
            "uplink_bytes_per_round", "downlink_bytes_per_round", "device_parameters",
            "uplink_share_of_parameters", "downlink_share_of_parameters", "lora_parameters")}
        up, down = value["uplink_bytes_per_round"], value["downlink_bytes_per_round"]
        group = {**where, "method": method, "uplink": uplink}
        name = proper(method) + ("" if uplink == "none" else f", {uplink} uplink")
        rows.append(tuple(Cell(text, group) for text in (
            name, byte_text(up), byte_text(down), _percent(value["uplink_share_of_parameters"]),
            _percent(value["downlink_share_of_parameters"]),
            _percent(up / 4 / PAPER_PARAMETERS))))
        if method == "ml_ecs" and uplink == "none":
            adapter = value["lora_parameters"]
            said.append(
                f"{proper(str(where['dataset']))}, full size: ML-ECS' LoRA has {adapter:,.0f} "
                f"parameters; with the paper's {PAPER_VECTORS:,} numbers of fused representations "
                f"that is {_percent((adapter + PAPER_VECTORS) / PAPER_PARAMETERS)} of 720 M, the "
                f"paper's way to count (it prints {100 * PAPER_SHARE:.2f} %). Representations "
                "travel down: the uplink alone is "
                f"{_percent(up / 4 / PAPER_PARAMETERS)}.")
        if method == "ml_ecs" and uplink == "int8":
            said.append(f"{proper(str(where['dataset']))}, full size: an int8 uplink is "
                        f"{_percent(up / 4 / PAPER_PARAMETERS)} of 720 M float32 parameters.")
    if not rows:
        return None
    return Table(
        f"What a device and the server send each other in a round, full size, "
        f"{proper(str(where['dataset']))}",
        ("method", "up", "down", "up, of its parameters", "down, of its parameters",
         "up, of 720 M"), tuple(rows),
        "Counted from the shapes of the messages at the paper preset (GPT-2-large, GPT-J-6B), with "
        "every device owning every modality; a share is bytes / 4 over parameters."
        + "".join(f" {proper(method)} {note}." for method, note in COUNTED_AS.items()
                  if results.of({**where, "method": method}))), said


def _price(results: Results, where: dict[str, Label]) -> tuple[Table, list[str]]:
    """Scores and bytes of the trained runs; compressed ML-ECS against itself uncompressed."""
    metric = primary(results, where)
    key, server = f"client.avg_{metric}", f"server.{metric}"
    rows, said, seeds = [], [], num_seeds(results, where)
    for method in results.distinct("method", where):
        for uplink in results.distinct("uplink", {**where, "method": method}):
            group = {**where, "method": method, "uplink": uplink}
            plain = {**where, "method": method, "uplink": "none"}
            up, down = (results.at(f"communication.{way}_bytes_per_round", group)
                        for way in ("uplink", "downlink"))
            cost = None if uplink == "none" else paired(results.at(key, group),
                                                        results.at(key, plain))
            rows.append((
                Cell(proper(str(method)) + ("" if uplink == "none" else f", {uplink} uplink"),
                     group),
                Cell(mean_text(results.at(key, group), seeds), group),
                Cell(mean_text(results.at(server, group), seeds), group),
                Cell(_mean_bytes(up), group), Cell(_mean_bytes(down), group),
                difference_cell(cost, group) if cost else Cell("")))
            if cost:
                said.append(f"{data_words(results, where)}: ML-ECS with {uplink} uplinks minus "
                            f"without, {METRICS[metric]} of the devices: {with_seeds(cost)}, "
                            f"at {_mean_bytes(up)} in place of "
                            + _mean_bytes(results.at('communication.uplink_bytes_per_round', plain))
                            + " up.")
    return Table(
        f"Communication against {METRICS[metric]}, {data_words(results, where)}",
        ("method", "devices, avg", "server", "up", "down", "minus uncompressed"), tuple(rows),
        f"Trained runs, mean ± standard deviation over {seeds_words(results, where)}; bytes per "
        "device and round. Last column: compressed minus uncompressed, paired by seed, 95 % "
        "confidence interval. Compressed are differences to the last broadcast, with error "
        "feedback."), said


def _mean_bytes(values: dict[int, float]) -> str:
    return byte_text(sum(values.values()) / len(values)) if values else "–"


def _percent(share: float) -> str:
    return f"{figure(100 * share)} %"
