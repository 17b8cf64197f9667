"""Multi-FedAvg: what is averaged, over whom, and that equal clients make it FedAvg."""

import itertools

import jax
import numpy as np

from mlecs_jax import channel, rounds
from tests.methods.rounds import KEY, UNEQUAL, add_number, assert_close, begun, build, moved, run

NAME = {"method.name": "multi_fedavg"} | UNEQUAL


def travelling(params, name: str):
    """What is sent of a modality."""
    return {"encoder": params["extractor"][name],
            "projector": params["connector"][f"projector_{name}"]}


def test_with_every_modality_everywhere_it_is_fedavg():
    """Two rounds of FedAvg in NumPy, of all but what stays local: everyone begins at the first
    device's parameters, then at θ = Σ n_j θ_j / Σ n_j."""
    setting, method, state = build(**NAME, **{"partition.rho": 1.0})
    samples = setting.federation.train.count
    train = rounds.private_training(setting)

    def sent(path) -> bool:
        return path[0].key in ("extractor", "lora") or path[1].key.startswith("projector_")

    def everyone(devices, weights):
        """Devices with the weighted mean of each parameter that is sent."""
        return tuple(jax.tree.map_with_path(lambda path, x: np.broadcast_to(
            np.tensordot(weights / weights.sum(), x, axes=1), x.shape).astype(x.dtype)
            if sent(path) else x, params) for params in devices)

    devices = everyone(jax.device_get(state.devices), np.array([1, 0, 0]))
    for r in range(2):
        local, losses = jax.device_get(train(jax.device_put(devices), r, KEY))
        devices = everyone(local, samples)
    after, found = run(method, state)
    assert_close(found["devices"]["private"], losses)
    assert_close(after.devices, local)
    (mean,) = jax.tree.map(lambda x: x[0], devices)
    assert_close(after.lora, mean["lora"], 1e-6)
    assert_close(after.encoders[0], {name: travelling(mean, name)
                                     for name in setting.federation.modalities}, 1e-6)
    assert moved(local[0]["lora"], devices[0]["lora"]) and len(set(samples)) > 1


def test_devices_send_and_receive_what_they_own(monkeypatch):
    """By hand: devices of 60, 40 and 40 samples that add 1, 2 and 3 to all they have::

        acce   owned by nobody   as it was
        rgb    by all            e + (60·1 + 40·2 + 40·3) / 140 = e + 13/7
        depth  by 0 and 1        e + (60·1 + 40·2) / 100        = e + 1.4

    e is what was sent first, the first device's. What a device does not own it trains and keeps.
    """
    noted = begun(monkeypatch, add_number)
    setting, method, state = build(**NAME, **{"partition.rho": 0.5})
    owned = setting.federation.owned_at(0)
    np.testing.assert_array_equal(owned, [[0, 1, 1], [0, 1, 1], [0, 1, 0]])
    first = jax.device_get(state.devices[0])
    after, _ = run(method, state)
    shift = {"acce": 0, "rgb": 13 / 7, "depth": 1.4}
    for m, name in enumerate(setting.federation.modalities):
        sent = travelling(first, name)
        for (r, (begin,)), j in itertools.product(enumerate(noted), range(3)):
            start, more = (0, r * shift[name]) if owned[j, m] else (j, r * (j + 1))
            assert_close(jax.tree.map(lambda x, j=j: x[j], travelling(begin, name)),
                         jax.tree.map(lambda x, i=start, more=more: x[i] + more, sent), 1e-6)
        assert_close(after.encoders[0][name], jax.tree.map(
            lambda x, name=name: x[0] + 2 * shift[name], sent), 1e-6)


def test_owners_are_those_of_the_round(monkeypatch):
    """By hand, :data:`UNEQUAL` devices that add 1, 2 and 3: what each round sends is moved by the
    mean over its own owners, by samples, of what they had and added."""
    noted = begun(monkeypatch, add_number)
    setting, method, state = build(**NAME, **{"partition.rho": 0.5,
                                              "partition.mask_schedule": "per_round"})
    owned, sizes = setting.federation.owned, np.array([60, 40, 40])
    assert (owned[0] != owned[1]).any()
    for r in range(2):
        sent = jax.device_get(state.encoders[0])
        state, _ = method.round(state, r, KEY)
        after, begin = jax.device_get(state.encoders[0]), noted[r][0]
        for m, name in enumerate(setting.federation.modalities):
            has = owned[r, :, m]
            for j in np.flatnonzero(has):  # owners of this round begin with what was sent
                assert_close(jax.tree.map(lambda x, j=j: x[j], travelling(begin, name)),
                             sent[name], 1e-6)
            added = np.average([1, 2, 3], weights=sizes * has) if has.any() else 0.0
            assert_close(after[name], jax.tree.map(lambda x, a=added: x + a, sent[name]), 1e-6)


def test_bytes_are_those_of_what_a_device_owns():
    setting, method, state = build(**NAME, **{"partition.rho": 0.5})
    owned = setting.federation.owned_at(0)
    sizes = np.array([channel.num_bytes(state.encoders[0][name])
                      for name in setting.federation.modalities])
    lora = channel.num_bytes(state.lora)
    assert method.communication(state) == {
        "uplink": round((owned @ sizes).mean()) + lora + 4,
        "downlink": round((owned @ sizes).mean()) + lora}


def test_encoders_of_one_structure_meet_and_lora_of_all(monkeypatch):
    """By hand, all modalities everywhere: devices 0 and 2 have 60 and 40 samples and encoders that
    device 1 has not. Theirs move by (60·1 + 40·3) / 100 = 1.8, its own by 2, LoRA by 13/7."""
    begun(monkeypatch, add_number)
    _, method, state = build(**NAME, **{"partition.rho": 1.0,
                                        "model.cohorts": "1=encoder_hidden:20"})
    first = jax.device_get(state)
    after, _ = run(method, state, rounds=1)
    for shift, before, now in zip((1.8, 2), first.encoders, after.encoders, strict=True):
        assert_close(now, jax.tree.map(lambda x, shift=shift: x + shift, before), 1e-6)
    assert_close(after.lora, jax.tree.map(lambda x: x + 13 / 7, first.lora), 1e-6)
