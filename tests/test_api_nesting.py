"""Transforms of transforms, to depth three and in any mix; functions that hold Jacobians and Hessians themselves."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import pullback
from programs import Program, assert_equal, check, normal
from support import reference

X, Y = normal(2), normal(2, seed=1)
A = normal(2, 2)


def base(x: torch.Tensor) -> torch.Tensor:
    """A scalar function whose derivatives of every order are dense."""
    return (x.sin() * (A @ x).exp()).sum() + (x @ A @ x) * x.prod()


# Each takes a scalar function of a vector and returns another, by one derivative.
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "grad": lambda D, f: lambda x: (D.grad(f)(x) * Y).sum(),
    "value_and_grad": lambda D, f: lambda x: _of_pair(D.value_and_grad(f)(x)),
    "jacobian": lambda D, f: lambda x: D.jacobian(lambda z: z * f(z))(x).square().sum(),
    "jacobian_forward": lambda D, f: lambda x: D.jacobian(lambda z: z.cos() * f(z), order="forward")(x).sum(),
    "vjp": lambda D, f: lambda x: _of_pull_back(D.vjp(lambda z: z.exp() * f(z), x)),
    "jvp": lambda D, f: lambda x: D.jvp(f, (x,), (x * Y,))[1],
    "hvp": lambda D, f: lambda x: (D.hvp(f, (x,), (Y,))[1] * x).sum(),
    "hessian": lambda D, f: lambda x: D.hessian(f)(x).sin().sum(),
}


def _of_pair(pair: Any) -> torch.Tensor:
    return pair[0] * (pair[1] * Y).sum()


def _of_pull_back(result: Any) -> torch.Tensor:
    output, pull_back = result
    return (pull_back(output * Y)[0] * Y).sum()


PAIRS = [*itertools.product(STEPS, repeat=2)]
TRIPLES = [
    ("grad", "grad", "grad"),
    ("jvp", "vjp", "grad"),
    ("vjp", "jvp", "grad"),
    ("grad", "jvp", "vjp"),
    ("jacobian", "grad", "jvp"),
    ("hvp", "grad", "grad"),
    ("jvp", "jvp", "jvp"),
    ("vjp", "vjp", "vjp"),
    ("jacobian", "jacobian", "jacobian"),
    ("jacobian_forward", "jacobian_forward", "jacobian_forward"),
    ("hessian", "jacobian", "value_and_grad"),
    ("grad", "hessian", "jacobian"),
    ("value_and_grad", "hvp", "jacobian_forward"),
    ("jvp", "hessian", "value_and_grad"),
]


@pytest.mark.parametrize("names", PAIRS + TRIPLES, ids="-".join)
def test_mix(names: tuple[str, ...]) -> None:
    def program(D: Any) -> Any:
        f = base
        for name in reversed(names):
            f = STEPS[name](D, f)
        return f(X)

    check(program, rtol=1e-7, atol=1e-7)


# ---------------------------------------------------------------- closures over outer values


def at_each_depth(D: Any) -> Any:
    """Every level's value is used in the levels below it."""

    def outer(x: torch.Tensor) -> torch.Tensor:
        def middle(y: torch.Tensor) -> torch.Tensor:
            inner = lambda z: (x * y * z * z.sin()).sum() + (z * Y).prod()  # noqa: E731
            return (D.grad(inner)(y * x) * x).sum()

        return (D.grad(middle)(x.exp()) * x).sum()

    return D.grad(outer)(X)


def tangents_of_outer_values(D: Any) -> Any:
    def outer(x: torch.Tensor) -> torch.Tensor:
        return D.jvp(lambda y: x.sin() * y * y, (x,), (x * x,))[1].sum()

    return D.hessian(outer)(X)


def pull_back_used_twice(D: Any) -> Any:
    def outer(x: torch.Tensor) -> torch.Tensor:
        _, pull_back = D.vjp(lambda y: y * x * y.sum(), x)
        return (pull_back(x)[0] * pull_back(Y)[0]).sum()

    return D.grad(outer)(X)


