"""Profiles in, working points out; and what an end device makes of its own."""

import dataclasses
import math

import msgpack
import numpy as np
import pytest

from mlecs_jax.mega import registration
from mlecs_jax.mega.end_device import EndDevice, clean
from mlecs_jax.mega.links import Link
from mlecs_jax.mega.packets import Receiver, Sender
from mlecs_jax.mega.registration import Demand, Profile, RegistrationError, Registry

DEMAND = Demand(lengths={"text": 50, "audio": 375, "vision": 500},
                widths={"text": 300, "audio": 5, "vision": 20})
PROFILE = Profile(id="end-0.0", hardware="4 cores", compute=1e10, memory=2**30,
                  sensors={"text": 5.0, "audio": 50.0, "vision": 25.0},
                  link_up=6.25e6, link_down=6.25e6, link_rtt=0.004)


def reply_to(**changes):
    return registration.configure(dataclasses.replace(PROFILE, **changes), DEMAND, session=7)


def test_an_able_device_is_asked_for_everything():
    reply = reply_to()
    assert reply.lengths == DEMAND.lengths and reply.batch == 16 and reply.dtype == "float32"
    assert reply.sample_rate == {"text": 5.0, "audio": 37.5, "vision": 25.0}  # vision: sensor's
    assert reply.level == 9 and reply.deadline == 0.05


def test_precision_follows_bandwidth_times_deadline():
    """107.5 kB of float32; (50 ms − 4 ms) × bandwidth must carry it."""
    needed = (60_000 + 7_500 + 40_000) / 0.046
    assert reply_to(link_up=needed * 1.01).dtype == "float32"
    assert reply_to(link_up=needed * 0.99).dtype == "float16"
    assert reply_to(link_up=needed * 0.51).dtype == "float16"
    assert reply_to(link_up=needed * 0.49).dtype == "int8"
    assert reply_to(link_up=1.0).dtype == "int8"


