"""Whatever a function reads may change between calls; the derivative is always that of the function as it is now."""

import copy
import random
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pullback
from pullback import transform
from support import reference

Point = namedtuple("Point", "x y")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions that were traced since the test began."""
    seen: list[Any] = []
    original = transform.capture

    def counted(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(f)
        return original(f, *args, **kwargs)

    monkeypatch.setattr(transform, "capture", counted)
    return seen


def check(gradient: pullback.Transform, *args: Any, **kwargs: Any) -> None:
    """A transform against `torch.func`, which traces nothing."""
    with reference():
        expected = torch.func.grad(gradient.f)(*args, **kwargs)
    torch.testing.assert_close(gradient(*args, **kwargs), expected, rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------- what a function closes over


def test_rebound_closure_tensor_of_the_same_type_needs_no_new_trace(captures: list[Any]) -> None:
    weight = normal(3)
    gradient = pullback.grad(lambda x: (x * weight).sin().sum())
    check(gradient, normal(3))
    for seed in range(1, 4):
        weight = normal(3, seed=seed)
        check(gradient, normal(3))
    assert len(captures) == 1


def test_rebound_closure_tensor_of_another_type(captures: list[Any]) -> None:
    weight = normal(3)
    gradient = pullback.grad(lambda x: (x * weight).sin().sum())
    others = [normal(1), normal(2, 3), normal(3).float(), torch.tensor(2), torch.tensor([1, 2, 3]), normal(3) > 0]
    for weight in (normal(3), *others, normal(3)):  # noqa: B007
        check(gradient, normal(3))
    assert len(captures) == 7


def test_closure_tensor_changed_in_place(captures: list[Any]) -> None:
    weight = normal(3)
    gradient = pullback.grad(lambda x: (x * weight).sin().sum())
    for _ in range(3):
        weight.mul_(-1.5)
        check(gradient, normal(3))
    assert len(captures) == 1


def test_closure_tensor_with_other_strides() -> None:
    weight = normal(3, 3)
    gradient = pullback.grad(lambda x: (x @ weight).view(-1).sin().sum())
    for weight in (normal(3, 3), normal(3, 3).T, normal(6, 6)[::2, ::2], normal(1, 3).expand(3, 3)):  # noqa: B007
        check(gradient, normal(2, 3))


@pytest.mark.parametrize(
    "values",
    [(2.0, 3.0, 3, True, -0.0, 0.0), (1, 2, True, 1), ("sum", "mean"), (None, 2.0), ((1, 2), (1, 3), (1,))],
    ids=["floats", "ints", "strings", "none", "tuples"],
)
def test_constants_in_a_closure(values: tuple[Any, ...]) -> None:
    constant: Any = None

    def f(x: Tensor) -> Tensor:
        if isinstance(constant, str):
            return getattr(x.sin(), constant)()
        if isinstance(constant, tuple):
            return x.sin().sum() * sum(constant)
        return (x * (5 if constant is None else constant)).sin().sum()

    gradient = pullback.grad(f)
    for constant in (*values, *values[::-1]):  # noqa: B007
        check(gradient, normal(3))


SCALE = 2.0
TABLE = {"power": 2}
OFFSET = torch.zeros(3, dtype=torch.float64)


def reads_globals(x: Tensor) -> Tensor:
    return helper((x * SCALE + OFFSET) ** TABLE["power"])


def helper(x: Tensor) -> Tensor:
    return x.sum()


def test_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = pullback.grad(reads_globals)
    module = __import__(__name__)
    check(gradient, normal(3))
    monkeypatch.setattr(module, "SCALE", 3.0)
    check(gradient, normal(3))
    monkeypatch.setitem(TABLE, "power", 3)
    check(gradient, normal(3))
    monkeypatch.setattr(module, "OFFSET", normal(3))
    check(gradient, normal(3))
    monkeypatch.setattr(module, "helper", lambda x: x.sin().sum())
    check(gradient, normal(3))
    monkeypatch.undo()
    check(gradient, normal(3))


def test_defaults_and_attributes() -> None:
    def f(x: Tensor, scale: float = 2.0, *, power: int = 2) -> Tensor:
        return (scale * x**power).sum() * owner.factor * owner.inner.shift[0]

    owner = SimpleNamespace(factor=1.0, inner=SimpleNamespace(shift=[1.0]))
    gradient = pullback.grad(f)
    check(gradient, normal(3))
    f.__defaults__ = (5.0,)
    check(gradient, normal(3))
    f.__kwdefaults__ = {"power": 3}
    check(gradient, normal(3))
    owner.factor = -1.0
    check(gradient, normal(3))
    owner.inner.shift[0] = 4.0
    check(gradient, normal(3))
    owner.inner = SimpleNamespace(shift=(0.5,))
    check(gradient, normal(3))


class Scaled:
    factor = 2.0

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def __call__(self, x: Tensor) -> Tensor:
        return (x * self.factor + self.shift).sin().sum()

    def method(self, x: Tensor) -> Tensor:
        return (x * self.shift).cos().sum()


def test_objects_and_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Scaled(1.0)
    called, bound = pullback.grad(owner), pullback.grad(owner.method)
    for change in (
        lambda: None,
        lambda: setattr(owner, "shift", 3.0),
        lambda: monkeypatch.setattr(Scaled, "factor", -1.0),
        lambda: setattr(owner, "factor", 7.0),
        lambda: monkeypatch.setattr(Scaled, "method", lambda self, x: (x * self.shift).exp().sum()),
    ):
        change()
        check(called, normal(3))
        check(pullback.grad(owner.method), normal(3))
        assert bound is not None


# ---------------------------------------------------------------- arguments


def test_types_of_arguments(captures: list[Any]) -> None:
    gradient = pullback.grad(lambda x: (x.reshape(-1) ** 2).sin().sum())
    for x in (normal(3), normal(4), normal(3).float(), normal(3, 1), normal(), normal(0), normal(3)):
        check(gradient, x)
    assert gradient(normal(3).bfloat16()).dtype == torch.bfloat16
    assert len(captures) == 7


def test_strides_of_arguments() -> None:
    def f(x: Tensor) -> Tensor:
        return (x.view(-1) * torch.arange(x.numel())).sin().sum() if x.is_contiguous() else x.cos().sum()

    gradient = pullback.grad(f)
    for x in (normal(3, 3), normal(3, 3).T, normal(6, 6)[::2, ::2], normal(1, 3).expand(3, 3), normal(3, 3)):
        check(gradient, x)


def test_structures_of_arguments(captures: list[Any]) -> None:
    def f(tree: Any) -> Tensor:
        leaves = torch.utils._pytree.tree_leaves(tree)
        return sum(((k + 1) * leaf.sin().sum() for k, leaf in enumerate(leaves)), torch.zeros(()))

    gradient = pullback.grad(f)
    a, b = normal(2), normal(3)
    trees: list[Any] = [(a, b), [a, b], Point(a, b), (a, (b,)), (b,), a]
    trees += [{"a": a, "b": b}, {"b": b, "a": a}, {"a": b, "b": a}, {"a": a, "c": b}]
    for tree in (*trees, *trees):
        check(gradient, tree)
    assert len(captures) == len(trees)


def test_numbers_and_keywords(captures: list[Any]) -> None:
    def f(x: Tensor, factor: Any = 1.0, *, mode: str = "sum", power: Any = 2) -> Tensor:
        return getattr((x * factor) ** power, mode)()

    gradient = pullback.grad(f)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}),
        ((2.0,), {}),
        ((2,), {}),
        ((True,), {}),
        ((), {"factor": 2.0}),
        ((2.0,), {"mode": "mean"}),
        ((2.0,), {"power": 3}),
        ((2.0,), {"power": 3.0}),
        ((torch.tensor(2.0),), {}),
        ((torch.tensor(3.0),), {}),
    ]
    for args, kwargs in (*calls, *calls):
        check(gradient, normal(3), *args, **kwargs)
    assert len(captures) == len(calls) - 1, "another value of a tensor is no other program"


def test_settings_of_pytorch() -> None:
    gradient = pullback.grad(lambda x: (x * torch.ones(3)).sum().sin() + torch.get_default_dtype().itemsize * x.sum())
    check(gradient, normal(3))
    torch.set_default_dtype(torch.float64)
    try:
        check(gradient, normal(3))
    finally:
        torch.set_default_dtype(torch.float32)
    check(gradient, normal(3))


# ---------------------------------------------------------------- lambdas and transforms


def test_a_lambda_made_anew_is_not_traced_again(captures: list[Any]) -> None:
    for step in range(20):
        target, x = normal(3, seed=step), normal(3)
        check(pullback.grad(lambda x: ((x - target) ** 2).sum()), x)  # noqa: B023
    assert len(captures) == 1


def test_a_lambda_with_another_scalar_is_another_function(captures: list[Any]) -> None:
    for step in (1.0, 2.0, 1.0, 3.0, 2.0):
        check(pullback.grad(lambda x: (x * step).sin().sum()), normal(3))  # noqa: B023
    assert len(captures) == 3


def test_transforms_of_different_functions_do_not_mix(captures: list[Any]) -> None:
    functions = [lambda x: x.sin().sum(), lambda x: x.cos().sum(), torch.sum, torch.mean, nn.Flatten(0).double()]
    for _ in range(2):
        for f in functions[:4]:
            check(pullback.grad(f), normal(3))
    assert len(captures) == 4


def test_kinds_of_derivative_do_not_mix() -> None:
    f, x = (lambda x: (x**3).sum()), normal(3)
    for _ in range(2):
        torch.testing.assert_close(pullback.grad(f)(x), 3 * x**2)
        torch.testing.assert_close(pullback.value_and_grad(f)(x), (f(x), 3 * x**2))
        torch.testing.assert_close(pullback.jacobian(f)(x), 3 * x**2)
        torch.testing.assert_close(pullback.hessian(f)(x), torch.diag(6 * x))
        torch.testing.assert_close(pullback.jvp(f, (x,), (x,))[1], (3 * x**3).sum())
        torch.testing.assert_close(pullback.grad(f, argnums=(0,))(x), (3 * x**2,))
        torch.testing.assert_close(pullback.grad(lambda x: (f(x), x), has_aux=True)(x), (3 * x**2, x))


def test_an_inner_function_that_changes() -> None:
    power = 2

    def inner(x: Tensor) -> Tensor:
        return (x**power).sum()

    outer = pullback.grad(lambda x: (pullback.grad(inner)(x) ** 2).sum())
    x = normal(3)
    for power in (2, 3, 4, 2):
        expected = 2 * power * x ** (power - 1) * power * (power - 1) * x ** (power - 2)
        torch.testing.assert_close(outer(x), expected)


def test_a_transform_whose_function_is_replaced() -> None:
    gradient = pullback.grad(lambda x: x.sin().sum())
    check(gradient, normal(3))
    gradient.f = lambda x: x.cos().sum()
    check(gradient, normal(3))


# ---------------------------------------------------------------- modules


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.0)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.drop(self.norm(self.inner(x))) * self.scale).tanh().sum()


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def check_module(gradient: pullback.Transform, module: nn.Module, x: Tensor) -> None:
    """As `check`; both sides start from the same buffers."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with reference():
        expected = torch.autograd.grad(gradient.f(leaf := x.clone().requires_grad_()), leaf)[0]
    after = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for name, buffer in module.named_buffers():
        buffer.copy_(before[name])
    torch.testing.assert_close(gradient(x), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(dict(module.named_buffers()), after)


def replace_weight(module: Net) -> None:
    module.inner.weight = nn.Parameter(normal(3, 3, seed=5))


def step_weights(module: Net) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.25)


