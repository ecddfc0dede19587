"""Arguments with which emission calls each operator: every entry of its tables, and operators that are in none."""

from typing import Any

import torch

F32, I64 = torch.float32, torch.int64
CPU = torch.device("cpu")

torch.manual_seed(0)
A = torch.rand(3, 4) * 0.8 + 0.1
B = torch.rand(3, 4) * 0.8 + 0.1
C = torch.rand(4, 5)
V = torch.rand(4)
T3, U3 = torch.rand(2, 3, 4), torch.rand(2, 4, 5)
M = A > 0.5
I = torch.tensor([2, 0])
J = torch.tensor([[2, 0, 1, 1]])
N = torch.arange(12).reshape(3, 4)
S = torch.tensor(0.25)
IMAGE, FILTER, VOLUME = torch.rand(2, 3, 6, 6), torch.rand(4, 3, 3, 3), torch.rand(1, 2, 4, 4, 4)


def case(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


UNARY = """
abs acos asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 floor frac isfinite isinf
isnan lgamma log log10 log1p log2 logical_not neg rad2deg reciprocal relu round rsqrt sigmoid sign sin sinc sinh sqrt
square tan tanh trunc positive celu hardshrink logit nan_to_num t clone gelu softplus softshrink lift_fresh_copy
detach alias zeros_like ones_like rand_like randn_like bernoulli tril triu sum mean prod amax amin any all max min
argmax argmin sort argsort linalg_vector_norm squeeze unbind
"""
BINARY = """
maximum.default minimum.default fmax.default fmin.default atan2.default hypot.default logaddexp.default
logaddexp2.default copysign.Tensor xlogy.Tensor floor_divide.default heaviside.default eq.Tensor ne.Tensor lt.Tensor
le.Tensor gt.Tensor ge.Tensor logical_and.default logical_or.default logical_xor.default add.Tensor sub.Tensor
rsub.Tensor mul.Tensor div.Tensor pow.Tensor_Tensor remainder.Tensor fmod.Tensor clamp_min.Tensor clamp_max.Tensor
"""
SCALAR = """
mul.Scalar div.Scalar pow.Tensor_Scalar remainder.Scalar fmod.Scalar eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar
ge.Scalar clamp_min.default clamp_max.default add.Scalar sub.Scalar rsub.Scalar
"""
SAMPLES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    **{f"aten.{op}.default": [case(A)] for op in UNARY.split()},
    **{f"aten.{op}": [case(A, B), case(A, S)] for op in BINARY.split()},
    **{f"aten.{op}": [case(A, 0.5), case(A, 2)] for op in SCALAR.split()},
}
MORE: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "acosh.default": [case(A + 1)],
    "_neg_view.default": [case(A)],
    **{f"{op}.default": [case(torch.complex(A, B))] for op in ("_conj", "_conj_physical", "view_as_real", "angle")},
    "sgn.default": [case(torch.complex(A, B)), case(A)],
    "complex.default": [case(A, B)],
    "view_as_complex.default": [case(torch.rand(3, 2))],
    "bitwise_not.default": [case(N), case(M)],
    "threshold.default": [case(A, 0.5, 0.0)],
    "logit.default": [case(A, 1e-6)],
    "nan_to_num.default": [case(A, 0.0, None, 1.0)],
    "celu.default": [case(A - 0.5, 2.0)],
    "hardshrink.default": [case(A, 0.3)],
    "add.Tensor": [case(A, B, alpha=1), case(A, B, alpha=2), case(A, 2.0), case(2.0, A)],
    "sub.Tensor": [case(A, B, alpha=3), case(1, A)],
    "rsub.Tensor": [case(A, B, alpha=3)],
    "mul.Tensor": [case(A, 2.0), case(2, A), case(N, 2)],
    "div.Tensor": [case(1.0, A), case(N, 2)],
    "add.Scalar": [case(A, 2, 3)],
    "sub.Scalar": [case(A, 2, 3)],
    "rsub.Scalar": [case(A, 2, 3)],
    "div.Tensor_mode": [case(A, B, rounding_mode="floor"), case(A, B, rounding_mode=None)],
    "div.Scalar_mode": [case(A, 0.3, rounding_mode="trunc")],
    "pow.Scalar": [case(2, A)],
    **{f"bitwise_{k}.Tensor": [case(N, N + 1), case(M, ~M)] for k in ("and", "or", "xor")},
    **{f"bitwise_{k}.Scalar": [case(N, 5)] for k in ("and", "or")},
    "where.self": [case(M, A, B), case(M, A, S)],
    "where.ScalarOther": [case(M, A, 0.0), case(M, N, 0)],
    "where.ScalarSelf": [case(M, 1.0, A)],
    "where.Scalar": [case(M, 1.0, 0.0)],
    "clamp.default": [case(A, 0.3), case(A, None, 0.5), case(A, 0.3, 0.5)],
    "clamp.Tensor": [case(A, S), case(A, None, S)],
    "lerp.Scalar": [case(A, B, 0.3)],
    "lerp.Tensor": [case(A, B, A)],
    "addcmul.default": [case(A, B, A), case(A, B, A, value=2)],
    "addcdiv.default": [case(A, B, A, value=1), case(A, B, A, value=2)],
    "masked_fill.Scalar": [case(A, M, float("-inf"))],
    "masked_fill.Tensor": [case(A, M, S)],
    "sum.default": [case(A, dtype=torch.float64), case(N)],
    "sum.dim_IntList": [case(A, (0,)), case(A, (0, 1), True), case(A, ()), case(A, None), case(N, (1,), dtype=F32)],
    "mean.default": [case(A, dtype=torch.float64)],
    "mean.dim": [case(A, (0,)), case(A, (0, 1), True), case(A, (1,), False, dtype=torch.float64), case(A, None)],
    "prod.dim_int": [case(A, 1), case(A, 1, True)],
    "amax.default": [case(A, (0,)), case(A, (0, 1), True), case(A, ())],
    "amin.default": [case(A, (1,), True), case(A, (0, 1))],
    **{f"{k}.dim": [case(M, 1), case(M, 1, True)] for k in ("any", "all")},
    **{f"{k}.dims": [case(M, (0, 1)), case(M, (1,), True)] for k in ("any", "all")},
    **{f"{k}.dim": [case(A, 1), case(A, 0, True)] for k in ("max", "min")},
    **{f"{k}.default": [case(A, 1), case(A, None, True)] for k in ("argmax", "argmin")},
    **{f"{k}.correction": [case(A), case(A, (0,), correction=0, keepdim=True)] for k in ("var", "std", "var_mean")},
    "logsumexp.default": [case(A, (1,)), case(A, (0, 1), True)],
    "cumsum.default": [case(A, 1), case(N, 0, dtype=F32)],
    "cumprod.default": [case(A, 1)],
    "sort.default": [case(A, 0, True)],
    "sort.stable": [case(A, stable=True), case(A, stable=True, dim=0, descending=True)],
    "argsort.default": [case(A, 0, True)],
    "topk.default": [case(A, 2), case(A, 2, 0, False, True)],
    "mm.default": [case(A, C)],
    "bmm.default": [case(T3, U3)],
    "mv.default": [case(A, V)],
    "dot.default": [case(V, V)],
    "outer.default": [case(V, V)],
    "matmul.default": [case(A, C), case(T3, U3)],
    "addmm.default": [case(C[0], A, C), case(C[0], A, C, beta=2, alpha=3)],
    "baddbmm.default": [case(C[0], T3, U3, beta=0.5)],
    "addmv.default": [case(A[:, 0], A, V)],
    "addbmm.default": [case(C[0], T3, U3)],
    "transpose.int": [case(T3, 0, -1)],
    "squeeze.default": [case(A[None])],
    "squeeze.dim": [case(A[None], 0)],
    "squeeze.dims": [case(A[None, :, None], (0, 2))],
    "unsqueeze.default": [case(A, -1)],
    "select.int": [case(A, 0, 1), case(A, -2, -1), case(A, 1, 2)],
    "diagonal.default": [case(A), case(T3, 1, 0, 2)],
    "flip.default": [case(A, (0, 1))],
    "roll.default": [case(A, (1,), (0,)), case(A, (2,))],
    "cat.default": [case((A, B)), case((A, B, A), 1)],
    "stack.default": [case((A, B)), case((A,), -1)],
    "split_with_sizes.default": [case(A, (1, 2)), case(A, (1, 3), 1), case(A, (3,))],
    "unbind.int": [case(A), case(A, 1), case(A[:1])],
    "as_strided.default": [case(A, (2, 2), (1, 4)), case(A, (3,), (2,), 1)],
    "permute.default": [case(A, (1, 0)), case(A, (-1, -2)), case(T3, (2, 0, 1)), case(A, (0, 1))],
    "reshape.default": [case(A, (4, 3)), case(A[:1, :1], ()), case(A, (-1,))],
    "view.default": [case(A, (4, 3)), case(S, ()), case(S, (1, 1))],
    "_unsafe_view.default": [case(A, (12,))],
    "expand.default": [
        case(V, (3, 4)),
        case(S, ()),
        case(V, (-1,)),
        case(A, (2, -1, 4)),
        case(V, (3, 4), implicit=True),
    ],
    "gather.default": [case(A, 0, J), case(A, 0, J, sparse_grad=False)],
    "index_select.default": [case(A, 1, I)],
    "index_add.default": [case(A, 0, I, B[:2]), case(A, 0, I, B[:2], alpha=2)],
    "index_put.default": [case(A, (I,), B[:2]), case(A, (None, I), S), case(A, (I, I), S, True), case(A, (M,), S)],
    "index.Tensor": [
        case(A, (I,)),
        case(A, (None, I)),
        case(A, (I, I)),
        case(A, (M,)),
        case(T3, (I[1:], None, I)),
        case(A, (torch.tensor(1),)),
        case(T3, (torch.tensor(1), None, I)),
        case(A, (I, None)),
        case(A, (J[:, :, None] % 2,)),
    ],
    "scatter.src": [case(A, 0, J, B)],
    "scatter.value": [case(A, 0, J, 2.0)],
    "scatter_add.default": [case(A, 0, J, B)],
    "scatter_reduce.two": [case(A, 0, J, B, "amax"), case(A, 0, J, B, "sum", include_self=False)],
    "select_scatter.default": [case(A, V, 0, 1)],
    "slice_scatter.default": [case(A, B[:1], 0, 1, 2), case(A, B, 1)],
    "diagonal_scatter.default": [case(A, V[:3]), case(A, V[:3], 1)],
    "constant_pad_nd.default": [case(A, (1, 2)), case(A, (1, -1, 0, 2), 3.0)],
    "tril.default": [case(A, 1)],
    "triu.default": [case(A, -1)],
    "slice.Tensor": [
        case(A),
        case(A, 0, 1, 3),
        case(A, 1, 1, 2**63 - 1),
        case(A, -1, -3, -1),
        case(T3, 2, 0, 4, 2),
        case(A, 0, 2, 1),
        case(A, 0, None, 2),
    ],
    **{
        f"{k}.default": [case((3, 4), dtype=F32, device=CPU, pin_memory=False), case(())]
        for k in ("zeros", "ones", "rand", "randn")
    },
    "full.default": [
        case((3,), 2.0, dtype=F32, layout=torch.strided, device=CPU),
        case((), float("-inf")),
        case((2,), 1, dtype=I64),
    ],
    "arange.default": [case(5), case(5, dtype=F32, device=CPU)],
    "arange.start": [case(1, 5, dtype=I64, device=CPU)],
    "arange.start_step": [case(1, 8, 3, dtype=I64, device=CPU), case(0.0, 1.0, 0.25)],
    "scalar_tensor.default": [case(1.5, dtype=F32, device=CPU), case(2, dtype=I64)],
    "full_like.default": [case(A, 2.0, memory_format=torch.preserve_format), case(A, 1, dtype=I64, device=CPU)],
    "zeros_like.default": [case(A, dtype=I64, pin_memory=False, memory_format=torch.preserve_format)],
    "bernoulli.p": [case(A, 0.5)],
    "clone.default": [case(A.t(), memory_format=torch.contiguous_format), case(A, memory_format=torch.preserve_format)],
    "_to_copy.default": [
        case(A, dtype=torch.float64),
        case(A, dtype=F32),
        case(A, dtype=torch.float16, device=CPU),
        case(A),
        case(A.t(), dtype=I64, memory_format=torch.contiguous_format),
        case(A, dtype=I64, layout=torch.strided, non_blocking=False),
    ],
    "convolution.default": [case(IMAGE, FILTER, None, (2, 1), (1, 1), (1, 1), False, (0, 0), 1)],
    "native_layer_norm.default": [case(A, (4,), V, V, 1e-5), case(A, (4,), None, None, 1e-5)],
    "native_group_norm.default": [case(IMAGE, None, None, 2, 3, 36, 3, 1e-5)],
    "native_batch_norm.default": [case(IMAGE, None, None, None, None, True, 0.1, 1e-5)],
    "native_dropout.default": [case(A, 0.5, True)],
    "embedding.default": [case(A, I), case(A, I, 1)],
    "gelu.default": [case(A, approximate="none"), case(A, approximate="tanh")],
    "softplus.default": [case(A, 2.0, 1.0)],
    "softshrink.default": [case(A, 0.3)],
    "linear.default": [case(A, C.t()), case(A, C.t(), C[0])],
    "avg_pool2d.default": [
        case(IMAGE, (2, 2)),
        case(IMAGE, (3, 3), (2, 2), (1, 1), True, False),
        case(IMAGE, (2,), (), 0, False, True, 3),
    ],
    "avg_pool3d.default": [case(VOLUME, (2, 2, 2))],
    "linalg_vector_norm.default": [case(A, 1, (0,), True), case(A, 2.0, None, False, dtype=torch.float64)],
    "_softmax.default": [case(A, 1, False), case(A, -2, False)],
    "_log_softmax.default": [case(A, 1, False)],
}
for _op, _cases in MORE.items():
    SAMPLES[f"aten.{_op}"] = [*SAMPLES.get(f"aten.{_op}", []), *_cases]
