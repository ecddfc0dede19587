"""Scalar expressions as a function in C: once, or for every sample of a batch.

Samples are taken in tiles, as many as a vector has numbers: the entries of a tile's samples are brought together (a
structure of arrays on the stack), everything is computed in vectors, and results are put back where they belong.  The
last tile is filled up with copies of the last sample, so that a sample's bits depend neither on its place nor on their
number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .expansion import Expansion
from .operations import C_TYPES, declarations, expression, is_call
from .pages import LARGE_PAGES
from .scalars import Scalar
from .streaming import PUT_LINES
from .tiles import (
    BLOCK,
    SIZES,
    blocks,
    gathering_lines,
    is_gathered,
    load_lines,
    store_lines,
    tile_width,
)
from .transposition import transposition


@dataclass(frozen=True)
class Source:
    """A program in C.

    text: the whole file.
    name: the function's name.
    inputs: the numbers of the tensors that it reads, in the order of its arguments.
    operations: how many operations it has.
    """

    text: str
    name: str
    inputs: tuple[int, ...]
    operations: int


def write(expansion: Expansion, name: str, *, vectors: bool) -> Source:
    """The C source of an expansion.

    vectors: whether the C library has functions of vectors.
    """
    ordered = expansion.operations()
    used = sorted({scalar.payload[0] for scalar in ordered if scalar.op == "input"})
    writer = _Batched(expansion, ordered, used) if expansion.samples else _Single(expansion, ordered, used)
    parameters = [f"const {C_TYPES[expansion.inputs[k].dtype]} *{_input(k)}" for k in used]
    parameters += [f"{C_TYPES[a.dtype]} *restrict output_{k}" for k, a in enumerate(expansion.outputs)]
    parameters += ["int64_t samples"] if expansion.samples else []
    head = [
        "#include <stdint.h>",
        "",
        *writer.helpers(),
        *declarations({(x.op, x.dtype) for x in ordered if is_call(x)}, vectors),
        f"void {name}({', '.join(parameters)})",
        "{",
    ]
    return Source("\n".join([*head, *writer.lines(), "}", ""]), name, tuple(used), len(ordered))


def _input(number: int) -> str:
    return f"input_{number}"


class _Writer:
    """What a function's body is made of."""

    def __init__(self, expansion: Expansion, ordered: Sequence[Scalar], used: Sequence[int]) -> None:
        self.expansion, self.ordered, self.used = expansion, ordered, used

    def helpers(self) -> list[str]:
        """Functions that the body calls."""
        return []

    def operand(self, x: Scalar) -> str:
        """How an expression is referred to."""
        if x.op in ("constant", "zero"):
            return expression(x, ())
        return f"t{x.serial}"

    def statement(self, x: Scalar) -> str:
        """The line that computes an expression."""
        text = self.read(x) if x.op == "input" else expression(x, [self.operand(o) for o in x.operands])
        return f"const {C_TYPES[x.dtype]} t{x.serial} = {text};"

    def read(self, x: Scalar) -> str:
        """An entry of an input."""
        number, (_, position) = x.payload
        return f"{_input(number)}[{position}]"


class _Single(_Writer):
    """One straight line; a result is stored as soon as it is known."""

    def lines(self) -> Iterator[str]:
        """The body of the function."""
        done: set[Scalar] = set()
        following = iter(self.ordered)
        for number, array in enumerate(self.expansion.outputs):
            for position, entry in enumerate(array.entries.flat):
                while entry not in done:
                    scalar = next(following)
                    done.add(scalar)
                    if scalar.op not in ("constant", "zero"):
                        yield f"  {self.statement(scalar)}"
                yield f"  output_{number}[{position}] = {self.operand(entry)};"


