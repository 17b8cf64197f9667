"""Which artefacts there are: the table that ``python -m mlecs_jax.repro SYSTEM ARTEFACT`` reads.

A system is ``{artefact: Artefact}``. An artefact plans jobs and turns their results into findings;
jobs name their runner, so that another system brings its own (:mod:`mlecs_jax.repro.worker`) and
shares caching, workers, display, tables and report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mlecs_jax.mega import artefacts as mega
from mlecs_jax.repro.artefacts import ablation, comm, modality, regime, table1, table2
from mlecs_jax.repro.job import Job
from mlecs_jax.repro.options import Options
from mlecs_jax.repro.results import Results
from mlecs_jax.repro.tables import Findings


@dataclasses.dataclass(frozen=True)
class Artefact:
    """One table or figure.

    Attributes:
      title: for people.
      jobs: everything it needs run, in order of importance.
      findings: what the finished ones show; must cope with runs that are missing.
      of_figures: that is shown by their figures alone, so that rows of a CSV file will do for
        runs (:mod:`mlecs_jax.repro.earlier`).
    """

    title: str
    jobs: Callable[[Options], list[Job]]
    findings: Callable[[Options, Results], Findings]
    of_figures: bool = False


SYSTEMS: Mapping[str, Mapping[str, Artefact]] = {
    "mlecs": {
        name: Artefact(module.TITLE, module.jobs, module.findings, of_figures=True)
        for name, module in {"table1": table1, "table2": table2, "comm": comm,
                             "ablation": ablation, "modality": modality,
                             "regime": regime}.items()
    },
    "mega": {name: Artefact(*parts) for name, parts in mega.TABLE.items()},
}
