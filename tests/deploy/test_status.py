"""What devices say is shown as they said it, and does nothing to the terminal."""

from mlecs_jax.deploy import status, wire
from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.transport import Failure
from mlecs_jax.deploy.wire import WireError

SAID = "a\x1b[2Jb\r\nc \u202ed é [/x]"
SHOWN = "a�[2Jb  c �d é [/x]"


def test_words_of_others_are_one_line_without_control_characters():
    assert wire.plain(SAID) == SHOWN == Failure("error", SAID).detail
    assert str(WireError("path", SAID)) == f"path: {SHOWN}"


def test_brackets_are_no_markup(tmp_path, capsys):
    watched = status.Status(tmp_path, Session("run", {}, ("north",), 1))
    for kind, values in (("device", {"device": "mal[/x]", "what": "refused: [/bold]"}),
                         ("device", {"device": "north", "what": "connected"}),
                         ("fault", {"device": "north", "round": 1, "what": "path '[/x]'"})):
        watched.event(kind, values)
    assert status.main(["status", f"--workdir={tmp_path}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "stranger mal[/x]: refused: [/bold]" in shown and "round 1: path '[/x]'" in shown
