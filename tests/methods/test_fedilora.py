"""FediLoRA: ranks stay apart in training, editing by hand, bytes of each device's own ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import channel
from mlecs_jax.errors import UserError
from mlecs_jax.methods import fedilora
from tests.methods.rounds import KEY, UNEQUAL, begun, build, run

NAME = {"method.name": "fedilora", "method.fedilora.ranks": "4,1"}


def test_devices_train_their_own_ranks_only():
    setting, method, state = build(**NAME)
    after, _ = run(method, state)
    c_attn = after.devices[0]["lora"]["block_0"]["attention"]["c_attn"]
    used = np.abs(c_attn["a"]).sum(1) > 0
    np.testing.assert_array_equal(used, [[True] * 4, [True] + [False] * 3, [True] * 4])
    np.testing.assert_array_equal(np.abs(c_attn["b"]).sum((2, 3)) > 0, used)
    whole = channel.num_bytes(after.broadcast)
    assert method.communication(after) == {"uplink": whole * 3 // 4 + 8, "downlink": whole * 3 // 4}
    # The adapters' scale α/r is that of the configuration, whatever the rank.
    lora, decoder = setting.config.lora, setting.slm.decoder
    assert fedilora.with_rank(setting, 4).slm.decoder.lora_config.alpha / 4 == (
        decoder.lora_config.alpha / lora.rank)


def test_editing_blends_the_least_alike_layer():
    """Two layers of one device, r = 1, by hand::

        layer 0: A = (1, 0), received (1, 1):  c = 1/√2
        layer 1: A = (0, 2), received (4, 3):  c = 6/(2·5) = .6, the smallest and below .95
        A_1 ← .6 · (0, 2) + .4 · (4, 3) = (1.6, 2.4); layer 0 and all B stay.

    A second device whose layers all agree to .95 or more keeps them. Opposite vectors have c < 0,
    cut to 0: the received one replaces them.
    """
    def layer(rows):
        return {"a": jnp.array(rows, jnp.float32)[:, :, None], "b": jnp.ones((3, 1, 2))}

    local = {"block_0": layer([[1, 0], [1, 2], [1, 0]]),
             "block_1": layer([[0, 2], [2, 2], [-1, 0]])}
    received = {"block_0": layer([[1, 1], [1, 2], [1, 0]]),
                "block_1": layer([[4, 3], [2, 2.1], [2, 0]])}
    received["block_1"]["b"] *= 7
    got = fedilora.edit_least_alike(local, received, 0.95)
    np.testing.assert_allclose(got["block_1"]["a"][..., 0], [[1.6, 2.4], [2, 2], [2, 0]], rtol=1e-6)
    np.testing.assert_array_equal(got["block_0"]["a"], local["block_0"]["a"])
    np.testing.assert_array_equal(got["block_1"]["b"], local["block_1"]["b"])

    # The same layers stacked for a scan: A [C, L, d, r].
    def stack(tree):
        blocks = [tree["block_0"], tree["block_1"]]
        return {"blocks": jax.tree.map(lambda *x: jnp.stack(x, axis=1), *blocks)}

    again = fedilora.edit_least_alike(stack(local), stack(received), 0.95)
    np.testing.assert_allclose(again["blocks"]["a"][:, 1], got["block_1"]["a"], rtol=1e-6)
    np.testing.assert_allclose(again["blocks"]["a"][:, 0], got["block_0"]["a"], rtol=1e-6)


@pytest.mark.parametrize(("r", "edit_below", "edited"), [
    (0, 0.95, False), (1, 0.95, True), (2, 0.95, True), (1, 0.4, False)])
def test_devices_edit_from_the_second_round_and_the_server_weighs_by_samples(
        r, edit_below, edited, monkeypatch):
    """By hand. Devices of ranks 4, 1, 4 and of 60, 40, 40 samples receive 1 in their own ranks.
    Training leaves a quarter of the rows of A and adds 1, 2, 3 to B::

        A: c = (1/4)/√(1/4) = 1/2 < .95; edited it is c · (1, 0, 0, 0) + (1 − c) · (1, 1, 1, 1)
           = (1, ½, ½, ½), in quarters of the rows, and the same for all devices
        B: rank 0 of all (60·2 + 40·3 + 40·4)/140 = 20/7, others of 0 and 2 (60·2 + 40·4)/100 = 2.8
    """
    def trained(params, clients):
        (a, b), tree = jax.tree.flatten(params["lora"])
        left = jnp.where(jnp.arange(a.shape[1])[:, None] < a.shape[1] // 4, a, 0.0)
        number = (clients + 1.0).reshape(-1, 1, 1, 1)
        return params | {"lora": tree.unflatten([left, jnp.where(b, b + number, 0.0)])}

    noted = begun(monkeypatch, trained)
    _, method, state = build(**NAME, **UNEQUAL, **{"method.fedilora.edit_below": edit_below})
    ones = jax.tree.map(jnp.ones_like, state.broadcast)
    after, _ = method.round(state.replace(broadcast=ones), r, KEY)
    for params in (noted[0][0], after.devices[0]):
        a, b = jax.tree.leaves(params["lora"])
        np.testing.assert_array_equal((a != 0).any(1).sum(1), [4, 1, 4])
        np.testing.assert_array_equal((b != 0).all((2, 3)).sum(1), [4, 1, 4])
    a, b = jax.tree.leaves(after.broadcast)
    quarters = np.array([1, 0.5, 0.5, 0.5] if edited else [1, 0, 0, 0])
    np.testing.assert_allclose(a.reshape(4, -1, 4), np.broadcast_to(
        quarters[:, None, None], (4, 4, 4)), rtol=1e-6)
    np.testing.assert_allclose(b[:, 0, 0], [20 / 7, 2.8, 2.8, 2.8], rtol=1e-6)


@pytest.mark.parametrize("ranks", ["", "8,x", "0,4"])
def test_bad_ranks_are_named(ranks):
    with pytest.raises(UserError, match="method.fedilora.ranks is"):
        fedilora.device_ranks(ranks, 3)
