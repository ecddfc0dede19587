"""How an ATen operator is called from Python at the least cost.

A public builtin such as `torch.mm` is entered 0.4 to 1 µs sooner than the operator `torch.ops.aten.mm.default`, and
reads better.  `BUILTINS` names the builtin of an operator; `SPELLINGS` holds what reads or runs better still, such as
`x[1:3]` or `x.t()`, and gives None where it does not apply.  An operator in neither table is called through the
dispatcher.

The operator's arguments are passed on as they are, so that a builtin belongs in the table only if it takes the same
ones in the same places; the tests compare every entry with its operator.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..graph import Node, Value
from ..torch_private import overload, schema

MAX_INDEX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What an operator's schema says.

    defaults: by position, for the arguments that have one.
    keywords: the arguments that are passed by name only, with their defaults.
    results: how many results it declares; a list is one.
    returns_many: whether it returns several tensors, or a list of them.
    aliases: whether its result shares memory with its first tensor.
    mutates: whether it writes into an argument.
    is_random: whether it draws random numbers, so that two equal calls are not one.
    """

    defaults: Mapping[int, Any]
    keywords: Mapping[str, Any]
    results: int
    returns_many: bool
    aliases: bool
    mutates: bool
    is_random: bool


@cache
def facts(op: str) -> Facts:
    """Read an operator's schema, once."""
    operator = overload(op)
    declared = schema(operator)
    positional = [a for a in declared.arguments if not a.kwarg_only]
    defaults = {k: _plain(a.default_value) for k, a in enumerate(positional) if a.has_default_value()}
    keywords = {a.name: a.default_value for a in declared.arguments if a.kwarg_only}
    results = declared.returns
    many = len(results) > 1 or any("List" in str(r.type) for r in results)
    shares = any(r.alias_info is not None for r in results) or op in _UNDECLARED_VIEWS
    is_random = torch.Tag.nondeterministic_seeded in operator.tags
    return Facts(defaults, keywords, len(results), many, shares, declared.is_mutable, is_random)


def facts_of(node: Node) -> Facts:
    """What the schema of a node's operator says; of a `batched` one that of the operator which is mapped."""
    return facts(node.args[0] if node.op == "batched" else node.op)


# These promise that nobody will notice, but do share memory.
_UNDECLARED_VIEWS = frozenset(
    f"aten.{op}"
    for op in ("_unsafe_view.default", "unsafe_split.Tensor", "unsafe_split_with_sizes.default", "lift.default")
)


def shares_memory_with(node: Node) -> Value | None:
    """The value whose memory a node's results are views of; None if they have memory of their own."""
    if not node.inputs or not facts_of(node).aliases:
        return None
    return node.args[4] if node.op == "batched" else node.inputs[0]


def _plain(default: Any) -> Any:
    return tuple(default) if isinstance(default, list) else default


@dataclass(frozen=True, slots=True)
class Builtin:
    """A public builtin that takes an operator's arguments.

    path: its name below `torch`.
    positional: how many arguments it takes by position as the operator does.
    """

    path: str
    positional: int = 99


@dataclass(frozen=True, slots=True)
class Call:
    """An operator call to be spelled; arguments that equal their defaults are left out.

    write: an argument as Python text.
    bind: the name under which the program knows a builtin, given its path below `torch`.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    write: Callable[[Any], str]
    bind: Callable[[str], str]

    def text(self, function: str, *args: Any, **kwargs: Any) -> str:
        """A call as Python text."""
        parts = [self.write(a) for a in args] + [f"{k}={self.write(a)}" for k, a in kwargs.items()]
        return f"{function}({', '.join(parts)})"


Spelling = Callable[[Call], str | None]


def without_defaults(
    op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that say something: not the operator's defaults, at the end or by name."""
    known = facts(op)
    count = len(args)
    while count and count - 1 in known.defaults and _same(args[count - 1], known.defaults[count - 1]):
        count -= 1
    return args[:count], {k: v for k, v in kwargs.items() if not _says_nothing(op, known, k, v)}


