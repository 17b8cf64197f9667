"""Answers of a trained node without the training code: NumPy, JAX and the standard library.

An exported predictor is one file that carries these modules with it (:mod:`mlecs_jax.export`), so
nothing here may import anything of the project but ``mlecs_jax.errors``, the featuriser
``mlecs_jax.data.hashed_ngrams`` and one another.
"""
