"""Which operators compute into memory that they are given, and which only look at memory in another way."""

from collections.abc import Mapping

_INTO_GRADIENT = "threshold_backward sigmoid_backward tanh_backward silu_backward gelu_backward leaky_relu_backward"
INTO_GRADIENT: Mapping[str, str] = {f"aten.{op}.default": f"aten.{op}.grad_input" for op in _INTO_GRADIENT.split()}

# Operators whose builtin takes `out=`.
_WITH_OUT = """
mm.default bmm.default mv.default addmm.default baddbmm.default addmv.default
add.Tensor sub.Tensor mul.Tensor div.Tensor sum.dim_IntList mean.dim cat.default
tanh.default sigmoid.default exp.default log.default sin.default cos.default sqrt.default rsqrt.default neg.default
reciprocal.default square.default abs.default maximum.default minimum.default addcmul.default addcdiv.default
pow.Tensor_Scalar binary_cross_entropy.default
"""
WITH_OUT = frozenset(f"aten.{op}" for op in _WITH_OUT.split())
KERNELS: Mapping[str, str] = {
    **INTO_GRADIENT,
    "aten.binary_cross_entropy_backward.default": "aten.binary_cross_entropy_backward.grad_input",
    "aten.mse_loss_backward.default": "aten.mse_loss_backward.grad_input",
}
VIEWS = frozenset(
    f"aten.{op}"
    for op in ("t.default", "permute.default", "transpose.int", "unsqueeze.default", "squeeze.dim", "expand.default")
    + ("slice.Tensor", "select.int", "diagonal.default")
)
RESHAPES = frozenset(f"aten.{op}.default" for op in ("view", "_unsafe_view", "reshape"))
FLAT = RESHAPES | frozenset(
    f"aten.{op}" for op in ("unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims")
)
"""Views that hold the same elements in the same order."""
