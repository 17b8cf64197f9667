"""What is named on disk is on disk: contents before their name, a name before what counts on it."""

import os

import numpy as np
import pytest

from mlecs_jax.deploy.mega_store import Store
from mlecs_jax.deploy.state import EdgeState, Notes

TREE = {"a": np.arange(3, dtype=np.float32)}


@pytest.fixture
def events(monkeypatch):
    """``('sync', inode)`` and ``('replace', inode of the new file, its name)`` as they happen."""
    found, sync, replace = [], os.fsync, os.replace

    def fsync(number):
        sync(number)
        found.append(("sync", os.fstat(number).st_ino))

    def replaced(source, target):
        found.append(("replace", os.stat(source).st_ino, os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    return found


def assert_safe(events, folder, names):
    """Every file before it gets its name, and its folder before anything else is named."""
    assert [event[2] for event in events if event[0] == "replace"] == names
    for at, event in enumerate(events):
        if event[0] == "replace":
            assert ("sync", event[1]) in events[:at]
            assert events[at + 1] == ("sync", os.stat(folder).st_ino)


def test_a_devices_state(tmp_path, events):
    store = EdgeState(tmp_path, "run")
    store.save(TREE, Notes(rounds=2))
    store.close()
    assert_safe(events, tmp_path, ["state-000002.safetensors"])


def test_models_are_there_before_the_books_name_them(tmp_path, events):
    store = Store(tmp_path, TREE)
    store.add(1, TREE, TREE)
    store.books.version = 1
    store.commit()
    assert_safe(events, tmp_path, ["version-000001.safetensors", "edge-000001.safetensors",
                                   "state.json"])
