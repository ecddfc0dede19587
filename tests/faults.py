"""Rules that are wrong at one node of a graph, in a way that real mistakes are."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pullback.evaluation import evaluate, push
from pullback.expressions import Builder
from pullback.graph import Node, Value
from pullback.index import Axis, Label, fresh, of_label, substitute
from pullback.rules import RULES, Rule, edges
from pullback.rules.kinds import Call
from pullback.signature import CACHE
from pullback.terms import Jac, Part, Term, normalised

Alter = Callable[[tuple[Part, ...]], tuple[Part, ...]]


def scaled(by: float) -> Alter:
    return lambda parts: tuple(replace(p, scale=p.scale * by) for p in parts if isinstance(p, Term))


def zero(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return ()


def transposed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The factors of a product are read with their axes the other way round; if there are none, the operand is."""
    return tuple(map(turned, filter(lambda p: isinstance(p, Term), parts)))


def turned(term: Any) -> Part:
    if any(is_square(f.axes) for f in term.factors):
        return replace(term, factors=tuple(replace(f, axes=reversed_pair(f.axes)) for f in term.factors))
    return replace(term, inp=reversed_pair(term.inp))


def is_square(axes: tuple[Any, ...]) -> bool:
    sizes = [[label.size for label in labels(index)] for index in axes[-2:]]
    return len(sizes) == 2 and sizes[0] == sizes[1]


def reversed_pair(axes: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*axes[:-2], *axes[:-3:-1]) if is_square(axes) else axes


def wrongly_summed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Of what was broadcast only the first cotangent is taken; where nothing was, they are summed all the same."""
    return tuple(first_only(p) or over_all(p) for p in parts if isinstance(p, Term))


def first_only(term: Term) -> Term | None:
    inside = {label for index in term.inp for label in labels(index)}
    summed = {label: Axis(0) for index in term.out for label in labels(index) if label not in inside}
    factors = tuple(replace(f, axes=tuple(substitute(i, summed) for i in f.axes)) for f in term.factors)
    return replace(term, out=tuple(substitute(i, summed) for i in term.out), factors=factors) if summed else None


def over_all(term: Term) -> Term:
    """The first axis of the operand has nothing to do with any other."""
    axes = [k for k, index in enumerate(term.inp) if any(label.size > 1 for label in labels(index))]
    if not axes:
        return term
    (label,) = labels(term.inp[axes[0]])
    return replace(term, inp=(*term.inp[: axes[0]], of_label(fresh(label.size)), *term.inp[axes[0] + 1 :]))


def unconjugated(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Conjugates are taken where there are none, and left out where there are."""
    return tuple(replace(p, antilinear=not p.antilinear) for p in parts if isinstance(p, Term))


def labels(index: Any) -> Iterator[Label]:
    yield from (label for label, _ in getattr(index, "parts", ()))


KINDS: dict[str, Alter | None] = {
    "sign": scaled(-1),
    "factor 2": scaled(2),
    "swapped operands": None,  # the terms in the other operand are taken
    "missing transpose": transposed,
    "zero": zero,
    "wrong broadcast sum": wrongly_summed,
}
COMPLEX_KINDS = {**KINDS, "missing conjugate": unconjugated}


@dataclass(frozen=True)
class Fault:
    """A mistake in one operator's rule, in one operand."""

    kind: str
    op: str
    operand: int = 0

    def parts(self, right: Rule, call: Call, output: int) -> tuple[Part, ...]:
        """What becomes of the local Jacobian in the operand."""
        alter = COMPLEX_KINDS[self.kind]
        if alter is not None:
            return alter(right.parts(call, output, self.operand))
        others = [k for k, v in enumerate(call.operands) if v.is_differentiable and k != self.operand]
        return right.parts(call, output, others[0])

    def matters(self, node: Node, values: dict[Value, Tensor]) -> bool:
        """Whether it changes the Jacobian at a node: two operands that are swapped may be equal."""
        operands = [v for v in node.inputs if v.is_differentiable]
        source, target = node.inputs[self.operand], node.results[0]
        if self.kind == "swapped operands" and (len(operands) != 2 or len({v.shape for v in operands}) > 1):
            return False
        call, right = Call(node, Builder()), RULES[node.op]
        chosen = [tuple(right.parts(call, 0, self.operand)), tuple(self.parts(right, call, 0))]
        known = evaluate(call.builder.nodes, values)
        direction = random_like(values[source])
        jacs = [normalised(Jac(p, target.shape, source.shape, target.dtype, source.dtype)) for p in chosen]
        straight, bent = (push(jac, known, direction) for jac in jacs)
        return float((straight - bent).abs().max()) > 1e-3 * float(straight.abs().max())


def random_like(tensor: Tensor) -> Tensor:
    return torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class Faulty(Rule):
    """A rule that makes a mistake at the node of one name, and is right everywhere else."""

    right: Rule | None = None
    fault: Fault | None = None
    name: str = ""

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        assert self.right is not None
        assert self.fault is not None
        if call.node.results[0].name != self.name or operand != self.fault.operand:
            return self.right.parts(call, output, operand)
        return self.fault.parts(self.right, call, output)


@contextmanager
def injected(fault: Fault, name: str) -> Iterator[None]:
    """Make one mistake, at the node that computes the value of this name."""
    right = RULES[fault.op]

    def pull(call: Call, *rest: Any) -> Any:
        wrong = call.node.results[0].name == name
        return None if wrong or right.pull is None else right.pull(call, *rest)

    RULES[fault.op] = Faulty(right.samples, pull if right.pull else None, right.differentiable, right, fault, name)
    known = edges.HOLD_FOR_COMPLEX
    edges.HOLD_FOR_COMPLEX = known | {fault.op}  # what the kind of the right rule says otherwise
    CACHE.clear()
    try:
        yield
    finally:
        RULES[fault.op], edges.HOLD_FOR_COMPLEX = right, known
        CACHE.clear()


OPERATORS = tuple(
    f"aten.{op}"
    for op in """
    sin.default cos.default exp.default log.default sqrt.default tanh.default sigmoid.default gelu.default
    pow.Tensor_Tensor add.Tensor sub.Tensor mul.Tensor div.Tensor maximum.default atan2.default where.self mm.default
    bmm.default _softmax.default sum.dim_IntList
    """.split()
)
COMPLEX_OPERATORS = tuple(
    f"aten.{op}"
    for op in """
    mul.Tensor mm.default exp.default div.Tensor sub.Tensor complex.default abs.default cumsum.default sin.default
    _fft_c2c.default
    """.split()
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


COMPLEX_BLOCKS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda z, w, b: (z @ w).sin() * 0.1,
    lambda z, w, b: (z * w).exp() * 0.1,
    lambda z, w, b: z / (w + 3) - b,
    lambda z, w, b: torch.complex(z.real.sin(), z.imag * b),
    lambda z, w, b: z.abs() * w,
    lambda z, w, b: z.conj().cumsum(0) * 0.2 - w * z,
    lambda z, w, b: torch.fft.fft(z * b) * 0.2,
    lambda z, w, b: z.mH @ w * 0.2,
)


def long_function(
    seed: int, blocks: int = 30, table: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = BLOCKS
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A scalar function of 4×4 matrices x and w and a row b, of more than 200 nodes that all matter."""
    drawn = random.Random(seed).choices(table, k=blocks - len(table)) + list(table)
    random.Random(seed).shuffle(drawn)

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        for block in drawn:
            x = x * 0.7 + block(x, w, b) * 0.5
        return (x.tanh() * w).real.sum() if x.is_complex() else (x.tanh() * w).sum()

    return f
