"""The LoRA of a run's nodes taken out of its folder, as an adapter and merged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_backbones import checkpoint

from mlecs_jax import peft, restore
from mlecs_jax.errors import UserError
from mlecs_jax.models import hf
from tests import serving_runs
from tests.small import config

TOKENS = np.random.default_rng(0).integers(1, 60, (2, 7))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose devices have a checkpoint and whose server a seeded shape."""
    folder = tmp_path_factory.mktemp("run")
    slm = checkpoint(folder, "gpt2")
    _, _, state = serving_runs.write(config(**{
        "model.slm": slm, "lora.rank": 3, "lora.alpha": 6.0, "partition.num_clients": 2}),
        folder / "run")
    return folder / "run", slm.removeprefix("hf:"), state


@pytest.fixture(scope="module")
def restored(run):
    return restore.restored(run[0], unanswered=True)


def adapted_logits(decoder, params, lora):
    return decoder.apply({"params": params, "lora": lora}, jnp.asarray(TOKENS))


def test_a_devices_lora_is_an_adapter_of_its_checkpoint(run, tmp_path, capsys):
    folder, slm, state = run
    out = tmp_path / "adapter"
    assert peft.main([f"--run={folder}", "--node=1", f"--out={out}"]) == 0
    assert f"LoRA of device 1 after 2 rounds, 576 numbers, for {slm}" in capsys.readouterr().out
    model, _ = hf.load(slm)
    found, settings = peft.load(out, model.config)
    expected = jax.tree.map(lambda x: x[1], state.devices[0]["lora"])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert settings.alpha == 6.0
    values = json.loads((out / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == slm and values["r"] == 3


def test_merged_they_are_directories_with_a_tokenizer(run, restored, tmp_path):
    """The device's from its checkpoint, the server's from a seed: same logits as with the adapter
    on the side, which is not nothing."""
    _, slm, state = run
    said = peft.from_run(restored, 0, tmp_path / "device", merged=True)
    assert "device 0" in said and "with tokenizer" in said
    assert "the server" in peft.from_run(restored, None, tmp_path / "server", merged=True)
    setting = restored.setting
    for name, decoder, frozen, lora in (
            ("device", setting.slm.decoder, setting.edge["slm"],
             jax.tree.map(lambda x: x[0], state.devices[0]["lora"])),
            ("server", setting.llm.decoder, setting.cloud["llm"], state.server["llm"]["lora"])):
        model, params = hf.load(tmp_path / name)
        expected = adapted_logits(decoder, frozen, lora)
        plain = decoder.apply({"params": frozen}, jnp.asarray(TOKENS))
        assert np.abs(np.asarray(expected - plain)).max() > 1e-2
        np.testing.assert_allclose(model.apply({"params": params}, jnp.asarray(TOKENS)), expected,
                                   atol=1e-4)
        assert hf.load_tokenizer(tmp_path / name).eos_token_id == 0
        assert hf.end_ids(tmp_path / name) == (0,)
    adapter = peft.from_run(restored, None, tmp_path / "adapter")
    assert "drawn from a seed and in no file: --merged" in adapter


def test_what_cannot_be_taken_out_is_said(run, restored, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/model.safetensors").touch()
    for options, message in (
            (["--node=one", f"--out={tmp_path / 'x'}"], "--node is 'one'; give a number"),
            (["--node=0", f"--out={tmp_path / 'full'}"], "not empty; name a new folder"),
            ([f"--out={tmp_path / 'x'}"], "required: --node")):
        assert peft.main([f"--run={run[0]}", *options]) == 2
        assert message in capsys.readouterr().err
    assert peft.main([f"--run={tmp_path}", "--node=0", f"--out={tmp_path / 'x'}"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    with pytest.raises(UserError, match="no device 2; the run has devices 0 to 1, and"):
        peft.from_run(restored, 2, tmp_path / "x")
    assert not (tmp_path / "x").exists()
