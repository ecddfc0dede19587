"""Numbers as tensors that are made once: the same bits, and fewer conversions."""

import math
import struct

import pytest
import torch

from pullback.emit.numbers import _TENSOR, _TURNED
from pullback.emit.python import emit_python
from pullback.graph import Graph, Node, Value

NUMBERS = (0, 1, -3, 7, 2**24, 0.1, 1 / 3, -0.0, 2.5e-39, 3e38, 1e300, 1e-300, math.inf, -math.inf, math.nan)
OPERATORS = [op for op in (*_TENSOR, *_TURNED) if "_." not in op]


def bits(tensor: torch.Tensor) -> list[bytes]:
    """The bits of all entries; one NaN is like another."""
    return [b"nan" if x != x else struct.pack("d", x) for x in tensor.double().flatten().tolist()]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize("op", OPERATORS)
def test_bits_are_those_of_numbers(op: str, dtype: str) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, 3e4, 7e-5, 1.7, 11.0, -1e-3]).to(getattr(torch, dtype))
    value = Value("x", (9,), dtype)
    name, kind = op.split(".")[1:]
    operator = getattr(getattr(torch.ops.aten, name), kind)
    nodes, expected = [], []
    for number in NUMBERS:
        try:
            result = operator(x, number)
        except RuntimeError:  # no float16 is as large
            continue
        expected.append(result)
        result_dtype = str(result.dtype).removeprefix("torch.")
        nodes.append(Node(op, (value, number), (), (Value("y", (9,), result_dtype),)))
    graph = Graph((value,), tuple(nodes), tuple(node.results[0] for node in nodes))
    program = emit_python(graph, plain=True)
    for node, found, wanted in zip(nodes, program.run(x), expected, strict=True):
        assert found.dtype == wanted.dtype, node
        assert bits(found) == bits(wanted), node
    assert ("number" in program.code) == (dtype in ("float32", "float64"))


def test_equal_numbers_are_one_tensor_and_zeros_of_either_sign_two() -> None:
    x = Value("x", (2,), "float32")
    nodes = [Node("aten.mul.Tensor", (x, number), (), (Value("y", (2,), "float32"),)) for number in (0.0, -0.0, 0, 0.0)]
    program = emit_python(Graph((x,), tuple(nodes), tuple(n.results[0] for n in nodes)), plain=True)
    assert program.code.count("full((), ") == 2
    found = program.run(torch.ones(2))
    assert [math.copysign(1, y[0].item()) for y in found] == [1, -1, 1, 1]


def test_a_number_that_a_dtype_does_not_hold_stays_one() -> None:
    x = Value("x", (2,), "float32")
    node = Node("aten.mul.Tensor", (x, 1e300), (), (Value("y", (2,), "float32"),))
    program = emit_python(Graph((x,), (node,), node.outputs), plain=True)
    assert "1e+300" in program.code
    assert program.run(torch.ones(2))[0].tolist() == [math.inf, math.inf]
