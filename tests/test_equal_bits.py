"""Equal calls give equal bits, in the same layout: a record at every sighting, step by step and as a program."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pullback
from record_support import forget

TIMES = 4  # step by step twice, then by a program
Make = Callable[[], nn.Module]
N = torch.randn


def same(a: Any, b: Any) -> bool:
    """Whether two tensors hold the same bits, NaN and the sign of zeros included, in the same layout."""
    if a is None or b is None:
        return a is b
    kind = {4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.stride() == b.stride() and a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


class Of(nn.Module):
    """A function with modules in it."""

    def __init__(self, forward: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.parts, *inputs)


def first(module: nn.Module) -> nn.Module:
    """A module that returns the first of what another returns."""
    return Of(lambda m, x: m(x)[0], module)


def attention(**options: Any) -> nn.Module:
    return Of(lambda m, x: m(x, x, x)[0], nn.MultiheadAttention(8, 2, batch_first=True, **options))


def residual() -> nn.Module:
    def forward(a: Any, n: Any, b: Any, m: Any, skip: Any, last: Any, x: Tensor) -> Tensor:
        y = m(b(F.relu(n(a(x))))) + skip(x)
        return last(F.max_pool2d(F.relu(y), 2).mean((2, 3)))  # type: ignore[no-any-return]

    convolutions = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(3, 8, 1)
    a, b, skip = convolutions
    return Of(forward, a, nn.BatchNorm2d(8), b, nn.BatchNorm2d(8), skip, nn.Linear(8, 5))


def steps(cell: nn.Module) -> nn.Module:
    """A loop over the steps of a sequence, whose entries have derivatives as well."""

    def forward(cell: Any, x: Tensor) -> Tensor:
        state, seen = None, []
        for t in range(x.shape[1]):
            state = cell(x[:, t], state)
            seen.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(seen, 1)[:, -2:]

    return Of(forward, cell)


def parts() -> nn.Module:
    """Parts of one tensor that overlap, that leave gaps, and the whole."""

    def forward(linear: Any, x: Tensor) -> Tensor:
        y = linear(x)
        gaps = y[:, 1] * y[:, 3].exp() + y[:, 4:6].sum(1)
        return gaps[:, None] + y[:, :3] * y[:, 2:5] + y.tanh()[:, ::2] - y[1, :3]

    return Of(forward, nn.Linear(4, 6))


def layouts() -> nn.Module:
    """Operators that round differently where entries lie differently, on views of all kinds."""

    def forward(linear: Any, x: Tensor) -> Tensor:
        y = linear(x)
        turned = F.silu(y.transpose(1, 2)).mean(1) + F.gelu(y.permute(2, 0, 1)).sum((0, 1))[:1]
        spread = y[:, :1].expand(-1, 4, -1).sigmoid() * y.flip(1)
        return turned.sum() + spread.softmax(1).std() + y.reshape(-1, 3).logsumexp(0).sum()

    return Of(forward, nn.Linear(4, 9))


def grids(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules).to(memory_format=torch.channels_last)


MODULES: dict[str, tuple[Make, Callable[[], tuple[Tensor, ...]]]] = {
    "gru": (lambda: first(nn.GRU(4, 6, 2, batch_first=True)), lambda: (N(3, 5, 4),)),
    "lstm": (lambda: first(nn.LSTM(4, 6, 2, batch_first=True)), lambda: (N(3, 5, 4),)),
    "rnn": (lambda: first(nn.RNN(4, 6, 2, batch_first=True)), lambda: (N(3, 5, 4),)),
    "lstm with dropout": (lambda: first(nn.LSTM(4, 6, 2, dropout=0.3)), lambda: (N(5, 3, 4),)),
    "lstm both ways": (lambda: first(nn.LSTM(4, 6, 2, bidirectional=True)), lambda: (N(5, 3, 4),)),
    "cells": (lambda: steps(nn.LSTMCell(4, 5)), lambda: (N(3, 4, 4),)),
    "gated cells": (lambda: steps(nn.GRUCell(4, 5)), lambda: (N(3, 4, 4),)),
    "attention": (attention, lambda: (N(3, 5, 8),)),
    "attention with dropout": (lambda: attention(dropout=0.2), lambda: (N(3, 5, 8),)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: (N(3, 5, 8),)),
    "encoder, norms first": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", norm_first=True),
        lambda: (N(3, 5, 8),),
    ),
    "decoder": (lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), lambda: (N(3, 5, 8), N(3, 4, 8))),
    "residual block": (residual, lambda: (N(4, 3, 8, 8),)),
    "channels last": (
        lambda: grids(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)),
        lambda: (N(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),),
    ),
    "convolutions over sequences": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ELU(), nn.AvgPool1d(2), nn.Flatten()),
        lambda: (N(4, 3, 8),),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.Mish()),
        lambda: (N(2, 3, 5, 5),),
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 3)),
        lambda: (N(4, 5, 6),),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(20, 6, padding_idx=0), nn.Linear(6, 20)),
        lambda: (torch.randint(0, 20, (3, 5)),),
    ),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), lambda: (N(6, 3), N(6, 4))),
    "gates": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.PReLU(), nn.Softmax(-1)),
        lambda: (N(6, 4),),
    ),
    "parts": (parts, lambda: (N(6, 4)[:, torch.randperm(4)],)),
    "layouts": (layouts, lambda: (N(5, 4, 4),)),
}

every_module = pytest.mark.parametrize("name", MODULES)
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])


def made(name: str, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
    """A module and its inputs."""
    torch.manual_seed(0)
    make, inputs = MODULES[name]
    model = make().to(dtype)
    given = [x.to(dtype) if x.is_floating_point() else x for x in inputs()]
    return model, [x.requires_grad_() if x.is_floating_point() else x for x in given]


def run(model: nn.Module, inputs: list[Tensor], loss: Callable[..., Tensor] | None = None) -> tuple[Any, Tensor]:
    """A recorded loss, always of the same random numbers."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    with pullback.record() as tape:
        found = model(*inputs)
        value = (found.sin() * found).mean() if loss is None else loss(found)
    return tape, value


