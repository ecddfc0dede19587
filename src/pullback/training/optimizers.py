"""Optimisers: PyTorch's, and the update written by hand.  All find gradients where autograd puts them: in `.grad`."""

from collections.abc import Callable, Iterable

import torch
from torch import nn


class GradientDescent(torch.optim.Optimizer):
    """The update written by hand: p ← p − rate · ∂loss/∂p."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])


# How each is made, of parameters and a learning rate.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "descent": GradientDescent,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
