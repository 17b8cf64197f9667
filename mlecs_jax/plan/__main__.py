"""``python -m mlecs_jax.plan --config=vast:paper --target=v5e:4x4``: a round, before it is run."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from mlecs_jax import cli
from mlecs_jax.errors import UserError, exit_code
from mlecs_jax.plan import targets

USAGE = """usage: python -m mlecs_jax.plan --config=NAME[:VARIANT] --target=TARGET [--json=FILE]
                            [--memory=GIB] [--rows=N] [--config.KEY=VALUE …]
       python -m mlecs_jax.plan --write-docs [--target=TARGET,…]

Compiles every stage of an ML-ECS round for hardware that is not here and prints what it needs.

  TARGET    h200, h200:8, v5e:4x4, v5p:2x2x2, v6e:4x4, … (CHIP:MESH)
  --memory  GiB of a chip, in place of the published figure
  --rows    samples of the dataset (default: as many as in the papers)
  --json    where to write the rows
  --write-docs  makes docs/plan.md anew, every target with 3 and 64 devices

Exit codes: 0; 2 a stage does not fit, or bad input; 3 the target's compiler is not installed
(docs/plan.md says how)."""
NO_COMPILER = 3


def main(argv: list[str]) -> int:
    """Plans a round, or the documentation's rounds; returns the exit code."""
    targets.prepare()  # before anything imports jax
    if "--write-docs" in argv:
        from mlecs_jax.plan import docs_page

        rest = [a for a in argv[1:] if a != "--write-docs"]
        chosen = [a.removeprefix("--target=") for a in rest if a.startswith("--target=")]
        if len(chosen) != len(rest):
            raise UserError("--write-docs goes with --target=TARGET,… alone")
        docs_page.write(Path("docs/plan.md"), chosen[0].split(",") if chosen else None)
        return 0
    values, options = cli.parse(argv, USAGE, {"target": "", "json": "", "memory": "", "rows": ""},
                                (cli.ML_ECS,))
    if not options["target"]:
        raise UserError("no target given; use --target=h200, v5e:4x4, v5p:2x2x2, v6e:4x4, …")
    target = targets.parse(options["target"])
    memory = _number("memory", options["memory"])
    rows = _number("rows", options["rows"])

    from mlecs_jax import config as configs
    from mlecs_jax.plan import measured, shapes, tables

    config = configs.parse(values)
    if config.method.name != "ml_ecs":
        raise UserError(f"method.name is {config.method.name}; a plan is of an ml_ecs round")
    plan = shapes.plan(config, int(rows) if rows else None)
    print(f"{tables.title(target, config.partition.num_clients)}: batches of "
          f"{config.train.batch_size} x {plan.positions} positions", flush=True)
    found: list[measured.Row] = []
    try:
        for row in measured.rows(plan, target, memory * targets.GIB if memory else None):
            found.append(row)
            print(f"  {row.stage.name}: {row.stage.what}; peak "
                  f"{row.figures.peak / targets.GIB:.2f} GiB a chip", flush=True)
    finally:
        if found:
            print("\n".join(tables.plain(map(tables.cells, found))), flush=True)
    print(f"a round of training takes at least {tables.round_floor(found)}")
    if options["json"]:
        Path(options["json"]).write_text(json.dumps([
            {"stage": row.stage.name, "what": row.stage.what, "flops": row.stage.flops,
             "floors": row.floors, "needed": row.needed} | dataclasses.asdict(row.figures)
            for row in found], indent=1) + "\n")
    return 0


def _number(name: str, text: str) -> float | None:
    """A positive number, or None where nothing was given."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"--{name}={text}: give a positive number")
    return value


def _entry() -> int:
    try:
        return exit_code(lambda: main(sys.argv))
    except targets.NoCompiler as error:
        print(f"error: no compiler for this target here ({error}); docs/plan.md says how to "
              "install it", file=sys.stderr)
        return NO_COMPILER


if __name__ == "__main__":
    sys.exit(_entry())
