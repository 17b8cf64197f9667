"""What goes wrong is noticed, counted and survived; the others' round goes on."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from mlecs_jax.deploy import faults
from mlecs_jax.deploy import session as sessions
from mlecs_jax.deploy.faults import Dying, Faulty
from mlecs_jax.deploy.wire import CLOUD, Header, Message, WireError
from mlecs_jax.errors import UserError
from tests.deploy import small_deploy as small


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    return folder, small.provision(folder, small.options())


def lines(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text()
            .splitlines()]


@pytest.fixture
def copy(provisioned, tmp_path):
    return shutil.copytree(provisioned[0], tmp_path / "kit"), provisioned[1]


def run(folder, session, edges, **network):
    transport = small.MemoryTransport(edges, **network)
    events = []
    try:
        summary = small.cloud(folder, session, transport,
                              on_event=lambda *event: events.append(event)).run()
    finally:
        for app in edges.values():
            getattr(app, "honest", app).close()
    return summary, lines(folder), events


def finite(record):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(record["train"]["server"]))


def test_every_bad_upload_is_refused_and_counted(copy):
    """Nine rounds of nine faults would be dear: one device lies in another way every round."""
    folder, session = copy
    lies = [faults.sends_nan, faults.sends_wrong_shape, faults.sends_wrong_type,
            faults.sends_another_path, faults.sends_wrong_round, faults.sends_other_session,
            faults.sends_as_another, faults.claims_too_many, faults.replays]
    session = sessions.create(
        {**session.config, "train": {**session.config["train"], "rounds": len(lies) + 1}},
        session.roster, session.train_rows, small.Limits(misses=100, wait_s=0.5))
    edges = small.edges(folder, session)
    turn = iter([None, *lies])

    def lie(upload, known, before):
        change = next(turn)
        return upload if change is None else change(upload, known, before)

    edges["d1"] = Faulty(edges["d1"], lie)
    summary, records, events = run(folder, session, edges)
    assert len(records) == len(lies) + 1 and all(map(finite, records))
    reasons = [records[i + 1]["deployment"]["refused"]["d1 round"].partition(":")[0]
               for i in range(len(lies))]
    assert reasons == ["not_finite", "shape", "dtype", "path", "round", "session", "sender",
                       "modalities", "replay"]
    found = summary["deployment"]
    assert found["refused"] == dict.fromkeys(reasons, 1) and found["refused_of"] == {"d1": 9}
    assert found["uploads"] == {"d0": 10, "d1": 1, "d2": 10} and found["missed"] == {"refused": 9}
    assert sum(kind == "fault" for kind, _ in events) == 9
    assert "d1" in (folder / "run" / "report.html").read_text()


@pytest.mark.slow
def test_damaged_and_oversized_bytes_are_refused(copy):
    folder, session = copy
    session = sessions.create(session.config, session.roster, session.train_rows,
                              small.Limits(misses=9, wait_s=0.5, limit_bytes=1 << 16))

    def tamper(name, question, data):
        if (name, question.header.kind) != ("d2", "round"):
            return data
        return data[:-1] + b"\x07" if question.header.round == 0 else data + bytes(1 << 17)

    summary, records, _ = run(folder, session, small.edges(folder, session), tamper=tamper,
                              limit_bytes=session.limits.limit_bytes)
    assert summary["deployment"]["refused"] == {"checksum": 1, "oversized": 2}
    assert [record["deployment"]["answered"] for record in records] == [["d0", "d1"]] * 3


def test_who_misses_too_often_is_out_until_it_comes_back(copy):
    """d0 hangs in round 0 for as long as two rounds take, misses two, is dropped, and returns."""
    folder, session = copy
    session = sessions.create(
        {**session.config, "train": {**session.config["train"], "rounds": 5}}, session.roster,
        session.train_rows, small.PATIENCE)

    def delay(name, question):
        hangs = (name, question.header.kind, question.header.round) == ("d0", "round", 0)
        return 35.0 if hangs else 4.0

    _, records, events = run(folder, session, small.edges(folder, session), delay=delay)
    rolls = [record["deployment"] for record in records]
    assert rolls[0]["missed"]["d0"].startswith("deadline: no answer in 10 s")
    assert rolls[1]["missed"]["d0"].startswith("gone") and rolls[1]["dropped"] == ["d0"]
    answered = [roll["answered"] for roll in rolls]
    assert answered[:2] == [["d1", "d2"]] * 2 and answered[-1] == ["d0", "d1", "d2"]
    assert rolls[0]["session"] == 1 and rolls[-1]["session"] == 2
    assert np.isnan(records[1]["eval"]["val"]["after_amt"]["clients"]["f1"][0])
    assert not np.isnan(records[-1]["eval"]["val"]["after_amt"]["clients"]["f1"][0])
    joined = [values for kind, values in events if kind == "session"]
    assert joined[-1]["members"] == ["d0", "d1", "d2"] and joined[-1]["round"] > 1


@pytest.mark.slow
def test_a_device_that_is_killed_is_missed_and_a_new_one_takes_its_place(copy):
    folder, session = copy
    edges = small.edges(folder, session)
    d1 = edges["d1"]
    edges["d1"] = Dying(d1, "round", 1)
    transport = small.MemoryTransport(edges)

    def come_back(kind, values):
        if kind == "round" and values["round"] == 1:
            d1.close()
            transport.edges["d1"] = small.edge(folder, session, "d1")

    summary = small.cloud(folder, session, transport, on_event=come_back).run()
    small.close(transport)
    rolls = [record["deployment"] for record in lines(folder)]
    assert [len(roll["answered"]) for roll in rolls] == [3, 2, 3]
    assert rolls[1]["missed"] == {"d1": "gone: connection lost"}
    assert summary["deployment"]["uploads"] == {"d0": 3, "d1": 2, "d2": 3}


class Telling:
    """A device whose errors the cloud is told, as the network's end does it."""

    def __init__(self, honest):
        self.honest = honest

    def handle(self, message):
        try:
            return self.honest.handle(message)
        except FloatingPointError as error:
            raise WireError("malformed", str(error)) from None


