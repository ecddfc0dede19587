"""Regions at run time, and products with their derivatives.

Derivatives of regions are regions: the vjp of a branch is a branch of vjps, the jvp of a loop a loop over values and
tangents, the vjp of a scan a scan of what was carried and then one over it from the end.  So they nest.  Only a
`while_loop`, of which nobody knows how often it runs, is pulled back by running it once more, with all it carried kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .compilation import compile_derivative, jvp_task, vjp_task
from .dtypes import zeros_of
from .emit.python import emit_python
from .graph import Graph, Value, live_nodes
from .keys import Key, held, remember
from .library import LIBRARY
from .own_derivatives import PRODUCTS
from .recording import is_tracing
from .region_batches import call_operator, differs_from_sample_to_sample, once, prepare_batches, program
from .regions import COND, SCAN, WHILE, Region, floating
from .retracing import captured_like, differentiable
from .torch_private import is_functorch_wrapped

Tensors = Sequence[Tensor]
# ---------------------------------------------------------------- running


def _run(operands: Tensors, key: int) -> list[Tensor]:
    region: Region = held(key)
    if is_tracing() and not (region.op == COND and is_functorch_wrapped(operands[0])):
        prepare_batches(region, operands)
        return call_operator(region, operands, key)
    return _RUNS[region.op](region, operands)


def _cond(region: Region, operands: Tensors) -> list[Tensor]:
    predicate, *arguments = operands
    yes, no = program(region, 0), program(region, 1)
    if is_functorch_wrapped(predicate):
        pairs = zip(yes(*arguments), no(*arguments), strict=True)
        return [torch.where(predicate, a, b) for a, b in pairs]
    return list((yes if bool(predicate) else no)(*arguments))


def _while(region: Region, operands: Tensors, seen: list[Tensors] | None = None) -> list[Tensor]:
    """Run a loop; `seen`: takes what was carried into each step."""
    test, step = program(region, 0), program(region, 1)
    carried, constants = list(operands[: region.carried]), operands[region.carried :]
    while _is_true(test(*carried, *constants)[0]):
        if seen is not None:
            seen.append(carried)
        carried = list(step(*carried, *constants))
    return carried


def _is_true(condition: Tensor) -> bool:
    if is_functorch_wrapped(condition):
        raise differs_from_sample_to_sample()
    return bool(condition)


def _scan(region: Region, operands: Tensors) -> list[Tensor]:
    step, count = program(region, 0), region.carried
    carried, slices = list(operands[:count]), operands[count : count + region.sliced]
    constants, rows = operands[count + region.sliced :], []
    for t in range(slices[0].shape[0]):
        results = step(*carried, *(s[t] for s in slices), *constants)
        carried = list(results[:count])
        rows.append(results[count:])
    return [*carried, *map(torch.stack, zip(*rows, strict=True))]


_RUNS: dict[str, Callable[[Region, Tensors], list[Tensor]]] = {COND: _cond, WHILE: _while, SCAN: _scan}


# ---------------------------------------------------------------- products


def _pulls(cotangents: Tensors, operands: Tensors, key: int) -> list[Tensor]:
    """Jᵀ g for each operand, given a cotangent of each floating result; an empty tensor where there is none."""
    region: Region = held(key)
    if region.op == WHILE and is_tracing():
        return list(torch.ops.pullback.region_pulls.default(list(cotangents), list(operands), int(key)))
    found = iter(_PULLS[region.op](region, cotangents, operands))
    return [next(found) if t.is_floating_point() else torch.zeros(()) for t in operands]


def _pull(cotangent: Tensor, operands: Tensors, key: int, output: int, operand: int) -> Tensor:
    region: Region = held(key)
    cotangents = [cotangent if k == output else zeros_of(region.results[k]) for k in floating(region.results)]
    return _pulls(cotangents, operands, key)[operand].clone()


def _push(tangent: Tensor, operands: Tensors, key: int, output: int, operand: int) -> Tensor:
    """J t, from one operand to one result."""
    region: Region = held(key)
    numbers = [k for k, t in enumerate(operands) if t.is_floating_point()]
    tangents = [tangent if k == operand else torch.zeros_like(operands[k]) for k in numbers]
    results = _PUSHES[region.op](region, operands, tangents)
    return results[floating(region.results).index(output)].clone()


def _vjp(graph: Graph) -> Graph:
    """A graph that takes the inputs and a cotangent of each floating output, and returns one of each floating input."""
    sources = [graph.inputs[k] for k in floating(graph.inputs)]
    task = vjp_task(graph, sources, floating(graph.outputs))
    derived = compile_derivative(task, "reverse", fuse=False).program.graph
    return differentiable(_returning(derived, derived.outputs[: len(sources)]))


def _jvp(graph: Graph) -> Graph:
    """A graph that takes the inputs and a tangent of each floating one; returns the outputs, then tangents of these."""
    sources, count = [graph.inputs[k] for k in floating(graph.inputs)], len(floating(graph.outputs))
    task = jvp_task(graph, sources, floating(graph.outputs))
    derived = compile_derivative(task, "forward", fuse=False).program.graph
    return differentiable(_returning(derived, (*derived.outputs[count:], *derived.outputs[:count])))


def _returning(graph: Graph, outputs: tuple[Any, ...]) -> Graph:
    return Graph(graph.inputs, live_nodes(graph.nodes, outputs), outputs)


def _split(tensors: Tensors, *counts: int) -> list[list[Tensor]]:
    """Parts of given sizes, and the rest."""
    parts, start = [], 0
    for count in counts:
        parts.append(list(tensors[start : start + count]))
        start += count
    return [*parts, list(tensors[start:])]


# ---------------------------------------------------------------- branches


def _pull_cond(region: Region, cotangents: Tensors, operands: Tensors) -> list[Tensor]:
    def make() -> Key:
        graphs = tuple(map(_vjp, region.graphs))
        return remember(Region(COND, graphs, graphs[0].outputs))

    return _run([*operands, *cotangents], once(region, "pull", make))


def _push_cond(region: Region, operands: Tensors, tangents: Tensors) -> list[Tensor]:
    def make() -> Key:
        graphs = tuple(map(_jvp, region.graphs))
        return remember(Region(COND, graphs, graphs[0].outputs))

    return _run([*operands, *tangents], once(region, "push", make))[len(region.results) :]


# ---------------------------------------------------------------- loops of unknown length


def _pull_while(region: Region, cotangents: Tensors, operands: Tensors) -> list[Tensor]:
    """Run it again, with all it carried kept; then pull back through the steps, the last one first."""
    back = once(region, "pull", lambda: emit_python(_vjp(region.graphs[1]), name="pull_step")).run
    seen: list[Tensors] = []
    _while(region, operands, seen)
    constants = list(operands[region.carried :])
    carried, totals = list(cotangents), [torch.zeros_like(t) for t in constants if t.is_floating_point()]
    for before in reversed(seen):
        carried, found = _split(back(*before, *constants, *carried), len(carried))
        totals = [total + more for total, more in zip(totals, found, strict=True)]
    return [*carried, *totals]


def _push_while(region: Region, operands: Tensors, tangents: Tensors) -> list[Tensor]:
    count, inputs = region.carried, region.graphs[1].inputs
    moving = len(floating(inputs[:count]))

    def make() -> Key:
        values, fixed = inputs[:count], inputs[count:]
        like = [*values, *_floats(values), *fixed, *_floats(fixed)]
        test = program(region, 0)
        step = emit_python(_jvp(region.graphs[1]), name="push_step").run

        def condition(*xs: Tensor) -> Tensor:
            carried, _, constants, _ = _split(xs, count, moving, len(fixed))
            return test(*carried, *constants)[0]

        def body(*xs: Tensor) -> tuple[Tensor, ...]:
            carried, moved, constants, more = _split(xs, count, moving, len(fixed))
            return step(*carried, *constants, *moved, *more)

        graphs = captured_like(condition, tuple(like)), captured_like(body, tuple(like))
        return remember(Region(WHILE, graphs, graphs[1].outputs, carried=count + moving))

    moved, more = _split(tangents, moving)
    doubled = [*operands[:count], *moved, *operands[count:], *more]
    return _run(doubled, once(region, "push", make))[count:]


def _floats(values: Sequence[Value]) -> list[Value]:
    return [values[k] for k in floating(values)]


# ---------------------------------------------------------------- loops over slices


@dataclass(frozen=True)
class _Step:
    """The graph of a scan, its inputs and outputs in parts."""

    graph: Graph
    carried: tuple[Value, ...]
    slices: tuple[Value, ...]
    constants: tuple[Value, ...]
    rows: tuple[Value, ...]

    @classmethod
    def of(cls, region: Region) -> "_Step":
        graph, count, end = region.graphs[0], region.carried, region.carried + region.sliced
        inputs = graph.inputs
        return cls(graph, inputs[:count], inputs[count:end], inputs[end:], graph.outputs[count:])


def _scan_region(graph: Graph, length: int, carried: int, sliced: int) -> Key:
    stacked = tuple(replace(v, shape=(length, *v.shape)) for v in graph.outputs[carried:])
    return remember(Region(SCAN, (graph,), (*graph.outputs[:carried], *stacked), carried, sliced))


def _pull_scan(region: Region, cotangents: Tensors, operands: Tensors) -> list[Tensor]:
    """A scan that keeps what is carried into each step, and one from the end that pulls back through them."""
    step = _Step.of(region)
    _, slices, constants = _split(operands, region.carried, region.sliced)
    length, moving = len(slices[0]), len(_floats(step.carried))

    def keep() -> Key:
        graph = _returning(step.graph, (*step.graph.outputs[: region.carried], *step.carried))
        return _scan_region(graph, length, region.carried, region.sliced)

    kept = _run(operands, once(region, "keep", keep))[region.carried :]
    arriving, of_rows = _split(cotangents, moving)
    totals = [torch.zeros_like(t) for t in constants if t.is_floating_point()]
    backwards = [t.flip(0) for t in (*kept, *slices, *of_rows)]
    key = once(region, "pull", lambda: _backward_scan(step, length))
    found = _run([*arriving, *totals, *backwards, *constants], key)
    pulled, totals, rows = _split(found, moving, len(totals))
    return [*pulled, *(row.flip(0) for row in rows), *totals]


def _backward_scan(step: _Step, length: int) -> Key:
    """Carries cotangents of what was carried and of the constants; a step gives those of its slices."""
    moving, fixed = _floats(step.carried), _floats(step.constants)
    back = emit_python(_vjp(step.graph), name="pull_step").run
    counts = len(moving), len(fixed), len(step.carried), len(step.slices), len(_floats(step.rows))

    def combine(*xs: Tensor) -> tuple[Tensor, ...]:
        arriving, totals, before, slices, of_rows, constants = _split(xs, *counts)
        found = back(*before, *slices, *constants, *arriving, *of_rows)
        carried, of_slices, more = _split(found, len(moving), len(_floats(step.slices)))
        return (*carried, *(t + m for t, m in zip(totals, more, strict=True)), *of_slices)

    like = [*moving, *fixed, *step.carried, *step.slices, *_floats(step.rows), *step.constants]
    return _scan_region(captured_like(combine, tuple(like)), length, len(moving) + len(fixed), sum(counts[2:]))


def _push_scan(region: Region, operands: Tensors, tangents: Tensors) -> list[Tensor]:
    step = _Step.of(region)
    carried, slices, constants = _split(operands, region.carried, region.sliced)
    moving, moved_slices = len(_floats(step.carried)), len(_floats(step.slices))
    key = once(region, "push", lambda: _forward_scan(step, len(slices[0])))
    moved, of_slices, of_constants = _split(tangents, moving, moved_slices)
    found = _run([*carried, *moved, *slices, *of_slices, *constants, *of_constants], key)
    _, moved, _, of_rows = _split(found, len(carried), moving, len(step.rows))
    return [*moved, *of_rows]


def _forward_scan(step: _Step, length: int) -> Key:
    """Carries values and tangents."""
    parts = step.carried, step.slices, step.constants
    push = emit_python(_jvp(step.graph), name="push_step").run
    counts = [len(p) for part in parts for p in (part, _floats(part))]

    def combine(*xs: Tensor) -> tuple[Tensor, ...]:
        carried, moved, slices, of_slices, constants, of_constants = _split(xs, *counts[:5])
        found = push(*carried, *slices, *constants, *moved, *of_slices, *of_constants)
        values, rows, moved, of_rows = _split(found, counts[0], len(step.rows), counts[1])
        return (*values, *moved, *rows, *of_rows)

    like = [v for part in parts for v in (*part, *_floats(part))]
    return _scan_region(captured_like(combine, tuple(like)), length, counts[0] + counts[1], counts[2] + counts[3])


_PULLS = {COND: _pull_cond, WHILE: _pull_while, SCAN: _pull_scan}
_PUSHES = {COND: _push_cond, WHILE: _push_while, SCAN: _push_scan}


def _pulls_like(cotangents: list[Tensor], operands: list[Tensor], key: int) -> list[Tensor]:
    return [torch.empty_like(t) if t.is_floating_point() else torch.empty(()) for t in operands]


for _name in ("cond", "while_loop", "scan"):
    LIBRARY.impl(_name, lambda operands, key: _copies(_run(operands, key)), "CompositeExplicitAutograd")
    PRODUCTS[f"pullback.{_name}.default"] = lambda operands, key: _copies(_run(operands, key))
LIBRARY.impl("region_pulls", lambda *args: _copies(_pulls(*args)), "CompositeExplicitAutograd")
torch.library.register_fake("pullback::region_pulls", _pulls_like, lib=LIBRARY)
LIBRARY.impl("region_pull", _pull, "CompositeImplicitAutograd")
LIBRARY.impl("region_push", _push, "CompositeImplicitAutograd")
PRODUCTS["pullback.region_pulls.default"] = lambda *args: _copies(_pulls(*args))
PRODUCTS["pullback.region_pull.default"] = _pull
PRODUCTS["pullback.region_push.default"] = _push


def _copies(results: list[Tensor]) -> list[Tensor]:
    """Results with memory of their own, as the operators promise; a branch may return what it was given."""
    return results if is_tracing() else [t.clone() for t in results]
