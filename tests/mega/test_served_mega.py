"""Edges of a finished Mega-CE² run answer segments as the run did, here and from one file."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from small_mega import values

from mlecs_jax import export, predict
from mlecs_jax.checkpoint import Checkpoints
from mlecs_jax.errors import UserError
from mlecs_jax.mega import config, experiment, served, setting
from mlecs_jax.methods import mega_ce2
from mlecs_jax.serving import predictor


@pytest.mark.slow
def test_edges_and_the_global_model_answer_as_the_run_did(tmp_path, capsys):
    options = config.parse(values(train__rounds=1, adapter__epochs=1,
                                  data__simulated_segments=120))
    run = tmp_path / "run"
    experiment.run(options, run)
    made = setting.build(options, setting.load(options.data), jax.devices()[:1])
    method, key = mega_ce2.build(made), jax.random.key(0)
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        versions, state = checkpoints.restore(method.init(jax.random.fold_in(key, 0)))
    model = state.best["model"]
    _, own = method.personalise(model, jax.random.fold_in(key, 2))
    everyone = method.evaluate(state.replace(cloud=model), versions - 1)
    place = {int(row): i for i, row in enumerate(made.federation.split.test)}
    for edge, said in ((1, own), (None, everyone)):
        node = served.node(run, edge)
        rows = (made.federation.split.test if edge is None
                else made.federation.test.rows[edge][made.federation.test.real[edge]])
        wanted = np.clip([said["test"][place[int(row)]] for row in rows], -3, 3)
        got = [a["sentiment"] for a in node.predictor().predict(node.rows)]
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    export.write(node, tmp_path / "server")
    loaded = predictor.load(tmp_path / "server")
    got = [a["sentiment"] for a in loaded.predict(node.rows[:3])]
    np.testing.assert_allclose(got, wanted[:3], atol=1e-5)
    silent = loaded.predict([{"text": node.rows[0]["text"]}])[0]["sentiment"]
    assert abs(silent - got[0]) > 1e-6
    assert predict.main(["rows", f"--run={run}", "--device=server", "--count=2",
                         f"--out={tmp_path / 'rows.npz'}"]) == 0
    capsys.readouterr()
    assert predict.main([f"--run={run}", "--device=server", "--json",
                         f"--input={tmp_path / 'rows.npz'}"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["sentiment"] == pytest.approx(got[0], abs=1e-5) and first["node"] == "server"
    assert predict.main(["score", f"--run={run}"]) == 2
    assert "is a run of Mega-CE²" in capsys.readouterr().err


def test_an_edge_that_is_not_there_is_named(tmp_path):
    options = config.parse(values())
    (tmp_path / "config.json").write_text(json.dumps(
        dataclasses.asdict(options) | {"samples": {"source": "simulated"}}))
    with pytest.raises(UserError, match="there is no edge 9; the run has --device=0 to"):
        served.node(tmp_path, 9)
