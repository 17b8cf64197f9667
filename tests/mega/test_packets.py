"""Codecs keep their error bounds; the receiver takes what was sent, once, and nothing else."""

import collections
import struct
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlecs_jax.mega import codecs, packets
from mlecs_jax.mega.codecs import LADDER, Codec, CodecError
from mlecs_jax.mega.packets import Header, Limits, PacketError, Receiver, Sender

SHAPES = {"text": (12, 30), "audio": (20, 5), "vision": (9, 20)}
SESSION = 2**62 + 5
EXPECTED = {"end-0": Sender(SESSION, SHAPES), "end-1": Sender(SESSION, SHAPES)}

arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=7),
                    elements=st.floats(-(2.0**126), 2.0**126, width=32))


@pytest.mark.parametrize("codec", LADDER, ids=lambda codec: codec.name)
@settings(max_examples=40, deadline=None)
@given(values=arrays)
def test_decoding_stays_within_the_bound(codec, values):
    payload = codecs.encode(values, codec)
    decoded = codecs.decode(payload, values.shape, codec)
    error = np.abs(decoded.astype(np.float64) - values.astype(np.float64))
    assert (error <= codecs.error_bound(values, codec)).all()
    assert not decoded[values == 0].any()  # padding stays padding
    if codec.precision == "float32":
        np.testing.assert_array_equal(decoded, values)


def test_bounds_are_what_they_say():
    """Independent of the code: half a unit in the last place, and half an int8 step."""
    values = np.array([[1.0, -100.0], [0.5, 30.0]], np.float32)
    np.testing.assert_allclose(codecs.error_bound(values, Codec("float16", False)),
                               np.abs(values) / 2048, rtol=1e-3)
    np.testing.assert_allclose(codecs.error_bound(values, Codec("int8", True)),
                               [[0.5 / 127, 50 / 127]] * 2, rtol=1e-3)


def test_the_most_precise_codec_that_fits_is_chosen():
    values = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32)
    sizes = {codec: len(codecs.encode(values, codec)) for codec in LADDER}
    assert codecs.encode_within(values, 1e9)[0].name == "float32"
    assert codecs.encode_within(values, 60_000.0)[0].name == "float32"
    deflated = float(sizes[Codec("float32", True)])
    assert codecs.encode_within(values, deflated)[0].name in ("float32", "float32+zlib")
    assert codecs.encode_within(values, min(deflated, 59_999.0))[0].precision == "float32"
    assert codecs.encode_within(values, 30_001.0)[0].name == "float16"
    assert codecs.encode_within(values, 17_000.0)[0].precision == "int8"
    assert codecs.encode_within(values, 10.0)[1] == codecs.encode(values, Codec("int8", True))


def test_zeros_deflate_before_precision_is_given_up():
    values = np.zeros((50, 300), np.float32)
    values[-5:] = 0.3
    assert codecs.encode_within(values, 5_000.0)[0].name == "float32+zlib"


def test_codecs_refuse_what_is_not_finite_and_unknown_names():
    for value in (np.inf, np.nan, 3e38):
        with pytest.raises(CodecError, match="not finite; clean"):
            codecs.encode(np.array([value], np.float32), LADDER[0])
    with pytest.raises(CodecError, match="a scalar"):
        codecs.encode(np.array(1.0, np.float32), LADDER[0])
    for name in ("float64", "int8+gzip", "zlib", "+zlib", ""):
        with pytest.raises(CodecError, match="unknown"):
            Codec.parse(name)


def test_a_deflated_bomb_is_not_inflated():
    bomb = zlib.compress(bytes(10**8), 9)
    with pytest.raises(CodecError, match="does not end after 8 bytes"):
        codecs.decode(bomb, (2,), Codec("float32", True))


def make(rng, device="end-0", sequence=0, codec=None, **changes) -> bytes:
    modality = changes.pop("modality", "text")
    values = rng.standard_normal(SHAPES[modality]).astype(np.float32)
    codec = codec or LADDER[int(rng.integers(len(LADDER)))]
    header = Header(
        1_700_000_000_000_000 + sequence % 1000, device, changes.pop("session", SESSION), sequence,
        modality, values.shape, 0.75, codec.name)
    return packets.encode(header, codecs.encode(values, codec))


