"""In place of `torch.func`: names, signatures, defaults and result structures; `vmap` around and inside."""

import inspect
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback
from programs import assert_equal, normal
from support import TRANSFORMS, reference

X, Y = normal(3), normal(3, seed=1)
A = normal(3, 3)
Pair = namedtuple("Pair", "first second")


# ---------------------------------------------------------------- signatures

NAMES = (*TRANSFORMS, "vmap", "functional_call", "stack_module_state")


@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str) -> None:
    """Every parameter of the original is there, in its place, of its kind and with its default; others by name only."""
    theirs = inspect.signature(getattr(torch.func, name)).parameters
    ours = inspect.signature(getattr(pullback, name)).parameters
    positional = [p.name for p in ours.values() if p.kind is not p.KEYWORD_ONLY]
    assert positional == [p.name for p in theirs.values() if p.kind is not p.KEYWORD_ONLY]
    for parameter in theirs.values():
        assert (ours[parameter.name].kind, ours[parameter.name].default) == (parameter.kind, parameter.default)


def test_signature_of_a_pull_back() -> None:
    with reference():
        theirs = inspect.signature(torch.func.vjp(torch.sin, X)[1]).parameters
    ours = inspect.signature(pullback.vjp(torch.sin, X)[1]).parameters
    seen, expected = ([(p.name, p.kind, p.default) for p in found.values()] for found in (ours, theirs))
    assert seen == expected


def test_reexports_are_pytorchs_own() -> None:
    for name in ("vmap", "functional_call", "stack_module_state"):
        assert getattr(pullback, name) is getattr(torch.func, name)


# ---------------------------------------------------------------- results


def scalar(x: Tensor, y: Tensor) -> Tensor:
    return (x.sin() * (A @ y).exp()).sum()


