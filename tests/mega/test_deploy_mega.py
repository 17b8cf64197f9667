"""Mega-CE² by pushes through bytes: pushed in the simulation's order, the simulation's run."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from small_mega import DATA, toy, toys, values

from mlecs_jax import channel
from mlecs_jax.data import sentiment
from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import mega_scores, mega_share, served, session, wire
from mlecs_jax.deploy.mega_app import MegaCloudApp
from mlecs_jax.deploy.mega_cloud import PLACES, MegaCloud
from mlecs_jax.deploy.mega_edge import MegaEdgeApp
from mlecs_jax.deploy.memory import MemoryTransport
from mlecs_jax.deploy.wire import Header, Message, WireError
from mlecs_jax.errors import UserError
from mlecs_jax.mega import config, experiment, federation, personal, setting
from mlecs_jax.metrics import sentiment as metrics
from mlecs_jax.report.run_report import write_report

ROSTER = ("e0", "e1", "e2")
ROWS = {"count": np.array(5, np.int32), "ends": np.array([2, 3], np.int32)}
VALUES = values(train__rounds=2, method__staleness_exponent=0.5)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with toys():
        yield


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    """Everyone's folder and the session."""
    folder = tmp_path_factory.mktemp("kits")
    whole = federation.build(DATA, config.parse(VALUES))
    moments = sentiment.moments(DATA, whole.split.train)
    for name, part in zip(("cloud", *ROSTER), mega_share.split(whole, moments), strict=True):
        mega_share.save(part, folder / name)
    return folder, session.create(VALUES, ROSTER, int(whole.ends.counts.max()))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Lines and summary of the simulated run, and its schedule."""
    folder = tmp_path_factory.mktemp("simulated")
    started = []
    summary = experiment.run(config.parse(VALUES), folder, data=DATA,
                             on_start=lambda method, complete: started.append(method))
    return lines(folder), summary, started[0].arrivals


@pytest.fixture(scope="module")
def deployed(provisioned, simulated, tmp_path_factory):
    """The same run through bytes, the cloud killed in the middle: folder, summary, messages."""
    arrivals, workdir = simulated[2], tmp_path_factory.mktemp("deployed")
    said = []
    network = Network(*provisioned, workdir, arrivals, said)
    for edge in network.edges:
        network.prepare(edge)
    for r, arrival in enumerate(arrivals):
        if r == len(arrivals) // 2:
            network.restart()
        edge = network.edges[arrival.edges[0]]
        assert edge.task == "push"
        edge.step(network.push)
        network.prepare(edge)
    while any(edge.task != "over" for edge in network.edges):
        for edge in network.edges:
            if edge.task != "over":
                edge.step(network.push)
    summary = network.close()
    return workdir, summary, said, provisioned


class Network:
    """A cloud and edges that speak when they are told to."""

    def __init__(self, folder, agreed, workdir, arrivals, said):
        self._folder, self._session, self._workdir = folder, agreed, workdir
        self._versions, self._said = len(arrivals), said

        def share(version):
            return arrivals[version - 1].time / arrivals[-1].time if version else 0.0

        self.edges = [MegaEdgeApp(agreed, name, folder / name, workdir / name, share,
                                  jax.devices()[:1]) for name in ROSTER]
        self._open()

    def _open(self):
        self._stack = contextlib.ExitStack()
        self.transport = MemoryTransport({})
        self.app = MegaCloudApp(self._session, self.transport, self._workdir,
                                self._folder / "cloud", versions=self._versions)
        # As its run begins; from there on this test is the network.
        self._stack.enter_context(contextlib.closing(begun(self.app)))

    def restart(self):
        """A cloud that is killed and started again."""
        self._stack.close()
        self._open()

    def push(self, message):
        data = wire.encode(message)
        self._said.append(data)
        return self.transport.push(message.header.sender, wire.decode(data, limit_bytes=1 << 24))

    def prepare(self, edge):
        """Does everything up to the next push, as an edge whose cycle begins."""
        while edge.task in ("begin", "evaluate"):
            if edge.task == "begin" and self.app._cloud.complete:
                return
            edge.step(self.push)

    def close(self):
        for edge in self.edges:
            edge.close()
        summary = self.app._summary(0.0)
        self.app._log.write_summary(summary)
        self._stack.close()
        return json.loads(json.dumps(summary))


def begun(app):
    """An app whose run has begun: its log, to be closed."""
    from mlecs_jax import runlog

    app._log = runlog.RunLog(app._workdir, app._identity())
    app._cloud = app._opened()
    app._log.resume(app._cloud.books.closed)
    app._made = app._closed_at = 0.0
    app._transport.on_push(app._handle)
    return app._log


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a, b, where=""):
    if isinstance(b, dict):
        assert set(a) == set(b), where
        for key in b:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(b, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}/{i}")
    elif isinstance(b, float):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=where)
    else:
        assert a == b, where


def test_versions_and_their_scores_are_the_simulations(deployed, simulated):
    """Also across the cloud's restart."""
    ours = lines(deployed[0])
    assert len(ours) == len(simulated[0]) > 6
    for own, other in zip(ours, simulated[0], strict=True):
        for key in ("round", "rounds", "data_source", "edges", "staleness", "eval"):
            same(own[key], other[key], key)
        assert own["deployment"]["scored_by"] == list(ROSTER)


