"""Mega-CE² by pushes through bytes: pushed in the simulation's order, the simulation's versions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_mega import DATA, build_toy

from mlecs_jax.deploy import wire
from mlecs_jax.deploy.mega import MegaCloud, MegaEdge, of_edge
from mlecs_jax.deploy.memory import MemoryTransport
from mlecs_jax.deploy.wire import Header, Message, WireError
from mlecs_jax.methods import mega_ce2

SESSION, ROSTER = "run.1-ab", ("e0", "e1", "e2")


@pytest.fixture(scope="module")
def simulated():
    """The setting, its schedule, and w_g after every version of a short asynchronous run."""
    setting = build_toy(clock__jitter=0.0, train__rounds=3, method__staleness_exponent=0.5)
    method = mega_ce2.build(setting)
    key = jax.random.key(setting.config.seed)
    state = method.init(jax.random.fold_in(key, 0))
    models = [jax.device_get(state.cloud)]
    for r in range(7):
        state, _ = method.round(jax.tree.map(jnp.copy, state), r, jax.random.fold_in(key, 1))
        models.append(jax.device_get(state.cloud))
    return setting, method.arrivals, models


def cloud_of(simulated, folder):
    setting, arrivals, models = simulated

    def share(version):
        return arrivals[version - 1].time / arrivals[-1].time if version else 0.0

    return MegaCloud(models[0], setting.config.method.staleness_exponent, ROSTER, SESSION, 7,
                     folder, share)


def edges_of(simulated, transport):
    return [MegaEdge(of_edge(simulated[0], edge), edge, name, SESSION,
                     lambda message, name=name: transport.push(name, message))
            for edge, name in enumerate(ROSTER)]


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


def test_versions_are_the_simulations_also_after_the_cloud_is_killed(simulated, tmp_path):
    transport = MemoryTransport({})
    cloud = cloud_of(simulated, tmp_path)
    transport.on_push(cloud.handle)
    edges = edges_of(simulated, transport)
    for edge in edges:
        edge.begin()
    for r, arrival in enumerate(simulated[1][:7]):
        if r == 4:
            cloud.close()
            cloud = cloud_of(simulated, tmp_path)
            transport.on_push(cloud.handle)
        edges[arrival.edges[0]].train()
        assert cloud.version == r + 1
        assert_close(cloud.model, simulated[2][r + 1])
    assert cloud.complete and not cloud.refused
    before = jax.device_get(cloud.model)
    edges[0].train()  # comes too late: it is told the last version, and moves nothing
    assert cloud.version == 7
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(cloud.model))
    cloud.close()


def test_an_edge_holds_its_own_segments_alone(simulated):
    setting = simulated[0]
    sizes = []
    for edge in range(3):
        own = of_edge(setting, edge)
        parts = [getattr(setting.federation, part) for part in ("edges", "val", "test")]
        rows = np.concatenate([part.rows[edge][part.real[edge]] for part in parts])
        np.testing.assert_array_equal(
            np.sort(own.federation.data.labels), np.sort(setting.federation.data.labels[rows]))
        assert own.federation.ends.counts.sum() == setting.federation.edges.counts[edge]
        sizes.append(len(rows))
    assert sum(sizes) == len(DATA)


def test_what_an_edge_says_wrong_is_refused_and_counted(simulated, tmp_path):
    cloud = cloud_of(simulated, tmp_path)
    model = {f"model/{path}": np.asarray(x) for path, x in simulated[2][0].items()}
    good = Message(Header("push", SESSION, 0, "e1", 2, 1),
                   model | {"count": np.array(5, np.int64)})
    path = next(iter(model))

    def changed(arrays=None, **header):
        return Message(dataclasses.replace(good.header, **header),
                       {**good.arrays, **(arrays or {})})

    wrong = [("e2", good, "sender"), ("e9", changed(sender="e9"), "sender"),
             ("e1", changed(session="x.1-00"), "session"), ("e1", changed(kind="round"), "kind"),
             ("e1", changed({path: model[path][:-1]}), "shape"),
             ("e1", changed({path: model[path] * np.float32(np.nan)}), "not_finite"),
             ("e1", changed({"adapter": np.zeros(1)}), "path"),
             ("e1", changed({"count": np.array(0, np.int64)}), "range"),
             ("e1", changed(round=3), "round"), ("e1", changed(serial=0), "replay")]
    for name, message, reason in wrong:
        with pytest.raises(WireError) as caught:
            cloud.handle(name, message)
        assert caught.value.reason == reason
    assert sum(cloud.refused.values()) == len(wrong) and cloud.version == 0
    assert cloud.handle("e1", good).header.sender == wire.CLOUD and cloud.version == 1
    with pytest.raises(WireError, match="replay"):
        cloud.handle("e1", good)
    cloud.close()
