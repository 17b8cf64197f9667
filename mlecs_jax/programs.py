"""Compiled programs that the runs of one process share.

A sweep runs the same programs on other data, seeds and learning rates. Tracing and lowering them
anew costs more than ten per cent of a small run, so they are kept by what they were made of: the
function and its static arguments. Everything that differs from run to run is an argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.sharding import Mesh

from mlecs_jax.clients import Backend, for_each_client

KEPT = 128  # programs; each holds its compiled forms for every shape it has seen


@functools.lru_cache(KEPT)
def compiled(
    fn: Callable[..., Any], *static: Hashable, donate_argnums: int | tuple[int, ...] = ()
) -> Callable[..., Any]:
    """``fn`` with its first arguments fixed, compiled; the same object for equal arguments.

    Args:
      fn: pure, and no closure over a run's data.
      static: models, or :attr:`mlecs_jax.setting.Setting.outline`.
      donate_argnums: of the remaining arguments.
    """
    return jax.jit(functools.partial(fn, *static), donate_argnums=donate_argnums)


@functools.lru_cache(KEPT)
def compiled_for_clients(
    fn: Callable[..., Any], *static: Hashable, backend: Backend, chunk: int, mesh: Mesh
) -> Callable[..., Any]:
    """:func:`mlecs_jax.clients.for_each_client` of ``fn`` with its first arguments fixed."""
    return for_each_client(functools.partial(fn, *static), backend=backend, chunk=chunk, mesh=mesh)
