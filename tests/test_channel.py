"""Messages: what is counted is what would be sent."""

import jax
import jax.numpy as jnp
import numpy as np

from mlecs_jax import channel


def test_bytes_are_those_of_the_packed_message():
    tree = {"lora": {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4, jnp.bfloat16)},
            "modalities": np.zeros(1, np.int32)}
    message = channel.pack(tree)
    assert set(message) == {"lora/a", "lora/b", "modalities"}
    assert channel.num_bytes(tree) == sum(x.nbytes for x in message.values()) == 24 + 8 + 4
    assert channel.num_bytes(jax.eval_shape(lambda: tree)) == 36
    restored = channel.unpack(message)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
