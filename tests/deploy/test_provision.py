"""Kits: who gets what, and what is refused before anything is written."""

import dataclasses
import json
import shutil

import pytest

from mlecs_jax.configs import ur_fall
from mlecs_jax.deploy import __main__ as command
from mlecs_jax.deploy import (
    addition,
    local,
    nvflare_needed,
    provision,
    session,
    share,
    status,
)
from mlecs_jax.deploy import kit as kits
from mlecs_jax.errors import UserError
from tests import small

VALUES = ur_fall.get_config("smoke").to_dict()
PLAIN = json.loads(json.dumps(VALUES))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("nvflare", reason="a deployment needs NVFlare: pip install -e '.[deploy]'")
    out = tmp_path_factory.mktemp("provision") / "kits"
    shrunk = [f"--config.{name}={value}" for name, value in small.SHRUNK.items()]
    assert command.main(["deploy", "provision", "--config=ur_fall:smoke", "--devices=north,south",
                         f"--out={out}", "--split-dataset", "--deadline=7", "--misses=4",
                         "--min-devices=2", "--wait=60", "--limit-bytes=1000000", *shrunk]) == 0
    return out


def test_everyone_gets_a_folder_of_their_own(written):
    assert {path.name for path in written.iterdir()} == {"authority", "cloud", "north", "south"}
    for name, role in (("cloud", "server"), ("north", "client"), ("south", "client")):
        found = {path.name for path in (written / name).iterdir()}
        assert found == {"kit.json", "session.json", "rootCA.pem", f"{role}.crt", f"{role}.key",
                         "data"}
        # Whatever the umask: readings lie in data, and in state what is learnt of them.
        for folder in (written / name, written / name / "data"):
            assert folder.stat().st_mode & 0o777 == 0o700
    assert (written / "authority").stat().st_mode & 0o777 == 0o700
    keys = list(written.rglob("*.key"))
    assert len({key.read_bytes() for key in keys}) == 4
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)


def test_kits_agree_on_one_session(written):
    sessions = [kits.load(written / name, cloud=name == "cloud").session()
                for name in ("cloud", "north", "south")]
    assert sessions[0] == sessions[1] == sessions[2]
    assert sessions[0].roster == ("north", "south")
    assert sessions[0].limits == session.Limits(
        deadline_s=7.0, misses=4, min_devices=2, wait_s=60.0, limit_bytes=1_000_000)
    assert sessions[0].experiment.partition.num_clients == 2
    rows = [len(share.load(written / name / "data").parts["train"].labels)
            for name in ("north", "south")]
    assert sessions[0].train_rows == max(rows)


def test_a_device_is_added_and_everyone_else_keeps_what_they_have(written, tmp_path, capsys):
    from cryptography import x509

    kits_folder = shutil.copytree(written, tmp_path / "kits")
    before = {path: path.read_bytes() for path in kits_folder.rglob("*") if path.is_file()}
    assert command.main(["deploy", "provision", "--add=east", f"--out={kits_folder}"]) == 0
    assert "the cloud need not be stopped" in capsys.readouterr().out
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert changed == {kits_folder / "cloud" / "session.json"}
    east = kits.load(kits_folder / "east", cloud=False)
    grown = kits.load(kits_folder / "cloud", cloud=True).session()
    assert east.session() == grown and grown.roster == ("north", "south", "east")
    assert grown.founders == ("north", "south") and dict(grown.config) == dict(
        kits.load(written / "cloud", cloud=True).session().config)
    authority = x509.load_pem_x509_certificate((kits_folder / "authority/rootCA.pem").read_bytes())
    own = x509.load_pem_x509_certificate(east.certificate.read_bytes())
    own.verify_directly_issued_by(authority)
    assert own.not_valid_after_utc <= authority.not_valid_after_utc
    assert east.key.stat().st_mode & 0o077 == 0
    assert session.latest(kits.load(written / "cloud", cloud=True).session(),
                          kits_folder / "cloud") == grown


@pytest.mark.parametrize("name,days,message", [
    ("north", 9, "'north' is a device of this deployment already"),
    ("cloud", 9, "is no name for a device"), ("east", 0, "--days is 0")])
def test_devices_that_cannot_be_added(written, name, days, message):
    with pytest.raises(UserError, match=message):
        addition.add(written, name, days)
    assert not (written / "east").exists()


def test_without_the_authoritys_key_nobody_is_added(written, tmp_path):
    kits_folder = shutil.copytree(written, tmp_path / "kits")
    (kits_folder / "authority" / "rootCA.key").unlink()
    with pytest.raises(UserError, match="provisioned anew"):
        addition.add(kits_folder, "east")
    with pytest.raises(UserError, match=r"no kit\.json"):
        addition.add(tmp_path, "east")


def test_a_session_grows_by_devices_and_by_nothing_else(tmp_path):
    first = session.create({**PLAIN, "partition": {"num_clients": 1}}, ("a",), 8)
    grown = first.with_device("b")
    grown.save(tmp_path)
    assert session.latest(first, tmp_path) == grown == session.latest(grown, tmp_path)
    other = dataclasses.replace(grown, train_rows=9)
    for present in (other, dataclasses.replace(first, run="another"), grown.with_device("c")):
        assert session.latest(present, tmp_path) == present
    (tmp_path / "session.json").write_text("{torn")
    assert session.latest(first, tmp_path) == first