def drop_bias(module: Net) -> None:
    module.inner.bias = None


def swap_part(module: Net) -> None:
    module.inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).double()


def swap_activation(module: Net) -> None:
    module.drop = nn.Sigmoid()


def set_scale(module: Net) -> None:
    module.scale = 3.0


def set_momentum(module: Net) -> None:
    module.norm.momentum = 0.5


def set_epsilon(module: Net) -> None:
    module.norm.eps = 0.1


def patch_forward(module: Net) -> None:
    module.inner.forward = lambda x: 2 * x


def add_hook(module: Net) -> None:
    module.inner.register_forward_hook(lambda module, args, output: output * 3)


CHANGES: list[Callable[[Net], Any]] = [
    nn.Module.eval,
    nn.Module.train,
    replace_weight,
    step_weights,
    drop_bias,
    swap_part,
    swap_activation,
    set_scale,
    set_momentum,
    set_epsilon,
    patch_forward,
    add_hook,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_module_that_changes(change: Callable[[Net], Any]) -> None:
    module, x = net(), normal(4, 3)
    gradient = pullback.grad(lambda x: module(x))
    check_module(gradient, module, x)
    change(module)
    check_module(gradient, module, x)
    check_module(gradient, module, x + 1)


def test_tied_parameters_that_are_untied() -> None:
    first, second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    gradient = pullback.grad(lambda x: model(x).sum())
    check(gradient, normal(2, 3))
    second.weight = nn.Parameter(normal(3, 3))
    check(gradient, normal(2, 3))
    second.weight = first.weight
    with torch.no_grad():
        first.weight.mul_(2)
    check(gradient, normal(2, 3))


# ---------------------------------------------------------------- buffers and random numbers


NORMS = {
    "batch norm 1d": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3), (2, 3, 2, 2)),
    "another momentum": (lambda: nn.BatchNorm1d(3, momentum=0.4), (4, 3)),
    "not affine": (lambda: nn.BatchNorm1d(3, affine=False), (4, 3)),
    "not tracking": (lambda: nn.BatchNorm1d(3, track_running_stats=False), (4, 3)),
    "instance norm": (lambda: nn.InstanceNorm1d(3, track_running_stats=True), (2, 3, 4)),
    "two of them": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3)), (4, 3)),
}


