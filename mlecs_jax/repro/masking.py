"""What each modality is worth to trained nodes: the same nodes caption the same test clips with and
without it, so that nothing but the missing modality differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlecs_jax import assemble, captions, methods, scoring
from mlecs_jax.config import Config
from mlecs_jax.data.omni_caption import parse_corpora
from mlecs_jax.data.samples import Samples
from mlecs_jax.errors import UserError
from mlecs_jax.metrics import rouge
from mlecs_jax.repro.absence import final_state, without_named
from mlecs_jax.setting import Setting

Node = int | None  # a device's number; None is the server


def costs(config: Config, samples: Samples, folder: Path) -> dict[str, Any]:
    """Mean change of a clip's ROUGE-LSum where a modality is taken away at inference, over the test
    clips that have it on that node.

    Returns:
      ``{modality: {'device_0' | … | 'server': {'change': …, 'rows': …, 'corpus': {name: …}}}}``;
      nodes without the modality are left out.

    Raises:
      UserError: a run without captions, or a folder without a checkpoint of the last round.
    """
    if samples.texts is None:
        raise UserError(f"{samples.name} has no captions to mask modalities for")
    setting = assemble.from_samples(config, samples)
    state = final_state(setting, folder)
    whole, has = row_scores(setting, state), available(setting)
    found: dict[str, Any] = {}
    for column, name in enumerate(setting.federation.modalities):
        less = row_scores(without_named(setting, [name]), state)
        found[name] = {
            _label(node): _change(less[node] - scores, has[node][:, column],
                                  _corpora(config, samples, _test_rows(setting, node)))
            for node, scores in whole.items() if has[node][:, column].any()}
    return found


def row_scores(setting: Setting, state: Any) -> dict[Node, np.ndarray]:
    """ROUGE-LSum of every test clip of every node, float64 ``[n]``, as after the last round."""
    federation, texts = setting.federation, setting.federation.samples.texts
    assert texts is not None
    predictions = jax.device_get(
        methods.build(setting).evaluate(state, setting.config.train.rounds - 1))
    answers: dict[Node, Any] = dict(enumerate(predictions[scoring.PRIMARY]))
    if "server" in predictions:
        answers[None] = predictions["server"]
    found = {}
    for node, tokens in answers.items():
        num_val = federation.public_num_val if node is None else int(federation.num_val[node])
        rows, own = captions.captioned(setting, node, np.asarray(tokens), num_val, "test")
        found[node] = rouge.rouge([texts[row] for row in rows],
                                  captions.texts_of(setting, own))[rouge.PRIMARY]
    return found


def available(setting: Setting) -> dict[Node, np.ndarray]:
    """What every node has of its test clips, bool ``[n, M]``."""
    federation = setting.federation
    owned = federation.owned_at(setting.config.train.rounds - 1)
    has: dict[Node, np.ndarray] = {None: np.asarray(
        setting.cloud["public_held_out"].available)[federation.public_num_val:]}
    for cohort in setting.cohorts:
        for client, own in zip(cohort.clients, np.asarray(cohort.held_out_available), strict=True):
            start = int(federation.num_val[client])
            own = own[start:start + len(_test_rows(setting, int(client)))]
            has[int(client)] = own & owned[client]
    return has


def _test_rows(setting: Setting, node: Node) -> np.ndarray:
    return setting.federation.held_out_rows(node, "test")


def _label(node: Node) -> str:
    return "server" if node is None else f"device_{node}"


def _change(change: np.ndarray, has: np.ndarray, corpora: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"change": float(change[has].mean()), "rows": int(has.sum())}
    by_corpus = {str(name): float(change[has & (corpora == name)].mean())
                 for name in np.unique(corpora[has])}
    return found | ({"corpus": by_corpus} if len(by_corpus) > 1 else {})


def _corpora(config: Config, samples: Samples, rows: np.ndarray) -> np.ndarray:
    """Name of the corpus of every row; all alike where the strata are no corpora."""
    names = list(parse_corpora(config.captions.corpora)) if config.captions else []
    if samples.name != "omni_caption" or samples.strata.max() + 1 != len(names):
        return np.full(len(rows), samples.name)
    return np.array(names)[samples.strata[rows]]
