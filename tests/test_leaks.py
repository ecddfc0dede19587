"""Nothing is left behind: memory by call, reference cycles, and threads that share what there is."""

import gc
import random
import threading
import tracemalloc
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback import CaptureError
from pullback.signature import CACHE
from pullback.tapes import THREAD
from pullback.torch_private import FakeTensorMode

X = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
BYTES_A_CALL = 100


@pytest.fixture(autouse=True)
def _an_empty_cache() -> Iterator[None]:
    CACHE.clear()
    yield
    CACHE.clear()


# ---------------------------------------------------------------- memory


weight = X.clone().requires_grad_()
network = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
gradient = pullback.grad(lambda x: (x.sin() * 2).sum())
compiled = gradient.compile(X)


def a_call(k: int) -> None:
    gradient(X)


def a_lambda_made_anew(k: int) -> None:
    pullback.grad(lambda x: (x.sin() * 2).sum())(X)


def a_compiled_call(k: int) -> None:
    compiled(X)


def a_vjp(k: int) -> None:
    pullback.vjp(lambda x: x.sin() * X, X)[1](X)


def a_tape(k: int) -> None:
    with pullback.record() as tape:
        loss = (network(weight) * weight).sum()
    tape.backward(loss)
    weight.grad = None


def a_tape_that_is_dropped(k: int) -> None:
    with pullback.record():
        (network(weight) * weight).sum()


def a_tape_that_fails(k: int) -> None:
    try:
        with pullback.record():
            raise ValueError((network(weight) * weight).sum())
    except ValueError:
        pass


def a_new_trace(k: int) -> None:
    pullback.grad(lambda x: (x * k).sum())(X)


def a_refusal(k: int) -> None:
    with suppress(CaptureError):
        pullback.grad(lambda x: x.sum() if x.sum() > 0 else x)(X)


CALLS = [a_call, a_lambda_made_anew, a_compiled_call, a_vjp, a_tape, a_tape_that_is_dropped, a_tape_that_fails]
TRACES = [a_new_trace, a_refusal]


def slope(work: Callable[[int], None], warm: int, count: int) -> float:
    """Bytes that are kept for each call, once the caches are full; the least of three spans, as tables grow in leaps.

    PyTorch's own cache of fake results grows with the constants that it has seen; it is no memory of ours.
    """

    def kept() -> int:
        FakeTensorMode.cache_clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        for k in range(warm):
            work(k)
        sizes = [kept()]
        for start in range(warm, warm + 3 * count, count):
            for k in range(start, start + count):
                work(k)
            sizes.append(kept())
        return min(after - before for before, after in pairwise(sizes)) / count
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("work", CALLS, ids=lambda work: work.__name__)
def test_calls_keep_nothing(work: Callable[[int], None]) -> None:
    assert slope(work, 100, 150) <= BYTES_A_CALL


@pytest.mark.parametrize("work", TRACES, ids=lambda work: work.__name__)
def test_traces_keep_nothing_beyond_the_cache(work: Callable[[int], None]) -> None:
    assert slope(work, 140, 120) <= BYTES_A_CALL


@pytest.mark.long
@pytest.mark.parametrize("work", CALLS + TRACES, ids=lambda work: work.__name__)
def test_ten_thousand_keep_nothing(work: Callable[[int], None]) -> None:
    assert slope(work, 500, 3_334) <= BYTES_A_CALL


# ---------------------------------------------------------------- cycles


def is_ours(thing: Any) -> bool:
    """Whether an object is of a class of ours, a function of ours, or a frame of one."""
    if isinstance(thing, types.FunctionType):
        return "pullback" in (thing.__module__ or "") or thing.__code__.co_filename.startswith("<pullback")
    if isinstance(thing, types.FrameType):
        return "pullback" in thing.f_code.co_filename
    return type(thing).__module__.partition(".")[0] == "pullback"


