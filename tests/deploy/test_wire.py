"""Messages as bytes: what goes in comes out, what is counted is sent, and nothing else passes."""

import dataclasses
import pickle
import tracemalloc

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlecs_jax import channel
from mlecs_jax.deploy import admission, wire
from mlecs_jax.deploy.wire import Header, Message, WireError

HEADER = Header("round", "run.1-ab", 3, "d0", 2, 7)
LIMIT = 1 << 20


def message(**arrays):
    return Message(HEADER, arrays or {"lora/a": np.arange(6, dtype=np.float32).reshape(2, 3),
                                      "modalities": np.array(2, np.int32)})


def reason(data, limit=LIMIT):
    with pytest.raises(WireError) as caught:
        wire.decode(data, limit_bytes=limit)
    return caught.value.reason


def test_every_type_comes_back_bit_for_bit():
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (2, 3)).astype(kind) for name, kind in
              channel.DTYPES.items()}
    arrays |= {"scalar": np.array(np.nan, np.float32), "empty": np.zeros((0, 4), np.int8),
               "bf": np.asarray(jnp.asarray(rng.standard_normal(5), jnp.bfloat16)),
               "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    found = wire.decode(wire.encode(Message(HEADER, arrays)), limit_bytes=LIMIT)
    assert found.header == HEADER and set(found.arrays) == set(arrays)
    for path, values in arrays.items():
        assert found.arrays[path].dtype == values.dtype
        assert found.arrays[path].shape == values.shape
        assert found.arrays[path].tobytes() == np.ascontiguousarray(values).tobytes()
        assert found.arrays[path].flags.writeable


def test_the_payload_is_what_the_simulation_counts():
    tree = {"lora": {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4, jnp.bfloat16)},
            "modalities": np.zeros((), np.int32)}
    _, payload = channel.serialise(channel.pack(tree))
    assert len(payload) == channel.num_bytes(tree) == 24 + 8 + 4
    data = wire.encode(Message(HEADER, channel.pack(tree)))
    assert msgpack.unpackb(data)[3] == payload


def test_objects_do_not_travel():
    with pytest.raises(ValueError, match="object, which no message holds"):
        wire.encode(message(x=np.array([{}], object)))
    assert reason(pickle.dumps({"a": 1})) == "malformed"


def test_any_flipped_bit_is_found():
    data = wire.encode(message())
    for at in range(0, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        reason(bytes(damaged))  # some reason; never a message


def altered(**changes):
    """The bytes of a message with other parts, its checksum made anew where it can be."""
    schema, header, rows, payload = msgpack.unpackb(wire.encode(message()))
    header |= changes.pop("header", {})
    parts = {"schema": schema, "rows": rows, "payload": payload} | changes
    bare = {name: value for name, value in header.items() if name != "checksum"}
    header = bare | {"checksum": header.get("checksum") if changes.get("keep") else wire._checksum(
        bare, parts["rows"], parts["payload"])}
    return msgpack.packb([parts["schema"], header, parts["rows"], parts["payload"]])


def test_what_is_no_message_is_told_apart():
    assert wire.decode(altered(), limit_bytes=LIMIT).header == HEADER
    assert reason(b"") == reason(b"\x00") == reason(b"\xff" * 40) == "malformed"
    assert reason(msgpack.packb({"a": 1})) == reason(msgpack.packb([1, 2])) == "malformed"
    assert reason(wire.encode(message()), limit=50) == "oversized"
    assert reason(altered(schema=2)) == "schema"
    assert reason(altered(header={"kind": "surprise"})) == "kind"
    assert reason(altered(header={"round": "3"})) == "malformed"
    assert reason(altered(header={"round": True})) == "malformed"
    assert reason(altered(header={"more": 1})) == "malformed"


@pytest.mark.parametrize("rows", [
    "x", [["a", "float32"]], [["", "float32", [1]]], [["a", "object", [1]]],
    [["a", "float32", [-1]]], [["a", "float32", ["1"]]], [["a", "float32", [1] * 9]],
    [["a", "float32", [2**40, 2**40]]], [["a", "float32", [7]], ["modalities", "int32", []]],
    [["a", "float32", [3]], ["a", "float32", [4]]], [["a" * 600, "float32", [7]]]])
def test_tables_that_lie_are_refused(rows):
    assert reason(altered(rows=rows)) == "malformed"


def structure(middle):
    """Bytes with a proper payload whose header and table are something else."""
    return b"\x94\x01" + middle + b"\xc4\x00"


@pytest.mark.parametrize("middle", [
    b"\x80\xdd" + (1 << 22).to_bytes(4, "big") + b"\x90" * (1 << 22),  # four million empty lists
    b"\x80\xdc\xff\xff" + b"\x90" * 0xffff,  # more rows than a message has
    b"\x80\x9f" + (b"\xdc\x10\x00" + b"\x90" * 4096) * 15,  # as many as may be, nested
    b"\x91" * (1 << 17) + b"\x80",  # lists in lists in lists
    b"\xde\xff\xff" + b"\xa1a\x01" * 0xffff + b"\x90"])
def test_little_memory_goes_into_what_is_no_message(middle):
    tracemalloc.start()
    try:
        assert reason(structure(middle), limit=1 << 28) == "malformed"
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_more_arrays_than_a_message_holds_are_not_sent():
    with pytest.raises(ValueError, match="more than a message holds"):
        wire.encode(message(**{str(i): np.zeros(1, np.int8) for i in range(wire.MAX_ROWS + 1)}))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data):
    reason(data)