@every_module
@precisions
def test_every_sighting_of_a_record_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    forget()
    model, inputs = made(name, dtype)
    sources = {**dict(model.named_parameters()), **{str(k): x for k, x in enumerate(inputs) if x.requires_grad}}
    found = []
    for _ in range(TIMES):
        tape, value = run(model, inputs)
        found.append(tape.grad(value, sources, allow_unused=True))
    for number, later in enumerate(found[1:], 2):
        wrong = [key for key in sources if not same(found[0][key], later[key])]
        assert not wrong, f"{wrong} at sighting {number}"


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["lstm", "encoder", "channels last"])
def test_gradients_add_up_to_the_same_bits(name: str) -> None:
    forget()
    model, inputs = made(name, torch.float32)
    found = []
    for _ in range(TIMES):
        model.zero_grad()
        for scale in (1.0, 0.3, 1.7):  # numbers are inputs: one program for all three
            tape, value = run(model, inputs, lambda y, scale=scale: (y * scale).tanh().mean())
            tape.backward(value)
        found.append(gradients(model))
    for later in found[1:]:
        assert all(same(found[0][key], later[key]) for key in later)


def test_generalized_backward_gives_the_same_bits_each_time() -> None:
    forget()
    model, inputs = made("gru", torch.float32)
    found = []
    for _ in range(TIMES):
        model.zero_grad()
        with pullback.record():
            value = model(*inputs).square().mean()
            pullback.generalized_backward(model, value)
            pullback.generalized_backward(model, value)
        found.append(gradients(model))
    assert all(same(found[0][key], later[key]) for later in found[1:] for key in later)


