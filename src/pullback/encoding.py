"""Programs and signatures as JSON: no code, and nothing that is not spelled out here.

A graph becomes lists of numbered values and of nodes; whatever an operator takes besides tensors becomes a tag and a
value.  Reading refuses what it does not know, and every operator outside an allow-list: those with a rule, those that
programs are emitted with, and their backward kernels.  What is read is then emitted anew, like any other graph.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from .emit.builtins import BUILTINS, SPELLINGS, facts
from .errors import PullbackError, UnsupportedTorchError
from .graph import Graph, Node, Value
from .rules import RULES
from .rules.constant import NONDIFFERENTIABLE
from .rules.gauge import DIRECTIONS_OP, REQUIRE
from .rules.scans import RECURRENCE
from .structure import Leaf
from .terms import HOLE
from .torch_private import overload, schema, tree_flatten

_SCALARS = (bool, int, str)
_NAMED: dict[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_TAGS = (torch.Tag.core, torch.Tag.pointwise)
_FURTHER = frozenset(
    f"aten.{op}"
    for op in """
    eye.default empty.memory_format empty_permuted.default empty_strided.default lift_fresh_copy.default copy.default
    _foreach_add.List _foreach_add.Scalar _foreach_sub.List _foreach_sub.Scalar _foreach_mul.List _foreach_mul.Scalar
    _foreach_div.List _foreach_div.Scalar _foreach_sqrt.default _foreach_lerp.Scalar _foreach_addcdiv.Scalar
    _foreach_addcmul.Scalar randint.default randint.low normal_functional.default uniform.default new_zeros.default
    new_full.default new_ones.default new_empty.default linear.default as_strided_scatter.default gru_cell.default
    native_batch_norm.default fill.Tensor floor_divide.Scalar
    """.split()
)


class UnknownContent(PullbackError):
    """Something that a file cannot hold, or may not."""

    names_line = False


@cache
def is_allowed(op: str) -> bool:
    """Whether a program in a file may call an operator: one that computes, and does nothing else.

    Those are operators with a rule, those that programs are emitted with, what PyTorch itself calls core or pointwise,
    and backward kernels.
    """
    if op in (DIRECTIONS_OP, REQUIRE, RECURRENCE):
        return True
    known = op in RULES or op in NONDIFFERENTIABLE or op in BUILTINS or op in SPELLINGS or op in _FURTHER
    if not op.startswith("aten.") or op.count(".") != 2:
        return False
    try:
        operator = overload(op)
    except UnsupportedTorchError:
        return False
    known = known or "_backward" in op or any(tag in operator.tags for tag in _TAGS)
    return known and not schema(operator).is_mutable


# ---------------------------------------------------------------- arguments


def encode(argument: Any, number: Callable[[Value], int]) -> Any:
    """An operator's argument as JSON.  Raises UnknownContent for one that a file cannot hold."""
    if argument is None or type(argument) in _SCALARS:
        return argument
    if isinstance(argument, Value):
        return ["value", number(argument)]
    if isinstance(argument, float):
        return ["float", argument.hex()]
    if isinstance(argument, complex):
        return ["complex", argument.real.hex(), argument.imag.hex()]
    if isinstance(argument, (tuple, list)):
        return ["tuple", [encode(item, number) for item in argument]]
    if argument is HOLE:
        return ["hole"]
    if isinstance(argument, torch.device):
        return ["device", str(argument)]
    for tag, cls in _NAMED.items():
        if isinstance(argument, cls):
            return [tag, str(argument).removeprefix("torch.")]
    raise UnknownContent(f"a file cannot hold {argument!r}")


def decode(data: Any, values: Mapping[int, Value]) -> Any:
    """The argument again.  Raises UnknownContent for what `encode` does not write."""
    if data is None or type(data) in _SCALARS:
        return data
    match data:
        case ["value", int(number)] if number in values:
            return values[number]
        case ["float", str(text)]:
            return _float(text)
        case ["complex", str(real), str(imaginary)]:
            return complex(_float(real), _float(imaginary))
        case ["tuple", list(items)]:
            return tuple(decode(item, values) for item in items)
        case ["hole"]:
            return HOLE
        case ["device", str(text)]:
            return _device(text)
        case [str(tag), str(name)] if tag in _NAMED:
            found = getattr(torch, name, None) if name.isidentifier() else None
            if isinstance(found, _NAMED[tag]):
                return found
    raise UnknownContent(f"{str(data)[:80]} is no argument of an operator")


def _float(text: str) -> float:
    try:
        return float.fromhex(text)
    except (ValueError, OverflowError) as error:
        raise UnknownContent(f"{text[:80]!r} is no number") from error


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise UnknownContent(f"{text[:80]!r} is no device") from error


# ---------------------------------------------------------------- graphs


