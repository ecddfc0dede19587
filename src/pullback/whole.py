"""A function as it stands, effects included, as one program: no derivative of it, but all those that it asks for.

Transforms that the function calls are compiled while it is captured, and become part of its graph.  Nothing is going to
differentiate that graph, so that their fused backward kernels may stand in it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from .derivatives import CapturedCall, Executable, identifier
from .emit.aliases import distinct_outputs
from .emit.lowering import lower
from .emit.python import emit_python
from .graph import values_in
from .structure import numbered, rebuilder

_STOP = "aten.detach.default"


@dataclass(frozen=True)
class WholeFunction:
    """The results of a function, and what it writes into its surroundings."""

    argnums: ClassVar[tuple[int, ...]] = ()
    is_final: ClassVar[bool] = True

    def compile(self, call: CapturedCall) -> Executable:
        """One program that computes the results and writes where the function does."""
        captured = call.captured
        outputs = [None if k in captured.returned else v for k, v in enumerate(captured.graph.outputs)]
        graph = replace(captured.graph, outputs=tuple(outputs))
        lowered = distinct_outputs(lower(graph), graph)
        program = emit_python(lowered, name=identifier(call.name), plain=True, returned=captured.returned)
        finish = rebuilder(numbered(captured.out_spec))
        return Executable(program.run, finish, whole=program, recorded=_recorded(call), name=call.title)


def _recorded(call: CapturedCall) -> tuple[int, ...]:
    """The inputs that results, or what is written with gradients on, depend on as far as autograd would record it."""
    graph, written = call.captured.graph, call.captured.recorded
    new = [value for old, value in graph.mutations if old in written]
    found = set(values_in((graph.outputs, new))) | written
    for node in reversed(graph.nodes):
        if node.op != _STOP and any(v in found and v.is_floating for v in node.results):
            found.update(v for v in node.inputs if v.is_floating)
    return tuple(k for k, value in enumerate(graph.inputs) if value in found and value.is_floating)
