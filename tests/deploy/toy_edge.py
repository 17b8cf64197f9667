"""``python -m mlecs_jax.deploy edge …`` with a toy for a model: ``python -m tests.deploy.toy_edge
--kit=DIR``."""

import sys

from mlecs_jax.deploy import nodes
from tests.mega.small_mega import toys

if __name__ == "__main__":
    with toys():
        sys.exit(nodes.edge_main(["edge", *sys.argv[1:]]))
