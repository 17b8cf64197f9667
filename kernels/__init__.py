"""Kernels of the project, usable without the rest of it: JAX and NumPy are all they import.

Each operation is a folder: `api.py` (public), `reference.py` (the equation, naively), `xla.py`,
`pallas_tpu.py` / `pallas_gpu.py` where a kernel pays, and `arg_specs.py`, the shapes that the
tests and the benchmarks share.
"""
