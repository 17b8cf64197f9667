"""Backbones by name: seeded shapes, Hugging Face directories, and small pretrained ones.

========================== ==========================================================
``gpt2-2x64``, ``gpt-j-6b``  a shape (:mod:`mlecs_jax.models.zoo`) with seeded random weights
``hf:DIRECTORY``             weights and tokenizer of a Hugging Face directory
``pretrained:gpt2-4x128``    that shape, first trained on the run's public training text
========================== ==========================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax

from mlecs_jax import public_backbones
from mlecs_jax.config import Config
from mlecs_jax.data import partition as partitioning
from mlecs_jax.data import text, vocabulary
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError
from mlecs_jax.lora import Params
from mlecs_jax.models import zoo
from mlecs_jax.models.multimodal import MultimodalModel
from mlecs_jax.public_backbones import Documents
from mlecs_jax.sharding import Placement

HF, PRETRAINED = zoo.DIRECTORY, zoo.PRETRAINED


def hf_directories(config: Config) -> dict[str, Path]:
    """Directories of the backbones that a run reads, by the option that names them."""
    named = {"model.slm": config.model.slm, "model.llm": config.model.llm}
    if config.method.name == "co_plms":
        named["method.co_plms.proxy"] = config.method.co_plms.proxy
    return {option: Path(name.removeprefix(HF)).expanduser()
            for option, name in named.items() if name.startswith(HF)}


def resolve(config: Config, samples: Samples) -> tuple[dict[str, str], text.Tokenizer]:
    """Names of the two backbones with nothing left to train, and the tokenizer they share.

    Devices and server exchange what they say token by token, so both must number tokens alike.

    Raises:
      UserError: backbones of different tokenizers, or one that cannot be read.
    """
    names = {which: pretrained(config, samples, getattr(config.model, which), number)
             for number, which in enumerate(("slm", "llm"))}
    if (found := tokenizer_of_directories(names)) is not None:
        return names, found
    if samples.texts is not None:
        return names, _bpe(config, samples)
    return names, text.ByteTokenizer()


def tokenizer_of_directories(
    names: Mapping[str, str]
) -> vocabulary.VocabularyTokenizer | None:
    """The tokenizer that came with the backbones; None where none is a directory.

    One vocabulary may go on where the other ends (GPT-J's after GPT-2's); the smaller is taken, so
    that nobody says a token that the other has not.

    Raises:
      UserError: two directories with different tokenizers, or one that cannot be read.
    """
    directories = [name.removeprefix(HF) for name in names.values() if name.startswith(HF)]
    if not directories:
        return None
    from mlecs_jax.models import hf  # imports transformers

    tokenizers = sorted((vocabulary.VocabularyTokenizer(hf.load_tokenizer(d))
                         for d in directories), key=len)
    if not tokenizers[0].begins(tokenizers[-1]):
        raise UserError(f"{' and '.join(directories)} number their tokens differently; LLM and "
                        "SLM must share a tokenizer")
    return tokenizers[0]


def check_vocabulary(name: str, tokenizer: text.Tokenizer) -> None:
    """Raises UserError where a further backbone is a directory that does not number the tokens of
    a run's tokenizer as that does."""
    own = tokenizer_of_directories({"": name})
    if own is not None and not (
            isinstance(tokenizer, vocabulary.VocabularyTokenizer) and tokenizer.begins(own)):
        raise UserError(f"{name} numbers its tokens unlike the run's other backbones; all of them "
                        "must share a tokenizer")


def parameters(
    name: str, model: MultimodalModel, key: jax.Array, placement: Placement = None
) -> Params:
    """Frozen parameters of a resolved backbone: loaded, or drawn from the key on the host.

    Args:
      placement: where each leaf goes that is loaded, tensor by tensor; see
        :func:`mlecs_jax.models.hf.load`.
    """
    if not name.startswith(HF):
        return model.init_backbone(key)
    from mlecs_jax.models import hf

    return hf.load(name.removeprefix(HF), dtype=model.decoder.config.dtype, sharding=placement)[1]


def public_text(config: Config, samples: Samples) -> Documents:
    """What a backbone or tokenizer may read: captions and input texts of public training rows.

    Captions are left out where the server has no label; nothing private or held out is read.
    """
    assert samples.texts is not None
    split = partitioning.partition(samples, config.partition_config())
    rows = split.public.train
    return Documents(
        captions=[samples.texts[row] for row in rows[split.public_labelled]],
        context=[] if samples.context is None else [
            line for row in rows for line in samples.context[row].splitlines()],
        prompt=config.model.prompt)


def pretrained(config: Config, samples: Samples, name: str, number: int) -> str:
    """The name of a backbone with ``hf:DIRECTORY`` in place of what is trained now or was before;
    any other as it is.

    Args:
      number: 0 of the SLM, 1 of the LLM, from 2 on of methods' own; a part of the seed.

    Raises:
      UserError: there are no captions to learn from.
    """
    if not name.startswith(PRETRAINED):
        return name
    if samples.texts is None or config.captions is None:
        raise UserError("a pretrained: backbone learns from captions; with class labels name a "
                        "shape, or hf:DIRECTORY")
    made = public_backbones.directory(
        name.removeprefix(PRETRAINED), public_text(config, samples), _bpe(config, samples),
        config.captions.pretrain_steps, config.model.backbone_seed + number)
    return f"{HF}{made}"


def _bpe(config: Config, samples: Samples) -> vocabulary.VocabularyTokenizer:
    assert config.captions is not None  # checked where samples are taken
    documents = public_text(config, samples)
    return vocabulary.trained_bpe([documents.prompt, *documents.captions, *documents.context],
                                  config.captions.vocabulary)
