"""Captions in a deployment: the simulation's numbers, and no text leaves a device."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from mlecs_jax import assemble, captions, experiment
from mlecs_jax.deploy import admission, language, protocol, share, systems, wire
from mlecs_jax.deploy import session as sessions
from mlecs_jax.deploy.wire import Header, Message, WireError
from mlecs_jax.errors import UserError
from mlecs_jax.metrics import rouge
from tests.deploy import small_deploy as small
from tests.deploy.test_memory import assert_same, lines
from tests.test_captions import options

ONE_BY_ONE = {"clients.backend": "loop"}  # one device or two: the same program


def provision(folder, config):
    """What ``deploy provision --split-dataset`` hands out, without certificates."""
    values = dataclasses.asdict(config)
    dealt = systems.MlEcs().deal(values, True)
    names = [f"d{j}" for j in range(config.partition.num_clients)]
    for name, save in zip(["cloud", *names], dealt.save, strict=True):
        save(folder / name)
    return sessions.create(values, names, dealt.train_rows, small.PATIENCE, dealt.language)


@pytest.fixture(scope="module")
def deployed(simulated, tmp_path_factory):
    """A whole run: its folder, session, devices, and all bytes that they sent."""
    del simulated  # compiled before
    folder, sent = tmp_path_factory.mktemp("kit"), []
    session = provision(folder, options(**ONE_BY_ONE))

    def tamper(name, question, data):
        sent.append((name, data))
        return data

    transport = small.MemoryTransport(small.edges(folder, session), tamper=tamper)
    small.cloud(folder, session, transport).run()
    yield folder, session, transport.edges, sent
    small.close(transport)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """On one accelerator, so that cloud and devices find its programs compiled."""
    folder = tmp_path_factory.mktemp("simulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.assemble, "setting",
                      functools.partial(assemble.setting, devices=small.ONE))
        experiment.run(options(**ONE_BY_ONE), folder)
    return folder


def assert_same_runs(ours, theirs):
    for a, b in zip(lines(ours), lines(theirs), strict=True):
        assert_same(a, b)
    assert_same(*(json.loads((folder / "summary.json").read_text()) for folder in (ours, theirs)))


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_rounds_and_summary_are_the_simulations(deployed, simulated):
    assert_same_runs(deployed[0] / "run", simulated)
    first, last = lines(deployed[0] / "run")
    assert set(first["eval"]) == {"val"} and set(last["eval"]) == {"val", "test"}
    assert 0 < max(last["eval"]["test"]["after_amt"]["clients"]["rouge1"])


def test_captions_to_read_stay_with_those_who_know_the_references(deployed, simulated):
    folder = deployed[0]
    by_node = {}
    for sample in samples_of(simulated):
        by_node.setdefault(sample["node"], []).append((sample["reference"], sample["generated"]))
    for name, place in (("server", "run"), ("device 0", "d0/state"), ("device 1", "d1/state")):
        found = samples_of(folder / place)
        assert {sample["node"] for sample in found} == {name}
        said = [(sample["reference"], sample["generated"]) for sample in found]
        if name == "server":  # drawn first in the simulation too
            assert said[:len(by_node[name])] == by_node[name]
        assert all(dict(said).get(reference, text) == text for reference, text in by_node[name])
    page = (folder / "run" / "report.html").read_text()
    assert "Captions to read" in page and "device 0" not in page.partition(
        "Captions to read")[2].partition("</section>")[0]
    assert all(sample["inputs"] is None for sample in samples_of(folder / "d0" / "state"))


def forms(text):
    """A text as bytes in whatever way an array could hold it."""
    return [text.encode(kind) for kind in ("utf-8", "utf-16-le", "utf-32-le")]


def forms_of(tokens):
    """Token ids as bytes, padding cut off."""
    known = tokens[tokens >= 0]
    return [known.astype(kind).tobytes() for kind in (np.int32, np.int64, np.int16, np.float32)]


def secrets_of(folder, app):
    """References, token rows and generated texts of a device, as bytes."""
    found = share.load(folder)
    texts = [text for part in ("train", "held_out") for text in found.parts[part].texts]
    rows = [row for part in ("train", "held_out") for row in found.parts[part].tokens]
    predictions = app._part.evaluate(app._nodes, 1)
    generated = [row for stage in predictions.values() for row in np.asarray(stage)[0]
                 if row[0] != captions.NOT_CAPTIONED]
    assert len(generated) > 4 and len(texts) == len(rows) > 20
    rows += generated
    texts += captions.texts_of(app._setting, np.stack(generated))
    found = [form for text in texts for form in forms(text)]
    found += [form for row in rows for form in forms_of(row)]
    return [form for form in found if len(form) >= 12]  # long enough not to occur by chance


def test_no_text_and_no_token_leaves_a_device(deployed):
    folder, session, edges, out = deployed
    sent = b"".join(data for _, data in out)
    hidden = {name: secrets_of(folder / name, app) for name, app in edges.items()}
    for forms in hidden.values():
        assert len(forms) > 100 and not any(form in sent for form in forms)
    # The same search finds a text, and a row of tokens, in a message that does hold one.
    message = wire.decode(out[-1][1], limit_bytes=1 << 24)
    found = share.load(folder / "d0").parts["train"]
    for leak in (np.array(found.texts), found.tokens):
        if leak.dtype.kind == "U":
            leak = leak[:, None].view(np.uint32)
        leaked = wire.encode(dataclasses.replace(message, arrays={"x": leak}))
        assert any(form in leaked for form in hidden["d0"])


def test_devices_send_lora_counts_and_scores_and_nothing_else(deployed):
    folder, session, edges, out = deployed
    lora = set(protocol.shapes({"lora": edges["d0"]._nodes.broadcast}))
    scores = [set(protocol.metrics(options(), 0, 3, r)) for r in range(2)]
    assert len(scores[1]) - len(scores[0]) == 2 * len(rouge.NAMES)
    for _, data in out:
        message = wire.decode(data, limit_bytes=1 << 24)
        allowed = {"begin": set(protocol.FACTS), "finish": set(), "round": lora | {"modalities"},
                   "evaluate": scores[min(message.header.round, 1)]}[message.header.kind]
        assert set(message.arrays) == allowed
        if message.header.kind != "round":
            assert all(values.shape == ((3,) if path == "readings" else ())
                       for path, values in message.arrays.items())


@pytest.mark.parametrize(("value", "scored", "fine"), [
    (0.0, True, True), (1.0, True, True), (np.nan, False, True), (np.nan, True, False),
    (1.0001, True, False), (-0.1, True, False), (np.inf, False, False), (7.0, False, False)])
def test_a_rouge_that_cannot_be_is_refused(value, scored, fine):
    template = protocol.metrics(options(), 0, 3, 1)
    arrays = {path: np.zeros(x.shape, x.dtype) for path, x in template.items()}
    arrays["scores/test/after_amt/rougeLsum"] = np.array(value)
    message = Message(Header("evaluate", "run.1-ab", 1, "d0", 2, 7), arrays)
    splits = ("val", "test") if scored else ("val",)
    if fine:
        admission.check_scores(message, template, splits)
    else:
        with pytest.raises(WireError, match="range: 'scores/test/after_amt/rougeLsum'"):
            admission.check_scores(message, template, splits)


def test_a_device_knows_no_text_but_its_own(deployed):
    folder, session, edges, _ = deployed
    cloud, own = (share.load(folder / name) for name in ("cloud", "d0"))
    assert own.parts["public"].tokens.shape == cloud.parts["public"].tokens.shape
    texts = {text for part in own.parts.values() for text in part.texts}
    others = {text for text in share.load(folder / "d1").parts["train"].texts}
    assert not texts & others and own.parts["train"].context is None
    assert cloud.parts["held_out"].context and not len(cloud.parts["train"])
    assert edges["d0"]._setting.federation.samples.context is None


def test_unlabelled_public_rows_have_no_text(tmp_path):
    provision(tmp_path, options(**{"partition.public_labels": False,
                                   "partition.server_labelled": 0.5}))
    cloud, own = (share.load(tmp_path / name).parts["public"] for name in ("cloud", "d0"))
    assert 0 < cloud.told.sum() < len(cloud) == len(own) and not own.told.any()
    assert set(own.texts) == {""} and (own.tokens == -1).all()
    assert [bool(text) for text in cloud.texts] == cloud.told.tolist()


def test_everyone_has_the_same_language_or_takes_no_part(deployed, tmp_path):
    folder, session = shutil.copytree(deployed[0] / "d0", tmp_path / "d0"), deployed[1]
    assert set(session.language) == {"tokenizer"}  # backbones are drawn from seeds
    small.edge(tmp_path, session, "d0").close()
    vocabulary = folder / language.FOLDER / language.TOKENIZER / "tokenizer.json"
    values = json.loads(vocabulary.read_text())
    values["model"]["merges"] = values["model"]["merges"][::-1]
    vocabulary.write_text(json.dumps(values))
    with pytest.raises(UserError, match="tokenizer of .*d0 is not the one that this deployment"):
        small.edge(tmp_path, session, "d0")
    shutil.rmtree(folder / language.FOLDER)
    with pytest.raises(UserError, match="there is no .*tokenizer; copy language/"):
        small.edge(tmp_path, session, "d0")


def test_a_share_of_ones_own_needs_texts_and_no_tokens(deployed, tmp_path):
    folder, session = shutil.copytree(deployed[0] / "d0", tmp_path / "d0"), deployed[1]
    found = share.load(folder)
    with np.load(folder / share.SHARE, allow_pickle=False) as stored:  # no pickle in it
        arrays = dict(stored)
    assert all(values.dtype.kind in "biufU" for values in arrays.values())
    tokens = {name: arrays.pop(f"{name}/tokens") for name in share.PARTS}
    np.savez(folder / share.SHARE, **arrays)
    app = small.edge(tmp_path, session, "d0")
    target = app._setting.federation.train.target[0, :len(tokens["train"])]
    width = min(target.shape[1], tokens["train"].shape[1])
    np.testing.assert_array_equal(target[:, :width], tokens["train"][:, :width])
    app.close()
    wrong = {f"{name}/tokens": values + (values >= 0) for name, values in tokens.items()}
    np.savez(folder / share.SHARE, **arrays, **wrong)
    with pytest.raises(UserError, match="tokens are not what this deployment's tokenizer makes"):
        small.edge(tmp_path, session, "d0")
    for part, message in (
            (dataclasses.replace(found.parts["train"], texts=("short",)), "texts"),
            (dataclasses.replace(found.parts["train"], texts=None), "labels or texts, tokens")):
        with pytest.raises(UserError, match=rf"train rows do not fit each other \({message}\)"):
            dataclasses.replace(found, parts={**found.parts, "train": part})


def test_what_a_deployment_of_captions_cannot_do():
    values = dataclasses.asdict(options(**{"captions.bertscore": "somewhere"}))
    with pytest.raises(UserError, match="captions.bertscore is scaled by everyone's references"):
        systems.MlEcs().parse(values)
    with pytest.raises(UserError, match="learnt from public text: deal it by --split-dataset"):
        systems.MlEcs().deal(dataclasses.asdict(options()), False)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [
    {"model.slm": "pretrained:gpt2-1x16x2", "model.llm": "pretrained:gptj-1x24x2",
     "captions.pretrain_steps": 12},
    {"channel.uplink": "int8", "captions.test_every": 1, "partition.num_clients": 3},
    {"aggregation.rule": "median", "partition.num_clients": 3, "partition.public_labels": False,
     "data.split": "frame"}])
def test_every_kind_of_run_is_the_simulations(overrides, tmp_path, cache_dir):
    config = options(**overrides)
    experiment.run(config, tmp_path / "simulated")
    session = provision(tmp_path, config)
    jax.clear_caches()
    if cache_dir.exists():  # what devices need is in their folders
        shutil.rmtree(cache_dir)
    transport = small.MemoryTransport(small.edges(tmp_path, session))
    small.cloud(tmp_path, session, transport).run()
    small.close(transport)
    assert_same_runs(tmp_path / "run", tmp_path / "simulated")
    assert not (tmp_path / "d0" / "language" / "llm").exists()
