"""Which operands a node's results depend on, and the rule that says how."""

from collections.abc import Iterator

from ..errors import MissingRuleError
from ..expressions import Builder
from ..graph import Graph, Node, Value
from ..keys import held
from ..own_derivatives import ATTACH, OwnDerivative
from ..stages import Edge
from ..terms import Chain, Jac, Kernel, Part, normalised, term_values
from . import NONDIFFERENTIABLE, RULES, fourier, linalg
from .complexes import CONSTANT_FOR_REALS, HOLD_FOR_COMPLEX
from .control import CONTROL
from .gauge import GAUGE
from .kinds import Call, IndexMap, Multilinear, Rule
from .own import OWN

WITHOUT_SAMPLES = OWN | CONTROL | GAUGE  # what they compute, and so their samples, are the user's, or nothing


def edges_of(node: Node) -> list[Edge]:
    """Every pair of an operand and a result that vary continuously."""
    if node.op in NONDIFFERENTIABLE or (node.op in CONSTANT_FOR_REALS and node.inputs[0].is_floating):
        return []
    operands = [(k, v) for k, v in enumerate(node.inputs) if v.is_differentiable]
    if node.op == ATTACH:  # what the user's function computed on the way has no derivative
        first, count = len(node.args[0]), len(node.args[1])
        operands = [(k, v) for k, v in operands if first <= k < first + count]
    results = [(k, v) for k, v in enumerate(node.outputs) if v is not None and v.is_differentiable]
    return [Edge(source, target, node, output, k) for output, target in results for k, source in operands]


def has_rule(node: Node) -> bool:
    """Whether the derivative of a node's operator is known."""
    return node.op in RULES or node.op in WITHOUT_SAMPLES


def rule_of(node: Node) -> Rule:
    """The rule of a node whose operator is known to have one."""
    return WITHOUT_SAMPLES[node.op] if node.op in WITHOUT_SAMPLES else RULES[node.op]


def holds_for_complex(op: str) -> bool:
    """Whether an operator's rule is known to hold for complex numbers: by its kind, or because it is on the list."""
    if op in HOLD_FOR_COMPLEX or op in linalg.RULES or op in fourier.RULES or op in OWN or op in GAUGE:
        return True
    return isinstance(RULES.get(op), (IndexMap, Multilinear))


def local_jacobian(edge: Edge, builder: Builder) -> Jac:
    """The Jacobian on one edge; what its payload is computed from is added to the builder."""
    if edge.node.op == ATTACH:
        _require_linear(edge.node)
    builder.source, builder.scope = edge.node.source, edge.node.scope
    parts = rule_of(edge.node).parts(Call(edge.node, builder), edge.output, edge.operand)
    source, target = edge.source, edge.target
    jac = normalised(Jac(parts, target.shape, source.shape, target.dtype, source.dtype))
    jac.check()
    return jac


def _require_linear(node: Node) -> None:
    """Refuse a Jacobian where the backward that a user wrote is no linear map of the cotangent."""
    own: OwnDerivative = held(node.args[3])
    bent = nonlinear_node(own.graph, own.graph.inputs[: own.results])
    if bent is not None:
        raise MissingRuleError(
            f"the backward of {own.title}, called at {node.source}, is not linear in the cotangent ({bent.op} at "
            f"{bent.source}), so that it is no Jacobian: grad, value_and_grad and vjp apply it as it stands; nothing "
            "else can be computed through it"
        )


def nonlinear_node(graph: Graph, inputs: tuple[Value, ...]) -> Node | None:
    """The first node of a graph that is not linear in these of its inputs, as far as Jacobians tell; or None.

    A node is linear if none of its Jacobians in what depends on the inputs reads what depends on them.
    """
    moving: set[Value] = set(inputs)
    for node in graph.nodes:
        if not any(v in moving for v in node.inputs):
            continue
        if not any(v.is_differentiable for v in node.results):
            moving.update(node.results)
            continue
        if not has_rule(node) or _reads(node, moving):
            return node
        moving.update(node.results)
    return None


def _reads(node: Node, moving: set[Value]) -> bool:
    """Whether a local Jacobian of a node is computed from values that move."""
    builder = Builder()
    for edge in edges_of(node):
        if edge.source in moving:
            jac = local_jacobian(edge, builder)
            read = [v for part in jac.parts for v in _values(part)]
            derived = {v: n for n in builder.nodes for v in n.results}
            while read:
                value = read.pop()
                if value in moving:
                    return True
                read += derived[value].inputs if value in derived else ()
    return False


def _values(part: Part) -> Iterator[Value]:
    if isinstance(part, Kernel):
        yield from (*part.push.values(), *part.pull.values())
    elif isinstance(part, Chain):
        for factor in part.factors:
            for inner in factor.parts:
                yield from _values(inner)
    else:
        yield from term_values(part)
