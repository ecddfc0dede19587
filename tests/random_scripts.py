"""Random programs as Python text, so that one that fails is a script to run: `print(script)`.

A script is a function of a few float64 tensors.  Its lines read earlier values, so that values fan out; what nobody has
read is returned.  There are views, writes in place (into tensors of its own and into views of them), broadcasting,
indexing, changes of dtype, complex numbers, products, networks' operators, linear algebra, functions with a derivative
of their own, and, if asked for, Python control flow on values.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

LARGEST = 36  # elements of a value, beyond which a line that would enlarge it is not drawn
MOST_INPUTS, MOST_OUTPUTS = 3, 4
HEADER = """import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

F64 = torch.float64


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x * x


"""
REPRODUCTION = """
generator = torch.Generator().manual_seed({seed})
normal = lambda shape: torch.randn(shape, generator=generator, dtype=F64)
x = [normal(shape).requires_grad_() for shape in {shapes}]
v = [normal(t.shape) for t in x]
y = program(*x)
u = tuple(normal(t.shape) for t in y)


def loss(*x):
    y = program(*x)
    return sum((s * t).sum() for s, t in zip(u, y)) + sum((t * t).sum() for t in y) / 2


gradient = torch.autograd.grad(loss(*x), x, create_graph=True, materialize_grads=True)
print(gradient, torch.autograd.grad(sum((g * t).sum() for g, t in zip(gradient, v)), x, materialize_grads=True))

import pullback

