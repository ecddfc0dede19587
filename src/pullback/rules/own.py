"""Functions whose derivative their author wrote: see `own_derivatives.py`.

What they compute stays as it is; their backward B(g, saved) is the transposed Jacobian, which is applied and never
written out.  There is one entry for all of them, so that its samples are the functions of the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MissingRuleError, RuleError
from ..graph import Node, Value
from ..keys import held
from ..own_derivatives import ATTACH, FUNCTION, OwnDerivative
from ..terms import HOLE, Application, Kernel, Part
from .kernels import cotangent_or_zeros
from .kinds import Call, Rule


@dataclass(frozen=True)
class Own(Rule):
    """The rule of `attach`: operands are the values, the arguments of the user's function, and what it saved."""

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """A kernel for an argument; nothing for values and for what was saved, which are constants here."""
        values, inputs, _, key = call.node.args
        own: OwnDerivative = held(key)
        _require_captured(call, own)
        place = operand - len(values)
        if not 0 <= place < len(inputs) or own.graph.outputs[place] is None:
            return ()
        saved = saved_values(call.node, own)
        pull = Application("pullback.own_pull.default", (HOLE, saved, key, output, place))
        return (Kernel(Application("pullback.own_push.default", (HOLE, saved, key, output, place)), pull),)


def _require_captured(call: Call, own: OwnDerivative) -> None:
    if own.is_cut:
        raise MissingRuleError(
            f"the backward of {own.title}, called at {call.node.source}, calls itself, perhaps through another one, "
            "and a derivative of this order was not captured: write it as plain tensor code"
        )


def saved_values(node: Node, own: OwnDerivative) -> tuple[Value, ...]:
    """What was saved; a result of the function as it comes out of `attach`, so that it keeps its derivative."""
    _, _, saved, _ = node.args
    found = [node.outputs[own.from_results[k]] if k in own.from_results else v for k, v in enumerate(saved)]
    return tuple(v for v in found if v is not None)


def _pull(call: Call, cotangents: Sequence[Value | None], wanted: Sequence[bool]) -> tuple[Value | None, ...]:
    """The whole backward at once."""
    values, inputs, _, key = call.node.args
    own: OwnDerivative = held(key)
    _require_captured(call, own)
    pairs = zip(cotangents, own.graph.inputs[: own.results], strict=True)
    given = tuple(cotangent_or_zeros(call, c, like) for c, like in pairs)
    types = [None if out is None else (v.shape, v.dtype) for out, v in zip(own.graph.outputs, inputs, strict=True)]
    found = call.builder.node("pullback.own_pulls.default", (given, saved_values(call.node, own), key), types)
    pulled = iter(found)
    of_inputs = [None if t is None else next(pulled) for t in types]
    return (*[None] * len(values), *of_inputs, *[None] * (len(call.operands) - len(values) - len(inputs)))


@dataclass(frozen=True)
class Called(Rule):
    """The rule of a user's function in a record, which calls its backward: no program is made of it."""

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """None that could be written down."""
        raise RuleError(f"{call.node} is differentiated by its author's backward, and only step by step")


OWN: dict[str, Rule] = {ATTACH: Own(pull=_pull), FUNCTION: Called()}

__all__ = ["OWN"]
