"""Products of matrices: small ones blocked for registers, large ones by the BLAS that PyTorch has in it.

A small product computes a block of rows by a few vectors of columns at a time, its sums in registers.  That needs one
operand whose columns (or rows) lie next to each other; where neither is so, one is copied, once for all that read it.
Vectors are as wide as the processor's, and every sum has one order, so that equal calls give equal bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .elements import BYTES, MEMORY_TYPES, Buffer, Read
from .writing import Call

LARGE = 64**3  # multiplications from which on BLAS, which copies its operands, is faster
THIN = 16  # terms of a sum up to which it is not, as what it writes takes longer


@dataclass(frozen=True, eq=False, slots=True)
class Product:
    """c[n] = start[n] + a[n] @ b[n], for each n.

    a, b, c, start: buffers, with layouts over (n, row, column).
    way: how it is computed: in "columns", which lie next to each other in b; in "dots"; by "blas".
    """

    a: Read
    b: Read
    c: Read
    start: Read | None = None
    way: str = "columns"

    def read_buffers(self) -> tuple[Buffer, ...]:
        """Every buffer that is read."""
        return (self.a.buffer, self.b.buffer, *(() if self.start is None else (self.start.buffer,)))

    def written_buffers(self) -> tuple[Buffer, ...]:
        """The buffer that is written."""
        return (self.c.buffer,)

    @property
    def extents(self) -> tuple[int, int, int, int]:
        """How many products, rows, columns, and terms of each sum."""
        count, rows, columns = self.c.layout.shape
        return count, rows, columns, self.a.layout.shape[2]

    def transposed(self) -> "Product":
        """The same product, its rows named columns."""
        start = None if self.start is None else _turned(self.start)
        return Product(_turned(self.b), _turned(self.a), _turned(self.c), start)


def _turned(read: Read) -> Read:
    return replace(read, layout=read.layout.permute((0, 2, 1)))


def is_large(product: Product) -> bool:
    """Whether BLAS computes it."""
    _, rows, columns, terms = product.extents
    return rows * columns * terms >= LARGE and terms > THIN


@cache
def vector_bytes() -> int:
    """The width of the vectors that the processor computes with."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return 16
    return 64 if " avx512f" in told else 32 if " avx2" in told else 16


def _has_unit(read: Read, dim: int) -> bool:
    return read.layout.shape[dim] == 1 or read.layout.strides[dim] == 1


def oriented(product: Product, often: bool) -> Product:
    """The product or its transposition, and how it is computed; b may have to be copied first, for its columns.

    often: whether its operands are read by many products, so that a copy pays.
    """
    _, rows, columns, terms = product.extents
    straight, turned = _has_unit(product.b, 2), _has_unit(product.a, 1)
    wide = vector_bytes() // BYTES[product.c.dtype]
    if straight and (columns >= min(wide, rows) or not turned) and (columns > 1 or not _is_dot(product)):
        return product
    if turned and rows > 1:
        return product.transposed()
    few = 32 if terms >= 8 * wide else 8
    if _is_dot(product) and min(rows, columns) < few and not often:
        return replace(product, way="dots")
    return product if columns >= rows else product.transposed()


def has_columns(product: Product) -> bool:
    """Whether the columns of b lie next to each other."""
    return _has_unit(product.b, 2)


def _is_dot(product: Product) -> bool:
    return _has_unit(product.a, 2) and _has_unit(product.b, 1)


# ---------------------------------------------------------------- text

# A product and a sum in one instruction, rounded once: nowhere else than in sums of products.
_CONTRACTED = 'static __attribute__((noinline, optimize("fp-contract=fast")))'
BYTES_OF = {kind: BYTES[dtype] for dtype, kind in MEMORY_TYPES.items()}


@dataclass(frozen=True, slots=True)
class _Strides:
    """How far apart rows and columns of each operand are."""

    a: tuple[int, int]
    b: tuple[int, int]
    c: tuple[int, int]
    start: tuple[int, int]


def product_call(product: Product) -> Call:
    """A small product."""
    count, rows, columns, terms = product.extents
    kind = MEMORY_TYPES[product.c.dtype]
    operands = [product.a, product.b, *([] if product.start is None else [product.start]), product.c]
    start = product.c if product.start is None else product.start
    strides = _Strides(*(r.layout.strides[1:] for r in (product.a, product.b, product.c, start)))  # type: ignore[arg-type]
    names = ["a", "b", *([] if product.start is None else ["s"]), "c"]
    declared = ", ".join(f"{'const ' if name != 'c' else ''}{kind} *restrict {name}" for name in names)
    wide = vector_bytes() // BYTES[product.c.dtype]
    writer = _Writer(rows, columns, terms, kind, strides, product.start is not None, wide)
    lines = writer.dots() if product.way == "dots" else writer.panels()
    text = f"{_types(product.c.dtype)}{_CONTRACTED} void NAME({declared}) {{\n"
    text += "\n".join(f"  {line}" for line in lines) + "\n}\n"
    steps = tuple(r.layout.strides[0] for r in operands)
    return Call(text, tuple((r.buffer, r.layout.offset) for r in operands), (count, steps))


