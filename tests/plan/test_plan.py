"""Plans of a small round: shapes are a run's, formulas are the compiler's, too small is refused."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mlecs_jax import assemble, rounds
from mlecs_jax.data.paths import cache_dir
from mlecs_jax.plan import flops, measured, shapes, targets
from mlecs_jax.plan.stages import Builder
from tests import small

CPU = targets.parse("cpu")


@pytest.fixture(scope="module")
def plan():
    return shapes.plan(small.config(), 240)


def test_shapes_are_those_of_a_run(plan):
    """Backbones, trained groups and rows of a real setting of the same data shapes."""
    samples = dataclasses.replace(plan.federation.samples)
    setting = assemble.from_samples(small.config(), samples, jax.devices()[:1])
    llm = rounds.initial_llm(setting, jax.random.key(0))
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype,
                        [setting.cloud["llm"], setting.edge["slm"], llm],
                        [plan.llm.backbone_shapes(), plan.slm.backbone_shapes(),
                         shapes.trainable(plan.llm, plan.federation)])
    assert all(jax.tree.leaves(same))
    assert setting.cohorts[0].train.target.shape == plan.federation.train.target.shape


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_formula_and_compiler_count_alike(family):
    """One training step of an unrolled decoder: the compiler's count has no loop to get wrong."""
    from mlecs_jax import losses
    from mlecs_jax.models.multimodal import Answer

    config = small.config(**{"model.slm": f"{family}-2x64x4", "lora.dropout": 0.0})
    plan = shapes.plan(config, 240)
    decoder, backbone = plan.slm.decoder, plan.slm.backbone_shapes()
    adapters = shapes.trainable(plan.slm, plan.federation)["lora"]
    batch, length = 4, 24

    def loss(adapters, prefix, backbone, target):
        variables = {"params": backbone, "lora": adapters}
        hidden = decoder.apply(variables, target, prefix=prefix, method="hidden")
        head, bias = decoder.apply({"params": backbone}, method="head")
        answer = Answer(hidden[:, -length:], head, bias)
        return losses.language_modelling(answer, target)

    prefix = jax.ShapeDtypeStruct((batch, 2, 64), jnp.float32)
    target = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    counted = step.lower(adapters, prefix, backbone, target).compile().cost_analysis()["flops"]
    shape = decoder.config
    formula = (flops.block_training(shape, backbone, adapters, batch, length + 2)
               + flops.head(shape, batch, length, flops.CROSS_ENTROPY))
    assert 0.85 < formula / counted < 1.05  # the compiler counts element-wise work too


@pytest.mark.slow
def test_every_stage_fits_and_the_largest_is_named_where_it_does_not(plan):
    found = list(measured.rows(plan, CPU))
    assert [row.stage.name for row in found] == [
        "fuse public", "device CCL", "device AMT", "aggregation", "SE-CCL", "device evaluation",
        "server evaluation"]
    for row in found:
        assert row.figures.peak > 0 and row.stage.flops > 0 and row.floor > 0
        assert row.figures.sent == 0  # one chip sends nothing
    needed = max(row.needed for row in found)
    first = next(row.stage.name for row in found if row.needed == needed)
    with pytest.raises(measured.DoesNotFit, match=f"{first} does not fit cpu: it needs"):
        list(measured.rows(plan, CPU, needed - 1))


def test_what_does_not_fit_is_named_with_the_smallest_mesh_that_would(plan):
    """Averaging 4 devices' LoRA: a chip of two holds half of the uploads, and little else."""
    config = small.config(**{
        "partition.num_clients": 4, "clients.backend": "shard_map", "topology.cloud_devices": 0,
        "lora.rank": 128, "data.rgb_size": 8})
    plan = shapes.plan(config, 240)
    one = measured.builder(plan, CPU).round()
    stage = next(stage for stage in one.stages if stage.name == "aggregation")
    row = measured.row(stage, one, CPU)
    memory = row.needed - 1
    found = measured._smallest(plan, "aggregation", CPU, memory)
    assert str(found) == "cpu:2"
    assert measured._smallest(plan, "aggregation", CPU, 1.0) is None
    said = str(measured.DoesNotFit(row, CPU, memory, found))
    assert "aggregation does not fit cpu: it needs 0.0 GiB" in said and said.endswith("is cpu:2")


def test_a_program_is_compiled_once(plan):
    planned = Builder(plan, jax.devices()[:1]).round()
    first = measured.row(planned.stages[0], planned, CPU)
    assert list((cache_dir() / "plan").iterdir())
    again = measured.row(planned.stages[0], planned, CPU)
    assert again.figures == first.figures  # read back, seconds of the compile included
    assert first.figures.peak > first.figures.arguments > 0


def test_the_command_says_what_is_wrong_in_one_line():
    for arguments, message in (
            (["--config=ur_fall:smoke"], "no target given"),
            (["--config=ur_fall:smoke", "--target=v5e:3x3"], "v5e comes as 2x2"),
            (["--config=ur_fall:smoke", "--target=cpu", "--memory=no"], "--memory=no: give"),
            (["--write-docs", "--rows=3"], "--write-docs goes with")):
        done = subprocess.run([sys.executable, "-m", "mlecs_jax.plan", *arguments],
                              capture_output=True, text=True, check=False, env=os.environ)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
