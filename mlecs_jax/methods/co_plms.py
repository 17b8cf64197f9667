"""Co-PLMs (arXiv 2511.11678), **an approximation**: its equations and code could not be had.

Built from its abstract and from what the ML-ECS paper says of it: devices and server never
exchange their language models but a small distilled proxy model (DPM) that both sides tutor.

0. In the first half of the first round's server steps, before the devices begin, the server trains
   its LLM on public data and distils it into the DPM; 5 has the other half.
1. Devices receive the DPM's LoRA, and the encoders of the modalities they own.
2. SAML on public data: SLM and DPM learn from L_lb and from each other,
   L_slm = L_lb + KT(DPM → SLM), L_dpm = L_lb + KT(SLM → DPM).
3. DST on private data: the SLM's adapter and extractor learn from L_lb; the adapter stays.
4. Devices upload the DPM's LoRA and their encoders (both travel in ML-ECS's Fig. 3); the server
   averages the former, weighted by numbers of samples, the latter per modality over owners.
5. The server runs SAML between LLM and DPM on public data.

Ours, unknown from the sources: KT is ML-ECS's pooled-logit transfer with its weight; the DPM reads
the device's fused representation through a prompt generator of its own, which stays local; where
public rows have no label on devices, KT speaks of the first answer token alone, which needs none.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from mlecs_jax import aggregate, backbones, channel, losses, programs, rounds
from mlecs_jax.answers import Predictor
from mlecs_jax.federation import gather
from mlecs_jax.lora import Params, count
from mlecs_jax.methods.method import Diagnostics, Method, Predictions
from mlecs_jax.modality_exchange import ModalityExchange
from mlecs_jax.models import zoo
from mlecs_jax.models.multimodal import Batch, MultimodalModel
from mlecs_jax.setting import Outline, Setting
from mlecs_jax.stages import device_stage, exists
from mlecs_jax.train import batch_rows, fit, optimiser, per_learner, shuffle

PROXY = 2  # number of its backbone, after SLM and LLM
DISTILLING = rounds.SERVER + 1  # stage number of the first distillation

NOTE = ("Co-PLMs is an approximation: neither its equations nor its code were available; built "
        "from its abstract and the description in the ML-ECS paper")


@struct.dataclass
class State:
    """What lives between rounds.

    Attributes:
      devices: per cohort, stacked trainable groups of each device's SLM.
      proxies: per cohort, stacked ``generator`` and ``lora`` of each device's DPM.
      server: ``own``, all groups of the LLM, and ``dpm``, the DPM's generator and lora.
      encoders: the mean encoders and projectors, ``{modality: tree}`` per structure.
    """

    devices: tuple[Params, ...]
    proxies: tuple[Params, ...]
    server: dict[str, Params]
    encoders: tuple[dict[str, Params], ...]


def build(setting: Setting) -> Method:
    """Co-PLMs over a setting, as far as it is known.

    Raises:
      UserError: ``method.co_plms.proxy`` is no backbone.
    """
    options, topology = setting.config, setting.topology
    samples = setting.federation.train.count
    dpm, backbone = proxy(setting)
    on_edge, on_cloud = topology.to_edge(backbone), topology.to_cloud(backbone)
    tutor_devices = setting.on_devices(functools.partial(saml_stage, dpm))
    train_devices = setting.on_devices(device_stage)
    tutor_server = programs.compiled(saml_stage, dpm, setting.outline, setting.llm,
                                     donate_argnums=1)
    every = topology.to_cloud(jnp.ones(len(setting.federation.modalities), bool))
    predict = Predictor(setting)
    exchange = ModalityExchange(setting)

    def init(key: jax.Array) -> State:
        own = rounds.initial_slm(setting, key)["lora"]
        devices = rounds.initial_devices(setting, key, own)
        proxies, first = _initial_proxies(setting, dpm, backbone, key)
        server = {"own": rounds.initial_llm(setting, key), "dpm": topology.to_cloud(first)}
        return State(devices=devices, proxies=proxies, server=server,
                     encoders=exchange.first(devices))

    def saml_on_server(server: dict[str, Params], r: int, key: jax.Array, stage: int, steps: int,
                       weights: dict[str, float]):
        rate = rounds.rate_at(options, r)
        shared = setting.cloud | {
            "slm": setting.cloud["llm"], "dpm": on_cloud, "steps": steps,
            "rates": {"own": rounds.every_group(rate), "dpm": rate}, "weights": weights}
        node = {"owned": every, "public_available": None,
                "key": topology.to_cloud(rounds.stage_key(key, r, stage))}
        return tutor_server(shared, server, node)

    def round(state: State, r: int, key: jax.Array) -> tuple[State, Diagnostics]:
        rate, server, on_server = rounds.rate_at(options, r), state.server, {}
        distilling = options.train.server_steps // 2 if r == 0 else 0
        if distilling:
            server, on_server["distilling"] = saml_on_server(
                server, r, key, DISTILLING, distilling, {"kt_own": 0.0, "kt_dpm": 1.0})
        # 1. The DPM's LoRA and the encoders arrive.
        devices = exchange.receive(state.devices, state.encoders, r)
        proxies = rounds.overwrite(
            state.proxies, {"lora": topology.to_edge(server["dpm"]["lora"])})
        # 2. SAML on public data.
        pairs = tuple({"own": own, "dpm": small}
                      for own, small in zip(devices, proxies, strict=True))
        pairs, saml = tutor_devices(
            pairs, r, rounds.stage_key(key, r, rounds.PUBLIC), dpm=on_edge,
            steps=options.train.ccl_steps, weights=mutual(setting),
            rates={"own": rounds.public_rates(options, rate), "dpm": rate})
        # 3. DST on private data.
        devices, dst = train_devices(
            tuple(pair["own"] for pair in pairs), r, rounds.stage_key(key, r, rounds.PRIVATE),
            on_public=False, steps=options.train.amt_steps,
            rates=rounds.private_rates(options, rate), weights={"lm": 1.0})
        proxies = tuple(pair["dpm"] for pair in pairs)
        # 4. Upload and average.
        uploads = topology.to_cloud({"lora": setting.join([small["lora"] for small in proxies]),
                                     "samples": samples})
        lora = aggregate.weighted_mean(uploads["lora"], uploads["samples"])
        encoders = exchange.mean(devices, state.encoders, r)
        # 5. SAML at the server.
        server = {"own": server["own"], "dpm": server["dpm"] | {"lora": lora}}
        server, on_server["saml"] = saml_on_server(
            server, r, key, rounds.SERVER, options.train.server_steps - distilling, mutual(setting))
        return (State(devices=devices, proxies=proxies, server=server, encoders=encoders),
                {"devices": {"saml": saml, "dst": dst}, "server": on_server})

    def evaluate(state: State, r: int) -> Predictions:
        return {"after_amt": predict.devices(state.devices, r),
                "server": predict.server(state.server["own"], r)} | predict.after_broadcast(
                    lambda: exchange.receive(state.devices, state.encoders, r), r)

    def communication(state: State) -> dict[str, int]:
        sent = (exchange.num_bytes(state.encoders, state.devices)
                + channel.num_bytes({"lora": state.server["dpm"]["lora"]}))
        return {"uplink": sent + channel.num_bytes({"samples": samples[:1]}), "downlink": sent}

    def beyond(state: State) -> list[int]:
        """The DPM: its backbone, generator and LoRA."""
        small = count(backbone) + count(state.server["dpm"])
        return [small] * setting.federation.num_clients

    return Method(init=init, round=round, evaluate=evaluate, communication=communication,
                  beyond=beyond, note=NOTE)


def proxy(setting: Setting) -> tuple[MultimodalModel, Params]:
    """The DPM, which answers from a fused representation, and its frozen backbone (on the host)."""
    options, slm = setting.config, setting.slm
    name = backbones.pretrained(options, setting.federation.samples,
                                options.method.co_plms.proxy, PROXY)
    backbones.check_vocabulary(name, setting.tokenizer)
    shape = zoo.decoder_config(name, len(setting.tokenizer), options.model.dtype)
    dpm = dataclasses.replace(
        slm, decoder=slm.decoder.clone(config=shape),
        generator=slm.generator.clone(width=shape.width),
        lora_targets=slm.lora_targets if options.lora.slm_targets else shape.lora_targets)
    key = jax.random.fold_in(jax.random.key(options.model.backbone_seed), PROXY)
    return dpm, backbones.parameters(name, dpm, key)


def mutual(setting: Setting) -> dict[str, float]:
    """Both learn from each other with ML-ECS's weight of knowledge transfer."""
    return {"kt_own": setting.config.kt.weight, "kt_dpm": setting.config.kt.weight}


