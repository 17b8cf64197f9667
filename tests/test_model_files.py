"""What a run's identity knows of the models that it reads."""

import dataclasses
import shutil

import pytest

from mlecs_jax import model_files
from tests.small import config


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "model"
    (folder / "deeper").mkdir(parents=True)
    (folder / "config.json").write_text('{"n_layer": 2}')
    (folder / "deeper" / "vocab.txt").write_text("a\nb\n")
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(3 * model_files.WHOLE)
    return folder


def test_a_copy_is_the_same_and_a_change_is_not(directory, tmp_path):
    found = model_files.directory_hash(directory)
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    assert model_files.directory_hash(copy) == found
    changes = [
        lambda: (copy / "config.json").write_text('{"n_layer": 3}'),
        lambda: (copy / "deeper" / "vocab.txt").rename(copy / "vocab.txt"),
        lambda: (copy / "new.json").write_text(""),
        lambda: write_at(copy / "model.safetensors", 0),  # the header of weights
        lambda: write_at(copy / "model.safetensors", 3 * model_files.WHOLE - 1)]
    for change in changes:
        change()
        now = model_files.directory_hash(copy)
        assert now != found
        found = now


def write_at(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"x")


def test_directories_are_named_by_the_options_that_name_them(directory):
    plain = config()
    assert model_files.with_identity({"a": 1}, plain) == {"a": 1}  # as runs of before have it
    named = dataclasses.replace(plain, model=dataclasses.replace(
        plain.model, slm=f"hf:{directory}", llm="hf:nowhere"))
    assert model_files.with_identity({"a": 1}, named) == {
        "a": 1, "models": {"model.slm": model_files.directory_hash(directory)}}
    proxy = dataclasses.replace(plain, method=dataclasses.replace(
        plain.method, name="co_plms", co_plms=dataclasses.replace(
            plain.method.co_plms, proxy=f"hf:{directory}")))
    assert set(model_files.identity(proxy)) == {"method.co_plms.proxy"}
    other = dataclasses.replace(proxy, method=dataclasses.replace(proxy.method, name="ml_ecs"))
    assert model_files.identity(other) == {}  # which reads no proxy
