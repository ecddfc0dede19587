"""Programs of transforms that run twice: with our transforms, and with those of `torch.func`.

A program is a function of an engine, that is, of an object with the attributes `grad`, `value_and_grad`, `jacobian`,
`hessian`, `vjp`, `jvp` and `hvp`.  It returns any pytree, which must come out equal.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import pullback
from support import reference

Program = Callable[[Any], Any]


def _value_and_grad(f: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable[..., Any]:
    return lambda *args, **kwargs: torch.func.grad_and_value(f, argnums, has_aux)(*args, **kwargs)[::-1]


def _hvp(f: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    argnums = 0 if len(primals) == 1 else tuple(range(len(primals)))
    return torch.func.jvp(torch.func.grad(f, argnums), primals, tangents)


def _jacobian(f: Callable[..., Any], argnums: Any = 0, has_aux: bool = False, **_: Any) -> Callable[..., Any]:
    return torch.func.jacrev(f, argnums, has_aux=has_aux)


def _hessian(f: Callable[..., Any], argnums: Any = 0, **_: Any) -> Callable[..., Any]:
    return torch.func.jacrev(torch.func.jacrev(f, argnums), argnums)


REFERENCE = SimpleNamespace(
    grad=lambda f, argnums=0, has_aux=False, **_: torch.func.grad(f, argnums, has_aux),
    value_and_grad=_value_and_grad,
    jacobian=_jacobian,
    hessian=_hessian,
    vjp=torch.func.vjp,
    jvp=torch.func.jvp,
    hvp=_hvp,
)


def assert_equal(ours: Any, expected: Any, rtol: float = 1e-8, atol: float = 1e-9) -> None:
    """Equal classes of containers, shapes, dtypes, and values up to rounding."""
    assert type(ours) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)
    elif isinstance(expected, dict):
        assert list(ours) == list(expected)
        assert_equal([*ours.values()], [*expected.values()], rtol, atol)
    elif isinstance(expected, (list, tuple)):
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            assert_equal(one, other, rtol, atol)
    else:
        assert ours == expected


def check(program: Program, rtol: float = 1e-8, atol: float = 1e-9) -> None:
    """Run a program with both engines, and compare."""
    with reference(), sdpa_kernel(SDPBackend.MATH):
        expected = program(REFERENCE)
    assert_equal(program(pullback), expected, rtol, atol)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The same random numbers for the same shape and seed."""
    generator = torch.Generator().manual_seed(seed + sum((k + 1) * n for k, n in enumerate(shape)))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
