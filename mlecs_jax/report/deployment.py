"""A deployed run: who took part, what was missed, what was refused."""

from __future__ import annotations

from typing import Any

from mlecs_jax.report.blocks import scroller, section
from mlecs_jax.report.markup import Markup, tag
from mlecs_jax.report.run_files import RunFiles, dig, number

_REASONS = {
    "not_finite": "NaN or infinity", "shape": "wrong shape", "dtype": "wrong type",
    "path": "an array not asked for, or none", "round": "another round", "replay": "sent before",
    "oversized": "too long", "session": "another session", "checksum": "damaged",
    "malformed": "no message", "sender": "another's name", "kind": "not what was asked",
    "modalities": "a number of modalities that it has not", "length": "an absurdly long update",
    "range": "impossible scores",
    "schema": "another version", "deadline": "deadline missed", "gone": "not connected",
    "error": "failed on the device", "refused": "refused by the cloud"}


def deployment_section(run: RunFiles) -> Markup | None:
    """One row per device, and every fault in the order it came."""
    found = dig(run.summary, "deployment")
    if not isinstance(found, dict):
        return None
    uploads = found.get("uploads")
    uploads = uploads if isinstance(uploads, dict) else {}
    rolls = [roll for roll in (dig(record, "deployment") for record in run.rounds)
             if isinstance(roll, dict)]
    body = [tag("tr", tag("th", name, scope="row"),
                *(tag("td", f"{value:.0f}" if value is not None else "–", class_="n")
                  for value in (number(counted), number(dig(found, "refused_of", name)) or 0.0,
                                number(dig(found, "dropped", name)) or 0.0)))
            for name, counted in uploads.items()]
    head = tag("tr", tag("th", "device", scope="col"), *(
        tag("th", title, scope="col", class_="n") for title in
        ("uploads that counted", "messages refused", "times out of a session")))
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="devices")
    sessions = number(found.get("sessions")) or 0.0
    faults = [fault for record, roll in zip(run.rounds, rolls, strict=False)
              for fault in _faults(record, roll)]
    return section(
        "deployment", "Deployment", scroller("Table of uploads", table),
        _log(faults), lead=f"A cloud and {len(uploads)} devices over a network, {sessions:.0f} "
        f"session{'s' if sessions != 1 else ''}. Refused: {_counted(found.get('refused'))}. "
        f"Rounds missed: {_counted(found.get('missed'))}. {_privacy(run)}")


def _counted(counts: Any) -> str:
    if not isinstance(counts, dict) or not counts:
        return "nothing"
    return ", ".join(f"{_REASONS.get(reason, reason)} × {count}"
                     for reason, count in counts.items())


def _privacy(run: RunFiles) -> str:
    said = dig(run.summary, "privacy", "statement")
    return said[:1].upper() + said[1:] + "." if isinstance(said, str) else ""


def _faults(record: Any, roll: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Round, device and what happened."""
    r = number(dig(record, "round"))
    label = "–" if r is None else f"{r + 1:.0f}"
    missed, refused, dropped = (roll.get(key) for key in ("missed", "refused", "dropped"))
    told = [(label, str(name), str(line)) for name, line in missed.items()
            if not str(line).startswith("refused")] if isinstance(missed, dict) else []
    if isinstance(refused, dict):
        told += [(label, str(name), f"refused: {line}") for name, line in refused.items()]
    return told + [(label, str(name), "out of the session")
                   for name in (dropped if isinstance(dropped, list) else [])]


def _log(faults: list[tuple[str, str, str]]) -> Markup | None:
    if not faults:
        return None
    rows = [tag("tr", tag("th", r, scope="row"), tag("td", name), tag("td", line))
            for r, name, line in faults]
    head = tag("tr", *(tag("th", title, scope="col") for title in ("round", "device", "what")))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="devices")
    return tag("details", tag("summary", f"Every fault, {len(faults)}"),
               scroller("Table of faults", table, tall=True))
