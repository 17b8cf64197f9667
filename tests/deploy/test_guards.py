"""One run with everything on and much going wrong: what a lost upload leaves on the device, what is
sent and told of privacy, what the server does not learn from. Noise and compression together."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import channel
from mlecs_jax.codecs import Uplink, codec
from mlecs_jax.config import ChannelConfig
from mlecs_jax.deploy import admission, faults, protocol
from mlecs_jax.deploy.admission import Expected
from mlecs_jax.deploy.faults import Faulty
from mlecs_jax.deploy.session import Limits
from mlecs_jax.deploy.state import EdgeState, Notes
from mlecs_jax.deploy.wire import Header, Message, WireError
from mlecs_jax.errors import UserError
from mlecs_jax.progress import Progress
from tests.deploy import small_deploy as small


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four rounds. d1 claims another modality in round 1 and sends absurdities in round 2; the
    cloud is killed in round 2, after which the round is made again, and its first round 3 ends in
    NaN. Folder, summary, what devices keep back after every round, what the failed cloud said."""
    pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")
    folder = tmp_path_factory.mktemp("kit")
    session = small.provision(
        folder, small.options(**{"train.rounds": 4, "channel.uplink": "topk",
                                 "privacy.clip": 0.01, "privacy.noise": 5.0}),
        Limits(deadline_s=10.0, first_deadline_s=10.0, misses=9, wait_s=0.5))
    edges = small.edges(folder, session)
    honest = dict(edges)

    def lie(upload, known, before):
        change = {1: faults.claims_another, 2: faults.sends_absurdity}.get(upload.header.round)
        return change(upload, known, before) if change else upload

    edges["d1"] = Faulty(edges["d1"], lie)
    transport = small.MemoryTransport(edges)
    kept, told = [], []

    def look(kind, values):
        if kind == "round":
            kept.append({name: jax.device_get(app._nodes.kept) for name, app in honest.items()})

    def kill(name, question):
        if (question.header.kind, question.header.round) == ("evaluate", 2):
            transport.delay = lambda name, question: 0.0
            raise Killed
        return 0.0

    transport.delay = kill
    with pytest.raises(Killed):
        small.cloud(folder, session, transport, on_event=look).run()
    app = small.cloud(folder, session, transport, on_event=look)
    learn = app._part.learn

    def diverges(server, uploads, r, key):
        server, diagnostics = learn(server, uploads, r, key)
        return jax.tree.map(lambda x: x * jnp.nan, server) if r == 3 else server, diagnostics

    app._part = dataclasses.replace(app._part, learn=diverges)
    with pytest.raises(UserError) as caught:
        app.run()
    told.append(str(caught.value))
    summary = small.cloud(folder, session, transport, on_event=look).run()
    told.append({name: app.privacy() for name, app in honest.items()})
    yield folder, summary, kept, told
    small.close(transport)
    honest["d1"].close()


def lines(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text()
            .splitlines()]


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_what_a_device_lies_about_is_refused(run):
    refused = [line["deployment"]["refused"] for line in lines(run[0])]
    assert refused[0] == refused[3] == {}
    assert refused[1]["d1 round"].startswith("modalities: claims")
    assert refused[2]["d1 round"].startswith("length: differs by")


def test_what_a_lost_upload_held_of_earlier_ones_is_kept_back_again(run):
    kept = run[2]
    assert len(kept) == 4 and np.any(jax.tree.leaves(kept[0]["d1"])[0])
    for name, moves in (("d0", [True, True, True]), ("d1", [False, False, True])):
        found = [not same(kept[r][name], kept[r + 1][name]) for r in range(3)]
        assert found == moves, name


def test_every_upload_that_has_left_is_told(run):
    """Four rounds, one of them twice because of the kill and one because of the NaN."""
    folder, summary, _, (_, said) = run
    assert summary["deployment"]["uploads"] == {"d0": 4, "d1": 2, "d2": 4}
    assert lines(folder)[-1]["deployment"]["sent"] == {"d0": 6, "d1": 6, "d2": 6}
    assert summary["privacy"]["uploads"] == 6
    for line in (summary["privacy"]["statement"], *said.values()):
        assert "after 6 uploads" in line and "differentially" in line


