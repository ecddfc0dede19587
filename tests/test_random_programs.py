"""Random programs: values and derivatives of straight-line code against PyTorch, in every order of elimination tried.

A program is a list of steps; each reads earlier values, so that values fan out, and what nobody has read is
returned.  `PULLBACK_EXAMPLES` sets how many programs are drawn (150 if unset); they are the same in every run.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pullback
from support import reference

EXAMPLES = int(os.environ.get("PULLBACK_EXAMPLES", "150"))
ORDERS = 5  # random orders of elimination for each program
LARGEST = 36  # elements of a value, beyond which a step that would enlarge it is not drawn

Step = tuple[Callable[..., Tensor], tuple[int, ...]]
KINDS = ("unary", "unary", "binary", "binary", "product", "reduction", "along", "view", "join")


# ---------------------------------------------------------------- programs


@dataclass(frozen=True)
class Program:
    """Steps on a growing list of values: (operation, numbers of the values that it reads).

    inputs: the shapes of the values that are there at the start.
    outputs: the numbers of the values that are returned.
    """

    inputs: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    text: str

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = list(inputs)
        for operation, operands in self.steps:
            values.append(operation(*(values[k] for k in operands)))
        return tuple(values[k] for k in self.outputs)

    def __repr__(self) -> str:
        return f"Program({self.inputs}: {self.text} -> {self.outputs})"


Shape = tuple[int, ...]
Choice = tuple[str, Callable[..., Tensor], tuple[int, ...]]

SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": lambda x: torch.exp(-x * x),
    "log": lambda x: torch.log(1.5 + x * x),
    "sqrt": lambda x: torch.sqrt(x * x + 1),
    "reciprocal": lambda x: 1 / (2 + x * x),
    "softplus": torch.nn.functional.softplus,
    "gelu": torch.nn.functional.gelu,
    "square": lambda x: x * x,
    "cubed": lambda x: x.sin() ** 3,
    "atan": torch.atan,
    "scaled": lambda x: 0.7 * x - 0.2,
    "copied": lambda x: x.clone(),
}
PIECEWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "abs": lambda x: (x - 0.11).abs(),
    "clamp": lambda x: x.clamp(-0.6, 0.7),
    "leaky": torch.nn.functional.leaky_relu,
    "masked": lambda x: x.masked_fill(x > 0.5, 0.25),
    "stopped": lambda x: x * x.detach(),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda x, y: x / (1.5 + y * y),
    "max": lambda x, y: torch.maximum(x, y + 0.03),
    "where": lambda x, y: torch.where(x > y, x * 0.5, y),
    "hypot": lambda x, y: torch.hypot(x, y + 3),
}


def unary(draw: Any, x: Tensor) -> tuple[str, Callable[..., Tensor]]:
    return draw(st.sampled_from([*SMOOTH.items(), *PIECEWISE.items()]))


def reductions(draw: Any, x: Tensor) -> tuple[str, Callable[..., Tensor]]:
    d = draw(st.integers(0, x.dim() - 1))
    keep = draw(st.booleans())
    return draw(
        st.sampled_from(
            [
                (f"sum {d}", lambda x: x.sum(d, keepdim=keep)),
                (f"mean {d}", lambda x: x.mean(d, keepdim=keep)),
                (f"amax {d}", lambda x: x.amax(d, keepdim=keep)),
                (f"logsumexp {d}", lambda x: x.logsumexp(d, keepdim=keep)),
                (f"prod {d}", lambda x: (0.5 + x.tanh()).prod(d, keepdim=keep)),
                (f"norm {d}", lambda x: (x + 2).norm(dim=d, keepdim=keep)),
                ("sum", lambda x: x.sum()),
                ("mean", lambda x: x.mean()),
            ]
        )
    )


def along(draw: Any, x: Tensor) -> tuple[str, Callable[..., Tensor]]:
    """Operations along one axis that keep the shape."""
    d = draw(st.integers(0, x.dim() - 1))
    return draw(
        st.sampled_from(
            [
                (f"softmax {d}", lambda x: x.softmax(d)),
                (f"log_softmax {d}", lambda x: x.log_softmax(d)),
                (f"cumsum {d}", lambda x: x.cumsum(d)),
                (f"sort {d}", lambda x: x.sort(d).values),
                (f"flip {d}", lambda x: x.flip(d)),
                (f"roll {d}", lambda x: x.roll(1, d)),
                (f"centred {d}", lambda x: x - x.mean(d, keepdim=True)),
                (f"layer norm {d}", lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:], eps=0.1)),
            ]
        )
    )


def views(draw: Any, x: Tensor) -> tuple[str, Callable[..., Tensor]]:
    d, size = draw(st.sampled_from(list(enumerate(x.shape))))
    start = draw(st.integers(0, size - 1))
    e = draw(st.integers(0, x.dim() - 1))
    table = torch.tensor(draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3)))
    return draw(
        st.sampled_from(
            [
                (f"slice {d} from {start}", lambda x: x.narrow(d, start, size - start)),
                (f"every second {d}", lambda x: x[(slice(None),) * d + (slice(None, None, 2),)]),
                (f"select {d} {start}", lambda x: x.select(d, start)),
                (f"transpose {d} {e}", lambda x: x.transpose(d, e)),
                ("flat", lambda x: x.reshape(-1)),
                ("row", lambda x: x.unsqueeze(d)),
                (f"take {d} {table.tolist()}", lambda x: x.index_select(d, table)),
                (f"looked up {d} {table.tolist()}", lambda x: x[(slice(None),) * d + (table,)]),
                (f"padded {d}", lambda x: torch.nn.functional.pad(x, (1, 0))),
                ("repeated", lambda x: x.expand(2, *x.shape)),
                (f"joined parts {d}", lambda x: torch.cat([p.sin() for p in x.split(1, d)][::-1], d)),
                ("lower triangle", lambda x: x.tril() if x.dim() > 1 else x.neg()),
                ("diagonal", lambda x: x.diagonal() if x.dim() > 1 else torch.diag(x)),
                ("halves", lambda x: torch.stack([x, x.cos()], d)),
            ]
        )
    )


def products(draw: Any, x: Tensor, y: Tensor) -> tuple[str, Callable[..., Tensor]] | None:
    """A matrix product, if the shapes can be made to fit."""
    if not x.dim() or not y.dim():
        return None
    if x.dim() <= 3 and y.dim() == 2 and x.shape[-1] == y.shape[0]:
        return "matmul", torch.matmul
    if x.dim() <= 2 and y.dim() == 2 and x.shape[-1] == y.shape[1]:
        return "matmul transposed", lambda x, y: x @ y.t()
    if x.dim() == y.dim() == 3 and x.shape[0] == y.shape[0] and x.shape[2] == y.shape[1]:
        return "bmm", torch.bmm
    if x.dim() == y.dim() == 1:
        return "outer", torch.outer
    return None


@st.composite
def programs(draw: Any) -> Program:
    """3 to 25 steps on 1 to 3 inputs; values are computed on the way, to know their shapes."""
    shapes = draw(st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=3))
    values = [torch.full(shape, 0.3) for shape in shapes]
    steps: list[Step] = []
    text: list[str] = []
    for _ in range(draw(st.integers(3, 25))):
        name, operation, operands = draw_step(draw, values)
        value = operation(*(values[k] for k in operands))
        if 0 < value.numel() <= LARGEST and value.dim() <= 4:
            text.append(f"{len(values)} = {name}{operands}")
            steps.append((operation, operands))
            values.append(value)
    read = {k for _, operands in steps for k in operands}
    unread = [k for k in range(len(shapes), len(values)) if k not in read]
    outputs = tuple(unread[:4]) or (len(values) - 1,)
    return Program(tuple(shapes), tuple(steps), outputs, "; ".join(text))


def draw_step(draw: Any, values: list[Tensor]) -> Choice:
    """An operation that fits the values that it is drawn with."""
    k, m = (draw(st.integers(0, len(values) - 1)) for _ in range(2))
    x, y = values[k], values[m]
    kind = draw(st.sampled_from(KINDS))
    if kind == "product":
        product = products(draw, x, y)
        if product is not None:
            return (*product, (k, m))
    if kind in ("binary", "product") and fits(x, y):
        return (*draw(st.sampled_from(list(BINARY.items()))), (k, m))
    if kind == "join" and x.dim() and x.shape == y.shape:
        d = draw(st.integers(0, x.dim() - 1))
        return f"cat {d}", lambda x, y: torch.cat([x, y], d), (k, m)
    if kind in ("reduction", "along", "view") and x.dim():
        make = {"reduction": reductions, "along": along, "view": views}[kind]
        return (*make(draw, x), (k,))
    return (*unary(draw, x), (k,))


def fits(x: Tensor, y: Tensor) -> bool:
    """Whether two shapes broadcast to a small one."""
    try:
        return torch.broadcast_shapes(x.shape, y.shape).numel() <= LARGEST
    except RuntimeError:
        return False


# ---------------------------------------------------------------- what PyTorch says


@dataclass(frozen=True)
class Expected:
    """The results y; uᵀJ; J v; the gradient of ⟨u, y⟩ + ½‖y‖² and its Hessian times v."""

    y: tuple[Tensor, ...]
    pulled: tuple[Tensor, ...]
    pushed: tuple[Tensor, ...]
    product: tuple[Tensor, ...]


def inner(a: Any, b: Any) -> Tensor:
    return reduce(torch.add, ((s * t).sum() for s, t in zip(a, b, strict=True)))


def loss(program: Program, u: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """A scalar whose Hessian mixes all results."""

    def run(*x: Tensor) -> Tensor:
        y = program(*x)
        return inner(y, u) + 0.5 * inner(y, y)

    return run


@reference()
def expected(program: Program, x: tuple[Tensor, ...], v: tuple[Tensor, ...], u: tuple[Tensor, ...]) -> Expected:
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    own = [t.clone().requires_grad_() for t in x]
    y = program(*own)
    dual = tuple(t.clone().requires_grad_() for t in u)  # J v is the derivative of ⟨uᵀJ, v⟩ in u
    pulled = torch.autograd.grad(inner(y, dual), own, create_graph=True, **options)
    pushed = torch.autograd.grad(inner(pulled, v), dual, retain_graph=True, **options)
    gradient = torch.autograd.grad(loss(program, u)(*own), own, create_graph=True, **options)
    along_v = inner(gradient, v)
    product = torch.autograd.grad(along_v, own, **options) if along_v.requires_grad else map(torch.zeros_like, own)
    results = (y, pulled, pushed, product)
    return Expected(*(tuple(t.detach() for t in group) for group in results))


def close(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


# ---------------------------------------------------------------- the tests


def point(program: Program) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs, tangents and cotangents."""
    torch.manual_seed(len(program.steps))
    x = tuple(torch.randn(shape, dtype=torch.float64) for shape in program.inputs)
    v = tuple(map(torch.randn_like, x))
    return x, v, tuple(map(torch.randn_like, program(*x)))


@settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(programs())
def test_products_of_random_programs(program: Program) -> None:
    x, v, u = point(program)
    theirs = expected(program, x, v, u)
    y, pull_back = pullback.vjp(program, *x)
    close(y, theirs.y)
    close(pull_back(u), theirs.pulled)
    close(pullback.jvp(program, x, v)[1], theirs.pushed)
    product = pullback.hvp(loss(program, u), x, v)[1]
    close(product if len(x) > 1 else (product,), theirs.product)


@settings(
    max_examples=max(EXAMPLES // 3, 1),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(programs())
def test_every_order_of_elimination_gives_the_same_jacobian(program: Program) -> None:
    x, _, _ = point(program)
    argnums = tuple(range(len(x)))
    jacobian = pullback.jacobian(program, argnums, order="reverse")
    theirs = jacobian(*x)
    names = [vertex.name for vertex in jacobian.plan(*x).order.vertices]
    shuffler = random.Random(len(names))
    for _ in range(ORDERS if len(names) > 2 else 1):
        order = shuffler.sample(names, len(names))
        ours = pullback.jacobian(program, argnums, order=order)(*x)
        for row, expected_row in zip(ours, theirs, strict=True):
            close(row, expected_row)
