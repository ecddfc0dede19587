"""What costs O(n) has derivatives of first and second order that cost O(n), or O(n log n), and no more memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import pullback
from support import reference

N = 1000
MOST_ELEMENTS = 300  # computed, for each of n; a quadratic derivative has 1000 and more
LARGEST = 8  # tensor, in the same measure
VIEWS = ("view", "expand", "slice", "select", "alias", "permute", "reshape", "unsqueeze", "squeeze", "_t.", ".t.")


class Work(TorchDispatchMode):
    """How many elements the operators of a block compute, and how many the largest tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.largest = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if not any(name in str(op) for name in VIEWS):
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, Tensor):
                    self.elements += tensor.numel()
                    self.largest = max(self.largest, tensor.numel())
        return result


def with_zeros(x: Tensor) -> Tensor:
    """Two zeros, one of them in the middle."""
    return x * (torch.arange(len(x)) % 400 != 399)


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, 20)


PLACES = torch.arange(N)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda x: x.cumsum(0) * x,
    "cumprod": lambda x: x.cumprod(0),
    "cumprod with zeros": lambda x: with_zeros(x).cumprod(0),
    "cumprod of rows": lambda x: rows(x).cumprod(0),
    "logcumsumexp": lambda x: x.logcumsumexp(0),
    "cummax": lambda x: x.cummax(0).values * x,
    "sort": lambda x: x.sort().values * x,
    "topk": lambda x: x.topk(N // 2).values.exp(),
    "prod": lambda x: x.prod()[None],
    "prod with zeros": lambda x: with_zeros(x).prod()[None],
    "cumulative_trapezoid": lambda x: torch.cumulative_trapezoid(x).exp(),
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0).exp(),
    "logsumexp": lambda x: x.logsumexp(0)[None],
    "norm": lambda x: x / x.norm(),
    "std": lambda x: x / x.std(),
    "layer_norm": lambda x: functional.layer_norm(x, (N,)),
    "group_norm": lambda x: functional.group_norm(x[None, :, None], 2),
    "rms_norm": lambda x: functional.rms_norm(x, (N,)),
    "normalize": lambda x: functional.normalize(x, dim=0),
    "attention of one query": lambda x: functional.scaled_dot_product_attention(
        *(x[None, :1, None],), *2 * (x[None, :, None],)
    ),
    "cross": lambda x: torch.linalg.cross(x[:999].reshape(-1, 3), x[:999].reshape(-1, 3).flip(0)),
    "gather": lambda x: x[PLACES.flip(0)] * x,
    "gather of reshaped rows": lambda x: rows(x).flip(0)[:, PLACES[:10].flip(0)].sin(),
    "index_add": lambda x: x.index_add(0, PLACES, x * x),
    "scatter_reduce": lambda x: torch.ones(10, dtype=x.dtype).scatter_reduce(0, PLACES % 10, x, "prod"),
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "quantile": lambda x: x.quantile(0.3)[None].exp(),
    "cosine similarity": lambda x: functional.cosine_similarity(x, x.flip(0), 0)[None],
    "pseudoinverse": lambda x: torch.linalg.pinv(x[:, None])[0],
    "least squares": lambda x: torch.linalg.lstsq(x[:, None], x.flip(0)[:, None]).solution[0],
    "interpolate": lambda x: functional.interpolate(x[None, None], scale_factor=2, mode="linear").exp(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_derivative_is_quadratic(name: str) -> None:
    f = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(0)
    x = 1 + 0.1 * torch.randn(N, dtype=torch.float64, generator=generator)
    v = torch.randn(N, dtype=torch.float64, generator=generator)
    u = torch.randn(f(x).shape, dtype=torch.float64, generator=generator)
    calls: dict[str, Callable[[], Any]] = {
        "pulled back": lambda: pullback.grad(lambda x: (f(x) * u).sum(), backend="python")(x),
        "pushed forward": lambda: pullback.jvp(f, (x,), (v,)),
        "second order": lambda: pullback.hvp(lambda x: (f(x) * u).sum(), (x,), (v,)),
    }
    for way, call in calls.items():
        call()
        with Work() as work:
            call()
        seen = f"{way}: {work.elements / N:.0f} n elements, the largest tensor has {work.largest / N:.0f} n"
        assert work.elements <= MOST_ELEMENTS * N, seen
        assert work.largest <= LARGEST * N, seen


def scans(dtype: torch.dtype) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Functions and points, longer than what is written out."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 23, dtype=dtype, generator=generator)
    zeros = x.clone()
    zeros[0, 5] = zeros[0, 11] = zeros[1, 0] = 0
    spread = x * 300
    empty = x.clone()
    empty[0, :3] = empty[1, 4] = -torch.inf
    found = {
        "products": (lambda x: x.cumprod(1), x),
        "products down": (lambda x: x.cumprod(-2), x.mT.contiguous()),
        "products with zeros": (lambda x: x.cumprod(1), zeros),
        "product with zeros": (lambda x: x[0].prod(), zeros),
        "log-sums": (lambda x: x.logcumsumexp(1), x),
    }
    return found if dtype.is_complex else found | {"far apart": (lambda x: x.logcumsumexp(1), spread)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ["products", "products down", "products with zeros", "product with zeros", "log-sums"])
def test_scans_of_many(name: str, dtype: torch.dtype) -> None:
    """To order two, also where elements are zero, against PyTorch."""
    f, x = scans(dtype)[name]
    generator = torch.Generator().manual_seed(2)
    u, v = (torch.randn(y.shape, dtype=dtype, generator=generator) for y in (f(x), x))

    def weighted(x: Tensor) -> Tensor:
        product = u.conj() * f(x)
        return (product.real if dtype.is_complex else product).sum()

    with reference():
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(weighted(leaf), leaf, create_graph=True)
        slope = (gradient * v.conj()).real.sum() if dtype.is_complex else (gradient * v).sum()
        (product,) = torch.autograd.grad(slope, leaf)
        pushed = (f(x + 1e-6 * v) - f(x - 1e-6 * v)) / 2e-6
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(pullback.grad(weighted)(x), gradient.detach(), **close)
    torch.testing.assert_close(pullback.jvp(f, (x,), (v,))[1], pushed, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pullback.hvp(weighted, (x,), (v,))[1], product, **close)
    leaf = x.clone().requires_grad_()
    with pullback.record() as tape:
        loss = weighted(leaf)
    torch.testing.assert_close(tape.grad(loss, leaf), gradient.detach(), **close)


def test_rows_columns_and_files_of_scans(tmp_path: Any) -> None:
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    with reference():
        expected = torch.func.jacrev(lambda x: x.cumprod(0))(x)
        hessian = torch.func.hessian(lambda x: x.logcumsumexp(0)[-1].exp() * x.cumprod(0)[-2])(x)
    for order in ("forward", "reverse", "auto"):
        torch.testing.assert_close(pullback.jacobian(lambda x: x.cumprod(0), order=order)(x), expected)
    ours = pullback.hessian(lambda x: x.logcumsumexp(0)[-1].exp() * x.cumprod(0)[-2])
    torch.testing.assert_close(ours(x), hessian)
    mapped = torch.vmap(pullback.grad(lambda x: x.cumprod(0).sum()))(torch.stack([x, x + 0.1]))
    torch.testing.assert_close(mapped[0], expected.sum(0))
    compiled = pullback.grad(lambda x: x.cumprod(0).sum()).compile(x)
    compiled.save(tmp_path / "product")
    torch.testing.assert_close(pullback.load(tmp_path / "product")(x), expected.sum(0))


def test_shares_of_what_is_nothing() -> None:
    """Entries of minus infinity have no share; a run of them at the start stays one."""
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    x[:3] = x[7] = -torch.inf
    gradient = pullback.grad(lambda x: x.logcumsumexp(0)[5:].sum())(x)
    shares = [functional.pad(x[: k + 1].softmax(0), (0, 19 - k)) for k in range(5, 20)]
    torch.testing.assert_close(gradient, torch.stack(shares).sum(0))


@pytest.mark.parametrize("size", [3, 300])
def test_identity_matrices_of_any_size(size: int) -> None:
    """PyTorch's decomposition counts 300 rows in uint16, which its kernels do not know."""
    x = torch.linspace(-1, 1, size)
    gradient = pullback.grad(lambda x: ((torch.eye(size) * x) @ x).sum() + (torch.eye(2, size) @ x).sum())(x)
    torch.testing.assert_close(gradient, 2 * x + torch.eye(2, size).sum(0))
