"""Tensors below each other: several values as the rows of one, by a view where they are parts of one already.

Steps of a sequence are parts of the tensor that holds it, and what a program concatenates is part of the result.  What
is neither is concatenated anew, which costs a copy unless it can be computed in its place (see `stacking`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..cost import CostModel
from ..graph import Graph, Node, Value, values_in
from .builtins import shares_memory_with
from .destinations import FLAT
from .stacking import CAT, can_be_placed, operands_of


@dataclass(frozen=True)
class Part:
    """A value is these entries of a tensor, read with an axis in front: from `start` on."""

    whole: Value
    dim: int
    start: int


@dataclass(frozen=True)
class Stack:
    """How values become the rows of one tensor.

    values: in the order of the rows.
    part: where the first one lies, if all of them lie one behind the other in one tensor.
    seconds: what that is predicted to take.
    """

    values: tuple[Value, ...]
    columns: int
    part: Part | None
    seconds: float

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(v.size for v in self.values) // self.columns


class Parts:
    """Which values are parts of which tensors, in one graph."""

    def __init__(self, graph: Graph, model: CostModel) -> None:
        self.model = model
        self.producer = graph.producers()
        self.kept = set(values_in((graph.inputs, graph.outputs, graph.mutations)))
        self.parts: dict[Value, list[Part]] = {}
        self.joined: dict[Value, Node] = {}  # the node of each stack
        for node in graph.nodes:
            self._note_parts(node)
            if node.op == CAT and node.results:
                self.note_stack(node)

    def _note_parts(self, node: Node) -> None:
        if node.op == "aten.select.int":
            whole, dim, index = node.args
            self._note_piece(node.results[0], whole, dim, index, 1)
        elif node.op == "aten.slice.Tensor" and len(node.args) >= 4 and node.args[4:] in ((), (1,)):
            whole, dim, start, _ = node.args[:4]
            self._note_piece(node.results[0], whole, dim, start or 0, 1)
        elif node.op == "aten.unbind.int":
            whole, dim = (*node.args, 0)[:2]
            for index, value in enumerate(node.outputs):
                if value is not None:
                    self._note_piece(value, whole, dim, index, 1)

    def _note_piece(self, value: Value, whole: Value, dim: int, index: int, length: int) -> None:
        dim %= len(whole.shape)
        extent = whole.shape[dim]
        index += extent if index < 0 else 0
        if whole.size and not any(n > 1 for n in whole.shape[:dim]):
            dim = 0
        if whole.size:
            self.parts.setdefault(value, []).append(Part(whole, dim, index * (whole.size // extent) * length))

    def note_stack(self, cat: Node) -> None:
        """Remember what a `cat` along the first axis joins."""
        operands, dim = operands_of(cat)
        if any(n > 1 for n in cat.results[0].shape[:dim]):
            return
        start = 0
        self.joined[cat.results[0]] = cat
        for value in operands:
            root = self.root(value)
            self.parts.setdefault(root, []).append(Part(cat.results[0], 0, start))
            start += value.size

    def root(self, value: Value) -> Value:
        """The value that this one shows in another shape."""
        while (node := self.producer.get(value)) is not None and node.op in FLAT:
            value = node.inputs[0]
        return value

    def ordered(self, *columns: Sequence[Value]) -> list[int]:
        """The order in which the values of one of several lists lie in one tensor; else the order of the last list."""
        for values in columns:
            known = [{(p.whole, p.dim): p.start for p in self.parts.get(self.root(v), ())} for v in values]
            for whole in known[0]:
                if all(whole in one for one in known) and len({one[whole] for one in known}) == len(known):
                    return sorted(range(len(values)), key=lambda k: known[k][whole])
        return sorted(range(len(columns[-1])), key=lambda k: self.root(columns[-1][k]).serial)

    def stack(self, values: Sequence[Value], columns: int, is_ready: Callable[[Value], bool]) -> Stack:
        """The cheapest way to make several values rows of so many columns.

        is_ready: whether a tensor is known where the stack is needed.
        """
        roots = [self.root(v) for v in values]
        for first in self.parts.get(roots[0], ()):
            aligned = not first.start % columns and not first.whole.size % columns
            if aligned and self._follow(roots, first) and is_ready(first.whole):
                copied = 2 * sum(v.size for v in values) if first.dim or self._is_permuted(first.whole) else 0
                seconds = self.model.elementwise(copied) if copied else 0.0
                return Stack(tuple(values), columns, first, seconds)
        copied = sum(2 * v.size for v, root in zip(values, roots, strict=True) if not self._can_be_placed(v, root))
        if len(set(roots)) < len(roots) or any(v.dtype != values[0].dtype for v in values):
            copied = 2 * sum(v.size for v in values)
        seconds = self.model.elementwise(copied) if copied else 0.0
        return Stack(tuple(values), columns, None, seconds)

    def _follow(self, roots: Sequence[Value], first: Part) -> bool:
        start = first.start
        for root in roots:
            if Part(first.whole, first.dim, start) not in self.parts.get(root, ()):
                return False
            start += root.size
        return True

    def _can_be_placed(self, value: Value, root: Value) -> bool:
        """Whether a value can be computed in a stack's memory: in that of one alone."""
        node = self.producer.get(root)
        joined = any(p.whole in self.joined for p in self.parts.get(root, ()))
        return node is not None and can_be_placed(node) and root not in self.kept and not joined

    def _is_permuted(self, value: Value) -> bool:
        """Whether the entries of a tensor may not lie in their order."""
        node = self.producer.get(value)
        while node is not None and (viewed := shares_memory_with(node)) is not None:
            if node.op not in FLAT:
                return True
            node = self.producer.get(viewed)
        return False
