"""Multi-FedAvg: what is averaged, over whom, and that equal clients make it FedAvg."""

import jax
import numpy as np

from mlecs_jax import channel
from tests.methods.rounds import assert_close, build, run

NAME = {"method.name": "multi_fedavg"}


def test_with_every_modality_everywhere_it_is_fedavg():
    """θ = Σ n_j θ_j / Σ n_j for every encoder, projector and adapter, in NumPy."""
    setting, method, state = build(**NAME, **{"partition.rho": 1.0})
    after, _ = run(method, state, rounds=1)
    weights = setting.federation.train.count / setting.federation.train.count.sum()
    devices = jax.tree.map(lambda x: np.tensordot(weights, x, axes=1), after.devices[0])
    assert_close(after.lora, devices["lora"], atol=1e-7)
    for name in setting.federation.modalities:
        assert_close(after.encoders[0][name], {
            "encoder": devices["extractor"][name],
            "projector": devices["connector"][f"projector_{name}"]}, atol=1e-7)


def test_devices_send_and_receive_what_they_own():
    setting, method, state = build(**NAME, **{"partition.rho": 0.5, "partition.seed": 1})
    owned = setting.federation.owned_at(0)
    assert not owned.all()
    after, _ = run(method, state, rounds=1)
    for m, name in enumerate(setting.federation.modalities):
        weights = setting.federation.train.count * owned[:, m]
        if weights.any():
            own = jax.tree.map(lambda x, w=weights: np.tensordot(w / w.sum(), x, axes=1),
                               after.devices[0]["extractor"][name])
            assert_close(after.encoders[0][name]["encoder"], own, atol=1e-7)
    sizes = np.array([channel.num_bytes(after.encoders[0][name])
                      for name in setting.federation.modalities])
    lora = channel.num_bytes(after.lora)
    assert method.communication(after) == {
        "uplink": round((owned @ sizes).mean()) + lora + 4,
        "downlink": round((owned @ sizes).mean()) + lora}
