"""The command line: shipped configs load, typos get a suggestion, bad input exits 2 with a line."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mlecs_jax import cli, run
from mlecs_jax import config as configs
from mlecs_jax.errors import UserError
from tests import small
from tests.test_experiment import assert_same_end

TINY = ["--config=ur_fall:smoke", "--config.train.rounds=3",
        *(f"--config.{name}={value}" for name, value in small.SHRUNK.items())]


def parse(*arguments):
    values, _ = cli.parse(["run", *arguments], "usage", {"workdir": ""})
    return configs.parse(values)


@pytest.mark.parametrize("name", ["ur_fall", "table"])
@pytest.mark.parametrize("variant", ["", ":smoke", ":cpu", ":paper"])
def test_every_shipped_config_parses(name, variant):
    assert parse(f"--config={name}{variant}").train.rounds >= 1


def test_a_space_is_as_good_as_an_equals_sign():
    assert parse("--config", "ur_fall:smoke") == parse("--config=ur_fall:smoke")


def test_overrides_are_typed():
    config = parse("--config=ur_fall", "--config.partition.rho=0.5",
                   "--config.partition.num_clients=7", "--config.method.mma=False")
    assert (config.partition.rho, config.partition.num_clients, config.method.mma) == (0.5, 7,
                                                                                       False)


@pytest.mark.parametrize("arguments,message", [
    (["--config=ur_fal"], "unknown config 'ur_fal'.*ur_fall"),
    (["--config=ur_fall:tiny"], "unknown variant 'tiny'"),
    (["--config=missing.py"], "missing.py does not exist"),
    ([], "no config given"),
    (["--config=ur_fall", "--config.partition.roh=0.5"],
     "unknown config key 'partition.roh'; did you mean partition.rho"),
    (["--config=ur_fall", "--config.partitio.rho=0.5"], "did you mean partition.rho"),
    (["--config=ur_fall", "--wrkdir=x"], "wrkdir.*workdir"),
    (["--config=ur_fall", "extra"], "unexpected argument 'extra'"),
    (["--config=ur_fall", "--config.partition.rho=much"], "rho|float"),
    (["--config=ur_fall", "--config.partition.rho=1.5"], r"rho is 1.5; give a probability"),
    (["--config=ur_fall", "--config.partition.rho=0"], r"rho is 0.0; give a probability"),
    (["--config=ur_fall", "--config.partition.num_clients=0"], "num_clients is 0"),
    (["--config=ur_fall", "--config.lora.rank=0"], "lora.rank is 0"),
    (["--config=ur_fall", "--config.train.rounds=0"], "train.rounds is 0"),
    (["--config=ur_fall", "--config.data.source=fake"], "data.source is 'fake'.*simulated"),
    (["--config=ur_fall", "--config.data.split=video"], "data.split is 'video'"),
    (["--config=ur_fall", "--config.lora.dropout=1.0"], r"lora.dropout is 1.0"),
    (["--config=ur_fall", "--config.partition.seed=-1"], "partition.seed is -1"),
    (["--config=ur_fall", "--config.model.encoder_hidden=0"], "model.encoder_hidden is 0"),
    (["--config=ur_fall", "--config.train.learning_rate=nan"], "learning_rate is nan"),
    (["--config=ur_fall", "--config.ccl.weight=-1"], "ccl.weight is -1"),
])
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


def execute(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mlecs_jax.run", *arguments], cwd=cwd, capture_output=True,
        text=True, timeout=300, env={**os.environ, **environment})


def test_real_data_absent_exits_2_and_says_how_to_get_them(tmp_path):
    done = execute("--config=ur_fall", "--config.data.source=real", cwd=tmp_path,
                   MLECS_DATA_DIR=str(tmp_path), MLECS_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "mlecs_jax.data.prepare ur_fall" in done.stderr


def test_automatic_source_falls_back_with_a_banner(tmp_path):
    done = execute(*TINY, "--config.data.source=auto", "--config.train.rounds=1", cwd=tmp_path,
                   MLECS_DATA_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "SIMULATED DATA" in done.stdout
    assert list((tmp_path / "runs").glob("ur_fall-ml_ecs-*/report.html"))


def test_same_command_names_the_same_folder():
    assert run.default_workdir(parse(*TINY)) == run.default_workdir(parse(*TINY))
    assert run.default_workdir(parse(*TINY)) != run.default_workdir(
        parse(*TINY, "--config.seed=1"))


@pytest.mark.slow
def test_killed_at_ten_random_moments_ends_bit_equal(tmp_path):
    """SIGKILL ten times, at seeded random moments after the first round has begun to be possible,
    each time begun again by the same command."""
    rounds = 60
    arguments = [*TINY, f"--config.train.rounds={rounds}"]
    environment = {"MLECS_CACHE_DIR": str(tmp_path / "cache")}
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert execute(*arguments, f"--workdir={unbroken}", cwd=tmp_path, **environment).returncode == 0
    rng = np.random.default_rng(0)
    unfinished = 0
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "mlecs_jax.run", *arguments, f"--workdir={killed}"],
            cwd=tmp_path, env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        records = killed / "metrics.jsonl"
        before = len(records.read_text().splitlines()) if records.exists() else 0
        while process.poll() is None and (
                not records.exists() or len(records.read_text().splitlines()) <= before):
            time.sleep(0.02)  # until this process has added a round
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        unfinished += not (killed / "summary.json").exists()
    assert unfinished == 10  # every kill found work in hand
    assert execute(*arguments, f"--workdir={killed}", cwd=tmp_path, **environment).returncode == 0
    assert_same_end(unbroken, killed, parse(*arguments))
