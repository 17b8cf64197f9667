"""The command line of preparation, its atomicity, and downloads from a local server."""

import functools
import http.server
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from official_ur_fall import write_accelerometer, write_labels, write_official

from mlecs_jax.data import prepare, prepared, ur_fall
from mlecs_jax.data.download import Remote, download_files
from mlecs_jax.errors import UserError


@pytest.fixture
def official(tmp_path) -> Path:
    return write_official(tmp_path / "official")


@pytest.fixture(autouse=True)
def no_data(tmp_path, cache_dir, monkeypatch) -> None:
    monkeypatch.setenv("MLECS_DATA_DIR", str(tmp_path / "data"))


def run(*arguments: str) -> int:
    return prepare.main(["ur_fall", "--partial", "--rgb-size=16", *arguments])


def test_prepares_once(official, capsys):
    assert run(f"--source={official}") == 0
    assert capsys.readouterr().out.startswith("prepared under")
    assert run(f"--source={official}") == 0
    assert capsys.readouterr().out.startswith("already prepared from these files")
    assert len(ur_fall.load(rgb_size=16)) == 9


def test_changed_files_are_prepared_again(official, capsys):
    run(f"--source={official}")
    write_labels(official / "urfall-cam0-falls.csv", "fall-01", [1, 1, 1, 1])
    run(f"--source={official}")
    assert "already" not in capsys.readouterr().out
    assert ur_fall.load(rgb_size=16).labels.tolist() == [2, 2, 2, 2, 0, 1, 2, 0]


def test_bad_files_end_with_code_2_and_keep_what_was_prepared(official, cache_dir, capsys):
    run(f"--source={official}")
    before = sorted(cache_dir.rglob("*"))
    (official / "adl-01-cam0.mp4").write_bytes(b"torn")
    assert run(f"--source={official}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "adl-01-cam0.mp4 cannot be decoded" in error
    assert sorted(cache_dir.rglob("*")) == before
    assert len(ur_fall.load(rgb_size=16)) == 9


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--source=FOLDER"),
    (["--source=/no/such/folder"], "/no/such/folder is not a folder"),
    (["--rgb-size=33"], "rgb_size=33 is unknown"),
])
def test_bad_arguments_end_with_code_2(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_unknown_dataset_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        prepare.main(["urfall"])
    assert caught.value.code == 2
    assert "ur_fall" in capsys.readouterr().err


def test_a_killed_preparation_leaves_nothing_that_looks_whole(tmp_path):
    target = tmp_path / "set" / "1.0.0"
    script = textwrap.dedent("""
        import os, pathlib, signal, sys
        from mlecs_jax.data import prepared

        def write(staging):
            made = staging / "made"
            made.mkdir()
            (made / "data").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

        prepared.prepare_once(pathlib.Path(sys.argv[1]), "identity", write)
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists() and not prepared.is_prepared(target)
    assert any(tmp_path.rglob("data"))

    def write(staging: Path) -> Path:
        (staging / "made").mkdir()
        (staging / "made" / "data").write_text("whole")
        return staging / "made"

    assert prepared.prepare_once(target, "identity", write)
    assert [path.read_text() for path in tmp_path.rglob("data")] == ["whole"]
    assert not prepared.prepare_once(target, "identity", write)


def test_an_unwritable_cache_is_named(official, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLECS_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set MLECS_CACHE_DIR"):
        ur_fall.prepare(official, rgb_size=16, partial=True)


# ---- downloads


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with ranges; breaks off a file's first transfer if its name is in
    ``broken``."""

    broken: set[str] = set()
    requests: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        name, wanted = self.path.rsplit("/", 1)[-1], self.headers["Range"]
        self.requests.append((name, wanted))
        path = Path(self.directory) / name
        if not path.exists():
            self.send_error(404)
            return
        data, start = path.read_bytes(), 0
        if wanted:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if name in self.broken:
            self.broken.remove(name)
            data = data[:len(data) // 2]
        self.wfile.write(data[start:])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(official, monkeypatch):
    """``(url, requests, broken)`` of a server of the made-up files."""
    monkeypatch.setenv("no_proxy", "*")
    handler = type("Handler", (Handler,), {"requests": [], "broken": set()})
    with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(official))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/data/", handler.requests, handler.broken
        httpd.shutdown()
        thread.join()


NAMES = ["urfall-cam0-falls.csv", "urfall-cam0-adls.csv", "fall-01-acc.csv", "adl-01-cam0.mp4"]


def fetch(url: str, folder: Path, *more: Remote) -> int:
    return download_files(url, [*map(Remote, NAMES), *more], folder, lambda name: None)


def test_download_fetches_what_is_not_there(server, official, tmp_path):
    url, requests, _ = server
    folder = tmp_path / "new" / "folder"
    optional = Remote("fall-01-data.csv", optional=True)
    assert fetch(url, folder, optional) == 4
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (folder / name).read_bytes() == (official / name).read_bytes()
    requests.clear()
    assert fetch(url, folder, optional) == 0
    assert requests == [("fall-01-data.csv", None)]


def test_a_broken_download_is_named_and_gone_on_with(server, official, tmp_path):
    url, requests, broken = server
    broken.add("adl-01-cam0.mp4")
    whole = (official / "adl-01-cam0.mp4").read_bytes()
    with pytest.raises(UserError, match=f"adl-01-cam0.mp4: the transfer broke off at "
                                        f"{len(whole) // 2} of {len(whole)} bytes"):
        fetch(url, tmp_path)
    assert not (tmp_path / "adl-01-cam0.mp4").exists()
    requests.clear()
    assert fetch(url, tmp_path) == 1
    assert requests == [("adl-01-cam0.mp4", f"bytes={len(whole) // 2}-")]
    assert (tmp_path / "adl-01-cam0.mp4").read_bytes() == whole
    assert not list(tmp_path.glob("*.part"))


def test_a_part_longer_than_the_file_is_fetched_anew(server, official, tmp_path):
    url, _, _ = server
    (tmp_path / "fall-01-acc.csv.part").write_bytes(b"x" * 100_000)
    fetch(url, tmp_path)
    assert (tmp_path / "fall-01-acc.csv").read_bytes() == (
        official / "fall-01-acc.csv").read_bytes()


def test_absent_file_and_absent_server_are_named(server, tmp_path):
    url, _, _ = server
    with pytest.raises(UserError, match="fall-02-acc.csv: the server answers 404"):
        fetch(url, tmp_path, Remote("fall-02-acc.csv"))
    with pytest.raises(UserError, match="127.0.0.1:9/.*check the connection"):
        fetch("http://127.0.0.1:9/", tmp_path / "other")


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    url, _, _ = server
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file"):
        fetch(url, tmp_path / "file")


def test_download_from_the_command_line(server, official, tmp_path, monkeypatch, capsys):
    url, _, _ = server
    monkeypatch.setattr(ur_fall.ur_fall_files, "SEQUENCES", ("adl-01", "fall-01"))
    write_accelerometer(official / "adl-01-acc.csv")
    assert run("--download", f"--url={url}") == 0
    out = capsys.readouterr().out
    assert "6 files downloaded" in out and "prepared under" in out
    assert (tmp_path / "data" / "ur_fall" / "adl-01-cam0.mp4").exists()
    assert len(ur_fall.load(rgb_size=16)) == 9
