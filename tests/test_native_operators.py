"""Every operator that has a scalar expression, against PyTorch, at ordinary and at special numbers.

All of them are one program, so that the compiler runs once for each dtype and form.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.capture import capture
from pullback.emit.loops import emit_loops
from pullback.emit.lowering import lower
from pullback.emit.native import emit_native
from pullback.emit.python import emit_python
from pullback.graph import Graph, Node, Value
from pullback.native import building
from pullback.native.expansion import expand
from pullback.native.formulas import POINTWISE
from pullback.native.translation import is_covered
from pullback.torch_private import overload, schema, tree_flatten

pytestmark = pytest.mark.skipif(not building.is_there(), reason="needs a C compiler")
nan, inf = math.nan, math.inf
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, inf, -inf, nan, 1e-310, 1e300, -3.7, 0.1, 20.5]
ATEN = torch.ops.aten

COPIES = "clone alias detach lift_fresh_copy contiguous positive _to_copy copy".split()


def required(op: str) -> int:
    """How many arguments an operator must have."""
    return sum(not argument.has_default_value() for argument in schema(overload(op)).arguments)


UNARY = [op for op in POINTWISE if required(op) == 1 and op.split(".")[1] not in (*COPIES, "clamp", "logical_not",
                                                                                   "bitwise_not")]  # fmt: skip
BINARY = [f"aten.{op}" for op in (
    "add.Tensor sub.Tensor rsub.Tensor mul.Tensor div.Tensor pow.Tensor_Tensor atan2.default hypot.default "
    "copysign.Tensor fmod.Tensor xlogy.Tensor maximum.default minimum.default clamp_min.Tensor clamp_max.Tensor "
    "eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor logical_and.default logical_or.default "
    "logical_xor.default sigmoid_backward.default tanh_backward.default silu_backward.default gelu_backward.default"
).split()]  # fmt: skip
SCALAR: list[tuple[str, tuple[Any, ...]]] = [
    *((f"aten.{op}", (1.7,)) for op in "add.Scalar sub.Scalar rsub.Scalar mul.Scalar div.Scalar fmod.Scalar".split()),
    *(("aten.pow.Tensor_Scalar", (p,)) for p in (0.0, 1, 2, 3, 0.5, -0.5, -1, -2, 2.5, -3)),
    *((f"aten.{op}.Scalar", (0.5,)) for op in "eq ne lt le gt ge".split()),
    *((f"aten.{op}.default", (0.5,)) for op in "clamp clamp_min clamp_max".split()),
    ("aten.clamp.default", (-0.5, 0.7)),
    ("aten.clamp.default", (None, 0.7)),
    ("aten.clamp_min.default", (nan,)),
    ("aten.softplus.default", (2.0, 3.0)),
    ("aten.elu.default", (1.3, 1.1, 0.9)),
    ("aten.elu.default", (1.3, 1.1, -0.9)),
    ("aten.clamp.default", (nan, 0.7)),
    ("aten.clamp_max.default", (nan,)),
    ("aten.leaky_relu.default", (0.2,)),
    ("aten.hardtanh.default", (-0.6, 0.9)),
]


def elementwise(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Every element-wise operator at every pair of entries."""
    results = {op: overload(op)(x) for op in UNARY}
    results |= {op: overload(op)(x, y) for op in BINARY}
    results |= {f"{op}{args}": overload(op)(x, *args) for op, args in SCALAR}
    results["add alpha"] = torch.add(x, y, alpha=0.3)
    results["sub alpha"] = torch.sub(x, y, alpha=0.3)
    results["pow.Scalar"] = ATEN.pow.Scalar(2.3, x)
    results["clamp.Tensor"] = ATEN.clamp.Tensor(x, y, y + 1)
    results["gelu tanh"] = ATEN.gelu.default(x, approximate="tanh")
    results["gelu_backward tanh"] = ATEN.gelu_backward.default(x, y, approximate="tanh")
    results["leaky_relu_backward"] = ATEN.leaky_relu_backward.default(x, y, 0.1, False)
    results["threshold_backward"] = ATEN.threshold_backward.default(y, x, 0.5)
    results["where"] = torch.where(x > y, x, y)
    results["where scalars"] = torch.where(x > y, 1.5, y) + torch.where(x > y, y, 2.5)
    results["where.Scalar"] = ATEN.where.Scalar(x > y, 1.5, 2.5).to(x.dtype)
    results["masked_fill"] = x.masked_fill(y > 0, 3.25)
    results["masked_fill.Tensor"] = x.masked_fill(y > 0, torch.full((), 2.5, dtype=x.dtype))
    results["lerp"] = ATEN.lerp.Scalar(x, y, 0.3)
    results["lerp far"] = ATEN.lerp.Scalar(x, y, 0.8)
    results["lerp.Tensor"] = ATEN.lerp.Tensor(x, y, x)
    results["addcmul"] = torch.addcmul(x, y, x, value=0.5)
    results["addcdiv"] = torch.addcdiv(x, y, x, value=0.5)
    results["addcdiv of nothing"] = torch.addcdiv(x, y, x, value=0.0)
    masks = (x > 0, y > 0)
    results["bits"] = torch.stack([masks[0] & masks[1], masks[0] | masks[1], masks[0] ^ masks[1], ~masks[0]])
    bits = ((x > 0).to(torch.int64) * 5 - 3, (y > 0).to(torch.int64) * 7 - 9)
    results["bits of integers"] = torch.stack([bits[0] & bits[1], bits[0] | bits[1], bits[0] ^ bits[1], ~bits[0]])
    results["bits of numbers"] = torch.stack([bits[0] & 6, bits[0] | 6, bits[0] ^ 6])
    results["logical_not"] = x.logical_not()
    results["casts"] = (x > y).to(x.dtype) + (y != 0).to(torch.int64) + x.to(torch.float32) + y.double()
    results["bits and nothing"] = torch.add(masks[0], masks[1], alpha=0)
    results["numbers beyond a dtype"] = (x > y).to(torch.int32) < 2**40
    results["integers"] = (x > y).to(torch.int64) * 3 - 2
    return results


