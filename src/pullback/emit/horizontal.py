"""Horizontal contraction: equal products over the steps of a recurrence, or over equal layers, become one.

The gradient of a weight that every step reads is a sum of products, Σ_t g_tᵀ h_t: one product of all g below each other
and all h below each other.  And the products x_t U of steps that wait for nothing are one product of all x.  Both are
done where the cost model says that stacking costs less than the calls and the sums that it saves.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cost import CostModel
from ..expressions import hashable
from ..graph import Graph, Node, Value, live_nodes, replace_values, values_in
from .rows import Parts, Stack
from .stacking import CAT

_ADD = "aten.add.Tensor"
_SUM = "aten.sum.dim_IntList"
_TURNS = frozenset(("aten.t.default", "aten.permute.default", "aten.transpose.int"))


def contract_horizontally(graph: Graph, model: CostModel) -> Graph:
    """The same program, to rounding, with equal products of sums and of steps done at once where that is cheaper.

    Cost: linear in the number of nodes, but for sorting.
    """
    if sum(node.op in (_ADD, "aten.mm.default", "aten.addmm.default") for node in graph.nodes) < 2:
        return graph
    rewriting = _Rewriting(graph, model)
    for group in _products_of_steps(rewriting):
        rewriting.join_products(group)
    for total in _sums(rewriting):
        rewriting.join_sum(total)
    return rewriting.result() if rewriting.added else graph


@dataclass(frozen=True)
class _Summand:
    """A summand that is a contraction over rows: leftᵀ · right; without `right` the sum of the rows of `left`.

    kind: equal for summands that can be done at once; the columns of both operands stand second and third.
    """

    left: Value
    right: Value | None
    kind: tuple[Any, ...]


class _Rewriting:
    """The state of one run: the nodes that are added, where they belong, and what stands for each value."""

    def __init__(self, graph: Graph, model: CostModel) -> None:
        self.graph = graph
        self.model = model
        self.parts = Parts(graph, model)
        self.producer = dict(self.parts.producer)
        self.place: dict[Value, int] = dict.fromkeys(graph.inputs, -1)
        self.place.update((v, k) for k, node in enumerate(graph.nodes) for v in node.results)
        self.readers = Counter(v for node in graph.nodes for v in dict.fromkeys(node.inputs))
        self.readers.update(set(values_in((graph.outputs, graph.mutations))))
        self.reader = {v: node for node in reversed(graph.nodes) for v in node.inputs}  # the first one
        self.first_reader = {v: k for k, node in reversed(list(enumerate(graph.nodes))) for v in node.inputs}
        self.moved: dict[Value, int] = {}  # stacks that are joined as soon as they can be
        self.added: list[tuple[int, Node]] = []
        self.became: dict[Value, Value] = {}
        self.shared: dict[Any, Value] = {}  # added nodes are not added twice

    # ------------------------------------------------------------ nodes

    def node(self, op: str, args: tuple[Any, ...], shape: Sequence[int], like: Value, name: str = "") -> Value:
        """The result of a new node, right behind the last of what it reads."""
        args = replace_values(args, self.new)
        known = self.shared.get((op, hashable(args)))
        if known is not None:
            return known
        value = Value(name or op.split(".")[1], tuple(shape), like.dtype, like.device)
        node = Node(op, args, (), (value,))
        self.shared[op, hashable(args)] = value
        self.place[value] = max(self.place[v] for v in node.inputs)
        self.producer[value] = self.parts.producer[value] = node
        self.added.append((self.place[value], node))
        return value

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape."""
        return (
            value
            if value.shape == tuple(shape)
            else self.node("aten.view.default", (value, tuple(shape)), shape, value)
        )

    def rows(self, stack: Stack) -> Value:
        """The values of a stack below each other."""
        first, columns = stack.values[0], stack.columns
        if stack.part is None:
            pieces = tuple(self.reshape(v, (v.size // columns, columns)) for v in stack.values)
            whole = self.node(CAT, (pieces, 0), (stack.rows, columns), first, "stack")
            self.parts.note_stack(self.producer[whole])
            return whole
        part = stack.part
        self._bring_forward(part.whole)
        whole = part.whole
        if part.dim:
            dims = (part.dim, *(d for d in range(len(whole.shape)) if d != part.dim))
            whole = self.node("aten.permute.default", (whole, dims), [whole.shape[d] for d in dims], whole)
            return self._cut(self._flat(whole, columns), part.start // columns, stack.rows)
        return self._cut(self.reshape(whole, (whole.size // columns, columns)), part.start // columns, stack.rows)

    def _flat(self, value: Value, columns: int) -> Value:
        shape = (value.size // columns, columns)
        return self.node("aten.reshape.default", (value, shape), shape, value)

    def _cut(self, value: Value, start: int, count: int) -> Value:
        if start == 0 and count == value.shape[0]:
            return value
        return self.node("aten.slice.Tensor", (value, 0, start, start + count, 1), (count, *value.shape[1:]), value)

    def _bring_forward(self, whole: Value) -> None:
        """A concatenation as soon as what it joins is known."""
        node = self.parts.joined.get(whole)
        if node is not None and self.place[whole] > (early := self.known(node.inputs)):
            self.place[whole] = self.moved[whole] = early

    def known(self, values: Sequence[Value]) -> int:
        """The place behind which all of some values are known."""
        return max(self.place[self.new(v)] for v in values)

    def is_ready(self, before: int) -> Callable[[Value], bool]:
        """Whether a tensor is, or can be, known before a position."""

        def ready(whole: Value) -> bool:
            node = self.parts.joined.get(whole)
            return self.known([whole] if node is None else node.inputs) < before

        return ready

    # ------------------------------------------------------------ x_t U

    def join_products(self, group: Sequence[Node]) -> None:
        """One product in place of several that share their right operand, if none of them waits for another."""
        order = self.parts.ordered([node.args[-2] for node in group])
        group = [group[k] for k in order]
        lefts, results, first = [n.args[-2] for n in group], [n.results[0] for n in group], group[0]
        if not set(results).isdisjoint(lefts):
            return
        needed = min(self.first_reader.get(v, len(self.graph.nodes)) for v in results)
        others = [*first.args[:-2], first.args[-1]]
        stack = self.parts.stack(lefts, lefts[0].shape[1], self.is_ready(needed))
        if self.known(others) >= needed or (stack.part is None and self.known(lefts) >= needed):
            return
        if stack.seconds >= (len(group) - 1) * (self.model.launch - self.model.view):
            return
        args = (*first.args[:-2], self.rows(stack), first.args[-1])
        product = self.node(first.op, args, (stack.rows, results[0].shape[1]), results[0], results[0].name)
        common = _common_summand(results, needed, self)
        if common is not None:
            product = self.node(_ADD, (product, common), product.shape, product, product.name)
        start = 0
        for value in results:
            part = self._cut(product, start, value.shape[0])
            start += value.shape[0]
            if common is None:
                self.became[value] = part
            else:
                self._without_summand(value, part, common)

    def _without_summand(self, value: Value, part: Value, common: Value) -> None:
        """What is left of x_t U + h W + b where x_t U + b is known already."""
        sums = _sums_with(value, self)
        if common in sums[0].inputs:
            self.became[sums[0].results[0]] = part
            return
        other = next(v for v in sums[0].inputs if v is not value)
        total = sums[1].results[0]
        self.became[total] = self.node(_ADD, (part, other), total.shape, total, total.name)

    # ------------------------------------------------------------ Σ g_tᵀ h_t

    def join_sum(self, root: Node) -> None:
        """One contraction in place of several that are summed."""
        position = self.place[root.results[0]]
        kinds: dict[Any, list[Value]] = {}
        rest: list[Value] = []
        summands: dict[Value, _Summand] = {}
        for leaf in _leaves(root, self):
            summand = _summand(leaf, self)
            if summand is None:
                rest.append(leaf)
            else:
                summands[leaf] = summand
                kinds.setdefault(summand.kind, []).append(leaf)
        totals: list[Value] = []
        for leaves in kinds.values():
            joined = self._joined([summands[leaf] for leaf in leaves], root.results[0], position)
            totals += leaves if joined is None else [joined]
        if len(totals) == len(summands):
            return
        result = totals[0]
        for value in (*totals[1:], *rest):
            result = self.node(_ADD, (result, value), root.results[0].shape, root.results[0], root.results[0].name)
        self.became[root.results[0]] = result

    def _joined(self, summands: Sequence[_Summand], like: Value, position: int) -> Value | None:
        """The sum of contractions of one kind as one; None if that is not worth it."""
        if len(summands) < 2:
            return None
        lefts = [s.left for s in summands]
        rights = [s.right for s in summands if s.right is not None]
        order = self.parts.ordered(lefts, rights) if rights else self.parts.ordered(lefts)
        ready = self.is_ready(position)
        columns = summands[0].kind[1:3]
        left = self.parts.stack([lefts[k] for k in order], columns[0], ready)
        right = self.parts.stack([rights[k] for k in order], columns[1], ready) if rights else None
        saved = (len(summands) - 1) * (2 * self.model.launch + self.model.moved(3 * like.size))
        if left.seconds + (right.seconds if right is not None else 0.0) >= saved:
            return None
        rows = self.rows(left)
        if right is None:
            return self.reshape(self.node(_SUM, (rows, (0,)), rows.shape[1:], like, like.name), like.shape)
        others = self.rows(right)
        turned = self.node("aten.permute.default", (rows, (1, 0)), rows.shape[::-1], like)
        return self.node("aten.mm.default", (turned, others), (rows.shape[1], others.shape[1]), like, like.name)

    # ------------------------------------------------------------ the end

    def result(self) -> Graph:
        """The program with what was added, without what nobody reads any more."""
        numbered = []
        for k, node in enumerate(self.graph.nodes):
            moved = self.moved.get(node.results[0]) if node.results else None
            numbered.append((k, 0, node) if moved is None else (moved, 1, node))
        numbered += [(place, 1, node) for place, node in self.added]
        nodes: list[Node] = []
        for _, _, node in sorted(numbered, key=lambda entry: entry[:2]):
            args, kwargs = replace_values((node.args, node.kwargs), self.new)
            nodes.append(replace(node, args=args, kwargs=kwargs))
        outputs = replace_values(self.graph.outputs, self.new)
        mutations = tuple((old, self.new(value)) for old, value in self.graph.mutations)
        ordered = _in_order(nodes)
        if ordered is None:  # what became one waits for itself, through what became another one
            return self.graph
        return Graph(self.graph.inputs, live_nodes(ordered, (outputs, mutations)), outputs, mutations)

    def new(self, value: Value) -> Value:
        """What stands for a value by now."""
        while value in self.became:
            value = self.became[value]
        return value


def _in_order(nodes: Sequence[Node]) -> tuple[Node, ...] | None:
    """Nodes as they are, but each behind what it reads; None if some wait for each other."""
    producer = {value: node for node in nodes for value in node.results}
    begun: set[Node] = set()
    done: dict[Node, None] = {}
    for last in nodes:
        waiting = [last]
        while waiting:
            node = waiting[-1]
            needed = {n for v in node.inputs if (n := producer.get(v)) is not None and n not in done}
            if node in done or not needed:
                done[waiting.pop()] = None
            elif needed & begun:
                return None
            else:
                begun.add(node)
                waiting += [n for n in nodes if n in needed]
    return tuple(done)


# ---------------------------------------------------------------- what belongs together


def _products_of_steps(rewriting: _Rewriting) -> Iterator[list[Node]]:
    """Products with the same right operand (and the same row added), of left operands of one shape."""
    groups: dict[Any, list[Node]] = {}
    for node in rewriting.graph.nodes:
        if node.op not in ("aten.mm.default", "aten.addmm.default") or node.kwargs or not node.results[0].is_floating:
            continue
        if not all(v.size for v in node.inputs):
            continue
        *added, left, right = node.args
        if added and len(added[0].shape) > 1:
            continue
        parts = rewriting.parts.parts.get(rewriting.parts.root(left), ())
        key = (*added, right, left.type, *(p.whole for p in parts[:1]))
        groups.setdefault(key, []).append(node)
    yield from (group for group in groups.values() if len(group) > 1)


def _common_summand(results: Sequence[Value], needed: int, rewriting: _Rewriting) -> Value | None:
    """The row that is added to each of some values, at once or after another summand of their own."""
    candidates: set[Value] | None = None
    for value in results:
        own = {v for node in _sums_with(value, rewriting) for v in node.inputs}
        candidates = own if candidates is None else candidates & own
    rows = [v for v in candidates or () if v.shape == results[0].shape[1:] and v.dtype == results[0].dtype]
    return next((v for v in rows if rewriting.known([v]) < needed), None)


def _sums_with(value: Value, rewriting: _Rewriting) -> list[Node]:
    """The sum that a value is the summand of, if of nothing else, and the sum that this one is the summand of."""
    found: list[Node] = []
    while len(found) < 2 and rewriting.readers[value] == 1:
        node = rewriting.reader.get(value)
        if node is None or not _is_sum(node) or node.results[0].shape != value.shape:
            break
        found.append(node)
        value = node.results[0]
    return found


def _is_sum(node: Node) -> bool:
    """Whether a node adds two tensors of its own dtype."""
    if node.op != _ADD or len(node.args) != 2 or node.kwargs or not node.results:
        return False
    return all(isinstance(v, Value) and v.dtype == node.results[0].dtype for v in node.args)


def _sums(rewriting: _Rewriting) -> Iterator[Node]:
    """The sums that are no summands of others, those over steps of a known sequence first."""
    whole = [n for n in rewriting.graph.nodes if _is_sum(n) and n.results[0].is_floating]
    inner = {v for n in whole for v in n.inputs if rewriting.readers[v] == 1 and v.shape == n.results[0].shape}
    yield from (n for n in whole if n.results[0] not in inner and n.results[0] not in rewriting.became)


def _leaves(root: Node, rewriting: _Rewriting) -> list[Value]:
    """What a sum of sums adds, from left to right."""
    found: list[Value] = []
    waiting = list(reversed(root.args))
    while waiting:
        value = waiting.pop()
        node = rewriting.producer.get(value)
        inner = node is not None and _is_sum(node) and rewriting.readers[value] == 1
        if inner and node is not None and value.shape == root.results[0].shape and value not in rewriting.became:
            waiting += reversed(node.args)
        else:
            found.append(value)
    return found


def _summand(value: Value, rewriting: _Rewriting) -> _Summand | None:
    """A summand as a contraction over rows, if it is one that nothing else reads."""
    node = rewriting.producer.get(value)
    if node is None or node.kwargs or rewriting.readers[value] != 1 or value in rewriting.became:
        return None
    if node.op == "aten.mm.default":
        turn = rewriting.producer.get(node.args[0])
        if turn is None or turn.op not in _TURNS or not all(v.size for v in node.inputs):
            return None
        left, right = turn.inputs[0], node.args[1]
        return _Summand(left, right, ("mm", left.shape[1], right.shape[1], value.dtype))
    if node.op == _SUM and len(node.args) == 2 and node.args[1]:
        source, dims = node.args
        if {d % len(source.shape) for d in dims} == set(range(len(dims))) and value.size:
            return _Summand(source, None, ("sum", value.size, None, value.dtype))
    return None
