"""The three-tier method against FedAvg and Eq. 4 by hand; runs that resume; nothing uploaded that
must stay."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_mega import DATA, build, build_toy, toy, values

from mlecs_jax import channel
from mlecs_jax import run as command
from mlecs_jax.data import sentiment, sentiment_simulated
from mlecs_jax.errors import UserError
from mlecs_jax.mega import config, experiment, federation
from mlecs_jax.mega import setting as settings
from mlecs_jax.methods import mega_ce2
from mlecs_jax.models import adapters as adapter_blocks

EQUAL = {"clock__speeds": "1", "clock__jitter": 0.0, "train__rounds": 1}
KEY = jax.random.key(5)


def leaves(tree) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])


def advance(method, versions):
    """The states after each of the first versions, the initial one first."""
    states = [method.init(jax.random.key(0))]
    for r in range(versions):
        copied = jax.tree.map(jnp.copy, states[-1])
        states.append(method.round(copied, r, KEY)[0])
    return states


@pytest.fixture(scope="module")
def unequal():
    """Asynchronous, one edge four times slower: the setting, its method and some states."""
    made = build_toy(clock__jitter=0.0, train__rounds=3)
    method = mega_ce2.build(made)
    return made, method, advance(method, 8)


def test_a_synchronous_round_is_fedavg_over_the_ends():
    made = build_toy(method__mode="sync", **EQUAL)
    method = mega_ce2.build(made)
    start, after = advance(method, 1)
    ends, steps = made.federation.ends, made.steps()
    train = jax.jit(lambda model, own: mega_ce2.train_end(made, made.segments, model, own)[0])
    trained, counts = [], []
    for end in range(6):
        own = {"rows": ends.rows[end], "count": ends.counts[end], "steps": steps[end],
               "rate": np.float32(1e-3),
               "key": jax.random.fold_in(jax.random.fold_in(KEY, 0), end)}
        trained.append(leaves(train(start.cloud, own)))
        counts.append(int(ends.real[end].sum()))
    assert sum(counts) == len(made.federation.split.train)
    expected = np.average(trained, axis=0, weights=counts)
    np.testing.assert_allclose(leaves(after.cloud), expected, atol=1e-6)
    assert np.abs(leaves(after.cloud) - leaves(start.cloud)).max() > 1e-3


def test_asynchronous_is_synchronous_once_all_report_from_one_version():
    synchronous = mega_ce2.build(build_toy(method__mode="sync", **EQUAL))
    asynchronous = mega_ce2.build(build_toy(method__mode="async", **EQUAL))
    assert len(asynchronous.arrivals) == 3
    together, (*_, last) = advance(synchronous, 1)[1], advance(asynchronous, 3)
    np.testing.assert_allclose(leaves(last.cloud), leaves(together.cloud), atol=1e-6)


def test_every_arrival_moves_the_cloud_by_its_share_of_the_change(unequal):
    """Eq. 4 in its other form: w ← w + α_i (w_i − w_i of before)."""
    made, method, states = unequal
    counts = np.array([len(np.unique(rows[real])) for rows, real in
                       zip(made.federation.edges.rows, made.federation.edges.real, strict=True)])
    for r, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        edge = method.arrivals[r].edges[0]
        change = [leaves(jax.tree.map(lambda x, e=edge: x[e], state.last))
                  for state in (after, before)]
        moved = leaves(before.cloud) + counts[edge] / counts.sum() * (change[0] - change[1])
        np.testing.assert_allclose(leaves(after.cloud), moved, atol=2e-6)


def test_only_the_edge_that_reports_has_the_new_version(unequal):
    _, method, states = unequal
    for r, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        for edge in range(3):
            own = leaves(jax.tree.map(lambda x, e=edge: x[e], after.received))
            expected = (leaves(after.cloud) if edge in method.arrivals[r].edges else
                        leaves(jax.tree.map(lambda x, e=edge: x[e], before.received)))
            np.testing.assert_array_equal(own, expected)
    reports = [a.edges[0] for a in method.arrivals]
    assert reports.count(2) < reports.count(0)  # the slow edge


def test_stale_models_weigh_less(unequal):
    _, plain, states = unequal
    discounted = mega_ce2.build(build_toy(clock__jitter=0.0, train__rounds=3,
                                          method__staleness_exponent=1.0))
    got = advance(discounted, 2)[2]
    # The second arrival: edge 1 trained from version 0 (τ = 1), as did edge 0 (τ = 1), edge 2 has
    # not reported (τ = 1): all the same, so the discount cancels.
    np.testing.assert_allclose(leaves(got.cloud), leaves(states[2].cloud), atol=1e-6)
    third = [advance(discounted, 3)[3], states[3]]
    assert np.abs(leaves(third[0].cloud) - leaves(third[1].cloud)).max() > 1e-6
    assert [a.reports for a in plain.arrivals] == [a.reports for a in discounted.arrivals]


def test_no_path_of_an_adapter_is_uploaded_of_the_real_model():
    """Whole paths, of every kind of adapter that the real model takes."""
    made = build(model__modalities="text,audio,vision", model__targets="text,audio,vision")
    model = made.model.init(KEY, made.example())
    message = mega_ce2.upload(model, np.int32(3), model)
    sent = set(channel.pack(message))
    assert len(sent) == len(jax.tree.leaves(model)) + 1 and "count" in sent
    assert "model/text_with_audio/layers/attention/in_kernel" in sent
    places = made.shape.pairs()
    kinds = [adapter_blocks.init(KEY, places, made.shape.width, share=share)
             for share in (True, False)] + [
                 adapter_blocks.init(KEY, places, made.shape.width, share=True, output=True),
                 adapter_blocks.biases(np.zeros(1, np.float32))]
    assert len(places) == 6
    for own in kinds:
        paths = {f"model/{path}" for path in channel.pack(own)}
        assert not sent & paths and mega_ce2.adapter_bytes(message, own) == 0
        # Put where the model's own leaves are, they are refused and would be counted.
        joined = channel.unpack(channel.pack(model) | channel.pack(own))
        with pytest.raises(ValueError, match="and nothing else"):
            mega_ce2.upload(joined, np.int32(3), model)
        assert mega_ce2.adapter_bytes({"model": joined}, own) == channel.num_bytes(
            jax.tree.map(np.asarray, own))


def test_nothing_but_model_and_count_is_uploaded(unequal):
    made, method, states = unequal
    model = states[-1].cloud
    message = channel.pack(mega_ce2.upload(model, np.int32(3), model))
    assert set(message) == {"model/project", "model/head", "count"}
    own = adapter_blocks.init(KEY, made.shape.pairs(), 8, share=True)
    assert not {key.split("/")[-1] for key in channel.pack(own)} & {
        key.split("/")[-1] for key in message}
    with pytest.raises(ValueError, match="and nothing else"):
        mega_ce2.upload(model | {"adapters": own}, np.int32(3), model)
    assert method.communication(states[-1]) == {
        "uplink": 4 * (300 * 8 + 8) + 4, "downlink": 4 * (300 * 8 + 8)}
    whole = {"model": model | {"shared": own["shared"]}, "count": np.int32(3)}
    assert mega_ce2.adapter_bytes(mega_ce2.upload(model, np.int32(3), model), own) == 0
    assert mega_ce2.adapter_bytes(whole, own) == channel.num_bytes(own)
    assert not [path for path, _ in jax.tree_util.tree_leaves_with_path(states[-1])
                if "linear_kernel" in jax.tree_util.keystr(path)]


@pytest.mark.slow
def test_edge_devices_of_the_machine_do_not_change_the_result(unequal):
    _, _, states = unequal
    spread = build_toy(jax.devices()[:3], clock__jitter=0.0, train__rounds=3,
                       clients__backend="shard_map")
    assert spread.topology.edge.size == 2
    got = advance(mega_ce2.build(spread), 2)[2]
    np.testing.assert_allclose(leaves(got.cloud), leaves(states[2].cloud), atol=1e-6)


def test_adapters_personalise_beside_a_frozen_model(unequal):
    made, method, states = unequal
    model = jax.tree.map(np.asarray, states[-1].cloud)
    before = leaves(model).copy()
    adapters, answers = method.personalise(model, jax.random.key(9))
    np.testing.assert_array_equal(leaves(model), before)
    stacked = jax.tree.leaves(adapters)
    assert list(adapters) == ["shared"] and {x.shape[0] for x in stacked} == {3}
    assert np.isfinite(answers["val"]).all() and np.isfinite(answers["test"]).all()
    assert answers["test"].shape == made.federation.split.test.shape
    # Each edge's own model answers its own segments: recomputed without the predictor.
    federation_ = made.federation
    place = {int(row): i for i, row in enumerate(federation_.split.test)}
    for edge in range(3):
        rows = federation_.test.rows[edge][federation_.test.real[edge]]
        expected = jax.jit(made.model.apply)(
            model, federation_.data.batch(rows),
            adapters=jax.tree.map(lambda x, e=edge: jnp.asarray(x[e]), adapters))
        np.testing.assert_allclose(answers["test"][[place[int(r)] for r in rows]], expected,
                                   atol=1e-5)
    assert len(answers["history"]) == made.config.adapter.epochs + 1


def test_an_adapter_no_epoch_helps_stays_untuned():
    made = build_toy(adapter__learning_rate=50.0, **EQUAL)
    method = mega_ce2.build(made)
    model = method.init(jax.random.key(0)).cloud
    adapters, _ = method.personalise(model, KEY)
    assert max(np.abs(np.asarray(x)).max() for x in jax.tree.leaves(adapters)) < 0.2


def test_controls_of_adapters(unequal):
    """Pooled: the same adapter answers for all edges. Bias: the median training residual, where
    it helps on validation."""
    made, _, states = unequal
    model = states[-1].cloud

    def personal(**changes):
        options = dataclasses.replace(made.config.adapter, epochs=2, **changes)
        own = dataclasses.replace(made, config=dataclasses.replace(made.config, adapter=options))
        return mega_ce2.personaliser(own, mega_ce2.Predictor(own))(model, KEY)

    adapters, answers = personal(scope="pooled")
    for leaf in jax.tree.leaves(adapters):
        assert len(leaf) == 3 and (np.asarray(leaf) == np.asarray(leaf[:1])).all()
    assert len(answers["history"]) == 3 and np.isfinite(answers["test"]).all()
    adapters, answers = personal(kind="output")
    assert set(adapters) == {"shared", "output"} and adapters["output"]["kernel"].shape == (3, 8)
    assert np.isfinite(answers["test"]).all() and answers["history"][-1] < answers["history"][0]
    adapters, answers = personal(kind="bias")
    data, plain = made.federation.data, jax.jit(made.model.apply)
    predict = mega_ce2.Predictor(made)
    for edge, bias in enumerate(adapters["output"]["bias"]):
        rows = {part: held.rows[edge][held.real[edge]] for part, held in (
            ("train", made.federation.edges), ("val", made.federation.val))}
        residuals = {part: data.labels[own] - np.asarray(predict.on(model, None, own))
                     for part, own in rows.items()}
        median = np.median(residuals["train"])
        helps = np.abs(residuals["val"] - median).mean() < np.abs(residuals["val"]).mean()
        assert float(bias) == pytest.approx(float(median) if helps else 0.0, abs=1e-6)
    assert adapters["output"]["bias"].any()
    shifted = plain(model, data.batch(rows["val"]), adapters={"output": {"bias": 2.0}})
    np.testing.assert_allclose(shifted - plain(model, data.batch(rows["val"])), 2.0, atol=1e-5)
    with pytest.raises(UserError, match="adapter.scope is pooled"):
        pooled = dataclasses.replace(made, config=dataclasses.replace(
            made.config, adapter=dataclasses.replace(made.config.adapter, scope="pooled")))
        mega_ce2.personaliser(pooled, predict, [1])


def test_the_cloud_trains_on_segments_that_no_end_has():
    """Eq. 4, then as many batches as asked for; written out with an end's training."""
    asked = {"cloud__steps": 3, "cloud__share": 0.2, "clock__jitter": 0.0}
    made, plain = build_toy(**asked), build_toy(clock__jitter=0.0)
    federation_, rows = made.federation, made.federation.public
    assert len(rows) == len(federation_.split.train) // 5
    dealt = np.concatenate([own[real] for own, real in zip(
        federation_.ends.rows, federation_.ends.real, strict=True)])
    np.testing.assert_array_equal(np.sort(np.concatenate([dealt, rows])),
                                  np.sort(federation_.split.train))
    np.testing.assert_array_equal(np.sort(dealt), np.sort(federation_.private))
    assert len(plain.federation.public) == 0
    method = mega_ce2.build(made)
    start, after = advance(method, 1)
    arrival, = method.arrivals[:1]
    alone = dataclasses.replace(made, config=dataclasses.replace(made.config, cloud=None))
    averaged = mega_ce2.build(alone).round(
        jax.tree.map(jnp.copy, start), 0, KEY)[0].cloud  # the same deal, and no training
    share = arrival.time / method.arrivals[-1].time
    rate = made.config.train.learning_rate * (1 - (
        1 - made.config.train.final_rate_fraction) * share)
    own = {"rows": rows, "count": np.int32(len(rows)), "steps": np.int32(3),
           "rate": np.float32(rate),
           "key": jax.random.fold_in(jax.random.fold_in(KEY, 0), mega_ce2.CLOUD)}
    expected = jax.jit(lambda model, own: mega_ce2.train_end(
        made, made.segments, model, own)[0])(averaged, own)
    assert np.abs(leaves(expected) - leaves(averaged)).max() > 1e-4
    np.testing.assert_allclose(leaves(after.cloud), leaves(expected), atol=1e-6)
    with pytest.raises(UserError, match="which is none"):
        build_toy(cloud__steps=1, cloud__share=0.001)


