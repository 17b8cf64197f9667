"""A sweep whose runs train nothing."""

import pytest

from mlecs_jax.repro import command
from mlecs_jax.repro.job import Job
from mlecs_jax.repro.systems import Artefact
from mlecs_jax.repro.tables import Findings


def run_sweep(monkeypatch, workdir, *arguments, ends=("well", "well"), scores=(0.5, 0.5),
              extras=(), of_figures=True):
    """The command over two runs that end as they are told; its exit code."""
    def jobs(options):
        return [Job({"method": name, "dataset": "ur_fall", "split": "frame", "seed": 0},
                    {"method": {"name": name}, "ends": end, "score": score},
                    runner="tests.repro.fake_runner", extras=extras)
                for name, end, score in zip(("ml_ecs", "localpub"), ends, scores, strict=True)]

    def findings(options, results):
        return Findings((), tuple(
            f"{run.labels['method']} is there: {run.values['final', 'client.avg_f1']:g}."
            for run in results.runs))

    found = Artefact("Two runs", jobs, findings, of_figures)
    monkeypatch.setattr(command, "SYSTEMS", {"mlecs": {"table1": found}})
    return command.main(["mlecs", "table1", f"--workdir={workdir}", "--processes=1",
                         f"--write-docs={workdir / 'results.md'}", *arguments])


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """``call(*arguments, …)``: see :func:`run_sweep`."""
    def call(*arguments, workdir=tmp_path, **how):
        return run_sweep(monkeypatch, workdir, *arguments, **how)

    return call