def independent_of_the_outer(D: Any) -> Any:
    return D.grad(lambda x: (D.grad(lambda y: (y * y).sum())(Y) * x).sum())(X)


def perturbation_confusion(D: Any) -> Any:
    """d/dx (x · d/dy (x + y)) is 1, and not 2."""
    one = torch.ones((), dtype=torch.float64)
    return D.grad(lambda x: x * D.grad(lambda y: x + y)(one))(one)


def constants_inside(D: Any) -> Any:
    f = lambda x: (x[torch.tensor([0, 1, 1])] * torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)).pow(3).sum()  # noqa: E731
    return D.hessian(lambda x: D.grad(f)(x).square().sum())(X)


def unused_by_the_inner(D: Any) -> Any:
    return D.jacobian(lambda x: D.jacobian(lambda y: x * 2)(x) + x)(X)


def in_place_inside(D: Any) -> Any:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(3, dtype=x.dtype)
        y[0] = x[0] * x[1]
        y[1:] += x**3
        return (y.exp() * 0.1).sum()

    return D.hessian(f)(X), D.grad(lambda x: D.hessian(f)(x).sum())(X)


def stopped(D: Any) -> Any:
    """A detached value has no derivative at any level."""
    return D.jacobian(D.grad(lambda x: (x * x.detach().exp() + x**3).sum()))(X)


def loop_of_gradients(D: Any) -> Any:
    """Two steps of descent, differentiated."""

    def trained(rate: torch.Tensor) -> torch.Tensor:
        x = X
        for _ in range(2):
            x = x - rate * D.grad(base)(x)
        return base(x)

    return D.value_and_grad(trained)(torch.tensor(0.1, dtype=torch.float64))


def structures_inside(D: Any) -> Any:
    def f(p: dict[str, torch.Tensor]) -> torch.Tensor:
        g = D.grad(lambda q: (q["a"] * q["b"].sin()).sum())(p)
        return (g["a"] * g["b"]).sum()

    return D.hessian(f)({"a": X, "b": Y})


CLOSURES: dict[str, Program] = {
    g.__name__: g
    for g in (
        at_each_depth,
        tangents_of_outer_values,
        pull_back_used_twice,
        independent_of_the_outer,
        perturbation_confusion,
        constants_inside,
        unused_by_the_inner,
        in_place_inside,
        stopped,
        loop_of_gradients,
        structures_inside,
    )
}


@pytest.mark.parametrize("program", CLOSURES.values(), ids=CLOSURES.keys())
def test_closure(program: Program) -> None:
    check(program)


# ---------------------------------------------------------------- physics: derivatives in inputs, then in parameters

torch.manual_seed(0)
POINTS = normal(3, 2)


def normalised(h: torch.Tensor) -> torch.Tensor:
    """A layer norm by hand: PyTorch's own has wrong third derivatives, and wrong second ones forward over forward."""
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


class Attention(nn.Module):
    """A network of a point, with attention and a norm inside."""

    def __init__(self, norm: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(1, 4), nn.Linear(4, 1)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x.unsqueeze(-1)).unsqueeze(0)
        h = h + F.scaled_dot_product_attention(h, h, h)
        return self.leave(self.norm(h)).sum((0, 1)).squeeze(-1)


