"""Gradients into `.grad`, as PyTorch's autograd leaves them there, hooks included."""

from typing import Any

import torch
from torch import Tensor

from .errors import RecordError
from .provenance import describe
from .torch_private import gradient_hooks


def accumulate(leaf: Tensor, gradient: Tensor) -> None:
    """Add a gradient to `leaf.grad`, between the hooks that the leaf has.

    The gradient takes the strides of the leaf where these are dense, as autograd's does.
    """
    if not leaf.requires_grad:
        return
    before, after = gradient_hooks(leaf)
    own, known = run_hooks(before, gradient) if before else gradient, leaf.grad
    if known is None:
        leaf.grad = _laid_out_as(leaf, own.clone() if before else own)  # a hook may have kept it
    elif known.layout is torch.strided:
        known.add_(own)
    else:
        leaf.grad = known.to_dense() + own
    for hook in after:
        hook(leaf)


def run_hooks(hooks: Any, gradient: Tensor) -> Tensor:
    """A gradient after hooks, each of which may replace it.

    Raises RecordError for a replacement that is no tensor of its shape and dtype.
    """
    for hook in hooks:
        replacement = hook(gradient)
        if replacement is None:
            continue
        if not isinstance(replacement, Tensor) or (replacement.shape, replacement.dtype) != (
            gradient.shape,
            gradient.dtype,
        ):
            seen = describe(replacement) if isinstance(replacement, Tensor) else repr(replacement)
            raise RecordError(
                f"a gradient hook ({getattr(hook, '__qualname__', hook)}) returned {seen} in place of a gradient "
                f"{describe(gradient)}: it has to return a tensor of that type, or None"
            )
        gradient = replacement
    return gradient


def _laid_out_as(leaf: Tensor, gradient: Tensor) -> Tensor:
    strides = gradient.stride()
    if strides == leaf.stride():
        return gradient
    if not is_dense(leaf):
        return gradient.contiguous()
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device).copy_(gradient)


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill one stretch of memory, each in a place of its own."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True