def run(folder, monkeypatch, **options):
    monkeypatch.setattr(settings.crossmodal, "model", lambda shape, name: toy(shape.width))
    options.setdefault("values", values(train__rounds=1, clock__speeds="1,1,0.5"))
    return experiment.run(config.parse(options.pop("values")), folder, data=DATA, **options)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_end(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(record):
        if record["round"] == 1:
            raise Killed

    whole = run(tmp_path / "whole", monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path / "resumed", monkeypatch, on_version=kill)
    begun = []
    resumed = run(tmp_path / "resumed", monkeypatch,
                  on_start=lambda method, complete: begun.append(complete))
    assert begun == [2]
    for part in ("server", "client", "best_version", "validation", "edges"):
        assert resumed[part] == whole[part]
    lines = [list(map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines()))
             for name in ("whole", "resumed")]
    for a, b in zip(*lines, strict=True):
        assert {k: v for k, v in a.items() if "seconds" not in k} == {
            k: v for k, v in b.items() if "seconds" not in k}
    # A finished run is only read, and its folder takes no other run.
    assert run(tmp_path / "whole", monkeypatch) == json.loads(
        (tmp_path / "whole" / "summary.json").read_text())
    with pytest.raises(UserError, match="another train.learning_rate"):
        run(tmp_path / "whole", monkeypatch,
            values=values(train__rounds=1, clock__speeds="1,1,0.5", train__learning_rate=0.1))