def collected(work: Callable[[], Any]) -> list[Any]:
    """What of ours only the garbage collector can free after some work."""
    work()  # what is made once and for all
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        work()
        CACHE.clear()
        gc.collect()
        return [thing for thing in gc.garbage if is_ours(thing)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def explains() -> None:
    pullback.grad(lambda x: (x * 3).sum()).plan(X)


def traces() -> None:
    pullback.trace(lambda x: (x * 3).sum(), X)


WORK: list[Callable[[], Any]] = [
    *(lambda work=work: work(7) for work in CALLS + TRACES),  # type: ignore[misc]
    lambda: pullback.hessian(lambda x: (x**3).sum())(X),
    lambda: pullback.jacobian(lambda x: x.sin(), chunk_size=1)(X),
    lambda: pullback.compile(lambda x: pullback.grad(lambda y: (y * y).sum())(x) * 2)(X),
    torch.no_grad()(lambda: pullback.grad(lambda x: network(x).sum()).compile(X)(X)),
    explains,
    traces,
]
NAMES = [work.__name__ for work in CALLS + TRACES]
NAMES += ["hessian", "chunks", "compile", "compiled", "explains", "traces"]


@pytest.mark.parametrize("work", WORK, ids=NAMES)
def test_no_cycle_of_ours(work: Callable[[], Any]) -> None:
    found = collected(work)
    assert not found, [repr(thing)[:150] for thing in found[:12]]


# ---------------------------------------------------------------- threads


def in_threads(work: Callable[[int], None], count: int = 8) -> None:
    """Run some work in as many threads at once, and raise the first error of any."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(k: int) -> None:
        try:
            barrier.wait(30)
            work(k)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    if failures:
        raise failures[0]


def test_eight_threads_share_transforms() -> None:
    scale = 3.0
    shared = pullback.grad(lambda x, k: (x**3 * k * scale).sum())
    hessian = pullback.hessian(lambda x: (x**3).sum())

    def work(thread: int) -> None:
        generator = random.Random(thread)
        for _ in range(12):
            k, size = generator.choice([1.0, 2.0, thread]), generator.choice([2, 3, 4])
            x = torch.rand(size, dtype=torch.float64)
            torch.testing.assert_close(shared(x, k), 9 * k * x**2)
            torch.testing.assert_close(pullback.grad(lambda y, k=k: (y * k).sin().sum())(x), k * (k * x).cos())
            torch.testing.assert_close(hessian(x), torch.diag(6 * x))

    in_threads(work)


def test_eight_threads_have_tapes_of_their_own() -> None:
    shared = X.clone().requires_grad_()

    def work(thread: int) -> None:
        for turn in range(12):
            factor = float(thread + turn)
            with pullback.record() as tape:
                loss = (shared**2 * factor).sum()
            torch.testing.assert_close(tape.grad(loss, shared), 2 * factor * shared.detach())
            assert not THREAD.tapes

    in_threads(work)


def test_eight_threads_ask_one_tape() -> None:
    leaf = X.clone().requires_grad_()
    with pullback.record() as tape:
        losses = [(leaf**2 * k).sum() for k in range(8)]

    def work(thread: int) -> None:
        for _ in range(12):
            torch.testing.assert_close(tape.grad(losses[thread], leaf), 2 * thread * leaf.detach())

    in_threads(work)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


@pytest.mark.reference  # other threads train by torch.autograd, which a capture or a record must not disturb
def test_captures_do_not_disturb_plain_pytorch_in_other_threads() -> None:
    def plain(thread: int) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 4, batch_first=True))
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval()
        x = torch.rand(2, 5, 3)
        with torch.no_grad():
            expected, attended = model(x)[0], layer(torch.ones(2, 3, 4))
        for _ in range(12):
            leaf = x.clone().requires_grad_()
            found = Scaled.apply(model(leaf)[0])
            torch.testing.assert_close(found.detach(), expected * 2)
            found.sum().backward()
            assert leaf.grad is not None
            assert torch.is_grad_enabled()
            with torch.no_grad():
                torch.testing.assert_close(layer(torch.ones(2, 3, 4)), attended, rtol=1e-4, atol=1e-5)

    def ours(thread: int) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 4, batch_first=True))
        for turn in range(4):
            factor = float(turn + thread * 10)
            found = pullback.grad(lambda x, factor=factor: (model(x)[0] * factor).sum())(torch.rand(2, 5, 3))
            assert found.shape == (2, 5, 3)
            leaf = torch.rand(3, requires_grad=True)
            with pullback.record() as tape:
                loss = (Scaled.apply(leaf) * factor).sum()
            torch.testing.assert_close(tape.grad(loss, leaf), torch.full((3,), 2 * factor))

    settings = (
        torch.backends.mkldnn.is_available(),
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
    )
    in_threads(lambda k: (plain if k % 2 else ours)(k))
    assert settings == (
        torch.backends.mkldnn.is_available(),
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
    )
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert torch.autograd.Function.__dict__.get("apply") is not None
