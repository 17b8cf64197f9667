"""What all nodes of a captioning deployment read and write with: one tokenizer, one SLM.

Nodes learn to say the same tokens, and the LoRA that the cloud averages belong to one backbone.
Both are made of text, and a device has none but its own. So provisioning makes them once, of public
text, and hands them out beside the share::

    DATA/language/tokenizer/   everyone's
    DATA/language/slm/         everyone's, where it was pretrained
    DATA/language/llm/         the cloud's alone, where it was pretrained

A backbone that is drawn from a seed needs no file. One of a Hugging Face directory (``hf:``) is too
large to hand out: every machine has its own copy, where the configuration says or as
``DATA/language/slm``. The session has a digest of tokenizer and SLM, so that nobody takes part with
another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from mlecs_jax import backbones
from mlecs_jax.backbones import HF, PRETRAINED
from mlecs_jax.config import Config
from mlecs_jax.data.text import Tokenizer
from mlecs_jax.data.vocabulary import VocabularyTokenizer
from mlecs_jax.errors import UserError
from mlecs_jax.models import hf, hf_files

FOLDER, TOKENIZER = "language", "tokenizer"


@dataclasses.dataclass(frozen=True)
class Language:
    """A node's tokenizer and backbones.

    Attributes:
      slm, llm: names with nothing left to train, as of :func:`mlecs_jax.backbones.resolve`; ``llm``
        is None on a device that cannot know the cloud's.
    """

    tokenizer: Tokenizer
    slm: str
    llm: str | None


def digests(tokenizer: VocabularyTokenizer, slm: str) -> dict[str, str]:
    """What a session says of its language: SHA-256 of the tokenizer and, where the SLM is a
    directory, of its weights.

    Raises:
      UserError: the directory holds no checkpoint.
    """
    known = sorted(tokenizer.wrapped.get_vocab().items())
    # Two may know the same tokens and still cut words differently.
    cut = tokenizer.encode(" ".join(token for token, _ in known))
    table = json.dumps([known, tokenizer.eos_token_id, cut])
    found = {TOKENIZER: hashlib.sha256(table.encode()).hexdigest()}
    if slm.startswith(HF):
        directory, digest = Path(slm.removeprefix(HF)), hashlib.sha256()
        for name in (hf_files.CONFIG, *sorted(set(hf_files.tensor_files(directory).values()))):
            with open(directory / name, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        found["slm"] = digest.hexdigest()
    return found


def of_directories(config: Config) -> dict[str, str]:
    """The digests where no text is dealt, so that tokenizer and backbones must exist already.

    Raises:
      UserError: they are to be made of text.
    """
    names = {which: getattr(config.model, which) for which in ("slm", "llm")}
    if not all(name.startswith(HF) for name in names.values()):
        raise UserError("a tokenizer for captions is learnt from public text: deal it by "
                        "--split-dataset, or name backbones that bring one, hf:DIRECTORY")
    tokenizer = backbones.tokenizer_of_directories(names)
    assert tokenizer is not None  # both are directories
    return digests(tokenizer, names["slm"])


def save(
    config: Config, names: Mapping[str, str], tokenizer: VocabularyTokenizer, data: Path, *,
    cloud: bool
) -> None:
    """Writes a node's ``language`` beside its share.

    Args:
      names: of :func:`mlecs_jax.backbones.resolve`.
      data: the folder of the share.
      cloud: whether the node is.
    """
    folder = data / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.wrapped.save_pretrained(str(folder / TOKENIZER))
    for which in ("slm", "llm") if cloud else ("slm",):
        if getattr(config.model, which).startswith(PRETRAINED):
            shutil.copytree(names[which].removeprefix(HF), folder / which, dirs_exist_ok=True)


def load(config: Config, data: Path, expected: Mapping[str, str], *, cloud: bool) -> Language:
    """The language of a node.

    Args:
      data: the folder of its share.
      expected: digests of the session.
      cloud: whether the node is; a device has no LLM that is a directory.

    Raises:
      UserError: files are missing, damaged, or of another deployment.
    """
    folder = data / FOLDER
    slm = _backbone(config.model.slm, folder / "slm")
    own = folder / TOKENIZER
    if own.is_dir():
        tokenizer = VocabularyTokenizer(hf.read_tokenizer(own))
    elif slm.startswith(HF):
        tokenizer = VocabularyTokenizer(hf.load_tokenizer(slm.removeprefix(HF)))
    else:
        raise UserError(f"there is no {own}; copy {FOLDER}/ from what provision wrote for this "
                        "machine")
    found = digests(tokenizer, slm)
    for which, digest in found.items():
        if expected.get(which) != digest:
            raise UserError(f"the {which} of {data} is not the one that this deployment agreed "
                            f"on; copy {FOLDER}/ from what provision wrote for this machine, or "
                            "give the checkpoint that it was provisioned with")
    llm = config.model.llm
    is_directory = llm.startswith((HF, PRETRAINED))
    return Language(tokenizer, slm, _backbone(llm, folder / "llm") if cloud else
                    None if is_directory else llm)


def _backbone(name: str, own: Path) -> str:
    """A backbone's resolved name on this machine; ``own`` is where its files were handed out."""
    if not name.startswith((HF, PRETRAINED)):
        return name
    if own.is_dir():
        return f"{HF}{own}"
    if name.startswith(PRETRAINED):
        raise UserError(f"there is no {own}; copy {FOLDER}/ from what provision wrote for this "
                        "machine")
    return name