@pytest.mark.parametrize("name", NORMS)
def test_buffers_are_written_back_as_in_eager(name: str) -> None:
    make, shape = NORMS[name]
    ours, theirs = make().double(), make().double()
    step = pullback.value_and_grad(lambda x: ours(x).sin().sum())
    for seed in range(3):
        x = normal(*shape, seed=seed)
        value, _ = step(x)
        torch.testing.assert_close(value, theirs(x).sin().sum().detach())
        torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    ours.eval(), theirs.eval()
    torch.testing.assert_close(step(normal(*shape))[0], theirs(normal(*shape)).sin().sum().detach())
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_module_is_left_as_it_was_and_may_be_called_in_between(kind: Any, captures: list[Any]) -> None:
    module, x = kind(3, 4).double(), normal(5, 2, 3)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    gradient = pullback.grad(lambda p, x: torch.func.functional_call(module, p, (x,))[0].sin().sum())
    for _ in range(3):
        check(gradient, parameters, x)
        assert copy.deepcopy(module)(x)[0].shape == module(x)[0].shape
    assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
    assert len(captures) == 1


class Counting(nn.Module):
    """State that is changed by operators which bind the name anew to what they changed."""

    steps: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.register_buffer("average", torch.zeros(3, dtype=torch.float64))
        self.seen = {"sum": torch.zeros(2, dtype=torch.float64)}

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.average *= 0.9
        self.average += 0.1 * x.detach()
        self.seen["sum"] -= self.steps
        return (x * self.steps + self.average).square().sum() + self.seen["sum"].sum()


