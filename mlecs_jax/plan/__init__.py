"""A round at full size on paper: every stage compiled ahead of time for hardware that is not here.

``python -m mlecs_jax.plan --config=vast:paper --target=v5e:4x4`` lowers each stage from shapes
alone, asks the target's compiler what it needs, and says what a round costs there.
"""
