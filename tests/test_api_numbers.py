"""Chunks of rows and columns, dtypes alone and mixed, tensors with few or no elements, strides, and memory."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pullback
from programs import assert_equal, check, normal
from support import reference

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


def several(x: torch.Tensor, w: torch.Tensor) -> Any:
    return {"product": (x @ w).tanh(), "scalar": (x.sin().sum() * w.exp().sum()), "input": x}


# ---------------------------------------------------------------- chunks


@pytest.mark.parametrize("order", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_chunks(chunk_size: int, order: str) -> None:
    x, w = normal(2, 3), normal(3, 2)
    ours = pullback.jacobian(several, (0, 1), order=order, chunk_size=chunk_size)(x, w)
    with reference():
        assert_equal(ours, torch.func.jacrev(several, (0, 1))(x, w))


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,)])
def test_chunks_of_odd_shapes(shape: tuple[int, ...], order: str) -> None:
    x = normal(*shape)
    f = lambda x: (x.sin(), x.sum() * 2)  # noqa: E731
    assert_equal(pullback.jacobian(f, order=order, chunk_size=2)(x), pullback.jacobian(f, order=order)(x))


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_chunks_inside_a_transform(order: str) -> None:
    f = lambda x: x.sin() * x.prod()  # noqa: E731
    check(lambda D: D.grad(lambda x: D.jacobian(f, order=order, chunk_size=2)(x).square().sum())(normal(3)))


def test_chunks_with_aux_and_state() -> None:
    counter = torch.zeros(())

    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counter.add_(1)
        return x.cos(), x.sum()

    jacobian, aux = pullback.jacobian(f, has_aux=True, chunk_size=1)(normal(3))
    assert_equal(jacobian, torch.diag(-normal(3).sin()))
    assert_equal(aux, normal(3).sum())
    assert counter == 1, "however many chunks there are, the function runs once"


def test_chunks_see_the_same_random_numbers() -> None:
    """Each chunk is of the function that ran, and not of one with other numbers."""
    f = lambda x: torch.dropout(x, 0.5, True) @ torch.ones(8, 2, dtype=x.dtype)  # noqa: E731
    for order in ("forward", "reverse"):
        jacobian = pullback.jacobian(f, order=order, chunk_size=1)(normal(8))
        assert torch.equal(jacobian[0], jacobian[1])
        assert set(jacobian[0].tolist()) == {0.0, 2.0}


# ---------------------------------------------------------------- what changes after the call


def test_a_pull_back_refuses_what_has_changed() -> None:
    x = normal(3)
    _, pull_back = pullback.vjp(lambda x: x * x, x)
    assert_equal(pull_back(torch.ones_like(x))[0], 2 * x)
    x.add_(1)
    with pytest.raises(pullback.ArgumentError, match="changed in place"):
        pull_back(torch.ones_like(x))


def test_a_pull_back_remembers_what_the_function_overwrites() -> None:
    buffer = torch.tensor([3.0, 4.0])

    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * buffer
        buffer.add_(1)
        return y

    _, pull_back = pullback.vjp(f, torch.ones(2))
    assert_equal(pull_back(torch.ones(2))[0], torch.tensor([3.0, 4.0]))
    assert_equal(buffer, torch.tensor([4.0, 5.0]))


# ---------------------------------------------------------------- dtypes


def smooth(x: torch.Tensor) -> torch.Tensor:
    return (x.tanh() * x.exp()).sum() + x.softmax(-1).square().sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-5), (F16, 2e-2), (BF16, 1e-1)])
def test_gradient_in_each_dtype(dtype: torch.dtype, tolerance: float) -> None:
    x = normal(2, 3, dtype=dtype)
    value, gradient = pullback.value_and_grad(smooth)(x)
    assert value.dtype == gradient.dtype == dtype
    with reference():
        expected = torch.func.grad(smooth)(x.double())
    torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-4), (F16, 5e-2), (BF16, 3e-1)])
def test_products_in_each_dtype(dtype: torch.dtype, tolerance: float) -> None:
    x, w, t = normal(2, 3, dtype=dtype), normal(3, 2, dtype=dtype), normal(2, 3, seed=1, dtype=dtype)
    f = lambda x: (x @ w).sin()  # noqa: E731
    jacobian, (_, tangent) = pullback.jacobian(f)(x), pullback.jvp(f, (x,), (t,))
    _, pull_back = pullback.vjp(f, x)
    (cotangent,) = pull_back(torch.ones(2, 2, dtype=dtype))
    assert jacobian.dtype == tangent.dtype == cotangent.dtype == dtype
    with reference():
        exact = torch.func.jacrev(lambda x: (x @ w.double()).sin())(x.double())
    near = lambda a, b: torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)  # noqa: E731
    near(jacobian, exact)
    near(tangent, torch.tensordot(exact, t.double(), 2))
    near(cotangent, exact.sum((0, 1)))


MIXED: dict[str, tuple[Callable[..., torch.Tensor], list[torch.Tensor]]] = {
    "f64[]·f32[3]": (lambda s, x: (s * x).sin().sum(), [normal(), normal(3, dtype=F32)]),
    "f32[]·f64[3]": (lambda s, x: (s * x).sin().sum(), [normal(dtype=F32), normal(3)]),
    "bf16·f32": (lambda a, b: (a * b).tanh().sum(), [normal(3, dtype=BF16), normal(3, dtype=F32)]),
    "f16·f32 broadcast": (lambda a, b: (a / (b * b + 1)).sum(), [normal(2, 1, dtype=F16), normal(3, dtype=F32)]),
    "f32 cast to f64": (lambda a, b: (a.double() @ b).sum(), [normal(2, 3, dtype=F32), normal(3, 2)]),
    "f64 cast to f32": (lambda a, b: (a.float() * b).exp().sum(), [normal(3), normal(3, dtype=F32)]),
    "cat": (lambda a, b: torch.cat([a, b]).square().sum(), [normal(2, dtype=F32), normal(3)]),
    "where": (lambda a, b: torch.where(b > 0, a, b).sin().sum(), [normal(3, dtype=F32), normal(3)]),
    "index_put": (lambda a, b: (a * b.float()).sum() + b.sum(), [normal(3, dtype=F32), normal(3, dtype=F16)]),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes(name: str) -> None:
    """Each gradient has the dtype of its input, as in `torch.func`."""
    f, arguments = MIXED[name]
    argnums = tuple(range(len(arguments)))
    ours = pullback.grad(f, argnums)(*arguments)
    assert [g.dtype for g in ours] == [a.dtype for a in arguments]
    with reference():
        assert_equal(ours, torch.func.grad(f, argnums)(*arguments), rtol=2e-2, atol=2e-2)


def test_a_jacobian_has_the_dtype_of_its_input() -> None:
    f = lambda s, x: s * x  # noqa: E731
    check(lambda D: D.jacobian(f, (0, 1))(normal(), normal(3, dtype=F32)), rtol=1e-5, atol=1e-5)


def test_mixed_products() -> None:
    primals, tangents = (normal(), normal(3, dtype=F32)), (normal(seed=2), normal(3, seed=1, dtype=F32))
    f = lambda s, x: s * x.sin() + x.sum()  # noqa: E731
    check(lambda D: D.jvp(f, primals, tangents), rtol=1e-5, atol=1e-5)
    check(lambda D: D.vjp(f, *primals)[1](torch.ones(3)), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- layouts


LAYOUTS = {
    "transposed": normal(3, 2).T,
    "strided": normal(4, 6)[::2, ::2],
    "expanded": normal(1, 3).expand(2, 3),
    "expanded_scalar": normal().expand(2, 3),
    "select": normal(2, 3, 2)[..., 1],
    "flipped": normal(2, 3).flip(1),
    "diagonal": normal(3, 3, 2).diagonal().contiguous().T.reshape(3, 2).T,
    "overlapping": normal(6).as_strided((2, 3), (1, 2)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    x, w = LAYOUTS[name], normal(3, 2)
    f = lambda x: ((x @ w).sin() * x.sum() + x.reshape(-1)[:2]).sum()  # noqa: E731
    check(lambda D: (D.grad(f)(x), D.hessian(f)(x), D.hvp(f, (x,), (x,))))


def test_results_own_their_memory() -> None:
    """Writing into one result does not change another, nor an argument."""
    x = normal(3)
    first, second = pullback.grad(lambda a, b: (a + b).sum(), (0, 1))(x, x)
    first.add_(5)
    assert_equal(second, torch.ones_like(x))
    output, pull_back = pullback.vjp(lambda a: a, x)
    (cotangent,) = pull_back(x)
    assert_equal(cotangent, normal(3))
    cotangent.add_(1)
    output.add_(1)
    again = pullback.jacobian(lambda a: a * 2)(x)
    again.zero_()
    assert_equal(pullback.jacobian(lambda a: a * 2)(x), 2 * torch.eye(3, dtype=F64))


# ---------------------------------------------------------------- memory

MEMORY = """
import resource, torch
torch.set_num_threads(1)
f = lambda w: (w @ w).sum()
{imports}
w = torch.randn(2000, 2000)
{gradient}(torch.randn(8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
g = {gradient}(w)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
columns, rows = w.sum(0), w.sum(1)
assert torch.allclose(g, rows[None].expand(2000, 2000) + columns[:, None], atol=1e-2)
"""


def growth(imports: str, gradient: str) -> int:
    """Kilobytes by which the peak memory of a fresh process grows during one gradient."""
    code = MEMORY.format(imports=imports, gradient=gradient)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def test_a_matrix_times_itself_needs_no_more_memory_than_autograd() -> None:
    """`(w @ w).sum()` at n = 2,000: a Jacobian of the product, written out, would have 1.6e13 entries."""
    theirs = growth("from torch.func import grad", "grad(f)")
    ours = growth("import pullback", "pullback.grad(f)")
    assert ours <= theirs + 20_000, f"{ours:,} kB against {theirs:,} kB"


# ---------------------------------------------------------------- autocast


def cast(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x @ w).float().tanh().square().sum()


BFLOAT = torch.autocast("cpu", dtype=BF16)


def of_the_gradient(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return pullback.grad(cast, 1)(x, w).square().sum()


def pulled(x: torch.Tensor, w: torch.Tensor) -> Any:
    return pullback.vjp(cast, x, w)[1](torch.tensor(1.0))


def recorded(x: torch.Tensor, w: torch.Tensor) -> Any:
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    for _ in range(3):  # step by step, then compiled
        with pullback.record() as tape:
            loss = cast(*leaves)
        found = tape.grad(loss, leaves)
    return found


def bridged(x: torch.Tensor, w: torch.Tensor) -> Any:
    leaf = w.clone().requires_grad_()
    with reference():
        of_the_gradient(x, leaf).backward()  # type: ignore[no-untyped-call]
    return leaf.grad


AUTOCAST: dict[str, Callable[..., Any]] = {
    "gradient": pullback.grad(cast, (0, 1)),
    "of a gradient": pullback.grad(of_the_gradient, 1),
    "hessian": pullback.hessian(cast, 1),
    "pulled back": pulled,
    "recorded": recorded,
    "bridged": bridged,
}


@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_does_not_cast_inside_of_programs(name: str) -> None:
    """It casts what the function computes, and no more: derivatives are those of the function with its casts."""
    x, w = normal(3, 4).float(), normal(4, 2).float()

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (x.bfloat16() @ w.bfloat16()).float().tanh().square().sum()

    written_out = {"gradient": pullback.grad(f, (0, 1)), "hessian": pullback.hessian(f, 1)}
    gradient = lambda x, w: pullback.grad(f, 1)(x, w).square().sum()  # noqa: E731
    second = pullback.grad(gradient, 1)
    expected = {"of a gradient": second, "bridged": second, "pulled back": written_out["gradient"]} | written_out
    with BFLOAT:
        ours = AUTOCAST[name](x, w)
    theirs = expected.get(name, written_out["gradient"])(x, w)
    torch.testing.assert_close(ours, theirs, rtol=1e-2 if name == "recorded" else 1e-6, atol=1e-6)
