"""Seeded captions whose words are each known to one modality only.

A caption is a sentence with five slots::

    a black dog runs in the garden while a bell rings and they talk about football

Animal, colour, deed and place are seen; the sound is heard; the topic is in the subtitle. A node
that lacks a modality can only guess its slots, so missing modalities cost ROUGE by construction.
"""

from __future__ import annotations

import numpy as np

from mlecs_jax.data.featurise import Featuriser
from mlecs_jax.data.samples import Samples
from mlecs_jax.data.vast import Clip, samples_of
from mlecs_jax.errors import UserError

COLOURS = "black white brown red grey golden".split()
WHO = "dog cat horse bird child woman man robot".split()
DEEDS = "runs jumps sleeps dances eats walks swims waits".split()
PLACES = "garden kitchen street forest office river".split()
SOUNDS = ("a bell rings", "music plays", "rain falls", "a crowd cheers", "an engine roars",
          "someone laughs", "water drips", "thunder rolls")
TOPICS = "football cooking politics travel school gardening history money".split()
_FILLER = "well now look here you know right okay then really".split()


def load(*, seed: int, num_clips: int, featurise: Featuriser) -> Samples:
    """Simulated clips named ``vast``, one video each.

    Args:
      seed: the only source of randomness.
      num_clips: ``n``, at least 40, so that every node gets its parts.

    Raises:
      UserError: too few clips.
    """
    if num_clips < 40:
        raise UserError(f"captions.simulated_clips is {num_clips}; give at least 40")
    rng = np.random.default_rng([seed, 7])
    return samples_of([_clip(rng, i) for i in range(num_clips)], "vast", featurise, "simulated")


def _clip(rng: np.random.Generator, number: int) -> Clip:
    colour, who, deed, place, sound, topic = (
        words[rng.integers(len(words))]
        for words in (COLOURS, WHO, DEEDS, PLACES, SOUNDS, TOPICS))
    speech = [*rng.choice(_FILLER, 4), topic, *rng.choice(_FILLER, 3)]
    return Clip(
        clip=f"clip{number}", video=f"video{number}", corpus="simulated",
        texts=(f"{colour} {who} {deed} {place}", sound, " ".join(speech)),
        caption=f"a {colour} {who} {deed} in the {place} while {sound} and they talk about {topic}")
