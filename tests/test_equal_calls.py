"""Equal calls of a transform give equal bits: the first and later ones, loaded and in another process, in any place.

What is called meanwhile, in other threads too, changes nothing, and what was returned stays as it is.
"""

import hashlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

import pullback
from pullback.native import building

BACKENDS = ["python", "native"]
Case = tuple[Any, tuple[Any, ...]]


def digest(tree: Any) -> str:
    """What tells bits and layouts apart."""
    found = hashlib.sha256()
    for tensor in tree_leaves(tree):
        found.update(f"{tensor.dtype} {tensor.stride()}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def network(model: nn.Module) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """A loss of parameters and inputs."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        found = functional_call(model, parameters, (x,))
        return (found[0] if isinstance(found, tuple) else found).sin().mean()

    return loss, parameters


def several(x: Tensor) -> Tensor:
    return torch.stack([x.sin() * x.roll(1), torch.sigmoid(x) * x.sum(), x.exp() / (1 + x * x)])


def scalar(x: Tensor) -> Tensor:
    return (torch.softmax(x, 0) * x.tanh()).sum() + (x[1:] * x[:-1]).sum().log1p()


def cases(backend: str) -> dict[str, Case]:
    """Transforms and their arguments, the same in every process."""
    torch.manual_seed(0)
    lstm, parameters_of_lstm = network(nn.LSTM(4, 6, batch_first=True))
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 3)).requires_grad_(False)
    mlp, parameters_of_mlp = network(model)
    block, parameters_of_block = network(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))
    grid = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten())
    convolution, parameters_of_grid = network(grid)
    x, batch = torch.rand(6), torch.randn(7, 5)
    found: dict[str, Case] = {
        "lstm": (pullback.value_and_grad(lstm, backend=backend), (parameters_of_lstm, torch.randn(3, 5, 4))),
        "mlp": (pullback.grad(mlp, backend=backend), (parameters_of_mlp, batch)),
        "transformer": (pullback.grad(block, backend=backend), (parameters_of_block, torch.randn(2, 4, 8))),
        "convolution": (pullback.grad(convolution, backend=backend), (parameters_of_grid, torch.randn(3, 2, 6, 6))),
        "jacobian": (pullback.jacobian(several, backend=backend), (x,)),
        "hessian": (pullback.hessian(scalar, backend=backend), (x,)),
        "sample by sample": (pullback.batch_jacobian(lambda x: F.silu(model(x)), backend=backend), (batch,)),
        "curvature, sample by sample": (pullback.batch_hessian(lambda x: model(x).sum(1), backend=backend), (batch,)),
    }
    return found


def each(backend: str) -> dict[str, Case]:
    if backend == "native" and not building.is_there():
        pytest.skip("needs a C compiler")
    return cases(backend)


ELSEWHERE = """
import os, sys
import conftest  # the same back ends are on offer
os.environ["PULLBACK_CACHE"] = sys.argv[2]
from test_equal_calls import cases, digest
for transform, arguments in cases(sys.argv[1]).values():
    print(digest(transform(*arguments)))
"""

every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_backend
def test_calls_loaded_programs_and_other_processes_give_the_same_bits(backend: str) -> None:
    here = {}
    for name, (transform, arguments) in each(backend).items():
        here[name] = digest(transform(*arguments))
        compiled = transform.compile(*arguments)
        loaded = pickle.loads(pickle.dumps(compiled))
        for run in (transform, transform, compiled, loaded):
            assert digest(run(*arguments)) == here[name], name
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    # PyTorch's own kernels add up in another order where they share work among another number of threads.
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, backend, os.environ["PULLBACK_CACHE"]],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=300,
    )
    assert dict(zip(here, found.stdout.split(), strict=True)) == here


def elsewhere(tensor: Tensor, start: int) -> Tensor:
    """The same tensor at an address that vectors are not aligned to."""
    memory = torch.empty(tensor.numel() + start, dtype=tensor.dtype)
    return memory[start:].view(tensor.shape).copy_(tensor)


def spread(tensor: Tensor) -> Tensor:
    """The same tensor with gaps in memory."""
    return torch.empty((*tensor.shape, 3), dtype=tensor.dtype)[..., 1].copy_(tensor)


@every_backend
def test_neither_where_arguments_lie_nor_what_they_are_asked_for_changes_bits(backend: str) -> None:
    for name, (transform, arguments) in each(backend).items():
        expected = digest(transform(*arguments))
        for start in (1, 2, 3, 5):
            moved = tree_map(lambda t, start=start: elsewhere(t, start), arguments)
            assert digest(transform(*moved)) == expected, name
        asked = tree_map(lambda t: t.clone().requires_grad_(), arguments)
        assert digest(transform(*asked)) == expected, name
        with torch.no_grad():
            assert digest(transform(*asked)) == expected, name
        gaps = tree_map(spread, arguments)
        for ours, theirs in zip(tree_leaves(transform(*gaps)), tree_leaves(transform(*arguments)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@every_backend
def test_results_are_nobody_elses(backend: str) -> None:
    for name, (transform, arguments) in each(backend).items():
        for given in (arguments, tree_map(spread, arguments)):
            first = transform(*given)
            before = digest(first)
            transform(*tree_map(lambda t: t * 1.1, given))
            assert digest(first) == before, name
            places = [t.untyped_storage().data_ptr() for t in tree_leaves(first)]
            places += {t.untyped_storage().data_ptr() for t in tree_leaves(given)}
            assert len(set(places)) == len(places), name
            for tensor in tree_leaves(first):
                tensor.fill_(torch.nan)
            assert digest(transform(*given)) == before, name


@every_backend
def test_threads_do_not_see_each_other(backend: str) -> None:
    for name, (transform, arguments) in each(backend).items():
        expected, other = digest(transform(*arguments)), tree_map(lambda t: t * 1.1, arguments)
        found: list[str] = []

        def work(
            number: int, transform: Any = transform, mine: Any = arguments, other: Any = other, found: Any = found
        ) -> None:
            for _ in range(20):
                results = transform(*(other if number else mine))
                if not number:
                    found.append(digest(results))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {expected}, name
