"""Derivatives sample by sample: right for networks of all kinds, and proved to keep samples apart, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import pullback
from support import reference

FLOAT = torch.float64
GENERATOR = torch.Generator().manual_seed(0)


def tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=FLOAT)


def one_by_one(f: Callable[..., Tensor], x: Tensor, *rest: Any, in_dim: int = 0, out_dim: int = 0) -> Tensor:
    """The definition: the Jacobian of each sample in a batch of its own."""

    def single(sample: Tensor) -> Tensor:
        return f(sample.unsqueeze(in_dim), *rest).squeeze(out_dim)

    with reference():
        return torch.stack([torch.func.jacrev(single)(sample) for sample in x.unbind(in_dim)])


def network(module: nn.Module) -> Callable[[Tensor], Tensor]:
    module = module.to(FLOAT)
    state = {name: p.detach() for name, p in (*module.named_parameters(), *module.named_buffers())}

    def f(x: Tensor) -> Tensor:
        result = functional_call(module, state, (x,))
        return result[0] if isinstance(result, tuple) else result

    return f


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def resampling() -> nn.Module:
    layers = nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2)
    return nn.Sequential(*layers, nn.ReflectionPad2d(1), nn.AvgPool2d(2)).eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU()), (3,), 0),
    "softmax": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.LayerNorm(4)), (3,), 0),
    "convolution": (convolutional, (2, 6, 6), 0),
    "resampling": (resampling, (2, 4, 4), 0),
    "group and instance norm": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)), (4, 2, 3), 0),
    "recurrent, time first": (lambda: nn.LSTM(3, 2), (4, 3), 1),
    "recurrent": (lambda: nn.GRU(3, 2, batch_first=True), (4, 3), 0),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0, batch_first=True), (3, 4), 0),
    "attention, time first": (lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0), (3, 4), 1),
}


@pytest.mark.parametrize("samples", [1, 3, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_sample_by_sample(name: str, samples: int) -> None:
    """Sizes play no part: with 3 or 4 samples the batch axis is as long as one of the others."""
    make, shape, axis = NETWORKS[name]
    torch.manual_seed(0)
    f = network(make())
    x = tensor(*shape[:axis], samples, *shape[axis:])
    found = pullback.batch_jacobian(f, in_dims=axis, out_dims=axis)(x)
    torch.testing.assert_close(found, one_by_one(f, x, in_dim=axis, out_dim=axis))


@pytest.mark.parametrize("name", ["dense", "softmax", "convolution", "recurrent, time first", "attention"])
def test_hessians_sample_by_sample(name: str) -> None:
    make, shape, axis = NETWORKS[name]
    torch.manual_seed(0)
    inner = network(make())

    def f(x: Tensor) -> Tensor:
        return inner(x).pow(2).movedim(axis, 0).flatten(1).sum(1)

    x = tensor(*shape[:axis], 3, *shape[axis:])
    found = pullback.batch_hessian(f, in_dims=axis)(x)
    singles = [pullback.hessian(lambda s: f(s.unsqueeze(axis))[0])(sample) for sample in x.unbind(axis)]
    torch.testing.assert_close(found, torch.stack(singles))


@pytest.mark.parametrize("name", ["dense", "convolution", "resampling", "attention"])
def test_the_cost_grows_with_the_number_of_samples_and_not_with_its_square(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    transform = pullback.batch_jacobian(network(make()))
    few, many = (transform.plan(tensor(samples, *shape)).multiplications for samples in (5, 20))
    assert many <= 6 * few  # the square would be 16 times as much; orders may differ


@pytest.mark.parametrize("order", ["forward", "reverse", "auto"])
def test_every_order_keeps_samples_apart(order: str) -> None:
    x, w = tensor(6, 3), tensor(3, 4)

    def f(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w).tanh().exp()

    transform = pullback.batch_jacobian(f, order=order)
    torch.testing.assert_close(transform(x, w), one_by_one(f, x, w))
    assert transform.plan(x, w).multiplications <= 6 * 3 * 4 * 3


def test_it_costs_no_more_than_each_sample_by_itself() -> None:
    """The Jacobian of one sample, mapped over the batch, is what a user would write instead."""
    x, w, v = tensor(7, 3), tensor(3, 6), tensor(6, 2)

    def f(x: Tensor) -> Tensor:
        return ((x @ w).tanh() @ v).sigmoid()

    for order in ("forward", "reverse"):
        batch = pullback.batch_jacobian(f, order=order).plan(x).multiplications
        assert batch <= 7 * pullback.jacobian(f, order=order).plan(x[0]).multiplications
    mapped = torch.vmap(pullback.jacobian(f))(x)
    torch.testing.assert_close(pullback.batch_jacobian(f)(x), mapped)


# ---------------------------------------------------------------- arguments and results


def test_two_axes_that_could_both_be_the_batch() -> None:
    x, w = tensor(3, 3), tensor(3, 3)
    rows = pullback.batch_jacobian(lambda x: (x @ w).sin())(x)
    torch.testing.assert_close(rows, one_by_one(lambda x: (x @ w).sin(), x))
    columns = pullback.batch_jacobian(lambda x: (w @ x).sin(), in_dims=1, out_dims=-1)(x)
    torch.testing.assert_close(columns, one_by_one(lambda x: (w @ x).sin(), x, in_dim=1, out_dim=1))
    for wrong in ({"in_dims": 0}, {"in_dims": 1, "out_dims": 0}):
        with pytest.raises(pullback.BatchError, match=r"mixes samples|in their places"):
            pullback.batch_jacobian(lambda x: (w @ x).sin(), **wrong)(x)


def test_several_arguments_outputs_and_axes() -> None:
    x, y = tensor(4, 3), {"a": tensor(3, 4), "b": tensor(2, 4)}

    def f(x: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"p": x * y["a"].T, "q": (y["b"].sum(0) * x.sum(1)).unsqueeze(0)}

    found = pullback.batch_jacobian(f, argnums=(0, 1), in_dims=(0, 1), out_dims=(0, 1))(x, y)
    assert found["p"][0].shape == (4, 3, 3)
    assert found["p"][1]["a"].shape == (4, 3, 3)
    assert found["q"][1]["b"].shape == (4, 1, 2)
    torch.testing.assert_close(found["p"][0], torch.diag_embed(y["a"].T))
    torch.testing.assert_close(found["q"][1]["b"], x.sum(1)[:, None, None].expand(4, 1, 2))
    torch.testing.assert_close(found["p"][1]["b"], torch.zeros(4, 3, 2, dtype=FLOAT))


def test_other_arguments_are_the_functions_own_affair() -> None:
    x, w = tensor(4, 3), tensor(4, 3)
    found = pullback.batch_jacobian(lambda x, w: x * w + w.mean(0))(x, w)
    torch.testing.assert_close(found, torch.diag_embed(w))


def test_the_input_itself_and_a_constant() -> None:
    x = tensor(2, 3)
    torch.testing.assert_close(pullback.batch_jacobian(lambda x: x)(x), torch.eye(3, dtype=FLOAT).expand(2, 3, 3))
    zero = pullback.batch_jacobian(lambda x: torch.ones(2, 4, dtype=FLOAT))(x)
    assert torch.equal(zero, torch.zeros(2, 4, 3, dtype=FLOAT))


def test_merged_and_split_axes_are_followed_by_their_entries() -> None:
    x = tensor(3, 4, 2)

    def f(x: Tensor) -> Tensor:
        halves = torch.cat([x.reshape(-1, 2)[:6].sin(), x.reshape(-1, 2)[6:].cos()])
        return halves.reshape(6, 4).exp().reshape(3, 8)

    def each(sample: Tensor, k: int) -> Tensor:
        rows = [sample[j].sin() if 4 * k + j < 6 else sample[j].cos() for j in range(4)]
        return torch.stack(rows).exp().reshape(8)

    with reference():
        expected = torch.stack([torch.func.jacrev(lambda s, k=k: each(s, k))(x[k]) for k in range(3)])
    torch.testing.assert_close(pullback.batch_jacobian(f)(x), expected)


def test_it_nests_and_takes_part_in_other_transforms() -> None:
    x, w = tensor(4, 3), tensor(3, 2)

    def f(x: Tensor) -> Tensor:
        return (x @ w).tanh()

    twice = pullback.batch_jacobian(pullback.batch_jacobian(f))(x)
    singles = [pullback.jacobian(pullback.jacobian(f))(sample) for sample in x]
    torch.testing.assert_close(twice, torch.stack(singles))
    penalty = pullback.grad(lambda x: pullback.batch_jacobian(f)(x).pow(2).sum())(x)
    expected = pullback.grad(lambda x: sum(pullback.jacobian(f)(x[k]).pow(2).sum() for k in range(4)))(x)
    torch.testing.assert_close(penalty, expected)


# ---------------------------------------------------------------- refusals

MIXING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax over the batch": (lambda x: x.softmax(0), r"aten\._softmax"),
    "normalised by the batch": (lambda x: nn.functional.batch_norm(x, None, None, training=True), "batch_norm"),
    "centred": (lambda x: x - x.mean(0), r"aten\.mean"),
    "kernel matrix": (lambda x: x @ x.T, r"aten\.mm"),
    "chosen by data": (lambda x: x[torch.tensor([0, 1, 2, 2])], r"aten\.index"),
    "cumulative": (lambda x: x.cumsum(0), "cumsum"),
    "shifted": (lambda x: x + x.roll(1, 0), r"aten\.add"),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_samples_is_refused_with_the_operator_and_its_line(name: str) -> None:
    f, operator = MIXING[name]
    for transform in (pullback.batch_jacobian(f), pullback.batch_hessian(lambda x: f(x).sum(1))):
        with pytest.raises(pullback.BatchError, match=operator) as raised:
            transform(tensor(4, 3))
        assert "test_batches.py" in str(raised.value)
        assert "use jacobian" in str(raised.value)


@pytest.mark.parametrize(
    "f",
    [lambda x: x.flip(0), lambda x: x.roll(1, 0), lambda x: torch.cat([x[1:], x[:1]]), lambda x: x[:1].expand(4, 3)],
)
def test_samples_that_change_places_are_refused(f: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(pullback.BatchError, match=r"in their places|mixes"):
        pullback.batch_jacobian(f)(tensor(4, 3))


def test_there_and_back_again_is_no_mixing() -> None:
    x = tensor(4, 3)
    found = pullback.batch_jacobian(lambda x: x.flip(0).sin().flip(0))(x)
    torch.testing.assert_close(found, torch.diag_embed(x.cos()))


def test_wrong_axes_are_refused() -> None:
    x = tensor(4, 3)
    with pytest.raises(pullback.ShapeError, match=r"no axis 2.*in_dims"):
        pullback.batch_jacobian(torch.sin, in_dims=2)(x)
    with pytest.raises(pullback.ShapeError, match=r"no axis 1.*out_dims"):
        pullback.batch_jacobian(lambda x: x.sum(1), out_dims=1)(x)
    with pytest.raises(pullback.ShapeError, match=r"each of the 4 samples.*out_dims"):
        pullback.batch_jacobian(torch.sin, out_dims=1)(x)
    with pytest.raises(pullback.ShapeError, match=r"same number of samples.*4 along axis 0.*5 along axis 0"):
        pullback.batch_jacobian(lambda x, y: x.sum() * y, argnums=(0, 1))(x, tensor(5))
    with pytest.raises(pullback.ArgumentError, match=r"in_dims=\(0, 1\) has 2 axes"):
        pullback.batch_jacobian(torch.sin, in_dims=(0, 1))(x)
    with pytest.raises(pullback.ArgumentError, match=r"in_dims='0'"):
        pullback.batch_jacobian(torch.sin, in_dims="0")  # type: ignore[arg-type]


ROWS, COLUMNS = torch.tril_indices(3, 3)


def triangle(x: Tensor) -> Tensor:
    """Rows of numbers as triangular matrices."""
    matrices = x.new_zeros(len(x), 3, 3)
    matrices[:, ROWS, COLUMNS] = x
    return matrices


AFTERWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "a row": lambda m: m[:, 0],
    "entries": lambda m: m[:, [0, 1, 2], [1, 0, 2]],
    "a diagonal": lambda m: m.diagonal(dim1=1, dim2=2),
    "a product": lambda m: (m @ m.mT).reshape(len(m), 9),
    "a view": lambda m: m.reshape(-1, 9)[:, ::2],
}


@pytest.mark.parametrize("samples", [1, 3, 6])
@pytest.mark.parametrize("name", AFTERWARDS)
def test_what_is_read_of_entries_that_were_written(name: str, samples: int) -> None:
    def f(x: Tensor) -> Tensor:
        return AFTERWARDS[name](triangle(x)).pow(3)

    x = tensor(samples, 6)
    torch.testing.assert_close(pullback.batch_jacobian(f)(x), one_by_one(f, x))


@pytest.mark.parametrize("name", ["along samples", "by data", "transposed"])
def test_entries_that_were_written_into_other_samples_are_found(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        matrices = triangle(x)
        if name == "along samples":
            return matrices[[1, 0, 2]][:, 0]
        if name == "by data":
            return matrices[torch.arange(3).flip(0), 0]
        return matrices.transpose(0, 1)[:, 0]

    with pytest.raises(pullback.BatchError):
        pullback.batch_jacobian(f)(tensor(3, 6))
