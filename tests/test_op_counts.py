"""On a scalar loss, reverse elimination is classical back-propagation: it calls no operator more often than autograd.

Both sides are counted by a dispatch mode.  Ours is the whole program less the program of the loss alone.  Operators
that only look at memory in another way are counted together, and so are a product and a quotient by a number, a tensor
filled with a constant, and the ways to put slices together (one `cat` for several `select_backward` and additions).
"""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import pullback
from pullback.emit.lowering import lower
from pullback.emit.python import emit_python
from pullback.graph import Graph, live_nodes
from pullback.transform import find
from support import reference

VIEWS = (
    "t view _unsafe_view transpose permute squeeze unsqueeze expand select slice detach alias split unsafe_split unbind"
)
CLASSES = dict.fromkeys(VIEWS.split(), "view") | {
    "split_with_sizes": "view",
    "div": "mul",
    "ones_like": "fill",
    "zeros_like": "fill",
    "zeros": "fill",
    "full": "fill",
    "stack": "join",
    "cat": "join",
    "select_backward": "join",
    "slice_backward": "join",
}


class Counting(TorchDispatchMode):
    """Counts ATen calls by class of operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(op).split(".")[1]
        in_place = name.endswith("_") and not name.startswith("_")
        self.calls[CLASSES.get(name.rstrip("_") if in_place else name, name.rstrip("_") if in_place else name)] += 1
        return op(*args, **(kwargs or {}))


class LastStep(nn.Module):
    """A recurrent network whose last state is classified."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell = cell(5, 7, batch_first=True)
        self.out = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    """Attention over heads; fused, or written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).view(3, 6, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1) @ v
        return y.transpose(1, 2).reshape(3, 6, 8)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MLP = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
CNN = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
NORMALISED = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
NETWORKS: dict[str, tuple[nn.Module, torch.Tensor, torch.Tensor, Any]] = {
    "mlp": (MLP, normal(5, 8), torch.tensor([0, 1, 2, 3, 0]), F.cross_entropy),
    "cnn": (CNN, normal(4, 1, 8, 8), torch.tensor([0, 9, 3, 1]), F.cross_entropy),
    "layer norm": (NORMALISED, normal(5, 8), normal(5, 4), F.mse_loss),
    "lstm": (LastStep(nn.LSTM), normal(3, 4, 5), torch.tensor([0, 1, 2]), F.cross_entropy),
    "gru": (LastStep(nn.GRU), normal(3, 4, 5), torch.tensor([0, 1, 2]), F.cross_entropy),
    "elman": (LastStep(nn.RNN), normal(3, 4, 5), torch.tensor([0, 1, 2]), F.cross_entropy),
    "attention": (Attention(False), normal(3, 6, 8), normal(3, 6, 8), F.mse_loss),
    "fused attention": (Attention(True), normal(3, 6, 8), normal(3, 6, 8), F.mse_loss),
    "multi-head": (
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True),
        normal(3, 6, 8),
        normal(3, 6, 8),
        F.mse_loss,
    ),
}


def counts_of_autograd(
    loss: Any, parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> Counter[str]:
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    with reference(), torch.backends.mkldnn.flags(enabled=False):  # else nn.LSTM is one opaque operator
        value = loss(leaves, x, y)
        with Counting() as counting:
            torch.autograd.grad(value, list(leaves.values()))
    return taken_apart(counting.calls)


def taken_apart(calls: Counter[str]) -> Counter[str]:
    """Kernels that multiply and add, counted as the two operators that they are."""
    apart = Counter(calls)
    for kernel, parts in {"addmm": ("mm", "add"), "baddbmm": ("bmm", "add"), "addcmul": ("mul", "add")}.items():
        count = apart.pop(kernel, 0)
        apart.update(dict.fromkeys(parts, count))
    return apart


def counts_of_ours(loss: Any, parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> Counter[str]:
    transform = pullback.value_and_grad(loss, order="reverse")
    transform(parameters, x, y)
    entry, flat = find(transform.kind, loss, (parameters, x, y), {})
    graph = entry.program.compiled.program.graph
    value = graph.outputs[-1:]
    forward = emit_python(lower(Graph(graph.inputs, live_nodes(graph.nodes, value), value), keep_stops=True))
    with Counting() as whole:
        transform(parameters, x, y)
    with Counting() as alone:
        forward.run(*flat)
    calls = taken_apart(whole.calls) - taken_apart(alone.calls)
    calls["sum"] += calls.pop("mv", 0)  # few rows are summed by a product with ones
    return calls


@pytest.mark.parametrize("name", NETWORKS)
def test_reverse_is_classical_back_propagation(name: str) -> None:
    model, x, y, criterion = NETWORKS[name]
    parameters = {key: p.detach() for key, p in model.named_parameters()}

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return criterion(functional_call(model, p, (x,)), y)

    ours, theirs = counts_of_ours(loss, parameters, x, y), counts_of_autograd(loss, parameters, x, y)
    assert sum(ours.values()) > 0
    assert not {op: (n, theirs[op]) for op, n in ours.items() if n > theirs[op]}
