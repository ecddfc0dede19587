"""Branches and loops: see `regions.py`.  Their Jacobians are kernels, which run graphs derived from their own."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph import Value
from ..keys import held
from ..regions import REGIONS, Region, floating
from ..terms import HOLE, Application, Kernel, Part
from .kernels import cotangent_or_zeros
from .kinds import Call, Rule


@dataclass(frozen=True)
class Control(Rule):
    """The rule of a region: every floating result may depend on every floating operand."""

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """A kernel."""
        operands, key = call.node.args
        push = Application("pullback.region_push.default", (HOLE, operands, key, output, operand))
        return (Kernel(push, Application("pullback.region_pull.default", (HOLE, operands, key, output, operand))),)


def _pull(call: Call, cotangents: Sequence[Value | None], wanted: Sequence[bool]) -> tuple[Value | None, ...]:
    """All operands at once."""
    operands, key = call.node.args
    region: Region = held(key)
    given = tuple(cotangent_or_zeros(call, cotangents[k], region.results[k]) for k in floating(region.results))
    types = [(v.shape, v.dtype) if v.is_floating else None for v in operands]
    found = iter(call.builder.node("pullback.region_pulls.default", (given, operands, key), types))
    return tuple(next(found) if v.is_floating else None for v in operands)


CONTROL: dict[str, Rule] = {op: Control(pull=_pull) for op in REGIONS}

__all__ = ["CONTROL"]