def test_little_memory_shortens_sequences_then_batches():
    segment = 4 * 4 * 26_875  # bytes × copies × values
    assert reply_to(memory=segment * 8).batch == 8
    half = reply_to(memory=segment // 2)
    assert half.lengths == {"text": 25, "audio": 187, "vision": 250} and half.batch == 1
    with pytest.raises(RegistrationError, match="not enough memory"):
        reply_to(memory=1000)


def test_a_slow_device_gets_small_batches_and_quick_compression():
    slow = reply_to(compute=1e8)
    assert slow.batch == 5 and slow.level == 1
    assert reply_to(compute=1.0).batch == 1


def test_a_device_without_a_camera_sends_what_it_has():
    reply = reply_to(sensors={"audio": 8.0, "smell": 1.0})
    assert reply.lengths == {"audio": 375} and reply.sample_rate == {"audio": 8.0}
    with pytest.raises(RegistrationError, match="none of the wanted sensors"):
        reply_to(sensors={"smell": 1.0})


def test_the_exchange_on_the_wire():
    sessions = iter((7, 8))
    registry = Registry(DEMAND, draw_session=lambda: next(sessions))
    answer = registry.register(registration.pack(PROFILE))
    assert answer is not None
    assert registration.unpack_reply(answer) == reply_to() == registry.replies["end-0.0"]
    assert registry.senders == {"end-0.0": Sender(
        7, {"text": (50, 300), "audio": (375, 5), "vision": (500, 20)})}
    again = dataclasses.replace(PROFILE, memory=4 * 4 * 26_875)
    registry.register(registration.pack(again))  # a device may come back changed
    assert len(registry.profiles) == 1 and registry.replies["end-0.0"].batch == 1
    assert registry.senders["end-0.0"].session == 8
    first, second = (Registry(DEMAND) for _ in range(2))
    for other in (first, second):
        other.register(registration.pack(PROFILE))
    assert first.senders != second.senders  # sessions of an edge's next life are others


def test_a_registry_has_room_for_so_many():
    registry = Registry(DEMAND, capacity=2)
    messages = [registration.pack(dataclasses.replace(PROFILE, id=f"end-{i}")) for i in range(3)]
    answers = [registry.register(message) for message in messages]
    assert [answer is None for answer in answers] == [False, False, True]
    assert registry.refused == {"no room for another device": 1}
    assert registry.register(messages[0])  # who is known may come again
    registry.forget("end-1")
    registry.forget("end-1")
    assert registry.register(messages[2]) and set(registry.senders) == {"end-0", "end-2"}
    assert set(registry.profiles) == set(registry.replies) == set(registry.senders)


def test_a_restarted_device_is_not_locked_out():
    """From the device's memory to the edge: a new process counts from 0 in a new session."""
    registry = Registry(DEMAND)
    receiver = Receiver(registry.senders)
    reading = {"audio": np.ones((3, 5))}
    for _ in range(3):
        answer = registry.register(registration.pack(PROFILE))
        assert answer is not None
        device = EndDevice(PROFILE.id, registration.unpack_reply(answer), PROFILE.link)
        for _ in range(70):
            assert all(receiver.receive(data) for data in device.serialise(reading))
    assert receiver.accepted == 210 and not receiver.refused


@pytest.mark.parametrize("change", [
    {"id": ""}, {"id": "x" * 65}, {"compute": -1.0}, {"compute": math.nan}, {"memory": 0},
    {"memory": 1.5}, {"link_up": 0.0}, {"link_rtt": math.inf}, {"sensors": {"text": "fast"}},
    {"sensors": {"text": 0.0}}, {"sensors": []}, {"hardware": None}, {"more": 1},
    {"hardware": "x" * 5000}, {"sensors": {}},
], ids=lambda change: str(change)[:40])
def test_bad_profiles_are_refused_and_counted(change):
    registry = Registry(DEMAND)
    message = msgpack.packb(dataclasses.asdict(PROFILE) | change)
    assert registry.register(message) is None
    assert sum(registry.refused.values()) == 1 and not registry.profiles


def test_noise_is_refused():
    rng = np.random.default_rng(0)
    registry = Registry(DEMAND)
    good = registration.pack(PROFILE)
    for _ in range(500):
        raw = bytearray(good)
        for at in rng.integers(len(raw), size=3):
            raw[at] ^= 1 << int(rng.integers(8))
        registry.register(bytes(raw))  # a changed number is another profile; nothing raises
        registry.register(bytes(raw[:int(rng.integers(len(raw)))]))
    assert registry.refused["not msgpack"] > 300
    for reply in (b"", b"\xc1", registration.pack(PROFILE)):
        with pytest.raises(RegistrationError):
            registration.unpack_reply(reply)


def test_cleaning_repairs_what_sensors_break():
    audio = np.array([[-np.inf, 1.0], [2.0, np.nan], [5e6, -50.0]])
    values, quality = clean("audio", audio, 5)
    np.testing.assert_array_equal(values, [[0, 0], [0, 0], [0, 1], [2, 0], [0, -50]])
    assert quality == pytest.approx(3 / 10) and values.dtype == np.float32
    face = np.array([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    values, quality = clean("vision", face, 5)
    np.testing.assert_array_equal(values, [[0, 0], [1, 2], [1, 2], [1, 2], [3, 0]])
    assert quality == pytest.approx(4 / 10)
    np.testing.assert_array_equal(clean("text", face, 2)[0], [[0, 0], [3, 0]])  # newest kept
    assert clean("text", np.zeros((0, 3)), 2)[1] == 0.0
    for modality, reading in (("smell", face), ("text", face[0]), ("text", np.zeros((2, 0)))):
        with pytest.raises(ValueError):
            clean(modality, reading, 3)


def test_a_device_sends_packets_that_its_edge_takes_before_the_deadline():
    rng = np.random.default_rng(1)
    readings = {name: rng.standard_normal((steps, DEMAND.widths[name]))
                for name, steps in DEMAND.lengths.items()}
    link = Link(1.5e6, 1.5e6, 0.004)  # carries 69 kB in 46 ms: float16
    profile = dataclasses.replace(PROFILE, link_up=1.5e6)
    registry = Registry(DEMAND)
    answer = registry.register(registration.pack(profile))
    assert answer is not None
    device = EndDevice(profile.id, registration.unpack_reply(answer), link, clock=lambda: 12.5)
    receiver = Receiver(registry.senders)
    sent = device.serialise(readings) + device.serialise(readings)
    packets = [receiver.receive(data) for data in sent]
    assert receiver.accepted == 6 and not receiver.refused
    assert [p.header.sequence for p in packets if p] == list(range(6))
    assert {p.header.time_us for p in packets if p} == {12_500_000}
    assert {p.header.codec for p in packets if p} == {"float16"}
    assert link.upload(sum(map(len, sent[:3]))) <= 0.051
    assert packets[0] is not None
    np.testing.assert_allclose(packets[0].values, readings["text"], rtol=1e-3, atol=1e-4)
