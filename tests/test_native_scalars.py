"""Programs of scalar expressions: entries moved, samples kept apart, calls, files."""

import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pullback
from published import PUBLISHED
from pullback.emit import backends
from pullback.emit.native import emit_native
from pullback.emit.python import emit_python
from pullback.graph import Graph
from pullback.native import building
from pullback.native.arrays import Array, NotScalar, each
from pullback.native.expansion import expand
from pullback.native.pages import LARGEST_KEPT
from pullback.native.prediction import predicted_seconds
from pullback.native.scalars import Table
from pullback.native.streaming import STREAMED
from pullback.native.structure import STRUCTURE
from support import reference
from test_native_operators import ATEN, difference, graph_of

pytestmark = pytest.mark.skipif(not building.is_there(), reason="needs a C compiler")

DIAGONAL = STRUCTURE["aten.diagonal_backward.default"]


def check(f: Callable[..., Any], *inputs: Tensor, samples: int | None = None) -> None:
    """Compare a function's native program with its Python program."""
    graph = graph_of(f, *inputs)
    assert expand(graph).samples == samples
    native = emit_native(graph, plain=True)
    native.check()
    assert "native_function" in native.code
    expected = emit_python(graph).run(*inputs)
    found = native.run(*inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


# ---------------------------------------------------------------- entries moved


def moved(x: Tensor, y: Tensor) -> list[Tensor]:
    """What moves entries along the last two axes of x (…, 3, 4) and y (…, 4, 2)."""
    flat = x.flatten(-2)
    pieces = [
        x.transpose(-1, -2),
        x.unsqueeze(-2),
        x[..., 1, :],
        x[..., ::2],
        x[..., 1:, 2:],
        flat,
        flat.unflatten(-1, (6, 2)),
    ]
    pieces += [torch.cat([x, x[..., :2] * 2], -1), torch.stack([x, x + 1], -1), torch.stack([x[..., 0], x[..., 1]], -2)]
    pieces += [x.flip(-1), x.roll(1, -2), x.diagonal(dim1=-2, dim2=-1), x.diagonal(1, -2, -1), x.diagonal(-1, -2, -1)]
    pieces += [
        x.tril(),
        x.triu(1),
        torch.nn.functional.pad(x, (1, 2, -1, 0), value=2.0),
        *x.split([1, 3], -1),
        *x.unbind(-2),
    ]
    pieces += [
        x.index_select(-1, torch.arange(2) * 2),
        x[..., torch.arange(2), :],
        x[..., torch.arange(2), torch.arange(2) + 1],
    ]
    at = (torch.arange(2)[None], torch.arange(0, 4, 2)[:, None])
    whole = (None,) * (x.ndim - 2)
    pieces += [ATEN.index_put.default(x, [*whole, *at], y[..., :2, :], True)]
    pieces += [ATEN.index_put.default(torch.zeros_like(x), [*whole, None, at[0][0]], x[..., :2])]
    pieces += [x.select_scatter(y[..., 0], -2, 1), x.slice_scatter(y.transpose(-1, -2), x.ndim - 2, 1)]
    pieces += [x.index_add(-1, torch.arange(2) * 0 + 1, y.transpose(-1, -2)[..., :1, :2] + x[..., :2])]
    pieces += [x.sum(-1), x.mean((-1, -2)), x.amax(-1), x.amin(-2, keepdim=True), x.prod(-1), x.cumsum(-1), x @ y]
    pieces += [
        x.softmax(-1),
        x.log_softmax(-2),
        (x.unsqueeze(-1) * y.unsqueeze(-3)).sum(-2),
        x.expand(2, *x.shape).sum(0),
    ]
    pieces += [x + torch.arange(4.0), x * torch.eye(3, 4), x.repeat(*(1,) * (x.ndim - 1), 2), torch.zeros_like(x) + 1]
    return [p if p._base is None else p.clone() for p in pieces]


def test_entries_that_are_moved() -> None:
    check(lambda x, y: tuple(moved(x, y)), random(3, 4), random(4, 2))


def test_samples_whose_entries_are_moved() -> None:
    check(lambda x, y: tuple(moved(x, y)), random(11, 3, 4), random(11, 4, 2), samples=11)


@pytest.mark.parametrize("form", ["one", "many"])
def test_what_placements_leave_empty(form: str) -> None:
    def f(x: Tensor) -> Tensor:
        return (
            torch.cat(
                [
                    x.diagonal(1, -2, -1),
                    x[..., ::2, 1:].flatten(-2),
                    x[..., 1, :],
                    x.t().diagonal() if x.ndim == 2 else x[..., 0],
                ],
                -1,
            )
            ** 2
        )

    x = random(3, 4) if form == "one" else random(20, 3, 4)
    native, python = (
        (pullback.jacobian if form == "one" else pullback.batch_jacobian)(f, backend=b) for b in ("native", "python")
    )
    torch.testing.assert_close(native(x), python(x), rtol=1e-14, atol=0)
    graph = native._compiled("graph", (x,), {}).program.graph
    ops = {node.op.split(".")[1] for node in graph.nodes}
    assert ops >= {"select_backward", "slice_backward", "diagonal_backward"}
    assert "scalar" not in native.plan(x).reason


def test_products_of_matrices_and_vectors() -> None:
    def f(a: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        products = (
            a @ b,
            a @ v,
            v @ v,
            torch.outer(v, v),
            torch.addmm(b, b, b, beta=0.5, alpha=2),
            torch.addmv(v, b, v),
        )
        return (*products, torch.addmm(b[0], b, b), torch.baddbmm(b[None], b[None], b[None], beta=0), a[:1] @ v)

    check(f, random(2, 3), random(3, 3), random(3))


def test_integers_and_truth_values() -> None:
    def f(x: Tensor, k: Tensor, on: Tensor) -> tuple[Tensor, ...]:
        sums = (
            k * 3 - 2,
            k + k,
            -k,
            k.abs(),
            k > 0,
            on & (k > 1),
            (~on).to(torch.int64),
            k.to(torch.float64) / 2,
            k / 2,
        )
        return (*sums, torch.where(on, x, 0.0), x * k, x * on, k.sum(), on.to(torch.float32), k.clamp(-1, 2), k**2)

    check(f, random(3), torch.tensor([3, -2, 0]), torch.tensor([True, False, True]))


def test_single_precision() -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x * 0.1 + y.sin() / 3, (x @ y.t()).double(), x.double().sum(), (x - y).exp().sum(-1)

    x, y = random(2, 3).float(), random(5, 3)[:2].float()
    graph = graph_of(f, x, y)
    for found, expected in zip(emit_native(graph, plain=True).run(x, y), emit_python(graph).run(x, y), strict=True):
        assert not difference(found, expected, 1e-6)


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("samples", [8, 64, 100])
def test_samples_lie_along_any_axis_and_inside_of_others(samples: int) -> None:
    def leading(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        folded = (x.reshape(samples * 2, 3) @ w).sin().reshape(samples, 2, 3)
        ones = torch.ones(samples, dtype=torch.float64)
        return folded.sum(-1), x.prod(1).prod(1), ones * x[:, 0, 0], x.permute(0, 2, 1) * w[0, 0], torch.stack([x, -x])

    def trailing(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return x.prod(0), (x * w[:, :1]).t().exp(), torch.cat([x, x[:1]], 0).t().contiguous() * 2

    check(leading, random(samples, 2, 3), random(3, 3), samples=samples)
    check(trailing, random(3, samples), random(3, 3), samples=samples)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x: x - x.mean(0),
        lambda x: x.cumsum(0),
        lambda x: x.flip(0),
        lambda x: x.softmax(0),
        lambda x: x[torch.arange(1000).roll(1)],
        lambda x: (x @ x.t())[:, :2],
        lambda x: torch.cat([x[500:], x[:500]]),
        lambda x: x.t().reshape(1000, 2),
        lambda x: x * torch.arange(1000.0)[:, None],
    ],
)
def test_samples_that_are_mixed_are_refused(mixing: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotScalar):
        expand(graph_of(mixing, random(1000, 2)))


def test_a_sample_has_the_same_bits_wherever_it_lies() -> None:
    def run(x: Tensor) -> Tensor:
        graph = graph_of(lambda x: torch.stack([x.prod(1).sin(), (x[:, 0] / x[:, 1]).exp(), x.sum(1).tanh()], 1), x)
        return emit_native(graph, plain=True).run(x)[0]

    x = random(200, 3)
    whole = run(x)
    for part in (slice(0, 8), slice(3, 67), slice(187, 200)):
        assert torch.equal(run(x[part].contiguous()), whole[part])


def test_one_object_serves_all_sizes_of_a_batch() -> None:
    def source(samples: int) -> str:
        code = emit_native(graph_of(lambda x: x.sin() * x[:, :1], random(samples, 2)), plain=True).code
        return code[code.index("SOURCE") : code.index("like0")]

    assert source(20) == source(33)


# ---------------------------------------------------------------- what is left to others


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda x: torch.special.digamma(x), "aten.digamma.default has no scalar expression"),
        (lambda x: x.to(torch.bfloat16), "it has a tensor bfloat16"),
        (lambda x: x[x.argsort()], "no scalar expression"),
    ],
)
def test_what_is_left_to_others_says_why(f: Callable[[Tensor], Tensor], why: str) -> None:
    with pytest.raises(NotScalar, match=why):
        expand(graph_of(f, random(30)))


