"""Which operands a node's results depend on, and the rule that says how."""

from ..expressions import Builder
from ..graph import COMPLEX, Node
from ..stages import Edge
from ..terms import Jac
from . import NONDIFFERENTIABLE, RULES
from .kinds import Call, Rule


def edges_of(node: Node) -> list[Edge]:
    """Every pair of a floating operand and a floating result; complex ones too, so that they can be refused."""
    if node.op in NONDIFFERENTIABLE:
        return []
    operands = [(k, v) for k, v in enumerate(node.inputs) if v.is_floating or v.dtype in COMPLEX]
    results = [(k, v) for k, v in enumerate(node.outputs) if v is not None and (v.is_floating or v.dtype in COMPLEX)]
    return [Edge(source, target, node, output, k) for output, target in results for k, source in operands]


def rule_of(node: Node) -> Rule:
    """The rule of a node whose operator is known to have one."""
    return RULES[node.op]


def local_jacobian(edge: Edge, builder: Builder) -> Jac:
    """The Jacobian on one edge; what its payload is computed from is added to the builder."""
    builder.source, builder.scope = edge.node.source, edge.node.scope
    parts = rule_of(edge.node).parts(Call(edge.node, builder), edge.output, edge.operand)
    source, target = edge.source, edge.target
    jac = Jac(parts, target.shape, source.shape, target.dtype, source.dtype)
    jac.check()
    return jac
