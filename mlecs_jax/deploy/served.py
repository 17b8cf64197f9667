"""A node of a deployment as something that answers: of its kit, on its machine, with its own data.

A device answers with the newest state that it keeps (at work or not), an edge of Mega-CE² with its
own model, which it has once the run is over, the cloud with the newest complete round of its run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mlecs_jax import channel, restore, served
from mlecs_jax.data.sentiment import TEST
from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import mega_share, node, wire
from mlecs_jax.deploy import state as states
from mlecs_jax.deploy.kit import Kit
from mlecs_jax.deploy.mega_share import MegaShare
from mlecs_jax.errors import UserError
from mlecs_jax.mega import config as mega_configs
from mlecs_jax.methods import ml_ecs
from mlecs_jax.models import crossmodal
from mlecs_jax.scoring import PRIMARY
from mlecs_jax.served import SERVER, Served


def of_kit(
    folder: Path, *, data: Path | None = None, state: Path | None = None, run: Path | None = None
) -> Served:
    """The node whose kit a folder is.

    Args:
      data: its share of the data (default: in the kit).
      state: where a device keeps its state (default: in the kit).
      run: the cloud's run folder (default: in the kit, or where ``deploy local`` has it).

    Raises:
      UserError: no kit, an option of the other kind of node, or nothing was trained yet.
    """
    kit = kits.load(folder)
    cloud = kit.name == wire.CLOUD
    if cloud and state:
        raise UserError("--state is a device's; of the cloud's kit give the run's folder by --run")
    if run and not cloud:
        raise UserError(f"--run is the cloud's and the kit is of {kit.name}; leave it out, the "
                        "device answers with its own state")
    data = data or kit.data
    mega = kit.session().config["method"]["name"] == restore.MEGA
    if cloud:
        run = run or _run_of(kit)
        values, _ = restore.configuration(run)
        _check_run(kit, run, values)
        return _mega_cloud(kit, data, run) if mega else _cloud(kit, data, run)
    return (_mega_edge if mega else _device)(kit, data, state or kit.state)


def of_run(run: Path, values: Mapping[str, Any], device: int | None) -> Served:
    """The server of a deployed run, of the run's folder beside the cloud's kit.

    Args:
      values: of :func:`mlecs_jax.restore.configuration`.
      device: None, the server; devices are refused, since what they have is theirs.

    Raises:
      UserError: see there; no kit is beside the folder.
    """
    roster = values[restore.DEPLOYMENT]["roster"]
    if device is not None:
        name = roster[device] if device < len(roster) else "NAME"
        local = run / "kits" / name
        where = str(local) if local.is_dir() else "KIT"
        raise UserError(f"{run} is of a deployed run: what device {device} learned is on its own "
                        f"machine; there give --kit={where} in place of --run and --device")
    for folder in (run / "kits" / wire.CLOUD, run.absolute().parent):
        if (folder / kits.FILE).is_file():
            return of_kit(folder, run=run)
    raise UserError(f"{run} is of a deployed run, and the cloud's kit is not beside it; name it by "
                    f"--kit=DIR --run={run}")


def _run_of(kit: Kit) -> Path:
    """Where the cloud of a kit runs, if nobody says."""
    local = kit.folder.parents[1]  # WORKDIR/kits/cloud
    return local if kit.folder.parent.name == "kits" and (local / "config.json").is_file() \
        else kit.folder / "run"


def _check_run(kit: Kit, run: Path, values: Mapping[str, Any]) -> None:
    """Raises UserError where a run's folder is of another deployment than a kit."""
    if values.get(restore.DEPLOYMENT, {}).get("run") != kit.session().run:
        raise UserError(f"{run} is not of the deployment of {kit.folder}; give the folder that "
                        "this kit's cloud wrote by --run=DIR")