def test_a_training_step_that_fails_leaves_the_device_as_it_was(copy, monkeypatch):
    """The program had used up its arrays; the next round is trained from what was saved."""
    folder, session = copy
    edges = small.edges(folder, session)
    app, train = edges["d1"], edges["d1"]._part.train
    edges["d1"] = Telling(app)

    def failing(nodes, message, r, key, noise=None):
        if r != 1:
            return train(nodes, message, r, key, noise=noise)
        jax.tree.map(lambda x: x.delete(), nodes.devices)
        raise FloatingPointError("out of memory, say")

    app._part = dataclasses.replace(app._part, train=failing)
    summary, records, events = run(folder, session, edges)
    rolls = [record["deployment"] for record in records]
    assert rolls[1]["missed"]["d1"].startswith("error: ")
    assert [len(roll["answered"]) for roll in rolls] == [3, 2, 3]
    assert summary["deployment"]["dropped"] == {} and app.rounds == 3
    assert np.isfinite(records[2]["eval"]["val"]["after_amt"]["clients"]["f1"]).all()


def test_a_device_that_lost_its_state_is_told_of(copy, caplog):
    folder, session = copy
    session = sessions.create(
        {**session.config, "train": {**session.config["train"], "rounds": 4}}, session.roster,
        session.train_rows, dataclasses.replace(small.PATIENCE, misses=1))
    transport, said = small.MemoryTransport(small.edges(folder, session)), []

    def lose(kind, values):
        if kind == "device":
            said.append(values["what"])
        elif kind == "round" and values["round"] == 0:
            transport.edges["d1"].close()
            del transport.edges["d1"]
        elif kind == "fault" and values["what"] == "dropped":
            shutil.rmtree(folder / "d1" / "state")
        elif kind == "round" and values["deployment"]["dropped"]:
            transport.edges["d1"] = small.edge(folder, session, "d1")

    small.cloud(folder, session, transport, on_event=lose).run()
    small.close(transport)
    assert [len(roll["deployment"]["answered"]) for roll in lines(folder)] == [3, 2, 3, 3]
    assert len(said) == 1 and "encoders are untrained and the session is at round 2" in said[0]
    assert said[0] in caplog.text