def encode_graph(graph: Graph) -> dict[str, Any]:
    """A lowered graph as JSON.  Raises UnknownContent for an operator or an argument that a file cannot hold."""
    numbers: dict[Value, int] = {}

    def number(value: Value) -> int:
        return numbers.setdefault(value, len(numbers))

    for value in graph.inputs:
        number(value)
    nodes = [_encode_node(node, number) for node in graph.nodes]
    data = {
        "inputs": len(graph.inputs),
        "nodes": nodes,
        "outputs": encode(tuple(graph.outputs), number),
        "mutations": [[number(old), number(new)] for old, new in graph.mutations],
    }
    return {"values": [[v.name, list(v.shape), v.dtype, v.device] for v in numbers], **data}


def _encode_node(node: Node, number: Callable[[Value], int]) -> dict[str, Any]:
    op = node.args[0] if node.op == "batched" else node.op
    if not is_allowed(op):
        raise UnknownContent(f"a file cannot hold the operator {op}")
    return {
        "op": node.op,
        "args": encode(node.args, number),
        "kwargs": [[name, encode(value, number)] for name, value in node.kwargs],
        "outputs": [None if v is None else number(v) for v in node.outputs],
    }


def decode_graph(data: Mapping[str, Any]) -> Graph:
    """The graph again.  Raises UnknownContent, or GraphError, for what is no graph of allowed operators."""
    values = dict(enumerate(map(_decode_value, data["values"])))
    nodes = tuple(_decode_node(node, values) for node in data["nodes"])
    inputs = tuple(values[k] for k in range(data["inputs"]))
    mutations = tuple((values[old], values[new]) for old, new in data["mutations"])
    graph = Graph(inputs, nodes, decode(data["outputs"], values), mutations)
    graph.check()
    return graph


def _decode_value(data: Any) -> Value:
    match data:
        case [str(name), list(shape), str(dtype), str(device)]:
            if all(type(n) is int and n >= 0 for n in shape) and isinstance(getattr(torch, dtype, None), torch.dtype):
                return Value(name, tuple(shape), dtype, str(_device(device)))
    raise UnknownContent(f"{str(data)[:80]} is no tensor")


def _decode_node(data: Mapping[str, Any], values: Mapping[int, Value]) -> Node:
    args = decode(data["args"], values)
    op = args[0] if data["op"] == "batched" else data["op"]
    if not isinstance(op, str) or not is_allowed(op):
        raise UnknownContent(f"{str(op)[:80]!r} is no operator that a file may call")
    known = {a.name for a in schema(overload(op)).arguments}
    kwargs = tuple((name, decode(value, values)) for name, value in data["kwargs"])
    if data["op"] != "batched" and not {name for name, _ in kwargs} <= known:
        raise UnknownContent(f"{op} has no arguments {[name for name, _ in kwargs]}")
    if data["op"] == "batched" and not (len(args) == 5 and {name for name, _ in args[2]} <= known):
        raise UnknownContent(f"{str(args)[:80]} is no mapped operator")
    outputs = tuple(None if k is None else values[k] for k in data["outputs"])
    if not facts(op).returns_many and len(outputs) != facts(op).results:
        raise UnknownContent(f"{op} does not have {len(outputs)} results")
    return Node(data["op"], args, kwargs, outputs)


# ---------------------------------------------------------------- nested structures


def encode_tree(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dictionaries as JSON; `leaf` encodes whatever else it knows, or returns None."""
    if type(tree) in (tuple, list):
        return [type(tree).__name__, [encode_tree(item, leaf) for item in tree]]
    if type(tree) is dict:
        return ["dict", [[encode(key, _no_value), encode_tree(item, leaf)] for key, item in tree.items()]]
    found = leaf(tree)
    if found is None and not tree_flatten(tree)[1].is_leaf():
        raise UnknownContent(f"a file cannot hold a {type(tree).__name__}, only tuples, lists and dictionaries")
    return ["constant", encode(tree, _no_value)] if found is None else ["leaf", found]


def _no_value(value: Value) -> int:
    raise UnknownContent(f"a file cannot hold the tensor {value!r} here")


def decode_tree(data: Any, leaf: Callable[[Any], Any]) -> Any:
    """The nested structure again."""
    match data:
        case ["tuple", list(items)]:
            return tuple(decode_tree(item, leaf) for item in items)
        case ["list", list(items)]:
            return [decode_tree(item, leaf) for item in items]
        case ["dict", list(items)]:
            return {decode(key, {}): decode_tree(item, leaf) for key, item in items}
        case ["constant", constant]:
            return decode(constant, {})
        case ["leaf", found]:
            return leaf(found)
    raise UnknownContent(f"{str(data)[:80]} is no structure")


def encode_leaf(item: Any) -> int | None:
    """The number of a `Leaf` of a result's structure."""
    return item.position if isinstance(item, Leaf) else None