def vector(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([(x * y).sum(), (x.exp() * y).prod()])


def with_aux(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *xs: (f(*xs), {"x": xs[0], "whole": [xs[-1] * 2, WHOLE]})


def of_tree(p: dict[str, Any], x: Tensor) -> Pair:
    return Pair([p["w"] * x, p["inner"][0].sum()], {"only": (p["inner"][1] * x).sum()})


TREE = {"w": X, "inner": (Y, normal(3, seed=2))}
WHOLE = torch.tensor([0, 2, 1])


def picked(x: Tensor, index: Tensor) -> Tensor:
    return x[index].square().cumsum(0)


CALLS: dict[str, Callable[[Any], Any]] = {
    "grad": lambda T: T.grad(scalar)(X, Y),
    "grad, second": lambda T: T.grad(scalar, 1)(X, Y),
    "grad, last": lambda T: T.grad(scalar, argnums=-1)(X, Y),
    "grad, turned": lambda T: T.grad(scalar, (1, 0))(X, Y),
    "grad, one in a tuple": lambda T: T.grad(scalar, (1,))(X, Y),
    "grad, aux": lambda T: T.grad(with_aux(scalar), has_aux=True)(X, Y),
    "grad, integers beside": lambda T: T.grad(lambda x, i: picked(x, i).sum())(X, WHOLE),
    "grad, tree": lambda T: T.grad(lambda p, x: of_tree(p, x)[0][0].sum())(TREE, X),
    "grad, keyword": lambda T: T.grad(scalar)(X, y=Y),
    "grad, func by name": lambda T: T.grad(func=scalar, argnums=(0,), has_aux=False)(X, Y),
    "grad, of a scalar": lambda T: T.grad(torch.sin)(X[0]),
    "grad_and_value": lambda T: T.grad_and_value(scalar)(X, Y),
    "grad_and_value, both": lambda T: T.grad_and_value(scalar, (0, 1))(X, Y),
    "grad_and_value, aux": lambda T: T.grad_and_value(with_aux(scalar), (0, 1), True)(X, Y),
    "vjp": lambda T: pulled(T.vjp(vector, X, Y), normal(2)),
    "vjp, one": lambda T: pulled(T.vjp(torch.sin, X), Y),
    "vjp, aux": lambda T: pulled(T.vjp(with_aux(vector), X, Y, has_aux=True), normal(2)),
    "vjp, tree": lambda T: pulled(T.vjp(of_tree, TREE, X), Pair([X, X[0]], {"only": Y[0]})),
    "vjp, flags": lambda T: T.vjp(vector, X, Y)[1](normal(2), retain_graph=False, create_graph=False),
    "vjp, a tuple": lambda T: pulled(T.vjp(lambda x: (x * 2, x.sum()), X), (Y, Y[0])),
    "jvp": lambda T: T.jvp(vector, (X, Y), (Y, X)),
    "jvp, aux": lambda T: T.jvp(with_aux(vector), (X, Y), (Y, X), has_aux=True),
    "jvp, tree": lambda T: T.jvp(of_tree, (TREE, X), (TREE, Y)),
    "jvp, strict": lambda T: T.jvp(vector, (X, Y), (Y, X), strict=True),
    "jvp, independent": lambda T: T.jvp(lambda x: torch.ones(2, dtype=x.dtype), (X,), (Y,)),
    "jvp, strict and constant in steps": lambda T: T.jvp(lambda x: x.sign() + x * 0, (X,), (Y,), strict=True),
    "jacrev": lambda T: T.jacrev(vector)(X, Y),
    "jacrev, both": lambda T: T.jacrev(vector, argnums=(0, 1))(X, Y),
    "jacrev, turned": lambda T: T.jacrev(vector, (-1, 0))(X, Y),
    "jacrev, aux": lambda T: T.jacrev(with_aux(vector), has_aux=True)(X, Y),
    "jacrev, chunks": lambda T: T.jacrev(vector, (0, 1), chunk_size=1)(X, Y),
    "jacrev, chunks of two": lambda T: T.jacrev(of_tree, chunk_size=2)(TREE, X),
    "jacrev, preallocated": lambda T: T.jacrev(vector, chunk_size=1, _preallocate_and_copy=True)(X, Y),
    "jacrev, tree": lambda T: T.jacrev(of_tree)(TREE, X),
    "jacrev, integers beside": lambda T: T.jacrev(picked)(X, WHOLE),
    "jacfwd": lambda T: T.jacfwd(vector)(X, Y),
    "jacfwd, both": lambda T: T.jacfwd(vector, (0, 1))(X, Y),
    "jacfwd, aux": lambda T: T.jacfwd(with_aux(vector), 0, True)(X, Y),
    "jacfwd, tree": lambda T: T.jacfwd(of_tree)(TREE, X),
    "jacfwd, randomness": lambda T: T.jacfwd(vector, randomness="same")(X, Y),
    "hessian": lambda T: T.hessian(scalar)(X, Y),
    "hessian, both": lambda T: T.hessian(scalar, (0, 1))(X, Y),
    "hessian, tree": lambda T: T.hessian(lambda p, x: of_tree(p, x)[0][0].exp().sum())(TREE, X),
    "linearize": lambda T: pushed(T.linearize(vector, X, Y), Y, X),
    "linearize, one": lambda T: pushed(T.linearize(torch.sin, X), Y),
    "linearize, tree": lambda T: pushed(T.linearize(of_tree, TREE, X), TREE, Y),
}


def pulled(found: Any, cotangents: Any) -> Any:
    output, pull_back, *aux = found
    return output, pull_back(cotangents), *aux


def pushed(found: Any, *tangents: Any) -> Any:
    output, push_forward = found
    return output, push_forward(*tangents)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_result(call: Callable[[Any], Any]) -> None:
    """The same values in the same containers."""
    with reference():
        expected = call(torch.func)
    assert_equal(call(pullback), expected)


FAILING: dict[str, Callable[[Any], Any]] = {
    "grad of a vector": lambda T: T.grad(torch.sin)(X),
    "grad of integers": lambda T: T.grad(lambda i: i.sum())(WHOLE),
    "grad of a number": lambda T: T.grad(lambda x: x)(1.0),
    "grad of none": lambda T: T.grad(lambda x: X.sum())(None),
    "grad without aux": lambda T: T.grad(scalar, has_aux=True)(X, Y),
    "grad, too large": lambda T: T.grad(scalar, 2)(X, Y),
    "grad, twice": lambda T: T.grad(scalar, (0, -2))(X, Y),
    "grad, empty": lambda T: T.grad(scalar, ())(X, Y),
    "grad, no argument": lambda T: T.grad(lambda: X.sum())(),
    "jacrev of integers": lambda T: T.jacrev(picked, 1)(X, WHOLE),
    "jacrev, no chunk": lambda T: T.jacrev(vector, chunk_size=0)(X, Y),
    "jacfwd of integers": lambda T: T.jacfwd(picked, 1)(X, WHOLE),
    "jacfwd, randomness": lambda T: T.jacfwd(vector, randomness="some")(X, Y),
    "jacfwd, draws": lambda T: T.jacfwd(lambda x: x * torch.rand_like(x))(X),
    "vjp of integers": lambda T: T.vjp(picked, X, WHOLE),
    "vjp, structure": lambda T: T.vjp(vector, X, Y)[1]((X,)),
    "vjp, shape": lambda T: T.vjp(vector, X, Y)[1](X),
    "vjp, not a tensor": lambda T: T.vjp(vector, X, Y)[1](1.0),
    "jvp, a list": lambda T: T.jvp(vector, [X, Y], [Y, X]),
    "jvp, structure": lambda T: T.jvp(vector, (X, Y), (Y,)),
    "jvp, shape": lambda T: T.jvp(vector, (X, Y), (Y, Y[:2])),
    "jvp, strict": lambda T: T.jvp(lambda x: (x, torch.ones(2)), (X,), (Y,), strict=True),
    "jvp, strict and detached": lambda T: T.jvp(lambda x: x.detach() * 2, (X,), (Y,), strict=True),
    "linearize, structure": lambda T: T.linearize(vector, X, Y)[1](X),
    "linearize, shape": lambda T: T.linearize(vector, X, Y)[1](X, X[:2]),
    "linearize, dtype": lambda T: T.linearize(vector, X, Y)[1](X, X.float()),
}


@pytest.mark.parametrize("call", FAILING.values(), ids=FAILING)
def test_what_the_original_refuses(call: Callable[[Any], Any]) -> None:
    with reference(), pytest.raises(Exception):  # noqa: B017, PT011 (of several classes, among them AssertionError)
        call(torch.func)
    with pytest.raises((pullback.PullbackError, IndexError)):
        call(pullback)


def test_what_was_let_go_is_refused() -> None:
    _, pull_back = pullback.vjp(torch.sin, X)
    pull_back(Y, retain_graph=False)
    with pytest.raises(pullback.ArgumentError, match="retain_graph=False"):
        pull_back(Y)


def test_pushing_forward_does_not_run_the_function_again() -> None:
    """What is drawn once is the same for every tangent, and the buffer is written once."""
    buffer = torch.zeros(())

    def f(x: Tensor) -> Tensor:
        with torch.no_grad():
            buffer.add_(1)
        return x * torch.rand_like(x)

    output, push_forward = pullback.linearize(f, X)
    for _ in range(3):
        assert_equal(push_forward(X), output)
    assert buffer.item() == 1


# ---------------------------------------------------------------- chunks and draws


@pytest.mark.parametrize("columns", [False, True])
def test_chunks_bound_memory(columns: bool) -> None:
    """Of 512 rows of a hidden width of 4,096, eight at a time need a fraction of the memory of all."""
    first, second = normal(4096, 64, dtype=torch.float32) / 8, normal(512, 4096, dtype=torch.float32) / 64

    def f(x: Tensor) -> Tensor:
        return second @ torch.tanh(torch.tanh(first @ x).sin())

    def g(x: Tensor) -> Tensor:
        return first.t() @ torch.tanh(torch.tanh(second.t() @ x).sin())

    order, function, x = ("forward", g, normal(512)) if columns else ("reverse", f, normal(64))
    x = x.float()
    whole = pullback.jacobian(function, order=order)
    chunked = pullback.jacobian(function, order=order, chunk_size=8)
    torch.testing.assert_close(chunked(x), whole(x), rtol=1e-4, atol=1e-4)
    result = 512 * 64 * 4
    assert peak_bytes(lambda: whole(x)) > 512 * 4096 * 4
    assert peak_bytes(lambda: chunked(x)) < result + 4 * 8 * 4096 * 4 + 2**19


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that PyTorch holds at once in a run, beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_draws_are_the_same_for_every_column() -> None:
    f = lambda x: x.sum() * torch.rand(4, dtype=x.dtype)  # noqa: E731
    jacobian = pullback.jacfwd(f, randomness="same")(X)
    assert_equal(jacobian[:, 0], jacobian[:, 1])
    for randomness in ("error", "different"):
        with pytest.raises(pullback.ArgumentError, match=rf"draws random numbers.*randomness='{randomness}'"):
            pullback.jacfwd(f, randomness=randomness)(X)


# ---------------------------------------------------------------- vmap

EACH: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "grad": lambda T: T.grad(scalar),
    "grad, both": lambda T: T.grad(scalar, (0, 1)),
    "grad_and_value": lambda T: T.grad_and_value(scalar),
    "jacrev": lambda T: T.jacrev(vector),
    "jacrev, chunks": lambda T: T.jacrev(vector, chunk_size=1),
    "jacfwd": lambda T: T.jacfwd(vector),
    "hessian": lambda T: T.hessian(scalar),
    "vjp": lambda T: lambda x, y: pulled(T.vjp(vector, x, y), x[:2]),
    "jvp": lambda T: lambda x, y: T.jvp(vector, (x, y), (y, x)),
    "linearize": lambda T: lambda x, y: pushed(T.linearize(vector, x, y), y, x),
    "nested": lambda T: T.grad(lambda x, y: T.jacrev(vector)(x, y).square().sum()),
}
DIMENSIONS: dict[str, dict[str, Any]] = {
    "both": {},
    "one": {"in_dims": (0, None)},
    "last": {"in_dims": (-1, 0)},
    "out": {"in_dims": (0, None), "out_dims": -1},
    "chunks": {"chunk_size": 2},
}
XS, YS = normal(3, 3, seed=3), normal(3, 3, seed=4)


@pytest.mark.parametrize("dimensions", DIMENSIONS.values(), ids=DIMENSIONS)
@pytest.mark.parametrize("make", EACH.values(), ids=EACH)
def test_vmap_around(make: Callable[[Any], Callable[..., Any]], dimensions: dict[str, Any]) -> None:
    y = Y if dimensions.get("in_dims", (0, 0))[1] is None else YS
    as_theirs = EACH["jvp"] if make is EACH["linearize"] else make  # PyTorch's linearize cannot be batched
    with reference():
        expected = torch.func.vmap(as_theirs(torch.func), **dimensions)(XS, y)
    assert_equal(pullback.vmap(make(pullback), **dimensions)(XS, y), expected)


@pytest.mark.parametrize("name", ["grad", "jacrev", "hessian", "jvp"])
def test_vmap_of_vmap(name: str) -> None:
    make, batch = EACH[name], normal(2, 3, 3)
    with reference():
        expected = torch.func.vmap(torch.func.vmap(make(torch.func)))(batch, batch)
    assert_equal(pullback.vmap(pullback.vmap(make(pullback)))(batch, batch), expected)


@pytest.mark.parametrize("name", ["grad", "jacrev", "jacfwd", "hessian"])
def test_vmap_inside(name: str) -> None:
    def f(xs: Tensor) -> Tensor:
        return pullback.vmap(lambda x: (x.sin() * x.sum()).sum(), in_dims=1)(xs).square().sum()

    with reference():
        expected = getattr(torch.func, name)(f)(XS)
    assert_equal(getattr(pullback, name)(f)(XS), expected)


def test_vmap_between_ours() -> None:
    def outer(T: Any) -> Any:
        return T.jacrev(lambda xs: torch.func.vmap(T.grad(lambda x: (x.exp() * x.sum()).sum()))(xs))(XS)

    with reference():
        expected = outer(torch.func)
    assert_equal(outer(pullback), expected)


@pytest.mark.parametrize("f", [vector, lambda x, y: (A @ x).softmax(0) * y], ids=["vector", "softmax"])
def test_a_pull_back_under_vmap(f: Callable[..., Tensor]) -> None:
    """The usual way to a Jacobian: basis vectors pulled back all at once."""
    output, pull_back = pullback.vjp(f, X, Y)
    with reference():
        expected = torch.func.jacrev(f, (0, 1))(X, Y)
    assert_equal(pullback.vmap(pull_back)(torch.eye(len(output), dtype=X.dtype)), expected)
    _, push_forward = pullback.linearize(f, X, Y)
    basis = torch.eye(3, dtype=X.dtype), torch.zeros(3, 3, dtype=X.dtype)
    assert_equal(pullback.vmap(push_forward, out_dims=1)(*basis), expected[0])


def test_a_pull_back_inside_ours() -> None:
    _, pull_back = pullback.vjp(lambda x: x.exp() * x.sum(), X)
    with reference():
        theirs = torch.func.vjp(lambda x: x.exp() * x.sum(), X)[1]
        expected = torch.func.grad(lambda c: theirs(c)[0].square().sum())(Y)
    assert_equal(pullback.grad(lambda c: pull_back(c)[0].square().sum())(Y), expected)
    assert_equal(pullback.grad(lambda c: pull_back(c)[0].square().sum())(Y), expected)
    _, other = pullback.vjp(lambda x: x.sin(), X)  # a pull back of the same code, and of another function
    pull_back = other
    assert_equal(pullback.grad(lambda c: pull_back(c)[0].sum())(Y), X.cos())


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_draws_under_vmap(randomness: str) -> None:
    network = nn.Dropout(0.5)
    each = pullback.grad(lambda x: network(x).sum())
    rows = pullback.vmap(each, randomness=randomness)(torch.ones(4, 64))
    assert set(rows.unique().tolist()) == {0.0, 2.0}
    assert all(torch.equal(rows[0], row) for row in rows[1:]) == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        pullback.vmap(each)(torch.ones(4, 64))


def test_an_ensemble() -> None:
    """Stacked networks, each with its own gradient."""
    networks = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double() for _ in range(3)]
    parameters, buffers = pullback.stack_module_state(networks)
    parameters = {name: p.detach() for name, p in parameters.items()}

    def loss(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return pullback.functional_call(networks[0], (parameters, buffers), (x,)).square().mean()

    with reference():
        expected = torch.func.vmap(torch.func.grad(loss), (0, 0, None))(parameters, buffers, XS)
    assert_equal(pullback.vmap(pullback.grad(loss), (0, 0, None))(parameters, buffers, XS), expected)
