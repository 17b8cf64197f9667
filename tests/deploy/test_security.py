"""Who is let in: certificates of a real authority, real processes, a real network."""

import functools
import ipaddress
import logging
import os
import shutil
import socket
import ssl
import time

import pytest

pytest.importorskip("nvflare", reason="a deployment needs NVFlare: pip install -e '.[deploy]'")

from mlecs_jax.configs import ur_fall
from mlecs_jax.deploy import addition, nvflare_needed, provision
from mlecs_jax.deploy import session as sessions
from mlecs_jax.deploy.local import free_port
from tests.deploy.network import echoes, listening, message, wait_for

VALUES = ur_fall.get_config("smoke").to_dict()
HONEST, THIEF, FORGER, ABSENT, STRANGER = (f"edge-{j}" for j in range(5))
ADDED = "attic"


@pytest.fixture(scope="module")
def refusals():
    """What NVFlare's connections have been refused for, growing: listening before anyone connects,
    since a refused device waits longer from try to try."""
    found = Found()
    logger = logging.getLogger("nvflare.fuel.f3.sfm.conn_manager")
    logger.addHandler(found)
    yield found.lines
    logger.removeHandler(found)


class Found(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def network(tmp_path_factory, refusals):
    """A cloud that expects four devices. One is absent, and another steals its name; a third
    forges frames. One more is added while the cloud runs. A fifth device has a genuine certificate
    but was added to no roster that the cloud knows; another is of another authority."""
    folder = tmp_path_factory.mktemp("security")
    port = free_port()
    kits = {kit.name: kit for kit in provision.write(
        folder / "kits", VALUES, (HONEST, THIEF, FORGER, ABSENT), "127.0.0.1", port,
        split=False, train_rows=8)}
    elsewhere = shutil.copytree(folder / "kits", folder / "elsewhere")
    kits[STRANGER] = addition.add(elsewhere, STRANGER)
    other = provision.write(folder / "other", VALUES, ("foreign",), "127.0.0.1", port,
                            split=False, train_rows=8)
    session = kits["cloud"].session()
    nvflare_needed.prepare(limit_bytes=session.limits.limit_bytes, loopback=True)
    from mlecs_jax.deploy.nvflare_cloud import NVFlareTransport

    events = []
    transport = NVFlareTransport(
        kits["cloud"], session, lambda kind, values: events.append(values),
        functools.partial(sessions.latest, session, kits["cloud"].folder))
    kits[ADDED] = addition.add(folder / "kits", ADDED)
    log = folder / "devices.log"
    with echoes(str(kits[HONEST].folder), f"{kits[THIEF].folder},as={ABSENT}",
                f"{kits[FORGER].folder},from={HONEST}", str(kits[STRANGER].folder),
                str(kits[ADDED].folder), str(other[1].folder), log=log):
        yield transport, kits, session, events, log, other
    transport.close()


def test_a_device_of_the_roster_is_let_in_and_nobody_else(network):
    transport, _, session, _, log, _ = network
    wait_for(lambda: HONEST in transport.names(), "the honest device is there")
    answers, failures = transport.exchange([HONEST], message(session.id(1)), 20.0)
    assert set(answers) == {HONEST} and not failures
    wait_for(lambda: b"edge-4: error" in log.read_bytes(), "the stranger heard why")
    assert set(transport.names()) == set(transport.connected()) <= {HONEST, ADDED}


def test_a_device_that_was_added_is_let_in_by_the_running_cloud(network):
    transport, kits, session, *_ = network
    wait_for(lambda: ADDED in transport.names(), "the added device is there")
    answers, failures = transport.exchange([ADDED], message(session.id(1), 3), 20.0)
    assert set(answers) == {ADDED} and not failures
    grown = kits[ADDED].session()
    assert grown == kits["cloud"].session() != session
    assert grown.number(ADDED) == 4 and grown.founders == session.roster


def test_an_unregistered_device_is_told_so(network):
    _, _, _, events, log, _ = network
    wait_for(lambda: b"edge-4: error" in log.read_bytes(), "the stranger heard why")
    assert f"'{STRANGER}' is not on the roster of this session" in log.read_text()
    assert any(e["device"] == STRANGER and "not on the roster" in e["what"] for e in events)


def test_a_stolen_name_is_refused(network, refusals):
    """A genuine certificate of edge-1 does not make its owner edge-3."""
    transport, _, session, _, log, _ = network
    wait_for(lambda: HONEST in transport.names(), "the honest device is there")
    wait_for(lambda: any(f"authenticated as '{THIEF}' but claimed endpoint '{ABSENT}'" in line
                         for line in refusals), "the claim was noticed")
    assert f"{THIEF}: connected" not in log.read_text()
    _, failures = transport.exchange([ABSENT], message(session.id(1), 2), 20.0)
    assert failures[ABSENT].reason == "gone"


def test_frames_that_claim_another_sender_are_dropped(network):
    transport, _, _, _, log, _ = network
    wait_for(lambda: transport.gate.refused[FORGER, "forged sender"], "the forger was noticed")
    assert FORGER not in transport.connected()
    assert f"{FORGER}: connected" not in log.read_text()


def test_a_device_does_not_speak_with_a_cloud_of_another_authority(network):
    *_, log, _ = network
    wait_for(lambda: b"foreign: error" in log.read_bytes(), "the other device refused")
    assert "is not the cloud of this kit" in log.read_text()


@pytest.mark.parametrize("credentials", ["another authority's", "none"])
def test_the_cloud_does_not_speak_with_a_device_of_another_authority(network, credentials):
    """An attacker who does not care who the cloud is, gets nothing out of it all the same."""
    _, kits, _, _, _, other = network
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if credentials != "none":
        context.load_cert_chain(other[1].certificate, other[1].key)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        talk(context, kits["cloud"])


def test_a_device_cannot_pass_for_the_cloud(network):
    """Its certificate is of the right authority, and good for connecting only."""
    _, kits, *_ = network
    honest = kits[HONEST]
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(kits[THIEF].certificate, kits[THIEF].key)
    client = ssl.create_default_context(cafile=str(honest.root))
    client.check_hostname = False
    a, b, c, d = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(a, b), server.wrap_bio(c, d, server_side=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        for _ in range(6):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
            a.write(d.read())
            c.write(b.read())


def test_the_cloud_binds_the_address_given(network):
    """On loopback nobody else can even try."""
    _, kits, *_ = network
    kit = kits["cloud"]
    assert listening([os.getpid()]) >= {(ipaddress.ip_address("127.0.0.1"), kit.port)}
    assert not [at for at in listening([os.getpid()]) if at[1] == kit.port
                and not at[0].is_loopback]


def talk(context, kit):
    """A TLS connection and the first bytes of the other side."""
    with (socket.create_connection((kit.host, kit.port), timeout=5) as plain,
          context.wrap_socket(plain, server_hostname=kit.host) as secure):
        time.sleep(0.1)
        if not secure.recv(1):
            raise ConnectionError("closed")
