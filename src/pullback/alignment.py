"""The loss over alignments (CTC), as a recursion over time that is vectorised over the batch and the labels.

PyTorch's kernel keeps a table of its own and has a derivative of first order alone.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOW = -1e30  # the logarithm of what is impossible: finite, so that differences of two of them are, too
REDUCTIONS = ("none", "mean", "sum")

Lengths = Tensor | Sequence[int]


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: Any = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """As `torch.nn.functional.ctc_loss` and `torch.ctc_loss`: minus the logarithm of the probability of the targets.

    Arguments:
        log_probs: (T, N, C), or (T, C) without a batch.
        targets: (N, S), or one behind the other.

    Where there is no alignment, the loss is infinite (or zero) and its derivative zero.
    Cost: eight operators a time step, on (N, 2 S + 1) numbers each.
    Source: Graves et al. (2006), equations 6 to 8, in logarithms.
    """
    if not 0 <= blank < log_probs.shape[-1]:
        raise RuntimeError(f"blank must be in label range: it is {blank}, and there are {log_probs.shape[-1]} labels")
    batched = log_probs if log_probs.dim() == 3 else log_probs.unsqueeze(1)
    time, size, _ = batched.shape
    steps, counts = (_lengths(given, batched) for given in (input_lengths, target_lengths))
    bound = min(targets.shape[-1], time)  # longer targets have no alignment
    labels = _with_blanks(_padded(targets, counts, bound, blank), blank)
    emitted = batched.clamp_min(LOW).gather(2, labels.expand(time, size, labels.shape[1]))
    loss = -_log_likelihood(emitted, labels, steps, counts, bound)
    loss = torch.where(loss < -LOW / 2, loss, 0.0 if zero_infinity else inf)
    how = reduction if isinstance(reduction, str) else REDUCTIONS[reduction]
    if how == "mean":
        return (loss / counts.clamp_min(1)).mean()
    if how == "sum":
        return loss.sum()
    return loss if log_probs.dim() == 3 else loss.squeeze(0)


def _lengths(given: Lengths, batched: Tensor) -> Tensor:
    """One length for each sequence of the batch."""
    lengths = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.int64)
    lengths = lengths.to(batched.device, torch.int64).reshape(-1)
    if lengths.shape[0] != batched.shape[1]:
        raise RuntimeError(f"there are {lengths.shape[0]} lengths for a batch of {batched.shape[1]} sequences")
    return lengths


def _padded(targets: Tensor, counts: Tensor, bound: int, blank: int) -> Tensor:
    """The targets as (N, bound), with blanks behind each."""
    numbers = torch.arange(bound, device=counts.device)
    if targets.dim() == 1:
        places = (counts.cumsum(0) - counts).unsqueeze(1) + numbers
        entries = targets.to(torch.int64)[places.clamp(0, max(targets.shape[0] - 1, 0))] if bound else places
    else:
        entries = targets.to(torch.int64)[:, :bound]
    return torch.where(numbers < counts.unsqueeze(1), entries, blank)


def _with_blanks(targets: Tensor, blank: int) -> Tensor:
    """Blanks around and between the targets: (N, 2 S + 1)."""
    pairs = torch.stack([torch.full_like(targets, blank), targets], 2).flatten(1)
    return functional.pad(pairs, (0, 1), value=blank)


def _log_likelihood(emitted: Tensor, labels: Tensor, steps: Tensor, counts: Tensor, bound: int) -> Tensor:
    """The logarithm of the sum over all alignments; `LOW` where there is none.

    A place is reached from itself, from the one before it, and over a blank between two different labels.
    """
    places = torch.arange(labels.shape[1], device=labels.device)
    is_same = labels == functional.pad(labels, (2, -2), value=-1) if bound else torch.ones_like(labels) > 0
    blocked = torch.where(is_same | (places < 2), LOW, torch.zeros_like(emitted[0]))
    reached = emitted[0] + torch.where(places < 2, torch.zeros_like(emitted[0]), LOW)
    is_active = (torch.arange(emitted.shape[0], device=steps.device).unsqueeze(1) < steps).unsqueeze(2)
    for step in range(1, emitted.shape[0]):
        before = torch.logaddexp(reached, functional.pad(reached, (1, -1), value=LOW))
        if bound:
            before = torch.logaddexp(before, functional.pad(reached, (2, -2), value=LOW) + blocked)
        reached = torch.where(is_active[step], before + emitted[step], reached)
    last = (2 * counts).clamp_max(labels.shape[1] - 1).unsqueeze(1)
    ends = reached.gather(1, last).squeeze(1)
    inside = reached.gather(1, (last - 1).clamp_min(0)).squeeze(1)
    ends = torch.logaddexp(ends, torch.where(counts > 0, inside, LOW))
    ends = torch.where(counts <= bound, ends, LOW)
    return torch.where(steps > 0, ends, torch.where(counts == 0, torch.zeros_like(ends), LOW))
