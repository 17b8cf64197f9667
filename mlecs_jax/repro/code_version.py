"""The version of the code that computes a method's numbers.

A hash of the sources that a run of the method executes: the method's file and every module of this
package, and of a user's method also of its own package or folder, that it or the experiment loop
reaches by import. Comments, docstrings, other methods,
reports and dataset builders (whose result is hashed itself) do not enter, so that a change that
cannot move a number does not turn cached runs stale.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
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
    for path in sorted(set.union(*map(_reached, entries))):
        digest.update(_meaning(path).encode())
    return digest.hexdigest()[:8]


def _reached(entry: str) -> set[Path]:
    """Source files that a run of the method executes."""
    own = _method_file(entry)
    users = {own} if own and is_own(entry) else set()
    waiting = [own, *(path for root in _ROOTS if (path := _source(root)))]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path is None or path in seen:
            continue
        seen.add(path)
        waiting += [found for name in _imports(path) if _counts(name, path in users)
                    and (found := _source(name)) is not None]
        if own and path in users:
            theirs = _of_user(path, own, entry)
            users |= theirs
            waiting += theirs
    return seen


def _of_user(path: Path, own: Path, entry: str) -> set[Path]:
    """What a file of a user imports of their own: of the package that the method's module is in, or
    of its file's folder."""
    module = entry.partition(":")[0]
    package = "" if module.endswith(".py") else module.partition(".")[0]
    depth = module.count(".") + (own.name == "__init__.py") if package else 0
    found = set()
    for name in _imports(path):
        relative = len(name) - len(name.lstrip("."))
        if not relative and name.partition(".")[0] not in ({package} if package else {
                top.stem for top in own.parent.iterdir()} - {PACKAGE}):
            continue
        base = path.parents[relative - 1] if relative else own.parents[depth]
        place = base / name.lstrip(".").replace(".", "/")
        found |= {file for file in (place.with_suffix(".py"), place / "__init__.py")
                  if file.is_file()}
    return found


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
def _imports(path: Path) -> tuple[str, ...]:
    """Names of modules, and of what may be modules, that a file imports anywhere in it; relative
    ones begin with their dots."""
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
def _meaning(path: Path) -> str:
    """A file's statements without comments, docstrings and layout."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(
                    first.value.value, str):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
