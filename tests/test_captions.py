"""The captioning run: what is generated when, how it is scored, and what the paper's would send."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlecs_jax import (
    assemble,
    backbones,
    captions,
    experiment,
    lora,
    methods,
    scoring,
    seen_text,
)
from mlecs_jax import config as configs
from mlecs_jax.configs import vast
from mlecs_jax.data import captions_simulated, featurise, text, vocabulary
from mlecs_jax.errors import UserError
from mlecs_jax.federation import gather
from mlecs_jax.metrics.rouge import NAMES, rouge
from mlecs_jax.repro import absence, masking

SHRUNK = {
    "data.source": "simulated", "captions.simulated_clips": 60, "captions.vocabulary": 300,
    "captions.feature_width": 16, "captions.max_tokens": 6, "captions.val_rows": 2,
    "captions.shown": 5, "model.slm": "gpt2-1x16x2", "model.llm": "gptj-1x24x2",
    "model.latent": 8, "model.encoder_hidden": 12, "model.connector_hidden": 16,
    "model.soft_tokens": 2, "lora.rank": 2, "train.batch_size": 4, "train.ccl_steps": 2,
    "train.amt_steps": 2, "train.server_steps": 2, "train.rounds": 2, "kt.k": 8,
    "partition.num_clients": 2}


def options(variant="smoke", **changes):
    values = vast.get_config(variant)
    for name, value in (changes if variant == "paper" else SHRUNK | changes).items():
        group, _, key = name.rpartition(".")
        (values[group] if group else values)[key] = value
    return configs.parse(values.to_dict())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("captions")
    return workdir, experiment.run(options(), workdir)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_summary_contract(finished):
    workdir, summary = finished
    client, server = summary["client"], summary["server"]
    assert summary["primary_metric"] == "rougeLsum" and summary["data_source"] == "simulated"
    for name in NAMES:
        own = [device[name] for device in client["per_client"]]
        assert client[f"avg_{name}"] == pytest.approx(np.mean(own))
        assert (client[f"best_{name}"], client[f"worst_{name}"]) == (max(own), min(own))
    assert set(server) == set(NAMES) and "f1" not in json.dumps(summary)
    assert summary["best_val"]["round"] == 1  # the only one with test captions
    assert json.loads((workdir / "summary.json").read_text()) == summary


def test_test_rows_are_captioned_after_the_last_round_only(finished):
    first, last = lines(finished[0] / "metrics.jsonl")
    assert set(first["eval"]) == {"val"} and set(last["eval"]) == {"val", "test"}
    assert set(first["eval"]["val"]["after_amt"]["clients"]) == set(NAMES)


def test_samples_stand_beside_their_references(finished):
    workdir, _ = finished
    samples = lines(workdir / "samples.jsonl")
    assert len(samples) == 5 and {s["node"] for s in samples} >= {"server", "device 0"}
    known = captions_simulated.load(seed=0, num_clips=60,
                                    featurise=featurise.featuriser(featurise.HASHED, 16))
    for sample in samples:
        assert sample["reference"] == known.texts[sample["row"]]
        assert sample["data_source"] == "simulated"
        found = rouge([sample["reference"]], [sample["generated"]])["rougeLsum"][0]
        assert sample["rougeLsum"] == pytest.approx(found, abs=1e-4)
    page = (workdir / "report.html").read_text()
    assert "Captions to read" in page and samples[0]["reference"] in page and "ROUGE-LSum" in page


@pytest.fixture(scope="module")
def trained():
    setting = assemble.setting(options(**{"captions.test_every": 1}))
    method = methods.build(setting)
    return setting, method, method.init(jax.random.key(0))


def test_generation_is_greedy_on_the_models_own_logits(trained):
    """Teacher forcing on a generated caption finds each of its tokens the likeliest."""
    setting, _, state = trained
    params = jax.tree.map(lambda x: x[0], state.devices[0])
    backbone, model = setting.edge["slm"], setting.cohorts[0].model
    rows = jax.tree.map(lambda x: x[0], setting.cohorts[0].train)
    batch = gather(rows, jnp.ones(3, bool), setting.edge["moments"], jnp.arange(4))
    tokens = np.asarray(captions.generate_batch(setting, model, backbone, params, batch))
    _, fused = model.represent(params, batch.inputs, batch.mask)
    logits = model.answer(backbone, params, fused, jnp.asarray(tokens)).logits()
    likeliest = np.asarray(jnp.argmax(logits[..., :len(setting.tokenizer)], axis=-1))
    assert (tokens >= 0).any()
    np.testing.assert_array_equal(likeliest[tokens >= 0], tokens[tokens >= 0])


def test_a_node_is_scored_on_its_own_rows(trained):
    """References written in as predictions score one, on validation and test alike."""
    setting, method, state = trained
    federation = setting.federation
    predictions = method.evaluate(state, 0)
    assert predictions["after_amt"].shape[:2] == (2, len(federation.held_out.target))
    num_val = int(federation.num_val[0])
    val = captions.validated(num_val, 2, 0)
    asked = (predictions["after_amt"][0] != captions.NOT_CAPTIONED).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(asked[:num_val]), val)
    assert asked[num_val:].all() and num_val > 2
    perfect = np.where(predictions["after_amt"][..., :1] == captions.NOT_CAPTIONED,
                       predictions["after_amt"], federation.held_out.target[None, :, :6])
    for part in ("val", "test"):
        (found,) = scoring.score(setting, {"after_amt": perfect[:1]}, part).values()
        cut = [setting.tokenizer.decode(row[:6].tolist()) for row in text.targets(
            federation.samples, setting.tokenizer, 6)]
        rows = federation.held_out_rows(0, part)[val if part == "val" else slice(None)]
        references = [federation.samples.texts[row] for row in rows]
        expected = rouge(references, [cut[row] for row in rows])["rouge1"].mean()
        assert found[0].metrics["rouge1"] == pytest.approx(expected) and expected > 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_validation_hears_every_corpus(seed):
    """Rows lie corpus by corpus; a share of 64 of 406 has of each as many as its size asks for."""
    sizes = np.array([12, 100, 187, 107])
    rows = captions.validated(int(sizes.sum()), 64, seed)
    assert len(set(rows.tolist())) == 64
    drawn = np.bincount(np.repeat(np.arange(4), sizes)[rows], minlength=4)
    np.testing.assert_allclose(drawn, 64 * sizes / sizes.sum(), atol=1)
    np.testing.assert_array_equal(rows, captions.validated(int(sizes.sum()), 64, seed))
    np.testing.assert_array_equal(captions.validated(5, 64, seed), np.arange(5))
    assert not len(captions.validated(0, 64, seed))


def test_which_rows_are_validated_is_drawn():
    drawn = {tuple(captions.validated(406, 8, seed)) for seed in range(4)}
    assert len(drawn) == 4


def test_a_backbone_that_has_read_held_out_captions_is_told(trained, tmp_path):
    setting, _, _ = trained
    samples, split = setting.federation.samples, setting.federation.partition
    named = dataclasses.replace(setting, config=dataclasses.replace(
        setting.config, model=dataclasses.replace(setting.config.model, slm=f"hf:{tmp_path}")))
    assert seen_text.warnings(named) == []  # nobody knows what it has read
    public = [samples.texts[row] for row in split.public.train]
    seen_text.write(tmp_path, [*public, "no caption of this run"])
    assert seen_text.warnings(named) == [] == seen_text.warnings(setting)
    secret = samples.texts[split.devices[0].test[0]]
    seen_text.write(tmp_path, [*public, secret.upper() + " !"])
    (line,) = seen_text.warnings(named)
    count = len({*split.public.val, *split.public.test, *split.devices[0].val,
                 *split.devices[0].test})
    assert f"trained on 1 of the {count} captions" in line and str(tmp_path) in line


def test_what_cannot_be_captioned_yet_is_absent(trained):
    setting, method, state = trained
    later = setting.config.captions.__class__(
        **{**vars(setting.config.captions), "test_every": 0})
    object.__setattr__(setting.config, "captions", later)
    predictions = method.evaluate(state, 0)
    assert scoring.score(setting, {"after_amt": predictions["after_amt"]}, "test") == {}


def test_the_papers_share_of_communication_by_shape_alone():
    """36 layers of GPT-2-large, rank 8: c_attn 8·(1280+3·1280), attention c_proj 8·(1280+1280),
    MLP c_proj 8·(5120+1280). With the fused vectors of a quarter of 9,680 clips, over 720 M."""
    config = options("paper")
    samples = captions_simulated.load(seed=0, num_clips=40, featurise=featurise.featuriser(
        featurise.HASHED, 8))
    slm = assemble.model(config, samples, text.ByteTokenizer(), "slm")
    shapes = jax.eval_shape(lambda: slm.decoder.init(
        jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    assert lora.count(shapes) == pytest.approx(774e6, rel=0.001)
    adapters = lora.init(jax.random.key(0), shapes, slm.lora_targets, slm.lora_rank)
    assert lora.count(adapters) == 36 * 8 * (4 * 1280 + 2 * 1280 + 5 * 1280) == 4_055_040
    vectors = 9680 // 4 * config.model.latent
    assert vectors == 2_420 * 256
    assert round(100 * (lora.count(adapters) + vectors) / 720e6, 3) == 0.649
    llm = assemble.model(config, samples, text.ByteTokenizer(), "llm").decoder.config
    assert (llm.family, llm.num_layers, llm.width) == ("gptj", 28, 4096)


def test_tokenizer_and_backbone_read_public_training_text_alone():
    config = options()
    samples = captions_simulated.load(seed=0, num_clips=60, featurise=featurise.featuriser(
        featurise.HASHED, 8))
    documents = backbones.public_text(config, samples)
    setting = assemble.from_samples(config, samples)
    public = setting.federation.partition.public
    assert sorted(documents.captions) == sorted(samples.texts[row] for row in public.train)
    secret = {samples.texts[row] for share in setting.federation.partition.devices
              for row in (*share.train, *share.val, *share.test)}
    assert not secret & {*documents.captions, *documents.context}


@pytest.mark.slow
def test_modalities_are_taken_from_trained_nodes(finished):
    """The same clips by the same nodes: what changes is on rows that had the modality."""
    workdir, _ = finished
    config = options()
    samples = captions_simulated.load(seed=0, num_clips=60, featurise=featurise.featuriser(
        featurise.HASHED, 16))
    found = masking.costs(config, samples, workdir)
    setting = assemble.from_samples(config, samples)
    owned = setting.federation.owned_at(1)
    rows = len(setting.federation.held_out_rows(0, "test"))
    assert list(found) == ["vision", "audio", "subtitle"]
    for column, nodes in enumerate(found.values()):
        having = {f"device_{j}" for j in range(2) if owned[j, column]} | {"server"}
        assert set(nodes) == having
        assert all(-1 <= node["change"] <= 1 and node["rows"] == rows for node in nodes.values())
    state = absence.final_state(setting, workdir)
    whole = masking.row_scores(setting, state)
    summary = json.loads((workdir / "summary.json").read_text())
    assert whole[None].mean() == pytest.approx(summary["server"]["rougeLsum"])
    assert whole[1].mean() == pytest.approx(summary["client"]["per_client"][1]["rougeLsum"])


@pytest.mark.slow
def test_a_pretrained_backbone_is_trained_once_and_learns(cache_dir, capfd):
    config = options(**{"model.slm": "pretrained:gpt2-1x16x2",
                        "model.llm": "pretrained:gptj-1x24x2",
                        "captions.pretrain_steps": 60})
    setting = assemble.setting(config)
    assert capfd.readouterr().err.count("pretraining") == 2
    windows = jnp.asarray(setting.federation.public.target[:, :6])

    @jax.jit
    def nll(params):
        logits = setting.slm.decoder.apply({"params": params}, windows[:, :-1])
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, windows[:, 1:, None], axis=-1).mean()

    fresh = setting.slm.init_backbone(jax.random.key(0))
    assert nll(setting.edge["slm"]) < nll(fresh) - 1
    again = assemble.setting(config)
    assert "pretraining" not in capfd.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(setting.edge["slm"]),
                 jax.device_get(again.edge["slm"]))


def test_a_target_that_is_cut_does_not_end():
    samples = captions_simulated.load(seed=0, num_clips=40, featurise=featurise.featuriser(
        featurise.HASHED, 8))
    bpe = vocabulary.trained_bpe(samples.texts, 400)
    whole, cut = text.targets(samples, bpe, 70), text.targets(samples, bpe, 4)
    assert ((whole == bpe.eos_token_id).sum(axis=1) == 1).all()
    assert cut.shape == (40, 4) and not (cut == bpe.eos_token_id).any()
    np.testing.assert_array_equal(cut, whole[:, :4])


def test_bad_options_are_named():
    samples = captions_simulated.load(seed=0, num_clips=40, featurise=featurise.featuriser(
        featurise.HASHED, 8))
    with pytest.raises(UserError, match="captions.vocabulary is 100"):
        assemble.from_samples(options(**{"captions.vocabulary": 100}), samples)
    with pytest.raises(UserError, match="captions.bertscore: there is no folder"):
        assemble.from_samples(options(**{"captions.bertscore": "nowhere"}), samples)
    with pytest.raises(UserError, match="eval.ceiling_steps trains classifiers"):
        assemble.from_samples(options(**{"eval.ceiling_steps": 5}), samples)
    plain = configs.parse({k: v for k, v in vast.get_config("smoke").to_dict().items()
                           if k != "captions"})
    with pytest.raises(UserError, match="needs a group captions"):
        assemble.from_samples(plain, samples)


@pytest.mark.parametrize("changes,message", [
    ({"partition.public_labels": False}, "set partition.public_labels=True"),
    ({"plus.weighting": "confidence", "plus.tokens": 1}, "set plus.tokens to 2 or more")])
def test_beliefs_about_captions_need_captions_and_a_choice(changes, message):
    with pytest.raises(UserError, match=message):
        methods.build(assemble.setting(options(**{"method.name": "ml_ecs_plus"} | changes)))
