"""What a single modality can give: an offline classifier per device and modality.

A collaboration can only be judged beside what each sensor holds. The classifier is the modality's
own encoder with a linear head, trained on one device's share as long as there is no collaboration.
"""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlecs_jax.answers import map_rows
from mlecs_jax.federation import Rows, exists, gather
from mlecs_jax.metrics.classification import scores
from mlecs_jax.models.encoders import Extractor
from mlecs_jax.setting import Cohort, Setting, held_out_rows
from mlecs_jax.train import batch_rows, fit, optimiser, shuffle

BATCH, RATE = 16, 1e-3


class Classifier(nn.Module):
    """One modality's encoder and a linear head."""

    extractor: Extractor
    num_classes: int

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(self.num_classes)(nn.relu(self.extractor(inputs)[:, 0]))


def single_modality_ceilings(setting: Setting) -> dict[str, float]:
    """Mean test macro-F1 over devices of each modality alone, as if every device owned it."""
    return {name: float(np.nanmean([f1 for cohort in setting.cohorts
                                    for f1 in _ceilings(setting, cohort, i)]))
            for i, name in enumerate(setting.federation.modalities)}


def _ceilings(setting: Setting, cohort: Cohort, modality: int) -> list[float]:
    """Test macro-F1 of each device of a cohort."""
    federation = setting.federation
    name, classes = federation.modalities[modality], len(federation.samples.class_names)
    extractor = cohort.model.extractor.clone(modalities=(name,))
    model = Classifier(extractor, classes)
    answers = jnp.asarray(setting.answer_ids)

    def device(shared, state, data):
        del state
        rows: Rows = data["train"]
        init_key, order, steps = jax.random.split(data["key"], 3)
        example = {name: setting.example_inputs()[name]}
        params = model.init(init_key, example)["params"]
        every = jnp.ones(rows.available.shape[-1], bool)

        def batch_of(rows, index):
            return gather(rows, every, shared["moments"], index)

        def logits_of(params, batch):
            # flax's type allows for mutated variables beside the output; there are none.
            return cast(jax.Array, model.apply({"params": params}, {name: batch.inputs[name]}))

        def loss(params, batch, key):
            del key
            logits = logits_of(params, batch)
            label = jnp.argmax(batch.target[:, :1] == answers, axis=1)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), {}

        shuffled = shuffle(order, exists(rows))
        params, _ = fit(
            loss, params, lambda i: batch_of(rows, batch_rows(shuffled, i, BATCH)),
            setting.config.eval.ceiling_steps, RATE, steps, transform=optimiser())
        held_out = held_out_rows(shared, data)
        predicted = map_rows(
            lambda i: jnp.argmax(logits_of(params, batch_of(held_out, i)), axis=-1),
            held_out.target.shape[0])
        return (), predicted

    keys = setting.client_keys(jax.random.key(modality), cohort)
    data = {"train": cohort.train, "key": keys} | setting.held_out(cohort)
    _, predicted = setting.for_each_client(device)(setting.edge, (), data)
    labels = federation.samples.labels
    assert labels is not None
    own = []
    for client, answer in zip(cohort.clients, setting.topology.host(predicted), strict=True):
        rows = federation.held_out_rows(int(client), "test")
        start = int(federation.num_val[client])
        own.append(scores(labels[rows], answer[start:start + len(rows)], classes).f1)
    return own

