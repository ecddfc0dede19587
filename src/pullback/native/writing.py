"""C text of loop nests and reductions.

Axes over which all that is read or written continues become one; the innermost loop runs where results lie next to each
other, and is vectorised.  A sum is taken in as many parts as a vector has lanes, so that it is the same at every call.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .elements import FLOATS, MEMORY_TYPES, Buffer, Computed, Entry, Number, Position, Read, reads
from .layouts import Layout
from .nests import Nest, Reduction
from .operations import FUNCTIONS, declarations, own_name

PARTS = 64  # columns that are summed side by side


@dataclass(frozen=True, slots=True)
class Call:
    """A function of C, and what it is called with.

    text: the function, with `NAME` for its name.
    arguments: a buffer, and how many elements behind its first one the pointer stands.
    batch: how often it is called, and by how many elements each pointer moves on each time.
    library: the function of a library that it is given first; "" for none.
    is_checked: whether it is given, last, a pointer to what it sets where a condition does not hold.
    """

    text: str
    arguments: tuple[tuple[Buffer, int], ...]
    batch: tuple[int, tuple[int, ...]] = (1, ())
    library: str = ""
    is_checked: bool = False


@dataclass
class Pointers:
    """The parameters of a function: one for each buffer and offset."""

    names: dict[tuple[Buffer, int], str] = field(default_factory=dict)
    written: set[Buffer] = field(default_factory=set)

    def name(self, buffer: Buffer, offset: int) -> str:
        """The parameter that points there."""
        return self.names.setdefault((buffer, offset), f"p{len(self.names)}")

    def declarations(self) -> str:
        """All parameters, as C declares them."""
        return ", ".join(
            f"{'' if buffer in self.written else 'const '}{MEMORY_TYPES[buffer.dtype]} *restrict {name}"
            for (buffer, _), name in self.names.items()
        )


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop: how many positions, and which axes of the domain it steps along, outermost first."""

    extent: int
    members: tuple[int, ...]


def merged_axes(shape: Sequence[int], order: Sequence[int], layouts: Sequence[Layout]) -> list[Axis]:
    """The axes in this order without those of one position, neighbours joined where every layout continues."""
    axes: list[Axis] = []
    for dim in order:
        if shape[dim] == 1:
            continue
        if axes and all(_continues(layout, axes[-1].members[-1], dim, shape[dim]) for layout in layouts):
            axes[-1] = Axis(axes[-1].extent * shape[dim], (*axes[-1].members, dim))
        else:
            axes.append(Axis(shape[dim], (dim,)))
    return axes


def _continues(layout: Layout, outer: int, inner: int, extent: int) -> bool:
    return layout.strides[outer] == layout.strides[inner] * extent


def place(layout: Layout, axes: Sequence[Axis], variables: Sequence[str]) -> str:
    """The index of an element as a sum of loop variables."""
    terms = []
    for axis, variable in zip(axes, variables, strict=True):
        stride = layout.strides[axis.members[-1]]
        if stride:
            terms.append(variable if stride == 1 else f"{variable} * {stride}")
    return " + ".join(terms) or "0"


class Body:
    """The statements inside a loop: each entry once, in the order in which they are needed."""

    def __init__(self, pointers: Pointers, axes: Sequence[Axis], variables: Sequence[str]) -> None:
        self.pointers, self.axes, self.variables = pointers, axes, variables
        self.lines: list[str] = []
        self.is_checked = False
        self.known: dict[object, str] = {}

    def value(self, entry: Entry) -> str:
        """The name of an entry's value; appends what computes it."""
        if isinstance(entry, Number):
            return entry.text
        key = entry if isinstance(entry, Read) else id(entry)
        if key not in self.known:
            self.known[key] = self._named(self._text(entry), entry.dtype)
        return self.known[key]

    def _text(self, entry: Entry) -> str:
        if isinstance(entry, Read):
            index = place(entry.layout, self.axes, self.variables)
            loaded = f"{self.pointers.name(entry.buffer, entry.layout.offset)}[{index}]"
            return f"{loaded} != 0" if entry.dtype == "bool" else loaded
        if isinstance(entry, Position):
            return f"{place(entry.layout, self.axes, self.variables)} + {entry.layout.offset}"
        assert isinstance(entry, Computed)
        operands = [self.value(operand) for operand in entry.operands]
        if entry.condition:
            self.is_checked = True
            self.lines.append(f"bad |= !({entry.condition.format(*operands)});")
        return entry.text.format(*operands)

    def _named(self, text: str, dtype: str) -> str:
        key = (text, dtype)
        if key not in self.known:
            self.known[key] = f"t{len(self.known)}"
            kind = "_Bool" if dtype == "bool" else MEMORY_TYPES[dtype]
            self.lines.append(f"const {kind} {self.known[key]} = {text};")
        return self.known[key]

    def store(self, buffer: Buffer, layout: Layout, value: str) -> None:
        """Write a value to its place."""
        self.pointers.written.add(buffer)
        index = place(layout, self.axes, self.variables)
        self.lines.append(f"{self.pointers.name(buffer, layout.offset)}[{index}] = {value};")