@pytest.mark.slow
def test_a_summary_says_where_its_numbers_come_from(tmp_path, monkeypatch):
    found = run(tmp_path, monkeypatch)
    assert found["data_source"] == "simulated" and found["mode"] == "async"
    assert set(found["server"]) == set(found["client"]) and "mae" in found["server"]
    assert found["communication"]["adapter_bytes_sent"] == 0
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert record["edges"] == [0] or record["edges"] == [1]
    assert record["staleness"] == [0] and 0 < record["time"]
    # Every test segment is scored once, globally and by its edge.
    assert len(found["edges"]) == 3


def test_held_out_segments_follow_the_edges_sentiments():
    made = build()
    split, dealt = made.federation.split, made.federation
    for part, rows in ((dealt.val, split.val), (dealt.test, split.test),
                       (dealt.ends, split.train), (dealt.edges, split.train)):
        np.testing.assert_array_equal(np.sort(part.rows[part.real]), rows)
    labels = np.repeat(np.arange(-3, 4), 100).astype(np.float32)
    data = sentiment.SentimentData(
        "x", "simulated", "x", *(np.ones((700, 1, 2), np.float32) for _ in range(3)), labels,
        np.arange(700, dtype=np.int32), np.zeros(700, np.int8))
    even = np.arange(700) % 2 == 0  # trained on even rows; held out are the odd ones
    low, high = np.flatnonzero(even & (labels < 1)), np.flatnonzero(even & (labels >= 1))
    got = federation.deal_like(data, np.flatnonzero(~even), [low, high], seed=0)
    assert (labels[got[0]] < 1).all() and (labels[got[1]] >= 1).all()
    assert len(got[0]) + len(got[1]) == 350
    # Shares of a bin: three quarters of it at the first edge.
    got = federation.deal_like(data, np.arange(600, 700), [np.arange(600, 675),
                                                           np.arange(675, 700)], seed=0)
    assert [len(x) for x in got] == [75, 25]


