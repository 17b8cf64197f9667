"""The stages of a round: what a device or the server does between two messages.

Each is a pure function of ``(setting, …, shared, params, data)`` to be compiled once; learning
rates and loss weights are traced, so that schedules and ablations reuse the program.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mlecs_jax import losses, sharding
from mlecs_jax.answers import map_rows
from mlecs_jax.federation import Rows, exists, gather, has_label
from mlecs_jax.lora import Params
from mlecs_jax.models.multimodal import Batch, MultimodalModel
from mlecs_jax.setting import Outline
from mlecs_jax.train import batch_rows, fit, optimiser, per_learner, shuffle


def device_stage(setting: Outline, model: MultimodalModel, shared, params: Params, device):
    """A training stage of one device: CCL on public rows, or AMT on its private ones (Eqs. 6–8).

    Every method's local training is this function: the terms of its loss are those that ``shared``
    has the means for, and which rows, how many steps, the weights and the rates are traced, so
    that stages of a method, and ablations that send the same, share one compiled program.

    - always: L_lb on the batch's labelled rows, weight ``lm``;
    - ``anchors [n, d]`` of public rows: ½ (L_A2O + L_O2A), the volume contrast of the device's
      modality vectors around them, weight ``volume``;
    - ``teacher``, :class:`~mlecs_jax.losses.SoftTargets` of public rows ``[n, …]``: distillation,
      weight ``distil``;
    - ``proximal``, {'centre': tree, 'weight': prefix}: ½ Σ w ‖θ − centre‖² over the groups that
      ``centre`` holds.

    Anchors and teacher speak of public rows only; on private ones give anchors weight 0, unless a
    teacher comes with them.

    Args:
      shared: backbone ``slm``, ``public`` rows, ``moments``, ``on_public`` (True, False, or the
        share of steps, evenly spread, that take public rows), ``steps``, ``rates``, ``weights`` and
        the optional terms above.
      device: ``train`` rows, ``owned [M]``, ``key``, and ``public_available [n, M]`` or None.
    """
    options = setting.config
    public, private, owned = shared["public"], device["train"], device["owned"]
    if device["public_available"] is not None:
        public = public.replace(available=device["public_available"])
    weights = shared["weights"]
    term_of = {"anchors": "volume", "teacher": "distil"}
    messages = {name: shared[name] for name in term_of if name in shared}
    public_key, private_key, steps_key = jax.random.split(device["key"], 3)
    # Unlabelled public rows teach by a message of the server that counts, or not at all.
    heard = sum(weights[term_of[name]] for name in messages) > 0
    public_order = shuffle(public_key, exists(public) & (heard | has_label(public)))
    private_order = shuffle(private_key, exists(private))

    def batch_at(step):
        public_turn, turn = turn_of(step, shared["on_public"])

        def rows_of(rows: Rows, order):
            index = batch_rows(order, turn, options.train.batch_size)
            return gather(rows, owned, shared["moments"], index), index

        def on_public():
            batch, index = rows_of(public, public_order)
            return batch, jax.tree.map(lambda x: x[index], messages)

        def on_private():
            batch, _ = rows_of(private, private_order)
            return batch, jax.tree.map(
                lambda x: jnp.zeros_like(x[:1], shape=(options.train.batch_size, *x.shape[1:])),
                messages)

        return jax.lax.cond(public_turn, on_public, on_private)

    def loss(params, batch_and_messages, key):
        batch, received = batch_and_messages
        projected, fused = model.represent(params, batch.inputs, batch.mask)
        answer = model.answer(shared["slm"], params, fused, batch.target, key)
        terms = {"lm": losses.language_modelling(answer, batch.target)}
        if "anchors" in received:
            usable = batch.mask.any(1)
            if "teacher" in received:  # one stage may have public and private batches
                usable &= (received["anchors"] != 0).any(-1)
            terms["volume"] = losses.volume_contrast(
                received["anchors"], projected, batch.mask, temperature=options.ccl.temperature,
                label_smoothing=options.ccl.label_smoothing,
                negatives_mask=negatives(batch, usable, options.ccl.negatives,
                                         received.get("teacher")))
        if "teacher" in received:
            terms["distil"] = losses.distillation(answer, received["teacher"])
        total = sum(weights[name] * term for name, term in terms.items())
        if "proximal" in shared:
            centre = shared["proximal"]["centre"]
            near = {group: params[group] for group in centre}
            total += losses.proximal(near, centre, shared["proximal"]["weight"])
        return total, terms

    return fit(loss, params, batch_at, shared["steps"], shared["rates"], steps_key,
               transform=optimiser(options.train.clip))


def turn_of(step, share):
    """Whether a step takes public rows, and how many steps before it took rows of the same source.

    Args:
      share: of all steps, evenly spread, that take public rows; True or False for all or none.
    """
    share = jnp.asarray(share, jnp.float32)
    before = jnp.floor(step * share).astype(jnp.int32)
    public = jnp.floor((step + 1) * share) > before
    return public, jnp.where(public, before, step - before)


def lone_stage(setting: Outline, model: MultimodalModel, shared, params: Params, key: jax.Array):
    """One model on one set of rows: the server by itself, or a pool of everyone's data.

    Minimises L_lb, and with a ``teacher`` also its distillation, with ``weights`` as in
    :func:`device_stage`. Without ``weights`` unlabelled rows are left out; with them batches are of
    all rows, whether there is a teacher of those without a label or not.

    Args:
      shared: ``backbone``, ``rows``, ``owned`` (bool ``[M]``, or ``[n, M]`` where rows come from
        several nodes), ``moments``, ``steps``, ``rates``, perhaps ``weights``, and with them
        perhaps a ``teacher``, :class:`~mlecs_jax.losses.SoftTargets` of the rows.
    """
    rows: Rows = shared["rows"]
    owned = jnp.broadcast_to(shared["owned"], rows.available.shape)
    order_key, steps_key = jax.random.split(key)
    weights = shared.get("weights", {"lm": 1.0})
    order = shuffle(order_key, exists(rows) if "weights" in shared else has_label(rows))

    def batch_at(step):
        index = batch_rows(order, step, setting.config.train.batch_size)
        batch = gather(rows, owned[index], shared["moments"], index)
        return batch, jax.tree.map(lambda x: x[index], shared.get("teacher"))

    def loss(params, batch_and_teacher, key):
        batch, teacher = batch_and_teacher
        _, key, _ = jax.random.split(key, 3)  # the LLM's in SE-CCL: ablations agree step for step
        _, fused = model.represent(params, batch.inputs, batch.mask)
        answer = model.answer(shared["backbone"], params, fused, batch.target, key)
        lm = losses.language_modelling(answer, batch.target)
        if teacher is None:
            return weights["lm"] * lm, {"lm": lm}
        distil = losses.distillation(answer, teacher)
        return weights["lm"] * lm + weights["distil"] * distil, {"lm": lm, "distil": distil}

    params, diagnostics = fit(
        loss, params, batch_at, shared["steps"], shared["rates"], steps_key,
        transform=optimiser(setting.config.train.clip))
    return sharding.constrain_tree(params, model.decoder.mesh), diagnostics


def fuse_public(llm: MultimodalModel, cloud, params: Params):
    """Fused omni-modal representations s′ of all of D′, ``[n, d]``, without dropout."""
    public: Rows = cloud["public"]

    def chunk(index):
        batch = gather(public, jnp.ones(public.available.shape[-1], bool), cloud["moments"], index)
        return llm.represent(params, batch.inputs, batch.mask)[1]

    return map_rows(chunk, public.target.shape[0])


def se_ccl_stage(setting: Outline, shared, server: dict[str, Params], key: jax.Array):
    """Synergistic enhancement of LLM and SLM on D′ (Eqs. 14–16).

    The LLM learns extractor, connector, generator and LoRA from L_lb, from the volume contrast of
    its own modalities around a randomly drawn anchor modality, and from the SLM's answers. The
    SLM learns its generator and LoRA from L_lb on the same fused representation and from the
    LLM's answers. Each learner clips and adapts its own gradient.

    Args:
      shared: backbones ``llm`` and ``slm``, ``public`` rows, ``moments``, ``steps``, ``rates`` per
        learner and ``weights`` per loss term.
      server: trainable groups of the learners ``llm`` and ``slm``.
    """
    options = setting.config
    public: Rows = shared["public"]
    every = jnp.ones(public.available.shape[-1], bool)
    weights = shared["weights"]
    order_key, steps_key = jax.random.split(key)
    # Knowledge is transferred along known answers: a row without one teaches by the volume alone.
    order = shuffle(order_key, (weights["volume"] > 0) | has_label(public))

    def batch_at(step):
        index = batch_rows(order, step, options.train.batch_size)
        return gather(public, every, shared["moments"], index)

    def loss(learners, batch: Batch, key):
        anchor_key, llm_key, slm_key = jax.random.split(key, 3)
        llm, slm = learners["llm"], learners["slm"]
        projected, fused = setting.llm.represent(llm, batch.inputs, batch.mask)
        llm_answer = setting.llm.answer(shared["llm"], llm, fused, batch.target, llm_key)
        slm_answer = setting.slm.answer(
            shared["slm"], slm, jax.lax.stop_gradient(fused), batch.target, slm_key)

        anchor = jax.random.randint(anchor_key, (), 0, projected.shape[1])
        others = batch.mask & (jnp.arange(projected.shape[1]) != anchor)
        usable = batch.mask[:, anchor] & others.any(1)
        volume = losses.volume_contrast(
            projected[:, anchor], projected, others, temperature=options.ccl.temperature,
            label_smoothing=options.ccl.label_smoothing,
            negatives_mask=negatives(batch, usable, options.ccl.negatives))
        transfer = functools.partial(losses.knowledge_transfer, target=batch.target,
                                     pooling=options.kt.pooling, k=options.kt.k,
                                     temperature=options.kt.temperature)
        terms = {"llm_lm": losses.language_modelling(llm_answer, batch.target),
                 "slm_lm": losses.language_modelling(slm_answer, batch.target),
                 "volume": volume,
                 "kt_llm": transfer(slm_answer, llm_answer),
                 "kt_slm": transfer(llm_answer, slm_answer)}
        weighted = (weights[name] * term for name, term in terms.items())
        return functools.reduce(jnp.add, weighted), terms

    server, diagnostics = fit(
        loss, server, batch_at, shared["steps"], shared["rates"], steps_key,
        transform=per_learner(optimiser(options.train.clip)))
    return sharding.constrain_tree(server, setting.llm.decoder.mesh), diagnostics


def negatives(
    batch: Batch, usable: jax.Array, rule: str, teacher: losses.SoftTargets | None = None
) -> jax.Array:
    """Pairs (anchor, others) that count as negatives, bool ``[B, B]``: both sides exist and, under
    ``other_class``, their answers differ. An unlabelled row has the answer that a ``teacher`` of
    classes finds likeliest; without one it differs from every other."""
    pairs = usable[:, None] & usable[None, :]
    if rule == "other_class":
        target, known = batch.target, (batch.target >= 0).any(-1)
        if teacher is not None and teacher.ids.shape[1] == 1:  # classes: one position, all asked
            likeliest = jnp.argmax(teacher.probabilities[:, 0], axis=-1)
            said = jnp.take_along_axis(teacher.ids[:, 0], likeliest[:, None], axis=-1)
            speaks = teacher.probabilities.sum((1, 2)) > 0
            said = jnp.where(speaks[:, None], said, -1)
            target = jnp.where(known[:, None], target[:, :1], said)
            known |= speaks
        same = (target[:, None] == target[None, :]).all(-1)
        pairs &= ~(same & known)
    return pairs
