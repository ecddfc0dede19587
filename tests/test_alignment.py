"""The loss over alignments: values, and derivatives of what networks compute it of, beside PyTorch's kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import pullback
from support import reference

TIME, BATCH, LABELS = 6, 4, 5
generator = torch.Generator().manual_seed(0)
SCORES = torch.randn(TIME, BATCH, LABELS, dtype=torch.float64, generator=generator)
TARGETS = torch.tensor([[1, 2, 2, 3], [4, 4, 1, 9], [3, -1, -1, -1], [1, 1, 1, 1]])  # beyond the lengths: anything
STEPS, COUNTS = torch.tensor([6, 5, 3, 6]), torch.tensor([4, 3, 1, 0])
PAIRS = torch.tensor([[0, 1], [1, 1], [2, 0], [3, 4]])
BEHIND_EACH_OTHER = torch.tensor([1, 2, 2, 3, 4, 4, 1, 3])

CASES: dict[str, tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = {
    "lengths are tensors": (SCORES, (TARGETS, STEPS, COUNTS), {}),
    "lengths are numbers": (SCORES, (TARGETS, STEPS.tolist(), tuple(COUNTS.tolist())), {"reduction": "sum"}),
    "one behind the other": (SCORES, (BEHIND_EACH_OTHER, STEPS.int(), COUNTS.int()), {"reduction": "none"}),
    "another blank": (
        SCORES,
        (torch.tensor([[0, 1], [1, 1], [2, 0], [3, 4]]), STEPS.tolist(), [2, 2, 2, 2]),
        {"blank": 2},
    ),
    "no batch": (SCORES[:, 0], (TARGETS[0, :3], torch.tensor(5), torch.tensor(3)), {"reduction": "none"}),
    "no targets": (SCORES, (torch.zeros(4, 0, dtype=torch.int64), STEPS.tolist(), [0, 0, 0, 0]), {"reduction": "sum"}),
    "no time": (SCORES, (TARGETS, [6, 5, 3, 0], [4, 3, 1, 0]), {"reduction": "none"}),
    "too long": (SCORES[:3], (TARGETS, [3, 3, 3, 3], [4, 3, 1, 0]), {"reduction": "sum", "zero_infinity": True}),
    "infinite": (SCORES[:3], (TARGETS, [3, 3, 3, 3], [4, 3, 1, 0]), {"reduction": "none"}),
}


def outputs(name: str, scores: Tensor) -> Tensor:
    _, args, kwargs = CASES[name]
    return functional.ctc_loss(scores.log_softmax(-1), *args, **kwargs)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name: str) -> None:
    scores = CASES[name][0].clone()
    with reference():
        leaf = scores.clone().requires_grad_()
        value = outputs(name, leaf)
        finite = torch.where(value.isfinite(), value, 0)
        (expected,) = torch.autograd.grad(finite.sum(), leaf)

    def loss(scores: Tensor) -> tuple[Tensor, Tensor]:
        value = outputs(name, scores)
        return torch.where(value.isfinite(), value, 0).sum(), value

    gradient, ours = pullback.grad(loss, has_aux=True)(scores)
    torch.testing.assert_close(ours, value.detach())
    torch.testing.assert_close(gradient, expected.nan_to_num(0) if name == "infinite" else expected)
    leaf = scores.clone().requires_grad_()
    with pullback.record() as tape:
        recorded = loss(leaf)[0]
    torch.testing.assert_close(tape.grad(recorded, [leaf])[0], gradient)


def test_second_order_is_the_difference_of_gradients() -> None:
    scores, direction, step = SCORES, torch.randn(SCORES.shape, dtype=torch.float64, generator=generator), 1e-6
    gradient = pullback.grad(lambda scores: outputs("lengths are tensors", scores))
    difference = (gradient(scores + step * direction) - gradient(scores - step * direction)) / (2 * step)
    _, product = pullback.hvp(lambda scores: outputs("lengths are tensors", scores), (scores,), (direction,))
    torch.testing.assert_close(product, difference, rtol=1e-6, atol=1e-7)


def test_the_derivative_is_that_of_the_logarithms_themselves() -> None:
    """PyTorch's kernel gives that of the scores below `log_softmax`, whatever the logarithms come from."""
    log_probs = SCORES.log_softmax(-1)
    gradient = pullback.grad(lambda x: functional.ctc_loss(x, TARGETS, STEPS, COUNTS, reduction="sum"))(log_probs)
    occupied = -gradient.sum(-1)  # at every time step in use, the alignments visit one label
    expected = (torch.arange(TIME).unsqueeze(1) < STEPS).double()
    torch.testing.assert_close(occupied, expected)


def test_labels_without_probability() -> None:
    log_probs = SCORES.log_softmax(-1)
    log_probs[:, :, 4] = -torch.inf
    gradient = pullback.grad(lambda x: functional.ctc_loss(x, TARGETS[:1, :2], [6], [2]))(log_probs[:, :1])
    assert gradient.isfinite().all()
    assert (gradient[..., 4] == 0).all()


@pytest.mark.parametrize("blank", [-1, LABELS])
def test_a_blank_that_is_no_label_is_refused(blank: int) -> None:
    with pytest.raises(RuntimeError, match="blank must be in label range"):
        pullback.grad(lambda x: functional.ctc_loss(x, TARGETS, STEPS, COUNTS, blank=blank))(SCORES)


def test_lengths_for_another_batch_are_refused() -> None:
    with pytest.raises(RuntimeError, match="2 lengths for a batch of 4"):
        pullback.grad(lambda x: functional.ctc_loss(x, TARGETS, [6, 6], COUNTS))(SCORES)
