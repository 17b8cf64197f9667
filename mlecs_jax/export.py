"""One file that answers: a node's program, its weights and the few modules that read inputs.

The file is a zip archive that Python runs as it is (``python FILE --input=…``) and that
:func:`mlecs_jax.serving.predictor.load` opens. It needs JAX and NumPy, on CPU, CUDA or TPU; image
files need Pillow besides. The program is ``jax.export`` with a symbolic number of rows; which
modalities are there is an input of it.
"""

from __future__ import annotations

import inspect
import json
import os
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from mlecs_jax import errors, serving
from mlecs_jax.data import hashed_ngrams
from mlecs_jax.data.text import ByteTokenizer, Tokenizer
from mlecs_jax.errors import UserError
from mlecs_jax.served import Served
from mlecs_jax.serving import command, description, predictor, readings
from mlecs_jax.serving.predictor import DESCRIPTION, FORMAT, PROGRAM, TOKENS, WEIGHTS

PLATFORMS = ("cpu", "cuda", "tpu")
CARRIED = (errors, serving, description, predictor, readings, command, hashed_ngrams)
PACKAGES = ("mlecs_jax", "mlecs_jax.data")
MAIN = """import sys

from mlecs_jax.serving.command import main

sys.exit(main(sys.argv[0], sys.argv[1:]))
"""
PROBES = 64  # sequences of tokens on which a table must decode as the tokenizer does


def write(node: Served, path: Path) -> int:
    """Writes the predictor of a node, replacing what is there; returns its bytes.

    Raises:
      UserError: the file cannot be written, or the captions' tokenizer is not byte level.
    """
    leaves, structure = jax.tree.flatten(node.weights)
    (batch,) = jax.export.symbolic_shape("b")

    def program(leaves: list[Any], inputs: list[Any], mask: Any) -> Any:
        return node.respond(jax.tree.unflatten(structure, leaves), inputs, mask)

    leaves = [np.asarray(leaf) for leaf in leaves]
    modalities = node.description.modalities.values()
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        [jax.ShapeDtypeStruct((batch, *m.shape), np.float32) for m in modalities],
        jax.ShapeDtypeStruct((batch, len(modalities)), bool))
    found: dict[str, Any] = {"format": FORMAT, "description": node.description.as_json(),
                             "weights": [leaf.dtype.name for leaf in leaves]}
    tokens = [] if node.tokenizer is None else token_bytes(node.tokenizer)
    if node.tokenizer is not None:
        found |= {"tokens": [len(token) for token in tokens], "end": node.tokenizer.eos_token_id}
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr("__main__.py", MAIN)
            _carry(archive)
            archive.writestr(DESCRIPTION, json.dumps(found))
            archive.writestr(PROGRAM, bytes(exported.serialize()))
            archive.writestr(TOKENS, b"".join(tokens))
            for i, leaf in enumerate(leaves):
                with archive.open(WEIGHTS.format(i), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, _plain(leaf), allow_pickle=False)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path.stat().st_size


def _carry(archive: zipfile.ZipFile) -> None:
    """The modules that load and read, under the names they have here."""
    sources = {f"{name.replace('.', '/')}/__init__.py": "" for name in PACKAGES}
    for module in CARRIED:
        sources[_path(module)] = inspect.getsource(module)
    for name, source in sources.items():
        archive.writestr(name, source)


def _path(module: types.ModuleType) -> str:
    inside = "/__init__.py" if hasattr(module, "__path__") else ".py"
    return module.__name__.replace(".", "/") + inside


def _plain(leaf: np.ndarray) -> np.ndarray:
    """Types that NumPy has no name for, such as bfloat16, as whole numbers of their size."""
    return leaf if leaf.dtype.kind in "biuf" else leaf.view(f"u{leaf.dtype.itemsize}")


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every token; special tokens have none.

    Raises:
      UserError: text is not the sequence of its tokens' bytes.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return [bytes([i]) if i < 256 else b"" for i in range(len(tokenizer))]
    wrapped: Any = getattr(tokenizer, "wrapped", tokenizer)
    special, known = set(wrapped.all_special_ids), _byte_of_letter()
    table = []
    for i, token in enumerate(wrapped.convert_ids_to_tokens(list(range(len(tokenizer))))):
        letters = "" if i in special or token is None else token
        table.append(bytes(known[c] for c in letters) if all(c in known for c in letters)
                     else letters.encode())
    _check(tokenizer, table)
    return table


def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes each byte as one letter: printable ones as they are, the others, in
    order, from code 256 on (Radford et al., 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)}


def _check(tokenizer: Tokenizer, table: list[bytes]) -> None:
    decode: Callable[..., str] = tokenizer.decode
    rng = np.random.default_rng(0)
    usual = [i for i, token in enumerate(table) if token]
    for ids in rng.choice(usual, (PROBES, 12)).tolist():
        if decode(ids) != b"".join(table[i] for i in ids).decode(errors="replace"):
            raise UserError("the backbone's tokenizer is not byte-level BPE, so its captions "
                            "cannot be exported; use python -m mlecs_jax.predict --run=… instead")
