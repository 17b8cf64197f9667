"""A device of a deployment: its data, its models, and answers to the cloud's messages."""

from __future__ import annotations

from pathlib import Path

from mlecs_jax.deploy.session import Session
from mlecs_jax.deploy.wire import Message


class EdgeApp:
    """A device's side of ML-ECS. One at a time handles messages; programs stay compiled between.

    Readings, labels, single predictions, encoders and connectors stay here. What leaves is in
    :data:`mlecs_jax.deploy.wire.Kind`'s table.

    Args:
      session: what was provisioned.
      name: this device, as the roster has it.
      data_dir: its share of the dataset (:mod:`mlecs_jax.deploy.share`).
      state_dir: where it keeps its state after every round; a device that is killed comes back
        where it was. Created if absent.

    Raises:
      UserError: no such device, bad data or options.
    """

    def __init__(self, session: Session, name: str, data_dir: Path, state_dir: Path):
        raise NotImplementedError

    def handle(self, message: Message) -> Message:
        """Does what the cloud asks and answers.

        Raises:
          WireError: the message is not the cloud's, or not of the present session, or its arrays
            are not those of its kind. The state is as before.
        """
        raise NotImplementedError
