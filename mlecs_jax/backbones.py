"""Backbones by name: seeded shapes, Hugging Face directories, and small pretrained ones.

========================== ==========================================================
``gpt2-2x64``, ``gpt-j-6b``  a shape (:mod:`mlecs_jax.models.zoo`) with seeded random weights
``hf:DIRECTORY``             weights and tokenizer of a Hugging Face directory
``pretrained:gpt2-4x128``    that shape, first trained on the run's public training text
========================== ==========================================================
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mlecs_jax.config import Config
from mlecs_jax.data import partition as partitioning
from mlecs_jax.data import text, vocabulary
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError
from mlecs_jax.lora import Params
from mlecs_jax.models.multimodal import MultimodalModel

HF, PRETRAINED = "hf:", "pretrained:"


def resolve(config: Config, samples: Samples) -> tuple[dict[str, str], text.Tokenizer]:
    """Names of the two backbones with nothing left to train, and the tokenizer they share.

    Devices and server exchange what they say token by token, so both must number tokens alike.

    Raises:
      UserError: backbones of different tokenizers, or one that cannot be read.
    """
    names = {which: getattr(config.model, which) for which in ("slm", "llm")}
    if any(name.startswith(PRETRAINED) for name in names.values()):
        names = _pretrained(config, samples, names)
    directories = [name.removeprefix(HF) for name in names.values() if name.startswith(HF)]
    if directories:
        from mlecs_jax.models import hf  # imports transformers

        tokenizers = [vocabulary.VocabularyTokenizer(hf.load_tokenizer(d)) for d in directories]
        if not tokenizers[0].same_as(tokenizers[-1]):
            raise UserError(f"{' and '.join(directories)} number their tokens differently; LLM and "
                            "SLM must share a tokenizer")
        return names, tokenizers[0]
    if samples.texts is not None:
        assert config.captions is not None  # checked where samples are taken
        return names, vocabulary.trained_bpe(public_text(config, samples),
                                             config.captions.vocabulary)
    return names, text.ByteTokenizer()


def parameters(name: str, model: MultimodalModel, key: jax.Array) -> Params:
    """Frozen parameters of a resolved backbone: loaded, or drawn from the key on the host."""
    if not name.startswith(HF):
        return model.init_backbone(key)
    from mlecs_jax.models import hf

    return hf.load(name.removeprefix(HF))[1]


def public_text(config: Config, samples: Samples) -> list[str]:
    """What a backbone or tokenizer may read: captions and input texts of public training rows.

    Captions are left out where the server has no label; nothing private or held out is read.
    """
    assert samples.texts is not None
    split = partitioning.partition(samples, config.partition_config())
    rows = split.public.train
    captions = [samples.texts[row] for row in rows[np.asarray(split.public_labelled)]]
    context = [] if samples.context is None else [
        line for row in rows for line in samples.context[row].splitlines()]
    return captions + context


def _pretrained(config: Config, samples: Samples, names: dict[str, Any]) -> dict[str, str]:
    raise NotImplementedError
