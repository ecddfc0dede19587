"""Every derivative rule, one entry an operator.

To teach `pullback` an operator, add an entry to one of the tables here (or a table of your own to `TABLES`): a kind of
rule from `kinds`, with samples.  Products, both sweeps, sparsity and cost follow from it; the tests check every entry.
"""

from collections.abc import Mapping, Sequence

from ..errors import RuleError
from . import (
    activation,
    attention,
    complexes,
    contraction,
    distances,
    fourier,
    indexing,
    linalg,
    losses,
    nn,
    normalisation,
    pointwise,
    reduction,
    scattering,
    special,
    views,
)
from .constant import NONDIFFERENTIABLE
from .kinds import (
    POSITIVE,
    REAL,
    UNIT,
    Application,
    B,
    C,
    Call,
    Function,
    I,
    IndexMap,
    LinearMap,
    Multilinear,
    Pointwise,
    Rule,
    Sample,
    T,
    fused,
)

_OF_TENSORS = (pointwise, special, activation, contraction, views, indexing, scattering, reduction, distances)
_OF_MATRICES = (complexes, fourier, linalg)
_OF_NETWORKS = (nn, attention, normalisation, losses)

TABLES: Mapping[str, Mapping[str, Rule]] = {
    table.__name__.rpartition(".")[2]: table.RULES for table in (*_OF_TENSORS, *_OF_MATRICES, *_OF_NETWORKS)
}


def merged(tables: Mapping[str, Mapping[str, Rule]], constant: frozenset[str] = frozenset()) -> dict[str, Rule]:
    """One table of all entries.

    Raises RuleError if an operator has two entries, or one although its derivative is said to be zero by definition.
    """
    rules: dict[str, Rule] = {}
    for name, table in tables.items():
        twice: Sequence[str] = sorted(table.keys() & (rules.keys() | constant))
        if twice:
            raise RuleError(
                f"table {name!r} holds entries for {', '.join(twice)}, which have one already: remove either"
            )
        rules |= table
    return rules


RULES: dict[str, Rule] = merged(TABLES, NONDIFFERENTIABLE)

__all__ = [
    "NONDIFFERENTIABLE",
    "POSITIVE",
    "REAL",
    "RULES",
    "TABLES",
    "UNIT",
    "Application",
    "B",
    "C",
    "Call",
    "Function",
    "I",
    "IndexMap",
    "LinearMap",
    "Multilinear",
    "Pointwise",
    "Rule",
    "Sample",
    "T",
    "fused",
    "merged",
]
