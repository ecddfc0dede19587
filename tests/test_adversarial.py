"""Programs that were found to break the compiler, and their kin: shared memory, extreme values, equal expressions."""

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import pullback
from programs import assert_equal, normal
from pullback.emit.builtins import facts
from pullback.emit.reuse import SMALLEST
from pullback.rules import RULES
from pullback.rules.kinds import B, I, T
from pullback.torch_private import overload
from support import reference

SIDE = int(SMALLEST**0.5)
TYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


# ---------------------------------------------------------------- shared memory


def drawn(argument: Any) -> Any:
    if isinstance(argument, (tuple, list)):
        return [drawn(item) for item in argument]
    if isinstance(argument, T):
        low, high = argument.domain
        real = low + (high - low) * torch.rand(argument.shape)
        return torch.complex(real, torch.rand_like(real)) if argument.complex else real
    if isinstance(argument, I):
        return torch.randint(max(argument.bound, 1), argument.shape)
    if isinstance(argument, B):
        return torch.rand(argument.shape) < 0.5
    return TYPES.get(argument, argument) if isinstance(argument, str) and type(argument) is not str else argument


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)


# These take what no random tensor is: pivots, a definite matrix.  Their results are tensors of their own.
PARTICULAR = {f"aten.{op}.default" for op in ("lu_unpack", "linalg_lu_solve", "cholesky")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", [op for op in RULES if op not in PARTICULAR])
def test_what_shares_memory_is_known(op: str) -> None:
    for sample in RULES[op].samples:
        args, kwargs = drawn(sample.args), {name: drawn(a) for name, a in sample.kwargs.items()}
        with torch.no_grad():
            results = overload(op)(*args, **kwargs)
        operands = [t.untyped_storage().data_ptr() for t in tensors(args) if t.numel()]
        for result in tensors(results):
            if result.numel():
                shared = [p == result.untyped_storage().data_ptr() for p in operands]
                assert any(shared) == facts(op).aliases
                assert not any(shared[1:])


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_a_caller_cannot_write_into_a_constant_through_a_mapped_view(order: str) -> None:
    transform, x = pullback.jacobian(lambda x: x.reshape(3, 2), order=order), torch.rand(2, 3)
    expected = torch.eye(6).reshape(3, 2, 2, 3)
    transform(x).mul_(5)
    assert torch.equal(transform(x), expected)


def test_what_is_split_off_unsafely_is_not_overwritten() -> None:
    def loss(x: Tensor) -> Tensor:
        y = x.sin()
        first, second = torch.unsafe_chunk(y, 2)
        return (first * second).sum() + y.neg().exp().sum()

    x = normal(SIDE, SIDE)
    with reference():
        expected = torch.func.grad(loss)(x)
    torch.testing.assert_close(pullback.grad(loss)(x), expected)


def test_a_cotangent_may_be_written_into() -> None:
    for f in (lambda a, b: (a.sin(), b.detach() * 2), lambda a, b: (a, a + b), lambda a, b: (a.reshape(-1), b.sum())):
        a, b = normal(2, 3), normal(2, 3, seed=1)
        outputs, pull_back = pullback.vjp(f, a, b)
        seeds = tuple(map(torch.ones_like, outputs))
        first = [g.clone() for g in pull_back(seeds)]
        for g in pull_back(seeds):
            g.mul_(0).sub_(3)
        assert_equal(list(pull_back(seeds)), first)
        assert all(bool((s == 1).all()) for s in seeds)


def test_dropout_of_nothing_is_its_operand() -> None:
    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x / 2
        torch.dropout(functional.dropout(y, 0.5, training=False), 0.5, False).sin_()
        return y.square().sum(), y

    x = normal(3)
    (_, changed), gradient = pullback.value_and_grad(loss, has_aux=True)(x)
    torch.testing.assert_close(changed, (x / 2).sin())
    torch.testing.assert_close(gradient, (x / 2).sin() * (x / 2).cos())


# ---------------------------------------------------------------- equal expressions


@pytest.mark.parametrize("order", ["forward", "reverse", "auto"])
def test_one_payload_is_placed_into_tensors_of_different_sizes(order: str) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.leaky_relu(x)
        z = y.select_scatter(y[0] * 3, 0, 0)
        return z[::2], z

    x = normal(4)
    with reference():
        expected = torch.func.jacrev(f)(x)
    assert_equal(pullback.jacobian(f, order=order)(x), expected)


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_chunks_have_the_dtype_of_the_argument(order: str) -> None:
    x = normal(3, dtype=torch.float32)
    result = pullback.jacobian(lambda x: x.double().sin(), order=order, chunk_size=2)(x)
    assert_equal(result, x.cos().diag(), 1e-6, 1e-6)


# ---------------------------------------------------------------- extreme values

EXTREME = torch.tensor([0.0, -0.0, 1.0, -1.0, 100.0, 800.0, -800.0, 1e20, torch.inf, -torch.inf])
WITH_NAN = torch.tensor([1.0, torch.nan, 3.0, torch.nan, -2.0])
AT_NAN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "max": torch.max,
    "min": torch.min,
    "median": torch.median,
    "amax": torch.amax,
    "amin": torch.amin,
    "largest along an axis": lambda x: x.max(0).values,
    "infinite norm": lambda x: torch.linalg.vector_norm(x, torch.inf),
    "chosen": lambda x: torch.where(x > 2, x, x.sqrt()),
}


