"""Tables and figures of the papers, one command each: ``python -m mlecs_jax.repro``.

An artefact plans jobs (:mod:`job`), the engine runs those that are not cached over worker
processes (:mod:`engine`, :mod:`worker`), and their numbers become one tidy table
(:mod:`results`), from which everything that is shown is made (:mod:`tables`, :mod:`render`,
:mod:`mlecs_jax.report.sweep_report`).
"""
