"""``docs/plan.md``, written by the command: figures are the compilers' or a formula's.

Compiles take hours in all and are kept on disk, so a stopped command goes on where it was; the page
is written anew after every table and says what is still missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from mlecs_jax import cli
from mlecs_jax import config as configs
from mlecs_jax.errors import UserError
from mlecs_jax.plan import measured, shapes, tables, targets
from mlecs_jax.plan.measured import Row
from mlecs_jax.plan.targets import GIB, Target

TARGETS = ("h200", "v5e:4x4", "v5p:2x2x2", "v6e:4x4")
DEVICES = (3, 64)
CONFIG = "vast:paper"
STUDY = ("--config.train.batch_size=8", "--config.captions.max_tokens=56")  # 8 x 128 positions
INTRODUCTION = """# A round on paper

`python -m mlecs_jax.plan --write-docs` wrote this page. Nothing here was executed: every stage of
an ML-ECS round is lowered from shapes alone and compiled ahead of time for the target, by the
target's own compiler, on a machine without an accelerator. Memory and traffic are the compiler's
figures per chip, operations are counted by formula, and a floor is what published peaks allow.

```
python -m mlecs_jax.plan --config=vast:paper --target=v5e:4x4 --config.partition.num_clients=64
```

Exit code 0: every stage fits; 2: the first that does not is named, with the smallest mesh that
would hold it; 3: the target's compiler is not installed.

## Set-up

One virtual environment holds both compilers; neither needs, or opens, a device.

```
python -m venv plan && plan/bin/pip install -e '.[tpu]'
# the version that jax has
plan/bin/pip install --no-deps jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION
```

## What is planned

- The paper's configuration (`{config}`): GPT-2-large on devices and server, GPT-J-6B on the server,
  both frozen in bfloat16, adapters and prompt generators trained in float32; {rows:,} samples.
  An instruction counts a token a byte, an upper bound of any tokenizer's: {positions} positions a
  sample.
- Cloud models lie over all chips as fsdp × tensor, as square as it gets (`mlecs_jax/sharding.py`);
  devices lie whole on chips, as many chips as divide their number, and their stages send nothing.
  Both tiers use the same chips in turn: *held beside* is what the other tier keeps there meanwhile.
  Peak and held beside together must fit the chip.
- *Sent* is what one chip sends in one training step (one token of generation), by ring algorithms;
  *largest gather* is the largest array that an all-gather leaves on a chip.
- The floor of a stage is the worst of its operations, its reads of frozen weights and its traffic,
  each at the published peak and all overlapped; a round is the sum of its training stages. Real
  runs are slower. Evaluation is one call of 64 held-out rows a node, captions of full length.
- H200 programs are compiled without Triton matrix products, whose tiles are chosen on a device.

## Published figures
"""


def write(path: Path, chosen: Sequence[str] | None = None) -> None:
    """Compiles what is missing and writes the page.

    Args:
      chosen: targets to compile for; None: all. Tables of the others are kept out.

    Raises:
      UserError: an unknown target, or no folder to write to.
      NoCompiler: a target's compiler is not installed.
    """
    meshes = [targets.parse(text) for text in chosen or TARGETS]
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; run this at the project's root")
    jobs: list[tuple[str, Callable[[], list[str]]]] = [
        (tables.title(mesh, n), lambda mesh=mesh, n=n: _table(mesh, n))
        for mesh in meshes for n in DEVICES]
    jobs.append(("Against a study of the same programs", _study))
    done: list[str] = []
    for i, (title, make) in enumerate(jobs):
        done += ["", f"## {title}", "", *make()]
        missing = [title for title, _ in jobs[i + 1:]]
        path.write_text("\n".join([*_head(), *done, *_missing(missing)]) + "\n")
        print(f"{path}: {title}", flush=True)


def plan_of(*overrides: str) -> shapes.Plan:
    """The documented configuration with overrides."""
    values, _ = cli.parse(["plan", f"--config={CONFIG}", *overrides], "", {})
    return shapes.plan(configs.parse(values))


def _head() -> list[str]:
    plan = plan_of()
    text = INTRODUCTION.format(config=CONFIG, rows=len(plan.federation.samples),
                               positions=plan.positions)
    return [text, *tables.chips(), "", f"Compiled with jax {jax.__version__}."]


def _missing(titles: list[str]) -> list[str]:
    return ["", "## Not compiled yet", "", *(f"- {title}" for title in titles)] if titles else []


def _table(mesh: Target, devices: int) -> list[str]:
    plan, found, refusal = plan_of(f"--config.partition.num_clients={devices}"), [], ""
    try:
        for row in measured.rows(plan, mesh):
            found.append(row)
    except measured.DoesNotFit as error:
        refusal = str(error)
    lines = tables.markdown(tables.HEADINGS, map(tables.cells, found))
    if refusal:
        return [*lines, "", f"**{refusal}.**"]
    edge = next(row.stage.what for row in found if row.stage.tier == "edge")
    return [*lines, "", f"A round of training takes at least {tables.round_floor(found)} ({edge})."]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A figure to meet: a stage on a target with some devices, and what is read of it."""

    text: str
    target: str
    stage: str
    devices: int
    read: Callable[[Row], float]
    limit: float
    unit: str = "GiB"


def _peak(row: Row) -> float:
    return row.figures.peak / GIB


CLAIMS = (
    Claim("GPT-J-6B's step, peak", "h200", "LLM alone", 3, _peak, 12.5),
    Claim("SE-CCL, GPT-2-large beside GPT-J-6B, peak", "h200", "SE-CCL", 3, _peak, 12.5),
    Claim("SE-CCL, temp a chip", "v5e:4x4", "SE-CCL", 3, lambda r: r.figures.temp / GIB, 0.3),
    Claim("SE-CCL, largest gather", "v5e:4x4", "SE-CCL", 3,
          lambda r: r.figures.gather / 2**20, 128, "MiB"),
    Claim("64 devices with GPT-2-large, peak", "h200", "device CCL", 64, _peak, 10.0),
)


def _study() -> list[str]:
    """Claims beside what is compiled now, at batches of 8 x 128 positions."""
    rows = []
    for claim in CLAIMS:
        plan = plan_of(*STUDY, f"--config.partition.num_clients={claim.devices}")
        mesh = targets.parse(claim.target)
        building = measured.builder(plan, mesh)
        planned = building.round()
        stage = next(stage for stage in (*planned.stages, building.lone())
                     if stage.name == claim.stage)
        value = claim.read(measured.row(stage, planned, mesh))
        rows.append((f"{claim.text}, {claim.target}", f"{claim.limit:g} {claim.unit}",
                     f"{value:.3g} {claim.unit}", "yes" if value <= claim.limit else "no"))
    return [f"Batches of {plan_of(*STUDY).config.train.batch_size} × "
            f"{plan_of(*STUDY).positions} positions.", "",
            *tables.markdown(("figure", "to meet", "here", "met"), rows)]