def test_large_programs_are_left_to_others() -> None:
    with pytest.raises(NotScalar, match=r"entries|operations"):
        expand(graph_of(lambda x, y: (x @ y).sum(), random(40, 40), random(40, 40)))


# ---------------------------------------------------------------- calls


def test_what_is_too_large_is_refused_before_it_is_made() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("an entry was computed")

    row = np.empty((1, 200), dtype=object)
    with pytest.raises(NotScalar, match="40,000 entries"):
        each(never, row.copy().T, row)
    numbers = np.broadcast_to(np.array([Table().zero("float64")]), (100_000,))
    with pytest.raises(NotScalar, match="10,000,000,000 entries"):  # the diagonal's positions alone take 10 GB
        DIAGONAL(Array(numbers, (100_000,), "float64", None), [100_000, 100_000], 0, 0, 1)


def test_constants_of_large_batches_are_one_entry() -> None:
    """What is the same for all samples has to be reshaped with them, however many there are."""

    def f(x: Tensor) -> Tensor:
        return torch.stack([2 * x[:, 0] + x[:, 1] - 3, x[:, 0] * x[:, 1]], 1)

    x = torch.randn(30_000, 2, dtype=torch.float64)
    transform = pullback.batch_jacobian(f, backend="native")
    assert transform.plan(x).reason == "asked for"
    torch.testing.assert_close(transform(x), pullback.batch_jacobian(f, backend="python")(x))
    row = np.broadcast_to(
        np.array([[Table().zero("float64"), Table().input(0, (0, 0), "float64", varies=False)]]), (30_000, 2)
    )
    pairs = Array(row, (30_000, 2), "float64", None).reshape((30_000, 1, 2))
    assert pairs.entries.strides[0] == 0
    assert [entry.op for entry in pairs.entries[29_999, 0]] == ["zero", "input"]


