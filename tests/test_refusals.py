"""What is refused: by which error, with the user's line, and with the way out; never by a bare error of PyTorch's."""

import functools
import inspect
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback import ArgumentError, CaptureError, MissingRuleError, OrderError, PullbackError, ShapeError

X = torch.tensor([[0.5, 1.0], [2.0, 3.0]])
closed = torch.tensor(0.5)


class Endless(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


@functools.cache
def cached() -> Tensor:
    return torch.ones(2)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


def assigns(x: Tensor) -> Tensor:
    x[0] = 1.0
    return x.sum()


def in_place_on_a_view(x: Tensor) -> Tensor:
    x.view(-1).add_(1)
    return x.sum()


@dataclass(frozen=True)
class Refused:
    """A function of one tensor, the error that its gradient raises, and what that says."""

    f: Callable[[Tensor], Any]
    error: type[PullbackError]
    said: str


WHERE, NUMBER, ARRAY = r"torch\.where", "pass the number as a Python argument", "use torch's functions"
RULE, SELECT = r"Rewrite the function without them.*detach", "choose among them with torch.where"
FUNCTIONS = {
    # a Python branch on a tensor's value
    "if": Refused(lambda x: x.sum() if x.sum() > 0 else -x.sum(), CaptureError, f"branches on the value.*{WHERE}"),
    "while": Refused(lambda x: x.sum() * len([*iter(lambda: bool(x.sum() > 1), False)]), CaptureError, WHERE),
    "and": Refused(lambda x: x.sum() and x.sum() * 2, CaptureError, f"branches on the value.*{WHERE}"),
    "not": Refused(lambda x: x.sum() * (not x.any()), CaptureError, f"branches on the value.*{WHERE}"),
    "assert": Refused(lambda x: x.sum() if all(x.isfinite().flatten()) else 0, CaptureError, WHERE),
    "max of Python": Refused(lambda x: max(x.sum(), x.prod()), CaptureError, WHERE),
    "branch in a module": Refused(lambda x: Branching()(x).sum(), CaptureError, f"branches on the value.*{WHERE}"),
    "branch on what is closed over": Refused(lambda x: x.sum() if closed > 0 else -x.sum(), CaptureError, WHERE),
    "torch.equal": Refused(lambda x: x.sum() * torch.equal(x, x + 1), CaptureError, f"torch.equal.*{WHERE}"),
    "torch.allclose": Refused(lambda x: x.sum() * torch.allclose(x, x), CaptureError, f"torch.allclose.*{WHERE}"),
    # a value taken out of the graph
    "item": Refused(lambda x: x.sum() * x[0, 0].item(), CaptureError, rf"\.item\(\) or.*{NUMBER}"),
    "closed item": Refused(lambda x: x.sum() * closed.item(), CaptureError, rf"\.item\(\) or.*{NUMBER}"),
    "item of a draw": Refused(lambda x: x.sum() * torch.rand(()).item(), CaptureError, rf"\.item\(\) or.*{NUMBER}"),
    "tolist": Refused(lambda x: torch.tensor(x.tolist()).sum(), CaptureError, rf"\.tolist\(\)\).*{NUMBER}"),
    "numpy": Refused(lambda x: torch.from_numpy(x.numpy()).sum(), CaptureError, rf"\.numpy\(\).*{ARRAY}"),
    "detached numpy": Refused(lambda x: x.sum() * float(x.detach().numpy()[0, 0]), CaptureError, ARRAY),
    "numpy function": Refused(lambda x: torch.from_numpy(np.sin(x)).sum(), CaptureError, f"NumPy.*{ARRAY}"),
    "float": Refused(lambda x: x.sum() * float(x[0, 0]), CaptureError, f"Python float.*{NUMBER}"),
    "int": Refused(lambda x: x.sum() * int(x[0, 0]), CaptureError, f"Python int.*{NUMBER}"),
    "math": Refused(lambda x: x.sum() * math.sqrt(x[0, 0]), CaptureError, f"Python float.*{NUMBER}"),
    "range": Refused(lambda x: sum(x.sum() for _ in range(x.argmax())), CaptureError, f"Python int.*{NUMBER}"),
    "torch.tensor": Refused(lambda x: torch.tensor([x[0, 0], x[0, 1]]).sum(), CaptureError, r"torch\.stack"),
    # shapes that depend on values
    "mask": Refused(lambda x: x[x > 0].sum(), CaptureError, SELECT),
    "masked_select": Refused(lambda x: x.masked_select(x > 0).sum(), CaptureError, SELECT),
    "nonzero": Refused(lambda x: x.sum() * x.nonzero().shape[0], CaptureError, SELECT),
    "unique": Refused(lambda x: x.unique().sum(), CaptureError, SELECT),
    # changes in place
    "in place": Refused(lambda x: x.mul_(2).sum(), CaptureError, "'x' in place.*to a new tensor"),
    "assignment": Refused(assigns, CaptureError, "'x' in place.*to a new tensor"),
    "in place through a view": Refused(in_place_on_a_view, CaptureError, "'x' in place.*to a new tensor"),
    "data": Refused(lambda x: (setattr(x, "data", x * 2), x.sum())[1], CaptureError, r"\.data.*new tensor"),
    # what is not done yet
    "autograd.Function": Refused(lambda x: Endless.apply(x).sum(), CaptureError, "Endless.*no backward.*plain tensor"),
    "cond": Refused(
        lambda x: torch.cond(x.sum() > 0, torch.sin, torch.sum, (x,)).sum(), CaptureError, "branches.*same structure"
    ),
    "sparse": Refused(lambda x: (x.to_sparse() * 2).sum(), CaptureError, "sparse.*ordinary dense tensors"),
    "nested": Refused(lambda x: torch.nested.nested_tensor([x, x]).sum(), CaptureError, "other operators"),
    # rules that are missing
    "LDL": Refused(lambda x: torch.linalg.ldl_factor(x)[0].sum(), MissingRuleError, f"ldl_factor.*{RULE}"),
    "reflectors": Refused(lambda x: torch.geqrf(x)[0].sum(), MissingRuleError, f"geqrf.*{RULE}"),
    "complex": Refused(
        lambda x: nn.functional.silu(torch.complex(x, x)).abs().sum(), MissingRuleError, f"complex numbers.*{RULE}"
    ),
    "special function": Refused(lambda x: torch.special.bessel_j0(x).sum(), MissingRuleError, f"bessel_j0.*{RULE}"),
    # outputs that have no gradient
    "no scalar": Refused(lambda x: x * 2, ShapeError, r"float32\[2, 2\].*\.sum\(\) or \.mean\(\)\), or use jacobian"),
    "one element is no scalar": Refused(lambda x: x[:1, 0], ShapeError, r"float32\[1\].*or use jacobian"),
    "two outputs": Refused(lambda x: (x.sum(), x.sum()), ShapeError, "a tuple of 2: use jacobian or vjp.*has_aux"),
    "a dictionary": Refused(lambda x: {"loss": x.sum()}, ShapeError, "a dict of 1: use jacobian or vjp"),
    "a number": Refused(lambda x: 3.0, ArgumentError, "3.0 as output 0.*has_aux"),
    "nothing": Refused(lambda x: None, ArgumentError, "None as output 0.*has_aux"),
    "an integer tensor": Refused(lambda x: x.argmax(), ArgumentError, r"int64\[\].*has_aux"),
    "a boolean tensor": Refused(lambda x: x.any(), ArgumentError, r"bool\[\].*floating dtype"),
}


def line_of(f: Callable[..., Any]) -> int:
    return inspect.unwrap(f).__code__.co_firstlineno


def assert_says(error: BaseException, f: Callable[..., Any], said: str, lines: int = 3) -> None:
    """The message has the words, and a line of this file that belongs to `f`."""
    message = str(error)
    assert re.search(said, message, re.DOTALL), message
    places = {f"{__file__}:{line_of(f) + k}" for k in range(lines)}
    assert any(place in message for place in places), message


@pytest.mark.parametrize("name", FUNCTIONS)
def test_refusal_of_a_function(name: str) -> None:
    case = FUNCTIONS[name]
    with pytest.raises(case.error) as refused:
        pullback.grad(case.f)(X.clone())
    assert_says(refused.value, Branching.forward if name == "branch in a module" else case.f, case.said)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_refusal_inside_another_transform(name: str) -> None:
    """The line is that of the function inside, not of the transform around it."""
    case = FUNCTIONS[name]

    def outer(x: Tensor) -> Tensor:
        return pullback.grad(case.f)(x * 1).sum()

    with pytest.raises(PullbackError) as refused:
        pullback.grad(outer)(X.clone())
    assert isinstance(refused.value, case.error)
    assert_says(refused.value, Branching.forward if name == "branch in a module" else case.f, case.said)


def test_all_missing_rules_are_listed_at_once_with_their_lines() -> None:
    def f(x: Tensor) -> Tensor:
        reflectors = torch.geqrf(x)[0]
        bessel = torch.special.bessel_j0(x)
        again = torch.special.bessel_j0(x + 1)
        unused = torch.special.bessel_j1(x)  # on no way to the output
        return (reflectors * bessel * again).sum() + torch.linalg.ldl_factor(x)[0].sum() + 0 * unused.detach().sum()

    with pytest.raises(MissingRuleError) as refused:
        pullback.grad(f)(X)
    message = str(refused.value)
    assert message.startswith("3 operators")
    for k, operator in ((1, "geqrf"), (2, "bessel_j0"), (5, "linalg_ldl_factor_ex")):
        assert f"{operator}.default on float32[2, 2], first used at {__file__}:{line_of(f) + k}" in message
    assert "bessel_j1" not in message


@pytest.mark.parametrize("transform", [pullback.jacobian, pullback.hessian], ids=["jacobian", "hessian"])
def test_missing_rules_of_other_transforms(transform: Callable[..., Any]) -> None:
    def f(x: Tensor) -> Tensor:
        return torch.geqrf(x)[0].sum()

    for compute in (lambda: transform(f)(X), lambda: pullback.vjp(f, X), lambda: pullback.jvp(f, (X,), (X,))):
        with pytest.raises(MissingRuleError, match=f"{re.escape(__file__)}:{line_of(f) + 1}"):
            compute()


@pytest.mark.reference  # the gate in front of torch.autograd stands between f and the capture
def test_autograd_inside_a_function() -> None:
    for f in (lambda x: (x.sum().backward(), x.sum())[1], lambda x: torch.autograd.grad(x.sum(), x)[0].sum()):
        with pytest.raises(CaptureError, match=r"(?s)torch\.autograd, which does not run.*pullback's own transforms"):
            pullback.grad(f)(X)


# ---------------------------------------------------------------- calls


def total(x: Any, *others: Any) -> Any:
    return (x["w"] if isinstance(x, dict) else x[0] if isinstance(x, list) else x).sum()


def pair(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(), x


@dataclass(frozen=True)
class Call:
    """A call that cannot be answered; `f`, if the message is to name its line."""

    make: Callable[[], Any]
    error: type[PullbackError]
    said: str
    f: Callable[..., Any] | None = None


grad, jacobian, vjp, jvp, hvp = pullback.grad, pullback.jacobian, pullback.vjp, pullback.jvp, pullback.hvp
CALLS = {
    # arguments that have no derivative
    "int64": Call(lambda: grad(total)(torch.arange(3)), ArgumentError, r"'x'.*int64\[3\].*convert it", total),
    "bool": Call(lambda: grad(total)(torch.tensor([True])), ArgumentError, r"bool\[1\].*leave it out of", total),
    "complex": Call(lambda: grad(total)(X + 0j), ArgumentError, r"real scalar.*complex64\[\].*\.real", total),
    "float": Call(lambda: grad(total)(3.0), ArgumentError, "argument 0 .*3.0, which is not a tensor", total),
    "None": Call(lambda: grad(total)(None), ArgumentError, "None, which is not a tensor", total),
    "float in a list": Call(lambda: grad(total)([X, 2.0]), ArgumentError, "2.0.*pass it separately", total),
    "int64 in a dict": Call(lambda: grad(total)({"w": X, "k": torch.arange(2)}), ArgumentError, "'k'.*int64", total),
    "sparse": Call(lambda: grad(total)(X.to_sparse()), ArgumentError, "'x'.*sparse_coo.*dense tensor first"),
    "sparse beside": Call(lambda: grad(total)(X, X.to_sparse()), ArgumentError, "'others_0'.*dense tensor first"),
    "quantized": Call(
        lambda: grad(total)(torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)), ArgumentError, "quantized.*tensor first"
    ),
    "object": Call(lambda: grad(total)(X, object()), ArgumentError, "cannot be compared at the next call.*pytree"),
    # argnums
    "argnums too large": Call(lambda: grad(total, 1)(X), ArgumentError, "argnums=1.*1 positional", total),
    "argnums too small": Call(lambda: grad(total, -2)(X), ArgumentError, "argnums=-2.*1 positional", total),
    "argnums twice": Call(lambda: grad(total, (0, -1))(X), ArgumentError, r"\(0, -1\).*twice", total),
    "argnums by keyword": Call(lambda: grad(total)(x=X), ArgumentError, "0 positional.*keyword", total),
    "argnums, jacobian": Call(lambda: jacobian(total, (0, 5))(X, X), ArgumentError, r"\(0, 5\).*called with 2", total),
    "argnums as text": Call(lambda: grad(total, "x"), ArgumentError, "'x': it must be a position"),
    "argnums empty": Call(lambda: grad(total, ()), ArgumentError, "non-empty tuple"),
    "argnums as bool": Call(lambda: grad(total, True), ArgumentError, "argnums=True"),
    # has_aux
    "has_aux without": Call(lambda: grad(total, has_aux=True)(X), ArgumentError, r"\(output, aux\).*float32", total),
    "has_aux with three": Call(
        lambda: grad(lambda x: (x.sum(), 1, 2), has_aux=True)(X), ArgumentError, r"\(output, aux\).*a tuple of 3"
    ),
    "has_aux with a list": Call(
        lambda: grad(lambda x: [x.sum(), 1], has_aux=True)(X), ArgumentError, r"\(output, aux\).*a list of 2"
    ),
    "has_aux forgotten": Call(lambda: grad(pair)(X), ShapeError, "a tuple of 2.*has_aux=True", pair),
    "jacobian has_aux": Call(lambda: jacobian(total, has_aux=True)(X), ArgumentError, r"\(output, aux\)", total),
    # tangents and cotangents
    "tangents not a tuple": Call(lambda: jvp(torch.sin, X, X), ArgumentError, "must be tuples, not Tensor and Tensor"),
    "tangents too many": Call(lambda: jvp(torch.sin, (X,), (X, X)), ArgumentError, "structure of the primals"),
    "tangent of another shape": Call(lambda: jvp(torch.sin, (X,), (X[0],)), ShapeError, r"\(2,\).*\(2, 2\).*agree"),
    "tangent of another dtype": Call(lambda: jvp(torch.sin, (X,), (X.double(),)), ShapeError, "float64.*float32"),
    "tangent a number": Call(lambda: jvp(torch.sin, (X,), (1.0,)), ArgumentError, "tangent 1.0; both must be tensors"),
    "integer tangent": Call(lambda: jvp(total, (torch.arange(2),), (torch.arange(2),)), ArgumentError, "int64", total),
    "hvp without primals": Call(lambda: hvp(total, (), ()), ArgumentError, "non-empty tuple"),
    "hvp of a tensor": Call(lambda: hvp(total, X, X), ArgumentError, "non-empty tuple of arguments, not Tensor"),
    "hvp of no scalar": Call(lambda: hvp(torch.sin, (X,), (X,)), ShapeError, "grad needs a scalar"),
    "vjp without primals": Call(lambda: vjp(total), ArgumentError, "no primals: pass the arguments", total),
    "cotangent of another shape": Call(lambda: vjp(torch.sin, X)[1](X[0]), ShapeError, r"float32\[2, 2\] like"),
    "cotangent of another dtype": Call(lambda: vjp(torch.sin, X)[1](X.double()), ShapeError, "like.*float64"),
    "cotangents too many": Call(lambda: vjp(torch.sin, X)[1](X, X), ArgumentError, "must be one argument"),
    "no cotangent": Call(lambda: vjp(torch.sin, X)[1](None), ArgumentError, "cotangent 0 .*None, not a tensor"),
    "cotangent a number": Call(lambda: vjp(total, X)[1](1.0), ArgumentError, "cotangent 0 .*1.0, not a tensor", total),
    "integer output of a vjp": Call(lambda: vjp(torch.argmax, X), ArgumentError, r"int64\[\].*no derivative"),
    "number among the outputs": Call(lambda: jacobian(lambda x: (x, 2))(X), ArgumentError, "2 as output 1"),
    # options
    "order": Call(lambda: grad(total, order="sideways")(X), OrderError, "'sideways'.*'forward', 'reverse' or a list"),
    "order of nothing": Call(lambda: grad(total, order=3)(X), ArgumentError, "order=3.*list of vertex names"),
    "order incomplete": Call(lambda: jacobian(torch.sin, order=[])(X), OrderError, "missing: sin"),
    "backend": Call(lambda: grad(total, backend="gpu"), ArgumentError, "'gpu': 'auto' and 'python' and"),
    "chunk of none": Call(lambda: jacobian(torch.sin, chunk_size=0), ArgumentError, "positive number of rows, or None"),
    "chunk negative": Call(lambda: jacobian(torch.sin, chunk_size=-1), ArgumentError, "chunk_size=-1"),
    "chunk a float": Call(lambda: jacobian(torch.sin, chunk_size=1.5), ArgumentError, "chunk_size=1.5"),
    # not a function
    "grad of a number": Call(lambda: grad(3), ArgumentError, "needs a function, not 3: pass the function itself"),
    "jacobian of a tensor": Call(lambda: jacobian(closed), ArgumentError, "needs a function, not tensor"),
    "vjp of None": Call(lambda: vjp(None, X), ArgumentError, "needs a function, not None"),
    "jvp of None": Call(lambda: jvp(None, (X,), (X,)), ArgumentError, "needs a function, not None"),
    # tensors that cannot be found again
    "a tensor in a cache": Call(
        lambda: grad(lambda x: (x * cached()).sum())(X), CaptureError, "cannot be found again.*pass it as an argument"
    ),
}
cached()


@pytest.mark.parametrize("name", CALLS)
def test_refusal_of_a_call(name: str) -> None:
    call = CALLS[name]
    with pytest.raises(call.error) as refused:
        call.make()
    assert re.search(call.said, str(refused.value), re.DOTALL), refused.value
    assert call.f is None or f"{__file__}:{line_of(call.f)}" in str(refused.value)


def test_a_refused_call_leaves_a_transform_usable() -> None:
    gradient = pullback.grad(total)
    for bad in (3.0, torch.arange(2), X.to_sparse()):
        with pytest.raises(PullbackError):
            gradient(bad)
    assert torch.equal(gradient(X), torch.ones_like(X))
    assert torch.is_grad_enabled()


def test_an_error_of_the_function_is_its_own() -> None:
    def f(x: Tensor) -> Tensor:
        return {}["mine"]

    for compute in (lambda: pullback.grad(f)(X), lambda: pullback.grad(lambda x: pullback.grad(f)(x).sum())(X)):
        with pytest.raises(KeyError, match="mine"):
            compute()


def test_refusals_do_not_fill_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    gradient = pullback.grad(lambda x: x.sum() if x.sum() > 0 else -x.sum())
    with caplog.at_level(logging.INFO, "pullback"):
        for _ in range(2):
            with pytest.raises(CaptureError):
                gradient(X)
    assert not caplog.records


def test_every_error_is_ours() -> None:
    for error in (ArgumentError, CaptureError, MissingRuleError, OrderError, ShapeError):
        assert issubclass(error, PullbackError)
    assert issubclass(ArgumentError, TypeError)
    assert issubclass(ShapeError, ValueError)
    assert issubclass(OrderError, ValueError)
