"""One operator of the database under our transforms, sample by sample, beside PyTorch's derivatives."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from ..api import hvp, jvp, vjp
from ..errors import GraphError, PullbackError, RuleError
from ..recorder import record
from ..torch_private import tree_leaves
from . import reference
from .database import SEED, Example, count, examples
from .reference import Expected, Tensors

DERIVATIVES = ("VJP", "JVP", "second order", "VJP recorded")
TOLERANCE = 1e-8  # |a − b| ≤ tolerance · (1 + |b|)
DIFFERENCES = 1e-4  # the same, for difference quotients

# Where PyTorch's number is good to fewer digits; at most 15 rows, each with its reason.
LOOSER: dict[str, tuple[float, str]] = {
    "cov": (1e-4, "some of its samples have weights in single precision"),
    "corrcoef": (1e-4, "made of `cov`"),
    "svd_lowrank": (
        1e-6,
        "PyTorch's second derivative errs in the eighth digit; ours agrees with differences of order 8",
    ),
    "pca_lowrank": (1e-6, "made of `svd_lowrank`"),
    "linalg.householder_product": (
        1e-6,
        "its samples are no reflections: numbers grow to 10⁵, and both sides lose digits",
    ),
}

# Where PyTorch's number is not the derivative: wherever ours differs, difference quotients decide.
_UNPOOLED = "where a place is written twice, its backward gives the cotangent to every writer, not to the last alone"
DISPUTED: dict[str, str] = {
    **{f"nn.functional.max_unpool{rank}d": _UNPOOLED for rank in (1, 2, 3)},
    "as_strided_scatter": "its backward gives the operand the cotangent of the places that are overwritten",
    "cholesky_inverse": "its forward mode loses most digits where a matrix is close to singular",
    "nn.functional.ctc_loss": "its backward is that of `log_softmax` and the loss together",
    "logcumsumexp": "its forward mode loses digits where entries differ by 10,000, and is NaN for complex ones",
    "masked.logaddexp": "its second derivative is NaN where both operands are masked",
    "nn.functional.linear_cross_entropy.chunked": "its second derivative is zero",
    "nn.functional.linear_cross_entropy.chunked_none": "its second derivative is zero",
}

# Where no difference quotient can tell anything: PyTorch's derivative is a convention, or (if it is NaN) there is none.
CONVENTIONS: dict[str, str] = {
    "linalg.norm.subgradients_at_zero": "the derivative is zero at zero, and that is constant, where PyTorch's is NaN",
    "normal": "a draw is a constant",
    "normal.number_mean": "a draw is a constant",
    "nn.functional.hinge_embedding_loss": "a target that is not exactly 1 or −1 is neither",
    "nn.functional.cosine_embedding_loss": "a target that is not exactly 1 or −1 is neither",
}


class Status(IntEnum):
    """How a comparison ended, the best first."""

    PASSED = 0
    UNSUPPORTED = 1  # by PyTorch: there is nothing to compare with
    REFUSED = 2
    FAILED = 3
    WRONG = 4


@dataclass(frozen=True)
class Outcome:
    """One derivative of one sample, or of many: the worst that happened, and what was said about it."""

    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One operator in one dtype: how many samples there were, and how each derivative fared on the worst of them.

    counts: for each derivative, on how many samples it fared that way.
    available: how many samples there are in the database.
    """

    name: str
    dtype: str
    samples: int
    outcomes: tuple[Outcome, ...]
    counts: tuple[int, ...]
    available: int

    @property
    def reason(self) -> str:
        """What was said about everything that did not pass."""
        return "; ".join(dict.fromkeys(o.reason for o in self.outcomes if o.reason))