def test_predictions_know_every_dtype() -> None:
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.bool, torch.float32):
        graph = graph_of(lambda x, dtype=dtype: (x * 2).sum(1).to(dtype), torch.ones(16, 3))
        assert 0 < predicted_seconds(expand(graph)) < 1e-4


def test_arguments_in_any_layout() -> None:
    f = pullback.jacobian(lambda x: x.sin() @ x.t(), backend="native")
    x = random(4, 3)
    expected = pullback.jacobian(lambda x: x.sin() @ x.t(), backend="python")(x)
    for laid in (x, x.t().contiguous().t(), torch.stack([x, x], -1)[..., 0]):
        torch.testing.assert_close(f(laid), expected)
    assert f.plan(x).backend == "native"


def test_a_number_that_is_yet_to_be_negated() -> None:
    z = torch.tensor(2 + 3j, dtype=torch.complex128)
    f = pullback.grad(lambda x: x**3, backend="native")
    assert f(z.conj().imag) == 27
    g = pullback.grad(lambda x: x**3, backend="native")
    assert g(torch.tensor(-3.0, dtype=torch.float64)) == 27


def test_results_own_their_memory() -> None:
    f = pullback.jacobian(lambda x, y: (x * y, x + y, x / y), argnums=(0, 1), backend="native")
    x, y = torch.tensor(2.0), torch.tensor(4.0)
    first, second = f(x, y), f(x, y)
    flat = [entry for row in first for entry in row]
    assert [t.item() for t in flat] == [4, 2, 1, 1, 0.25, -0.125]
    flat[0].fill_(7)
    assert [t.item() for t in flat] == [7, 2, 1, 1, 0.25, -0.125]
    assert second[0][0] == f(x, y)[0][0] == 4
    assert x == 2


def test_a_result_that_is_an_argument() -> None:
    graph = graph_of(lambda x: (x, x * 2), random(3))
    x = random(3)
    assert emit_native(graph, plain=True).run(x)[0] is x