def test_the_summary_is_the_simulations(deployed, simulated):
    ours, theirs = deployed[1], json.loads(json.dumps(simulated[1]))
    found = ours.pop("deployment")
    assert set(ours) == set(theirs)
    for part in (ours, theirs):
        del part["timing"]
        for edge in part["edges"]:
            del edge["speed"], edge["links"]  # of the simulation's clock
    # To every edge the first model, every version for its scores, and the best where it is gone.
    assert ours["communication"].pop("downloads") == 3 * (
        1 + ours["rounds"] + (ours["best_version"] < ours["rounds"]))
    del theirs["communication"]["downloads"]
    same(ours, theirs)
    assert found["refused"] == {} and found["finished"] == list(ROSTER)
    assert sum(found["uploads"].values()) == ours["rounds"]
    ours["deployment"] = found


def test_nodes_answer_from_their_kits_as_they_were_scored(deployed, tmp_path):
    """Measured readings to an edge's own model, and to the global one from the cloud's kit."""
    workdir, summary, _, (folder, agreed) = deployed
    for name in ("cloud", "e0", "e1"):
        kit = kits.Kit(tmp_path / name, name, "127.0.0.1", 1)
        kit.folder.mkdir()
        kit.save()
        agreed.save(kit.folder)
        kit.data.symlink_to(folder / name)
        for file in (kit.root, kit.certificate, kit.key):
            file.touch()
    own = served.of_kit(tmp_path / "e1", state=workdir / "e1")
    cloud = served.of_kit(tmp_path / "cloud", run=workdir)
    assert own.description.rounds == cloud.description.rounds == summary["best_version"]
    assert own.description.node == "edge 1" and cloud.rows == []
    truth = np.array([float(text) for text in own.truth])
    assert any(np.allclose(own.rows[0]["text"], text, atol=1e-3) for text in DATA.text)
    for node, kind in ((own, "personal"), (cloud, "global")):
        said = [answer["sentiment"] for answer in node.predictor().predict(own.rows)]
        assert np.abs(said - truth).mean() == pytest.approx(
            summary["edges"][1][kind]["mae"], abs=1e-3)
    with pytest.raises(UserError, match="e0 has no personal.safetensors"):
        served.of_kit(tmp_path / "e0")


def test_the_report_is_the_runs_too(deployed):
    page = write_report(deployed[0]).read_text()
    assert "Every edge" in page and "A cloud and 3 devices over a network" in page


def test_models_counts_and_sums_are_all_that_leaves_an_edge(deployed, simulated):
    _, summary, said, (folder, _) = deployed
    model = {f"model/{path}" for path in ("project", "head")}
    allowed = {"begin": {"count", "ends"}, "push": model | {"count"},
               "evaluate": set(mega_scores.template("val", "test")),
               "finish": set(mega_scores.template(*PLACES)) | {"history"}}
    kinds = set()
    for data in said:
        message = wire.decode(data, limit_bytes=1 << 24)
        kinds.add(message.header.kind)
        assert set(message.arrays) == allowed[message.header.kind]
        if message.header.kind == "push":
            assert sum(x.nbytes for x in message.arrays.values()) == summary["communication"][
                "uplink_bytes"]
        else:
            assert sum(x.nbytes for x in message.arrays.values()) < 3000  # whatever its rows are
    assert kinds == set(allowed)
    everything = b"".join(said)
    for name in ROSTER:
        own = mega_share.load(folder / name)
        for modality in sentiment.MODALITIES:
            steps = getattr(own, modality).reshape(-1, getattr(own, modality).shape[-1])
            steps = steps[(steps[:, :3] != 0).all(axis=1)]
            assert len(steps) and all(step.tobytes()[:12] not in everything for step in steps)