TEMPLATE = {"lora/a": np.zeros((2, 3), np.float32), "modalities": np.int32(0)}


@pytest.mark.parametrize(("changed", "expected"), [
    ({"lora/a": np.full((2, 3), np.nan, np.float32)}, "not_finite"),
    ({"lora/a": np.array([[1, 2, np.inf]] * 2, np.float32)}, "not_finite"),
    ({"lora/a": np.zeros((3, 2), np.float32)}, "shape"),
    ({"lora/a": np.zeros((2, 3), np.float64)}, "dtype"),
    ({"secret": np.zeros(1)}, "path"),
    ({"modalities": np.array(3, np.int32)}, "modalities")])
def test_uploads_that_are_not_as_asked(changed, expected):
    arrays = {"lora/a": np.ones((2, 3), np.float32), "modalities": np.array(2, np.int32)}
    admission.check_upload(Message(HEADER, arrays), TEMPLATE)
    with pytest.raises(WireError) as caught:
        admission.check_upload(Message(HEADER, arrays | changed), TEMPLATE)
    assert caught.value.reason == expected


def test_a_missing_array_is_named():
    with pytest.raises(WireError, match="path: 'lora/a' is missing"):
        admission.check_upload(Message(HEADER, {"modalities": np.array(2, np.int32)}), TEMPLATE)


@pytest.mark.parametrize(("changed", "expected"), [
    ({"sender": "d1"}, "sender"), ({"session": "run.0-ab"}, "session"), ({"serial": 6}, "replay"),
    ({"serial": 8}, "kind"), ({"kind": "evaluate"}, "kind"), ({"round": 2}, "round"),
    ({"modalities": 0}, "modalities"), ({"modalities": 4}, "modalities")])
def test_answers_to_something_else(changed, expected):
    asked = dataclasses.replace(HEADER, sender=wire.CLOUD, modalities=0)
    admission.check_answer(asked, "d0", message(), 3)
    with pytest.raises(WireError) as caught:
        admission.check_answer(
            asked, "d0", Message(dataclasses.replace(HEADER, **changed), {}), 3)
    assert caught.value.reason == expected


@pytest.mark.parametrize(("path", "value", "fine"), [
    ("scores/val/after_amt/f1", 0.5, True), ("scores/val/after_amt/f1", np.nan, True),
    ("scores/val/after_amt/f1", 1.5, False), ("losses/amt/lm", np.nan, True),
    ("losses/amt/lm", np.inf, False), ("readings", -1, False)])
def test_what_a_device_says_of_itself_must_be_possible(path, value, fine):
    arrays = {path: np.array(value)}
    if fine:
        admission.check_scores(Message(HEADER, arrays), arrays)
    else:
        with pytest.raises(WireError, match="range"):
            admission.check_scores(Message(HEADER, arrays), arrays)
