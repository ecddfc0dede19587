"""Every derivative rule, one entry an operator.

To teach `pullback` an operator, add an entry to one of the tables here (or a table of your own to `TABLES`): a kind of
rule from `kinds`, with samples.  Products, both sweeps, sparsity and cost follow from it; the tests check every entry.
"""

from collections.abc import Callable, Mapping, Sequence

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
    scans,
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

_OF_TENSORS = (pointwise, special, activation, contraction, views, indexing, scattering, reduction, scans, distances)
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

# ---------------------------------------------------------------- rules that users add

# What the floors above do about a new rule, before it is added, and the evidence that needs tensors: they know of both.
LISTENERS: list[Callable[[str], None]] = []
EVIDENCE: list[Callable[[str], int]] = []


def register(op: object, rule: Rule) -> None:
    """Teach `pullback` an operator: one of PyTorch's without a rule, or one of your own.

    Arguments:
        op: its name, such as "aten.special_bessel_j0.default" or "mylib::scale", or the operator of `torch.ops` itself.
        rule: one of the kinds of this package, with the samples it is checked on.

    Programs that were compiled before are forgotten.

    Raises:
        RuleError: the operator has a rule, or no derivative by definition; or the rule has no samples.
        UnsupportedTorchError: there is no such operator.
    """
    name = name_of(op)
    if not isinstance(rule, Rule):
        raise RuleError(f"register({name!r}): a rule is one of the kinds of pullback.rules, not {rule!r}")
    if name in RULES or name in NONDIFFERENTIABLE:
        known = "a rule" if name in RULES else "no derivative by definition"
        raise RuleError(f"register({name!r}): the operator has {known} already, which cannot be exchanged")
    if not rule.samples:
        raise RuleError(f"register({name!r}): the rule has no samples to be checked on: pass samples=(Sample(…),)")
    for listener in LISTENERS:
        listener(name)
    RULES[name] = rule


def check(op: object) -> int:
    """Run the evidence on an operator's rule, on each of its samples; returns how many there are.

    Its derivatives along random directions, forward and backward, are compared with each other by inner products and
    with central differences; then those of its gradient, to order two.

    Raises:
        RuleError: the operator has no rule; or a number does not agree, with both numbers and the sample; or what the
            rule says does not fit the operator's shapes.
        MissingRuleError: its formula uses operators without a rule.

    Cost: some ten milliseconds a sample.
    """
    name = name_of(op)
    if name not in RULES:
        raise RuleError(f"check({name!r}): the operator has no rule: pullback.rules.register gives it one")
    return EVIDENCE[-1](name)


def name_of(op: object) -> str:
    """The full name of an operator: namespace, name and overload."""
    name = str(op).replace("::", ".")
    return f"{name}.default" if name.count(".") == 1 else name


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
    "check",
    "fused",
    "merged",
    "name_of",
    "register",
]