print(pullback.hvp(loss, tuple(t.detach() for t in x), tuple(v)))
"""


@dataclass(frozen=True)
class Script:
    """Text of a program: its inputs' shapes, its lines, and the names of what it returns.

    steps: its lines, those that belong together in one tuple.
    is_exact: whether it computes in float64 throughout, so that results can be compared closely.
    is_rough: whether all that counts is that rounding explains a difference.
    """

    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]
    is_exact: bool
    is_rough: bool = False

    @property
    def source(self) -> str:
        """The function."""
        head = f"def program({', '.join(f'v{k}' for k in range(len(self.shapes)))}):"
        body = [f"    {line}" for step in self.steps for line in step]
        return "\n".join([HEADER + head, *body, f"    return ({', '.join(self.outputs)},)", ""])

    @cached_property
    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        """What the text defines."""
        namespace: dict[str, Any] = {"__name__": "random_script"}
        exec(compile(self.source, "<random script>", "exec"), namespace)
        return namespace["program"]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)

    @property
    def seed(self) -> int:
        """Of the point."""
        return len(self.steps)

    def point(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Inputs, tangents and cotangents."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(shape: Any) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x = tuple(map(normal, self.shapes))
        return x, tuple(map(normal, self.shapes)), tuple(normal(y.shape) for y in self(*x))

    @property
    def in_double(self) -> "Script":
        """The same in double precision throughout."""
        return replace(self, steps=tuple(tuple(map(_widened, step)) for step in self.steps), is_exact=True)

    @property
    def precision(self) -> str:
        """Which tolerances are its own."""
        return "rough" if self.is_rough else "double" if self.is_exact else "single"

    def __repr__(self) -> str:
        return f"\n{self.source}\n{REPRODUCTION.format(seed=self.seed, shapes=self.shapes)}"


WIDER = {".float()": ".double()", ".bfloat16()": ".double()", "float32": "float64", "complex64": "complex128"}


def _widened(line: str) -> str:
    return reduce(lambda text, pair: text.replace(*pair), WIDER.items(), line)


# ---------------------------------------------------------------- lines

UNARY = (
    *("{x}.sin()", "torch.tanh({x})", "{x}.sigmoid()", "torch.exp(-{x} * {x})", "torch.log(1.5 + {x} * {x})"),
    *("torch.sqrt({x} * {x} + 1)", "1 / (2 + {x} * {x})", "functional.softplus({x})", "functional.gelu({x})"),
    *("{x}.sin() ** 3", "{x}.atan()", "0.7 * {x} - 0.2", "{x}.clone()", "torch.relu({x})", "({x} - 0.11).abs()"),
    *("{x}.clamp(-0.6, 0.7)", "functional.leaky_relu({x})", "{x}.masked_fill({x} > 0.5, 0.25)", "{x} * {x}.detach()"),
    *("torch.where({x} > 0.2, {x} * 2, {x}.cos())", "functional.silu({x})", "{x}.expm1() * 0.3", "{x}.square()"),
    *("torch.erf({x})", "{x}.asinh()", "functional.elu({x})", "functional.mish({x})", "torch.lgamma({x}.square() + 1)"),
    *("functional.hardtanh({x})", "functional.gelu({x}, approximate='tanh')", "({x} * {x} + 1) ** -0.5", "-{x}"),
    *("2 ** {x}.tanh()", "torch.addcmul({x}, {x}, {x}.cos(), value=0.5)", "{x}.sinc()", "{x}.cosh().rsqrt()"),
    *("Cube.apply({x})", "checkpoint(lambda t: t.sin() * t, {x}, use_reentrant=False)", "{x} * torch.tensor(2.0)"),
    *("torch.special.xlogy({x}, {x}.square() + 1)", "torch.logit({x}.sigmoid() * 0.9 + 0.05)", "{x}.frac() * {x}"),
    *("functional.dropout({x}, 0.5, training=False)", "torch.nan_to_num({x})"),
    *("{x}.remainder(1.7)", "{x}.sign() * {x}"),
)
BINARY = (
    *("{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} / (1.5 + {y} * {y})", "torch.maximum({x}, {y} + 0.03)"),
    *("torch.where({x} > {y}, {x} * 0.5, {y})", "torch.hypot({x}, {y} + 3)", "torch.atan2({x}, {y} + 3)"),
    *("torch.lerp({x}, {y}, 0.3)", "torch.minimum({x}.cos(), {y})", "({x}.square() + 1) ** {y}.tanh()"),
    *("torch.logaddexp({x}, {y})", "torch.addcdiv({x}, {y}, {y}.square() + 2)", "torch.where({y} > 0, {x}, 0.5)"),
    *("torch.clamp({x}, {y} - 1, {y} + 0.4)", "functional.mse_loss({x}.expand_as({x} + {y}), ({x} + {y}) * 0.5)"),
    *("functional.smooth_l1_loss({x} + {y} * 0, {y} + {x} * 0)", "torch.fmax({x}, {y} - 0.05)"),
    *("{y}.expand_as({x}) * {x}",),
    "functional.binary_cross_entropy_with_logits({x}.expand_as({x} + {y}), ({y} + {x} * 0).sigmoid())",
)
REDUCTIONS = (
    *("{x}.sum({d}, keepdim={k})", "{x}.mean({d}, keepdim={k})", "{x}.amax({d}, keepdim={k})"),
    *("{x}.logsumexp({d}, keepdim={k})", "(0.5 + {x}.tanh()).prod({d}, keepdim={k})", "({x} + 2).norm(dim={d})"),
    *("{x}.sum()", "{x}.mean()", "{x}.var({d}, correction=0, keepdim={k})", "{x}.max({d}, keepdim={k}).values"),
    *("{x}.min({d}).values", "{x}.median({d}).values", "{x}.kthvalue(1, {d}, keepdim={k}).values", "{x}.amin({d})"),
    *("torch.trace({x}) if {x}.dim() == 2 else {x}.max()", "torch.linalg.vector_norm({x} + 2, 3, {d})"),
    *("{x}.nansum({d})",),
    *("sum(t.sin() for t in {x}.unbind({d}))", "torch.aminmax({x}, dim={d}).max", "({x} + 2).norm()", "{x}.prod()"),
    *("functional.cross_entropy({x}.reshape(1, -1), torch.tensor([0]))", "{x}.sum(tuple(range({x}.dim())))"),
)
ALONG = (
    *("{x}.softmax({d})", "{x}.log_softmax({d})", "{x}.cumsum({d})", "{x}.sort({d}).values", "{x}.flip({d})"),
    *("{x}.roll(1, {d})", "{x} - {x}.mean({d}, keepdim=True)", "functional.layer_norm({x}, {x}.shape[-1:], eps=0.1)"),
    *("{x}.cummax({d}).values", "(1 + {x}.tanh() * 0.5).cumprod({d})"),
    *("{x}.logcumsumexp({d})", "{x}.topk(1, {d}).values"),
    *("functional.normalize({x} + 2, dim={d})", "{x}.sort({d}, descending=True).values", "{x}.diff(dim={d})"),
    *("functional.rms_norm({x}, {x}.shape[-1:], eps=0.1)", "{x}.cummin({d}).values", "functional.softmin({x}, {d})"),
    *("torch.renorm({x} + 1, 2, {d}, 1.5)", "{x}.cumsum({d}).flip({d})"),
    *("functional.glu(torch.cat([{x}, {x}.sin()], {d}), {d})",),
    "functional.batch_norm({x}.reshape(-1, 1), None, None, training=True, eps=0.1).reshape({x}.shape)",
    "functional.group_norm({x}.reshape(1, -1, 1), 1, eps=0.1).reshape({x}.shape)",
)
VIEWS = (
    *("{x}.narrow({d}, {start}, {rest})", "{x}.select({d}, {start})", "{x}.transpose({d}, {e})", "{x}.reshape(-1)"),
    *("{x}.unsqueeze({d})", "{x}.index_select({d}, torch.tensor({table}))", "functional.pad({x}, (1, 0))"),
    *("{x}.expand(2, *{x}.shape)", "torch.cat([p.sin() for p in {x}.split(1, {d})][::-1], {d})", "{x}[..., ::2]"),
    *("torch.stack([{x}, {x}.cos()], {d})", "{x}[torch.tensor({first_table})]", "{x}.movedim({d}, 0)"),
    *("{x}.unfold({d}, 1, 1)", "{x}.diagonal() if {x}.dim() > 1 else torch.diag({x})"),
    *("{x}.gather({d}, {x}.argsort({d}))", "{x}.squeeze()"),
    *("{x}.tril() if {x}.dim() > 1 else {x}.neg()", "{x}[None, ..., None]"),
    *("torch.cat([{x}.narrow({d}, 0, 0), {x}], {d})", "{x} + {x}.narrow({d}, 0, 0).sum()"),
    *("{x}.repeat(2, *[1] * {x}.dim())",),
    *("{x}.chunk(2, {d})[-1]", "torch.hstack([{x}, {x} * 2])"),
    *("{x}.repeat_interleave(2, {d})", "{x}.mT.contiguous().mT"),
    *("{x}.view(-1).view({x}.shape)", "{x}.swapaxes({d}, {e}).flatten()"),
    "{x}.reshape(-1).clone().as_strided((1,), (1,)) * 2",
    *("{x}.tensor_split(2, {d})[0]", "torch.block_diag({x}, {x}) if {x}.dim() == 2 else {x}"),
    *("{x}.unflatten({d}, (1, -1))",),
    *("functional.pad({x}, (0, 1), value=0.5)", "{x}.rot90(1, ({d}, {e})) if {d} != {e} else {x}"),
    *("{x}[-1:]", "{x}[{start0}, None]"),
)
INDEXING = (
    "{x}.index_add({d}, torch.tensor({table}), {x}.index_select({d}, torch.tensor({table})).sin())",
    "{x}.scatter({d}, {x}.argsort({d}), {x}.cos())",
    "torch.zeros_like({x}).scatter_add({d}, {x}.argsort({d}), {x}) * {x}",
    "{x}.scatter_reduce({d}, {x}.argsort({d}), {x}.sin(), 'amax')",
    "torch.ones_like({x}).scatter_reduce({d}, {x}.argsort({d}) * 0, {x} + 2, 'prod', include_self=False)",
    "{x}.scatter_reduce({d}, {x}.argsort({d}), {x}.cos(), 'mean')",
    "{x}.index_fill({d}, torch.tensor({table}), 0.5)",
    "{x}.take(torch.tensor([0, -1, 0]))",
    "torch.take_along_dim({x}, {x}.argmax({d}, keepdim=True), {d})",
    "{x}.index_put((torch.tensor({first_table}),), {x}[{start0}].cos(), accumulate=True)",
    "{x}.masked_scatter({x} > 0.1, {x}.flip({d}).sin())",
    "functional.one_hot({x}.argmax({d}), {x}.shape[{d}]).sum() * {x}",
    "{x} * torch.arange({x}.numel()).reshape({x}.shape)",
    "{x} * (({x} > 0) & ({x} < 1)).sum()",
    "{x} * ({x} > {x}.mean()).any({d}, keepdim=True)",
    "{x}[torch.arange({x}.shape[0]), ..., -1]",
    "torch.select_scatter({x}, {x}.select({d}, {start}).sin(), {d}, {start})",
    "torch.slice_scatter({x}, {x}.narrow({d}, {start}, {rest}).cos(), {d}, {start})",
    "{x}.index_copy({d}, torch.tensor([{start}]), {x}.narrow({d}, 0, 1).exp())",
    "functional.embedding(torch.tensor({first_table}), {x}.reshape({x}.shape[0], -1))",
    "{x}[[{start0}, {start0}]]",
    "torch.bucketize({x}, torch.tensor([-0.5, 0.5], dtype=F64)) * {x}",
    "torch.searchsorted({x}.sort(-1).values, {x} * 0.5).double() * {x}",
    "{x}.where({x}.argsort({d}) > 0, {x}.square())",
)
PRODUCTS = (
    *("torch.matmul({x}, {y})", "{x} @ {y}.transpose(-1, -2)"),
    *("{x} @ {x}.transpose(-1, -2) * 0.5", "torch.bmm({x}, {y})"),
    *("torch.outer({x}, {y})", "functional.linear({x}, {y})", "torch.einsum('...i,...i->...', {x}, {x} + 1)"),
    *("torch.tensordot({x}, {y}, 1)", "torch.inner({x}, {y})", "torch.kron({x}, {y})", "torch.cdist({x} + 2, {x} - 2)"),
    *("torch.einsum('ij,kj->ik', {x}, {y})", "torch.einsum('ij,ij,kj->ik', {x}, {x}, {y})"),
    *("torch.addmm({y}, {x}, {x})",),
    *("{x}.reshape(-1) @ {x}.reshape(-1)", "torch.einsum('ii->i', {x})", "torch.linalg.vecdot({x}, {x}.cos())"),
    *("functional.cosine_similarity({x} + 2, {x}.flip(-1) + 2, -1)", "torch.baddbmm({x}, {x}, {y})"),
    "functional.scaled_dot_product_attention({x}[None], {x}[None], {y}[None] * 1)",
)
NETWORK = (
    "functional.conv1d({x}.reshape(1, 1, -1), torch.tensor([[[0.5, -1.0]]], dtype=F64), padding=1)",
    "functional.conv1d({x}.reshape(1, 1, -1), {y}.reshape(1, 1, -1)[..., :2], padding=2)",
    "functional.conv2d({x}.reshape(1, 1, {x}.shape[0], -1), {y}.reshape(1, 1, 1, -1)[..., :1].sin())",
    "functional.conv_transpose1d({x}.reshape(1, 1, -1), torch.tensor([[[0.5, -1.0]]], dtype=F64), stride=2)",
    "functional.max_pool1d({x}.reshape(1, -1), 2, 1, 1)",
    "functional.avg_pool1d({x}.reshape(1, -1), 2, 1, 1)",
    "functional.adaptive_avg_pool1d({x}.reshape(1, -1), 2)",
    "functional.interpolate({x}.reshape(1, 1, -1), scale_factor=2, mode='linear')",
    "functional.pad({x}.reshape(1, 1, -1), (1, 1), mode='replicate')",
    "functional.prelu({x}, {y}.reshape(-1)[:1])",
    "functional.lp_pool1d({x}.reshape(1, 1, -1) + 2, 2, 1)",
    "functional.unfold({x}.reshape(1, 1, 1, -1), (1, 1))",
    "functional.instance_norm({x}.reshape(1, 1, -1), eps=0.1) if {x}.numel() > 1 else {x}",
    "functional.pixel_shuffle(torch.stack([{x}.reshape(1, -1)] * 4), 2)",
    "functional.kl_div({x}.log_softmax({d}), {x}.softmax({d}), reduction='batchmean')",
    "functional.huber_loss({x}, {x}.flip({d}) * 0.5, reduction='none')",
)
MATRICES = (
    "torch.linalg.solve({s}, {x})",
    "torch.linalg.inv({s})",
    "torch.linalg.det({s})",
    "torch.linalg.slogdet({s}).logabsdet",
    "torch.linalg.cholesky({s})",
    "torch.linalg.solve_triangular({s}.tril(), {x}, upper=False)",
    "torch.cholesky_solve({x}, torch.linalg.cholesky({s}))",
    "torch.linalg.matrix_exp({s} * 0.1)",
    "torch.linalg.qr({s}).R",
    "torch.linalg.matrix_power({s} * 0.3, 2)",
    "torch.linalg.pinv({s})",
    "torch.linalg.matrix_norm({x} + 2)",
    "torch.logdet({s})",
)
SPD = "({x} @ {x}.mT + 2 * torch.eye({x}.shape[-2], dtype=F64))"
COMPLEX = (
    "torch.fft.fft({x}, dim={d}).real",
    "(torch.fft.rfft({x}, dim={d}) + 9).abs()",
    "torch.fft.irfft(torch.fft.rfft({x}, dim={d}) * (1 + 0.5j), n={x}.shape[{d}], dim={d})",
    "torch.view_as_real(torch.complex({x}, {x}.cos()).exp()).sum(-1)",
    "torch.view_as_complex(torch.stack([{x}, {x} * 0.5 + 1], -1)).abs()",
    "torch.polar({x}.exp(), {x}).imag",
    "(torch.complex({x}, {x}.sin()) * torch.complex({x}.cos(), {x}).conj()).real",
    "({x} * 1j + 2).angle()",
    "(torch.complex({x}, {x} + 1).square() * (2 - 1j)).imag",
    "torch.fft.ifft(torch.fft.fft({x}, dim={d}) * {x}, dim={d}).real",
    "(({x} * (1 + 1j)) @ ({x} - 1j * {x}).transpose(-1, -2)).imag",
    "({x} + 0j).cumsum({d}).conj().sin().real",
)
CASTS = (
    *("{x}.float().double()", "({x} > 0.1).double() * {x}", "{x} + {x}.round().long()", "{x}.to(torch.float32) + {x}"),
    *("({x}.float() * 2).sin().double()", "torch.where({x}.bfloat16() > 0, {x}, {x} * 0.5)"),
    *("{x}.float().mul(2.5).softmax({d}).double()", "({x}.float() @ {x}.float().transpose(-1, -2)).double()"),
    *("{x}.to(torch.complex64).abs().double() + {x}", "{x} * torch.ones(1, dtype=torch.float32)"),
)
WRITES = (
    ("{n} = {x}.clone()", "{n}.mul_({y0})"),
    ("{n} = {x} * 1.0", "{n}.select({d}, 0).copy_({x}.select({d}, -1).sin())"),
    ("{n} = torch.zeros_like({x})", "{n}.narrow({d}, {start}, {rest}).add_({x}.narrow({d}, {start}, {rest}))"),
    ("{n} = {x}.sin()", "{n}[{start0}] = {n}[{start0}] * 2"),
    ("{n} = {x}.clone()", "{n}.index_put_((torch.tensor({first_table}),), {x}[{start0}] * 0.5, accumulate=True)"),
    ("{n} = {x} + 0", "{n}.masked_fill_({x} > 0.3, 0.1)"),
    ("{n} = {x}.clone()", "{n}_a, {n}_b = {n}.narrow({d}, 0, 1), {n}.narrow({d}, -1, 1)", "{n}_a.add_({n}_b)"),
    ("{n} = {x}.clone()", "{n}.reshape(-1)[0:1].mul_(3)", "{n}.sub_({x}.mean())"),
    ("{n} = {x}.exp()", "{n}.transpose({d}, {e}).add_(1)", "{n}.clamp_(0.2, 1.9)"),
    ("{n} = torch.empty_like({x})", "{n}.copy_({x} * {x})", "{n}.div_(2)"),
    ("{n} = {x}.expand(2, *{x}.shape).clone()", "{n}[0].mul_(2)", "{n}[1].add_({x})"),
    ("{n} = {x}.clone()", "{n}.view(-1)[::2].view(-1).mul_(3)", "{n} += {y0}"),
    ("{n} = {x}.clone()", "{n}.scatter_({d}, {n}.argsort({d}), {x} * 2)"),
    ("{n} = {x} * 2", "{n}.index_add_({d}, torch.tensor([{start}]), {x}.narrow({d}, 0, 1))"),
    ("{n} = {x}.clone()", "{n}.unsqueeze_(0)", "{n}.transpose_(0, -1)", "{n}.mul_(0.5)"),
    ("{n} = {x}.clone()", "{n}[{n} > 0.2] = 0.3"),
    ("{n} = {x}.clone()", "{n}[..., 0] = {x}.sum()", "{n}.sin_()"),
    ("{n} = torch.zeros(2, *{x}.shape, dtype=F64)", "{n}[0] = {x}", "{n}[1] = {n}[0] * {x}"),
    ("{n} = {x}.detach().clone()", "{n}.add_({x})", "{n}.relu_()"),
    ("{n} = {x}.clone()", "{n}.zero_()", "{n}.add_({x}, alpha=0.5)"),
    ("{n} = {x}.clone()", "{n}.copy_({x}.float())"),
    ("{n} = {x}.clone()", "{n}_v = {n}[None].squeeze(0)", "{n}.mul_(2)", "{n} = {n}_v + {n}"),
    ("{n} = {x}.clone()", "{n}.lerp_({x}.cos(), 0.3)", "{n}.addcmul_({x}, {x})", "{n}.tanh_()"),
    ("{n} = [{x}.sin()]", "{n}.append({n}[0] * 2)", "{n} = torch.stack({n}, -1).sum(-1)"),
    ("{n} = {x}.clone()", "{n}.diagonal(0, {d}, {e}).mul_(2) if {d} != {e} else None"),
    ("{n} = {x} + 1", "{n}.neg_().pow_(2)"),
)
CONTROL = (
    ("{n} = {x}[torch.arange({x}.shape[0]), ..., {x}.argmax(-1).reshape(-1)[0]]",),
    ("if {x}.sum() > 0.05:", "    {n} = {x} * 2", "else:", "    {n} = {x}.sin()"),
    ("{n} = {x}", "for _ in range(int({x}.detach().abs().sum()) % 3 + 1):", "    {n} = {n} * 0.5 + {x}.cos()"),
    ("{n} = {x} * 1", "while {n}.abs().max() > 1:", "    {n} = {n} * 0.6"),
    ("{n} = {x}.clone()", "if {x}.reshape(-1)[0].item() > 0:", "    {n}.mul_({x}.detach() + 2)"),
    ("{n} = max([{x}, {x} * 1.5], key=lambda t: t.sum().item())",),
    ("{n} = torch.stack([row * 2 if row.sum() > 0 else row.sin() for row in {x}])",),
    ("{n} = {x}[{x} > 0.1].sum() + {x}",),
    ("{n} = {x}.masked_select({x} < 0.4).square().sum()",),
    ("{n} = {x}", "for k in {x}.argsort({d}).view(-1).tolist()[:2]:", "    {n} = {n} * (1 + 0.1 * k) + {x}.sum()"),
    ("with torch.no_grad():", "    {n}_s = {x}.abs().max()", "{n} = {x} / ({n}_s + 1)"),
    ("try:", "    {n} = {x}.reshape(7, 11)", "except RuntimeError:", "    {n} = {x}.cos()"),
    ("{n} = torch.zeros_like({x})", "{n}[{x}.detach() > 0] = 0.5", "{n} = {n} * {x}"),
    ("{n} = {x}.clone()", "{n}[{n} < 0] *= {x}.mean()"),
    ("{n} = {x} * float({x}.detach().max()) + int({x}.argmax())",),
)
TABLES: dict[str, tuple[Any, ...]] = {
    "unary": UNARY, "binary": BINARY, "reduction": REDUCTIONS, "along": ALONG, "view": VIEWS, "indexing": INDEXING,
    "product": PRODUCTS, "network": NETWORK, "matrix": MATRICES, "complex": COMPLEX, "cast": CASTS, "write": WRITES,
    "control": CONTROL,
}  # fmt: skip
WEIGHTS = {
    "unary": 4, "binary": 4, "reduction": 1, "along": 2, "view": 4, "indexing": 3, "product": 2, "network": 1,
    "matrix": 1, "complex": 1, "cast": 0.5, "write": 4, "control": 3,
}  # fmt: skip
FOR_NUMBERS = ("unary", "binary", "cast")  # kinds that a tensor without axes suits


def scripts(control: bool = False, longest: int = 60) -> Any:
    """A strategy of hypothesis, which makes a script that fails as short as it can."""
    return st.randoms(use_true_random=False).map(lambda source: generated(source, control, longest))


def seeded(seed: int, control: bool = False, longest: int = 60) -> Script:
    """The script of a number."""
    return generated(random.Random(seed), control, longest)


def generated(source: random.Random, control: bool, longest: int) -> Script:
    """A script of 5 to 60 steps on 1 to 3 inputs; values are computed on the way, to know their shapes."""
    shapes = [tuple(source.choices(range(1, 4), k=source.randint(0, 3))) for _ in range(source.randint(1, MOST_INPUTS))]
    namespace: dict[str, Any] = {}
    exec(HEADER, namespace)
    namespace |= {f"v{k}": _input(s, k) for k, s in enumerate(shapes)}
    names, steps, exact = [f"v{k}" for k in range(len(shapes))], [], True
    kinds = [kind for kind, weight in WEIGHTS.items() for _ in range(int(2 * weight)) if control or kind != "control"]
    for _ in range(min(source.randint(5, longest) for _ in range(2))):  # long ones are rare
        name = f"v{len(names)}"
        kind = source.choice(kinds)
        text = _step(source, kind, name, names, namespace)
        if _fits(text, name, namespace):
            steps.append(text)
            names.append(name)
            exact = exact and kind != "cast" and ".float()" not in str(steps[-1])
    return Script(tuple(shapes), tuple(steps), _unread(names, len(shapes), steps), exact)


def _input(shape: tuple[int, ...], k: int) -> Tensor:
    size = torch.Size(shape).numel()
    return (torch.arange(1, size + 1, dtype=torch.float64) * (0.37 + 0.1 * k)).sin().reshape(shape)


def _unread(names: list[str], inputs: int, steps: list[tuple[str, ...]]) -> tuple[str, ...]:
    body = "\n".join(line for step in steps for line in step)
    unread = [n for n in names[inputs:] if not any(f"{n}{c}" in body.replace(f"{n} =", "") for c in " .[,)*;:\n")]
    return tuple(unread[-MOST_OUTPUTS:]) or tuple(names[-1:])


def _step(source: random.Random, kind: str, name: str, names: list[str], namespace: dict[str, Any]) -> tuple[str, ...]:
    """The text of one step."""
    recent = names[-8:] if source.random() < 0.6 else names
    x, y = source.choice(recent), source.choice(names)
    a, b = namespace[x], namespace[y]
    if kind not in FOR_NUMBERS and not a.dim():
        kind = "unary"
    places: dict[str, Any] = _places(source, a) if a.dim() else {"d": 0, "e": 0}
    whole = y if b.dim() == 0 or b.shape == a.shape else "0.9"
    places |= {"x": x, "y": y, "n": name, "k": source.random() < 0.5, "y0": whole, "s": SPD.format(x=x)}
    chosen = source.choice(TABLES[kind])
    if isinstance(chosen, tuple):
        return tuple(line.format(**places) for line in chosen)
    return (f"{name} = {chosen.format(**places)}",)


def _places(source: random.Random, a: Tensor) -> dict[str, Any]:
    """Axes and positions that exist."""
    d, e = (source.randrange(a.dim()) for _ in range(2))
    start, start0 = source.randrange(a.shape[d]), source.randrange(a.shape[0])
    table, first = ([source.randrange(n) for _ in range(source.randint(1, 3))] for n in (a.shape[d], a.shape[0]))
    rest = a.shape[d] - start
    return {"d": d, "e": e, "start": start, "rest": rest, "start0": start0, "table": table, "first_table": first}


def _fits(text: tuple[str, ...], name: str, namespace: dict[str, Any]) -> bool:
    """Whether a step can be run and makes a small tensor of float64; it is then in the namespace."""
    trial = dict(namespace)
    try:
        exec("\n".join(text), trial)
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
        return False
    value = trial[name]
    if not isinstance(value, Tensor) or value.dtype is not torch.float64:
        return False
    if not 0 < value.numel() <= LARGEST or value.dim() > 4 or not float(value.abs().max()) < 1e3:
        return False
    namespace[name] = value
    return True


# ---------------------------------------------------------------- shorter scripts


def shrunk(script: Script, fails: Callable[[Script], bool]) -> Script:
    """A script that fails as well, of which no step, input or output can be left out."""
    for size in (8, 4, 2, 1, 1):
        k = len(script.steps)
        while k > 0:
            k = min(k, len(script.steps)) - size
            shorter = replace(script, steps=script.steps[: max(k, 0)] + script.steps[max(k, 0) + size :])
            script = _failing(_with_known_outputs(shorter), script, fails)
    for output in script.outputs:
        rest = tuple(o for o in script.outputs if o != output)
        script = _failing(replace(script, outputs=rest), script, fails) if rest else script
    return script


def _failing(shorter: Script, script: Script, fails: Callable[[Script], bool]) -> Script:
    try:
        return shorter if fails(shorter) else script
    except (NameError, RuntimeError, IndexError, ValueError, TypeError, SyntaxError):
        return script


def _with_known_outputs(script: Script) -> Script:
    body = "\n".join(line for step in script.steps for line in step)
    known = tuple(o for o in script.outputs if f"{o} = " in body or f"{o}_" in body)
    last = script.steps[-1][0].split(" = ")[0].strip() if script.steps else "v0"
    return replace(script, outputs=known or (last if last.isidentifier() else "v0",))