def test_epsilon_is_printed(run, capsys):
    with Progress(run[0] / "run") as display:
        display.finish(run[1])
    said = " ".join(capsys.readouterr().out.split())
    assert run[1]["privacy"]["statement"] in said


def test_a_server_that_is_no_number_is_not_saved(run):
    folder, _, kept, (error, _) = run
    assert error.startswith("round 3: the server's model has NaN or infinity after learning from "
                            "d0, d1, d2; nothing of the round is saved")
    assert len(kept) == len(lines(folder)) == 4  # and the same command went on
    assert all(np.isfinite(line["train"]["server"]["se_ccl"]["llm_lm"]).all()
               for line in lines(folder))


def test_a_count_of_uploads_outlives_going_back(tmp_path):
    store = EdgeState(tmp_path, "run")
    tree = {"a": np.zeros(2, np.float32)}
    for rounds in range(3):
        store.save(tree, Notes(rounds=rounds))
        store.count_upload()
    store.forget_after(0)
    assert store.sent == 3
    store.close()
    again = EdgeState(tmp_path, "run")
    assert again.sent == 3
    (tmp_path / "sent").write_text("many")
    with pytest.raises(UserError, match="how many uploads have left"):
        again.count_upload()
    again.close()


HEADER = Header("round", "run.1", 0, "d0", 2, 1)
KNOWN = {"w": np.full((4, 5), 0.5, np.float32)}


def decoded(name, message):
    """What a server makes of one device's message of one tensor."""
    found = codec(ChannelConfig(name, 0.2))
    return {"w": np.asarray(KNOWN["w"] + found.decode(jax.tree.map(jnp.asarray, message), (4, 5)))}


@pytest.mark.parametrize(("name", "change", "reason"), [
    ("int8", {"scale": np.float32(3e38)}, "not_finite"), ("int8", {"scale": np.float32(1e18)},
                                                          "length"),
    ("topk", {"values": np.full(4, 3e38, np.float32)}, "length"),
    ("bf16", {"values": np.full((4, 5), 1e10, jnp.bfloat16)}, "length")])
def test_what_is_sane_encoded_has_to_be_sane_decoded(name, change, reason):
    difference = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5)), jnp.float32)
    message = dict(codec(ChannelConfig(name, 0.2)).encode(difference))
    admission.check_length(decoded(name, message), KNOWN)
    with pytest.raises(WireError) as caught:
        admission.check_length(decoded(name, message | change), KNOWN)
    assert caught.value.reason == reason


def test_noise_makes_honest_updates_long():
    far = {"w": KNOWN["w"] + 1000.0}
    with pytest.raises(WireError, match="length"):
        admission.check_length(far, KNOWN)
    admission.check_length(far, KNOWN, besides=100.0)


@pytest.mark.parametrize(("name", "value", "fine"), [
    ("parameters", 0, False), ("parameters", 1, True), ("train_samples", -1, False),
    ("test_samples", 0, True), ("val_samples", 2**60, False)])
def test_facts_that_a_summary_cannot_use(name, value, fine):
    facts = {fact: np.array(5, np.int64) for fact in protocol.FACTS} | {
        name: np.array(value, np.int64)}
    expected = Expected(protocol.facts(), admission.check_facts)
    if fine:
        expected(Message(HEADER, facts))
    else:
        with pytest.raises(WireError, match=f"range: '{name}' is"):
            expected(Message(HEADER, facts))


def test_an_answer_may_be_as_long_as_what_was_asked_for():
    uplink = Uplink(ChannelConfig("none", 1.0))
    expected = Expected(protocol.shapes({"lora": uplink.message(KNOWN)}))
    assert 80 < expected.limit_bytes == channel.num_bytes(KNOWN) + admission.SLACK < 1 << 19


class Mute:
    def handle(self, message):
        raise WireError("kind", "says nothing")


def test_a_round_needs_as_many_answers_as_its_rule(tmp_path):
    """Of three devices one is away: no round is made of two."""
    session = small.provision(tmp_path, small.options(**{"aggregation.rule": "median"}))
    app = small.cloud(tmp_path, session, small.MemoryTransport({"d0": Mute(), "d1": Mute()}))
    with pytest.raises(UserError, match="2 of 3 devices are there and 3 must answer"):
        app.run()
