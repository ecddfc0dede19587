"""Every private interface of PyTorch that `pullback` uses, in one place.

Private names move between releases.  They are looked up here once, at import; if any is missing, the error names all
of them and the versions that are supported, instead of an AttributeError deep inside a trace.  All of these modules
are loaded by `import torch` itself, so that looking them up costs nothing.
"""

import importlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedTorchError

SUPPORTED = "2.13"

PLACES: list[str] = []


def _private(place: str) -> Any:
    """What stands at "module:name", or None; the place is remembered for `check_all`."""
    PLACES.append(place)
    return _find(place)


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


TreeSpec: Any = _private("torch.utils._pytree:TreeSpec")
tree_flatten: Callable[..., Any] = _private("torch.utils._pytree:tree_flatten")
tree_flatten_with_path: Callable[..., Any] = _private("torch.utils._pytree:tree_flatten_with_path")
tree_leaves: Callable[..., Any] = _private("torch.utils._pytree:tree_leaves")
tree_unflatten: Callable[..., Any] = _private("torch.utils._pytree:tree_unflatten")
MappingKey: Any = _private("torch.utils._pytree:MappingKey")
TorchDispatchMode: Any = _private("torch.utils._python_dispatch:TorchDispatchMode")
disable_current_modes: Callable[..., Any] = _private("torch.utils._python_dispatch:_disable_current_modes")
disable_function_modes: Callable[..., Any] = _private("torch._C:DisableTorchFunction")
is_wrapper_subclass: Callable[..., bool] = _private("torch.utils._python_dispatch:is_traceable_wrapper_subclass")
would_decompose: Callable[..., bool] = _private("torch.utils._python_dispatch:autograd_would_have_decomposed")
enable_python_dispatcher: Callable[..., Any] = _private("torch._dispatch.python:enable_python_dispatcher")
core_decompositions: Callable[..., Any] = _private("torch._decomp:core_aten_decompositions")
decompositions: Any = _private("torch._decomp:decompositions")
FakeTensor: Any = _private("torch._subclasses.fake_tensor:FakeTensor")
FakeTensorMode: Any = _private("torch._subclasses.fake_tensor:FakeTensorMode")
DataDependentOutput: Any = _private("torch._subclasses.fake_tensor:DataDependentOutputException")
DynamicOutputShape: Any = _private("torch._subclasses.fake_tensor:DynamicOutputShapeException")
UnsupportedOperator: Any = _private("torch._subclasses.fake_tensor:UnsupportedOperatorException")
FunctionalTensor: Any = _private("torch._subclasses.functional_tensor:FunctionalTensor")
OpOverload: Any = _private("torch._ops:OpOverload")
HigherOrderOperator: Any = _private("torch._ops:HigherOrderOperator")
clear_interpreters: Callable[..., Any] = _private("torch._functorch.pyfunctorch:temporarily_clear_interpreter_stack")
enable_functionalization: Callable[..., Any] = _private("torch:_enable_functionalization")
disable_functionalization: Callable[..., Any] = _private("torch:_disable_functionalization")
to_functional: Callable[[Tensor], Tensor] = _private("torch:_to_functional_tensor")
from_functional: Callable[[Tensor], Tensor] = _private("torch:_from_functional_tensor")
sync: Callable[[Tensor], None] = _private("torch:_sync")
is_batched_by_autograd: Callable[[Tensor], bool] = _private("torch._C._functorch:is_legacy_batchedtensor")
is_functorch_wrapped: Callable[[Tensor], bool] = _private("torch._C._functorch:is_functorch_wrapped_tensor")
functorch_unwrap: Callable[[Tensor], Tensor] = _private("torch._C._functorch:get_unwrapped")
_is_batched: Callable[[Tensor], bool] = _private("torch._C._functorch:is_batchedtensor")
_batch_axis: Callable[[Tensor], int] = _private("torch._C._functorch:maybe_get_bdim")
_batch_level: Callable[[Tensor], int] = _private("torch._C._functorch:maybe_get_level")
DisableAutocast: Any = _private("torch._C:_DisableAutocast")
get_fastpath_enabled: Callable[[], bool] = _private("torch.backends.mha:get_fastpath_enabled")
get_mkldnn_enabled: Callable[[], bool] = _private("torch._C:_get_mkldnn_enabled")
set_mkldnn_enabled: Callable[[bool], None] = _private("torch._C:_set_mkldnn_enabled")
set_fastpath_enabled: Callable[[bool], None] = _private("torch.backends.mha:set_fastpath_enabled")
interpreter_stack: Callable[[], Any] = _private("torch._C._functorch:get_interpreter_stack")
peek_interpreter: Callable[[], Any] = _private("torch._C._functorch:peek_interpreter_stack")
forward_ad: Any = _private("torch.autograd:forward_ad")
count_function_modes: Callable[[], int] = _private("torch._C:_len_torch_function_stack")
is_any_autocast_enabled: Callable[[], bool] = _private("torch._C:_is_any_autocast_enabled")
set_grad_enabled: Callable[[bool], None] = _private("torch._C:_set_grad_enabled")
FunctionBase: Any = _private("torch.autograd.function:_SingleLevelFunction")
custom_operators: Any = _private("torch._library.custom_ops:OPDEFS")
BackwardHookFunction: Any = _private("torch.nn.modules._functions:BackwardHookFunction")
module_call_code: Any = torch.nn.Module._call_impl.__code__
_TENSOR: Any = Tensor
count_writes: Callable[[Tensor], int] = _TENSOR._version.__get__  # as `version`, for tensors that count at all
base_of: Callable[[Tensor], Tensor | None] = _TENSOR._base.__get__
before_any_module: Callable[..., Any] = _private("torch.nn.modules.module:register_module_forward_pre_hook")
global_pre_hooks: dict[int, Callable[..., Any]] = _private("torch.nn.modules.module:_global_forward_pre_hooks")
global_forward_hooks: dict[int, Callable[..., Any]] = _private("torch.nn.modules.module:_global_forward_hooks")
after_any_module: Callable[..., Any] = _private("torch.nn.modules.module:register_module_forward_hook")
BatchNorm: Any = _private("torch.nn.modules.batchnorm:_BatchNorm")  # of any number of dimensions
tensors_of_handles: Callable[[Sequence[Any]], list[Tensor]] = _private(
    "torch._C._aoti:alloc_tensors_by_stealing_from_void_ptrs"
)
_count_uses: Callable[[int], int] = _private("torch._C:_storage_Use_Count")
# Where an instance of `nn.RNNBase` keeps the weights of its last call.
RECURRENT_WEIGHT_LISTS = ("_flat_weights", "_flat_weight_refs")

