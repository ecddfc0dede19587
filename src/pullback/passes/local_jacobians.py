"""Local Jacobians: which values derivatives flow through, and the rule of every edge between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import MissingRuleError
from ..graph import COMPLEX, Graph, Node, Value
from ..regions import PULLED_LOOP
from ..rules.edges import edges_of, has_rule, holds_for_complex
from ..stages import Edge, LinearGraph
from ..terms import Jac


@dataclass(frozen=True)
class Request:
    """What is to be differentiated with respect to what.

    sources, targets: values of the graph, or values that only seeds connect to it.
    seeds: edges from or to such values.
    """

    sources: tuple[Value, ...]
    targets: tuple[Value, ...]
    seeds: Mapping[tuple[Value, Value], Jac]


def linearise(graph: Graph, request: Request) -> LinearGraph:
    """The linear graph of a request.

    Raises MissingRuleError with every operator on the way that has no rule, and its line.

    Cost: linear in the number of nodes.
    """
    every = [edge for node in graph.nodes for edge in edges_of(node)]
    reached = _reached_from(request, every)
    needed = _needed_by(request, every, reached)
    edges = tuple(e for e in every if e.source in needed and e.target in needed)
    _refuse_missing({e.node: None for e in edges})
    ends = {*request.sources, *request.targets}
    vertices = [v for v in graph.inputs if v in needed and v not in ends]
    vertices += [v for node in graph.nodes for v in node.results if v in needed and v not in ends]
    seeds = {(s, t): jac for (s, t), jac in request.seeds.items() if s in needed and t in needed}
    return LinearGraph(graph, request.sources, request.targets, tuple(vertices), edges, seeds)


def _reached_from(request: Request, edges: Sequence[Edge]) -> set[Value]:
    reached = {*request.sources, *(target for source, target in request.seeds if source in request.sources)}
    for edge in edges:
        if edge.source in reached:
            reached.add(edge.target)
    return reached | {target for source, target in request.seeds if source in reached}


def _needed_by(request: Request, edges: Sequence[Edge], reached: set[Value]) -> set[Value]:
    needed = {t for t in request.targets if t in reached}
    needed |= {source for source, target in request.seeds if target in needed and source in reached}
    for edge in reversed(edges):
        if edge.target in needed and edge.source in reached:
            needed.add(edge.source)
    return needed | {source for source, target in request.seeds if target in needed and source in reached}


def _refuse_missing(nodes: Mapping[Node, None]) -> None:
    missing: dict[str, Node] = {}
    for node in nodes:
        if node.op == PULLED_LOOP:
            missing.setdefault("the pull back through a while_loop (take derivatives inside by forward mode)", node)
        elif not has_rule(node):
            missing.setdefault(f"{node.op} on {', '.join(v.type for v in node.inputs if v.is_differentiable)}", node)
        elif not holds_for_complex(node.op) and any(v.dtype in COMPLEX for v in (*node.inputs, *node.results)):
            missing.setdefault(f"{node.op} on complex numbers", node)
    if not missing:
        return
    lines = [f"  {op}, first used at {node.source or 'a line that was not recorded'}" for op, node in missing.items()]
    many = len(missing) > 1
    raise MissingRuleError(
        f"{len(missing)} operator{'s' * many} on the way from the inputs to the outputs {'have' if many else 'has'} no "
        "derivative rule:\n" + "\n".join(lines) + "\n"
        "Rewrite the function without them, teach pullback a rule by pullback.rules.register, or cut them off with "
        "`.detach()` if no derivative should flow through them."
    )