SAMPLES["aten.empty_like.default"] = []  # nothing to compare: its contents are arbitrary

OTHERS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "aten.threshold_backward.default": [case(A, B, 0)],
    "aten.tanh_backward.default": [case(A, B)],
    "aten._softmax_backward_data.default": [case(A, B, 1, F32)],
    "aten.convolution_backward.default": [
        case(torch.rand(2, 4, 4, 4), IMAGE, FILTER, (4,), (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, True, False))
    ],
    "aten.max_pool2d_with_indices.default": [case(IMAGE, (2, 2)), case(IMAGE, (2, 2), (2, 2))],
    "aten.select_backward.default": [case(V, (3, 4), 0, 1)],
    "aten.slice_backward.default": [case(A, (3, 8), 1, 0, 2**63 - 1, 2)],
    "aten.nll_loss_forward.default": [case(A, torch.tensor([0, 1, 3]), None, 1, -100)],
    "aten.silu.default": [case(A)],
    "aten.leaky_relu.default": [case(A, 0.01)],
    "aten.elu.default": [case(A, 1.0, 1, 1)],
    "aten.hardtanh.default": [case(A, 0.2, 0.5)],
    "aten.mse_loss.default": [case(A, B), case(A, B, 2)],
    "aten.split.Tensor": [case(A, 2), case(A, 2, 1)],
    "aten.repeat.default": [case(A, (2, 1))],
    "aten.new_zeros.default": [case(A, (2, 2), pin_memory=False)],
    "aten.copy.default": [case(A, V)],
    "aten.unfold.default": [case(A, 1, 2, 1)],
    "aten._native_batch_norm_legit_functional.default": [
        case(IMAGE, None, None, torch.zeros(3), torch.ones(3), True, 0.1, 1e-5)
    ],
}
