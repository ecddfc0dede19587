"""Every private interface of PyTorch that `pullback` uses, in one place.

Private names move between releases.  They are looked up here once, at import; if any is missing, the error names all
of them and the versions that are supported, instead of an AttributeError deep inside a trace.  All of these modules
are loaded by `import torch` itself, so that looking them up costs nothing.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedTorchError

SUPPORTED = "2.13"

# name here                  where it lives in PyTorch
PRIVATE = {
    "TreeSpec":              "torch.utils._pytree:TreeSpec",
    "tree_flatten":          "torch.utils._pytree:tree_flatten",
    "tree_flatten_with_path": "torch.utils._pytree:tree_flatten_with_path",
    "tree_leaves":           "torch.utils._pytree:tree_leaves",
    "tree_map":              "torch.utils._pytree:tree_map",
    "tree_unflatten":        "torch.utils._pytree:tree_unflatten",
    "MappingKey":            "torch.utils._pytree:MappingKey",
    "GetAttrKey":            "torch.utils._pytree:GetAttrKey",
    "SequenceKey":           "torch.utils._pytree:SequenceKey",
    "TorchDispatchMode":     "torch.utils._python_dispatch:TorchDispatchMode",
    "disable_current_modes": "torch.utils._python_dispatch:_disable_current_modes",
    "is_wrapper_subclass":   "torch.utils._python_dispatch:is_traceable_wrapper_subclass",
    "would_decompose":       "torch.utils._python_dispatch:autograd_would_have_decomposed",
    "enable_python_dispatcher": "torch._dispatch.python:enable_python_dispatcher",
    "core_decompositions":   "torch._decomp:core_aten_decompositions",
    "FakeTensor":            "torch._subclasses.fake_tensor:FakeTensor",
    "FakeTensorMode":        "torch._subclasses.fake_tensor:FakeTensorMode",
    "DataDependentOutput":   "torch._subclasses.fake_tensor:DataDependentOutputException",
    "DynamicOutputShape":    "torch._subclasses.fake_tensor:DynamicOutputShapeException",
    "UnsupportedFake":       "torch._subclasses.fake_tensor:UnsupportedFakeTensorException",
    "UnsupportedOperator":   "torch._subclasses.fake_tensor:UnsupportedOperatorException",
    "FunctionalTensor":      "torch._subclasses.functional_tensor:FunctionalTensor",
    "OpOverload":            "torch._ops:OpOverload",
    "HigherOrderOperator":   "torch._ops:HigherOrderOperator",
    "clear_interpreters":    "torch._functorch.pyfunctorch:temporarily_clear_interpreter_stack",
    "functionalize":         "torch._functorch.eager_transforms:functionalize",
    "is_functorch_wrapped":  "torch._C._functorch:is_functorch_wrapped_tensor",
    "functorch_unwrap":      "torch._C._functorch:get_unwrapped",
    "DisableAutocast":       "torch._C:_DisableAutocast",
    "get_fastpath_enabled":  "torch.backends.mha:get_fastpath_enabled",
    "set_fastpath_enabled":  "torch.backends.mha:set_fastpath_enabled",
    "before_any_module":     "torch.nn.modules.module:register_module_forward_pre_hook",
    "after_any_module":      "torch.nn.modules.module:register_module_forward_hook",
}  # fmt: skip


def check_all() -> None:
    """Raise UnsupportedTorchError unless every private interface that we use exists in the installed PyTorch."""
    missing = [place for place in PRIVATE.values() if _find(place) is None]
    if not hasattr(torch.ops.aten.add.Tensor, "_op"):
        missing.append("torch._ops:OpOverload._op")
    if missing:
        raise UnsupportedTorchError(
            f"pullback supports PyTorch {SUPPORTED}.x, but PyTorch {torch.__version__} is installed, which lacks "
            f"{', '.join(missing)}: install torch=={SUPPORTED}.*"
        )


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


check_all()

TreeSpec: Any = _find(PRIVATE["TreeSpec"])
tree_flatten: Callable[..., Any] = _find(PRIVATE["tree_flatten"])
tree_flatten_with_path: Callable[..., Any] = _find(PRIVATE["tree_flatten_with_path"])
tree_leaves: Callable[..., Any] = _find(PRIVATE["tree_leaves"])
tree_map: Callable[..., Any] = _find(PRIVATE["tree_map"])
tree_unflatten: Callable[..., Any] = _find(PRIVATE["tree_unflatten"])
MappingKey: Any = _find(PRIVATE["MappingKey"])
GetAttrKey: Any = _find(PRIVATE["GetAttrKey"])
SequenceKey: Any = _find(PRIVATE["SequenceKey"])
TorchDispatchMode: Any = _find(PRIVATE["TorchDispatchMode"])
disable_current_modes: Callable[..., Any] = _find(PRIVATE["disable_current_modes"])
is_wrapper_subclass: Callable[..., bool] = _find(PRIVATE["is_wrapper_subclass"])
would_decompose: Callable[..., bool] = _find(PRIVATE["would_decompose"])
enable_python_dispatcher: Callable[..., Any] = _find(PRIVATE["enable_python_dispatcher"])
core_decompositions: Callable[..., Any] = _find(PRIVATE["core_decompositions"])
FakeTensor: Any = _find(PRIVATE["FakeTensor"])
FakeTensorMode: Any = _find(PRIVATE["FakeTensorMode"])
DataDependentOutput: Any = _find(PRIVATE["DataDependentOutput"])
DynamicOutputShape: Any = _find(PRIVATE["DynamicOutputShape"])
UnsupportedFake: Any = _find(PRIVATE["UnsupportedFake"])
UnsupportedOperator: Any = _find(PRIVATE["UnsupportedOperator"])
FunctionalTensor: Any = _find(PRIVATE["FunctionalTensor"])
OpOverload: Any = _find(PRIVATE["OpOverload"])
HigherOrderOperator: Any = _find(PRIVATE["HigherOrderOperator"])
clear_interpreters: Callable[..., Any] = _find(PRIVATE["clear_interpreters"])
functionalize: Callable[..., Any] = _find(PRIVATE["functionalize"])
is_functorch_wrapped: Callable[[Tensor], bool] = _find(PRIVATE["is_functorch_wrapped"])
functorch_unwrap: Callable[[Tensor], Tensor] = _find(PRIVATE["functorch_unwrap"])
DisableAutocast: Any = _find(PRIVATE["DisableAutocast"])
get_fastpath_enabled: Callable[[], bool] = _find(PRIVATE["get_fastpath_enabled"])
set_fastpath_enabled: Callable[[bool], None] = _find(PRIVATE["set_fastpath_enabled"])
before_any_module: Callable[..., Any] = _find(PRIVATE["before_any_module"])
after_any_module: Callable[..., Any] = _find(PRIVATE["after_any_module"])


@cache
def overload(op: str) -> Any:
    """The operator that a name such as "aten.addmm.default" stands for.

    Raises UnsupportedTorchError if the installed PyTorch has no such operator.
    """
    try:
        namespace, packet, name = op.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), name)
    except (AttributeError, ValueError) as error:
        raise UnsupportedTorchError(
            f"PyTorch {torch.__version__} has no operator {op!r}; pullback supports PyTorch {SUPPORTED}.x"
        ) from error


@cache
def fast_overload(op: str) -> Callable[..., Any]:
    """The same operator as the dispatcher's own callable, which is a little quicker than the `OpOverload` around it."""
    call: Callable[..., Any] = overload(op)._op
    return call


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and a dtype, but no data: it belongs to a trace in progress."""
    return isinstance(tensor, FakeTensor)


def is_traced(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a trace or transform in progress, so that its values cannot be read now."""
    return is_fake(tensor) or isinstance(tensor, FunctionalTensor) or is_functorch_wrapped(tensor)


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside all wrappers that `vmap` and its like put around it."""
    while is_functorch_wrapped(tensor):
        tensor = functorch_unwrap(tensor)
    return tensor
