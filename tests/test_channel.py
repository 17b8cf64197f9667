"""Messages: what is counted is what would be sent, and what compression loses comes later."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import channel, methods
from mlecs_jax.assemble import from_samples
from mlecs_jax.codecs import Uplink, codec
from mlecs_jax.config import ChannelConfig
from mlecs_jax.errors import UserError
from tests.methods.rounds import build
from tests.small import config, samples


def test_bytes_are_those_of_the_packed_message():
    tree = {"lora": {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4, jnp.bfloat16)},
            "modalities": np.zeros(1, np.int32)}
    message = channel.pack(tree)
    assert set(message) == {"lora/a", "lora/b", "modalities"}
    assert channel.num_bytes(tree) == sum(x.nbytes for x in message.values()) == 24 + 8 + 4
    assert channel.num_bytes(jax.eval_shape(lambda: tree)) == 36
    restored = channel.unpack(message)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)


def decoded(name: str, x: np.ndarray, fraction: float = 0.1) -> np.ndarray:
    found = codec(ChannelConfig(name, fraction))
    return np.asarray(found.decode(found.encode(jnp.asarray(x)), x.shape))


def test_errors_of_the_encodings_are_bounded():
    x = np.random.default_rng(0).standard_normal((7, 5, 3)).astype(np.float32)
    assert np.all(np.abs(decoded("bf16", x) - x) <= np.abs(x) * 2.0**-8)
    # int8 by hand: steps of max/127, so an entry is off by half a step at most.
    assert np.abs(decoded("int8", x) - x).max() <= np.abs(x).max() / 127 / 2 * 1.0001
    kept = decoded("topk", x)  # ceil(.1 · 105) = 11 entries, exact, the others 0
    largest = np.sort(np.abs(x).ravel())[-11]
    np.testing.assert_array_equal(kept, np.where(np.abs(x) >= largest, x, 0.0))


def test_int8_of_a_zero_tensor_is_zero():
    np.testing.assert_array_equal(decoded("int8", np.zeros((2, 3), np.float32)), 0.0)


@pytest.mark.parametrize(("name", "expected"), [
    ("none", 4 * 70_000 + 4 * 6),
    ("bf16", 2 * 70_000 + 2 * 6),
    ("int8", 70_000 + 4 + 6 + 4),
    ("topk", 7_000 * (4 + 4) + 1 * (4 + 2)),  # positions: 4 bytes beyond 65,536 entries, else 2
])
def test_bytes_of_a_compressed_message(name, expected):
    tree = {"a": jnp.zeros((700, 100)), "b": jnp.zeros(6)}
    assert channel.num_bytes(Uplink(ChannelConfig(name, 0.1)).message(tree)) == expected


@pytest.mark.parametrize("name", ["bf16", "int8", "topk"])
def test_error_feedback_loses_nothing(name):
    """What the server has received over the rounds, plus what is kept, is what was to be sent."""
    uplink = Uplink(ChannelConfig(name, 0.2))
    rng = np.random.default_rng(0)
    known = {"w": jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)}
    kept = uplink.nothing_kept(known, 3)
    wanted, received = np.zeros((3, 4, 6)), np.zeros((3, 4, 6))
    for _ in range(5):
        own = {"w": known["w"] + rng.standard_normal((3, 4, 6)).astype(np.float32)}
        messages, kept = uplink.send(own, known, kept)
        assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(messages))
        received += np.asarray(uplink.receive(messages, known)["w"] - known["w"])
        wanted += np.asarray(own["w"] - known["w"])
    np.testing.assert_allclose(received + np.asarray(kept["w"]), wanted, atol=1e-5)


def one_round(**overrides):
    setting = from_samples(config(**{"train.rounds": 1} | overrides), samples())
    method = methods.build(setting)
    state = method.init(jax.random.key(0))
    communication = method.communication(state)
    return method.round(state, 0, jax.random.key(1))[0], communication


def test_ml_ecs_averages_what_arrives_and_counts_what_is_sent():
    exact, plain = one_round()
    coarse, packed = one_round(**{"channel.uplink": "int8"})
    assert jax.tree.leaves(exact.kept) == []
    assert all(leaf.shape[0] == 3 and jnp.any(leaf != 0) for leaf in jax.tree.leaves(coarse.kept))
    assert packed["downlink"] == plain["downlink"]
    assert plain["uplink"] / 4 < packed["uplink"] < plain["uplink"] / 2
    # The devices trained alike; only the average they get back is a little off.
    jax.tree.map(np.testing.assert_array_equal, exact.devices, coarse.devices)
    assert any(np.any(a != b) for a, b in zip(
        jax.tree.leaves(exact.broadcast), jax.tree.leaves(coarse.broadcast), strict=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02), exact.broadcast,
                 coarse.broadcast)


def test_refuses_what_cannot_be_sent():
    with pytest.raises(UserError, match="topk_fraction is 0"):
        config(**{"channel.topk_fraction": 0.0})
    with pytest.raises(UserError, match="method.broadcast=True"):
        one_round(**{"channel.uplink": "bf16", "method.broadcast": False})
    with pytest.raises(UserError, match="method.broadcast=True"):
        one_round(**{"aggregation.clip": 1.5, "method.broadcast": False})
    with pytest.raises(UserError, match="channel.uplink=int8 is not for localpub"):
        one_round(**{"channel.uplink": "int8", "method.name": "localpub"})


@pytest.mark.parametrize("option,value,named", [
    ("channel.uplink", "int8", "channel.uplink=int8"), ("privacy.clip", 1.0, "privacy"),
    ("aggregation.rule", "median", "aggregation")])
def test_what_a_users_method_does_not_go_by_is_refused(option, value, named):
    """Else its summary would state a privacy that nobody provides."""
    example = Path(__file__).parents[1] / "examples" / "fedprox_lora.py"
    with pytest.raises(UserError, match=rf"^{named} is not for .*fedprox_lora.py, whose uploads"):
        build(**{"method.name": str(example), option: value})