@pytest.mark.slow
def test_weights_of_those_who_answer_sum_to_one(copy, monkeypatch):
    """Without SE-CCL the broadcast is the average: of d0 and d2 alone, by their modalities."""
    from mlecs_jax.methods import ml_ecs

    folder, session = copy
    config = {**session.config, "method": {**session.config["method"], "se_ccl": False},
              "train": {**session.config["train"], "rounds": 1}}
    session = sessions.create(config, session.roster, session.train_rows, small.PATIENCE)
    seen = {}
    part = ml_ecs.cloud_part

    def watched(setting):
        found = part(setting)

        def learn(server, uploads, r, key):
            seen["uploads"] = jax.device_get(uploads)
            server, diagnostics = found.learn(server, uploads, r, key)
            seen["lora"] = jax.device_get(server["slm"]["lora"])
            return server, diagnostics

        return found.__class__(**{**vars(found), "learn": learn})

    monkeypatch.setattr(ml_ecs, "cloud_part", watched)
    edges = small.edges(folder, session)
    edges["d1"] = Faulty(edges["d1"], faults.sends_nan)
    run(folder, session, edges)
    counts = np.asarray(seen["uploads"]["modalities"], np.float64)
    assert counts.shape == (2,)
    jax.tree.map(lambda own, mean: np.testing.assert_allclose(
        mean, np.tensordot(counts / counts.sum(), own, axes=1), atol=1e-6),
        seen["uploads"]["lora"], seen["lora"])


def test_nobody_there_ends_with_one_line(copy):
    folder, session = copy
    with pytest.raises(UserError, match="0 of 3 devices are there and 1 must answer"):
        small.cloud(folder, session, small.MemoryTransport({})).run()


@pytest.mark.slow
def test_only_liars_there_end_with_one_line(copy):
    folder, session = copy
    edges = {"d0": Faulty(small.edge(folder, session, "d0"), faults.sends_nan)}
    with pytest.raises(UserError, match="round 0: fewer than 1 usable answers in 3 .*not_finite"):
        run(folder, session, edges)


def test_a_device_refuses_what_is_not_the_clouds(copy):
    folder, session = copy
    app = small.edge(folder, session, "d0")
    lora = app._part.receive(app._nodes, {"lora": app._nodes.broadcast}).broadcast
    arrays = {path: np.zeros(x.shape, x.dtype) for path, x in
              faults_template(lora).items()}
    begin = Header("begin", session.id(1) + "-00", 0, CLOUD, 0, 1)
    wrong = [({"sender": "d1"}, arrays, "sender"), ({"session": "other.1-00"}, arrays, "session"),
             ({"kind": "round"}, arrays, "session"), ({"round": 9}, arrays, "round"),
             ({}, {}, "path"), ({"kind": "push"}, arrays, "session")]
    for changed, sent, reason in wrong:
        with pytest.raises(WireError) as caught:
            app.handle(Message(dataclasses.replace(begin, **changed), sent))
        assert caught.value.reason == reason
    answer = app.handle(Message(begin, arrays))
    assert answer.header.sender == "d0" and answer.header.serial == 1
    with pytest.raises(WireError, match="replay: exchange 1 was answered"):
        app.handle(Message(begin, arrays))
    app.close()


def faults_template(lora):
    from mlecs_jax.deploy import protocol

    return protocol.shapes({"lora": lora})
