"""A program cut into segments: each runs as machine code, or by PyTorch's operators.

A view costs a native segment nothing, and PyTorch less than a copy.  So what passes from one segment to another is what
has memory of its own, and each makes the views that it reads.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..graph import Graph, Node, Value, values_in
from .builtins import facts_of, shares_memory_with

LEAST = 3  # operators that one call of machine code has to save


@dataclass(frozen=True)
class Segment:
    """A part of a program.

    graph: its inputs are what it reads of the rest, its outputs what the rest reads of it.
    is_native: whether it runs as machine code.
    """

    graph: Graph
    is_native: bool


def cut(graph: Graph, is_covered: Callable[[Node], bool], given: Sequence[Value] = ()) -> list[Segment]:
    """The segments of a program, in an order that computes.

    Arguments:
        is_covered: whether there is machine code for a node.
        given: values that are known without computing.

    A native segment that saves fewer than a few operators is left to PyTorch.

    Cost: the number of nodes times that of the segments.
    """
    return _Cutting(graph, is_covered, given).segments()


class _Cutting:
    """The state of one run: which nodes are views, and which are native."""

    def __init__(self, graph: Graph, is_covered: Callable[[Node], bool], given: Sequence[Value]) -> None:
        self.graph, self.given = graph, {*graph.inputs, *given}
        covered = {k for k, node in enumerate(graph.nodes) if is_covered(node)}
        views = {k for k in covered if shares_memory_with(graph.nodes[k]) is not None}
        self.view = {v: k for k in views for v in graph.nodes[k].results}
        self.native = covered - views
        self.others = [k for k in range(len(graph.nodes)) if k not in views]

    def segments(self) -> list[Segment]:
        """Cut until every native segment is worth its call."""
        while True:
            groups = list(self._groups())
            poor = [group for is_native, group in groups if is_native and len(group) < LEAST]
            if not poor:
                break
            self.native -= {k for group in poor for k in group}
        read = [{self._root(v) for k in group for v in self.graph.nodes[k].inputs} for _, group in groups]
        found = []
        for number, (is_native, group) in enumerate(groups):
            elsewhere = {v for k, values in enumerate(read) if k != number for v in values}
            found.append(self._segment(is_native, group, elsewhere))
        of_inputs = [v for v in self._wanted() if v in self.view and self._root(v) in self.given]
        if of_inputs:
            nodes = self._with_views([], of_inputs)
            found.append(Segment(_part(nodes, dict.fromkeys(of_inputs)), False))
        return found

    def _wanted(self) -> Iterable[Value]:
        """What the program as a whole computes."""
        return dict.fromkeys(values_in((self.graph.outputs, [new for _, new in self.graph.mutations])))

    def _root(self, value: Value) -> Value:
        """The value that this one is a view of in the end."""
        while value in self.view:
            value = self.graph.nodes[self.view[value]].inputs[0]
        return value

    def _groups(self) -> Iterator[tuple[bool, list[int]]]:
        """Numbers of nodes, of one kind after the other; each group takes all that can be computed by then."""
        known = set(self.given)
        waiting, is_native = self.others, True
        while waiting:
            group, rest, held = [], [], False
            for k in waiting:
                node = self.graph.nodes[k]
                has_order = facts_of(node).is_random or facts_of(node).mutates
                may_run = (k in self.native) == is_native and not (has_order and held)
                if may_run and all(self._root(v) in known for v in node.inputs):
                    group.append(k)
                    known.update(node.results)
                else:
                    rest.append(k)
                    held |= has_order
            if group:
                yield is_native, group
            waiting, is_native = rest, not is_native

    def _segment(self, is_native: bool, group: list[int], elsewhere: set[Value]) -> Segment:
        """A group with the views that it reads, and those results that are views of what it computes."""
        made = {v for k in group for v in self.graph.nodes[k].results}
        views = [v for v in self._wanted() if v in self.view and self._root(v) in made]
        nodes = self._with_views(group, views)
        wanted = {*elsewhere, *self._wanted()}
        outputs = dict.fromkeys(v for k in group for v in self.graph.nodes[k].results if v in wanted)
        return Segment(_part(nodes, {**outputs, **dict.fromkeys(views)}), is_native)

    def _with_views(self, group: Sequence[int], views: Iterable[Value]) -> tuple[Node, ...]:
        """The nodes of a group, in order, and all views between them and what they start from."""
        waiting = [*views, *(v for k in group for v in self.graph.nodes[k].inputs)]
        numbers = set(group)
        while waiting:
            number = self.view.get(waiting.pop())
            if number is not None and number not in numbers:
                numbers.add(number)
                waiting.extend(self.graph.nodes[number].inputs)
        return tuple(self.graph.nodes[k] for k in sorted(numbers))


def _part(nodes: tuple[Node, ...], outputs: Iterable[Value]) -> Graph:
    made = {v for node in nodes for v in node.results}
    read = dict.fromkeys(v for node in nodes for v in node.inputs if v not in made)
    return Graph(tuple(read), nodes, tuple(outputs))