def test_a_packet_arrives_as_it_was_sent():
    rng = np.random.default_rng(1)
    receiver = Receiver(EXPECTED)
    sent = rng.standard_normal(SHAPES["audio"]).astype(np.float32)
    header = Header(12, "end-1", SESSION, 3, "audio", sent.shape, 0.5, "float16+zlib")
    packet = receiver.receive(packets.encode(header, codecs.encode(
        sent, Codec("float16", True))))
    assert packet is not None and packet.header == header
    np.testing.assert_allclose(packet.values, sent, rtol=2**-10)
    assert receiver.accepted == 1 and not receiver.refused
    assert make(rng)  # and headers are small
    assert len(packets.encode(header, b"")) < 150


def test_replays_are_refused_and_late_packets_taken_once():
    rng = np.random.default_rng(2)
    receiver = Receiver(EXPECTED, Limits(window=8))
    sent = {i: make(rng, sequence=i) for i in range(40)}
    order = [0, 2, 1, 2, 1, 5, 3, 30, 24, 23, 22, 30, 4, 31]
    taken = [i for i in order if receiver.receive(sent[i])]
    assert taken == [0, 2, 1, 5, 3, 30, 24, 23, 31]  # 22 and 4 are older than the window
    assert receiver.refused == {"replayed": 5}
    assert receiver.receive(make(rng, device="end-1", sequence=2))  # each device counts its own


def test_strangers_and_unexpected_shapes_are_refused():
    rng = np.random.default_rng(3)
    receiver = Receiver({"end-0": Sender(SESSION, {"audio": SHAPES["audio"]})})
    assert receiver.receive(make(rng, device="end-9", modality="audio")) is None
    assert receiver.receive(make(rng, modality="text")) is None
    assert receiver.refused == {"unregistered": 1, "unexpected": 1}
    # A refused packet does not use up its number.
    assert receiver.receive(make(rng, modality="audio"))


def test_a_restarted_device_begins_at_zero_again_and_its_past_is_refused():
    rng = np.random.default_rng(6)
    expected = {"end-0": Sender(1, SHAPES)}
    receiver = Receiver(expected)
    old = [make(rng, sequence=i, session=1) for i in range(100)]
    assert all(receiver.receive(data) for data in old[:99])
    assert receiver.receive(make(rng, sequence=0, session=2)) is None  # before it registers
    expected["end-0"] = Sender(2, SHAPES)
    assert receiver.receive(make(rng, sequence=0, session=2))
    assert receiver.receive(old[99]) is None and receiver.receive(old[0]) is None
    assert receiver.receive(make(rng, sequence=1, session=2))
    assert receiver.refused == {"session": 3}
    expected["end-7"] = Sender(3, SHAPES)  # a live mapping: who registers later is let in
    assert receiver.receive(make(rng, device="end-7", session=3))
    del expected["end-0"]
    assert receiver.receive(make(rng, sequence=2, session=2)) is None
    assert receiver.refused["unregistered"] == 1


def test_a_forged_number_cannot_lock_a_device_out():
    rng = np.random.default_rng(7)
    receiver = Receiver(EXPECTED, Limits(jump=100))
    for sequence in (2**63 - 1, 2**40, 100):  # the first may be 99: 100 are lost at most
        assert receiver.receive(make(rng, sequence=sequence)) is None
    assert receiver.receive(make(rng, sequence=0)) and receiver.receive(make(rng, sequence=100))
    assert receiver.refused == {"ahead": 3}


def test_strangers_payloads_are_not_inflated(monkeypatch):
    rng = np.random.default_rng(8)
    receiver = Receiver({"end-0": EXPECTED["end-0"]})
    again = make(rng)
    assert receiver.receive(again)

    def inflate(*arguments):
        raise AssertionError("decoded before it was known who sends")

    monkeypatch.setattr(packets.codecs, "decode", inflate)
    wrong = Header(1, "end-0", SESSION, 1, "text", (3, 3), 1.0, "float32")
    for data in (make(rng, device="end-9"), make(rng, session=9), make(rng, sequence=2**50), again,
                 packets.encode(wrong, bytes(36))):
        assert receiver.receive(data) is None
    assert sum(receiver.refused.values()) == 5