class _Batched(_Writer):
    """A loop over tiles of samples."""

    def __init__(self, expansion: Expansion, ordered: Sequence[Scalar], used: Sequence[int]) -> None:
        super().__init__(expansion, ordered, used)
        self.read_entries = self._read_entries()
        self.gathered = [k for k, array in enumerate(expansion.outputs) if is_gathered(array)]
        read = [expansion.inputs[k] for k in self.read_entries]
        self.width = tile_width([array.dtype for array in (*read, *expansion.outputs)])
        self.is_paired = self.width == BLOCK and _waits_for_functions(ordered)
        self.width *= 2 if self.is_paired else 1

    def helpers(self) -> list[str]:
        """The request for large pages, and what moves blocks and lines where there are any."""
        arrays = [self.expansion.inputs[k] for k in self.read_entries] + [*self.expansion.outputs]
        kinds = sorted({C_TYPES[a.dtype] for a in arrays if blocks(a)})
        guard = ["#ifndef __has_builtin", "#define __has_builtin(x) 0", "#endif", ""]
        lines = [PUT_LINES] if self.gathered else []
        return [LARGE_PAGES, *lines, *(guard if kinds else []), *map(transposition, kinds)]

    def lines(self) -> Iterator[str]:
        """The body of the function."""
        yield f"  enum {{ TILE = {self.width} }};"
        yield from self._pages()
        yield from self._tiles()
        fixed = [x for x in self.ordered if not x.varies and x.op not in ("constant", "zero")]
        yield from (f"  {self.statement(x)}" for x in fixed)
        yield from self._what_is_fixed()
        yield "  for (int64_t first = 0; first < samples; first += TILE) {"
        yield "    const int64_t left = samples - first < TILE ? samples - first : TILE;"
        for number, entries in self.read_entries.items():
            yield from load_lines(number, self.expansion.inputs[number], entries)
        yield from self._loop()
        for number, array in enumerate(self.expansion.outputs):
            yield from store_lines(number, array, self.width)
        yield "  }"
        yield from (f"  finish_streams(streamed_{number});" for number in self.gathered)

    def read(self, x: Scalar) -> str:
        """An entry of the sample; or of a tensor that all samples share."""
        number, (before, behind) = x.payload
        if not x.varies:
            return f"{_input(number)}[{behind}]"
        return f"tile_{number}[{self.read_entries[number].index((before, behind))}][lane]"

    def _read_entries(self) -> dict[int, list[tuple[int, int]]]:
        """For each tensor with samples those entries of one that are read, in the order of memory."""
        found: dict[int, list[tuple[int, int]]] = {}
        for x in self.ordered:
            if x.op == "input" and x.varies:
                found.setdefault(x.payload[0], []).append(x.payload[1])
        for number, entries in found.items():
            array = self.expansion.inputs[number]
            if blocks(array) and 2 * len(entries) >= array.entries.size:
                before, _, width = array.layout()
                found[number] = [(p, q) for p in range(before) for q in range(width)]
        return {number: sorted(entries) for number, entries in found.items()}

    def _pages(self) -> Iterator[str]:
        """Ask for large pages where results are new memory; what has no samples is small."""
        for number, array in enumerate(self.expansion.outputs):
            if array.batch is not None:
                row = array.entries.size * SIZES[array.dtype]
                yield f"  use_large_pages(output_{number}, samples * {row});"

    def _tiles(self) -> Iterator[str]:
        for number, entries in self.read_entries.items():
            yield self._tile(f"tile_{number}", self.expansion.inputs[number].dtype, len(entries))
        for number, array in enumerate(self.expansion.outputs):
            yield self._tile(f"result_{number}", array.dtype, array.entries.size)
        for number in self.gathered:
            yield from gathering_lines(number, self.expansion.outputs[number], self.width)

    @staticmethod
    def _tile(name: str, dtype: str, rows: int) -> str:
        return f"  {C_TYPES[dtype]} {name}[{max(rows, 8)}][TILE] __attribute__((aligned(64)));"

    def _results(self, varies: bool) -> Iterator[tuple[int, int, Scalar]]:
        for number, array in enumerate(self.expansion.outputs):
            for row, entry in enumerate(array.entries.flat):
                if entry.varies == varies:
                    yield number, row, entry

    def _what_is_fixed(self) -> Iterator[str]:
        """Entries of results that are the same for all samples, written once to wherever results lie on their way."""
        fixed = [*self._results(varies=False)]
        if fixed:
            yield "  for (int lane = 0; lane < TILE; ++lane) {"
            for number, row, entry in fixed:
                to = [f"result_{number}[{row}][lane]"]
                width = self.expansion.outputs[number].entries.size
                to += [f"rows_{number}[lane * {width} + {row}]"] if number in self.gathered else []
                yield f"    {' = '.join(to)} = {self.operand(entry)};"
            yield "  }"

    def _loop(self) -> Iterator[str]:
        if self.is_paired:
            yield "    int32_t marks[TILE] __attribute__((aligned(64)));"
        yield "    #pragma omp simd"
        yield "    for (int lane = 0; lane < TILE; ++lane) {"
        if self.is_paired:
            yield "      marks[lane] = lane;"
        waiting: dict[Scalar, list[str]] = {}
        for number, row, entry in self._results(varies=True):
            waiting.setdefault(entry, []).append(f"      result_{number}[{row}][lane] = {self.operand(entry)};")
        for x in self.ordered:
            if x.varies:
                yield f"      {self.statement(x)}"
                yield from waiting.get(x, ())
        yield "    }"
        if self.is_paired:
            yield '    __asm__ volatile("" : : "r"(marks) : "memory");'


def _waits_for_functions(ordered: Sequence[Scalar]) -> bool:
    """Whether functions take so much of the time that two vectors are better taken together.

    A function is a long chain of operations, each of which waits for the one before; those of two vectors need not wait
    for each other.  The compiler takes two vectors of doubles at a time where the loop has a number of half their width
    as well: hence the marks.
    """
    operations = [x for x in ordered if x.varies and x.op != "input"]
    return 16 * sum(map(is_call, operations)) >= len(operations) > 0
