"""The shapes that tests and benchmarks share."""

from typing import NamedTuple


class ArgSpec(NamedTuple):
    """B tuples of one anchor and k others, width d."""

    batch: int
    k: int
    d: int

    @property
    def name(self) -> str:
        return f"B{self.batch}_k{self.k}_d{self.d}"


# Small enough for a materialised reference in float64; no dimension a multiple of anything.
TEST_SPECS = (
    ArgSpec(1, 1, 3),
    ArgSpec(5, 2, 64),
    ArgSpec(37, 3, 48),
    ArgSpec(9, 8, 40),
)

# The project's own sizes (d = 64, small batches) and the large-batch alignment of encoders.
BENCH_SPECS = (
    ArgSpec(256, 3, 64),
    ArgSpec(512, 3, 512),
    ArgSpec(1024, 3, 512),
    ArgSpec(2048, 3, 512),
    ArgSpec(1024, 2, 512),
    ArgSpec(2048, 2, 512),
)

# Compiled ahead of time for accelerators.
AOT_SPECS = (
    ArgSpec(1000, 3, 64),
    ArgSpec(16384, 3, 512),
    ArgSpec(32768, 3, 512),
    ArgSpec(65536, 3, 512),
)
