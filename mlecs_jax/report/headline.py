"""The top of the page: what ran, on which kind of data, and how it ended."""

from __future__ import annotations

import statistics

from mlecs_jax.report.axes import byte_text, duration, figure, linear_axis, score
from mlecs_jax.report.blocks import proper, tile, words
from mlecs_jax.report.curves import client_scores, primary_metric, server_scores, stages_of
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, dig, number, text
from mlecs_jax.report.sentiment import sentiment_tiles
from mlecs_jax.report.svg import strip

BANNERS = {
    "simulated": (
        "Simulated data",
        "A seeded generator made these samples. The figures show that the program runs; "
        "they are no evidence about any real task."),
    None: (
        "Unlabelled data",
        "The run does not say whether its data are real or simulated. Do not quote its figures."),
}


def header(run: RunFiles) -> Markup:
    """Badge, title, what must be said of the method, state of the run and its settings."""
    badge = {"real": "Real data", "simulated": "Simulated data"}.get(
        run.data_source or "", "Unlabelled data")
    notes = [found for key in ("note", "caution") if (found := text(run.summary.get(key)))]
    title = tag("h1", proper(run.method), tag("span", " on "), proper(run.dataset))
    facts = tag("dl", *(tag("div", tag("dt", name), tag("dd", value),
                            class_="long" if len(str(value)) > 14 else None)
                        for name, value in _facts(run) if value is not None), class_="facts")
    return tag("header", tag("p", tag("span", badge, class_=f"badge {run.data_source or 'none'}"),
                             tag("span", _state(run), class_="state"), class_="strip"),
               title, *(tag("p", note, class_="lead") for note in notes), facts)


def banner(run: RunFiles) -> Markup | None:
    """The warning across the page, unless the data are real."""
    if run.data_source == "real":
        return None
    title, explanation = BANNERS[run.data_source]
    return tag("aside", tag("strong", title), " ", tag("span", explanation), class_="banner",
               role="note")


def page_title(run: RunFiles) -> str:
    mark = {"real": "", "simulated": "SIMULATED: "}.get(run.data_source or "", "UNLABELLED: ")
    return f"{mark}{proper(run.method)} on {proper(run.dataset)}"


def tiles(run: RunFiles) -> Markup:
    """Scores, bytes and time at a glance."""
    return tag("div", _devices_tile(run), _server_tile(run), *sentiment_tiles(run),
               _bytes_tile(run), _time_tile(run), class_="tiles")


def _state(run: RunFiles) -> str:
    done, total = len(run.rounds), run.total_rounds
    if run.finished:
        return f"finished, {done} {run.unit}s"
    of = f" of {total}" if total else ""
    return (f"under way: {done}{of} {run.unit}s done, no summary yet; figures are those of the "
            f"last {run.unit}")


def _facts(run: RunFiles) -> list[tuple[str, object]]:
    def value(key: str, *path: str) -> object:
        found = run.summary.get(key)
        found = dig(run.config, *path) if found is None else found
        return found if isinstance(found, str | int | float) else None

    return [
        ("configuration", value("config_name", "config_name")),
        ("split", value("split", "data", "split")),
        *_tree_facts(run),
        ("devices N", run.num_clients),
        ("modality rate ρ", value("rho", "partition", "rho")),
        (f"{run.unit}s", run.total_rounds),
        ("seed", value("seed", "seed")),
        ("partition seed", value("partition_seed", "partition", "seed")),
        ("modalities", ", ".join(run.modalities) or None),
        ("versions", _versions(run)),
    ]


def _tree_facts(run: RunFiles) -> list[tuple[str, object]]:
    """Edges, ends and clock of a three-tier run."""
    if run.unit != "version":
        return []

    def value(*path: str) -> object:
        return dig(run.config, *path)

    mode = {"async": "waits for no one", "sync": "waits for all"}.get(
        str(value("method", "mode")))
    return [("cloud", mode), ("edges", value("partition", "edges")),
            ("ends of each", value("partition", "ends")),
            ("speeds of the edges", value("clock", "speeds")), ("links", value("clock", "links")),
            ("Dirichlet α of sentiments", value("partition", "alpha"))]


