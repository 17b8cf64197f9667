"""A deployment in memory is the simulation: its numbers, its files, and it goes on after a kill."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from mlecs_jax import assemble, experiment, methods, predict, restore, served
from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import served as deployed_nodes
from mlecs_jax.deploy import share
from tests.deploy import small_deploy as small
from tests.small import samples


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    return folder, small.provision(folder, small.options())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    experiment.run(small.options(), folder, samples=samples())
    return folder


@pytest.fixture(scope="module")
def deployed(provisioned, tmp_path_factory):
    folder, session = provisioned
    folder = shutil.copytree(folder, tmp_path_factory.mktemp("deployed"), dirs_exist_ok=True)
    transport = small.MemoryTransport(small.edges(folder, session))
    events = []
    small.cloud(folder, session, transport, on_event=lambda *e: events.append(e)).run()
    small.close(transport)
    return folder, session, events


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(tree):
    """Leaves of a nested record by path, without what a clock says."""
    if isinstance(tree, dict):
        return {f"{key}/{path}": x for key, value in tree.items() if "seconds" not in key
                and key not in ("timing", "deployment") for path, x in numbers(value).items()}
    if isinstance(tree, list):
        return {f"{i}/{path}": x for i, value in enumerate(tree)
                for path, x in numbers(value).items()}
    return {"": tree}


def assert_same(a, b):
    a, b = numbers(a), numbers(b)
    assert set(a) == set(b)
    for path in a:
        if isinstance(a[path], float):
            np.testing.assert_allclose(a[path], b[path], rtol=1e-5, atol=1e-5, err_msg=path)
        else:
            assert a[path] == b[path], path


def test_rounds_and_summary_are_the_simulations(simulated, deployed):
    folder = deployed[0]
    for ours, theirs in zip(lines(folder / "run"), lines(simulated), strict=True):
        assert_same(ours, theirs)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (folder / "run", simulated)]
    assert_same(*summaries)
    assert summaries[0]["deployment"] == {
        "sessions": 1, "uploads": {"d0": 3, "d1": 3, "d2": 3}, "missed": {}, "refused": {},
        "refused_of": {}, "dropped": {}}
    assert (folder / "run" / "report.html").exists()


def test_deployed_nodes_answer_as_the_simulations_do(deployed, simulated, tmp_path, capsys):
    """A device of its kit alone and the cloud of its own, against the simulation's checkpoint."""
    folder, session, _ = deployed
    setting = dataclasses.replace(
        assemble.from_samples(small.options(), samples(), small.ONE), unanswered=True)
    method = methods.build(setting)
    rounds, state = restore.load(
        simulated, method.init(jax.random.fold_in(jax.random.key(setting.config.seed), 0)))
    run = restore.Restored(setting, method, rounds, state)
    found = [deployed_nodes.of_kit(kit_of(folder, session, "d1")),
             deployed_nodes.of_kit(kit_of(folder, session, "cloud"), run=folder / "run")]
    for ours, theirs in zip(found, (served.node(run, 1), served.node(run, None)), strict=True):
        assert ours.description == theirs.description and ours.truth == theirs.truth
        assert len(ours.rows) > 3
        answers, expected = (node.predictor().predict(node.rows) for node in (ours, theirs))
        for answer, other in zip(answers, expected, strict=True):
            assert answer["class"] == other["class"]
            assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    out = tmp_path / "rows.npz"
    assert predict.main(["rows", f"--kit={folder / 'd1'}", "--count=2", f"--out={out}"]) == 0
    capsys.readouterr()
    assert predict.main([f"--kit={folder / 'd1'}", f"--input={out}", "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["node"] == "device 1" and line["truth"] == found[0].truth[0]
    assert line["probabilities"] == pytest.approx(answers_of(found[0], 0), abs=1e-5)


def answers_of(node, row):
    return node.predictor().predict([node.rows[row]])[0]["probabilities"]


def kit_of(folder, session, name):
    """A participant's folder with what provisioning puts there beside its data."""
    kit = kits.Kit(folder / name, name, "127.0.0.1", 1)
    kit.save()
    session.save(kit.folder)
    (kit.folder / "data").mkdir(exist_ok=True)
    for file in ("share.npz", "moments.npz"):
        shutil.copy(kit.folder / file, kit.data / file)
    for file in (kit.root, kit.certificate, kit.key):
        file.touch()
    return kit.folder


@pytest.mark.parametrize("arguments, message", [
    (["--kit=KITS/d2"], "d2 has no complete round in .* yet"),
    (["--kit=KITS/d1", "--device=1"], "a kit is of one node; leave --device out"),
    (["--kit=KITS/d1", "--run=KITS/run"], "--run is the cloud's and the kit is of d1"),
    (["--kit=KITS/cloud", "--state=KITS"], "--state is a device's"),
    (["--kit=KITS/cloud", "--run=KITS/nowhere"], "nowhere is not the folder of a run"),
    (["--kit=KITS/cloud", "--run=SIMULATED"], "is not of the deployment of"),
    (["--run=KITS/run", "--device=1"], "device 1 learned is on its own machine; there give --kit"),
    (["--run=KITS/run", "--device=server"], "kit is not beside it; name it by --kit=DIR --run="),
    (["--run=KITS/run", "--device=0", "--state=x"], "--state goes with --kit"),
    (["score", "--run=KITS/run"], "is of a deployed run: its data are where its devices are")])
def test_who_cannot_be_asked(deployed, simulated, tmp_path, capsys, arguments, message):
    folder = shutil.copytree(deployed[0], tmp_path / "kits", ignore=shutil.ignore_patterns("state"))
    for name in ("cloud", "d1", "d2"):
        kit_of(folder, deployed[1], name)
    words = [word.replace("KITS", str(folder)).replace("SIMULATED", str(simulated))
             for word in arguments]
    words += [] if words[0] == "score" else ["--input=x.npz"]
    assert predict.main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and re.search(message, said[0]), said


def test_events_tell_what_happens(deployed):
    kinds = [kind for kind, _ in deployed[2]]
    assert kinds == ["start", "session", "round", "round", "round"]
    assert deployed[2][1][1] == {"count": 1, "members": ["d0", "d1", "d2"], "round": 0}


def test_the_cloud_holds_no_row_of_a_device(provisioned):
    folder, session = provisioned
    app = small.cloud(folder, session, small.MemoryTransport({}))
    dealt = assemble.from_samples(small.options(), samples(), small.ONE).federation
    public = {row for part in ("train", "val", "test")
              for row in getattr(dealt.partition.public, part)}
    assert len(app._setting.federation.samples) == len(public)
    assert app._setting.cohorts == () and "public" not in app._setting.edge


class Killed(Exception):
    pass


def test_a_cloud_that_is_killed_goes_on_and_ends_as_it_would_have(provisioned, deployed, tmp_path):
    folder = shutil.copytree(provisioned[0], tmp_path / "kit")
    session = provisioned[1]
    transport = small.MemoryTransport(small.edges(folder, session))
    asked = []

    def kill(name, question):
        asked.append((question.header.kind, question.header.round))
        if asked[-1] == ("evaluate", 1):  # devices have trained a round that the cloud has not
            raise Killed
        return 0.0

    transport.delay = kill
    with pytest.raises(Killed):
        small.cloud(folder, session, transport).run()
    assert len(lines(folder / "run")) == 1
    transport.delay = lambda name, question: 0.0
    small.cloud(folder, session, transport).run()
    small.close(transport)
    found, expected = lines(folder / "run"), lines(deployed[0] / "run")
    assert [line["deployment"]["session"] for line in found] == [1, 2, 2]
    for ours, theirs in zip(found, expected, strict=True):
        assert numbers(ours) == numbers(theirs)


def test_a_device_that_is_killed_comes_back_where_it_was(provisioned, deployed, tmp_path):
    folder = shutil.copytree(provisioned[0], tmp_path / "kit")
    session = provisioned[1]
    transport = small.MemoryTransport(small.edges(folder, session))

    def restart(name, question):
        if (name, question.header.kind, question.header.round) == ("d1", "round", 1):
            transport.edges["d1"].close()
            transport.edges["d1"] = small.edge(folder, session, "d1")
        return 0.0

    transport.delay = restart
    small.cloud(folder, session, transport).run()
    small.close(transport)
    for ours, theirs in zip(lines(folder / "run"), lines(deployed[0] / "run"), strict=True):
        assert numbers(ours) == numbers(theirs)


def test_a_device_that_is_added_joins_at_the_next_session(provisioned, deployed, tmp_path):
    """Those who were there keep their numbers; its own share is not among those that were dealt."""
    folder, session = shutil.copytree(provisioned[0], tmp_path / "kit"), provisioned[1]
    grown = session.with_device("d3")
    own = share.load(folder / "d0")
    share.save(dataclasses.replace(own, node=3), folder / "d3")
    transport = small.MemoryTransport(small.edges(folder, session))
    present = [session]

    def come(kind, values):
        if kind == "round" and values["round"] == 0:
            present[0] = grown
            transport.edges["d3"] = small.edge(folder, grown, "d3")

    app = small.cloud(folder, session, transport, on_event=come, latest=lambda: present[0])
    summary = app.run()
    small.close(transport)
    found = lines(folder / "run")
    assert [line["deployment"]["session"] for line in found] == [1, 2, 2]
    assert found[2]["deployment"]["answered"] == ["d0", "d1", "d2", "d3"]
    assert numbers(found[0]) == numbers(lines(deployed[0] / "run")[0])
    assert summary["num_clients"] == 4 and len(summary["client"]["per_client"]) == 4
    assert summary["deployment"]["uploads"] == {"d0": 3, "d1": 3, "d2": 3, "d3": 2}
    again = small.cloud(folder, grown, small.MemoryTransport({}))  # and its folder goes on
    assert again.run() == json.loads((folder / "run" / "summary.json").read_text())


def test_a_kill_before_the_summary_loses_nothing(deployed, tmp_path):
    folder = shutil.copytree(deployed[0], tmp_path / "kit")
    session = deployed[1]
    (folder / "run" / "summary.json").unlink()
    transport = small.MemoryTransport(small.edges(folder, session))
    summary = small.cloud(folder, session, transport).run()
    small.close(transport)
    expected = json.loads((deployed[0] / "run" / "summary.json").read_text())
    assert numbers(summary) == numbers(expected)


def test_a_finished_run_is_not_run_again(deployed):
    folder, session, _ = deployed
    nobody = small.MemoryTransport({})
    summary = small.cloud(folder, session, nobody).run()
    assert summary == json.loads((folder / "run" / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [
    {"channel.uplink": "int8"}, {"channel.uplink": "topk"},
    {"partition.mask_schedule": "per_round", "partition.rho": 0.5},
    {"partition.mask_schedule": "per_sample", "partition.rho": 0.5},
    {"model.cohorts": "1=encoder_hidden:20"}, {"data.split": "sequence"},
    {"partition.public_labels": False, "partition.server_labelled": 0.5},
    {"method.broadcast": False}, {"method.public": False}, {"method.ccl": False},
    {"aggregation.rule": "median"}])
def test_every_kind_of_run_is_the_simulations(overrides, tmp_path):
    run_config = small.options(**{"train.rounds": 2} | overrides)
    experiment.run(run_config, tmp_path / "simulated", samples=samples())
    session = small.provision(tmp_path, run_config)
    transport = small.MemoryTransport(small.edges(tmp_path, session))
    small.cloud(tmp_path, session, transport).run()
    small.close(transport)
    for ours, theirs in zip(lines(tmp_path / "run"), lines(tmp_path / "simulated"), strict=True):
        assert_same(ours, theirs)
    assert jax.device_count() > 1  # the simulation had its tiers apart
