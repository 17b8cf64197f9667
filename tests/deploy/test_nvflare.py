"""The transport over a real network: answers, deadlines, lost devices, frames that are refused."""

import pytest

pytest.importorskip("nvflare", reason="a deployment needs NVFlare: pip install -e '.[deploy]'")

from nvflare.fuel.f3.cellnet.defs import CellChannel, Encoding, MessageHeaderKey, MessagePropKey
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message as Frame
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, StreamHeaderKey

from mlecs_jax.configs import ur_fall
from mlecs_jax.deploy import nvflare_needed, provision
from mlecs_jax.deploy.local import free_port
from mlecs_jax.deploy.nvflare_cell import HELLO, STRANGER_BYTES, Gate
from mlecs_jax.deploy.transport import Transport
from mlecs_jax.errors import UserError
from tests.deploy.network import echoes, message, wait_for

QUICK, SLOW, BROKEN, OUTDATED = (f"edge-{j}" for j in range(4))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A quick device, a slow one, one that fails, and one with the kit of an earlier session."""
    folder = tmp_path_factory.mktemp("network")
    cloud, *others = provision.write(
        folder / "kits", ur_fall.get_config("smoke").to_dict(), (QUICK, SLOW, BROKEN, OUTDATED),
        "127.0.0.1", free_port(), split=False, train_rows=8)
    session = cloud.session()
    nvflare_needed.prepare(limit_bytes=session.limits.limit_bytes, loopback=True)
    from mlecs_jax.deploy.nvflare_cloud import NVFlareTransport

    transport = NVFlareTransport(cloud, session)
    words = ["", ",slow=1.5", ",fail", ",run=another"]
    log = folder / "devices.log"
    with echoes(*(f"{kit.folder}{word}" for kit, word in zip(others, words, strict=True)),
                log=log) as process:
        wait_for(lambda: len(transport.names()) >= 3, "three devices are there", 120)
        yield transport, session, process, log, cloud
    transport.close()


def test_it_is_a_transport(network):
    assert isinstance(network[0], Transport)


def test_every_target_is_in_one_of_the_two_results(network):
    transport, session, *_ = network
    answers, failures = transport.exchange(
        [QUICK, BROKEN, "edge-9"], message(session.id(1), size=1000), 20.0)
    assert set(answers) == {QUICK} and set(failures) == {BROKEN, "edge-9"}
    assert answers[QUICK].arrays["x"].tolist() == list(range(1000))
    assert failures[BROKEN].reason == "error" and "out of order" in failures[BROKEN].detail
    assert failures["edge-9"].reason == "gone"


def test_who_misses_the_deadline_is_away_until_it_has_answered(network):
    transport, session, *_ = network
    _, failures = transport.exchange([SLOW], message(session.id(1), 2), 0.2)
    assert failures[SLOW].reason == "deadline"
    assert SLOW not in transport.names() and SLOW in transport.connected()
    _, failures = transport.exchange([SLOW], message(session.id(1), 3), 5.0)
    assert failures[SLOW].reason == "deadline"  # at once: it is still at work
    wait_for(lambda: SLOW in transport.names(), "the late answer came")
    answers, _ = transport.exchange([SLOW], message(session.id(1), 4), 30.0)
    assert answers[SLOW].header.serial == 4  # and not the late one


def test_the_kit_of_another_session_is_refused(network):
    transport, _, _, log, _ = network
    wait_for(lambda: f"{OUTDATED}: error" in log.read_text(), "the device heard why")
    assert "the kit is of another session" in log.read_text()
    assert OUTDATED not in transport.connected()


def test_a_port_in_use_is_named(network):
    from mlecs_jax.deploy import nvflare_cell

    with pytest.raises(UserError, match="cannot listen on 127.0.0.1"):
        nvflare_cell.check_listening(network[4])


def test_a_killed_device_is_gone_at_once_and_told_so_in_the_middle_of_an_exchange(network):
    """The last test: it kills the devices."""
    import threading
    import time

    transport, session, process, *_ = network
    wait_for(lambda: SLOW in transport.names(), "the slow device is there")
    threading.Timer(0.3, process.kill).start()
    begun = time.monotonic()
    _, failures = transport.exchange([SLOW], message(session.id(1), 5), 60.0)
    assert failures[SLOW].reason == "gone" and time.monotonic() - begun < 30
    wait_for(lambda: not transport.connected(), "all are gone")
    _, failures = transport.exchange([QUICK], message(session.id(1), 6), 60.0)
    assert failures[QUICK].reason == "gone"


def frame(**changes):
    """A frame of edge-0 for the cloud; headers by the names of ``HEADERS``."""
    values = {"origin": "edge-0", "sender": "edge-0", "to": "server", "channel": STREAM_CHANNEL,
              "payload": b"x", "connection": "edge-0"} | changes
    made = Frame({HEADERS[name]: value for name, value in values.items() if name in HEADERS},
                 values["payload"])
    made.set_prop(MessagePropKey.ENDPOINT, Endpoint(values["connection"]))
    return made


HEADERS = {"origin": MessageHeaderKey.ORIGIN, "sender": MessageHeaderKey.FROM_CELL,
           "to": MessageHeaderKey.DESTINATION, "channel": MessageHeaderKey.CHANNEL,
           "encoding": MessageHeaderKey.PAYLOAD_ENCODING,
           "stream_encoding": StreamHeaderKey.PAYLOAD_ENCODING, "size": StreamHeaderKey.SIZE,
           "topic": StreamHeaderKey.TOPIC}


@pytest.mark.parametrize("changes,reason", [
    ({"origin": "edge-1"}, "forged sender"), ({"sender": "server"}, "forged sender"),
    ({"connection": "edge-1"}, "forged sender"), ({"to": "edge-1"}, "not for us"),
    ({"channel": "admin"}, "unknown channel"), ({"encoding": Encoding.FOBS}, "objects"),
    ({"stream_encoding": "pickle"}, "objects"), ({"size": 1001}, "oversized"),
    ({"size": "many"}, "oversized"), ({"payload": bytes(1001)}, "oversized"),
    ({"topic": HELLO, "size": STRANGER_BYTES + 1}, "oversized"),
    ({"connection": "edge-9", "origin": "edge-9", "sender": "edge-9",
      "payload": bytes(STRANGER_BYTES + 1)}, "not on the roster")])
def test_the_gate_drops(changes, reason):
    gate = Gate("server", frozenset({"edge-0", "edge-1"}), 1000)
    assert gate.check(frame(**changes)) is not None
    assert [why for _, why in gate.refused] == [reason]


@pytest.mark.parametrize("changes", [
    {}, {"channel": CellChannel.CELLNET}, {"stream_encoding": Encoding.BYTES, "size": 1000},
    {"topic": HELLO, "size": 100},
    {"connection": "edge-9", "origin": "edge-9", "sender": "edge-9"}])
def test_the_gate_lets_through(changes):
    gate = Gate("server", frozenset({"edge-0", "edge-1"}), 1000)
    assert gate.check(frame(**changes)) is None and not gate.refused
