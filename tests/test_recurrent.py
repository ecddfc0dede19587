"""Digits read row by row, all of their rows or as many as have ink."""

from dataclasses import replace

import pytest
import torch

from pullback.training.data import digits
from pullback.training.networks import CELLS, INK, InkedRowsNetwork, RowsNetwork, inked_rows
from pullback.training.problems import rnn
from pullback.training.reference import TorchEngine
from pullback.training.runs import prepare
from support import reference

LIMIT = 1e-9


def image(*inked: int) -> torch.Tensor:
    found = torch.zeros(28, 28)
    for row in inked:
        found[row, 3] = INK
    return found


@pytest.mark.parametrize(
    ("rows", "expected"), [((4, 9), slice(4, 10)), ((0, 27), slice(0, 28)), ((5,), slice(5, 6)), ((), slice(None))]
)
def test_inked_rows_go_from_the_first_to_the_last(rows: tuple[int, ...], expected: slice) -> None:
    assert inked_rows(image(*rows)) == expected


def test_the_bundled_digits_are_of_many_heights() -> None:
    heights = {len(picture[inked_rows(picture)]) for picture in digits().inputs[:, 0]}
    assert len(heights) > 10
    assert min(heights) < 16
    assert max(heights) == 28


@pytest.mark.parametrize("cell", CELLS)
def test_a_loop_over_all_rows_is_the_layer(cell: str) -> None:
    layer, loop, x = RowsNetwork(cell), InkedRowsNetwork(cell), torch.rand(3, 1, 28, 28)
    x[:, :, 0], x[:, :, -1] = 1.0, 1.0
    loop.load_state_dict(dict(zip(loop.state_dict(), layer.state_dict().values(), strict=True)))
    torch.testing.assert_close(loop(x), layer(x))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_through_loops_of_different_lengths_equal_those_of_autograd(cell: str) -> None:
    problem = rnn(cell, "real")
    run = prepare(problem, replace(problem.defaults, dtype="float64"), "record")
    x, y = run.data.inputs[:8], run.data.targets[:8]
    assert len({len(picture[inked_rows(picture)]) for picture in x[:, 0]}) > 2
    expected_loss, expected = _by_autograd(run, x, y)
    for _ in range(4):  # interpreted at first, then compiled
        loss, gradients = run.engine.loss_and_gradients(x, y)
        assert abs(loss - expected_loss) <= LIMIT
        for name, gradient in expected.items():
            assert (gradients[name] - gradient).abs().max() <= LIMIT, name


def _by_autograd(run, x: torch.Tensor, y: torch.Tensor):
    with reference():
        return TorchEngine(run.network, run.problem.criterion).loss_and_gradients(x, y)
