"""Whether a tensor that a program writes into shares memory with another that it is given.

What a program computes then depends on the order of its reads and writes, which is not that of the function.
"""

from collections.abc import Sequence

import torch

from ..errors import ArgumentError

_data_ptr = torch.Tensor.data_ptr


class NoOverlap:
    """A check of the tensors of each call.

    names: what they are called.
    written: the numbers of those that are written into.

    Shapes and strides are those of the trace, so that where the tensors lie decides, and a call whose tensors lie where
    those of the last one did passes at once.
    """

    def __init__(self, names: Sequence[str], written: Sequence[int]) -> None:
        self.names, self.written = tuple(names), tuple(written)
        self.passed: list[int] = []

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Raise ArgumentError if a tensor that is written into overlaps another."""
        places = [*map(_data_ptr, tensors)]
        if places != self.passed:
            ends = [place + _extent(tensor) for place, tensor in zip(places, tensors, strict=True)]
            for k in self.written:
                for other in range(len(places)):
                    if other != k and places[k] < ends[other] and places[other] < ends[k]:
                        raise ArgumentError(self._problem(k, other))
            self.passed = places

    def _problem(self, k: int, other: int) -> str:
        seen = f"{self.names[k]} is changed in place, and shares its memory with {self.names[other]}"
        return f"{seen}: pass a .clone() of one of them"


def _extent(tensor: torch.Tensor) -> int:
    """How many bytes from its first element on a tensor reaches."""
    if tensor.numel() == 0:
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
