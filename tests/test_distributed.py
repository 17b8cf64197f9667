"""Groups of processes: what they agree on, and how a process is told that it is one of several."""

import threading

import pytest

from mlecs_jax import distributed
from mlecs_jax.distributed import Group, Launch
from mlecs_jax.errors import UserError
from tests.small import config


class Board:
    """A key-value store that threads wait at, in place of JAX's."""

    def __init__(self):
        self._texts, self._changed = {}, threading.Condition()

    def set(self, key, value):
        with self._changed:
            self._texts[key] = value
            self._changed.notify_all()

    def wait(self, key, seconds):
        with self._changed:
            self._changed.wait_for(lambda: key in self._texts, seconds)
            return self._texts.get(key)

    def folder(self, key):
        raise NotImplementedError  # nothing is watched here


def together(count, act):
    """What ``act`` returns or raises in every process of a group, each a thread."""
    board, results = Board(), [None] * count

    def process(i):
        try:
            results[i] = act(Group(board, i, count))
        except UserError as error:
            results[i] = error

    threads = [threading.Thread(target=process, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_everyone_hears_everyone_and_what_the_first_decides():
    def act(group):
        first = group.gather("names", f"name {group.index}")
        return first, group.shared("a number", lambda: {"n": group.index}), group.led(
            "files", lambda: "open")

    results = together(3, act)
    names = ["name 0", "name 1", "name 2"]
    assert results == [(names, {"n": 0}, "open"), (names, {"n": 0}, None),
                       (names, {"n": 0}, None)]


def test_an_error_of_the_first_is_everyones():
    def refuse():
        raise UserError("the folder holds another run")

    found = together(3, lambda group: group.shared("workdir", refuse))
    assert [str(error) for error in found] == ["the folder holds another run"] * 3


def test_who_has_something_else_is_named():
    found = together(3, lambda group: group.agree(
        "seed", lambda: "1" if group.index == 1 else "0"))
    assert all("process 1 of 3 has another seed than process 0" in str(error) for error in found)


def test_a_file_system_that_lags_is_waited_for():
    def act(group):
        seen = iter(["old", "old", *["new"] * 9]) if group.index else iter(["new"] * 9)
        group.agree("workdir", lambda: next(seen), 5.0)
        return "agreed"

    assert together(2, act) == ["agreed", "agreed"]


def test_who_does_not_come_is_named():
    def act(group):
        return group.gather("round 3", patience=0.3) if group.index in (0, 2) else "late"

    found = together(4, act)
    assert "processes 1, 3 of 4 did not come to 'round 3' within 0 s" in str(found[0])
    assert found[1] == "late"


def test_alone_nothing_is_asked():
    group = Group()
    assert group.leads and group.gather("x", "mine") == ["mine"] and not group.stops()
    group.agree("x", lambda: "y")
    assert group.shared("x", lambda: (1, 2)) == (1, 2) and group.led("x", lambda: 3) == 3


NOTHING = {"distributed": "", "coordinator": "", "processes": "", "process": ""}


def test_flags_of_a_launch():
    assert distributed.launch(NOTHING) is None
    assert distributed.launch(NOTHING | {"distributed": "yes"}) == Launch()
    assert distributed.launch(NOTHING | {
        "coordinator": "10.0.0.1:1234", "processes": "4", "process": "3"}) == Launch(
            "10.0.0.1:1234", 4, 3)


def test_the_grace_is_a_flag():
    assert distributed.grace({"grace": ""}) == 20.0 and distributed.grace({"grace": "85"}) == 85.0
    for wrong in ("soon", "0", "-1", "inf", "nan"):
        with pytest.raises(UserError, match=f"--grace is {wrong}; give seconds"):
            distributed.grace({"grace": wrong})


@pytest.mark.parametrize("flags,message", [
    ({"coordinator": "a:1"}, "go together"), ({"process": "0", "distributed": "yes"}, "together"),
    ({"coordinator": "a:1", "processes": "2", "process": "2"}, "--processes=2 --process=2"),
    ({"coordinator": "a:1", "processes": "two", "process": "0"}, "--processes=two"),
    ({"coordinator": "a", "processes": "2", "process": "0"}, "HOST:PORT"),
    ({"coordinator": ":1", "processes": "2", "process": "0"}, "HOST:PORT")])
def test_flags_that_do_not_fit_are_one_line(flags, message):
    with pytest.raises(UserError, match=message) as error:
        distributed.launch(NOTHING | flags)
    assert "\n" not in str(error.value)


def test_devices_are_spread_and_debugging_is_not():
    assert distributed.spread(config()).clients.backend == "shard_map"
    with pytest.raises(UserError, match="clients.backend=loop"):
        distributed.spread(config(**{"clients.backend": "loop"}))
