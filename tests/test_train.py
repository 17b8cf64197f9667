"""Stages of training: frozen groups, clipping, batches, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlecs_jax.stages import turn_of
from mlecs_jax.train import batch_rows, decayed, fit, optimiser, per_learner, shuffle


def quadratic(params, batch, key):
    del key
    loss = jnp.sum((params["a"] - batch) ** 2) + 100 * jnp.sum(params["b"] ** 2)
    return loss, {"loss": loss}


def test_fit_equals_optax_adam_on_the_free_group():
    """A frozen group neither moves nor takes part in the gradient norm."""
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
    batches = jnp.arange(8.0).reshape(4, 2)
    got, diagnostics = fit(quadratic, params, lambda i: batches[i], 4, {"a": 0.1, "b": 0.0},
                           jax.random.key(0), transform=optimiser(clip=1.0))
    reference = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    a, state, losses = params["a"], reference.init(params["a"]), []
    for batch in batches:
        losses.append(jnp.sum((a - batch) ** 2) + 900)
        updates, state = reference.update(2 * (a - batch), state)
        a = optax.apply_updates(a, updates)
    np.testing.assert_allclose(got["a"], a, rtol=1e-5)
    np.testing.assert_array_equal(got["b"], params["b"])
    np.testing.assert_allclose(diagnostics["loss"], np.mean(losses), rtol=1e-5)


def test_learners_clip_apart():
    """A huge gradient of one learner does not shrink the other's step."""
    transform = per_learner(optax.clip_by_global_norm(1.0))
    grads = {"llm": jnp.array([1e6]), "slm": jnp.array([0.5])}
    updates, _ = transform.update(grads, transform.init(grads))
    np.testing.assert_allclose(updates["slm"], [0.5])
    np.testing.assert_allclose(updates["llm"], [1.0])


def test_batches_pass_over_every_chosen_row_and_no_other():
    chosen = np.isin(np.arange(16), [*range(8), 11, 13])
    order = shuffle(jax.random.key(0), jnp.asarray(chosen))
    rows = np.concatenate([batch_rows(order, jnp.int32(i), 4) for i in range(5)])
    expected = list(np.flatnonzero(chosen))
    assert sorted(rows[:10]) == expected and sorted(rows[10:]) == expected


def test_rate_decays_linearly_to_its_fraction():
    np.testing.assert_allclose([decayed(1.0, 0.1, r, 4) for r in range(4)], [1.0, 0.7, 0.4, 0.1])
    assert decayed(1.0, 0.1, 0, 1) == 1.0


def test_sources_in_turn_each_take_their_rows_in_order():
    """Of 64 rows four batches of 16 are a pass; half of the steps are another source's."""
    order = shuffle(jax.random.key(0), jnp.ones(64, bool))
    for share, public_steps in ((0.5, 4), (0.25, 2), (0.75, 6), (True, 8), (False, 0)):
        turns = [turn_of(step, share) for step in range(8)]
        for public in (True, False):
            own = [int(turn) for is_public, turn in turns if bool(is_public) == public]
            assert own == list(range(public_steps if public else 8 - public_steps))
    seen = [batch_rows(order, turn, 16) for public, turn in map(
        lambda step: turn_of(step, 0.5), range(8)) if public]
    assert sorted(np.concatenate(seen)) == list(range(64))
