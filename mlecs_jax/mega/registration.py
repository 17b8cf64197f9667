"""Registration: a device says what it is, the edge answers how it is to work.

An end device (or an edge, towards the cloud) sends its capability profile once; the reply fixes
sample rates, sequence lengths, precision and effort of compression, batch size and deadline. Both
are msgpack maps of plain values. What the reply promises is arithmetic over the profile: memory
bounds batch and lengths, bandwidth × deadline bounds the precision.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from mlecs_jax.mega.codecs import PRECISIONS, packed_size
from mlecs_jax.mega.links import Link
from mlecs_jax.mega.packets import Sender

MAX_MESSAGE = 4096  # bytes of a profile
MAX_ID = 64  # characters
BYTES_PER_VALUE = 4
TRAINING_COPIES = 4  # an activation, its gradient and two moments live at once


class RegistrationError(ValueError):
    """A profile that cannot be read or served."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a device says of itself.

    Attributes:
      id: unique under its parent; 1 to 64 characters.
      hardware: free text, for the log.
      sensors: ``{modality: highest sample rate, Hz}``.
      compute: floating-point operations per second it can spend, > 0.
      memory: bytes it can spend, > 0.
      link_up, link_down: bytes per second; link_rtt: seconds.
    """

    id: str
    hardware: str
    sensors: dict[str, float]
    compute: float
    memory: int
    link_up: float
    link_down: float
    link_rtt: float

    @property
    def link(self) -> Link:
        return Link(self.link_up, self.link_down, self.link_rtt)


@dataclasses.dataclass(frozen=True)
class Reply:
    """How the device is to work.

    Attributes:
      sample_rate: ``{modality: Hz}``, never above what the sensor has.
      lengths: ``{modality: steps of a sequence}``.
      dtype: precision of the features it sends, one of :data:`codecs.PRECISIONS`; it may go
        lower for a packet that would miss the deadline.
      level: effort of zlib, 1 to 9.
      batch: segments per local training step.
      deadline: seconds from the end of a reading to its arrival at the edge.
      session: that every packet names until the device registers again.
    """

    sample_rate: dict[str, float]
    lengths: dict[str, int]
    dtype: str
    level: int
    batch: int
    deadline: float
    session: int


@dataclasses.dataclass(frozen=True)
class Demand:
    """What the application wants of every device, before its limits.

    Attributes:
      lengths, widths: ``{modality: steps}`` and ``{modality: features per step}``.
      seconds: that a full sequence covers.
      batch: segments per local training step.
      deadline: seconds.
      flops_per_segment: of one training step on one segment of full length.
      step_seconds: how long a local training step may take.
    """

    lengths: dict[str, int]
    widths: dict[str, int]
    seconds: float = 10.0
    batch: int = 16
    deadline: float = 0.05
    flops_per_segment: float = 1e8
    step_seconds: float = 5.0


class Registry:
    """An edge's (or the cloud's) list of devices.

    Args:
      demand: what is wanted of every device.
      capacity: devices at most; further ones are refused until others are forgotten.
      draw_session: a number below 2⁶³ that no earlier session has, those of an edge's earlier life
        included; drawn at random unless given.

    Attributes:
      profiles, replies, senders: by device id; ``senders``, what a :class:`packets.Receiver`
        should take, changes as devices come and go.
      refused: how many registrations were refused.
    """

    def __init__(self, demand: Demand, capacity: int = 1024,
                 draw_session: Callable[[], int] = lambda: secrets.randbits(63)):
        self.demand = demand
        self.capacity = capacity
        self._draw_session = draw_session
        self.profiles: dict[str, Profile] = {}
        self.replies: dict[str, Reply] = {}
        self.senders: dict[str, Sender] = {}
        self.refused: collections.Counter[str] = collections.Counter()

    def register(self, message: bytes) -> bytes | None:
        """The packed reply to a packed profile, or None if it is refused; never raises on bytes.

        A device that registers again, because it was restarted or its hardware has changed,
        replaces its profile and has a new session, whose packets count from 0.
        """
        try:
            profile = unpack_profile(message)
            if profile.id not in self.profiles and len(self.profiles) >= self.capacity:
                raise RegistrationError("no room for another device")
            reply = configure(profile, self.demand, self._draw_session())
        except RegistrationError as error:
            self.refused[str(error)] += 1
            return None
        self.profiles[profile.id] = profile
        self.replies[profile.id] = reply
        self.senders[profile.id] = Sender(reply.session, {
            name: (steps, self.demand.widths[name]) for name, steps in reply.lengths.items()})
        return pack(reply)

    def forget(self, device: str) -> None:
        """Ends a device's registration, if it has one; its packets are refused from now on."""
        for known in (self.profiles, self.replies, self.senders):
            known.pop(device, None)


