"""General back-propagation under the name by which learners know it."""

from torch import Tensor, nn

from .errors import ArgumentError, RecordError
from .provenance import describe
from .tapes import other_tape_of


def generalized_backward(model: nn.Module, loss: Tensor) -> None:
    """Add the derivative of a recorded loss to `.grad` of a model's parameters: what `loss.backward()` is to autograd.

    From the loss backward, ∂z/∂x = Jᵀ ∂z/∂y along every edge of what was recorded, and no path is followed twice.  It
    is `tape.backward(loss)` for the tape in whose block it is called: optimisers find the gradients where they look.

    Arguments:
        model: the module whose parameters are trained.
        loss: a tensor of one element, computed in the block of a `record()` that is still open.

    Raises:
        RecordError: no open record has computed the loss.
        ArgumentError: the loss depends on no parameter of the model.

    Cost: as `Tape.backward`.

    >>> import pullback, torch
    >>> from torch import nn
    >>> model = nn.Linear(2, 1, bias=False)
    >>> with pullback.record():
    ...     loss = model(torch.ones(3, 2)).sum()
    ...     pullback.generalized_backward(model, loss)
    >>> model.weight.grad
    tensor([[3., 3.]])
    """
    tape = other_tape_of(loss)
    if tape is None:
        raise RecordError(
            f"{describe(loss)} was computed in no open record: call generalized_backward inside the block of "
            "`with pullback.record():` that computes the loss, or tape.backward(loss) after it"
        )
    tape.backward(loss)
    if all(parameter.grad is None for parameter in model.parameters()):
        raise ArgumentError(
            f"{describe(loss)} depends on no parameter of {type(model).__name__}: pass the model that computed it, "
            "with parameters that require gradients"
        )
