"""Processes find each other, or hear who is not there."""

import socket
import threading
import time

import pytest

from mlecs_jax import roll_call
from mlecs_jax.errors import UserError


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def held(port, calls, patience=5.0):
    """What each of ``(count, index)`` hears: None where all came."""
    heard = [None] * len(calls)

    def process(i, count, index):
        try:
            roll_call.hold(f"localhost:{port}", count, index, patience)
        except UserError as error:
            heard[i] = str(error)

    threads = [threading.Thread(target=process, args=(i, *call)) for i, call in enumerate(calls)]
    for thread in reversed(threads):  # process 0 last
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return heard


def test_all_come_and_the_port_is_free_again(port):
    assert held(port, [(3, 0), (3, 1), (3, 2)]) == [None] * 3
    assert held(port, [(2, 0), (2, 1)]) == [None] * 2


def test_who_does_not_come_is_named_everywhere(port):
    heard = held(port, [(4, 0), (4, 2)], patience=1.0)
    assert heard == ["processes 1, 3 of 4 did not come within 1 s; see what its terminal says"] * 2


def test_other_numbers_are_named_and_end_nothing(port):
    """Who has them hears it at once; the others go on waiting for the right ones."""
    wrong = "process 1 was started with --processes=3, not 2"
    missing = "did not come within 1 s; see what its terminal says"
    assert held(port, [(2, 0), (3, 1)], patience=1.0) == [f"process 1 of 2 {missing} ({wrong})",
                                                          wrong]
    twice = "two processes were started with --process=1"
    zero, *ones = held(port, [(3, 0), (3, 1), (3, 1)], patience=1.0)
    told = f"process 2 of 3 {missing} ({twice})"
    assert zero == told and sorted(ones) == sorted([told, twice])


def test_a_mistake_can_be_mended_while_the_others_wait(port):
    heard = []
    first = threading.Thread(target=lambda: heard.append(held(port, [(2, 0)])))
    first.start()
    assert held(port, [(9, 1)]) == ["process 1 was started with --processes=9, not 2"]
    assert held(port, [(2, 1)]) == [None]
    first.join()
    assert heard == [[None]]


def test_a_process_that_came_and_went_may_come_again(port):
    heard = []
    first = threading.Thread(target=lambda: heard.append(held(port, [(3, 0)])))
    first.start()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall(b"mlecs 1 3\n")
            break
        except OSError:
            time.sleep(0.05)
    assert held(port, [(3, 1), (3, 2)]) == [None] * 2
    first.join()
    assert heard == [[None]]


@pytest.mark.parametrize("host,own", [("localhost", True), ("127.0.0.1", True), ("::1", True),
                                      ("10.0.0.5", False), ("node0", False)])
def test_an_own_address_is_listened_on_alone(port, host, own):
    assert roll_call.is_loopback(host) is own
    if host == "::1" and not socket.has_ipv6:
        return
    try:
        with roll_call._listening(host, port) as server:
            assert (server.getsockname()[0] in ("127.0.0.1", "::1")) is own
    except OSError:
        assert host == "::1"  # a machine without it


def test_strangers_are_not_heard(port):
    def stranger():
        time.sleep(0.3)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"mlecs one two\n", b"", b"mlecs 1 9\n"):
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall(said)

    thread = threading.Thread(target=stranger)
    thread.start()
    heard = held(port, [(2, 0)], patience=2.0)
    thread.join()
    assert heard == ["process 1 of 2 did not come within 2 s; see what its terminal says (process "
                     "1 was started with --processes=9, not 2)"]


def test_a_process_0_that_is_not_there_is_named(port):
    (heard,) = held(port, [(2, 1)], patience=0.5)
    assert f"process 0 cannot be reached at localhost:{port}" in heard


def test_a_port_in_use_is_named(port):
    with socket.create_server(("localhost", port)):
        (heard,) = held(port, [(2, 0)])
    assert f"cannot listen on port {port}" in heard


def test_alone_nobody_is_called(port):
    assert held(port, [(1, 0)]) == [None]
