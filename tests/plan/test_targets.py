"""Targets by name."""

import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.plan import targets


def test_chips_and_meshes():
    target = targets.parse("v5e:4x4")
    assert target.size == 16 and str(target) == "v5e:4x4"
    assert str(targets.parse("h200")) == "h200" and targets.parse("h200:8").size == 8
    assert [str(mesh) for mesh in targets.larger(targets.parse("v5p:2x2x2"))] == [
        "v5p:2x2x4", "v5p:4x4x4", "v5p:8x8x8"]


@pytest.mark.parametrize("text", ["v9:4x4", "v5e:3x3", ""])
def test_unknown_ones_are_refused(text):
    with pytest.raises(UserError, match="--target="):
        targets.parse(text)