def graph_of(f: Callable[..., Any], *inputs: Tensor) -> Graph:
    flat, spec = tree_flatten((inputs, {}))
    return lower(capture(f, flat, spec).graph)


def difference(found: Tensor, expected: Tensor, tolerance: float) -> str:
    """Where two results differ; nothing if they agree, NaN and signs of zeros included."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"{found.dtype} {found.shape} for {expected.dtype} {expected.shape}"
    if not expected.is_floating_point():
        return "" if torch.equal(found, expected) else f"{found} for {expected}"
    relative = (found - expected).abs() / expected.abs().clamp_min(torch.finfo(expected.dtype).tiny)
    agree = ((found == expected) & (found.signbit() == expected.signbit())) | (found.isnan() & expected.isnan())
    wrong = (~agree & ~((relative <= tolerance) & (expected != 0))).nonzero()
    places = [(w.tolist(), found[tuple(w)].item(), expected[tuple(w)].item()) for w in wrong[:5]]
    return f"{len(wrong)} differ: {places}" if len(wrong) else ""


# Where PyTorch's vectors, unlike its scalars, give NaN for a number.
PYTORCH_IS_WRONG: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "aten.fmod.Tensor": lambda x, y: y.abs() < 1e-300,
    "aten.gelu.default": lambda x, y: (x.abs() == inf) | (x < -1),  # or few right digits
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("form", ["one by one", "in vectors", "in loops"])
def test_elementwise_operators(dtype: torch.dtype, form: str) -> None:
    pairs = [(0.3, -1.7), (nan, 0.4)] if form == "one by one" else [(a, b) for a in SPECIAL for b in SPECIAL]
    x, y = torch.tensor(pairs, dtype=torch.float64).to(dtype).unbind(-1)
    x, y = x.contiguous(), y.contiguous()  # where PyTorch computes in vectors too
    if form == "in vectors":
        x, y = x[:, None], y[:, None]
    graph = graph_of(lambda x, y: tuple(elementwise(x, y).values()), x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = (emit_loops if form == "in loops" else emit_native)(graph, plain=True)
    expected = dict(zip(elementwise(x, y), emit_python(graph).run(x, y), strict=True))
    tolerance = 2e-15 if dtype == torch.float64 else 1e-6
    results = dict(zip(expected, program.run(x, y), strict=True))
    for name, quirk in PYTORCH_IS_WRONG.items():
        expected[name], results[name] = (torch.where(quirk(x, y), 0.0, r[name]) for r in (expected, results))
    found = {name: difference(result, expected[name], tolerance) for name, result in results.items()}
    wrong = [f"{name}({form}, {dtype}): {what}" for name, what in found.items() if what]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("op", POINTWISE)
def test_what_one_generator_knows_the_other_knows(op: str) -> None:
    """Scalar programs and loop nests read one table: neither has an operator that the other lacks."""
    is_logic = op.split(".")[1].startswith("bitwise")
    x = Value("x", (3,), "int64" if is_logic else "float64")
    mask = POINTWISE[op].mask
    required = [a for a in schema(overload(op)).arguments if not a.has_default_value()]
    given = tuple(
        Value(f"x{k}", (3,), "bool") if k == mask else x if "Tensor" in str(a.type) else 1
        for k, a in enumerate(required)
    )
    dtype = "bool" if POINTWISE[op].operands != "result" else x.dtype
    node = Node(op, given, (), (Value("y", (3,), dtype),))
    assert is_covered(node)
    inputs = tuple(dict.fromkeys(v for v in given if isinstance(v, Value)))
    assert expand(Graph(inputs, (node,), node.outputs)).outputs[0].shape == (3,)