def test_shares_are_dealt_whole_and_nobody_has_anothers(provisioned):
    folder, agreed = provisioned
    whole = setting.build(config.parse(VALUES), DATA, jax.devices()[:1]).federation
    found = [mega_share.load(folder / name) for name in ROSTER]
    assert sum(len(own.labels) for own in found) == len(DATA)
    assert len(mega_share.load(folder / "cloud").labels) == 0
    for edge, own in enumerate(found):
        alone = mega_share.edge_setting(config.parse(VALUES), own, edge, agreed.train_rows,
                                        jax.devices()[:1]).federation
        for part in ("ends", "edges", "val", "test"):
            ours, theirs = getattr(alone, part), getattr(whole, part)
            mine = (slice(2 * edge, 2 * edge + 2) if part == "ends" else slice(edge, edge + 1))
            np.testing.assert_array_equal(ours.counts[mine], theirs.counts[mine])
            assert ours.counts.sum() == theirs.counts[mine].sum()
            for node in range(*mine.indices(len(ours.rows))):
                np.testing.assert_array_equal(
                    alone.data.text[ours.rows[node][ours.real[node]]],
                    whole.data.text[theirs.rows[node][theirs.real[node]]])


@pytest.mark.parametrize("change,message", [
    ({"edge": 1}, "of edge 1, not of edge 0"), ({"edge_rows": 1}, "edge_rows is 1"),
    ({"end": "first"}, "give each of 2"), ({"part": "train"}, "training, validation and test"),
    ({"labels": "short"}, "do not fit each other")])
def test_a_share_that_does_not_fit_is_refused(provisioned, change, message):
    folder, agreed = provisioned
    own = mega_share.load(folder / "e0")
    special = {"first": np.where(own.end >= 0, 0, -1), "train": np.zeros_like(own.part),
               "short": own.labels[:-1]}
    with pytest.raises(UserError, match=message):
        wrong = dataclasses.replace(own, **{
            key: special[value] if isinstance(value, str) else value
            for key, value in change.items()})
        mega_share.edge_setting(config.parse(VALUES), wrong, 0, agreed.train_rows)


def test_pooled_tallies_give_the_scores_of_all_segments():
    rng = np.random.default_rng(0)
    true = np.round(rng.uniform(-3, 3, 60), 1).astype(np.float32)
    predicted = (true + rng.normal(0, 1.5, 60)).astype(np.float32)
    true[:4], predicted[4:7] = 0.0, [2.5, -2.5, 0.0]
    parts = [mega_scores.tally(true[rows], predicted[rows])
             for rows in np.split(np.arange(60), [13, 40])]
    again = [mega_scores.from_plain(json.loads(json.dumps(mega_scores.plain(p)))) for p in parts]
    same(mega_scores.scores(mega_scores.pooled(again)), metrics.scores(true, predicted))
    alike = mega_scores.scores(mega_scores.tally(true[:4], np.full(4, 0.3, np.float32)))
    assert alike["corr"] is None and alike["acc2_non0"] is None
    assert alike["mae"] == pytest.approx(0.3)


def cloud_of(folder, **options):
    model = toy().init(jax.random.key(0), DATA.batch(slice(0, 1)))
    return MegaCloud(model, 0.0, ROSTER, "run.1", 2, folder, ends=2, train_rows=3,
                     **options), model


