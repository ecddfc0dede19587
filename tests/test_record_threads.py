"""Tapes in several threads, and what a tape leaves behind: nothing."""

import gc
import threading
import tracemalloc

import torch
from torch import Tensor, nn

import pullback
from record_support import forget

WARM_UP = 2500  # as with autograd, small blocks of memory are kept for good for that long, and then no more
CALLS = 500  # enough to tell 100 bytes a call from noise


def step(model: nn.Module, x: Tensor) -> None:
    with pullback.record() as tape:
        state = torch.zeros(len(x) + 1, 3)
        state[1:] = model(x)
        loss = (state * state).sum() * 0.5
    tape.backward(loss)
    tape.grad(loss, {"parameters": list(model.parameters())})


def tapes() -> int:
    """How many tapes are alive."""
    return sum(type(o) is pullback.Tape for o in gc.get_objects())


def test_memory_does_not_grow_with_tapes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), torch.randn(5, 4)
    gc.collect()
    others = tapes()
    gc.disable()  # what a cycle of ours holds would stay
    try:
        tracemalloc.start()
        for _ in range(WARM_UP):
            step(model, x)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(CALLS):
            step(model, x)
        slope = (tracemalloc.get_traced_memory()[0] - before) / CALLS
        tracemalloc.stop()
        assert slope <= 100
        assert tapes() == others
    finally:
        gc.enable()


def test_a_step_makes_no_garbage() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), torch.randn(5, 4)
    for _ in range(5):
        step(model, x)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(5):
            step(model, x)
        gc.collect()
        ours = [o for o in gc.garbage if (type(o).__module__ or "").startswith("pullback")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not ours


def test_threads_record_at_once() -> None:
    """Eight threads, each with its own tapes, share caches, a frozen tensor and what is patched meanwhile."""
    forget()
    shared = torch.linspace(0, 1, 4, dtype=torch.float64)
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            start.wait()
            x = torch.full((4,), float(number + 1), dtype=torch.float64, requires_grad=True)
            for k in range(25):
                factor = 1 + k / 10
                with pullback.record() as tape:
                    y = x * factor
                    y[number % 4] = x.sum()
                    loss = (y.sin() * shared).sum()
                (gradient,) = tape.grad(loss, [x])
                kept = torch.ones(4, dtype=torch.float64)
                kept[number % 4] = 0
                values = x.detach() * factor
                values[number % 4] = x.detach().sum()
                wanted = values.cos() * shared * factor * kept + (values.cos() * shared)[number % 4]
                torch.testing.assert_close(gradient, wanted)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert torch.autograd.Function.apply.__qualname__.startswith("Function")


def test_one_tape_is_asked_by_several_threads() -> None:
    x = torch.ones(3, requires_grad=True)
    with pullback.record() as tape:
        loss = (x.exp() * x).sum()
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(tape.grad(loss, x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for gradient in found:
        torch.testing.assert_close(gradient, (x.exp() * (x + 1)).detach())
