"""Trained on our derivatives, a network becomes the one that `torch.autograd` trains: float64, to 1e-9."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any

import pytest
import torch

from pullback.training.networks import CELLS
from pullback.training.problems import Problem, cnn, rnn, xor
from pullback.training.runs import ENGINES, prepare
from support import reference
from test_training import small

LIMIT = 1e-9
OPTIMIZERS = ("sgd", "adam", "adamw")
OURS = sorted(ENGINES.keys() - {"torch"})
NETWORKS: dict[str, Callable[[], Problem]] = {"cnn": cnn, **{f"rnn {cell}": partial(rnn, cell) for cell in CELLS}}


def fifty_steps(name: str) -> tuple[Problem, dict[str, int]]:
    """Ten epochs of five shuffled batches."""
    return replace(small(NETWORKS[name](), 40), judged_each_epoch=False), {"epochs": 10, "batch_size": 8}


def full_xor_run(name: str) -> tuple[Problem, dict[str, int]]:
    return xor(), {}


@cache
def trained(case: Callable, name: str, optimizer: str, engine: str) -> dict[str, torch.Tensor]:
    """The parameters after training."""
    problem, numbers = case(name)
    run = prepare(problem, replace(problem.defaults, dtype="float64", optimizer=optimizer, **numbers), engine)
    for _ in run.epochs():
        pass
    return dict(run.network.named_parameters())


def case_of(engine: str, name: str, optimizer: str) -> Any:
    """Ten thousand recorded steps take their time, and are left to the long command but for one optimiser."""
    is_long = (engine, name) == ("record", "xor") and optimizer != "adam"
    case = full_xor_run if name == "xor" else fifty_steps
    marks = [pytest.mark.long] if is_long else []
    return pytest.param(case, name, optimizer, engine, marks=marks, id=f"{engine} {name} {optimizer}")


CASES = [case_of(*choice) for choice in product(OURS, (*NETWORKS, "xor"), OPTIMIZERS)]


@pytest.mark.parametrize(("case", "name", "optimizer", "engine"), CASES)
def test_parameters_equal_those_of_autograd(case: Callable, name: str, optimizer: str, engine: str) -> None:
    ours = trained(case, name, optimizer, engine)
    with reference():
        theirs = trained(case, name, optimizer, "torch")
    for key, expected in theirs.items():
        assert (ours[key] - expected).abs().max() <= LIMIT, key


def test_the_update_written_by_hand_is_that_of_sgd() -> None:
    by_hand, by_torch = (trained(full_xor_run, "xor", optimizer, "trace") for optimizer in ("descent", "sgd"))
    assert all(torch.equal(by_hand[name], by_torch[name]) for name in by_torch)