def examine(name: str, dtype: torch.dtype, limit: int | None = None) -> Row:
    """Compare all derivatives of an operator on all samples, or on the first `limit`."""
    compared: list[tuple[Outcome, ...]] = []
    confirmed: bool | None = None  # by differences: unknown until a sample has passed
    tolerance = LOOSER.get(name, (TOLERANCE, ""))[0]
    vacuous = 0
    for example in examples(name, dtype, limit):
        if not example.primals or not example.has_results:
            vacuous += 1
            continue
        theirs = reference.expected(example)
        if name in CONVENTIONS and theirs.twice is not None and any(t.isnan().any() for t in theirs.twice):
            theirs = replace(theirs, twice=None)
        outcomes = compare(example, theirs, tolerance, disputed=name in DISPUTED)
        if not confirmed and outcomes[1].status == Status.PASSED and is_double(theirs):
            confirmed = bool(confirmed) | agrees_with_differences(example, theirs)
        compared.append(outcomes)
    compared = compared or [(Outcome(Status.UNSUPPORTED),) * len(DERIVATIVES)]
    worst, counts = zip(*map(worst_of, zip(*compared, strict=True)), strict=True)
    if confirmed is False and name not in CONVENTIONS and worst[1].status == Status.PASSED:
        lone = Outcome(Status.WRONG, "no sample agrees with its difference quotient")
        worst = (worst[0], lone, *worst[2:])
    return Row(name, str(dtype).removeprefix("torch."), len(compared) + vacuous, worst, counts, count(name, dtype))


def worst_of(outcomes: Sequence[Outcome]) -> tuple[Outcome, int]:
    """The worst outcome, and how often it occurred."""
    worst = max(outcomes, key=lambda outcome: outcome.status)
    return worst, sum(outcome.status == worst.status for outcome in outcomes)


def is_double(theirs: Expected) -> bool:
    """Whether there is a result, and all results have digits enough for difference quotients."""
    return any(y.numel() for y in theirs.values) and all(y.real.dtype == torch.float64 for y in theirs.values)


def agrees_with_differences(example: Example, theirs: Expected) -> bool:
    """Whether our tangents are difference quotients; false at a kink, of which every operator has some sample away."""
    return judged(push(example, theirs), reference.quotients(example, theirs), DIFFERENCES).status == Status.PASSED


def compare(example: Example, theirs: Expected, tolerance: float, disputed: bool = False) -> tuple[Outcome, ...]:
    """The outcome of each of `DERIVATIVES` on one sample."""
    first = (*theirs.values, *theirs.pulled)
    outcomes = (
        outcome(lambda: pull(example, theirs), lambda: first, tolerance),
        pushed_outcome(example, theirs, tolerance),
        outcome(lambda: bend(example, theirs), lambda: theirs.twice, tolerance),
        outcome(lambda: pull_recorded(example, theirs), lambda: first, tolerance),
    )
    return settle(example, theirs, outcomes) if disputed else outcomes


def pushed_outcome(example: Example, theirs: Expected, tolerance: float) -> Outcome:
    """That of our tangents: beside PyTorch's, and beside difference quotients where it has none."""
    if theirs.pushed is not None:
        return outcome(lambda: push(example, theirs), lambda: theirs.pushed, tolerance)
    return outcome(lambda: push(example, theirs), lambda: reference.quotients(example, theirs), DIFFERENCES)