def test_what_an_edge_says_wrong_is_refused_and_counted(tmp_path):
    cloud, initial = cloud_of(tmp_path)
    count = {"count": np.array(5, np.int32)}
    begin = Message(Header("begin", "run.1", -1, "e1", 2, 0), ROWS)
    good = Message(Header("push", "run.1", 0, "e1", 2, 1),
                   channel.pack({"model": initial}) | count)
    tally = mega_scores.tally(np.array([0.5, -1.0]), np.array([0.2, 0.1]))
    scored = Message(Header("evaluate", "run.1", 1, "e1", 2, 1), {
        path: x for split in ("val", "test") for path, x in
        mega_scores.placed(tally, split).items()})
    path = "model/head"

    def changed(arrays=None, message=good, **header):
        return Message(dataclasses.replace(message.header, **header),
                       {**message.arrays, **(arrays or {})})

    with pytest.raises(WireError, match="has not begun"):
        cloud.handle("e1", good)
    assert cloud.handle("e1", begin).header.kind == "push"
    wrong = [("e2", good, "sender"), ("e9", changed(sender="e9"), "sender"),
             ("e1", changed(session="x.1"), "session"), ("e1", changed(kind="round"), "kind"),
             ("e1", changed({path: good.arrays[path][:-1]}), "shape"),
             ("e1", changed({path: good.arrays[path] * np.float32(np.nan)}), "not_finite"),
             ("e1", changed({"adapter": np.zeros(1)}), "path"),
             ("e1", changed({path: good.arrays[path] + np.float32(1e20)}), "length"),
             ("e1", changed({"count": np.array(2**31 - 1, np.int32)}), "range"),
             ("e1", changed({"count": np.array(6, np.int32)}, begin), "range"),
             ("e1", changed({"count": np.array(4, np.int32),
                             "ends": np.array([4, 0], np.int32)}, begin), "range"),
             ("e1", changed({"count": np.array(6, np.int32),
                             "ends": np.array([2, 4], np.int32)}, begin), "range"),
             ("e1", changed(round=3), "round"), ("e1", changed(serial=0), "replay"),
             ("e1", scored, "round"), ("e1", changed(kind="finish"), "path")]
    for name, message, reason in wrong:
        with pytest.raises(WireError) as caught:
            cloud.handle(name, message)
        assert caught.value.reason == reason
    assert sum(cloud.books.refused.values()) == len(wrong) + 1 and cloud.books.version == 0
    answer = cloud.handle("e1", good)
    assert answer.header.sender == wire.CLOUD and cloud.books.version == 1
    assert (answer.header.kind, answer.header.serial) == ("evaluate", 1)
    with pytest.raises(WireError, match="replay"):
        cloud.handle("e1", good)
    with pytest.raises(WireError, match="range"):
        cloud.handle("e1", changed({"val/has0": np.ones((2, 2), int)}, scored))
    assert cloud.handle("e1", scored).header.kind == "push"
    cloud.handle("e1", changed(round=1, serial=2))
    told = cloud.handle("e1", changed(message=scored, round=2))
    assert (told.header.kind, told.header.round) == ("finish", 1)
    words = {path: x for place in PLACES for path, x in mega_scores.placed(tally, place).items()}
    last = Message(Header("finish", "run.1", 1, "e1", 2, 2), words | {"history": np.array([0.5])})
    with pytest.raises(WireError, match="range: 'history'"):
        cloud.handle("e1", changed({"history": np.array([1e300])}, last))
    assert cloud.handle("e1", last).header.kind == "over"


def test_who_is_away_holds_up_no_version_for_ever(tmp_path):
    """The present edge's scores decide, and the absent one may come back to the last versions."""
    closed = []
    cloud, initial = cloud_of(tmp_path, on_closed=closed.append)
    cloud._versions = 99
    count = {"count": np.array(5, np.int32)}
    for name in ("e0", "e1"):
        cloud.handle(name, Message(Header("begin", "run.1", -1, name, 2, 0), ROWS))
    for serial in range(1, 16):
        cloud.handle("e1", Message(Header("push", "run.1", serial - 1, "e1", 2, serial),
                                   channel.pack({"model": initial}) | count))
    assert [version.number for version in closed] == [1, 2, 3]
    assert len(cloud.books.open) == 12 and cloud.books.best.number == 3
    back = cloud.handle("e0", Message(Header("begin", "run.1", -1, "e0", 2, 0), ROWS))
    assert (back.header.kind, back.header.round) == ("evaluate", 4)


TALLY = mega_scores.tally(np.array([0.5, -1.0, 0.0]), np.array([0.2, 0.1, -0.4]))


@pytest.mark.parametrize(("change", "message"), [
    ({name: TALLY[name] * 10**12 for name in ("seven", "non0", "has0")}, "above 1000000000"),
    ({name: TALLY[name] * -1 for name in ("seven", "non0", "has0")}, "below 0"),
    ({"has0": TALLY["has0"] * 2}, "counts in 'val' do not fit"),
    ({"sums": np.full(6, 1e300)}, "cannot be"), ({"sums": np.full(6, -1.0)}, "cannot be"),
    ({"sums": TALLY["sums"] * np.array([9, 1, 1, 1, 1, 1])}, "sums in 'val' do not fit"),
    ({"sums": TALLY["sums"] + np.array([0, 3, 0, 0, 0, 0])}, "sums in 'val' do not fit"),
    ({"sums": TALLY["sums"] + np.array([0, 0, 0, 0, 0, 9])}, "sums in 'val' do not fit")])
