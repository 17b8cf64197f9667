"""The pool: every labelled row once, with its owner's modalities."""

import numpy as np
import pytest

from mlecs_jax.errors import UserError
from mlecs_jax.methods import centralized
from tests.methods.rounds import build


def test_pool_holds_every_labelled_row_with_its_owner():
    setting, _, _ = build(**{"method.name": "centralized", "partition.server_labelled": 0.5})
    federation = setting.federation
    rows, owner = centralized.pooled(federation)
    for j, share in enumerate(federation.partition.devices):
        mine = owner == j
        assert mine.sum() == len(share.train)
        np.testing.assert_array_equal(rows.inputs["acce"][mine],
                                      federation.samples.inputs["acce"][share.train])
    labelled = federation.partition.public_labelled
    public = federation.partition.public.train[labelled]
    np.testing.assert_array_equal(rows.inputs["rgb"][owner == -1],
                                  federation.samples.inputs["rgb"][public])
    assert (rows.target >= 0).all() and rows.count == len(owner) == len(rows.target)


def test_devices_of_several_structures_are_refused():
    with pytest.raises(UserError, match="leave model.cohorts empty"):
        build(**{"method.name": "centralized", "model.cohorts": "1=encoder_hidden:20"})
