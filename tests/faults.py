"""Rules that are wrong at one node of a graph, in a way that real mistakes are."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pullback.index import Axis, Label, substitute
from pullback.rules import RULES, Rule
from pullback.rules.kinds import Call
from pullback.signature import CACHE
from pullback.terms import Factor, Part, Term

Alter = Callable[[tuple[Part, ...]], tuple[Part, ...]]


def scaled(by: float) -> Alter:
    return lambda parts: tuple(replace(p, scale=p.scale * by) for p in parts if isinstance(p, Term))


def zero(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return ()


def transposed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The factors of a product, read with their axes the other way round."""
    return tuple(replace(p, factors=tuple(map(turned, p.factors))) for p in parts if isinstance(p, Term))


def turned(factor: Factor) -> Factor:
    return replace(factor, axes=(*factor.axes[:-2], *factor.axes[:-3:-1]))


def first_only(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Where a cotangent should be summed over what was broadcast, only the first of it is taken."""
    changed = []
    for term in parts:
        inside = {label for index in term.inp for label in labels(index)}
        summed = {label: Axis(0) for index in term.out for label in labels(index) if label not in inside}
        at = [tuple(substitute(i, summed) for i in term.out)]
        factors = tuple(replace(f, axes=tuple(substitute(i, summed) for i in f.axes)) for f in term.factors)
        changed.append(replace(term, out=at[0], factors=factors))
    return tuple(changed)


def labels(index: Any) -> Iterator[Label]:
    yield from (label for label, _ in getattr(index, "parts", ()))


@dataclass(frozen=True)
class Fault:
    """A mistake in one operator's rule.

    kind: what it is called.
    op: the operator.
    alter: what becomes of the local Jacobian's terms; None: those in the other operand are taken.
    operand: in which operand.
    """

    kind: str
    op: str
    alter: Alter | None
    operand: int = 0


@dataclass(frozen=True)
class Faulty(Rule):
    """A rule that makes a mistake at the node of one name, and is right everywhere else."""

    right: Rule | None = None
    fault: Fault | None = None
    name: str = ""

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        assert self.right is not None
        assert self.fault is not None
        parts = self.right.parts(call, output, operand)
        if call.node.results[0].name != self.name or operand != self.fault.operand:
            return parts
        return self.fault.alter(parts) if self.fault.alter else self.right.parts(call, output, 1 - operand)


@contextmanager
def injected(fault: Fault, name: str) -> Iterator[None]:
    """Make one mistake, at the node that computes the value of this name."""
    right = RULES[fault.op]

    def pull(call: Call, *rest: Any) -> Any:
        wrong = call.node.results[0].name == name
        return None if wrong or right.pull is None else right.pull(call, *rest)

    RULES[fault.op] = Faulty(right.samples, pull if right.pull else None, right.differentiable, right, fault, name)
    CACHE.clear()
    try:
        yield
    finally:
        RULES[fault.op] = right
        CACHE.clear()


SIGN, DOUBLE = scaled(-1), scaled(2)
FAULTS = (
    Fault("sign", "aten.sin.default", SIGN),
    Fault("sign", "aten.sub.Tensor", SIGN, operand=1),
    Fault("sign", "aten.cos.default", SIGN),
    Fault("sign", "aten.log.default", SIGN),
    Fault("factor 2", "aten.tanh.default", DOUBLE),
    Fault("factor 2", "aten.sum.dim_IntList", DOUBLE),
    Fault("factor 2", "aten.sqrt.default", DOUBLE),
    Fault("factor 2", "aten.cumsum.default", DOUBLE),
    Fault("swapped operands", "aten.mul.Tensor", None),
    Fault("swapped operands", "aten.div.Tensor", None, operand=1),
    Fault("swapped operands", "aten.maximum.default", None),
    Fault("swapped operands", "aten.atan2.default", None),
    Fault("missing transpose", "aten.mm.default", transposed),
    Fault("missing transpose", "aten.mm.default", transposed, operand=1),
    Fault("missing transpose", "aten.bmm.default", transposed),
    Fault("zero", "aten.exp.default", zero),
    Fault("zero", "aten._softmax.default", zero),
    Fault("zero", "aten.mean.dim", zero),
    Fault("zero", "aten.gelu.default", zero),
    Fault("wrong broadcast sum", "aten.add.Tensor", first_only, operand=1),
    Fault("wrong broadcast sum", "aten.sigmoid.default", SIGN),
    Fault("wrong broadcast sum", "aten.where.self", first_only, operand=2),
    Fault("wrong broadcast sum", "aten.pow.Tensor_Tensor", first_only, operand=1),
    Fault("zero", "aten.select.int", zero),
)


BLOCKS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda x, w, b: torch.tanh(x @ w),
    lambda x, w, b: torch.mm(x.sin(), w.cos()),
    lambda x, w, b: (x * w).sin().exp() * 0.3,
    lambda x, w, b: x.softmax(-1) / (w.exp() + 1),
    lambda x, w, b: (x - w.sin() + b).sigmoid(),
    lambda x, w, b: functional.gelu(x) + x.mean(0, keepdim=True),
    lambda x, w, b: (x * x + 1).sqrt() + x.sum(1, keepdim=True) * 0.1,
    lambda x, w, b: torch.maximum(x, w).cumsum(0) * 0.3 + b,
    lambda x, w, b: torch.atan2(x, w + 3) + (x * x + 1.5).log(),
    lambda x, w, b: torch.bmm(x.expand(2, 4, 4), torch.stack([w, w * w]))[1] * 0.2,
    lambda x, w, b: torch.where(x > x.mean(), x * 0.5, b.sin()),
    lambda x, w, b: (x * x + 1.2).pow(b * 0.3),
)


def long_function(seed: int, blocks: int = 36) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A scalar function of 4×4 matrices x and w and a row b, of more than 200 nodes that all matter."""
    drawn = random.Random(seed).choices(BLOCKS, k=blocks - len(BLOCKS)) + list(BLOCKS)
    random.Random(seed).shuffle(drawn)

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        for block in drawn:
            x = x * 0.7 + block(x, w, b) * 0.5
        return (x.tanh() * w).sum()

    return f