def _types(dtype: str) -> str:
    """Vectors of each width, that may lie anywhere."""
    kind, size = MEMORY_TYPES[dtype], BYTES[dtype]
    lines = [f"#ifndef VECTORS_OF_{kind}", f"#define VECTORS_OF_{kind}"]
    lanes = vector_bytes() // size
    while lanes > 1:
        place = f"__attribute__((vector_size({lanes * size}), aligned({size}), may_alias))"
        lines.append(f"typedef {kind} {kind}_{lanes} {place};")
        lanes //= 2
    return "\n".join([*lines, "#endif", ""])


@dataclass
class _Writer:
    """Writes one product."""

    rows: int
    columns: int
    terms: int
    kind: str
    strides: _Strides
    has_start: bool
    wide: int

    def panels(self) -> list[str]:
        """Block after block of rows; in each, panel after panel of columns."""
        most = 8 if self.wide * BYTES_OF[self.kind] >= 64 else 4
        whole = self.rows // most * most
        lines: list[str] = []
        if whole:
            lines += [f"for (int64_t i = 0; i < {whole}; i += {most}) {{", *self._row_of_blocks("i", most), "}"]
        if self.rows > whole:
            lines += ["{", *self._row_of_blocks(str(whole), self.rows - whole), "}"]
        return lines

    def _row_of_blocks(self, row: str, count: int) -> list[str]:
        pair = 2 * self.wide
        whole = self.columns // pair * pair
        lines: list[str] = []
        if whole:
            lines += [
                f"for (int64_t j = 0; j < {whole}; j += {pair}) {{",
                *self._block(row, count, "j", 2, self.wide),
                "}",
            ]
        for column, lanes in self._remaining_columns(whole):
            lines += ["{", *self._block(row, count, str(column), 1, lanes), "}"]
        return [f"  {line}" for line in lines]

    def _remaining_columns(self, column: int) -> list[tuple[int, int]]:
        """First column and lanes of each narrow panel; one that overlaps its neighbour saves several narrower ones."""
        panels: list[tuple[int, int]] = []
        lanes = self.wide
        while column < self.columns:
            left = self.columns - column
            if self.columns >= self.wide and self.wide > left and left not in (1, 2, 4):
                return [*panels, (self.columns - self.wide, self.wide)]
            while lanes > left:
                lanes //= 2
            panels.append((column, lanes))
            column += lanes
        return panels

    def _vector(self, lanes: int) -> str:
        return self.kind if lanes == 1 else f"{self.kind}_{lanes}"

    def _block(self, row: str, count: int, column: str, vectors: int, lanes: int) -> list[str]:
        """One block: sums that stay in registers, over all terms."""
        vector, sums = self._vector(lanes), [(r, v) for r in range(count) for v in range(vectors)]
        lines = [f"{vector} {', '.join(f's{r}_{v} = {{0}}' if lanes > 1 else f's{r}_{v} = 0' for r, v in sums)};"]
        lines.append(f"for (int64_t k = 0; k < {self.terms}; k++) {{")
        step_k, (row_step, a_step) = self.strides.b[0], self.strides.a
        for v in range(vectors):
            lines.append(f"  const {vector} b{v} = {self._load('b', f'k * {step_k} + {column} + {v * lanes}', lanes)};")
        for r in range(count):
            lines.append(f"  {{ const {self.kind} x = a[({row} + {r}) * {row_step} + k * {a_step}];")
            lines.append("    " + " ".join(f"s{r}_{v} += x * b{v};" for v in range(vectors)) + " }")
        lines.append("}")
        for r, v in sums:
            lines += self._finish(f"s{r}_{v}", f"({row} + {r})", f"{column} + {v * lanes}", lanes)
        return lines

    def _load(self, name: str, index: str, lanes: int) -> str:
        return f"{name}[{index}]" if lanes == 1 else f"*(const {self._vector(lanes)} *)({name} + {index})"

    def _finish(self, total: str, row: str, column: str, lanes: int) -> list[str]:
        """Add what the sums start from, and write them."""
        (row_step, step), (start_row, start_step) = self.strides.c, self.strides.start
        if (step == 1 or lanes == 1) and (start_step == 1 or lanes == 1 or not self.has_start):
            index, origin = (
                f"{row} * {row_step} + ({column}) * {step}",
                f"{row} * {start_row} + ({column}) * {start_step}",
            )
            place = f"c[{index}]" if lanes == 1 else f"*({self._vector(lanes)} *)(c + {index})"
            value = f"{self._load('s', origin, lanes)} + {total}" if self.has_start else total
            return [f"{place} = {value};"]
        lines = []
        for lane in range(lanes):
            value = f"{total}[{lane}]"
            if self.has_start:
                value = f"s[{row} * {start_row} + ({column} + {lane}) * {start_step}] + {value}"
            lines.append(f"c[{row} * {row_step} + ({column} + {lane}) * {step}] = {value};")
        return lines

    def dots(self) -> list[str]:
        """One result after the other, each summed in the lanes of a vector; a few together share what they read."""
        lines = []
        most = 4
        for first, count, looped in (
            (0, most, self.columns // most),
            (self.columns // most * most, self.columns % most, 1),
        ):
            if not count or not looped:
                continue
            lines.append(f"for (int64_t i = 0; i < {self.rows}; i++) {{")
            lines.append(f"  for (int64_t j = {first}; j < {first + count * looped}; j += {count}) {{")
            lines += [f"    {line}" for line in self._dot_block(count)]
            lines += ["  }", "}"]
        return lines

    def _dot_block(self, count: int) -> list[str]:
        vector, (row_step, _), (_, column_step) = self._vector(self.wide), self.strides.a, self.strides.b
        whole = self.terms // self.wide * self.wide
        lines = [f"{self.kind} {', '.join(f't{n} = 0' for n in range(count))};"]
        if whole:
            lines.append(f"{vector} {', '.join(f's{n} = {{0}}' for n in range(count))};")
            lines.append(f"for (int64_t k = 0; k < {whole}; k += {self.wide}) {{")
            lines.append(f"  const {vector} x = {self._load('a', f'i * {row_step} + k', self.wide)};")
            for n in range(count):
                lines.append(f"  s{n} += x * {self._load('b', f'(j + {n}) * {column_step} + k', self.wide)};")
            lines.append("}")
            for n in range(count):
                lines.append(f"t{n} = {_tree([f's{n}[{lane}]' for lane in range(self.wide)])};")
        if whole < self.terms:
            lines.append(f"for (int64_t k = {whole}; k < {self.terms}; k++) {{")
            for n in range(count):
                lines.append(f"  t{n} += a[i * {row_step} + k] * b[(j + {n}) * {column_step} + k];")
            lines.append("}")
        for n in range(count):
            lines += self._finish(f"t{n}", "i", f"j + {n}", 1)
        return lines


def _tree(names: Sequence[str]) -> str:
    """A sum of neighbours' sums."""
    if len(names) == 1:
        return names[0]
    half = len(names) // 2
    return f"({_tree(names[:half])} + {_tree(names[half:])})"


# ---------------------------------------------------------------- BLAS


@dataclass(frozen=True, slots=True)
class LargeProduct:
    """A product as BLAS is asked for it: column by column, so that c is named cᵀ.

    letters: whether each operand is transposed; steps: how far apart its columns are; swapped: whether a and b are.
    """

    product: Product
    letters: str
    steps: tuple[int, int, int]


def blas_form(product: Product) -> LargeProduct | None:
    """How BLAS is asked for a product; None where rows and columns of an operand are both apart."""
    if not _has_unit(product.c, 2):
        if not _has_unit(product.c, 1):
            return None
        product = product.transposed()
    found = []
    for read in (product.b, product.a):
        _, rows, columns = read.layout.shape
        row_step, column_step = read.layout.strides[1:]
        if (column_step == 1 or columns == 1) and (row_step >= columns or rows == 1):
            found.append(("N", max(row_step, columns)))
        elif (row_step == 1 or rows == 1) and (column_step >= rows or columns == 1):
            found.append(("T", max(column_step, rows)))
        else:
            return None
    _, rows, columns = product.c.layout.shape
    step = max(product.c.layout.strides[1], columns)
    if product.c.layout.strides[1] < columns and rows > 1:
        return None
    return LargeProduct(product, found[0][0] + found[1][0], (found[0][1], found[1][1], step))


def blas_call(product: Product) -> Call:
    """A product by BLAS; it starts from what is in c where it starts from anything."""
    form = blas_form(product)
    assert form is not None
    product = form.product
    count, rows, columns, terms = product.extents
    kind = MEMORY_TYPES[product.c.dtype]
    beta = 0 if product.start is None else 1
    lines = [
        f"const int m = {columns}, n = {rows}, k = {terms};",
        f"const int l = {form.steps[0]}, o = {form.steps[1]}, q = {form.steps[2]};",
        f"const {kind} alpha = 1, beta = {beta};",
        f'f("{form.letters[0]}", "{form.letters[1]}", &m, &n, &k, &alpha, b, &l, a, &o, &beta, c, &q);',
    ]
    head = f"static void NAME(gemm f, const {kind} *a, const {kind} *b, {kind} *c)"
    text = head + " {\n" + "\n".join(f"  {line}" for line in lines) + "\n}\n"
    operands = (product.a, product.b, product.c)
    steps = tuple(r.layout.strides[0] for r in operands)
    return Call(text, tuple((r.buffer, r.layout.offset) for r in operands), (count, steps), f"gemm_{kind}")