# Builtins that are entered up to 4 µs sooner than their operators; the defaults of their arguments are not the same.
QUICKER: dict[str, Callable[..., Any]] = {
    "aten.binary_cross_entropy.default": _private("torch._C._nn:binary_cross_entropy"),
    "aten.mse_loss.default": _private("torch._C._nn:mse_loss"),
    "aten._foreach_add_.List": _private("torch:_foreach_add_"),
}

OVERLOAD = ("_op", "_schema", "_can_decompose", "_get_dispatch", "_dispatch_cache")
ATTRIBUTES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "torch._ops:OpOverload": (torch.ops.aten.add.Tensor, OVERLOAD),
    "torch:Tensor": (Tensor, ("_version", "_base", "_backward_hooks", "_post_accumulate_grad_hooks")),
    "torch.autograd:forward_ad": (forward_ad, ("_current_level",)),
    "torch:UntypedStorage": (torch.UntypedStorage, ("_cdata",)),
}


def check_all() -> None:
    """Raise UnsupportedTorchError unless every private interface that we use exists in the installed PyTorch."""
    missing = [place for place in PLACES if _find(place) is None]
    missing += [f"{place}.{a}" for place, (owner, names) in ATTRIBUTES.items() for a in names if not hasattr(owner, a)]
    if missing:
        raise UnsupportedTorchError(
            f"pullback supports PyTorch {SUPPORTED}.x, but PyTorch {torch.__version__} is installed, which lacks "
            f"{', '.join(missing)}: install torch=={SUPPORTED}.*"
        )


check_all()

_DISPATCH_LOCK = threading.RLock()
_find_kernel: Callable[..., Any] = OpOverload._get_dispatch


def _find_kernel_once(op: Any, key: Any) -> Any:
    """As PyTorch's own, which fails where two threads look for the kernel of one operator at the same time."""
    with _DISPATCH_LOCK:
        known = op._dispatch_cache.get(key)
        return _find_kernel(op, key) if known is None else known


OpOverload._get_dispatch = _find_kernel_once


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
    """The same operator as a builtin, or the dispatcher's own callable, which is quicker than the `OpOverload`."""
    call: Callable[..., Any] = QUICKER.get(op) or overload(op)._op
    return call


def storage_uses(storage: torch.UntypedStorage) -> int:
    """How many hold a storage: tensors, and its Python object."""
    return _count_uses(storage._cdata)


def operator_database() -> Any:
    """PyTorch's own operators with sample inputs; imported on demand, which takes seconds.

    Raises ModuleNotFoundError if a package that it needs is not installed.
    """
    return importlib.import_module("torch.testing._internal.common_methods_invocations").op_db


@dataclass(frozen=True)
class Inductor:
    """PyTorch's compiler below its front ends.

    make_fx: a function of fake tensors as a graph of operators.
    decompositions: makes the table of operators that are to be taken apart for it.
    compile: a graph, and examples of its inputs, become a function of a list.
    """

    make_fx: Callable[..., Any]
    decompositions: Callable[[], Any]
    compile: Callable[..., Any]