@pytest.mark.parametrize("change, message", [
    ({"method__mode": "fast"}, "method.mode"), ({"clock__speeds": "1,fast"}, "clock.speeds"),
    ({"clock__speeds": "1,0"}, "clock.speeds"), ({"clock__links": "realistic,5g"}, "links preset"),
    ({"model__kernels": "1,3"}, "model.kernels is '1,3'"), ({"model__kernels": "x"}, "kernels"),
    ({"model__last_steps": 0}, "model.last_steps is 0"), ({"adapter__scope": "all"}, "scope"),
    ({"train__rounds": 0}, "train.rounds is 0"), ({"clock__jitter": -0.1}, "clock.jitter"),
    ({"partition__edges": 0}, "partition.edges"), ({"adapter__epochs": -1}, "adapter.epochs"),
    ({"method__staleness_exponent": -1.0}, "staleness_exponent"),
    ({"model__preset": "huge"}, "model.preset"), ({"model__modalities": "smell"}, "modalities"),
    ({"eval__every": 0}, "eval.every"), ({"adapter__kind": "sum"}, "adapter.kind"),
    ({"cloud__steps": -1}, "cloud.steps is -1"), ({"cloud__share": 1.0}, "cloud.share 1.0"),
], ids=str)
def test_bad_values_are_one_line(change, message):
    with pytest.raises(UserError, match=message) as error:
        config.parse(values(**change))
    assert "\n" not in str(error.value)


