"""The compiler on one screen: the passes, in the only order in which they are correct.

linearise     which values derivatives flow through, and the rule of every edge between them
with_gauge    what a factorisation leaves open becomes one more source, in which every derivative must be zero
choose_order  the sequence in which vertices are eliminated
accumulate    multiply local Jacobians in that order; labelled expressions
lower         labelled expressions become ATen operators; what is common is computed once, what is dead is gone
contract …    equal products over steps become one; `contract_horizontally`
own_memory    no derivative shares memory with an input, an output or another derivative
schedule      what only a result needs is computed as soon as it can be
emit          generated Python
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .calibration import model_for
from .cost import CostModel, multiplications
from .emit.aliases import own_memory
from .emit.backends import Auto, Choice, choose, emit
from .emit.fx import to_graph_module
from .emit.horizontal import contract_horizontally
from .emit.lowering import lower
from .emit.prediction import peak_bytes
from .emit.program import Program
from .emit.schedule import schedule
from .errors import ArgumentError
from .expressions import Builder, builder_for
from .graph import COMPLEX, Graph, Value, complex_of, live_nodes, real_of, values_in
from .index import Axis, plain_axes
from .passes.accumulation import accumulate
from .passes.gauges import Gauge, with_gauge
from .passes.local_jacobians import Request, linearise
from .passes.order import choose_order, count_paths
from .passes.planning import planned_order, proved_bound
from .passes.samples import check_samples_apart
from .stages import Batch, Bound, LinearGraph, Order, Plan, Prediction, Search
from .terms import Factor, Jac, Term, identity

OrderName = str | Sequence[str] | Search


@dataclass(frozen=True)
class Task:
    """A derivative to be compiled.

    graph: the function, with one more input for each seed.
    request: what is differentiated with respect to what.
    pairs: the (target, source) derivatives that the program returns, in order, before the outputs of the function.
    returns_outputs: whether the program returns the function's own outputs after them.
    by_target: whether derivatives take the dtype of their target.
    batch: if each sample is differentiated by itself: where they lie, so that it can be proved that they are not mixed.
    axes: for a pair the sequence in which the axes of its derivative are returned, if it is another than that of the
        target and then the source.
    gauge: what no derivative may depend on; known once the graph is linearised.
    """

    graph: Graph
    request: Request
    pairs: tuple[tuple[Value, Value], ...]
    returns_outputs: bool
    by_target: bool = False
    batch: Batch | None = None
    axes: Mapping[tuple[Value, Value], tuple[int, ...]] = field(default_factory=dict)
    gauge: Gauge | None = None


@dataclass(frozen=True)
class Compiled:
    """A compiled derivative: its program, and how it came about."""

    program: Program
    order: Order
    predictions: Mapping[str, Prediction]
    lower_bound: Bound | None
    model: str
    paths: int
    edge_products: int

    def graph_module(self) -> Any:
        """The program as a `torch.fx.GraphModule`."""
        return to_graph_module(self.program.graph)

    def plan(self) -> Plan:
        """How the derivative is computed, and what that costs."""
        facts = (self.predictions, self.lower_bound, self.model, self.paths, self.edge_products)
        return Plan(self.order, *facts, self.program.code, self.program.backend, self.program.reason)


@dataclass(frozen=True)
class _Candidate:
    order: Order
    lowered: Graph
    backend: Choice
    prediction: Prediction
    edge_products: int


def compile_derivative(
    task: Task,
    order: OrderName,
    *,
    fuse: bool,
    plain: bool | None = None,
    name: str = "program",
    backend: str | Auto = "auto",
) -> Compiled:
    """Run every pass.

    Arguments:
        order: "auto" (the cheapest that a search finds, by predicted seconds; never worse than forward or reverse),
            "forward", "reverse", or vertex names.
        fuse: whether fused backward kernels may be used; not inside another transform.
        plain: whether the program will run on plain tensors only, outside all traces; by default, where `fuse` holds.

    Raises:
        MissingRuleError: operators on the way have no rule.
        OrderError: the order is not one.
        BatchError: samples that should be kept apart are mixed.
    """
    plain = fuse if plain is None else plain
    linear = linearise(task.graph, task.request)
    linear.check()
    if task.batch is not None:
        check_samples_apart(linear, task.batch)
    linear, gauge = with_gauge(linear)
    task = replace(task, graph=linear.graph, gauge=gauge)
    model = model_for(task.graph.inputs)
    orders = _orders_to_try(linear, Search() if order == "auto" else order, model)
    candidates = [_accumulated(task, linear, one, backend, fuse=fuse, plain=plain, model=model) for one in orders]
    best = min(candidates, key=lambda c: (c.prediction.seconds, c.prediction.multiplications))  # else the first
    predictions = {c.order.name: c.prediction for c in candidates}
    program = emit(best.lowered, name, plain=plain, backend=best.backend)
    bound = proved_bound(linear, min(one.multiplications for one in predictions.values()))
    return Compiled(program, best.order, predictions, bound, model.source, count_paths(linear), best.edge_products)


def backward_graph(graph: Graph, sources: Sequence[Value], outputs: Sequence[int], *, fuse: bool) -> Graph:
    """From cotangents of outputs to cotangents of sources, where every value of the function is known already.

    The inputs are the values that are read, and the cotangents `cotangent_0` …; none of the function's own values is
    computed again.  Results may share memory with inputs and with each other.

    Raises MissingRuleError: operators on the way have no rule.
    """
    task = vjp_task(graph, sources, outputs)
    linear, gauge = with_gauge(linearise(task.graph, task.request))
    task = replace(task, graph=linear.graph, gauge=gauge)
    builder = builder_for(task.graph)
    found = accumulate(linear, choose_order(linear, "reverse"), builder, fuse=fuse, by_target=False)
    derivatives = _written_out(task, found.derivatives, builder)
    nodes = live_nodes((*(gauge.nodes if gauge else ()), *builder.nodes), derivatives)
    computed = {v for node in nodes for v in node.results}
    read = dict.fromkeys(v for v in values_in(([n.inputs for n in nodes], derivatives)) if v not in computed)
    return schedule(lower(Graph(tuple(read), nodes, derivatives), keep_stops=not fuse))


def check_rules(graph: Graph, sources: Sequence[Value]) -> None:
    """Raise MissingRuleError with every operator between sources and outputs that has no rule."""
    task = vjp_task(graph, sources, range(len(graph.outputs)))
    linearise(task.graph, task.request)


def compile_function(graph: Graph, *, plain: bool, name: str = "function") -> Program:
    """The program of a captured function itself; unless `plain`, of operators that can be differentiated again."""
    return emit(schedule(lower(graph, keep_stops=not plain)), name, plain=plain, backend="python")


def _orders_to_try(linear: LinearGraph, order: OrderName, model: CostModel) -> list[Order]:
    """With one row, reverse is optimal up to a rounding error; with one column, forward; else a search is worth it."""
    if not isinstance(order, Search):
        return [choose_order(linear, order)]
    rows = sum(t.size for t in linear.targets)
    columns = sum(s.size for s in linear.sources)
    if rows == 1 and columns > 1:
        return [choose_order(linear, "reverse")]
    if columns == 1 and rows > 1:
        return [choose_order(linear, "forward")]
    planned = planned_order(linear, model, order.effort)
    both = [choose_order(linear, "reverse"), choose_order(linear, "forward")]
    return both if planned is None else [*both, planned]


def _accumulated(
    task: Task, linear: LinearGraph, order: Order, backend: str | Auto, *, fuse: bool, plain: bool, model: CostModel
) -> _Candidate:
    """The program of one order, and what it is predicted to take."""
    builder = builder_for(task.graph)
    found = accumulate(linear, order, builder, fuse=fuse, by_target=task.by_target)
    derivatives = _written_out(task, found.derivatives, builder)
    outputs = (*derivatives, *(task.graph.outputs if task.returns_outputs else ()))
    mutations = task.graph.mutations
    derived_nodes = live_nodes(tuple(builder.nodes), derivatives)
    nodes = live_nodes((*task.graph.nodes, *derived_nodes), (outputs, mutations))
    derived = Graph(task.graph.inputs, nodes, outputs, mutations)
    derived.check()
    lowered = _lowered(derived, len(task.pairs), plain, model)
    choice = choose(lowered, backend, plain=plain, model=model)
    prediction = Prediction(multiplications(derived_nodes), choice.seconds, peak_bytes(lowered))
    return _Candidate(order, lowered, choice, prediction, found.edge_products)


def _lowered(graph: Graph, count: int, plain: bool, model: CostModel) -> Graph:
    """The program in ATen operators; its first `count` outputs are derivatives."""
    contracted = contract_horizontally(lower(graph, keep_stops=not plain), model)
    lowered = schedule(own_memory(contracted, count))
    lowered.check()
    return lowered


def _written_out(task: Task, known: Mapping[tuple[Value, Value], Value], builder: Builder) -> tuple[Value, ...]:
    """The derivative of every pair, which is zero where no path leads."""
    found = []
    for target, source in task.pairs:
        derivative = known.get((target, source))
        derivative = _zero(builder, target, source, task.by_target) if derivative is None else derivative
        axes = task.axes.get((target, source))
        derivative = derivative if axes is None else _permuted(builder, derivative, axes)
        found.append(task.gauge.checked(builder, derivative, target, known) if task.gauge else derivative)
    return tuple(found)


def _zero(builder: Builder, target: Value, source: Value, by_target: bool) -> Value:
    is_complex = target.dtype in COMPLEX or source.dtype in COMPLEX
    dtype = target.dtype if by_target else source.dtype
    shape, dtype = target.shape + source.shape, complex_of(dtype) if is_complex else dtype
    return builder.node("zeros", (shape, dtype), [(shape, dtype)])[0]


def _permuted(builder: Builder, value: Value, axes: tuple[int, ...]) -> Value:
    labels = plain_axes(value.shape)
    return builder.contract(1, (Factor(value, labels),), tuple(labels[k] for k in axes), value.dtype, value.name)


# ---------------------------------------------------------------- tasks


def jacobian_task(graph: Graph, sources: Sequence[Value], outputs: Sequence[int], names: Sequence[str]) -> Task:
    """The Jacobian of each of the outputs (given by number) in each source."""
    roots, seeds = [], {}
    for number, name in zip(outputs, names, strict=True):
        output = _output(graph, number, sources[0])
        root = Value(name, output.shape, output.dtype, output.device)
        roots.append(root)
        seeds[output, root] = identity(output.shape, output.dtype)
    pairs = tuple((root, source) for root in roots for source in sources)
    return Task(graph, Request(tuple(sources), tuple(roots), seeds), pairs, True)


def batch_task(
    graph: Graph, sources: Mapping[Value, int], outputs: Mapping[int, int], title: str, at_inputs: bool = False
) -> Task:
    """The Jacobian of each sample of some outputs in the same sample of each source; the batch axis comes first.

    Samples do not mix: sample b of the input is all that the sum over the output's samples depends on in it.  With this
    sum for a target there is no second batch axis, in whatever order vertices are eliminated.

    sources, outputs: the batch axis of each, outputs given by number.
    at_inputs: whether the same is done at the inputs instead, where one sample is what all of them change with.
    """
    like = next(iter(sources))
    seeds: dict[tuple[Value, Value], Jac] = {}
    ends = {_output(graph, number, like): axis for number, axis in outputs.items()}
    roots: dict[Value, int | None] = {}  # with the batch axis, where there is one
    for number, axis in outputs.items():
        output = _output(graph, number, like)
        out = plain_axes(output.shape)
        shape, rows = (output.shape, out) if at_inputs else (_without(output.shape, axis), _without(out, axis))
        root = Value("output" if len(outputs) == 1 else f"output_{number}", shape, output.dtype, output.device)
        seeds[output, root] = Jac((Term(1, (), rows, out),), shape, output.shape, output.dtype, output.dtype)
        roots[root] = axis if at_inputs else None
    leaves: dict[Value, int | None] = {source: axis for source, axis in sources.items() if not at_inputs}
    for source, axis in sources.items() if at_inputs else ():
        inp = plain_axes(source.shape)
        leaf = Value(f"sample_{source.name}", _without(source.shape, axis), source.dtype, source.device)
        columns = _without(inp, axis)
        seeds[leaf, source] = Jac((Term(1, (), inp, columns),), source.shape, leaf.shape, source.dtype, source.dtype)
        leaves[leaf] = None
    request = Request(tuple(leaves), tuple(roots), seeds)
    pairs = tuple((root, leaf) for root in roots for leaf in leaves)
    axes = {(root, leaf): _batch_first(root, roots[root], leaf, leaves[leaf]) for root, leaf in pairs}
    return Task(graph, request, pairs, True, batch=Batch(sources, ends, title), axes=axes)


def _without(axes: tuple[Any, ...], position: int) -> tuple[Any, ...]:
    return axes[:position] + axes[position + 1 :]


def _batch_first(root: Value, at_root: int | None, leaf: Value, at_leaf: int | None) -> tuple[int, ...]:
    """The axes of a derivative with the one for the samples moved to the front."""
    first = at_root if at_root is not None else len(root.shape) + (at_leaf or 0)
    return (first, *(k for k in range(len(root.shape) + len(leaf.shape)) if k != first))


def vjp_task(graph: Graph, sources: Sequence[Value], outputs: Sequence[int], rows: int | None = None) -> Task:
    """The sum over the outputs of cotangent · Jacobian; `rows`: that many cotangents at once, along a leading axis."""
    width = () if rows is None else (rows,)
    root = Value("loss", width, real_of(sources[0].dtype), sources[0].device)
    out = plain_axes(width)
    seeds: dict[tuple[Value, Value], Jac] = {}
    cotangents = []
    for number in outputs:
        output = _output(graph, number, sources[0])
        cotangent = Value(f"cotangent_{number}", width + output.shape, output.dtype, output.device)
        cotangents.append(cotangent)
        axes = plain_axes(output.shape)
        entry = Factor(cotangent, _trivial(out + axes, cotangent.shape), conj=output.dtype in COMPLEX)
        term = Term(1, (entry,), out, axes)
        known = seeds.get((output, root))
        jac = Jac((term,), width, output.shape, root.dtype, output.dtype)
        seeds[output, root] = jac if known is None else replace(known, parts=known.parts + jac.parts)
    seeded = replace(graph, inputs=(*graph.inputs, *cotangents))
    request = Request(tuple(sources), (root,), seeds)
    return Task(seeded, request, tuple((root, s) for s in sources), True)


def jvp_task(graph: Graph, sources: Sequence[Value], outputs: Sequence[int], columns: int | None = None) -> Task:
    """Jacobian · tangent for each of the outputs; `columns`: that many tangents at once, along a trailing axis."""
    width = () if columns is None else (columns,)
    root = Value("direction", width, real_of(sources[0].dtype), sources[0].device)
    inp = plain_axes(width)
    seeds: dict[tuple[Value, Value], Jac] = {}
    tangents = []
    for source in sources:
        tangent = Value(f"tangent_{source.name}", source.shape + width, source.dtype, source.device)
        tangents.append(tangent)
        axes = plain_axes(source.shape)
        term = Term(1, (Factor(tangent, _trivial(axes + inp, tangent.shape)),), axes, inp)
        seeds[root, source] = Jac((term,), source.shape, width, source.dtype, root.dtype)
    targets = []
    for number in outputs:
        output = _output(graph, number, sources[0])
        target = Value(f"output_{number}", output.shape, output.dtype, output.device)
        seeds[output, target] = identity(output.shape, output.dtype)
        targets.append(target)
    seeded = replace(graph, inputs=(*graph.inputs, *tangents))
    request = Request((root,), tuple(targets), seeds)
    return Task(seeded, request, tuple((t, root) for t in targets), True, by_target=True)


def merged_tasks(graph: Graph, tasks: Sequence[Task]) -> Task:
    """One task for several of the same graph, each with one seed."""
    seeds = tuple(task.graph.inputs[-1] for task in tasks)
    request = Request(
        tuple(dict.fromkeys(s for task in tasks for s in task.request.sources)),
        tuple(dict.fromkeys(t for task in tasks for t in task.request.targets)),
        {pair: jac for task in tasks for pair, jac in task.request.seeds.items()},
    )
    pairs = tuple(pair for task in tasks for pair in task.pairs)
    return Task(replace(graph, inputs=(*graph.inputs, *seeds)), request, pairs, True, tasks[0].by_target)


def _output(graph: Graph, number: int, like: Value) -> Value:
    """One of a graph's outputs; for a constant a value on which no path leads, so that its derivative is zero."""
    output = graph.outputs[number]
    return output if isinstance(output, Value) else Value(f"output_{number}", (), like.dtype, like.device)


def _trivial(axes: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(Axis(0) if n == 1 else i for i, n in zip(axes, shape, strict=True))


def differentiated_values(graph: Graph, sources: Sequence[Value], targets: Sequence[Value]) -> frozenset[Value]:
    """The sources, the targets, and every value between them."""
    linear = linearise(graph, Request(tuple(sources), tuple(targets), {}))
    return frozenset((*linear.sources, *linear.vertices, *linear.targets))


def check_sources(sources: Sequence[Value], describe: Callable[[Value], str]) -> None:
    """Raise ArgumentError unless every source has a derivative at all."""
    for value in sources:
        if not value.is_differentiable:
            raise ArgumentError(
                f"{describe(value)} is {value.type}: only float16, bfloat16, float32, float64 and complex tensors can "
                "be differentiated with respect to; convert it, or leave it out of argnums"
            )