def saml_stage(dpm: MultimodalModel, setting: Outline, model: MultimodalModel, shared, params,
               device):
    """Mutual learning of a node's own model and the DPM on public data, on a device or the server.

    The own model learns all its groups; the DPM answers from the same fused representation through
    its own generator. Each clips and adapts its own gradient.

    Args:
      shared: backbones ``slm`` (of ``model``) and ``dpm``, ``public`` rows, ``moments``, ``steps``,
        ``rates`` per learner and ``weights`` {'kt_own', 'kt_dpm'}.
      params: learners ``own`` and ``dpm``.
      device: ``owned [M]``, ``key``, and ``public_available [n, M]`` or None.
    """
    options, public, weights = setting.config, shared["public"], shared["weights"]
    if device["public_available"] is not None:
        public = public.replace(available=device["public_available"])
    order_key, steps_key = jax.random.split(device["key"])
    order = shuffle(order_key, exists(public))
    transfer = functools.partial(
        losses.knowledge_transfer, pooling=options.kt.pooling, k=options.kt.k,
        temperature=options.kt.temperature)

    def batch_at(step):
        index = batch_rows(order, step, options.train.batch_size)
        return gather(public, device["owned"], shared["moments"], index)

    def loss(learners, batch: Batch, key):
        own_key, dpm_key = jax.random.split(key)
        _, fused = model.represent(learners["own"], batch.inputs, batch.mask)
        own = model.answer(shared["slm"], learners["own"], fused, batch.target, own_key)
        small = dpm.answer(shared["dpm"], learners["dpm"], jax.lax.stop_gradient(fused),
                           batch.target, dpm_key)
        spoken = spoken_of(batch.target)
        terms = {"own_lm": losses.language_modelling(own, batch.target),
                 "dpm_lm": losses.language_modelling(small, batch.target),
                 "kt_own": transfer(small, own, spoken), "kt_dpm": transfer(own, small, spoken)}
        transfers = sum(weights[name] * terms[name] for name in ("kt_own", "kt_dpm"))
        return terms["own_lm"] + terms["dpm_lm"] + transfers, terms

    return fit(loss, params, batch_at, shared["steps"], shared["rates"], steps_key,
               transform=per_learner(optimiser(options.train.clip)))


def spoken_of(target: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions that knowledge transfer compares, -1 elsewhere: those of the answer, and of an
    unknown answer the first, which both models give before they have read any of it."""
    first = jnp.where(jnp.arange(target.shape[1]) == 0, 0, -1)
    return jnp.where((target >= 0).any(-1, keepdims=True), target, first)


def _initial_proxies(
    setting: Setting, dpm: MultimodalModel, backbone: Params, key: jax.Array
) -> tuple[tuple[Params, ...], Params]:
    """Stacked ``generator`` and ``lora`` of the devices' DPMs per cohort, and the server's."""
    key = jax.random.fold_in(key, DISTILLING)

    def draw(node: int) -> Params:
        drawn = dpm.init(jax.random.fold_in(key, node), backbone, setting.example_inputs())
        return {"generator": drawn["generator"], "lora": drawn["lora"]}

    server = draw(setting.federation.num_clients)
    stacked = []
    for cohort in setting.cohorts:
        drawn = [draw(int(client)) | {"lora": server["lora"]} for client in cohort.clients]
        stack = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
        stacked.append(setting.topology.to_edge(stack, per_client=True))
    return tuple(stacked), server
