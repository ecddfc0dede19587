"""Operators on tensors that lie otherwise: the same numbers, sooner."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import pullback
from pullback import transform
from pullback.emit.peepholes import rewrite
from pullback.emit.turning import LARGEST
from pullback.graph import Graph, Node, Value
from support import reference


def text_of(f: Callable[..., Tensor], *args: Tensor) -> str:
    return pullback.value_and_grad(f, backend="python").plan(*args).code


def agrees(f: Callable[..., Tensor], *args: Tensor) -> None:
    found = pullback.value_and_grad(f, tuple(range(len(args))), backend="python")(*args)
    with reference():
        gradients, value = torch.func.grad_and_value(f, tuple(range(len(args))))(*args)
    tolerance = 1e-12 if args[0].dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found, (value, gradients), rtol=tolerance, atol=tolerance)


def squares_of_gelu(x: Tensor, w: Tensor) -> Tensor:
    return (F.gelu(x @ w) ** 2).sum()


@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5), (2, 3, 6, 5)], ids=str)
def test_gelu_is_given_what_is_not_contiguous(shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape), torch.randn(5, 7)
    assert "gelu_turned" in text_of(squares_of_gelu, x, w)
    assert "gelu_backward_turned" in text_of(squares_of_gelu, x, w)
    agrees(squares_of_gelu, x, w)


@pytest.mark.parametrize(
    "x",
    [torch.randn(6, 5, dtype=torch.float64), torch.randn(1, 5), torch.randn(2 * LARGEST // 7, 5)],
    ids=["double", "a row", "large"],
)
def test_gelu_that_gains_nothing_stays(x: Tensor) -> None:
    w = torch.randn(5, 7, dtype=x.dtype)
    assert "turned" not in text_of(squares_of_gelu, x, w)
    agrees(squares_of_gelu, x, w)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (torch.softmax(q @ k.transpose(-1, -2) * 0.4, -1) @ v).square().sum()


def unscaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1) @ v).square().sum()


def read_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2)) / 3.0
    return (torch.softmax(scores, -1) @ v).square().sum() + scores.square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("f", [attention, unscaled])
def test_softmax_of_short_rows_is_taken_across_them(f: Callable[..., Tensor], dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(4, n, d, dtype=dtype) for n, d in ((7, 5), (9, 5), (9, 3)))
    code = text_of(f, q, k, v)
    assert "softmax_turned" in code
    assert "_softmax_backward_data_turned" in code
    agrees(f, q, k, v)


@pytest.mark.parametrize(("rows", "columns"), [(3, 9), (9, 200)])
def test_softmax_that_gains_nothing_stays(rows: int, columns: int) -> None:
    q, k, v = torch.randn(4, rows, 5), torch.randn(4, columns, 5), torch.randn(4, columns, 3)
    assert "softmax_turned" not in text_of(attention, q, k, v)
    agrees(attention, q, k, v)


def test_scores_that_others_read_stay() -> None:
    q, k, v = (torch.randn(4, n, d) for n, d in ((7, 5), (9, 5), (9, 3)))
    assert "softmax_turned" not in text_of(read_twice, q, k, v)
    agrees(read_twice, q, k, v)


def test_results_lie_as_they_did() -> None:
    x, y = Value("x", (4, 8, 5), "float32"), Value("y", (4, 5, 9), "float32")
    scores, chances = Value("scores", (4, 8, 9), "float32"), Value("chances", (4, 8, 9), "float32")
    gelu = Value("gelu", (4, 8, 5), "float32")
    nodes = (
        Node("aten.bmm.default", (x, y), (), (scores,)),
        Node("aten._softmax.default", (scores, 2, False), (), (chances,)),
        Node("aten.gelu.default", (x,), (), (gelu,)),
    )
    graph = Graph((x, y), nodes, (chances, gelu))
    assert str(rewrite(graph)) == str(graph)


def test_turned_programs_are_well_formed() -> None:
    """A graph is checked by nobody behind the rewriting: here it is, with views of views of what is turned."""

    def f(q: Tensor, k: Tensor) -> Tensor:
        chances = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * 0.5, -1)
        turned = chances.transpose(1, 2)
        return (F.gelu(turned.reshape(4, -1)) * 2).sum() + torch.bmm(turned, q).square().sum()

    q, k = torch.randn(4, 7, 5), torch.randn(4, 9, 5)
    agrees(f, q, k)
    transformed = pullback.grad(f, backend="python")
    transformed(q, k)
    entry, _ = transform.find(transformed.kind, transformed.f, (q, k), {})
    rewrite(entry.program.program.graph).check()
