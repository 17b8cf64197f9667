"""What carries messages between a cloud and its devices, whatever the network.

A transport moves bytes (:func:`mlecs_jax.deploy.wire.encode`) and knows who is there. It does not
look into messages: what the cloud makes of an answer is :mod:`mlecs_jax.deploy.admission`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from mlecs_jax.deploy import wire
from mlecs_jax.deploy.wire import Message, WireError

FailureReason = Literal["deadline", "gone", "refused", "error"]


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a device gave no answer that can be looked at.

    Attributes:
      reason: ``deadline``: nothing in time. ``gone``: no connection, or it was lost. ``refused``:
        bytes that are no message, see ``detail``. ``error``: the device says that it failed.
      detail: one line for people; begins with a :data:`mlecs_jax.deploy.wire.Reason` where
        ``refused``.
    """

    reason: FailureReason
    detail: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", wire.plain(self.detail))  # a device may have worded it


@runtime_checkable
class Transport(Protocol):
    """The cloud's end."""

    def names(self) -> list[str]:
        """Devices that are connected now and owe no answer of an exchange before."""
        ...

    def exchange(
        self, targets: Sequence[str], message: Message, deadline: float,
        limit_bytes: int | None = None,
    ) -> tuple[dict[str, Message], dict[str, Failure]]:
        """Sends one message to several devices and gathers what they answer.

        Every target is in exactly one of the two results. An answer that comes after its deadline
        is dropped, also when it comes during a later exchange.

        Args:
          deadline: seconds from now, for all of them together.
          limit_bytes: longest answer that is looked at, where it is less than the session's.
        """
        ...

    def on_push(
        self, handler: Callable[[str, Message], Message], limit_bytes: int | None = None
    ) -> None:
        """Registers what answers devices that speak first (Mega-CE²).

        Args:
          handler: ``(name, message) → answer``, where ``name`` is the device as the transport
            knows it. Called from any thread, one call at a time.
          limit_bytes: longest message that is looked at, where it is less than the session's.
        """
        ...

    def close(self) -> None:
        """Lets go of the network; devices find their connection closed."""
        ...


@runtime_checkable
class Uplink(Protocol):
    """A device's end, where it speaks first."""

    def push(self, message: Message) -> Message:
        """Sends an update and returns what the cloud answers.

        Raises:
          ConnectionError: no cloud.
          WireError: the cloud refused the message, or its answer is no message.
        """
        ...


def opened(data: bytes, limit_bytes: int) -> Message | Failure:
    """What a transport makes of the bytes of an answer."""
    try:
        return wire.decode(data, limit_bytes=limit_bytes)
    except WireError as error:
        return Failure("refused", str(error))