def configure(profile: Profile, demand: Demand, session: int) -> Reply:
    """The best working point that a device can hold.

    Raises:
      RegistrationError: the device has none of the wanted sensors, or cannot hold a single step.
    """
    names = [name for name in demand.lengths if name in profile.sensors]
    if not names:
        raise RegistrationError("none of the wanted sensors")
    share = min(1.0, profile.memory / _segment_bytes(demand, demand.lengths, names))
    lengths = {name: math.floor(demand.lengths[name] * share) for name in names}
    if not all(lengths.values()):
        raise RegistrationError("not enough memory for one step of every sensor")
    by_memory = profile.memory // _segment_bytes(demand, lengths, names)
    by_compute = int(profile.compute * demand.step_seconds / (demand.flops_per_segment * share))
    return Reply(
        sample_rate={name: min(profile.sensors[name], demand.lengths[name] / demand.seconds)
                     for name in names},
        lengths=lengths,
        dtype=_precision(profile.link, demand, lengths),
        level=9 if profile.compute >= 1e9 else 1,  # zlib 9 costs a small core more than it saves
        batch=max(1, min(demand.batch, by_memory, by_compute)),
        deadline=demand.deadline, session=session)


def pack(message: Profile | Reply) -> bytes:
    """A profile or reply as msgpack."""
    return bytes(msgpack.Packer(use_bin_type=True).pack(dataclasses.asdict(message)))


def unpack_profile(message: bytes) -> Profile:
    """A profile of packed bytes.

    Raises:
      RegistrationError: not a profile, or a value out of range.
    """
    fields = _fields(Profile, message)
    if not all(isinstance(name, str) and isinstance(rate, float) and 0 < rate < math.inf
               for name, rate in fields["sensors"].items()):
        raise RegistrationError("a sensor without a sample rate")
    profile = Profile(**fields)
    positive = (profile.compute, profile.memory, profile.link_up, profile.link_down)
    good = (0 < len(profile.id) <= MAX_ID and all(0 < x < math.inf for x in positive)
            and 0 <= profile.link_rtt < math.inf)
    if not good:
        raise RegistrationError("a value out of range")
    return profile


def unpack_reply(message: bytes) -> Reply:
    """A reply of packed bytes, for the device.

    Raises:
      RegistrationError: not a reply.
    """
    fields = _fields(Reply, message)
    if not (all(type(rate) is float for rate in fields["sample_rate"].values())
            and all(type(steps) is int and steps > 0 for steps in fields["lengths"].values())):
        raise RegistrationError("a value of another type")
    reply = Reply(**fields)
    if (reply.dtype not in PRECISIONS or not 1 <= reply.level <= 9 or reply.batch < 1
            or reply.session < 0):
        raise RegistrationError("a value out of range")
    return reply


def _fields(kind: type[Profile] | type[Reply], message: bytes) -> dict[str, Any]:
    if len(message) > MAX_MESSAGE:
        raise RegistrationError("too long")
    try:
        fields = msgpack.unpackb(message, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError):
        raise RegistrationError("not msgpack") from None
    types = {"str": str, "float": float, "int": int}
    wanted = {field.name: types.get(str(field.type), dict) for field in dataclasses.fields(kind)}
    if not isinstance(fields, dict) or set(fields) != set(wanted):
        raise RegistrationError("other fields than asked for")
    for name, field_type in wanted.items():
        if type(fields[name]) is not field_type:
            raise RegistrationError(f"{name} is of another type")
    return fields


def _segment_bytes(demand: Demand, lengths: Mapping[str, int], names: Sequence[str]) -> int:
    """Memory of training on one segment of the given lengths."""
    values = sum(lengths[name] * demand.widths[name] for name in names)
    return BYTES_PER_VALUE * TRAINING_COPIES * values


def _precision(link: Link, demand: Demand, lengths: Mapping[str, int]) -> str:
    """The most precise dtype whose packets, undeflated, arrive before the deadline together."""
    budget = link.bytes_within(demand.deadline)
    for precision in PRECISIONS:
        size = sum(packed_size((steps, demand.widths[name]), precision)
                   for name, steps in lengths.items())
        if size <= budget:
            return precision
    return PRECISIONS[-1]
