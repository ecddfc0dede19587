"""PyTorch's module database as cases: every module that has a derivative, in training and in evaluation."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_flatten, tree_unflatten

from support import reference

SEED = 20261
FIRST_ARGUMENT_ONLY = ("nn.SoftMarginLoss",)  # PyTorch refuses a derivative in the other
OF_SCORES = ("nn.CTCLoss",)  # PyTorch's derivative is that of `log_softmax` and the loss together


@dataclass(frozen=True)
class Case:
    """A module with arguments of one call.

    function: takes the tensors to differentiate, parameters first; returns the module's results, weighted and summed.
    tensors: these tensors; names: what they are called.
    """

    module: nn.Module
    function: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]

    def theirs(self) -> list[Tensor]:
        """The value, and the gradient by autograd."""
        with reference():
            torch.manual_seed(SEED)
            leaves = [t.clone().requires_grad_() for t in self.tensors]
            value = self.function(*leaves)
            if not value.requires_grad:
                return [value, *map(torch.zeros_like, leaves)]
            gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return [value.detach(), *gradients]


def numbers(limit: int | None = None) -> Iterator[tuple[str, bool, int]]:
    """The name, the mode and the number of each of the database's calls, or of the first few in each mode."""
    for info in module_db:
        for training in (True, False):
            for k in range(len(_inputs(info, training)[:limit])):
                yield info.name, training, k


def _inputs(info: Any, training: bool) -> list[Any]:
    torch.manual_seed(SEED)
    dtype = torch.float64
    return list(info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=training))


def case_of(name: str, training: bool, number: int) -> Case | None:
    """A case; None where there is nothing to differentiate."""
    info = next(info for info in module_db if info.name == name)
    given = _inputs(info, training)[number]
    torch.manual_seed(SEED)
    made = info.module_cls(*given.constructor_input.args, **given.constructor_input.kwargs)
    module = made.to(torch.float64).train(training)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        with torch.no_grad():
            module(*given.forward_input.args, **given.forward_input.kwargs)  # a lazy module learns its shapes
    leaves, spec = tree_flatten((given.forward_input.args, given.forward_input.kwargs))
    places = [k for k, leaf in enumerate(leaves) if _is_floating(leaf)][: 1 if name in FIRST_ARGUMENT_ONLY else None]
    parameters = {n: p.detach() for n, p in module.named_parameters() if _is_floating(p)}
    tensors = (*parameters.values(), *(leaves[k].detach() for k in places))
    buffers = {n: b.clone() for n, b in module.named_buffers()}

    def function(*given: Tensor) -> Tensor:
        own = {**dict(zip(parameters, given, strict=False)), **{n: b.clone() for n, b in buffers.items()}}
        moved = list(leaves)
        for k, tensor in zip(places, given[len(parameters) :], strict=True):
            moved[k] = tensor.log_softmax(-1) if name in OF_SCORES else tensor
        args, kwargs = tree_unflatten(moved, spec)
        return _weighted(functional_call(module, own, args, kwargs))

    if not tensors:
        return None
    names = (*parameters, *(f"argument {k}" for k in places))
    return Case(deepcopy(module), function, tensors, names)


def _weighted(output: Any) -> Tensor:
    """Σ w · y over all floating results; the weights are no two alike."""
    total = torch.zeros((), dtype=torch.float64)
    for leaf in tree_flatten(output)[0]:
        if _is_floating(leaf):
            weights = torch.linspace(0.5, 1.5, max(leaf.numel(), 1), dtype=leaf.dtype)[: leaf.numel()]
            total = total + (leaf * weights.reshape(leaf.shape)).sum()
    return total


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