@pytest.mark.parametrize("name", ["elu", "selu", "celu", "softplus", "silu", "leaky_relu", "hardtanh", "logsigmoid"])
def test_activations_far_out(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        return getattr(functional, name)(x).sum()

    with reference():
        expected = torch.func.grad(f)(EXTREME)
    torch.testing.assert_close(pullback.grad(f)(EXTREME), expected, equal_nan=True)


@pytest.mark.parametrize("name", ["elu", "selu", "celu"])
def test_second_derivatives_of_exponential_units_are_finite(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        return getattr(functional, name)(x).sum()

    x = EXTREME[2:8]
    with reference():
        expected = torch.func.hessian(f)(x)
    torch.testing.assert_close(pullback.hessian(f)(x), expected)


@pytest.mark.parametrize("name", AT_NAN)
def test_nan_goes_where_autograd_lets_it_go(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        return AT_NAN[name](x).sum()

    with reference():
        expected = torch.func.grad(f)(WITH_NAN)
    torch.testing.assert_close(pullback.grad(f)(WITH_NAN), expected, equal_nan=True)


@pytest.mark.parametrize("point", [(0.0, 0.0), (0.0, -0.0), (1e-200, 1e-200), (0.0, -1.0)])
def test_the_angle_near_the_origin(point: tuple[float, float]) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return torch.atan2(x, y).sum()

    x, y = (torch.tensor([p], dtype=torch.float64) for p in point)
    with reference():
        expected = torch.func.grad(f, (0, 1))(x, y)
    assert_equal(pullback.grad(f, (0, 1))(x, y), expected)


def test_second_derivatives_at_removable_singularities_are_finite() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert pullback.hessian(lambda x: torch.sinc(x).sum())(zero).isfinite().all()
    assert pullback.hessian(lambda x: torch.atan2(x, x).sum())(zero).isfinite().all()


# ---------------------------------------------------------------- many callers


def test_functions_with_one_code_and_other_closures() -> None:
    def scaled(c: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: (x * c).sum()

    x = torch.rand(3)
    for c in (2, 3.0, torch.tensor(4.0), True, 2, torch.tensor(5.0), torch.tensor([1.0, 2.0, 3.0])):
        assert torch.equal(pullback.grad(scaled(c))(x), torch.ones(3) * c)


def test_threads_share_transforms_and_make_new_ones() -> None:
    shared = pullback.grad(lambda x, c: (x.sin() * c).sum())
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for k in range(30):
                x, c = normal(1 + k % 5, seed=number), float(1 + (k + number) % 7)
                torch.testing.assert_close(shared(x, c), x.cos() * c)
                torch.testing.assert_close(pullback.grad(lambda x, c=c: (x * x * c).sum())(x), 2 * x * c)
        except BaseException as error:  # a thread's failure has to reach the test
            failures.append(error)

    threads = [Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---------------------------------------------------------------- random numbers


@pytest.mark.parametrize("kwargs", [{}, {"batch_first": True, "bidirectional": True}])
@pytest.mark.parametrize("network", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_networks_drop_what_they_drop_in_eager(network: Any, kwargs: dict[str, bool]) -> None:
    torch.manual_seed(0)
    module, x = network(4, 5, 3, dropout=0.5, **kwargs).double(), normal(3, 2, 4)
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        output, final = torch.func.functional_call(module, weights, (x,))
        finals = final if isinstance(final, tuple) else (final,)
        return output.square().sum() + sum(f.sin().sum() for f in finals)

    torch.manual_seed(1)
    gradient, value = pullback.value_and_grad(loss)(weights)[::-1]
    torch.manual_seed(1)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    with reference():
        expected = loss(leaves)
        gradients = torch.autograd.grad(expected, list(leaves.values()))
    torch.testing.assert_close(value, expected.detach())
    assert_equal(list(gradient.values()), list(gradients))


def test_a_tangent_that_is_left_out_is_left_out_even_if_it_is_not_finite() -> None:
    """A mask is a choice, and no factor: 0 · ∞ is not a number."""
    x, chosen = torch.tensor([0.0, 1.0]), torch.tensor([False, True])

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.where(chosen, x.log(), 0.0)

    assert pullback.jvp(f, (x,), (torch.ones(2),))[1].tolist() == [0.0, 1.0]


def test_a_mask_that_no_factor_covers_is_a_choice_as_well() -> None:
    """The mean over masked entries alone is 0 / 0, and what it depends on is chosen away afterwards."""
    x, mask = torch.arange(12.0).reshape(3, 2, 1, 2), torch.tensor([[[[True, True]], [[False, True]]]])

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, torch.masked.mean(x, dim=0, mask=mask, keepdim=True), 0.0).sum()

    assert torch.allclose(pullback.grad(f)(x), mask.expand(3, 2, 1, 2) / 3)
    assert torch.allclose(pullback.jvp(f, (x,), (torch.ones_like(x),))[1], torch.tensor(3.0))


def test_the_tangent_of_a_gather_from_a_flattened_tensor_stays_a_tangent() -> None:
    x, index = torch.randn(2, 3, 4, 5), torch.randint(60, (2, 7))

    def f(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1).gather(1, index)

    tangent = torch.randn_like(x)
    assert torch.equal(pullback.jvp(f, (x,), (tangent,))[1], f(tangent))