def test_counts_and_sums_that_no_answers_have_are_refused(change, message):
    header = Header("evaluate", "run.1", 1, "e1", 2, 1)
    mega_scores.check(Message(header, mega_scores.placed(TALLY, "val")), "val")
    with pytest.raises(WireError, match=message) as caught:
        mega_scores.check(Message(header, mega_scores.placed({**TALLY, **change}, "val")), "val")
    assert caught.value.reason == "range"


def test_exact_answers_fit_whatever_rounding_does():
    rng = np.random.default_rng(0)
    true = rng.uniform(-3, 3, 1000).astype(np.float32)
    for predicted in (true, true + np.float32(1e-6), np.full_like(true, 0.1)):
        mega_scores.check(Message(Header("evaluate", "run.1", 1, "e1", 2, 1), mega_scores.placed(
            mega_scores.tally(true, predicted), "val")), "val")


def test_scores_take_no_memory_by_what_counts_claim():
    many = {name: TALLY[name] * (mega_scores.MOST // 3) for name in ("seven", "non0", "has0")}
    found = mega_scores.scores({**many, "sums": TALLY["sums"] * (mega_scores.MOST // 3)})
    same(found, mega_scores.scores(TALLY))


def test_damaged_books_are_not_taken_up(tmp_path):
    cloud, _ = cloud_of(tmp_path)
    cloud.handle("e1", Message(Header("begin", "run.1", -1, "e1", 2, 0), ROWS))
    (tmp_path / "state.json").write_text("{torn")
    with pytest.raises(UserError, match="state.json is damaged"):
        cloud_of(tmp_path)


def test_an_edge_that_is_added_begins_at_once(provisioned, tmp_path):
    """The running cloud asks for the roster when it hears a new name; numbers go on."""
    folder, agreed = provisioned
    grown = agreed.with_device("e3")
    own = dataclasses.replace(mega_share.load(folder / "e0"), edge=3)
    alone = mega_share.edge_setting(config.parse(VALUES), own, grown.number("e3"),
                                    agreed.train_rows, jax.devices()[:1])
    counts = alone.federation.ends.counts
    assert len(counts) == 8 and not counts[:6].any() and counts[6:].all()
    transport = MemoryTransport({})
    app = MegaCloudApp(agreed, transport, tmp_path, folder / "cloud", latest=lambda: grown)
    with contextlib.closing(begun(app)):
        for name in ("e0", "e3"):
            rows = {"count": np.array(counts.sum(), np.int32), "ends": counts[6:]}
            answer = transport.push(name, Message(
                Header("begin", agreed.id(1), -1, name, 2, 0), rows))
            assert answer.header.kind == "push"
        assert list(app._cloud.books.edges) == ["e0", "e3"] and app._cloud.roster == grown.roster
        with pytest.raises(WireError, match="sender"):
            transport.push("e9", Message(Header("begin", agreed.id(1), -1, "e9", 2, 0), rows))
    again = MegaCloudApp(grown, transport, tmp_path, folder / "cloud")  # the folder goes on
    with contextlib.closing(begun(again)):
        assert set(again._cloud.books.edges) == {"e0", "e3"}


def test_barriers_are_not_deployed(provisioned, tmp_path):
    folder, agreed = provisioned
    other = dataclasses.replace(agreed, config=values(method__mode="sync"))
    with pytest.raises(UserError, match="nobody waits: use async"):
        MegaCloudApp(other, MemoryTransport({}), tmp_path, folder / "cloud")


def test_the_personal_model_stays_on_the_edge(deployed):
    from safetensors.numpy import load_file

    for name in ROSTER:
        found = load_file(deployed[0] / name / "personal.safetensors")
        assert {path.partition("/")[0] for path in found} == {"model", "adapter"}
    assert personal.ADAPTERS  # adapters have keys of their own, so they differ between edges
    own = [load_file(deployed[0] / name / "personal.safetensors") for name in ROSTER[:2]]
    assert any(not np.array_equal(own[0][path], own[1][path]) for path in own[0])
