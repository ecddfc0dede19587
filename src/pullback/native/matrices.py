"""Products of matrices and vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..graph import Node, Value
from .arguments import bound
from .elements import Read
from .layouts import Layout, dense
from .libraries import blas
from .products import LARGE, THIN, Product, blas_form, has_columns, is_large, oriented
from .reductions import is_float
from .state import Rule, Translation

OFTEN = 8  # products that read one operand, from which on it is copied for them


def _product(batch: bool, matrices: tuple[str, str], start: str = "") -> Rule:
    """`mm`, `mv`, `dot` and `bmm` alike: operands with the axes that they lack put in."""

    def rule(state: Translation, node: Node) -> None:
        (result,), arguments = node.results, bound(node)
        left, right = (arguments[name] for name in matrices)
        a, b = state.stored(left), state.stored(right)
        vector_left, vector_right = len(left.shape) == 1, len(right.shape) == 1
        a = Read(a.buffer, _matrix(a.layout, batch, row=vector_left))
        b = Read(b.buffer, _matrix(b.layout, batch, column=vector_right))
        c = Read(
            state.new(result.shape, result.dtype).buffer,
            dense((a.layout.shape[0], a.layout.shape[1], b.layout.shape[2])),
        )
        added = _start(state, arguments[start], result, c.layout.shape) if start else None
        often = max(state.operands[left], state.operands[right]) >= OFTEN
        multiply(state, Product(a, b, c, added), often)
        layout = c.layout.reshape(result.shape)
        assert layout is not None
        state.entries[result] = Read(c.buffer, layout)

    return rule


def _matrix(layout: Layout, batch: bool, row: bool = False, column: bool = False) -> Layout:
    """A layout over (n, row, column)."""
    shape = layout.shape
    if batch:
        return layout
    full = (1, *((1,) if row else ()), *shape, *((1,) if column else ()))
    found = layout.reshape(full)
    assert found is not None
    return found


def _start(state: Translation, value: Value, result: Value, shape: Sequence[int]) -> Read:
    repeated = state.stored(value).layout.expand(result.shape)
    layout = repeated.reshape(shape)
    assert layout is not None
    return Read(state.stored(value).buffer, layout)


def multiply(state: Translation, product: Product, often: bool = False) -> None:
    """Append a product, with copies of operands that lie unfavourably."""
    if is_large(product):
        product = _for_blas(state, product)
        if product.start is not None:
            state.store(product.c, product.start)
        state.kernels.append(replace(product, way="blas"))
        return
    product = oriented(product, often)
    if product.way == "columns" and not has_columns(product):
        product = replace(product, b=_copy(state, product.b))
    state.kernels.append(product)


def _for_blas(state: Translation, product: Product) -> Product:
    if blas_form(product) is not None:
        return product
    return replace(product, a=_copy(state, product.a), b=_copy(state, product.b))


def _copy(state: Translation, read: Read) -> Read:
    """A dense copy of an operand, made once."""
    if read.layout.is_dense:
        return read
    key = (read.buffer, read.layout)
    if key not in state.copies:
        state.copies[key] = state.new(read.layout.shape, read.dtype)
        state.store(state.copies[key], read)
    return state.copies[key]


def covers_product(node: Node) -> bool:
    """Whether it is a product of real numbers that is added to as it is, and by BLAS only where that is there."""
    arguments = bound(node)
    if not is_float(node) or any(arguments.get(name, 1) != 1 for name in ("alpha", "beta")):
        return False
    return blas(node.results[0].dtype) is not None or max(v.size for v in (*node.inputs, *node.results)) < LARGE // THIN


PRODUCTS: Mapping[str, Rule] = {
    "aten.mm.default": _product(False, ("self", "mat2")),
    "aten.bmm.default": _product(True, ("self", "mat2")),
    "aten.mv.default": _product(False, ("self", "vec")),
    "aten.dot.default": _product(False, ("self", "tensor")),
    "aten.addmm.default": _product(False, ("mat1", "mat2"), "self"),
    "aten.addmv.default": _product(False, ("mat", "vec"), "self"),
    "aten.baddbmm.default": _product(True, ("batch1", "batch2"), "self"),
}