def _device(kit: Kit, data: Path, folder: Path) -> Served:
    """A device of ML-ECS after the last round that it was trained in."""
    session = kit.session()
    number = session.number(kit.name)
    setting = dataclasses.replace(node.device_setting(session, number, data), unanswered=True)
    part = ml_ecs.device_part(setting)
    found = states.read(folder, part.init(_first_key(session.experiment.seed)))
    if found is None or not found[1].rounds:
        raise UserError(f"{kit.name} has no complete round in {folder} yet; it answers once it "
                        "was trained (deploy edge), or name its folder by --state=DIR")
    nodes, notes = found
    question = cast(Any, part.evaluate(nodes, notes.rounds - 1)[PRIMARY])
    return served.of_device(question, number, notes.rounds,
                            setting.federation.held_out_rows(0, "test"))


def _cloud(kit: Kit, data: Path, run: Path) -> Served:
    """The cloud of ML-ECS after its last complete round."""
    session = kit.session()
    setting = dataclasses.replace(node.cloud_setting(session, data), unanswered=True)
    part = ml_ecs.cloud_part(setting)
    like = {SERVER: part.init(_first_key(session.experiment.seed))}
    rounds, found = restore.load(run, like)
    return served.of_server(part.evaluate(found[SERVER], rounds - 1), rounds)


def _mega_edge(kit: Kit, data: Path, folder: Path) -> Served:
    """An edge of Mega-CE² with its adapter."""
    from mlecs_jax.deploy.mega_edge import PERSONAL

    session, path = kit.session(), folder / PERSONAL
    number, share = session.number(kit.name), mega_share.load(data)
    if not path.exists():
        raise UserError(f"{kit.name} has no {PERSONAL} in {folder} yet; an edge tunes its own "
                        "model at the end of the run, or name its folder by --state=DIR")
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            version = int((file.metadata() or {})["version"])
        own = channel.unpack(arrays)
        return _mega(session.config, share, number, own["model"], own["adapter"], version)
    except (OSError, SafetensorError, KeyError, ValueError):
        raise UserError(f"{path} is damaged, or of an older version; let the edge take part "
                        "again") from None


def _mega_cloud(kit: Kit, data: Path, run: Path) -> Served:
    """The global model of Mega-CE² that edges liked best."""
    from mlecs_jax.deploy.mega_app import STATE
    from mlecs_jax.deploy.mega_store import Store

    session, share = kit.session(), mega_share.load(data)
    config = mega_configs.parse(session.config)
    initial = crossmodal.model(config.model_config(), "Mega-CE²").init(
        _first_key(config.seed), share.example())
    with restore.resting(run):
        if not (run / STATE).is_dir():
            raise UserError(f"{run} has no version yet; run it first")
        store = Store(run / STATE, jax.tree.map(np.asarray, initial))
    best = store.books.best
    if best is None:
        raise UserError(f"{run} has no version yet that edges scored; let it run on")
    return _mega(session.config, share, None, store.model(best.number), None, best.number)


def _mega(
    values: Mapping[str, Any], share: MegaShare, edge: int | None, model: Any, adapters: Any,
    version: int,
) -> Served:
    from mlecs_jax.mega.served import answering, described

    shape, rows = mega_configs.parse(values).model_config(), np.flatnonzero(share.part == TEST)
    measured = {name: _measured(getattr(share, name)[rows], share.moments.get(name))
                for name in shape.modalities}
    own = jax.tree.map(jnp.asarray, {"model": model, "adapters": adapters})
    return answering(
        described(share.name, share.source, share.shapes, shape, edge, version),
        crossmodal.model(shape, "Mega-CE²"), own["model"], own["adapters"], share.moments,
        rows=[{name: x[i] for name, x in measured.items()} for i in range(len(rows))],
        truth=[f"{label:+.3f}" for label in share.labels[rows]])


def _measured(z: np.ndarray, moments: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """Standardised features in their own units again; padding steps stay zero."""
    if moments is None:
        return z
    mean, std = moments
    x = mean + z * np.where(np.isfinite(std), std, 0.0)  # a constant feature has no deviation
    return (x * z.any(axis=-1, keepdims=True)).astype(np.float32)


def _first_key(seed: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), 0)
