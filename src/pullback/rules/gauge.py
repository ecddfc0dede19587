"""What factorisations leave open; and the check that nothing depends on it, which returns a derivative as it is."""

from collections.abc import Mapping

from ..index import plain_axes
from ..terms import Part, Term
from .kinds import Call, Rule

DIRECTIONS_OP = "pullback.gauge_directions.default"
REQUIRE = "pullback.require_invariance.default"
# For each factorisation: which results are vectors, and whether they are rows.
VECTORS: Mapping[str, Mapping[int, bool]] = {
    "aten._linalg_svd.default": {0: False, 2: True},
    "aten._linalg_eigh.default": {1: False},
    "aten.linalg_eig.default": {1: False},
}


class Invariance(Rule):
    """The identity in the derivative; the slopes beside it are only looked at."""

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """One diagonal term."""
        if operand > 0:
            return ()
        axes = plain_axes(call.operands[0].shape)
        return (Term(1, (), axes, axes),)


GAUGE: dict[str, Rule] = {REQUIRE: Invariance()}

__all__ = ["DIRECTIONS_OP", "GAUGE", "REQUIRE", "VECTORS"]