def test_state_that_counts_is_the_same_tensor_after_a_call(captures: list[Any]) -> None:
    ours, theirs = Counting(), Counting()
    state, gradient = [ours.steps, ours.average, ours.seen["sum"]], pullback.grad(ours)
    for k in range(3):
        x = normal(3, seed=k).requires_grad_()
        with reference():
            theirs(x).backward()
        torch.testing.assert_close(gradient(x.detach()), x.grad)
        kept = [ours.steps, ours.average, ours.seen["sum"]]
        assert all(a is b for a, b in zip(kept, state, strict=True))
        torch.testing.assert_close(kept, [theirs.steps, theirs.average, theirs.seen["sum"]])
    assert len(captures) == 1


def test_buffers_given_to_functional_call_are_written_back() -> None:
    module, x = nn.BatchNorm1d(3).double(), normal(4, 3)
    untouched = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, (parameters, buffers), (x,)).sin().sum()

    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    ours = {name: buffer.clone() for name, buffer in module.named_buffers()}
    theirs = {name: buffer.clone() for name, buffer in module.named_buffers()}
    step = pullback.value_and_grad(loss)
    for _ in range(3):
        value, gradient = step(parameters, ours, x)
        with reference():
            expected, expected_value = torch.func.grad_and_value(loss)(parameters, theirs, x)
        torch.testing.assert_close((value, gradient), (expected_value, expected))
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(dict(module.named_buffers()), untouched)


def test_planning_and_tracing_write_no_buffers() -> None:
    module = nn.BatchNorm1d(3).double()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    pullback.grad(lambda x: module(x).sum()).plan(normal(4, 3))
    pullback.trace(lambda x: module(x).sum(), normal(4, 3))
    torch.testing.assert_close(dict(module.named_buffers()), before)