def positions(entry: Entry) -> list[Layout]:
    """The layouts of an entry's reads and positions."""
    found = [read.layout for read in reads(entry)]
    waiting = [entry]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Position):
            found.append(one.layout)
        elif isinstance(one, Computed) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.operands)
    return found


def _loops(axes: Sequence[Axis], variables: Sequence[str], inner: Sequence[str], vectorised: bool = True) -> list[str]:
    """Lines inside loops, the innermost of them vectorised."""
    lines: list[str] = []
    for depth, (axis, variable) in enumerate(zip(axes, variables, strict=True)):
        if vectorised and depth == len(axes) - 1:
            lines.append("  " * depth + "#pragma omp simd")
        head = f"for (int64_t {variable} = 0; {variable} < {axis.extent}; {variable}++) {{"
        lines.append("  " * depth + head)
    lines += ["  " * len(axes) + line for line in inner]
    lines += ["  " * depth + "}" for depth in range(len(axes) - 1, -1, -1)]
    return lines


def function(pointers: Pointers, lines: Sequence[str], is_checked: bool = False) -> Call:
    """A function of these lines, and its call."""
    body = "\n".join(f"  {line}" for line in lines)
    parameters = f"{pointers.declarations()}{', int64_t *status' if is_checked else ''}"
    text = f"static __attribute__((noinline)) void NAME({parameters}) {{\n{body}\n}}\n"
    return Call(text, tuple(pointers.names), is_checked=is_checked)


def nest_call(nest: Nest) -> Call:
    """A loop nest."""
    layouts = [store.layout for store in nest.stores]
    layouts += [layout for store in nest.stores for layout in positions(store.entry)]
    order = sorted(range(len(nest.domain)), key=lambda d: -abs(nest.stores[0].layout.strides[d]))
    axes = merged_axes(nest.domain, order, layouts)
    variables = [f"i{k}" for k in range(len(axes))]
    pointers = Pointers()
    body = Body(pointers, axes, variables)
    for store in nest.stores:
        body.store(store.buffer, store.layout, body.value(store.entry))
    if not body.is_checked:
        return function(pointers, _loops(axes, variables, body.lines))
    loops = [line.replace("omp simd", "omp simd reduction(|:bad)") for line in _loops(axes, variables, body.lines)]
    return function(pointers, ["int64_t bad = 0;", *loops, "if (bad) *status = 1;"], is_checked=True)


# ---------------------------------------------------------------- reductions

_START = {"sum": "0", "max": "-__builtin_inf()", "min": "__builtin_inf()"}


def reduction_call(reduction: Reduction) -> Call:
    """A reduction: along neighbouring elements in lanes, or of neighbouring columns side by side."""
    kept = [d for d in range(len(reduction.domain)) if d not in reduction.axes]
    strides = dict(zip(kept, reduction.layout.strides, strict=True))
    target = Layout(
        reduction.domain, tuple(strides.get(d, 0) for d in range(len(reduction.domain))), reduction.layout.offset
    )
    found = positions(reduction.entry)
    main = max(found, key=lambda layout: layout.size * sum(map(bool, layout.strides)), default=target)
    outer = merged_axes(reduction.domain, sorted(kept, key=lambda d: -abs(target.strides[d])), [target, *found])
    inner = merged_axes(reduction.domain, sorted(reduction.axes, key=lambda d: -abs(main.strides[d])), found)
    if inner and outer and _step(main, outer[-1]) == 1 and _step(main, inner[-1]) != 1:
        return _columns(reduction, target, outer, inner)
    return _lanes(reduction, target, outer, inner)


def _step(layout: Layout, axis: Axis) -> int:
    return layout.strides[axis.members[-1]]


def _wide(reduction: Reduction) -> str:
    """The type that a sum is taken in."""
    return MEMORY_TYPES[
        "float64" if reduction.kind == "sum" and reduction.entry.dtype == "float32" else reduction.buffer.dtype
    ]