def _versions(run: RunFiles) -> str | None:
    versions = run.summary.get("versions")
    if not isinstance(versions, dict):
        return None
    shown = [f"{name} {versions[name]}" for name in ("mlecs-jax", "jax", "flax")
             if name in versions]
    shown += [str(versions["device"])] if "device" in versions else []
    return ", ".join(shown) or None


def _devices_tile(run: RunFiles) -> Markup | None:
    metric = primary_metric(run)
    summary = dig(run.summary, "client")
    stages = stages_of(run)
    found = client_scores(run, "test", stages[0], metric) if stages else None
    values = [v for c in run.clients if (v := number(c.get(metric))) is not None]
    if not values and found:
        values = [v for column in found.per_device if (v := column[-1]) is not None]
    spread = {key: number(dig(summary, f"{key}_{metric}")) for key in ("avg", "best", "worst")}
    if values and spread["avg"] is None:
        spread = {"avg": statistics.fmean(values), "best": max(values), "worst": min(values)}
    if spread["avg"] is None:
        return None
    axis = linear_axis(values, limits=(0.0, 1.0))
    drawing = strip(values, axis, style="dev",
                    label=f"{words(metric)} of {len(values)} devices") if len(values) > 1 else None
    later = number(dig(summary, "after_broadcast", f"avg_{metric}"))
    chosen = _best_val(run, "client", f"avg_{metric}")
    return tile(
        "Devices", score(spread["avg"]), f"mean test {words(metric)}",
        [f"best {score(spread['best'])}, worst {score(spread['worst'])}",
         f"after broadcast {score(later)}" if later is not None else None, chosen],
        "dev", drawing)


def _server_tile(run: RunFiles) -> Markup | None:
    metric = primary_metric(run)
    value = number(dig(run.summary, "server", metric))
    column = server_scores(run, "test", metric)
    if value is None and column:
        value = column[-1]
    if value is None:
        return None
    lines = [f"{name} {score(number(dig(run.summary, 'server', key)))}"
             for key, name in (("weighted_f1", "weighted F1"), ("accuracy", "accuracy"),
                               ("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"))
             if number(dig(run.summary, "server", key)) is not None]
    return tile("Server", score(value), f"test {words(metric)}",
                [", ".join(lines) or None, _best_val(run, "server", metric)], "srv")


def _best_val(run: RunFiles, *path: str) -> str | None:
    """The test score at the round that validation data chose."""
    value = number(dig(run.summary, "best_val", *path))
    chosen = number(dig(run.summary, "best_val", "round"))
    if value is None or chosen is None:
        return None
    return f"{score(value)} after round {int(chosen) + 1}, best on validation"


def _bytes_tile(run: RunFiles) -> Markup | None:
    up = number(dig(run.summary, "communication", "uplink_bytes_per_round"))
    down = number(dig(run.summary, "communication", "downlink_bytes_per_round"))
    up = number(dig(run.last, "communication", "uplink_bytes")) if up is None else up
    down = number(dig(run.last, "communication", "downlink_bytes")) if down is None else down
    if up is None and down is None:
        return None
    share = number(dig(run.summary, "communication", "share_of_parameters"))
    amount, _, unit = byte_text(up).partition(" ")
    return tile("Communication", amount, f"{unit} up, per device and round".strip(),
                [f"{byte_text(down)} down",
                 None if share is None
                 else f"{figure(100 * share)} % of a device's parameters exchanged"])


def _time_tile(run: RunFiles) -> Markup | None:
    seconds = number(dig(run.summary, "timing", "seconds_per_round"))
    measured = [v for r in run.rounds if (v := number(r.get("seconds"))) is not None]
    if seconds is None and measured:
        seconds = statistics.median(measured)
    if seconds is None:
        return None
    compiled = number(dig(run.summary, "timing", "compile_s"))
    amount, _, unit = duration(seconds).partition(" ")
    return tile("Time", amount, f"{unit} per {run.unit}",
                [f"{duration(sum(measured))} for all {run.unit}s" if measured else None,
                 f"compilation {duration(compiled)}" if compiled is not None else None])
