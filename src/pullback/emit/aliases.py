"""What shares memory, and copies of it where a write to the one would change the other."""

from dataclasses import replace

from ..graph import Graph, Node, Value, replace_values, values_in
from .builtins import shares_memory_with


def memory_roots(graph: Graph) -> dict[Value, Value]:
    """Whose memory each value has: that of an input, or of the value that it is a view of in the end; else its own.

    Cost: linear in the number of nodes.
    """
    root = {value: value for value in graph.inputs}
    for node in graph.nodes:
        viewed = shares_memory_with(node)
        root.update((v, v if viewed is None else root.get(viewed, viewed)) for v in node.results)
    return root


def aliased_inputs(graph: Graph) -> dict[Value, Value]:
    """The input that each value may share memory with; values with memory of their own are left out."""
    inputs = set(graph.inputs)
    return {value: root for value, root in memory_roots(graph).items() if root in inputs}


def own_memory(graph: Graph, count: int) -> Graph:
    """The same program, whose first `count` outputs (its derivatives) have memory of their own.

    The derivative of (x * w).sum() in w is x itself, and that of x.sum() is a repeated 1: who scales a gradient in
    place must change neither x, nor another gradient, nor fail.
    """
    root, repeated = memory_roots(graph), _repeated(graph)
    taken = {root[v] for v in (*graph.inputs, *values_in(graph.outputs[count:]))}
    outputs: list[object] = list(graph.outputs)
    clones = []
    for k, value in enumerate(graph.outputs[:count]):
        if root[value] in taken or value in repeated:
            outputs[k] = Value(f"{value.name}_copy", value.shape, value.dtype, value.device)
            clones.append(Node("aten.clone.default", (value,), (), (outputs[k],)))  # type: ignore[arg-type]
        taken.add(root[value])
    return replace(graph, nodes=(*graph.nodes, *clones), outputs=tuple(outputs)) if clones else graph


def _repeated(graph: Graph) -> set[Value]:
    """The values of which several elements may lie in the same place."""
    repeated: set[Value] = set()
    for node in graph.nodes:
        if node.op == "aten.expand.default" or shares_memory_with(node) in repeated:
            repeated.update(node.results)
    return repeated


def distinct_outputs(graph: Graph, original: Graph) -> Graph:
    """The same program, whose outputs share memory with each other and with inputs only as those of the original do.

    What the one computes twice, the other may compute once; and a detached input is not the input itself.
    """
    before, after = memory_roots(original), memory_roots(graph)
    outputs: list[object] = list(graph.outputs)
    nodes, inputs = [], set(graph.inputs)
    owner = {value: value for value in graph.inputs}
    for k, (value, old) in enumerate(zip(graph.outputs, original.outputs, strict=True)):
        if not isinstance(value, Value):
            continue
        is_shared = owner.setdefault(after[value], before[old]) is not before[old]
        if is_shared or (value in inputs and value is not old):
            copy = Value(f"{value.name}_copy", value.shape, value.dtype, value.device)
            op = "aten.clone.default" if is_shared else "aten.detach.default"
            nodes.append(Node(op, (value,), (), (copy,)))
            outputs[k] = copy
    return replace(graph, nodes=(*graph.nodes, *nodes), outputs=tuple(outputs)) if nodes else graph


def protect_from_mutations(graph: Graph) -> Graph:
    """The same program, in which nothing that is returned or written changes when an input is overwritten.

    The derivative of `buffer * w` in `w` is `buffer` itself, as it was before the program wrote into it.
    """
    mutations = tuple((old, new) for old, new in graph.mutations if old is not new)
    if not mutations:
        return graph if not graph.mutations else replace(graph, mutations=())
    origin, overwritten = aliased_inputs(graph), {old for old, _ in mutations}
    wanted = values_in((graph.outputs, [new for _, new in mutations]))
    exposed = dict.fromkeys(v for v in wanted if origin.get(v) in overwritten)
    copies = {v: Value(f"{v.name}_copy", v.shape, v.dtype, v.device) for v in exposed}
    clones = tuple(Node("aten.clone.default", (v,), (), (copy,)) for v, copy in copies.items())

    def copied(value: Value) -> Value:
        return copies.get(value, value)

    outputs = replace_values(graph.outputs, copied)
    return Graph(graph.inputs, graph.nodes + clones, outputs, tuple((old, copied(new)) for old, new in mutations))
