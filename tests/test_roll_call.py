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


def test_other_numbers_are_named(port):
    assert held(port, [(2, 0), (3, 1)]) == [
        "process 1 was started with --processes=3, not 2"] * 2
    assert held(port, [(3, 0), (3, 1), (3, 1)]) == [
        "two processes were started with --process=1"] * 3


def test_strangers_are_not_heard(port):
    def stranger():
        time.sleep(0.3)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"mlecs one two\n", b""):
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall(said)

    thread = threading.Thread(target=stranger)
    thread.start()
    heard = held(port, [(2, 0)], patience=2.0)
    thread.join()
    assert heard == ["process 1 of 2 did not come within 2 s; see what its terminal says"]


def test_a_process_0_that_is_not_there_is_named(port):
    (heard,) = held(port, [(2, 1)], patience=0.5)
    assert f"process 0 cannot be reached at localhost:{port}" in heard


def test_a_port_in_use_is_named(port):
    with socket.create_server(("localhost", port)):
        (heard,) = held(port, [(2, 0)])
    assert f"cannot listen on port {port}" in heard


def test_alone_nobody_is_called(port):
    assert held(port, [(1, 0)]) == [None]