class Convolution(nn.Module):
    """A network of a point, with a convolution, a norm and a softmax inside."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.leave = nn.Conv1d(1, 2, 2, padding=1), nn.GroupNorm(1, 2), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.convolution(x.reshape(1, 1, 2)))
        return self.leave((h.softmax(-1) * h.tanh()).flatten()).squeeze(-1)


NETWORKS: dict[str, nn.Module] = {
    "mlp": nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 1)).double(),
    "attention": Attention(lambda h: F.layer_norm(h, (4,))).double(),
    "convolution": Convolution().double(),
}


IN_REFERENCE = {"attention": Attention(normalised).double()}
IN_REFERENCE["attention"].load_state_dict(NETWORKS["attention"].state_dict())


def network_of(name: str, D: Any) -> nn.Module:
    return NETWORKS[name] if D is pullback else IN_REFERENCE.get(name, NETWORKS[name])


def u(network: nn.Module, parameters: Any, point: torch.Tensor) -> torch.Tensor:
    return functional_call(network, parameters, (point,)).sum()


def laplacian_residual(D: Any, network: nn.Module, parameters: Any, point: torch.Tensor) -> torch.Tensor:
    """Δu − u·∂u/∂x, by a Hessian and a gradient in the point."""
    hessian = D.hessian(lambda p: u(network, parameters, p))(point)
    gradient = D.grad(lambda p: u(network, parameters, p))(point)
    return hessian.diagonal().sum() - u(network, parameters, point) * gradient[0]


def tangent_residual(D: Any, network: nn.Module, parameters: Any, point: torch.Tensor) -> torch.Tensor:
    """∂²u/∂x² by forward over forward, and ∂u/∂y by a Jacobian."""
    direction = torch.tensor([1.0, 0.0], dtype=torch.float64)
    first = lambda p: D.jvp(lambda q: u(network, parameters, q), (p,), (direction,))[1]  # noqa: E731
    return D.jvp(first, (point,), (direction,))[1] + D.jacobian(lambda p: u(network, parameters, p))(point)[1]


def training(residual: Callable[..., torch.Tensor], name: str) -> Program:
    """Loss and gradient in the parameters of a loss made of derivatives in the inputs."""

    def program(D: Any) -> Any:
        network = network_of(name, D)
        loss = lambda p: sum(residual(D, network, p, point) ** 2 for point in POINTS[:2])  # noqa: E731
        return D.value_and_grad(loss)({name: p.detach() for name, p in network.named_parameters()})

    return program


@pytest.mark.parametrize("residual", [laplacian_residual, tangent_residual])
@pytest.mark.parametrize("name", NETWORKS)
def test_physics_informed_training(name: str, residual: Callable[..., torch.Tensor]) -> None:
    check(training(residual, name), rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_jacobian_of_a_residual_in_the_point(name: str) -> None:
    parameters = {key: p.detach() for key, p in NETWORKS[name].named_parameters()}

    def program(D: Any) -> Any:
        network = network_of(name, D)
        return D.jacobian(lambda p: laplacian_residual(D, network, parameters, p))(POINTS[0])

    check(program, rtol=1e-6)


def test_a_batch_of_points_at_once() -> None:
    """The Laplacian of each point, by second derivatives of a sum: what many write."""
    network = NETWORKS["mlp"]

    def program(D: Any) -> Any:
        def loss(parameters: Any) -> torch.Tensor:
            total = lambda x: functional_call(network, parameters, (x,)).sum()  # noqa: E731
            rows = enumerate(torch.eye(2).double())
            second = [D.hvp(total, (POINTS,), (row.expand(3, 2),))[1][:, k] for k, row in rows]
            return (sum(second) ** 2).mean()

        return D.value_and_grad(loss)({name: p.detach() for name, p in network.named_parameters()})

    check(program, rtol=1e-6)


# ---------------------------------------------------------------- torch.func.vmap


def test_vmap_inside() -> None:
    f = lambda x: torch.func.vmap(lambda row: row.sin() * row.sum())(x).square().sum()  # noqa: E731
    check(lambda D: (D.grad(f)(A), D.hessian(f)(A)))


def test_our_transform_under_vmap_inside_ours() -> None:
    def program(D: Any) -> Any:
        return D.grad(lambda x: torch.func.vmap(D.grad(base))(x).square().sum())(A)

    check(program, rtol=1e-7)


def test_vmap_around() -> None:
    for transform in (pullback.grad(base), pullback.jacobian(lambda x: x * base(x)), pullback.hessian(base)):
        each = torch.stack([transform(row) for row in A])
        assert_equal(torch.func.vmap(transform)(A), each)


def test_torch_func_around_ours() -> None:
    """PyTorch's transforms trace ours as they trace any function."""
    ours = pullback.grad(base)
    with reference():
        expected = torch.func.jacrev(torch.func.grad(base))(X)
        assert_equal(torch.func.jacrev(ours)(X), expected)
