"""The command line: shipped configs load, typos get a suggestion, bad input exits 2 with a line."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mlecs_jax import cli, pretrain, run
from mlecs_jax import config as configs
from mlecs_jax.deploy import __main__ as deploy
from mlecs_jax.errors import UserError
from mlecs_jax.plan import __main__ as plan
from mlecs_jax.repro import command as repro
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
    (["--config=ur_fall", "extra"], "unexpected argument 'extra'"),
    (["--config=ur_fall", "--wrkdir=x"], "unknown option 'wrkdir'; did you mean --workdir"),
    (["--config=ur_fall", "-x"], "unknown option 'x'; there are --config, --config.KEY, --workdir"),
    (["--confg=ur_fall"], r"unknown option 'confg'; did you mean --config\?"),
    (["--config=ur_fall", "--seed=3"],
     r"unknown option 'seed'; did you mean --config.seed or --config.partition.seed\?"),
    (["--config=ur_fall", "--partition.rho=0.5"], r"did you mean --config.partition.rho\?"),
    (["--config=ur_fall", "--confg.seed=3"], r"did you mean --config.seed\?"),
    (["--config=ur_fall", "--config.rho=0.5"], r"key 'rho'; did you mean partition.rho\?"),
    (["--config=ur_fall", "-config.roh=0.5"], r"key 'roh'; did you mean partition.rho\?"),
    (["--config=ur_fall", "--config.method=fedmllm"], r"did you mean method.name\?"),
    (["--config=ur_fall", "--noconfig.method.mna"], "key 'method.mna'; did you mean method.mma"),
    (["--config=ur_fall", "--workdir"], "Missing value for flag --workdir"),
    (["--config.seed=3"], "no config given; use --config=NAME with one of mosei, mosi, table, "),
    (["--config"], "no config given"),
    (["--config=ur_fall:smoke:cpu"], "--config=ur_fall:smoke:cpu names two variants; give one"),
    (["--config=ur_fall", "--config.partition.rho=much"],
     "^partition.rho is 'much'; give a number$"),
    (["--config=ur_fall", "--config.seed=abc"], "^seed is 'abc'; give a whole number$"),
    (["--config=ur_fall", "--config.seed", "abc"], "--config.seed=abc: .*base 10: 'abc'$"),
    (["--config=ur_fall", "--config.partition.num_clients=3.0"],
     "^partition.num_clients is '3.0'; give a whole number$"),
    (["--config=ur_fall", "--config.method.mma=maybe"],
     "^method.mma is 'maybe'; give True or False$"),
    (["--config=ur_fall", "--config.model.slm=gpt9"], "^model.slm: unknown backbone 'gpt9'"),
    (["--config=ur_fall", "--config.model.llm=gpt2-2x63"], "^model.llm: backbone 'gpt2-2x63': the"),
    (["--config=vast", "--config.method.co_plms.proxy=pretrained:gpt9"],
     "^method.co_plms.proxy: unknown backbone 'gpt9'"),
    (["--config=mosi", "--config.method.name=ml_ecs"],
     "^method.name is 'ml_ecs', and config 'mosi' is for runs of Mega-CE²; leave it out, or use "
     "another config: table, ur_fall or vast$"),
    (["--config=ur_fall", "--config.method.name=mega_ce2"],
     "^method.name is 'mega_ce2', and config 'ur_fall' is for runs of ML-ECS; leave it out, or use "
     "another config: mosei or mosi$"),
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


LANGUAGE = "config 'lm_small' is for python -m mlecs_jax.pretrain; use "


@pytest.mark.parametrize("command,arguments,message", [
    (run, ["--config=lm_small"], LANGUAGE + "mosei, mosi, table, ur_fall or vast$"),
    (run, ["--config=nosuch"], "unknown config 'nosuch'; use mosei, mosi, table, ur_fall or vast,"),
    (deploy, ["local", "--config=lm_small"], LANGUAGE + "mosei, mosi, table, ur_fall or vast$"),
    (deploy, ["drill", "--config=mosi"], "'mosi' is for runs of Mega-CE²; use table, ur_fall or"),
    (deploy, ["outages"], "no config given; use --config=NAME with one of table, ur_fall or vast$"),
    (deploy, ["local", "--config=mosi", "--config.method.name=ml_ecs"],
     "method.name is 'ml_ecs', and config 'mosi' is for runs of Mega-CE²"),
    (deploy, ["drill", "--config=ur_fall", "--config.method.name=mega_ce2"],
     "config 'ur_fall' is for runs of ML-ECS; leave it out$"),
    (plan, ["--config=lm_small", "--target=h200"], LANGUAGE + "table, ur_fall or vast$"),
    (plan, ["--config=mosi", "--target=h200"], "is for runs of Mega-CE²; use table, ur_fall or va"),
    (pretrain, ["--config=ur_fall"], "config 'ur_fall' is for runs of ML-ECS; use lm_small$"),
    (pretrain, [], "no config given; use --config=NAME with one of lm_small$"),
    (repro, ["mlecs", "table1", "--dataset=lm_small"], LANGUAGE + "mosei, mosi, table, ur_fall or"),
])
def test_each_command_takes_its_own_configs(tmp_path, monkeypatch, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.main(arguments if command is repro else ["program", *arguments])
    assert not list(tmp_path.iterdir())


START = "from ml_collections import ConfigDict\ndef get_config():\n    config = ConfigDict()\n"


@pytest.mark.parametrize("text,message", [
    ("", r"^config file own.py has no get_config\(\); define one that returns a ConfigDict, as "),
    (START, r"own.py: get_config\(\) returns NoneType; return an ml_collections.ConfigDict$"),
    ("def get_config():\n    return {'seed': 1}", "returns dict; return an ml_collections"),
    ("def get_config(:", "own.py is no Python file: .*, line 1$"),
    ("def get_config(): return {}['x']", "^config file own.py fails: KeyError: 'x'$"),
    ("import nowhere_at_all", "own.py fails: ModuleNotFoundError: No module named 'nowhere_at_al"),
    ("def get_config(): raise ValueError('no such variant')", "^config file own.py: no such var"),
    (START + "    return config", "^config file own.py has no method.name; add it, or use mosei, "),
    (START + "    config.method = 'ml_ecs'\n    return config", "own.py has no method.name"),
    (START + "    config.tokenizer = 1\n    return config", "own.py is for python -m mlecs_jax"),
    (START + "    config.method = ConfigDict({'name': 'ml_ecs'})\n    return config",
     "^config key 'seed' is missing; known keys: seed, method, "),
])
@pytest.mark.parametrize("command", [run, deploy])
def test_files_of_ones_own_that_make_no_configuration(tmp_path, monkeypatch, command, text,
                                                      message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        command.main(["program", *["local"] * (command is deploy), "--config=own.py"])
    assert "\n" not in str(caught.value)


def test_the_first_wrong_key_is_named():
    """In every process: the order of a set of names is another in each."""
    values, _ = cli.parse(["run", "--config=ur_fall"], "", {})
    strange = {f"strange{i}": 0 for i in range(20)}
    for given, message in (
            ({**values, **strange}, "config key 'strange0' is unknown"),
            ({**strange, "seed": 0}, "config key 'strange0' is unknown"),
            ({"seed": 0}, "config key 'method' is missing"),
            ({**values, "ccl": {"weight": 1.0}}, "config key 'ccl.temperature' is missing"),
            ({**values, "ccl": 3}, "config key 'ccl' is 3; give a group of weight, temperature")):
        with pytest.raises(UserError, match=message):
            configs.parse(given)


def test_flags_are_checked_before_jax_is_imported():
    """Which takes seconds."""
    found = subprocess.run(
        [sys.executable, "-c", """
import sys
from mlecs_jax import run
from mlecs_jax.errors import UserError
for word in ("--seed=3", "--config.seed=x", "--config.method.name=mega_ce2", "--grace=x"):
    try:
        run.main(["run", "--config=ur_fall", word])
    except UserError:
        print(word, "jax" in sys.modules)
"""], capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == [
        "--seed=3", "False", "--config.seed=x", "False", "--config.method.name=mega_ce2", "False",
        "--grace=x", "False"], found.stderr


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
