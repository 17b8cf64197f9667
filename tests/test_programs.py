"""Programs are shared by runs that differ in data and seeds, and by no others."""

import dataclasses

import pytest

from mlecs_jax import programs
from mlecs_jax.assemble import from_samples
from mlecs_jax.stages import device_stage
from tests.small import config, samples


def program(**overrides):
    setting = from_samples(config(**overrides), samples())
    clients = setting.config.clients
    return programs.compiled_for_clients(
        device_stage, setting.outline, setting.cohorts[0].model, backend=clients.backend,
        chunk=clients.chunk, mesh=setting.topology.edge)


@pytest.fixture(scope="module")
def first():
    return program()


@pytest.mark.parametrize("overrides", [
    {"seed": 5}, {"partition.seed": 3}, {"partition.rho": 0.5}, {"data.split": "sequence"}])
def test_data_and_seeds_do_not_matter(first, overrides):
    assert program(**overrides) is first


@pytest.mark.parametrize("overrides", [
    {"ccl.temperature": 0.1}, {"train.batch_size": 8}, {"model.latent": 16}, {"lora.rank": 4},
    {"method.name": "localpub"}, {"partition.public_labels": False}, {"clients.chunk": 2}])
def test_everything_else_does(first, overrides):
    assert program(**overrides) is not first


def test_an_outline_knows_no_data():
    outline = from_samples(config(), samples()).outline
    assert {field.name for field in dataclasses.fields(outline)} == {
        "config", "slm", "llm", "answer_ids"}
    assert hash(outline) == hash(from_samples(config(seed=7), samples()).outline)
