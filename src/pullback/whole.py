"""A function as it stands, effects included, as one program: no derivative of it, but all those that it asks for.

Transforms that the function calls are compiled while it is captured, and become part of its graph.  Nothing is going to
differentiate that graph, so that their fused backward kernels may stand in it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from .derivatives import CapturedCall, Executable, identifier
from .emit.aliases import distinct_outputs
from .emit.backends import emit
from .emit.lowering import lower
from .graph import differentiable_inputs
from .structure import numbered, rebuilder


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
        program = emit(lowered, identifier(call.name), plain=True, backend=call.backend, returned=captured.returned)
        structure = numbered(captured.out_spec)
        finish = rebuilder(structure)
        return Executable(
            program.run,
            finish,
            program=program,
            structure=structure,
            returned=captured.returned,
            recorded=_recorded(call),
            name=call.title,
        )


def _recorded(call: CapturedCall) -> tuple[int, ...]:
    """The inputs that results, or what is written with gradients on, depend on as far as autograd would record it."""
    graph, written = call.captured.graph, call.captured.recorded
    new = [value for old, value in graph.mutations if old in written]
    return differentiable_inputs(graph, (graph.outputs, new, tuple(written)))
