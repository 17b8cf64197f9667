"""Options as a command line gives them."""

from mlecs_jax.repro import options
from mlecs_jax.repro.systems import SYSTEMS


def parsed(*arguments):
    return options.parse(["mlecs", *arguments], {s: tuple(a) for s, a in SYSTEMS.items()})