def test_the_command_line_runs_it_and_refuses_what_it_cannot_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settings.crossmodal, "model", lambda shape, name: toy(shape.width))
    monkeypatch.setattr("mlecs_jax.mega.run.use_compilation_cache", lambda: None)
    flags = ["run", "--config=mosi:smoke", "--config.data.source=simulated",
             "--config.eval.every=9", "--config.train.rounds=1", "--config.clock.speeds=1",
             f"--workdir={tmp_path}"]
    assert command.main(flags) == 0
    said = capsys.readouterr().out
    assert "3 edges of 2 ends" in said and "personalised: test MAE" in said
    assert "(simulated data)" in said
    found = json.loads((tmp_path / "summary.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert f"{found['client']['mae']:.3f}" in page and "Simulated data" in page
    written = json.loads((tmp_path / "config.json").read_text())
    written.pop("samples")
    options = config.parse(written)
    dealt = federation.build(settings.load(options.data), options)
    for edge, own in enumerate(found["edges"]):
        assert own["train_segments"] == sum(own["end_segments"]) == dealt.edges.counts[edge]
        assert np.sum(own["personal"]["confusion"]) == own["test_segments"] == (
            dealt.test.counts[edge])
    assert np.sum(found["confusion"]["global"]) == len(dealt.split.test)
    assert found["communication"]["uploads"] == sum(e["reports"] for e in found["edges"])
    with pytest.raises(UserError, match="clock.speeds"):
        command.main([*flags, "--config.clock.speeds=fast"])


@pytest.mark.slow
def test_the_cross_modal_transformer_learns_in_three_tiers(tmp_path):
    """Simulated segments, the real model: the global model beats a constant on validation."""
    chosen = config.parse(values(train__rounds=8))
    data = sentiment_simulated.simulate("mosi", seed=3, segments=400)
    found = experiment.run(chosen, tmp_path, data=data)
    split = settings.build(chosen, data).federation.split
    constant = np.abs(data.labels[split.val] - np.median(data.labels[split.train])).mean()
    assert found["validation"]["server"]["mae"] < constant
    assert found["extra"]["adapter_parameters"] == 4 * 32 * 32 + 4 * 32 + 32 * 32 + 32


def test_what_the_papers_leave_open_is_configuration():
    shape = config.parse(values(model__preset="mosi", model__kernels="1", model__last_steps=2,
                                model__residual_norm=True)).model_config()
    assert (shape.kernels, shape.last_steps, shape.residual_norm) == ((1, 1, 1), 2, True)
    assert config.parse(values(model__kernels="1,3,5")).model_config().kernels == (1, 3, 5)
    assert config.parse(values(model__preset="mosi")).model_config().kernels == (1, 3, 3)


def test_every_edge_has_links_of_its_own():
    """On the paper's links a cycle of the same training takes less, by transfers alone."""
    made = build_toy(clock__links="realistic, paper", clock__speeds="1", clock__jitter=0.0)
    assert [made.config.clock.link(edge) for edge in range(3)] == ["realistic", "paper",
                                                                   "realistic"]
    timing = made.timing({"x": np.zeros(1_000_000, np.float32)})
    training = [max(pace.training) for pace in timing.paces]
    over = [timing.cycle(edge, 0) - training[edge] for edge in range(3)]
    assert over[0] == pytest.approx(over[2]) and over[0] > 3
    assert over[1] == pytest.approx(2 * 4e6 * 1.75 / 7.5e6 + 2 * 4e6 * 1e-4 / 97e3)
