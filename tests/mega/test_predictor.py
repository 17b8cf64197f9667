"""An exported predictor answers packets in a process that has no training code."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_mega import DATA

from mlecs_jax.data import sentiment
from mlecs_jax.errors import UserError
from mlecs_jax.mega import codecs, export, packets
from mlecs_jax.mega.codecs import Codec
from mlecs_jax.mega.packets import Header, Sender
from mlecs_jax.mega.predictor import PROGRAM, Predictor
from mlecs_jax.models import adapters, crossmodal

SHAPE = crossmodal.CrossModalConfig(width=8, layers=1, heads=2, ffn_ratio=1, targets=("text",))
ROWS = np.arange(60)
EXPECTED = {"end-0": Sender(5, {name: tuple(shape) for name, shape in DATA.shapes.items()})}

SERVE = """
import json, sys
from pathlib import Path
from mlecs_jax.mega.packets import Sender
from mlecs_jax.mega.predictor import Predictor
folder, expected = Path(sys.argv[1]), json.loads(sys.argv[2])
predictor = Predictor(folder / "predictor", {
    device: Sender(session, {name: tuple(shape) for name, shape in shapes.items()})
    for device, (session, shapes) in expected.items()})
reading = [path.read_bytes() for path in sorted(folder.glob("*.packet"))]
answer = predictor.answer(reading)
trained = [name for name in sys.modules if name.split(".")[0] in ("flax", "optax", "orbax")
           or name.startswith(("mlecs_jax.models", "mlecs_jax.methods", "mlecs_jax.train",
                               "mlecs_jax.data", "mlecs_jax.mega.export"))]
print(json.dumps([answer.sentiment, answer.missing, predictor.receiver.accepted, trained]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A personalised predictor, what it should say about each segment, and its packets."""
    folder = tmp_path_factory.mktemp("edge")
    model = crossmodal.model(SHAPE)
    params = model.init(jax.random.key(0), DATA.batch(slice(0, 1)))
    own = adapters.init(jax.random.key(1), SHAPE.pairs(), SHAPE.width, share=True)
    own = jax.tree.map(lambda x: 20 * x, own)  # so that forgetting them would be seen
    export.export(folder / "predictor", model, params, DATA.shapes, adapters=own,
                  moments=sentiment.moments(DATA, ROWS))
    scaled = sentiment.standardise(DATA, ROWS).batch(slice(0, 4))
    answers = jax.jit(lambda params, own, batch: model.apply(params, batch, adapters=own))(
        params, own, scaled)
    for i, name in enumerate(sentiment.MODALITIES):
        values = getattr(DATA, name)[2]
        header = Header(77, "end-0", 5, i, name, values.shape, 1.0, "float32+zlib")
        (folder / f"{i}.packet").write_bytes(packets.encode(
            header, codecs.encode(values, Codec("float32", True))))
    return folder, np.clip(answers, -3, 3)


def test_it_says_what_the_model_says(exported):
    folder, answers = exported
    predictor = Predictor(folder / "predictor")
    got = [predictor.predict({name: getattr(DATA, name)[row] for name in sentiment.MODALITIES})
           for row in range(4)]
    np.testing.assert_allclose(got, answers, atol=2e-5)
    # Left-padding and silence are filled in.
    text = DATA.text[1]
    start = int(np.argmax(text.any(axis=1)))
    rest = {"audio": DATA.audio[1], "vision": DATA.vision[1]}
    assert predictor.predict({"text": text[start:], **rest}) == pytest.approx(got[1], abs=1e-6)
    with pytest.raises(UserError, match="at most 12 steps of 300"):
        predictor.predict({"text": np.zeros((13, 300), np.float32)})


def test_a_fresh_process_without_training_code_answers(exported):
    folder, answers = exported
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(folder), json.dumps(
            {device: (known.session, known.shapes) for device, known in EXPECTED.items()})],
        capture_output=True, text=True, check=True)
    sentiment_, missing, accepted, trained = json.loads(done.stdout.splitlines()[-1])
    assert sentiment_ == pytest.approx(float(answers[2]), abs=2e-5)
    assert missing == [] and accepted == 3 and trained == []


def test_packets_that_do_not_count(exported):
    folder, answers = exported
    reading = [path.read_bytes() for path in sorted(folder.glob("*.packet"))]
    predictor = Predictor(folder / "predictor", EXPECTED)
    damaged = bytes([*reading[0][:-1], reading[0][-1] ^ 1])
    answer = predictor.answer([damaged, *reading[1:]])
    assert answer is not None and answer.missing == ("text",) and answer.time_us == 77
    assert abs(answer.sentiment - float(answers[2])) > 1e-4
    assert predictor.answer([damaged, reading[1]]) is None  # and a replay
    assert predictor.receiver.refused == {"corrupted": 2, "replayed": 1}
    assert len(answer.pack()) < 80


def test_damaged_folders_are_named(exported, tmp_path):
    folder, _ = exported
    with pytest.raises(UserError, match="holds no predictor"):
        Predictor(tmp_path)
    for path in (folder / "predictor").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / PROGRAM).write_bytes(b"other")
    with pytest.raises(UserError, match="files of several predictors"):
        Predictor(tmp_path)


