"""What a compiled program sends between chips, read from its optimised HLO text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16,
        "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64,
        "f64": 64, "c64": 64}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
         "ragged-all-to-all", "collective-broadcast")

_COMPUTATION = re.compile(r"^\s*(ENTRY\s+)?%?([\w.\-]+)\s+\(.*->.*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"\s(?:{'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|true_computation|"
                     r"false_computation|called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.

    Attributes:
      kind: of :data:`KINDS`.
      bytes: of its result.
      group: chips that take part together.
      times: executions in one run of the program; a loop whose length is an argument counts once.
      what: the source operation, as the compiler names it.
    """

    kind: str
    bytes: int
    group: int
    times: int
    what: str

    @property
    def sent(self) -> float:
        """Bytes that a chip sends per execution in a ring (Thakur et al., 2005)."""
        share = (self.group - 1) / self.group if self.group else 1.0
        if self.kind == "all-reduce":
            return 2 * self.bytes * share
        if self.kind == "reduce-scatter":
            return float(self.bytes * max(self.group - 1, 0))
        return self.bytes * (1.0 if self.kind == "collective-permute" else share)


def collectives(text: str) -> list[Collective]:
    """Every collective of a program, as often as loops of known length execute it."""
    bodies, entry = _computations(text)
    times: dict[str, int] = {}

    def visit(name: str, factor: int) -> None:
        times[name] = times.get(name, 0) + factor
        for line in bodies.get(name, ()):
            inner = factor * (_trips(line, bodies) if " while(" in line else 1)
            for called in _called(line):
                visit(called, inner)

    visit(entry, 1)
    found: dict[str, Collective] = {}
    for name, lines in bodies.items():
        for i, line in enumerate(lines):
            if name in times and (parsed := _parse(line, times[name])):
                # A TPU overlaps a collective with products piece by piece: the pieces are written
                # out one by one, each with the whole's shape and channel.
                channel = re.search(r"channel_id=(\d+)", line)
                key = channel[1] if channel else f"{name} {i}"
                known = found.get(key)
                if known is None or (parsed.bytes, parsed.times) > (known.bytes, known.times):
                    found[key] = parsed
    return list(found.values())


def sent_bytes(found: list[Collective]) -> float:
    """Bytes that a chip sends in one run of the program."""
    return float(sum(c.sent * c.times for c in found if c.group != 1))


def largest_gather(found: list[Collective]) -> Collective | None:
    """The all-gather with the largest result, or None."""
    gathers = [c for c in found if c.kind == "all-gather"]
    return max(gathers, key=lambda c: c.bytes) if gathers else None


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the entry's name."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}") or line.strip() == "}":
            current = None
        elif current is not None:
            current.append(line)
    if not entry:
        raise ValueError("no ENTRY computation: not an HLO text")
    return bodies, entry


def _called(line: str) -> Iterator[str]:
    for several, one in _CALLED.findall(line):
        yield from (name.strip().lstrip("%") for name in (several or one).split(","))


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Executions of a loop's body; 1 where the length is known at run time only."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = bodies.get(condition[1], []) if condition else []
    constants = re.findall(r"s32\[\][^=]*constant\((\d+)\)", "\n".join(lines))
    compares = any("compare(" in x and "direction=LT" in x for x in lines)
    return int(constants[0]) if len(constants) == 1 and compares else 1


def _parse(line: str, times: int) -> Collective | None:
    match = _COLLECTIVE.search(line)
    if not match or " = " not in line:
        return None
    operation = match[0].strip(" (")
    kind = operation.removesuffix("-start")
    sizes = [_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(
        line[line.index(" = "):match.start() + 1]) if dtype in BITS]
    # A started operation's type is (operands, results, …): its largest part is gathered or sent.
    size = max(sizes, default=0) if operation.endswith("-start") else sum(sizes)
    name = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, size, _group(line), times, name[1] if name else "")


def _bytes(dtype: str, dims: str) -> int:
    size = BITS[dtype]
    for dim in filter(None, dims.split(",")):
        size *= int(dim)
    return size // 8


def _group(line: str) -> int:
    """Chips in a group; 0 where the text does not say (all of them)."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    return 2 if "source_target_pairs=" in line else 0
