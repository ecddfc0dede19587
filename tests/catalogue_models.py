"""Longer functions: layers and losses, networks, physics, programs with loops, views and in-place changes."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from catalogue import cases, mask, positive, unit, whole

Tensor = torch.Tensor


def in_place_chain(x: Tensor) -> Tensor:
    y = x.sin()
    y.mul_(2).add_(x)
    y[0] = x[1] * x[2]
    return y


def in_place_view(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0].mul_(x[:, 1])
    y.T[1].add_(1.0).exp_()
    return y


def buffer_made_without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        buffer = torch.empty_like(x)
    buffer[0] = x[1] * 2
    buffer[1:] = x[:-1].exp()
    return buffer


def accumulated(x: Tensor) -> Tensor:
    total, row = torch.zeros(2, 2, dtype=x.dtype), torch.ones(2, dtype=x.dtype)
    for k in range(3):
        total[0] += row * x[k]
        total[1].addcmul_(x[k : k + 1], x[k : k + 1])
    return total


def filled_by_hand(x: Tensor) -> Tensor:
    y = torch.zeros(2, 3, dtype=x.dtype)
    for k in range(3):
        y[k % 2, k] = x[k] ** (k + 1)
    return y


def iterated_map(x: Tensor) -> Tensor:
    for _ in range(4):
        x = 3.6 * x * (1 - x)
    return x


def newton_square_root(x: Tensor) -> Tensor:
    root = torch.ones_like(x)
    for _ in range(5):
        root = 0.5 * (root + x / root)
    return root


def runge_kutta(state: Tensor, rate: Tensor) -> Tensor:
    def slope(y: Tensor) -> Tensor:
        return torch.stack([rate[0] * y[0] - rate[1] * y[0] * y[1], rate[2] * y[0] * y[1] - y[1]])

    for _ in range(2):
        k1 = slope(state)
        k2 = slope(state + 0.05 * k1)
        state = state + 0.1 * k2
    return state


def robot_arm(angle: Tensor, length: Tensor) -> Tensor:
    total = angle.cumsum(0)
    return torch.stack([(length * total.cos()).sum(), (length * total.sin()).sum()])


def attention(x: Tensor, w: Tensor) -> Tensor:
    q, k, v = (x @ w).chunk(3, -1)
    return (q @ k.T / k.shape[-1] ** 0.5).softmax(-1) @ v


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def gru_cell(x: Tensor, h: Tensor, w: Tensor, u: Tensor) -> Tensor:
    r, z, n = (x @ w).chunk(3, -1)
    a, b, c = (h @ u).chunk(3, -1)
    update = (z + b).sigmoid()
    return (1 - update) * (n + (r + a).sigmoid() * c).tanh() + update * h


def recurrent(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
    h = torch.zeros(2, dtype=x.dtype)
    for row in x:
        h = (row @ w + h @ u).tanh()
    return h


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def pairwise_energy(x: Tensor) -> Tensor:
    distance = ((x[:, None] - x[None]) ** 2).sum(-1) + torch.eye(3, dtype=x.dtype)
    return distance.rsqrt().triu(1).sum()


def gaussian_log_density(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return -(((x - mean) / scale) ** 2 / 2 + scale.log()).sum(-1)


def mlp(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return F.linear(F.linear(x, w, b).tanh(), v)


def residual_block(x: Tensor, w: Tensor) -> Tensor:
    for _ in range(2):
        x = x + F.gelu(F.layer_norm(x, (3,)) @ w)
    return x


def checked(x: Tensor) -> Tensor:
    if x.shape[0] > 2 and x.dim() == 1:
        return x.exp()
    return x


def norm_by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred / (centred.square().mean(0) + 1e-5).sqrt()


def through_out_of_a_dict(x: Tensor) -> dict[str, Tensor]:
    return {"sine": x.sin(), "both": x.sin() * x.cos()}


def rotation(angle: Tensor, x: Tensor) -> Tensor:
    return torch.stack([angle.cos() * x[0] - angle.sin() * x[1], angle.sin() * x[0] + angle.cos() * x[1]])


def shared_subexpression(x: Tensor) -> Tensor:
    a = x.exp()
    b = a * a.sin()
    return a * b + b / a


def composed(count: int) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        for _ in range(count):
            x = x.sin() * x.cos() + x
        return x

    return function


def detached_factor(x: Tensor) -> Tensor:
    return x * x.detach().exp()


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.square().sum()
    return x * scale


LAYERS = {
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (1, 1, 3, 3), (2, 1, 2, 2), (2,)),
    "conv2d_strided": (lambda x, w: F.conv2d(x, w, stride=2).tanh(), (1, 2, 4, 4), (1, 2, 2, 2)),
    "conv2d_grouped": (lambda x, w: F.conv2d(x, w, groups=2), (1, 2, 3, 3), (2, 1, 2, 2)),
    "conv1d": (lambda x, w: F.conv1d(x, w, dilation=2), (1, 2, 5), (2, 2, 2)),
    "conv_transpose": (lambda x, w: F.conv_transpose1d(x, w, stride=2), (1, 2, 2), (2, 1, 3)),
    "max_pool": (lambda x: F.max_pool2d(x, 2), (1, 2, 4, 4)),
    "avg_pool": (lambda x: F.avg_pool2d(x, 2, stride=1), (1, 1, 3, 3)),
    "adaptive_pool": (lambda x: F.adaptive_avg_pool2d(x, 2), (1, 1, 4, 4)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (3,), w, b), (2, 3), (3,), (3,)),
    "group_norm": (lambda x, w: F.group_norm(x, 2, w), (1, 4, 2), (4,)),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), (4, 2), (2,), (2,)),
    "rms_norm": (lambda x: F.rms_norm(x, (3,)), (2, 3)),
    "instance_norm": (lambda x: F.instance_norm(x), (1, 2, 4)),
    "norm_by_hand": (norm_by_hand, (4, 2)),
    "prelu": (lambda x, a: F.prelu(x, a), (2, 3), (3,)),
    "glu": (lambda x: F.glu(x, 1), (2, 4)),
    "upsample_nearest": (lambda x: F.interpolate(x, scale_factor=2), (1, 1, 3)),
    "upsample_bilinear": (lambda x: F.interpolate(x, (3, 3), mode="bilinear"), (1, 1, 2, 2)),
    "pad_reflecting": (lambda x: F.pad(x, (1, 1), mode="reflect"), (1, 1, 3)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2) ** 2, (1, 4, 1, 2)),
    "unfold_patches": (lambda x: F.unfold(x, 2), (1, 1, 3, 3)),
    "attention": (attention, (3, 2), (2, 6)),
    "fused_attention": (F.scaled_dot_product_attention, *[(1, 1, 3, 2)] * 3),
    "causal_attention": (causal_attention, *[(1, 1, 3, 2)] * 3),
    "gru_cell": (gru_cell, (2, 2), (2, 2), (2, 6), (2, 6)),
    "recurrent": (recurrent, (3, 2), (2, 2), (2, 2)),
    "mlp": (mlp, (3, 2), (3, 2), (3,), (1, 3)),
    "residual_block": (residual_block, (2, 3), (3, 3)),
    "dropout_in_evaluation": (lambda x: F.dropout(x.sin(), 0.5, training=False), (3,)),
}

LOSSES = {
    "mse": (lambda x, y: F.mse_loss(x, y), (2, 3), (2, 3)),
    "mse_each": (lambda x, y: F.mse_loss(x, y, reduction="none"), (3,), (3,)),
    "l1": (lambda x, y: F.l1_loss(x, y), (4,), (4,)),
    "huber": (lambda x, y: F.huber_loss(x, y, delta=0.7), (5,), (5,)),
    "smooth_l1": (lambda x, y: F.smooth_l1_loss(x, y), (5,), (5,)),
    "cross_entropy": (lambda x, i: F.cross_entropy(x, i), (3, 4), whole(4, 3)),
    "cross_entropy_smoothed": (lambda x, i: F.cross_entropy(x, i, label_smoothing=0.1), (3, 4), whole(4, 3)),
    "cross_entropy_soft": (lambda x, p: F.cross_entropy(x, p.softmax(-1)), (2, 3), (2, 3)),
    "nll": (lambda x, i: F.nll_loss(x.log_softmax(1), i, reduction="sum"), (3, 4), whole(4, 3)),
    "bce": (lambda x, y: F.binary_cross_entropy(x, y), unit(4), unit(4)),
    "bce_with_logits": (lambda x, y: F.binary_cross_entropy_with_logits(x, y), (4,), unit(4)),
    "kl_divergence": (lambda x, y: F.kl_div(x.log_softmax(0), y.softmax(0), reduction="sum"), (4,), (4,)),
    "hinge": (lambda x, c: (1 - x * (2 * c - 1)).relu().mean(), (6,), mask(6)),
    "soft_margin": (lambda x, c: F.soft_margin_loss(x, 2.0 * c - 1), (4,), mask(4)),
    "poisson_nll": (lambda x, y: F.poisson_nll_loss(x, y), (3,), positive(3)),
    "triplet": (lambda a, p, n: F.triplet_margin_loss(a, p, n, margin=5.0), (2, 3), (2, 3), (2, 3)),
    "ridge": (lambda w, x, y: ((x @ w - y) ** 2).mean() + 0.1 * (w * w).sum(), (3,), (4, 3), (4,)),
    "gaussian_log_density": (gaussian_log_density, (2, 3), (3,), positive(3)),
}

PROGRAMS = {
    "in_place_chain": (in_place_chain, (4,)),
    "in_place_view": (in_place_view, (3, 2)),
    "filled_by_hand": (filled_by_hand, (3,)),
    "buffer_made_without_gradient": (buffer_made_without_gradient, (3,)),
    "accumulated": (accumulated, (3,)),
    "iterated_map": (iterated_map, unit(3)),
    "newton_square_root": (newton_square_root, positive(3)),
    "runge_kutta": (runge_kutta, positive(2), positive(3)),
    "robot_arm": (robot_arm, (4,), positive(4)),
    "rosenbrock": (rosenbrock, (4,)),
    "pairwise_energy": (pairwise_energy, (3, 2)),
    "branch_on_a_shape": (checked, (3,)),
    "shared_subexpression": (shared_subexpression, (3,)),
    "sines_and_cosines": (composed(3), (2,)),
    "detached_factor": (detached_factor, (3,)),
    "without_gradient": (without_gradient, (3,)),
    "an_output_is_the_input": (lambda x: (x, x.sin()), (3,)),
    "the_identity": (lambda x: x, (2, 2)),
    "an_output_twice": (lambda x: (x.exp(), [x.exp(), x * x], x.exp()), (2,)),
    "same_output_object": (lambda x: (lambda y: (y, y))(x.sin()), (3,)),
    "constant_output": (lambda x: (torch.ones(2, dtype=x.dtype), x * 2), (3,)),
    "constant_alone": (lambda x: torch.full((2,), 3.0, dtype=x.dtype), (3,)),
    "dict_output": (through_out_of_a_dict, (3,)),
    "two_by_two": (lambda x, y: (x * y.sum(), {"y": y / x.sum()}), positive(2), positive(3)),
    "scalar_of_scalars": (lambda x, y: x * y.sin() + x / y, positive(), positive()),
    "empty": (lambda x: x.sin() * 2, (0,)),
    "empty_rows": (lambda x, w: x @ w, (2, 0), (0, 3)),
    "empty_sum": (lambda x, y: x.sum() + y, (2, 0), (2,)),
    "of_no_elements_and_some": (lambda x, y: torch.cat([x, y * y]), (0,), (3,)),
    "cast_there_and_back": (lambda x: x.to(torch.float64).double() * 2, (3,)),
    "arange_inside": (lambda x: x * torch.arange(3) + torch.linspace(0, 1, 3, dtype=x.dtype), (3,)),
    "polynomial_by_horner": (lambda x, c: ((c[0] * x + c[1]) * x + c[2]) * x, (3,), (3,)),
    "vandermonde": (lambda x: x[:, None] ** torch.arange(3), positive(3)),
    "softmax_of_softmax": (lambda x: x.softmax(-1).softmax(-1), (2, 3)),
    "log_of_sum_of_squares": (lambda x, y: (x.square().sum() + y.square().sum()).log(), (2,), (3,)),
    "rotation": (rotation, (), (2,)),
}

CASES = [case for table in (LAYERS, LOSSES, PROGRAMS) for case in cases(table)]