def _combined(reduction: Reduction, total: str, nan: str, value: str) -> list[str]:
    """What takes one more value into account."""
    if reduction.kind == "sum":
        return [f"{total} += {value};"]
    sign = ">" if reduction.kind == "max" else "<"
    return [f"{total} = {value} {sign} {total} ? {value} : {total};", f"{nan} |= {value} != {value};"]


def _result(reduction: Reduction, total: str, nan: str) -> str:
    if reduction.kind != "sum":
        return total if reduction.buffer.dtype not in FLOATS else f'({nan} ? __builtin_nan("") : {total})'
    return total if reduction.divisor == 1 else f"{total} / {reduction.divisor}"


def _lanes(reduction: Reduction, target: Layout, outer: Sequence[Axis], inner: Sequence[Axis]) -> Call:
    """One result after the other, each the sum of as many parts as a vector has lanes."""
    pointers, axes = Pointers(), [*outer, *inner]
    variables = [f"i{k}" for k in range(len(axes))]
    body = Body(pointers, axes, variables)
    combined = _combined(reduction, "s", "nan", body.value(reduction.entry))
    loops = _loops(inner, variables[len(outer) :], [*body.lines, *combined], vectorised=False)
    if inner:
        operator = "+" if reduction.kind == "sum" else reduction.kind
        depth = len(inner) - 1
        loops.insert(depth, f"#pragma omp simd reduction({operator}:s) reduction(|:nan)")
    end = Body(pointers, outer, variables[: len(outer)])
    end.store(reduction.buffer, target, _result(reduction, "s", "nan"))
    start = [f"{_wide(reduction)} s = {_START[reduction.kind]};", "int nan = 0;"]
    return function(pointers, _loops(outer, variables[: len(outer)], [*start, *loops, *end.lines], vectorised=False))


def _columns(reduction: Reduction, target: Layout, outer: Sequence[Axis], inner: Sequence[Axis]) -> Call:
    """Blocks of neighbouring columns: a row of partial results for each, over which all rows are added."""
    last = outer[-1]
    pointers, axes = Pointers(), [*outer, *inner]
    variables = [f"i{k}" for k in range(len(axes))]
    at = [*variables[: len(outer) - 1], "(b + j)", *variables[len(outer) :]]
    body, end = Body(pointers, axes, at), Body(pointers, outer, at[: len(outer)])
    combined = _combined(reduction, "s[j]", "nan[j]", body.value(reduction.entry))
    end.store(reduction.buffer, target, _result(reduction, "s[j]", "nan[j]"))
    width = min(PARTS, last.extent)
    count = f"const int64_t n = {last.extent} - b < {width} ? {last.extent} - b : {width};"
    start = _ranged([f"s[j] = {_START[reduction.kind]};", "nan[j] = 0;"])
    rows = _loops(inner, variables[len(outer) :], _ranged([*body.lines, *combined]), vectorised=False)
    block = [count, f"{_wide(reduction)} s[{width}];", f"int nan[{width}];", *start, *rows, *_ranged(end.lines)]
    blocks = [f"for (int64_t b = 0; b < {last.extent}; b += {width}) {{", *(f"  {line}" for line in block), "}"]
    return function(pointers, _loops(outer[:-1], variables[: len(outer) - 1], blocks, vectorised=False))


def _ranged(lines: Sequence[str]) -> list[str]:
    return ["#pragma omp simd", "for (int64_t j = 0; j < n; j++) {", *(f"  {line}" for line in lines), "}"]


# ---------------------------------------------------------------- the whole file

_GEMM = """typedef void (*gemm)(const char *, const char *, const int *, const int *, const int *, const void *,
  const void *, const int *, const void *, const int *, const void *, void *, const int *);"""
_USED = re.compile(r"\bp_[a-z0-9]+(?=\()")
_NAMES = {own_name(op, dtype): (op, dtype) for op in FUNCTIONS for dtype in FLOATS}


def prelude(texts: Sequence[str], vectors: bool) -> str:
    """What stands ahead of the functions: types, and the functions of the C library that they call.

    vectors: whether the library has them for vectors.
    """
    lines = ["#include <stdint.h>", _GEMM]
    for kind, ending in (("double", ""), ("float", "f")):
        lines.append(f"static inline {kind} pick{ending}(_Bool c, {kind} a, {kind} b) {{ return c ? a : b; }}")
    used = {name for text in texts for name in _USED.findall(text)}
    return "\n".join([*lines, *declarations({_NAMES[name] for name in used}, vectors), ""])