def _flags_of_memory(address: int) -> list[str]:
    """What Linux says of the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="only Linux has such pages")
def test_large_results_lie_in_large_pages() -> None:
    f = pullback.batch_jacobian(lambda x: x.sin() * x.sum(-1, keepdim=True), backend="native")
    x = random(70_000, 8)
    large, small = f(x), f(x[:50].clone())
    assert large.nbytes > LARGEST_KEPT > small.nbytes
    assert "hg" in _flags_of_memory(large.data_ptr() + large.nbytes // 2)
    assert "hg" not in _flags_of_memory(small.data_ptr())
    torch.testing.assert_close(large[:50], small, rtol=0, atol=0)
    torch.testing.assert_close(large[-50:], f(x[-50:].clone()), rtol=0, atol=0)


def _partly_constant(x: Tensor) -> Tensor:
    """A Jacobian with rows that are the same for all samples, zeros, and numbers that are read."""
    a, b = x[:, 0], x[:, 1]
    return torch.stack([a + b, a.sin() * b, x[:, 2:].sum(1), a.cos(), 2 * b, (x * x).sum(1), b.exp(), a * 0], 1)


def test_the_memory_of_a_large_result_serves_again() -> None:
    f = pullback.batch_jacobian(lambda x: x.sin() * x.sum(-1, keepdim=True), backend="native")
    x, other = random(70_000, 8), random(70_000, 8) + 1
    first = f(x)
    kept, place = first.clone(), first.data_ptr()
    second = f(other)
    assert second.data_ptr() != place and torch.equal(first, kept)
    view = first[-1]
    del first, second
    assert f(other).data_ptr() != place and torch.equal(view, kept[-1])
    del view
    assert place in {f(x).data_ptr() for _ in range(2)}
    assert torch.equal(f(x), kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("entries", [8, 9])
def test_results_past_the_caches_have_the_bits_of_small_ones(entries: int, dtype: torch.dtype) -> None:
    """Large results are written as whole lines; whatever is left of the last tile, and small ones, otherwise."""
    f = pullback.batch_jacobian(_partly_constant, backend="native")
    row = 8 * entries * torch.empty((), dtype=dtype).itemsize
    x = random(STREAMED // row + 13, entries).to(dtype)
    large = f(x)
    assert large.nbytes > STREAMED > large[:-14].nbytes
    for part in (slice(0, 9), slice(0, 40), slice(700, 723), slice(-29, None), slice(-8, None)):
        torch.testing.assert_close(large[part], f(x[part].clone()), rtol=0, atol=0)
    few = pullback.batch_jacobian(_partly_constant, backend="python")(x[-50:])
    torch.testing.assert_close(large[-50:], few, rtol=1e-13 if dtype == torch.float64 else 1e-5, atol=0)


def test_threads_share_a_program() -> None:
    f = pullback.batch_jacobian(lambda x: (x.sin() * x.prod(1, keepdim=True)).cos(), backend="native")
    inputs = [random(300, k) for k in (3, 3, 3)]
    expected = [f(x) for x in inputs]
    wrong: list[int] = []

    def run(k: int) -> None:
        for _ in range(50):
            if not torch.equal(f(inputs[k % 3]), expected[k % 3]):
                wrong.append(k)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_published_functions_agree_with_the_other_back_end() -> None:
    f, numbers = PUBLISHED["black scholes"]

    def stacked(x: Tensor) -> Tensor:
        return torch.stack(f(*x.unbind(-1)), -1)

    x = torch.stack(numbers)
    native, python = (pullback.jacobian(stacked, backend=b) for b in ("native", "python"))
    torch.testing.assert_close(native(x), python(x), rtol=1e-13, atol=1e-15)
    assert native.plan(x).backend == "native"
    with reference():
        expected = torch.func.jacrev(stacked)(x)
    torch.testing.assert_close(native(x), expected, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------- files, and machines without a compiler


def test_native_programs_are_saved_pickled_and_loaded(tmp_path: Path) -> None:
    compiled = pullback.jacobian(lambda x: x.sin() * x.sum(), backend="native").compile(random(3))
    assert "native_function" in compiled.code
    compiled.save(tmp_path / "program")
    x = random(3)
    for again in (pullback.load(tmp_path / "program"), pickle.loads(pickle.dumps(compiled))):
        torch.testing.assert_close(again(x), compiled(x), rtol=1e-14, atol=0)


def test_without_a_compiler_python_serves_and_one_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    building.toolchain.cache_clear()
    monkeypatch.setattr(backends, "_warned", set())
    try:
        f = pullback.grad(lambda x: (x.sin() * 1.25).sum(), backend="native")
        with pytest.warns(RuntimeWarning, match="no C compiler was found") as caught:
            plans = [f.plan(torch.ones(n)) for n in (2, 3)]
        assert len(caught) == 1
        assert f(torch.zeros(2)).tolist() == [1.25, 1.25]
        assert [plan.backend for plan in plans] == ["python", "python"]
        assert "no C compiler was found" in plans[0].reason
    finally:
        building.toolchain.cache_clear()


def test_a_graph_is_expanded_in_little_time() -> None:
    graph: Graph = graph_of(lambda x: sum((x * k).sin() for k in range(200)), random(3))
    start = process_time()
    expand(graph)
    assert process_time() - start < 0.5
