"""A method of the user's: one file and one line of configuration."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mlecs_jax import methods
from mlecs_jax.errors import UserError
from tests.methods.rounds import build, moved, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "fedprox_lora.py"


def test_example_is_fedavg_of_lora_held_near_what_arrived():
    """A file by its path; its μ > 0 makes it differ from FedAvg of LoRA."""
    reference, _ = run(*build(**{"method.name": "fedavg_lora"})[1:])
    setting, method, state = build(**{"method.name": str(EXAMPLE)})
    after, diagnostics = run(method, state)
    assert moved(reference.broadcast, after.broadcast)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(diagnostics))
    assert method.evaluate(jax.device_put(after), 1)["after_amt"].shape[0] == 3
    del setting


def test_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("def make(setting):\n    return setting\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert methods.find("own:make")(3) == 3
    assert methods.find(f"{tmp_path / 'own.py'}:make")(3) == 3


@pytest.mark.parametrize("name,message", [
    ("fedx", "use ml_ecs, .* or your own path/to/file.py"),
    ("nowhere.py", "there is no file nowhere.py"),
    ("no_such_module:build", "there is no module 'no_such_module'"),
    ("json:build", "json has no function 'build'")])
def test_what_cannot_be_read_is_named(name, message):
    with pytest.raises(UserError, match=message):
        methods.find(name)
