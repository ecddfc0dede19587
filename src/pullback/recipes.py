"""What a record does with each operator: decided once, looked up at every call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor

from . import torch_private as private
from .capture import decompositions
from .history import written_arguments
from .rules import NONDIFFERENTIABLE, RULES
from .torch_private import schema
from .user_functions import has_own_derivative


class Kind(Enum):
    """How an operator is recorded, if it reads anything that has a derivative."""

    CONSTANT = auto()  # its results have no derivative
    NODE = auto()  # as it is
    VIEW = auto()  # as it is; its results share memory with its first operand
    WRITE = auto()  # it changes an operand
    DECOMPOSED = auto()  # as the operators that it is made of
    OWN = auto()  # a user's, with a derivative of its own


@dataclass(frozen=True, eq=False)
class Recipe:
    """An operator and how it is recorded.

    name: of the node, whose rule is used.
    lifted: positions of Python numbers that are inputs of a derivative's program, rather than part of it.
    is_plain: whether its operands are recorded as they are given.
    results: how many results its rule expects, where PyTorch gives fewer.
    body: for a decomposed operator, what it is made of.
    """

    op: Any
    kind: Kind
    name: str
    number: int
    lifted: frozenset[int] = frozenset()
    body: Callable[..., Any] | None = None
    written: tuple[str, ...] = ()
    results: int = 0
    is_plain: bool = True


AS_STRIDED = torch.ops.aten.as_strided.default
_numbers = count()
RECIPES: dict[Any, Recipe] = {}
_SCALED = ("mul", "div", "add", "sub", "rsub")
_LIFTED = frozenset(f"aten.{op}.{overload}" for op in _SCALED for overload in ("Tensor", "Scalar"))
_VIEWS = frozenset(("aten._reshape_alias.default",))  # `_unsafe_view` is none, as PyTorch counts changes
_DRAWS = frozenset(
    f"{name}_" for name in "bernoulli cauchy exponential geometric log_normal normal random uniform".split()
)
# Their derivative is zero, which is not to have none: a loss may depend on a parameter through them alone.
_STEPS = "ceil.default floor.default round.default round.decimals trunc.default fix.default sign.default sgn.default"
_FLAT = frozenset(f"aten.{op}" for op in _STEPS.split())
# Under the names that capture has for them: it sees batch normalisation after PyTorch has said what it writes into.
_RENAMED: Mapping[str, tuple[str, int]] = {  # and with how many results
    "aten.native_batch_norm.default": ("aten._native_batch_norm_legit_functional.default", 5),
    "aten._native_batch_norm_legit.default": ("aten._native_batch_norm_legit_functional.default", 5),
    "aten._batch_norm_with_update.default": ("aten._batch_norm_with_update_functional.default", 6),
}


def recipe_of(op: Any) -> Recipe:
    """The recipe of an operator."""
    known = RECIPES.get(op)
    return RECIPES.setdefault(op, _make(op)) if known is None else known


def forget_recipes() -> None:
    """Make all recipes anew: there is another rule."""
    RECIPES.clear()
    functional.cache_clear()


def _make(op: Any) -> Recipe:
    name = str(op)
    renamed = _RENAMED.get(name)
    if renamed is not None:
        return Recipe(op, Kind.NODE, renamed[0], next(_numbers), results=renamed[1])
    if name in _FLAT:
        return Recipe(op, Kind.NODE, name, next(_numbers))
    if name in NONDIFFERENTIABLE or op.namespace in ("prim", "profiler"):
        return Recipe(op, Kind.CONSTANT, name, next(_numbers))
    if has_own_derivative(op):
        return Recipe(op, Kind.OWN, name, next(_numbers))
    if schema(op).is_mutable and op not in BODIES:
        return Recipe(op, Kind.WRITE, name, next(_numbers), written=written_arguments(op))
    if name in RULES:
        kind = Kind.VIEW if _is_view(op) else Kind.NODE
        lifted = frozenset((1,)) if name in _LIFTED else frozenset()
        return Recipe(op, kind, name, next(_numbers), lifted, is_plain=not name.startswith("aten.index"))
    if op is AS_STRIDED:  # it reads the memory of its operand, which is as it is
        return Recipe(op, Kind.VIEW, name, next(_numbers))
    body = BODIES.get(op) or decompositions(frozenset(RULES)).get(op)
    if body is None and private.can_decompose(op):
        body = op.decompose
    kind = Kind.DECOMPOSED if body is not None else Kind.VIEW if _is_view(op) else Kind.NODE
    return Recipe(op, kind, name, next(_numbers), body=body)


def _is_view(op: Any) -> bool:
    return str(op) in _VIEWS or any(r.alias_info is not None for r in schema(op).returns)


@cache
def functional(op: Any) -> Recipe | None:
    """The operator that computes what an in-place operator writes; None if PyTorch has none."""
    name, _, overload = str(op).removeprefix("aten.").partition(".")
    if name in _DRAWS:
        return Recipe(op, Kind.CONSTANT, str(op), next(_numbers))
    candidates = (_overload(name.removesuffix("_"), chosen) for chosen in (overload, f"Tensor_{overload}"))
    return next((recipe_of(found) for found in candidates if found and _operands(found) == _operands(op)), None)


def _overload(name: str, overload: str) -> Any:
    return getattr(getattr(torch.ops.aten, name, None), overload, None)


def _operands(op: Any) -> list[str]:
    return [str(a.type) for a in schema(op).arguments]


def _masked_select(x: Tensor, mask: Tensor) -> Tensor:
    return torch.ops.aten.index.Tensor(*_broadcast(x, mask))


def _broadcast(x: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    return x.expand(shape), [mask.expand(shape)]


def _rrelu_with_noise(x: Tensor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The slopes that were drawn are a result, and then written where the caller wants them."""
    y, drawn = torch.ops.aten.rrelu_with_noise_functional(x, noise, *args, **kwargs)
    noise.copy_(drawn.detach())
    return y


BODIES: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten.masked_select.default: _masked_select,
    torch.ops.aten.rrelu_with_noise.default: _rrelu_with_noise,
}