def settle(example: Example, theirs: Expected, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Let difference quotients decide wherever we differ from PyTorch."""
    count = len(example.primals)

    def slopes() -> Tensors:
        return reference.quotients(example, theirs)

    def agree(pulled: Callable[[Example, Expected], Tensors]) -> Outcome:
        """⟨pulled, tangents⟩ = ⟨cotangents, tangents of the results⟩."""
        ours = lambda: [inner(pulled(example, theirs)[-count:], theirs.directions.tangents)]  # noqa: E731
        return outcome(ours, lambda: (inner(theirs.directions.cotangents, slopes()),), DIFFERENCES)

    ours: tuple[Callable[[], Outcome], ...] = (
        lambda: agree(pull),
        lambda: outcome(lambda: push(example, theirs), slopes, DIFFERENCES),
        lambda: outcome(
            lambda: bend(example, theirs), lambda: reference.second_quotients(example, theirs), DIFFERENCES
        ),
        lambda: agree(pull_recorded),
    )
    return tuple(o if o.status != Status.WRONG else again() for o, again in zip(outcomes, ours, strict=True))


def inner(these: Sequence[Tensor], those: Sequence[Tensor]) -> Tensor:
    """The real inner product of two lists of tensors."""
    pairs = zip(these, those, strict=True)
    products = [((a.conj() * b).real if a.is_complex() or b.is_complex() else a * b).sum() for a, b in pairs]
    return sum(products[1:], products[0])


def pull(example: Example, theirs: Expected) -> Tensors:
    """Our values, and our cotangents of the primals."""
    torch.manual_seed(SEED)
    values, pull_back = vjp(example.function, *example.primals)
    return (*values, *pull_back(theirs.directions.cotangents))


def pull_recorded(example: Example, theirs: Expected) -> Tensors:
    """The same by a record of one run."""
    primals = tuple(x.detach().requires_grad_() for x in example.primals)
    torch.manual_seed(SEED)
    with record() as tape:
        values = example.function(*primals)
        loss = inner(theirs.directions.cotangents, values)
        if not loss.requires_grad:
            return (*values, *map(torch.zeros_like, primals))
    pulled = tape.grad(loss, primals, allow_unused=True)
    return (*values, *(torch.zeros_like(x) if g is None else g for x, g in zip(primals, pulled, strict=True)))


def push(example: Example, theirs: Expected) -> Tensors:
    """Our tangents of the results."""
    torch.manual_seed(SEED)
    _, tangents = jvp(example.function, example.primals, theirs.directions.tangents)
    return tuple(tangents)


def bend(example: Example, theirs: Expected) -> Tensors:
    """The Hessian of ⟨cotangents, results⟩ along our tangents."""

    def weighted(*primals: Tensor) -> Tensor:
        return inner(theirs.directions.cotangents, example.function(*primals))

    torch.manual_seed(SEED)
    _, product = hvp(weighted, example.primals, theirs.directions.tangents)
    return tuple(tree_leaves(product))


def outcome(ours: Callable[[], Sequence[Tensor]], theirs: Callable[[], Tensors | None], tolerance: float) -> Outcome:
    """Compute and compare; what is refused by name is told apart from what breaks."""
    try:
        computed = ours()
    except (GraphError, RuleError) as error:
        return Outcome(Status.FAILED, reason_of(error))
    except PullbackError as error:
        return Outcome(Status.REFUSED, reason_of(error))
    except Exception as error:  # reported as such, in the table
        return Outcome(Status.FAILED, reason_of(error))
    wanted = theirs()
    return Outcome(Status.UNSUPPORTED) if wanted is None else judged(computed, wanted, tolerance)


def reason_of(error: Exception) -> str:
    """An error in few words, without the places in this package that it names."""
    missing = re.findall(r"^  (\w+\.\w+\.\w+) on ", str(error), re.MULTILINE)
    if missing:
        return "no rule for " + ", ".join(sorted(set(missing)))
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: " + re.sub(r" \([^()]*/[^()]*:\d+.*?\)|: \S+/\S+\.py:\d+.*", "", first)


def judged(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> Outcome:
    """Whether every number agrees; a NaN agrees with a NaN, an infinity with the same infinity."""
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return Outcome(Status.WRONG, f"result {k} is {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}")
        same = (a == b) | (a.isnan() & b.isnan())
        near = b.isfinite() & ((a - b).abs() <= tolerance * (1 + b.abs()))
        far = ~(same | near)
        if far.any():
            first = tuple(far.nonzero()[0].tolist())
            return Outcome(Status.WRONG, f"result {k} at {first} is {a[first].item():.9g}, not {b[first].item():.9g}")
    return Outcome(Status.PASSED)
