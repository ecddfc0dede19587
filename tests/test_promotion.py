"""The dtype of a result, for every pair of dtypes and every kind of argument."""

from itertools import product
from typing import Any

import pytest
import torch

from pullback.dtypes import dtype_name
from pullback.graph import Value
from pullback.promotion import promote

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]
SHAPES: list[tuple[int, ...]] = [(), (2,)]
ARGUMENTS = [torch.ones(shape, dtype=dtype) for dtype, shape in product(DTYPES, SHAPES)]


def as_value(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return Value("x", tuple(argument.shape), dtype_name(argument.dtype))
    return argument


@pytest.mark.parametrize("first", ARGUMENTS, ids=lambda t: f"{t.dtype}{list(t.shape)}")
def test_dtypes_are_promoted_as_by_pytorch(first: torch.Tensor) -> None:
    for second in (*ARGUMENTS, True, 2, 0.5, 1j):
        expected = dtype_name(torch.result_type(first, second))
        assert promote([as_value(first), as_value(second)]) == expected, second
        assert promote([as_value(second), as_value(first)]) == expected, second
