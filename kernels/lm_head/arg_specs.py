"""The shapes that tests and benchmarks share."""

from typing import NamedTuple


class ArgSpec(NamedTuple):
    """`tokens` hidden states of width d over a vocabulary; the KL's teacher has width teacher_d."""

    tokens: int
    vocabulary: int
    d: int
    teacher_d: int

    @property
    def name(self) -> str:
        return f"N{self.tokens}_V{self.vocabulary}_d{self.d}_t{self.teacher_d}"


TEST_SPECS = (
    ArgSpec(1, 7, 3, 5),
    ArgSpec(13, 101, 24, 17),
    ArgSpec(64, 640, 32, 16),
)

# GPT-2 and GPT-2-large heads.
BENCH_SPECS = (
    ArgSpec(4096, 50257, 768, 1280),
    ArgSpec(4096, 50257, 1280, 768),
)
AOT_SPECS = BENCH_SPECS
