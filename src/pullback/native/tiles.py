"""Tiles of samples in C: how their entries are brought together, and how their results are put where they belong.

A tile has as many samples as a vector has numbers, so that what is computed for it is still in registers or in the
nearest cache.  The results of a tile lie side by side in memory, as whole lines.  Where some are the same for all
samples, or go past the caches, they are first put together in a copy of these lines, in which what is the same for all
samples stands from the beginning; else they are written to where they belong.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from .arrays import Array
from .operations import C_TYPES
from .scalars import FLOATING
from .streaming import LINE

SIZES = {"float64": 8, "float32": 4, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
BLOCK = 8


def tile_width(dtypes: Sequence[str]) -> int:
    """Samples of a tile: as many numbers of the smallest floating dtype as the widest vectors hold."""
    return LINE // min((SIZES[dtype] for dtype in dtypes if dtype in FLOATING), default=8)


def blocks(array: Array) -> list[int]:
    """Where the blocks of eight begin into which a sample's entries are cut; the last two may overlap.

    What has fewer than eight entries is one block, which reaches into the samples behind it: there must be some.
    """
    if array.batch is None or array.dtype not in FLOATING:
        return []
    before, _, width = array.layout()
    if width == 1 or (width < BLOCK and before > 1):
        return []
    return [min(start, max(width - BLOCK, 0)) for start in range(0, width, BLOCK)]


def is_gathered(array: Array) -> bool:
    """Whether the results of a tile may be put together before they are written: they lie side by side."""
    return bool(blocks(array)) and array.layout()[0] == 1


def varying_blocks(array: Array) -> list[int]:
    """As few blocks as hold all entries that are not the same for all samples, if these are not all blocks."""
    starts: list[int] = []
    _, _, width = array.layout()
    for place, entry in enumerate(array.entries.flat):
        if entry.varies and (not starts or place >= starts[-1] + BLOCK):
            starts.append(min(place, max(width - BLOCK, 0)))
    every = blocks(array)
    return starts if len(starts) < len(every) else every


def load_lines(number: int, array: Array, entries: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Bring the entries of a tile's samples together; the last sample stands for those that are missing."""
    before, _, width = array.layout()
    starts = blocks(array) if len(entries) == before * width else []
    yield "    for (int64_t lane = 0; lane < TILE; lane += 8) {"
    for p in range(before if starts else 0):
        yield f"      if (first + lane + {_reach(width)} <= samples) {{" if p == 0 else ""
        for q in starts:
            at = f"input_{number} + {place(p, width, q, 'first + lane')}"
            to = f"&tile_{number}[{p * width + q}][lane]"
            yield f"        transpose_{C_TYPES[array.dtype]}({at}, {width}, {to}, TILE);"
    yield "        continue;\n      }" if starts else ""
    yield "      for (int64_t k = lane; k < lane + 8; ++k) {"
    yield "        const int64_t sample = first + (k < left ? k : left - 1);"
    for row, (p, q) in enumerate(entries):
        yield f"        tile_{number}[{row}][k] = input_{number}[{place(p, width, q)}];"
    yield "      }\n    }"


def gathering_lines(number: int, array: Array, width: int) -> Iterator[str]:
    """The memory in which a tile's results are put together, and whether they go past the caches from there."""
    row = array.entries.size
    yield f"  {C_TYPES[array.dtype]} rows_{number}[{row * width + BLOCK}] __attribute__((aligned({LINE})));"
    yield f"  const int streamed_{number} = streams(output_{number}, samples * {row * SIZES[array.dtype]});"


def store_lines(number: int, array: Array, tile: int) -> Iterator[str]:
    """Put a tile's results where they belong: sample by sample, and within one in the order of memory."""
    before, _, width = array.layout()
    if blocks(array):
        spare = _reach(width) - BLOCK
        yield f"    if (first + TILE + {spare} <= samples) {{" if spare else "    if (left == TILE) {"
        yield from _whole_tile(number, array, tile)
        yield "    } else"
    yield "    for (int64_t sample = first; sample < first + left; ++sample) {"
    for p in range(before):
        at = f"output_{number}[{place(p, width, 'k')}] = result_{number}[{p * width} + k][sample - first]"
        yield f"      for (int k = 0; k < {width}; ++k) {at};"
    yield "    }"


def _whole_tile(number: int, array: Array, tile: int) -> Iterator[str]:
    before, _, width = array.layout()
    kind, starts = C_TYPES[array.dtype], blocks(array)
    if is_gathered(array):
        starts = varying_blocks(array)
        target, rows = f"output_{number} + first * {width}", f"rows_{number}"
        keeps = len(starts) < len(blocks(array))
        yield f"      {kind} *const to_{number} = {rows if keeps else f'streamed_{number} ? {rows} : {target}'};"
    yield "      for (int64_t lane = 0; lane < TILE; lane += 8) {"
    for p, q in product(range(before), starts):
        to = f"output_{number} + {place(p, width, q, 'first + lane')}"
        to = f"to_{number} + lane * {width} + {q}" if is_gathered(array) else to
        yield f"        transpose_{kind}(&result_{number}[{p * width + q}][lane], TILE, {to}, {width});"
    yield "      }"
    if is_gathered(array):
        lines = width * tile * SIZES[array.dtype] // LINE
        condition = "" if keeps else f"if (streamed_{number}) "
        yield f"      {condition}put_lines({target}, {rows}, {lines}, streamed_{number});"


def _reach(width: int) -> int:
    """How many samples there must be from the first of eight on, for them to be moved as blocks."""
    return BLOCK if width >= BLOCK else 2 * BLOCK


def place(before: int, width: int, behind: int | str, sample: str = "sample") -> str:
    """A position in a tensor in C: what stands ahead of the sample's number, the sample's, what stands behind."""
    position = f"({before} * samples + {sample})" if before else f"({sample})"
    return f"{position} * {width} + {behind}" if width > 1 else position