def with_defaults(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """All positional arguments, written out: some builtins have other defaults than their operators."""
    known = facts(op).defaults
    return (*args, *(known[k] for k in range(len(args), max(known, default=-1) + 1)))


def _same(argument: Any, default: Any) -> bool:
    if isinstance(argument, list):
        argument = tuple(argument)
    return type(argument) is type(default) and bool(argument == default)


def _says_nothing(op: str, known: Facts, name: str, value: Any) -> bool:
    if name in ("pin_memory", "non_blocking"):
        return not value
    if name == "layout":
        return value in (None, torch.strided)
    if name == "memory_format" and op != "aten.empty.memory_format":
        return value is None or value is torch.preserve_format
    return name in known.keywords and _same(value, known.keywords[name])


# ---------------------------------------------------------------- builtins

_SAME_NAME = """
abs.default acos.default acosh.default asin.default asinh.default atan.default atanh.default ceil.default cos.default
cosh.default deg2rad.default digamma.default erf.default erfc.default erfinv.default exp.default exp2.default
expm1.default floor.default frac.default isfinite.default isinf.default isnan.default lgamma.default log.default
log10.default log1p.default log2.default logical_not.default neg.default rad2deg.default reciprocal.default
relu.default round.default rsqrt.default sigmoid.default sign.default sin.default sinc.default sinh.default
sqrt.default square.default tan.default tanh.default trunc.default bitwise_not.default positive.default
celu.default hardshrink.default logit.default nan_to_num.default threshold.default

add.Tensor sub.Tensor rsub.Tensor mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode
pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar remainder.Tensor remainder.Scalar fmod.Tensor fmod.Scalar
maximum.default minimum.default fmax.default fmin.default atan2.default hypot.default logaddexp.default
logaddexp2.default copysign.Tensor xlogy.Tensor floor_divide.default heaviside.default
eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar
logical_and.default logical_or.default logical_xor.default
bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor bitwise_and.Scalar bitwise_or.Scalar
where.self where.ScalarOther where.ScalarSelf where.Scalar
clamp.default clamp.Tensor clamp_min.default clamp_min.Tensor clamp_max.default clamp_max.Tensor
lerp.Scalar lerp.Tensor addcmul.default addcdiv.default masked_fill.Scalar masked_fill.Tensor

sum.default sum.dim_IntList mean.default mean.dim prod.default prod.dim_int amax.default amin.default
any.default any.dim any.dims all.default all.dim all.dims max.default max.dim min.default min.dim
argmax.default argmin.default var.correction std.correction var_mean.correction logsumexp.default
view_as_real.default view_as_complex.default complex.default angle.default sgn.default
cumsum.default cumprod.default sort.default sort.stable topk.default argsort.default

mm.default bmm.default mv.default dot.default outer.default addmm.default baddbmm.default addmv.default
addbmm.default matmul.default

t.default transpose.int squeeze.default squeeze.dim squeeze.dims unsqueeze.default select.int diagonal.default
flip.default roll.default cat.default stack.default split_with_sizes.default unbind.int as_strided.default
permute.default reshape.default
gather.default index_select.default index_add.default scatter.src scatter.value scatter_add.default
scatter_reduce.two select_scatter.default slice_scatter.default diagonal_scatter.default constant_pad_nd.default
tril.default triu.default

zeros.default ones.default full.default arange.default arange.start arange.start_step scalar_tensor.default
zeros_like.default ones_like.default full_like.default rand.default randn.default rand_like.default randn_like.default
bernoulli.default bernoulli.p empty_like.default clone.default

convolution.default native_layer_norm.default native_group_norm.default native_batch_norm.default
native_dropout.default embedding.default
"""

_OTHER_NAME = {
    "aten._conj.default": Builtin("conj"),
    "aten._neg_view.default": Builtin("neg"),  # no view: `vmap` has no rule for that one
    "aten._conj_physical.default": Builtin("conj_physical"),
    "aten.view.default": Builtin("reshape"),  # the same, but for a layout that `view` refuses
    "aten._unsafe_view.default": Builtin("reshape"),
    "aten.lift_fresh_copy.default": Builtin("clone"),
    "aten.add.Scalar": Builtin("add", positional=2),  # what follows is `alpha`, which the builtin takes by name only
    "aten.sub.Scalar": Builtin("sub", positional=2),
    "aten.rsub.Scalar": Builtin("rsub", positional=2),
    "aten.gelu.default": Builtin("nn.functional.gelu"),
    "aten.softplus.default": Builtin("nn.functional.softplus"),
    "aten.linear.default": Builtin("nn.functional.linear"),
    "aten.avg_pool2d.default": Builtin("nn.functional.avg_pool2d"),
    "aten.avg_pool3d.default": Builtin("nn.functional.avg_pool3d"),
    "aten.softshrink.default": Builtin("nn.functional.softshrink"),
    "aten.linalg_vector_norm.default": Builtin("linalg.vector_norm"),
}

BUILTINS: dict[str, Builtin] = {f"aten.{op}": Builtin(op.split(".")[0]) for op in _SAME_NAME.split()} | _OTHER_NAME


# ---------------------------------------------------------------- spellings


def _permute(call: Call) -> str | None:
    source, dims = call.args
    return f"{call.write(source)}.t()" if tuple(dims) == (1, 0) else None


def _detach(call: Call) -> str | None:
    return f"{call.write(call.args[0])}.detach()"


def _alias(call: Call) -> str | None:
    return call.write(call.args[0])


def _cast(call: Call) -> str | None:
    """`x.to(float64)`: only where the dtype changes, for `to` copies nothing otherwise."""
    source, wanted = call.args[0], dict(call.kwargs)
    dtype, device = wanted.pop("dtype", None), wanted.pop("device", None)
    stays = device is None or str(device) == source.device
    if wanted or not stays or dtype is None or str(dtype) == f"torch.{source.dtype}":
        return None
    return f"{call.write(source)}.to({call.write(dtype)})"


def _slice(call: Call) -> str | None:
    given: list[Any] = list(call.args)
    source, dim, start, stop, step = given + [None, 0, None, None, 1][len(given) :]
    dim %= len(source.shape)
    begin = "" if start in (0, None) else str(start)
    end = "" if stop in (None, MAX_INDEX) else str(stop)
    stride = "" if step == 1 else f":{step}"
    return f"{call.write(source)}[{':, ' * dim}{begin}:{end}{stride}]"


def _select(call: Call) -> str | None:
    source, dim, position = call.args
    return f"{call.write(source)}[{position}]" if dim in (0, -len(source.shape)) else None


def _index(call: Call) -> str | None:
    """`x[i, :, j]`.  Not for indices without axes, which Python's indexing takes for numbers."""
    source, indices = call.args
    given = [i for i in indices if i is not None]
    if not given or any(not i.shape or i.dtype not in ("int64", "int32", "bool") for i in given):
        return None
    return f"{call.write(source)}[{', '.join(':' if i is None else call.write(i) for i in indices)}]"


def _softmax(call: Call) -> str | None:
    source, dim, half_to_float = call.args
    name = call.op.split(".")[1].removeprefix("_")
    return None if half_to_float else call.text(call.bind(name), source, dim)


def _index_put(call: Call) -> str | None:
    """The builtin where every axis has its index; it takes no None."""
    return None if None in call.args[1] else call.text(call.bind("index_put"), *call.args)


def _expand(call: Call) -> str | None:
    """`x.expand(size)` takes 0.6 µs longer to read a tuple."""
    return None if call.kwargs else call.text(call.bind("broadcast_to"), *call.args)


def _reduce(call: Call) -> str | None:
    """A lone axis as a number, which is read 0.3 µs sooner than a tuple."""
    if len(call.args) < 2 or call.args[1] is None or len(call.args[1]) != 1:
        return None
    source, (dim,), *rest = call.args
    return call.text(call.bind(call.op.split(".")[1]), source, dim, *rest, **call.kwargs)


def _view_as_real(call: Call) -> str | None:
    """An argument may be a view that is yet to be conjugated, of which there is no real view."""
    return call.text(call.bind("view_as_real"), call.args[0]).replace(")", ".resolve_conj())")


def _in_place(call: Call) -> str:
    """`x.add_(y)`: a method is entered as soon as a builtin."""
    return call.text(f"{call.write(call.args[0])}.{call.op.split('.')[1]}", *call.args[1:], **call.kwargs)


_METHODS = """
relu_.default sigmoid_.default tanh_.default exp_.default log_.default neg_.default sin_.default cos_.default
sqrt_.default rsqrt_.default reciprocal_.default mul_.Tensor add_.Tensor sub_.Tensor div_.Tensor clamp_min_.default
add_.Scalar sub_.Scalar mul_.Scalar div_.Scalar lerp_.Scalar lerp_.Tensor addcmul_.default addcdiv_.default
addmm_.default baddbmm_.default addmv_.default copy_.default zero_.default fill_.Scalar clamp_.default
clamp_max_.default
"""
# Written as methods; they stand in programs on plain tensors, where emission itself put them.
METHODS = frozenset(f"aten.{op}" for op in _METHODS.split())

SPELLINGS: dict[str, Spelling] = {
    "aten.view_as_real.default": _view_as_real,
    "aten.permute.default": _permute,
    "aten.detach.default": _detach,
    "aten.alias.default": _alias,
    "aten._to_copy.default": _cast,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.index.Tensor": _index,
    "aten._softmax.default": _softmax,
    "aten._log_softmax.default": _softmax,
    "aten.index_put.default": _index_put,
    "aten.expand.default": _expand,
    "aten.sum.dim_IntList": _reduce,
    "aten.mean.dim": _reduce,
    "aten.amax.default": _reduce,
    "aten.amin.default": _reduce,
}


def spell(call: Call) -> str | None:
    """The call as Python text by a spelling or a builtin; None where neither table has one that applies."""
    if call.op in METHODS:
        return _in_place(call)
    spelling = SPELLINGS.get(call.op)
    if spelling is not None and isinstance(call.args[0], Value) and (text := spelling(call)) is not None:
        return text
    builtin = BUILTINS.get(call.op)
    if builtin is None or len(call.args) > builtin.positional:
        return None
    if not call.kwargs.keys() <= {*facts(call.op).keywords, "out"}:  # ATen's own name for a positional argument
        return None
    return call.text(call.bind(builtin.path), *call.args, **call.kwargs)
