"""Signs of life: who is missing, who was asked to stop, and what everyone says of it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mlecs_jax import watch
from mlecs_jax.watch import Steps, Watch


class Texts:
    """A board in memory."""

    def __init__(self):
        self.texts = {}

    def set(self, key, value):
        self.texts[key] = value

    def wait(self, key, seconds):
        return self.texts.get(key)

    def folder(self, key):
        start = f"{key}/"
        return {name.removeprefix(start): text for name, text in self.texts.items()
                if name.startswith(start)}


class Ended(Exception):
    """The process would have ended here."""


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    return now


def process(board, index, count=3, saved=4, **options):
    def leave(code):
        raise Ended(code)

    return Watch(board, index, count, lambda: saved, leave, **options)


def beat(clock, processes, seconds, step=2.0):
    for _ in range(int(seconds / step)):
        clock[0] += step
        for one in processes:
            one.look()


def test_a_silent_process_is_named_and_ends_all(clock, capfd):
    board = Texts()
    one, two, three = (process(board, i) for i in range(3))
    beat(clock, [one, two, three], 20)
    with pytest.raises(Ended) as ended:
        beat(clock, [two, one], 60)  # process 2 is silent
    assert ended.value.args == (watch.LOST,)
    assert 1000 + 20 + watch.LOST_AFTER < clock[0] <= 1000 + 20 + watch.LOST_AFTER + 4
    with pytest.raises(Ended, match=str(watch.LOST)):
        process(board, 2).look()
    said = capfd.readouterr().err.splitlines()
    assert said == ["error: process 2 of 3 is missing, the run cannot go on; 4 complete rounds "
                    "saved, the same command resumes on any number of processes"] * 2


def test_a_process_that_slept_does_not_judge(clock):
    board = Texts()
    one, two = process(board, 1, 2), process(board, 0, 2)
    beat(clock, [one, two], 4)
    clock[0] += 100  # suspended, both
    one.look()


def test_an_error_of_one_is_the_end_of_all(clock, capfd):
    board = Texts()
    first, second = process(board, 1), process(board, 2)
    with pytest.raises(Ended, match="2"):
        first.end_all("no such file", "error: no such file", 2)
    with pytest.raises(Ended, match="2"):
        second.look()
    assert capfd.readouterr().err.splitlines() == [
        "error: no such file", "error: process 1 of 3 ended: no such file"]


def test_a_stop_is_heard_by_all_and_not_for_ever(clock, capfd):
    board = Texts()
    asked, other = process(board, 1), process(board, 2)
    beat(clock, [asked, other], 4)
    assert not asked.stopping and not other.stopping
    asked._asked = True
    beat(clock, [asked, other], 4)
    assert asked.stopping and other.stopping
    with pytest.raises(Ended) as ended:
        beat(clock, [asked, other], 60)
    assert ended.value.args == (0,)  # what is saved is whole
    assert "stopped within a round, which is not saved; 4 complete rounds saved" in (
        capfd.readouterr().err)


def test_the_grace_is_as_long_as_is_said(clock):
    asked = process(Texts(), 0, 1, grace=90.0)
    asked._asked = True
    begun = clock[0]
    with pytest.raises(Ended):
        beat(clock, [asked], 200)
    assert 90 < clock[0] - begun <= 96


def test_who_lives_and_does_not_come_further_is_named(clock, capfd, monkeypatch):
    """Its main thread hangs before a collective that the others are in."""
    monkeypatch.setattr(watch, "LOST_AFTER", 3 * watch.STUCK_AFTER)  # long steps of the clock
    board, steps = Texts(), [Steps() for _ in range(3)]
    watches = [process(board, i, steps=own) for i, own in enumerate(steps)]
    for _ in range(3):  # slow, but together
        for own in steps:
            own.take("a transfer")
        beat(clock, watches, watch.STUCK_AFTER, step=600.0)
    beat(clock, watches, 2 * watch.STUCK_AFTER, step=600.0)  # a long round
    for own in (steps[0], steps[2]):
        own.take("a transfer")
    beat(clock, watches, watch.STUCK_AFTER, step=600.0)
    with pytest.raises(Ended) as ended:
        beat(clock, watches, 1200, step=600.0)
    assert ended.value.args == (watch.LOST,)
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: process 1 of 3 has not come further for 30 min while others "
                           "wait (1 at a transfer: watch.py:")
    assert "4 complete rounds saved" in line


def test_the_place_of_a_blocked_main_thread_is_known():
    found = []
    thread = threading.Thread(target=lambda: (time.sleep(0.1), found.append(watch._place())))
    thread.start()
    thread.join()
    assert found[0].endswith("in join") or "in _wait" in found[0], found


def test_sigterm_is_heard_while_the_main_thread_computes(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(watch, "BEAT", 0.05)
    with Watch(None, 0, 1, lambda: 0) as alone:
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while not alone.stopping and time.monotonic() < deadline:
            time.sleep(0.01)
        assert alone.stopping
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_abort_of_native_code_ends_with_a_line():
    """In a thread of the native library's own, while Python's main thread sleeps."""
    program = """
import ctypes, threading, time
from mlecs_jax.watch import said_on_abort
with said_on_abort("error: the coordinator is gone", 75):
    threading.Thread(target=ctypes.CDLL(None).abort).start()
    time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=30)
    assert (done.returncode, done.stderr) == (75, "error: the coordinator is gone\n")
