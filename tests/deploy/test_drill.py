"""The fault drill around its runs: which rows there are, what happens in them, what is shown."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from mlecs_jax.deploy import drill, faults
from mlecs_jax.errors import UserError

NAMES = ("d0", "d1", "d2")


def made(**changes):
    """A drill without a dataset."""
    found = drill.Drill.__new__(drill.Drill)
    vars(found).update({"_names": NAMES, "poisoners": 2, "_factor": 5.0} | changes)
    return found


def result(row, **changes):
    return {"row": row, "what": row, "rounds": 4, "lost_rounds": 0, "uploads": 12, "missed": {},
            "refused": {}, "dropped": {}, "sessions": 1, "metric": "f1", "devices": 0.5,
            "server": 0.75} | changes


def test_every_lie_is_one_that_devices_can_tell():
    rows = drill.rows(liars=2)
    assert len({row.name for row in rows}) == len(rows)
    assert all(hasattr(faults, row.lie) for row in rows if row.lie)
    assert {row.network for row in rows} == {"", "dies", "hangs", "cloud"}
    krum = next(row for row in rows if row.name == "poison-krum")
    assert krum.poisoned and krum.aggregation["liars"] == 2


def test_who_is_made_to_fail(tmp_path, monkeypatch):
    """Poisoners are the last ones; one device tells a lie or dies; every folder is let go."""
    closed = []

    class Honest:
        def __init__(self, session, name, *_):
            self.name = name

        def handle(self, message):
            raise NotImplementedError

        def close(self):
            closed.append(self.name)

    monkeypatch.setattr("mlecs_jax.deploy.edge.EdgeApp", Honest)
    known = {row.name: row for row in drill.rows(2)}
    found = {}
    for name in ("clean", "poison-mean", "nan", "killed"):
        with made(_out=tmp_path)._devices(known[name], None, tmp_path) as edges:
            found[name] = [type(edges[device]).__name__ for device in NAMES]
    assert found == {
        "clean": ["Honest"] * 3, "poison-mean": ["Honest", "Faulty", "Faulty"],
        "nan": ["Honest", "Honest", "Faulty"], "killed": ["Honest", "Honest", "Dying"]}
    assert closed == list(NAMES) * 4


def test_the_last_device_hangs_from_the_second_round_on():
    row = next(row for row in drill.rows(1) if row.name == "hung")
    delay = made()._delay(row)

    def asked(name, r):
        return delay(name, SimpleNamespace(header=SimpleNamespace(round=r)))

    assert asked("d2", 1) == drill.HUNG_S > drill.DEADLINE_S > asked("d2", 0) == asked("d1", 1)
    plain = made()._delay(dataclasses.replace(row, network=""))
    assert plain("d2", SimpleNamespace(header=SimpleNamespace(round=1))) == asked("d1", 1)


def test_the_command_runs_the_rows_that_are_asked_for(tmp_path, monkeypatch, capsys):
    class Fake:
        poisoners = 1

        def __init__(self, values, out, share, factor):
            out.mkdir(exist_ok=True)
            assert (share, factor) == (0.2, 5.0)

        def run(self, row):
            return result(row.name, **{} if row.name == "clean" else {"devices": 0.4})

    monkeypatch.setattr(drill, "Drill", Fake)
    words = ["drill", "--config=ur_fall:smoke", f"--out={tmp_path / 'out'}"]
    assert drill.main([*words, "--only=clean,nan"]) == 0
    found = json.loads((tmp_path / "out" / "drill.json").read_text())
    assert [row["row"] for row in found] == ["clean", "nan"]
    assert "0.400 (-0.100)" in capsys.readouterr().out
    for wrong, message in (("--only=flood", "no row 'flood'"),
                           ("--poisoned=0.5", "a share below one half"),
                           ("--poison=much", "are numbers")):
        with pytest.raises(UserError, match=message):
            drill.main([*words, wrong])


def test_what_was_refused_and_missed_is_in_the_table():
    console = Console(record=True, width=150)
    console.print(drill.table([result("nan", refused={"not_finite": 2}, missed={"gone": 1})]))
    assert "not_finite × 2" in (text := console.export_text()) and "gone × 1" in text
