"""Numbers as tensors that are made once: PyTorch would make one of each at every call, in double precision.

It would convert it, too, where the other operand has single precision, which takes longer than a small operator itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

import torch

from ..dtypes import torch_dtype
from ..graph import Graph, Node, Value
from .constants import constants

_DTYPES = ("float32", "float64")  # in others a number has more digits than a tensor
_TENSOR = {
    **{f"aten.{op}.Tensor": f"aten.{op}.Tensor" for op in ("add_", "sub_", "mul_", "div_", "add", "sub", "mul", "div")},
    **{
        f"aten.{op}.Scalar": f"aten.{op}.Tensor"
        for op in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")
    },
}
_TURNED = {"aten.rsub.Scalar": "aten.sub.Tensor"}


def numbers_once(graph: Graph) -> tuple[Graph, Mapping[Value, torch.Tensor]]:
    """The same program, with bits that are the same, and the tensors without axes that are its numbers now.

    Cost: linear in the number of nodes.
    """
    made: dict[tuple[str, str], Node] = {}
    nodes = tuple(_with_tensor(node, made) for node in graph.nodes)
    if not made:
        return graph, {}
    creators = tuple(made.values())
    known = constants(Graph((), creators, ()))
    if len(known) < len(made):  # in a mode of PyTorch that makes other tensors
        return graph, {}
    return replace(graph, nodes=(*creators, *nodes)), known


def _with_tensor(node: Node, made: dict[tuple[str, str], Node]) -> Node:
    op = _TENSOR.get(node.op) or _TURNED.get(node.op)
    if op is None or len(node.args) != 2 or any(name != "out" for name, _ in node.kwargs):
        return node
    like = next((a for a in node.args if isinstance(a, Value)), None)
    number = next((a for a in node.args if type(a) in (int, float)), None)
    if like is None or number is None or like.dtype not in _DTYPES or like.device != "cpu":
        return node
    if not _fits(number, like.dtype):
        return node
    key = (like.dtype, float(number).hex())
    if key not in made:
        kind = (("dtype", torch_dtype(like.dtype)), ("device", torch.device(like.device)))
        value = Value("number", (), like.dtype, like.device)
        made[key] = Node("aten.full.default", ((), number), kind, (value,))
    args = tuple(a if isinstance(a, Value) else made[key].results[0] for a in node.args)
    return replace(node, op=op, args=args[::-1] if node.op in _TURNED else args)


def _fits(number: float, dtype: str) -> bool:
    """Whether a tensor of a dtype can be made of a number."""
    if isinstance(number, int):
        return abs(number) <= 2**24
    return not isfinite(number) or abs(number) <= torch.finfo(torch_dtype(dtype)).max
