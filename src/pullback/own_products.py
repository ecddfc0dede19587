"""Products with derivatives that a user wrote, as operators: Jᵀ g runs the backward, J t its transpose.

They are composite: a trace sees the operators that they are made of.  Programs call the functions themselves, so that
`vmap` sees them too.
"""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .compilation import compile_derivative, vjp_task
from .dtypes import zeros_of
from .emit.program import Program
from .emit.python import emit_python
from .errors import MissingRuleError
from .graph import Graph, live_nodes
from .keys import held
from .library import LIBRARY
from .own_derivatives import PRODUCTS, OwnDerivative
from .recording import is_tracing
from .torch_private import is_traced

Tensors = Sequence[Tensor]
_PROGRAMS: "WeakKeyDictionary[OwnDerivative, dict[object, Program]]" = WeakKeyDictionary()
_LINEAR: "WeakKeyDictionary[OwnDerivative, bool]" = WeakKeyDictionary()


def _own_pulls(cotangents: Tensors, saved: Tensors, key: int) -> list[Tensor]:
    """The backward as it stands; an empty tensor for an argument that has no derivative."""
    own: OwnDerivative = held(key)
    program = _program(own, "all", lambda: emit_python(own.graph, name="backward"))
    found = program.run(*(c.contiguous() for c in cotangents), *saved)
    return [torch.zeros(()) if c is None else c.clone() for c in found]


def _own_pull(cotangent: Tensor, saved: Tensors, key: int, output: int, operand: int) -> Tensor:
    """Jᵀ g of one result in one argument."""
    own: OwnDerivative = held(key)
    _check_zero(own, saved)
    wanted = own.graph.outputs[operand]
    part = Graph(own.graph.inputs, live_nodes(own.graph.nodes, wanted), (wanted,))
    program = _program(own, operand, lambda: emit_python(part, name="backward"))
    cotangents = _zeros(own)
    cotangents[output] = cotangent.contiguous()
    (found,) = program.run(*cotangents, *saved)
    return found.clone()


def _own_push(tangent: Tensor, saved: Tensors, key: int, output: int, operand: int) -> Tensor:
    """J t of one result in one argument: the backward, which is linear, transposed."""
    own: OwnDerivative = held(key)
    _check_zero(own, saved)
    task = vjp_task(own.graph, [own.graph.inputs[output]], [operand])
    program = _program(
        own, (output, operand), lambda: compile_derivative(task, "reverse", fuse=False, name="forward").program
    )
    return program.run(*_zeros(own), *saved, tangent.contiguous())[0].clone()


for _name, _function in (("own_pulls", _own_pulls), ("own_pull", _own_pull), ("own_push", _own_push)):
    LIBRARY.impl(_name, _function, "CompositeImplicitAutograd")
    PRODUCTS[f"pullback.{_name}.default"] = _function


def _program(own: OwnDerivative, key: object, make: Callable[[], Program]) -> Program:
    programs = _PROGRAMS.setdefault(own, {})
    if key not in programs:
        programs[key] = make()
    return programs[key]


def _zeros(own: OwnDerivative) -> list[Tensor]:
    return [zeros_of(v) for v in own.graph.inputs[: own.results]]


def _check_zero(own: OwnDerivative, saved: Tensors) -> None:
    """Raise MissingRuleError for a backward that adds something, which its Jacobians do not tell; checked once."""
    if own in _LINEAR or is_tracing() or any(map(is_traced, saved)):
        return
    with torch.no_grad():
        found = emit_python(own.graph, name="backward").run(*_zeros(own), *saved)
    _LINEAR[own] = all(c is None or not bool(c.any()) for c in found)
    if not _LINEAR[own]:
        del _LINEAR[own]
        raise MissingRuleError(
            f"the backward of {own.title}, called at {own.source}, gives something other than zero for a cotangent of "
            "zeros, so that it is no Jacobian: grad, value_and_grad and vjp apply it as it stands; nothing else can "
            "be computed through it"
        )
