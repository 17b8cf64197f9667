"""The version of the code that computes a method's numbers.

A hash of the sources that a run of the method executes: the method's file and every module of this
package, and of a user's method also of their own, that it or the experiment loop reaches by import.
Comments, docstrings, other methods, reports and dataset builders (whose result is hashed itself) do
not enter, so that a change that cannot move a number does not turn cached runs stale.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlecs_jax.repro.methods import is_own

PACKAGE = "mlecs_jax"
_ROOTS = (f"{PACKAGE}.experiment", f"{PACKAGE}.predict")
# What cannot change a number: how runs are shown, stored and planned; what the data's own hash
# covers; the table of methods, of which a run uses one; and how nodes of the other system answer.
_OUTSIDE = tuple(f"{PACKAGE}.{name}" for name in (
    "report", "repro", "progress", "cli", "run", "runlog", "checkpoint", "data.sources",
    "errors", "methods", "configs", "deploy", "mega.served"))


def code_version(*entries: str) -> str:
    """Eight hex digits for a method: a name under ``methods/``, a dotted module
    (``package.module:function``) or the path of a Python file; or for what it and a loop of its
    own compute together."""
    digest = hashlib.sha256(importlib.metadata.version("jax").encode())
    found = set.union(*map(_reached, entries))
    for path, users in sorted(found):
        digest.update(_meaning(path, _stamp(path, users)).encode())
    return digest.hexdigest()[:8]


def _reached(entry: str) -> set[tuple[Path, bool]]:
    """Source files that a run of the method executes, and whether they are the user's."""
    own = _method_file(entry)
    waiting = [(path, False) for root in _ROOTS if (path := _source(root))]
    if own:
        waiting.append((own, is_own(entry)))
    seen: set[tuple[Path, bool]] = set()
    while waiting:
        path, users = waiting.pop()
        if (path, users) in seen:
            continue
        seen.add((path, users))
        names = _imports(path, _stamp(path, users))
        if users and f"{PACKAGE}.methods" in names:  # any of them may be meant
            names += tuple(f"{PACKAGE}.methods.{file.stem}" for file in _methods())
        waiting += [(found, False) for name in names
                    if _counts(name, users) and (found := _source(name))]
        if own and users:
            waiting += [(found, True) for found in _of_user(path, names, own, entry)]
    return seen


def _stamp(path: Path, users: bool) -> int:
    """When a user's file was last written: every run executes it anew. Of this package's 0: they
    are what this process began with."""
    return path.stat().st_mtime_ns if users else 0


def _of_user(path: Path, names: Sequence[str], own: Path, entry: str) -> Iterator[Path]:
    """What a file of a user imports of their own: beside the method's file or package, or wherever
    else Python looks that is no installation."""
    module = entry.partition(":")[0]
    depth = 0 if module.endswith(".py") else module.count(".") + (own.name == "__init__.py")
    installed = tuple(Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))
    roots = [own.parents[depth], *(
        root for root in map(Path, dict.fromkeys(folder or "." for folder in sys.path))
        if root.is_dir() and "site-packages" not in root.parts
        and not any(root.resolve().is_relative_to(prefix) for prefix in installed))]
    for name in names:
        dots = len(name) - len(name.lstrip("."))
        if not dots and name.partition(".")[0] == PACKAGE:
            continue
        for root in [path.parents[dots - 1]] if dots else roots:
            place = root / name.lstrip(".").replace(".", "/")
            for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                if file.is_file():
                    yield file.resolve()


def _methods() -> list[Path]:
    table = _source(f"{PACKAGE}.methods")
    return sorted(table.parent.glob("[a-z]*.py")) if table else []


def _method_file(entry: str) -> Path | None:
    module = entry.partition(":")[0]
    if module.endswith(".py"):
        return Path(module).resolve()
    if own := _source(f"{PACKAGE}.methods.{module}"):
        return own
    if "." in module or is_own(entry):
        return _source(module)
    return _source_naming(entry)


def _source_naming(method: str) -> Path | None:
    """The file of a method that shares it with others: where ``methods/__init__`` takes it from."""
    table = _source(f"{PACKAGE}.methods")
    if table is None:
        return None
    for node in ast.walk(ast.parse(table.read_text("utf-8"))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if (isinstance(key, ast.Constant) and key.value == method
                        and isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name)):
                    return _source(f"{PACKAGE}.methods.{value.value.id}")
    return None


def _counts(name: str, users: bool = False) -> bool:
    """Whether a module of this package can change a number; ``users``: of a file of the user's,
    which may build on other methods."""
    if name.startswith(f"{PACKAGE}.methods." if users else f"{PACKAGE}.methods.method"):
        return True
    return name.startswith(PACKAGE) and not any(
        name == out or name.startswith(f"{out}.") for out in _OUTSIDE)


@functools.cache
def _imports(path: Path, stamp: int) -> tuple[str, ...]:
    """Names of modules, and of what may be modules, that a file imports anywhere in it; relative
    ones begin with their dots."""
    del stamp  # of the cache
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            dot = "." if node.module else ""
            names += [module, *(f"{module}{dot}{alias.name}" for alias in node.names)]
    return tuple(names)


@functools.cache
def _source(module: str) -> Path | None:
    """The file of a module; None where the name is no module or has no source."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@functools.cache
def _meaning(path: Path, stamp: int) -> str:
    """A file's statements without comments, docstrings and layout."""
    del stamp  # of the cache
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(
                    first.value.value, str):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
