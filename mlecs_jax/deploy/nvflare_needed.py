"""NVFlare is an extra: what to say where it is not installed, and how it is set up here."""

from __future__ import annotations

import importlib.util
import os

from mlecs_jax.errors import UserError


def check() -> None:
    """Raises UserError where NVFlare is not installed."""
    if importlib.util.find_spec("nvflare") is None:
        raise UserError("a deployment needs NVFlare; install it by "
                        "pip install -c constraints.txt -e '.[deploy]'")


def prepare(*, limit_bytes: int, loopback: bool) -> None:
    """Settings that NVFlare and gRPC read from the environment, before they are imported.

    Args:
      limit_bytes: longest message that is taken off the network.
      loopback: the cloud is on this machine: no proxy in between.
    """
    check()
    os.environ["NVFLARE_STREAMING_MAX_BLOB_SIZE"] = str(limit_bytes)
    os.environ["NVFLARE_ALLOW_ADHOC_CONNS"] = "false"  # devices speak with the cloud alone
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # refused handshakes are reported by us
    if loopback:
        os.environ["no_grpc_proxy"] = "127.0.0.1,localhost"
