"""The shapes that tests and benchmarks share."""

from typing import NamedTuple


class ArgSpec(NamedTuple):
    """`clients` adapters of rank r on one [d, f] weight, `tokens` rows of input each."""

    clients: int
    tokens: int
    d: int
    f: int
    r: int

    @property
    def name(self) -> str:
        return f"C{self.clients}_N{self.tokens}_d{self.d}_f{self.f}_r{self.r}"


TEST_SPECS = (ArgSpec(1, 3, 5, 7, 2), ArgSpec(4, 6, 16, 24, 3), ArgSpec(3, 10, 33, 17, 4))
# A GPT-2 block of width 384, batch 1 x 16 tokens and batch 4 x 64 tokens.
BENCH_SPECS = (ArgSpec(8, 16, 384, 1536, 8), ArgSpec(8, 256, 384, 1536, 8))
AOT_SPECS = (ArgSpec(8, 1024, 1280, 5120, 8),)
