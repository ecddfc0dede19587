"""Small intermediate results live in a workspace that is made once, and views of them with it.

On small tensors it is not arithmetic that costs but making a tensor, and a view of it, at every call.  Results that
nobody else sees are computed `out=` into tensors of a workspace; a tensor serves several of them one after the other.
What is going to be concatenated is computed into its part of the whole.
Each call takes a workspace of its own, so that a program may run in several threads at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..graph import Graph, Node, Value, replace_values, values_in
from .aliases import memory_roots
from .builtins import facts_of
from .destinations import FLAT, KERNELS, RESHAPES, VIEWS, WITH_OUT
from .rehearsal import Layouts, fills_memory, in_a_row
from .stacking import Slot, joint_roots, operands_of

LARGEST = 2**16  # elements of one tensor: beyond, what its memory keeps from others is worth more than the time
LARGEST_TOTAL = 2**21  # elements of a workspace, which lasts as long as its program
LARGEST_VIEWED = 2**12  # elements of an input whose memory a view may keep alive
_LOSSES = frozenset(("aten.binary_cross_entropy.default",))


@dataclass(frozen=True)
class Workspace:
    """A program that computes into a workspace.

    graph: the program.
    tensors: the tensors of a workspace, uninitialised when it is made.
    views: nodes that make views, of these and of inputs.
    viewed: the inputs that there are views of.
    strides: how tensors lie, where that is to be kept.
    """

    graph: Graph
    tensors: tuple[Value, ...] = ()
    views: tuple[Node, ...] = ()
    viewed: tuple[Value, ...] = ()
    strides: Layouts = field(default_factory=dict)

    @property
    def values(self) -> tuple[Value, ...]:
        """What a call unpacks from its workspace: as much of it as the program reads."""
        read = {v for node in self.graph.nodes for v in node.inputs}
        return tuple(v for v in (*self.tensors, *(node.results[0] for node in self.views)) if v in read)


def use_workspace(
    graph: Graph,
    constants: frozenset[Value],
    lasting: frozenset[Value],
    slots: Mapping[Value, Slot],
    layouts: Layouts | None = None,
) -> Workspace:
    """The same program with a workspace for what is small and seen by nobody else.

    constants: values that outlive a call.
    lasting: inputs that are likely to be the same tensors at the next call, so that views of them are worth keeping.
    slots: the values that are computed in their place of a stack.
    layouts: as of `emit_python`.

    Cost: linear in the number of nodes.
    """
    if any("as_strided" in node.op or node.op == "batched" for node in graph.nodes):  # they see the layout
        return Workspace(graph)
    small = frozenset(v for v in lasting if v.size <= LARGEST_VIEWED)
    placement = _Placement(graph, constants, small, slots, layouts)
    nodes = tuple(n for k, node in enumerate(graph.nodes) for n in placement.placed(k, node))
    result = Graph(graph.inputs, nodes, graph.outputs, graph.mutations)
    viewed = dict.fromkeys(v for node in placement.views for v in node.inputs if v in small)
    return Workspace(result, tuple(placement.tensors), tuple(placement.views), tuple(viewed), placement.strides)


class _Placement:
    """The state of one run: which tensors of the workspace are free, and what stands for each value."""

    def __init__(
        self,
        graph: Graph,
        constants: frozenset[Value],
        lasting: frozenset[Value],
        slots: Mapping[Value, Slot],
        layouts: Layouts | None,
    ) -> None:
        self.slots, self.layouts = slots, layouts
        self.strides: dict[Value, tuple[int, ...]] = {}  # of tensors of the workspace
        self.wholes = {slot.whole for slot in slots.values()}
        self.full: set[Value] = set()  # stacks for which there was no room
        self.tensors: list[Value] = []
        self.views: list[Node] = []
        self.inside: set[Value] = set(lasting)  # what lasts from call to call: tensors, inputs, and views of them
        self.flat: set[Value] = set()  # those of which a reshape is a view
        self.became: dict[Value, Value] = {}
        self.placed_values: set[Value] = set()
        self.free: dict[str, list[Value]] = {}
        self.known_views: dict[str, Value] = {}
        self.root, self.root_of = joint_roots(graph, slots), memory_roots(graph)
        wanted = [self.root[v] for v in values_in((graph.outputs, graph.mutations))]
        self.kept = {*wanted, *graph.inputs, *(self.root[v] for v in constants)}
        last = {self.root[v]: k for k, n in enumerate(graph.nodes) for v in (*n.results, *n.inputs)}
        self.ending: dict[int, list[Value]] = {}
        for value, position in last.items():
            self.ending.setdefault(position, []).append(value)

    def placed(self, position: int, node: Node) -> tuple[Node, ...]:
        """What becomes of a node: its result in the workspace, where it can be; nothing of a view made with it."""
        args, kwargs = replace_values((node.args, node.kwargs), lambda v: self.became.get(v, v))
        original, node = node, replace(node, args=args, kwargs=kwargs)
        placed: tuple[Node, ...] = (node,)
        if self._is_lasting_view(node):
            self._view(node)
            placed = ()
        elif facts_of(node).mutates and len(node.results) == 1 and node.inputs[0] in self.inside:
            self.became[node.results[0]] = node.inputs[0]
            placed = (replace(node, outputs=()),)
        elif node.results and node.results[0] in self.wholes and self._whole(node.results[0]) is not None:
            placed = tuple(self._filled(original, node))
        elif node.results and (tensor := self._slot(node.results[0])) is not None:
            placed = (self._writing(node, tensor),)
        elif self._fits(node):
            placed = (self._into(node),)
        for value in self.ending.get(position, ()):
            if value in self.placed_values:
                tensor = self.became[value]
                self.free.setdefault(self._kind(tensor), []).append(tensor)
        return placed

    # ------------------------------------------------------------ stacks

    def _whole(self, whole: Value) -> Value | None:
        """The memory of a stack, made or taken when its first part is computed; None if it is returned, or no room."""
        if whole in self.became or whole in self.full or self.root[whole] in self.kept:
            return self.became.get(whole)
        if whole in self.slots:
            return self._slot(whole)
        tensor = self._take(whole)
        if tensor is None:
            self.full.add(whole)
        return tensor

    def _slot(self, value: Value) -> Value | None:
        """A view of the part of a stack that a value is computed into, made with the workspace."""
        slot = self.slots.get(value)
        whole = None if slot is None else self._whole(slot.whole)
        if slot is None or whole is None:
            return None
        part = self._part(whole, slot.dim, slot.start, slot.length)
        if part.shape != value.shape:
            shaped = Value(f"{value.name}_part", value.shape, value.dtype, value.device)
            part = self._view(Node("aten.view.default", (part, value.shape), (), (shaped,)))
        self.became[value] = part
        return part

    def _part(self, whole: Value, dim: int, start: int, length: int) -> Value:
        """Some positions of an axis of a tensor in the workspace."""
        shape = (*whole.shape[:dim], length, *whole.shape[dim + 1 :])
        part = Value(f"{whole.name}_part", shape, whole.dtype, whole.device)
        return self._view(Node("aten.slice.Tensor", (whole, dim, start, start + length, 1), (), (part,)))

    def _filled(self, cat: Node, node: Node) -> Iterator[Node]:
        """Copies of those operands of a `cat` that are not computed in their place."""
        whole, (operands, dim) = self.became[cat.results[0]], operands_of(cat)
        start = 0
        for value, now in zip(operands, operands_of(node)[0], strict=True):
            slot = self.slots.get(self.root_of[value])
            if slot is None or slot.whole is not cat.results[0]:
                part = self._part(whole, dim, start, value.shape[dim])
                yield replace(node, op="aten.copy_.default", args=(part, now), kwargs=(), outputs=())
            start += value.shape[dim]

    def _is_lasting_view(self, node: Node) -> bool:
        """Whether a node makes a view of what lasts; one that may be a copy instead, only of a whole tensor."""
        if node.op not in VIEWS | RESHAPES or len(node.results) != 1 or not node.inputs:
            return False
        (viewed, *others) = node.inputs
        return viewed in self.inside and not others and (node.op in VIEWS or viewed in self.flat)

    def _view(self, node: Node) -> Value:
        """Make the view with the workspace, once."""
        key = f"{node.op} {node.inputs[0].serial} {node.args[1:]} {node.kwargs}"
        if key not in self.known_views:
            self.known_views[key] = node.results[0]
            self.views.append(node)
            if node.inputs[0] in self.flat and _is_flat(node):
                self.flat.add(node.results[0])
        self.became[node.results[0]] = self.known_views[key]
        self.inside.add(self.known_views[key])
        return self.known_views[key]

    def _fits(self, node: Node) -> bool:
        if (node.op not in WITH_OUT and node.op not in KERNELS) or len(node.outputs) != 1 or not node.results:
            return False
        (value,) = node.results
        if node.op in _LOSSES and value.shape != node.inputs[0].shape:  # its builtin cannot reduce into a given tensor
            return False
        is_own = self.root[value] is value and value not in self.kept
        return is_own and value.is_floating and value.size <= LARGEST and self._lies_densely(value)

    def _lies_densely(self, value: Value) -> bool:
        """Whether memory can be made for a value in which it lies as it has to."""
        if self.layouts is None:
            return True
        return value in self.layouts and fills_memory(value.shape, self.layouts[value])

    def _into(self, node: Node) -> Node:
        """The node, computing into a free tensor of the workspace; as it is where the workspace is full."""
        tensor = self._take(node.results[0])
        return node if tensor is None else self._writing(node, tensor)

    def _take(self, value: Value) -> Value | None:
        """A free tensor of the workspace for a value, or a new one; None where the workspace is full."""
        free = self.free.get(self._kind(value))
        if not free and sum(t.size for t in self.tensors) + value.size > LARGEST_TOTAL:
            return None
        tensor = self.became[value] = free.pop() if free else self._tensor(value)
        self.placed_values.add(value)
        return tensor

    def _writing(self, node: Node, tensor: Value) -> Node:
        op, keyword = (KERNELS[node.op], "grad_input") if node.op in KERNELS else (node.op, "out")
        return replace(node, op=op, kwargs=(*node.kwargs, (keyword, tensor)), outputs=())

    def _tensor(self, value: Value) -> Value:
        tensor = Value(f"{value.name}_memory", value.shape, value.dtype, value.device)
        self.tensors.append(tensor)
        self.inside.add(tensor)
        if self.layouts is not None:
            self.strides[tensor] = self.layouts[value]
        if self.layouts is None or in_a_row(value.shape, self.layouts[value]):
            self.flat.add(tensor)
        return tensor

    def _kind(self, value: Value) -> str:
        """What values that may lie in one tensor have in common."""
        strides = None if self.layouts is None else self.strides.get(value, self.layouts.get(value))
        return f"{value.type} {value.device} {strides}"


def _is_flat(node: Node) -> bool:
    """Whether a view of a contiguous tensor is contiguous."""
    if node.op in FLAT:
        return True
    is_part = node.op == "aten.select.int" or (node.op == "aten.slice.Tensor" and node.args[4:] in ((), (1,)))
    return is_part and not any(n > 1 for n in node.inputs[0].shape[: node.args[1]])