@cache
def inductor_tools() -> Inductor:
    """The inner entry of PyTorch's compiler; imported on demand, which takes seconds.

    Raises UnsupportedTorchError if the installed PyTorch lacks it.
    """
    places = {
        "make_fx": "torch.fx.experimental.proxy_tensor:make_fx",
        "decompositions": "torch._inductor.decomposition:select_decomp_table",
        "compile": "torch._inductor.compile_fx:compile_fx_inner",
    }
    found = {name: _find(place) for name, place in places.items()}
    missing = [places[name] for name, function in found.items() if function is None]
    if missing:
        raise UnsupportedTorchError(f"PyTorch {torch.__version__} lacks {', '.join(missing)}: use backend='python'")
    return Inductor(**found)


def schema(op: Any) -> Any:
    """What an operator takes and returns, what it writes into, and what shares memory with what."""
    return op._schema


@cache
def can_decompose(op: Any) -> bool:
    """Whether an operator is defined by others."""
    return bool(op._can_decompose())


_include_set: Callable[[], Any] = _private("torch._C:_dispatch_tls_local_include_set")
_exclude_set: Callable[[], Any] = _private("torch._C:_dispatch_tls_local_exclude_set")
_ForceDispatchKeyGuard: Any = _private("torch._C:_ForceDispatchKeyGuard")
_DispatchKey: Any = _private("torch._C:DispatchKey")
_DispatchKeySet: Any = _private("torch._C:DispatchKeySet")


def lazy_conjugation() -> Any:
    """A context in which kernels below a mode resolve what is lazily conjugated or negated, as they do elsewhere."""
    lazy = _DispatchKeySet(_DispatchKey.Conjugate) | _DispatchKeySet(_DispatchKey.Negative)
    return _ForceDispatchKeyGuard(_include_set(), _exclude_set() - lazy)


def autograd_kernel(op: Any) -> Any:
    """The function of Python that takes an operator apart before any mode sees it, in a trace."""
    return op.py_kernels[_DispatchKey.Autograd]


def set_autograd_kernel(op: Any, kernel: Callable[..., Any]) -> None:
    """Put another in its place."""
    op.py_kernels[_DispatchKey.Autograd] = kernel
    op._dispatch_cache.clear()


_higher_order: Any = _private("torch._higher_order_ops:utils")
_private("torch._higher_order_ops.utils:_hop_compile_and_call")


def compile_and_call() -> Callable[..., Any]:
    """How PyTorch runs its control-flow operators."""
    return _higher_order._hop_compile_and_call


def set_compile_and_call(function: Callable[..., Any]) -> None:
    """Run them otherwise."""
    _higher_order._hop_compile_and_call = function


plain_apply: Any = _private("torch._C:_FunctionBase").__dict__["apply"]


def _once_differentiable() -> Any:
    """The code of every backward that is marked by PyTorch's decorator."""
    return torch.autograd.function.once_differentiable(lambda ctx: None).__code__


once_differentiable_code = _once_differentiable()


def storage(tensor: Tensor) -> int:
    """The identity of the memory that a tensor is a view of."""
    return int(tensor.untyped_storage()._cdata)


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for one made in inference mode, of which that is not counted."""
    return 0 if tensor.is_inference() else int(tensor._version)


def gradient_hooks(tensor: Tensor) -> tuple[Sequence[Any], Sequence[Any]]:
    """The hooks of a leaf: those before its gradient is accumulated, and those after."""
    before, after = tensor._backward_hooks, tensor._post_accumulate_grad_hooks
    return tuple(before.values()) if before else (), tuple(after.values()) if after else ()


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and a dtype, but no data: it belongs to a trace in progress."""
    return isinstance(tensor, FakeTensor)


def outside_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    """A program on which autocast has no effect: the casts of the function that it was made of are part of it."""

    def unaffected(*args: Any, **kwargs: Any) -> Any:
        if not is_any_autocast_enabled():
            return run(*args, **kwargs)
        with DisableAutocast():
            return run(*args, **kwargs)

    return unaffected


def batch_level(tensor: Tensor) -> int:
    """The innermost `vmap` that gives a tensor a batch axis, counted from 1; 0 if none does."""
    return _batch_level(tensor) if _is_batched(tensor) else 0


def without_batch(tensor: Tensor) -> tuple[Tensor, int]:
    """The tensor with its innermost batch axis as an ordinary one, and which one that is."""
    return functorch_unwrap(tensor), _batch_axis(tensor)


HAS_DUAL_NUMBERS = "{quick}._current_level >= 0"  # the same as generated code, where `quick` is `forward_ad`


def has_dual_numbers() -> bool:
    """Whether a level of dual numbers, PyTorch's forward mode, is open around this call."""
    return int(forward_ad._current_level) >= 0


def is_traced(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a trace or transform in progress, so that its values cannot be read now."""
    if is_functorch_wrapped(tensor) or is_batched_by_autograd(tensor):
        return True
    return is_fake(tensor) or isinstance(tensor, FunctionalTensor)


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside all wrappers that `vmap` and its like put around it."""
    while is_functorch_wrapped(tensor):
        tensor = functorch_unwrap(tensor)
    return tensor