def test_dropout_draws_one_mask_for_value_and_gradient() -> None:
    x = normal(50) + 5
    step = pullback.value_and_grad(lambda x: F.dropout(x, 0.4).sum())
    draws = set()
    for _ in range(5):
        value, gradient = step(x)
        torch.testing.assert_close(value, (x * gradient).sum())
        kept = gradient != 0
        torch.testing.assert_close(gradient[kept], torch.full_like(gradient[kept], 1 / 0.6))
        draws.add(tuple(kept.tolist()))
    assert len(draws) == 5, "every call draws anew"


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (F.dropout(x, 0.3) * x).sum(),
        lambda x: (F.dropout(x.sin(), 0.5) + F.dropout(x.cos(), 0.2)).sum(),
        lambda x: (torch.rand_like(x) * x).sum(),
        lambda x: (x + torch.randn(x.shape, dtype=x.dtype)).square().sum(),
        lambda x: (torch.bernoulli(x.sigmoid()) * x).sum(),
        lambda x: (x[torch.randperm(len(x))] * torch.arange(len(x))).sum(),
    ],
    ids=["dropout", "two dropouts", "rand_like", "randn", "bernoulli", "randperm"],
)
def test_random_numbers_are_those_of_eager(f: Callable[[Tensor], Tensor]) -> None:
    x = normal(20)
    step = pullback.value_and_grad(f)
    for seed in range(3):
        torch.manual_seed(seed)
        value, gradient = step(x)
        torch.manual_seed(seed)
        with reference():
            leaf = x.clone().requires_grad_()
            expected = f(leaf)
            expected.backward()
        torch.testing.assert_close((value, gradient), (expected.detach(), leaf.grad))


def test_a_dropout_module_in_training_and_evaluation() -> None:
    model, x = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5)).double(), normal(4, 3)
    step = pullback.value_and_grad(lambda x: model(x).sum())
    for seed, training in enumerate((True, False, True, False)):
        model.train(training)
        torch.manual_seed(seed)
        value, _ = step(x)
        torch.manual_seed(seed)
        torch.testing.assert_close(value, model(x).sum().detach())


def test_tracing_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    pullback.grad(lambda x: (F.dropout(x, 0.5) * torch.rand(3)).sum()).plan(torch.ones(3))
    assert torch.equal(torch.rand(2), expected)


# ---------------------------------------------------------------- everything at once


class World:
    """Everything that a function may read, each part of it changed at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.module = net().eval()
        self.weight = normal(3)
        self.scalar = 1.0
        self.mode = "sin"
        self.rows = 2
        self.dtype = torch.float64
        self.transposed = False
        self.in_dict = False
        self.factor: Any = 2.0
        self.gradient = pullback.grad(self.function())

    def function(self) -> Callable[..., Tensor]:
        return lambda p, factor: self.loss(p["x"] if isinstance(p, dict) else p, factor)

    def loss(self, x: Tensor, factor: Any) -> Tensor:
        y = getattr(x * self.weight, self.mode)() * self.scalar * factor
        return y.sum() + self.module(x.double()) + x.reshape(-1)[0]

    def change(self) -> str:
        """Change one thing, and say which."""
        change = self.random.choice([name for name in dir(self) if name.startswith("change_")])
        getattr(self, change)()
        return change

    def change_weight(self) -> None:
        shape = self.random.choice([(3,), (1,), (self.rows, 3), ()])
        self.weight = normal(*shape, seed=self.random.randrange(100))

    def change_weight_in_place(self) -> None:
        self.weight.add_(0.5)

    def change_scalar(self) -> None:
        self.scalar = self.random.choice([1.0, 1, 2.0, -0.5, True])

    def change_mode(self) -> None:
        self.mode = self.random.choice(["sin", "cos", "tanh"])

    def change_rows(self) -> None:
        self.rows = self.random.choice([1, 2, 3])
        self.weight = normal(3)

    def change_dtype(self) -> None:
        self.dtype = self.random.choice([torch.float32, torch.float64])

    def change_strides(self) -> None:
        self.transposed = not self.transposed

    def change_structure(self) -> None:
        self.in_dict = not self.in_dict

    def change_factor(self) -> None:
        self.factor = self.random.choice([2.0, 3.0, 3, torch.tensor(2.0), torch.tensor([1.0, 2.0, 3.0])])

    def change_module(self) -> None:
        if not isinstance(self.module.inner, nn.Linear) or self.random.random() < 0.3:
            self.module = net().eval()
        self.random.choice([replace_weight, step_weights, drop_bias, swap_part, set_scale, set_epsilon])(self.module)
        self.module.eval()

    def change_transform(self) -> None:
        self.gradient = pullback.grad(self.function())

    def arguments(self) -> tuple[Any, Any]:
        x = normal(3, self.rows).to(self.dtype).T if self.transposed else normal(self.rows, 3).to(self.dtype)
        return ({"x": x} if self.in_dict else x), self.factor


@pytest.mark.parametrize("seed", [0, 1])
def test_changes_of_everything_in_turn(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        change = world.change()
        p, factor = world.arguments()
        with reference():
            expected = torch.func.grad(world.gradient.f)(p, factor)
        rtol, atol = (1e-9, 1e-10) if world.dtype == torch.float64 else (1e-4, 1e-5)
        torch.testing.assert_close(world.gradient(p, factor), expected, rtol=rtol, atol=atol, msg=change)