@pytest.mark.parametrize("arguments,message", [
    (["provision", "--config=ur_fall"], "no folder given"),
    (["provision", "--add=x"], "--out"),
    (["provision", "--add=x", "--out=x", "--devices=2"], "unrecognized arguments: --devices=2"),
    (["provision", "--config=mosi:smoke", "--out=x", "--devices=2", "--train-rows=9",
      "--config.method.mode=sync"], "nobody waits: use async"),
    (["provision", "--config=mosi:smoke", "--out=x", "--devices=2", "--train-rows=9",
      "--config.cloud.steps=5"], "has no segments to train on"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=2", "--train-rows=9",
      "--config.method.name=fedmllm"], "a deployment runs ml_ecs or mega_ce2"),
    (["drill", "--config=ur_fall", "--config.method.name=fedmllm", "--out=x"],
     "a deployment runs ml_ecs or mega_ce2"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=2", "--train-rows=9",
      "--config.model.slm=gpt9"], "model.slm: unknown backbone 'gpt9'"),
    (["drill", "--config=mosi:smoke"], "'mosi' is for runs of Mega-CE²"),
    (["outages", "--config=mosi:smoke", "--workdir=x"], "'mosi' is for runs of Mega-CE²"),
    (["provision", "--config=ur_fall", "--out=x"], "no devices given"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=2"], "train-rows"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=2", "--address=here"],
     "'here' is no address"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=2", "--deadline=soon"],
     "--deadline is 'soon'; give a number"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=2", "--misses=few"],
     "--misses is 'few'; give a number"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=2", "--train-rows=9", "--misses=0"],
     "limits.misses is 0; give a positive number"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=2", "--train-rows=9",
      "--min-devices=3"], "3 devices at least of 2; give no more than there are"),
    (["cloud", "--kit=x"], "no kit.json in x"), (["cloud"], "--kit"),
    (["edge", "--kit=x", "--wrong"], "unrecognized arguments: --wrong"),
    (["status", "--workdir=x"], "no status.json in x"),
    (["outages", "--config=ur_fall"], "no folder given"),
    (["locl"], "unknown command 'locl'"),
    (["local", "--devices=x"], "--devices is 'x'; give a number from 1, or names with commas"),
    (["local", "--devices=0"], "--devices is '0'; give a number from 1"),
    (["provision", "--config=ur_fall", "--out=x", "--devices=²", "--train-rows=9"],
     "--devices is '²'; give a number from 1, or names with commas between them .one device: "),
    (["local", "--devices=none,cloud"], "'cloud' is no name for a device")])
def test_bad_commands(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.main(["deploy", *arguments])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text,names", [
    ("1", ("edge-0",)), ("3", ("edge-0", "edge-1", "edge-2")), ("hall,bath", ("hall", "bath")),
    ("hall, bath,", ("hall", "bath")), ("hall,", ("hall",))])
def test_devices_are_counted_or_named(text, names):
    assert provision.roster(text) == names


@pytest.mark.parametrize("name", ["server", "cloud", "localhost", "127.0.0.1", "10.0.0.7", "a.b",
                                  "cloud.example", "", "-x", "Server"])
def test_names_that_could_pass_for_another(name):
    with pytest.raises(UserError, match="is no name for a device"):
        provision.check_names(["edge-0", name], "cloud.example")


def test_a_folder_in_use_is_kept(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="is not an empty folder"):
        provision.write(tmp_path, VALUES, ["a"], "127.0.0.1", 1, split=False, train_rows=1)


def test_kits_that_are_torn_or_of_another_kind(written, tmp_path):
    with pytest.raises(UserError, match="is the kit of north; start it by 'edge"):
        kits.load(written / "north", cloud=True)
    for name in ("kit.json", "session.json"):
        (tmp_path / name).write_text("{torn")
    with pytest.raises(UserError, match="kit.json is damaged"):
        kits.load(tmp_path, cloud=False)
    (tmp_path / "kit.json").write_text(json.dumps({"name": "a", "host": "h", "port": 1}))
    with pytest.raises(UserError, match="rootCA.pem is missing"):
        kits.load(tmp_path, cloud=False)


def test_a_local_folder_is_bound_to_its_configuration(written, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "kits").symlink_to(written)
    values = kits.load(written / "cloud", cloud=True).session().config
    assert len(local.prepare(workdir, values, ("north", "south"), {})) == 3
    for other, names in (({**values, "seed": 5}, ("north", "south")), (values, ("north",))):
        with pytest.raises(UserError, match="another configuration"):
            local.prepare(workdir, other, names, {})


def test_without_nvflare_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs NVFlare; install it by pip install .*\[deploy\]"):
        nvflare_needed.check()


def test_status_of_a_running_deployment(written, tmp_path, capsys):
    watched = status.Status(tmp_path, kits.load(written / "cloud", cloud=True).session())
    for kind, values in (("listening", {"address": "127.0.0.1:8443"}),
                         ("start", {"complete": 1, "rounds": 5}),
                         ("device", {"device": "north", "what": "connected"}),
                         ("device", {"device": "attic", "what": "connected"}),
                         ("device", {"device": "eve", "what": "refused: not on the roster"}),
                         ("session", {"count": 2, "members": ["north"], "round": 1}),
                         ("round", {"round": 1}),
                         ("fault", {"device": "south", "round": 1, "what": "round: deadline"})):
        watched.event(kind, values)
    assert status.main(["status", f"--workdir={tmp_path}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "stopped; the same command resumes it | round 2/5 | cloud at 127.0.0.1:8443" in shown
    assert "round 1: round: deadline" in shown
    assert "stranger eve: refused: not on the roster" in shown
    assert "attic" in shown and "stranger attic" not in shown
    (tmp_path / "status.json").write_text("{torn")
    with pytest.raises(UserError, match="is damaged"):
        status.main(["status", f"--workdir={tmp_path}"])