def test_a_damaged_payload_does_not_use_up_its_number():
    rng = np.random.default_rng(9)
    receiver = Receiver(EXPECTED)
    good = make(rng, codec=Codec("float32", True))
    assert receiver.receive(resealed(good[:-8] + bytes(8))) is None
    assert receiver.refused == {"payload": 1} and receiver.receive(good)


def test_oversized_packets_are_refused_unread():
    rng = np.random.default_rng(4)
    data = make(rng, codec=Codec("float32", False))
    with pytest.raises(PacketError, match="oversized"):
        packets.decode(data, Limits(packet_bytes=len(data) - 1))
    with pytest.raises(PacketError, match="oversized: an array"):
        packets.decode(data, Limits(values=12 * 30 - 1))
    assert packets.decode(data, Limits(len(data), 12 * 30))


def resealed(data: bytes) -> bytes:
    """The same packet under the CRC of what it holds now."""
    return data[:-4] + struct.pack(">I", zlib.crc32(data[:-4]))


def sealed(fields: dict, payload: bytes, **prefix) -> bytes:
    """A packet of any header under a valid CRC, as a faulty or hostile sender would make it."""
    packed = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    body = struct.pack(">4sBH", prefix.get("magic", b"MCE2"), prefix.get("version", 2),
                       prefix.get("length", len(packed))) + packed + payload
    return body + struct.pack(">I", zlib.crc32(body))


GOOD = {"time_us": 5, "device": "end-0", "session": SESSION, "sequence": 0,
        "modality": "audio", "shape": [20, 5], "dtype": "float32", "quality": 1.0,
        "codec": "float32"}
PAYLOAD = np.ones((20, 5), "<f4").tobytes()


def test_the_hand_made_packet_is_a_packet():
    assert packets.decode(sealed(GOOD, PAYLOAD)).values.sum() == 100


@pytest.mark.parametrize("change", [
    {"time_us": -1}, {"time_us": "5"}, {"time_us": True}, {"device": ""}, {"device": 7},
    {"device": b"end-0"}, {"session": -1}, {"session": 4}, {"sequence": -1}, {"sequence": 2**63},
    {"sequence": 1.0},
    {"shape": [20, 6]}, {"shape": [-20, -5]}, {"shape": [0, 5]}, {"shape": [2**31, 2**31]},
    {"shape": [100]}, {"shape": []}, {"shape": [20.0, 5]}, {"shape": 100},
    {"shape": [1, 1, 1, 20, 5]},
    {"shape": [True, 100]}, {"dtype": "float64"}, {"dtype": "object"}, {"quality": 2.0},
    {"quality": float("nan")}, {"quality": 1}, {"codec": "float16"}, {"codec": "int8+zlib"},
    {"codec": "pickle"}, {"modality": "smell"}, {"extra": 1}, {"codec": None},
], ids=str)
def test_wrong_headers_are_refused_under_a_good_crc(change):
    receiver = Receiver(EXPECTED)
    assert receiver.receive(sealed(GOOD | change, PAYLOAD)) is None
    assert sum(receiver.refused.values()) == 1


@pytest.mark.parametrize("data", [
    sealed(dict(reversed(GOOD.items())), PAYLOAD), sealed(b"\xc1", PAYLOAD), sealed(b"", PAYLOAD),
    sealed(b"\x91" * 1000, b""), sealed(msgpack.packb([1, 2]), PAYLOAD),
    sealed(msgpack.packb({"a": msgpack.ExtType(1, b"")}), b""), sealed({}, PAYLOAD),
    sealed(GOOD, PAYLOAD, length=60_000), sealed(GOOD, PAYLOAD, length=3),
    sealed(GOOD, PAYLOAD, magic=b"MCE3"), sealed(GOOD, PAYLOAD, version=1),
    sealed(GOOD, PAYLOAD[:-1]), sealed(GOOD, PAYLOAD + b"\0"), sealed(GOOD, b""),
    sealed(GOOD, np.full((20, 5), np.nan, "<f4").tobytes()),
    sealed(GOOD | {"codec": "int8"}, np.full(5, -1, "<f4").tobytes() + bytes(100)),
    sealed(GOOD | {"codec": "int8"}, np.full(5, np.nan, "<f4").tobytes() + bytes(100)),
    sealed(GOOD | {"codec": "int8"}, np.full(5, 3e38, "<f4").tobytes() + b"\x7f" * 100),
    sealed(GOOD | {"codec": "float16"}, b"\x7f" + np.full(100, 4, "<f2").tobytes()),
    sealed(GOOD | {"codec": "float32+zlib"}, zlib.compress(PAYLOAD) + b"x"),
    sealed(GOOD | {"codec": "float32+zlib"}, zlib.compress(PAYLOAD)[:-1]),
    b"", b"MCE2", bytes(11),
], ids=range(24))
def test_hostile_packets_are_refused(data):
    receiver = Receiver(EXPECTED)
    assert receiver.receive(data) is None
    assert sum(receiver.refused.values()) == 1


