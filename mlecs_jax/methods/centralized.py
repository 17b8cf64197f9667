"""Centralized: all training data in one place, what collaboration without moving data is for.

One SLM learns from the pooled private rows of all devices and the labelled public rows, each with
the modalities its owner has (public rows with all); the LLM learns from the same pool. Budget: as
many batches for the SLM as all devices together have, ``N · (ccl_steps + amt_steps)`` a round, and
``server_steps`` for the LLM. The SLM is scored on every device's held-out rows with the device's
modalities. Nothing here respects privacy; it is a control, not a method to deploy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mlecs_jax import programs, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.errors import UserError
from mlecs_jax.federation import Federation, Rows
from mlecs_jax.lora import Params
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.setting import Setting
from mlecs_jax.stages import lone_stage


@struct.dataclass
class State:
    """What lives between rounds: the trainable groups of the two models."""

    slm: Params
    llm: Params

    @property
    def devices(self) -> tuple[Params, ...]:
        """The one SLM, as a cohort of one."""
        return (jax.tree.map(lambda x: x[None], self.slm),)


def build(setting: Setting) -> Method:
    """Training on the pool of all data.

    Raises:
      UserError: devices of several structures, which no one model could serve.
    """
    if len(setting.cohorts) > 1:
        raise UserError("method centralized trains one model for all devices; leave model.cohorts "
                        "empty")
    options, topology, federation = setting.config, setting.topology, setting.federation
    cohort = setting.cohorts[0]
    rows, owner = pooled(federation)
    pool = {"rows": rows, "moments": federation.moments}
    edge = topology.to_edge(pool) | {"backbone": setting.edge["slm"]}
    cloud = topology.to_cloud(pool) | {"backbone": setting.cloud["llm"]}
    train_slm = programs.compiled(lone_stage, setting.outline, cohort.model, donate_argnums=1)
    train_llm = programs.compiled(lone_stage, setting.outline, setting.llm, donate_argnums=1)
    predict = Predictor(setting)
    slm_steps = federation.num_clients * rounds.local_steps(options)

    def init(key: jax.Array) -> State:
        lora = rounds.initial_slm(setting, key)["lora"]
        first = jax.tree.map(lambda x: x[0], rounds.initial_devices(setting, key, lora)[0])
        return State(slm=topology.to_edge(first), llm=rounds.initial_llm(setting, key))

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        rates = rounds.every_group(rounds.rate_at(options, r))
        owned = np.concatenate([federation.owned_at(r), np.ones((1, len(rows.modalities)), bool)])
        slm, on_slm = train_slm(
            edge | {"owned": topology.to_edge(owned[owner]), "rates": rates, "steps": slm_steps},
            state.slm, topology.to_edge(rounds.stage_key(key, r, rounds.PRIVATE)))
        llm, on_llm = train_llm(
            cloud | {"owned": topology.to_cloud(owned[owner]), "rates": rates,
                     "steps": options.train.server_steps},
            state.llm, topology.to_cloud(rounds.stage_key(key, r, rounds.SERVER)))
        return State(slm=slm, llm=llm), {"devices": {}, "server": {"slm": on_slm, "llm": on_llm}}

    def evaluate(state: State, r: int) -> Predictions:
        everywhere = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (federation.num_clients, *x.shape)), state.slm)
        return {"after_amt": predict.devices((topology.to_edge(everywhere, per_client=True),), r),
                "server": predict.server(state.llm, r)}

    def communication(state: State) -> dict[str, int]:
        del state  # data move once, before the first round, and not in rounds
        return {"uplink": 0, "downlink": 0}

    return Method(init=init, round=round, evaluate=evaluate, communication=communication)


def pooled(federation: Federation) -> tuple[Rows, np.ndarray]:
    """All labelled training rows of all nodes, and the device each comes from, int ``[n]`` (-1: the
    public share)."""
    train, public = federation.train, federation.public
    real = np.arange(train.target.shape[1]) < train.count[:, None]
    labelled = np.asarray((public.target >= 0).any(-1))

    def join(private, shared):
        return np.concatenate([np.asarray(private)[real], np.asarray(shared)[labelled]])

    owner = np.concatenate([np.nonzero(real)[0], np.full(labelled.sum(), -1)])
    return Rows(inputs={name: join(x, public.inputs[name]) for name, x in train.inputs.items()},
                available=join(train.available, public.available),
                target=join(train.target, public.target), count=np.int32(len(owner)),
                modalities=train.modalities), owner