@pytest.mark.parametrize("name", ["encoder", "lstm with dropout"])
def test_a_checkpointed_module_gives_the_same_bits(name: str) -> None:
    forget()
    model, inputs = made(name, torch.float32)
    found = []
    for _ in range(TIMES):
        torch.manual_seed(2)
        model.zero_grad()
        with pullback.record() as tape:
            value = checkpoint(model, *inputs, use_reentrant=False).square().mean()
        tape.backward(value)
        found.append(gradients(model))
    assert all(same(found[0][key], later[key]) for later in found[1:] for key in later)


@pytest.mark.parametrize("name", ["gru", "attention", "layouts", "parts"])
def test_hooks_change_no_bits(name: str) -> None:
    """With hooks a record is always walked through."""
    forget()
    model, inputs = made(name, torch.float32)
    found = []
    for time in range(TIMES + 1):
        model.zero_grad()
        hooks = [p.register_hook(lambda g: None) for p in model.parameters()] if time == TIMES else []
        tape, value = run(model, inputs)
        tape.backward(value)
        for hook in hooks:
            hook.remove()
        found.append(gradients(model))
    assert all(same(found[0][key], later[key]) for later in found[1:] for key in later)


def test_results_in_the_middle_have_the_same_bits() -> None:
    forget()
    w = torch.randn(6, 5, requires_grad=True)
    x = torch.randn(4, 6)
    found = []
    for _ in range(TIMES):
        with pullback.record() as tape:
            hidden = x @ w
            parts = hidden.t().chunk(2)
            loss = (parts[0].sigmoid().sum() * parts[1].exp()).mean() + hidden[1:].std()
        found.append(tape.grad(loss, [w, hidden, *parts]))
    for later in found[1:]:
        assert all(same(a, b) for a, b in zip(found[0], later, strict=True))


@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "turned"])
def test_a_seed_in_another_layout_changes_no_program(turned: bool) -> None:
    """What is compiled for one layout does not serve another, in which the walk would round otherwise."""
    forget()
    w = torch.randn(6, 5, requires_grad=True)
    x = torch.randn(40, 6)
    seeds = [torch.randn(40, 5), torch.randn(5, 40).t()]

    def once(x: Tensor, seed: Tensor) -> Tensor:
        with pullback.record() as tape:
            y = torch.nn.functional.silu(x @ w)
        return tape.grad(y, w, seed)  # type: ignore[no-any-return]

    def check(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
        before = once(*one)
        for _ in range(TIMES):
            once(*other)
        assert same(before, once(*one))

    inputs = [x, x.t().contiguous().t()]
    check((x, seeds[turned]), (x, seeds[not turned]))
    check((inputs[turned], seeds[0]), (inputs[not turned], seeds[0]))


def test_no_result_of_a_walk_shares_memory() -> None:
    """Pull programs return views; what is given away is nobody else's, at any sighting."""
    forget()
    a, b = torch.randn(3, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    for hooked in (False, False, False, True):
        with pullback.record() as tape:
            total = a + b.t()
            loss = total.sum()
        handle = a.register_hook(lambda g: None) if hooked else None
        seed = torch.tensor(1.0)
        found = tape.grad(loss, [loss, total, a, b], seed)
        if handle is not None:
            handle.remove()
        places = {t.untyped_storage().data_ptr() for t in (seed, *found)}
        assert len(places) == 5
        for t in found:
            t.mul_(2)  # no part of it is stored once for several entries
            assert torch.equal(t, torch.full_like(t, 2.0))


def test_gradients_of_leaves_share_no_memory() -> None:
    forget()
    a, b = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    for hooked in (False, False, False, True):
        a.grad = b.grad = None
        with pullback.record() as tape:
            loss = (a + b).sum()
        handle = a.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(5)) if hooked else None
        tape.backward(loss)
        if handle is not None:
            handle.remove()
        assert a.grad is not None and b.grad is not None
        assert torch.equal(b.grad, torch.ones(3)) and torch.equal(a.grad, torch.full((3,), 5.0 if hooked else 1.0))