def mutate(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """One of nine kinds of damage."""
    raw, kind = bytearray(data), int(rng.integers(9))
    at = int(rng.integers(len(raw)))
    if kind == 0:  # bits flip
        for bit in rng.integers(8 * len(raw), size=int(rng.integers(1, 9))):
            raw[bit // 8] ^= 1 << (bit % 8)
    elif kind == 1:  # a byte is replaced
        raw[at] = int(rng.integers(256))
    elif kind == 2:  # cut short
        del raw[at:]
    elif kind == 3:  # grows
        raw += rng.bytes(int(rng.integers(1, 50)))
    elif kind == 4:  # a piece is lost
        del raw[at:at + int(rng.integers(1, 20))]
    elif kind == 5:  # a burst of noise
        noise = rng.bytes(int(rng.integers(1, 64)))
        raw[at:at + len(noise)] = noise[:len(raw) - at]
    elif kind == 6:  # spliced with another packet
        raw = raw[:at] + bytearray(other[int(rng.integers(len(other))):])
    elif kind == 7:  # in the header alone, under a CRC made anew
        raw[int(rng.integers(header_end(data)))] ^= 1 << int(rng.integers(8))
        return resealed(bytes(raw))
    else:  # in the payload alone, under a CRC made anew
        raw[int(rng.integers(header_end(data), len(raw) - 4))] ^= 1 << int(rng.integers(8))
        return resealed(bytes(raw))
    return bytes(raw)


def header_end(data: bytes) -> int:
    return 7 + struct.unpack(">H", data[5:7])[0]


def test_ten_thousand_mutated_packets():
    """None crashes, and none is taken unless it says, well formed, what a device might have said.

    Damage under the old CRC must be refused outright. Under a CRC made anew, what is taken must
    be a packet in every respect: it encodes to the very same bytes. Of those, a changed value in
    an array that is not deflated is a reading like any other, a deflated one has a checksum of
    its own; of headers what is taken has another time, quality, number, device or, of the same
    shape, codec.
    """
    rng = np.random.default_rng(5)
    names = list(SHAPES)
    sent = [make(rng, device=f"end-{i % 2}", sequence=i, modality=names[i % 3])
            for i in range(60)]
    originals = set(sent)
    reasons: collections.Counter[str] = collections.Counter()
    tried = 0
    while tried < 10_000:
        tried_from = tried % 60
        data = mutate(rng, sent[tried_from], sent[int(rng.integers(60))])
        if data in originals:
            continue
        tried += 1
        receiver = Receiver(EXPECTED)
        packet = receiver.receive(data)
        reasons.update(receiver.refused)
        if packet is None:
            continue
        assert zlib.crc32(data[:-4]) == struct.unpack(">I", data[-4:])[0]
        assert packets.encode(packet.header, data[header_end(data):-4]) == data
        assert packet.values.shape == EXPECTED[packet.header.device].shapes[
            packet.header.modality]
        assert np.isfinite(packet.values).all() and 0 <= packet.header.quality <= 1
        if packet.header.codec.endswith("+zlib"):
            original = sent[tried_from]
            assert data[header_end(data):-4] == original[header_end(original):-4]
        reasons["valid"] += 1
    assert sum(reasons.values()) == 10_000
    assert 200 < reasons["valid"] < 1_500 and reasons["payload"] > 300
    assert reasons["corrupted"] > 6_000 and reasons["header"] > 300 and reasons["truncated"] > 0
