"""Pytrees in and out, argument numbers, auxiliary results, keywords, closures, modules: as `torch.func` has them."""

import functools
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

import pullback
from programs import Program, assert_equal, check, normal
from support import reference

Pair = namedtuple("Pair", "left right")
X, Y, W = normal(3), normal(3, seed=1), normal(3, 2)
INDEX = torch.tensor([2, 0, 1])
MASK = torch.tensor([True, False, True])
SCALE = torch.tensor(1.5, dtype=torch.float64)


def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.sin() * y + x * x * y.exp()).sum()


def vector(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.sin() * y + x * y.sum()


def of_dict(p: dict[str, Any]) -> torch.Tensor:
    return (p["a"] * p["nested"][0]).sum() + p["nested"][1].exp() * p["a"].sum()


def with_aux(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, Any]:
    return f(x, y), {"product": x * y, "index": INDEX + 1, "constant": (SCALE,)}


def vector_with_aux(x: torch.Tensor, y: torch.Tensor) -> tuple[Any, Any]:
    return [vector(x, y)], (x + y, [y])


DICT = {"a": X, "nested": [Y, SCALE]}

ARGUMENTS: dict[str, Program] = {
    "one": lambda D: D.grad(f)(X, Y),
    "second": lambda D: D.grad(f, 1)(X, Y),
    "last": lambda D: D.grad(f, -1)(X, Y),
    "tuple": lambda D: D.grad(f, (0, 1))(X, Y),
    "tuple_of_one": lambda D: D.grad(f, (1,))(X, Y),
    "tuple_reversed": lambda D: D.grad(f, (1, 0))(X, Y),
    "tuple_negative": lambda D: D.value_and_grad(f, (-1, 0))(X, Y),
    "jacobian_tuple": lambda D: D.jacobian(vector, (0, -1))(X, Y),
    "jacobian_tuple_of_one": lambda D: D.jacobian(vector, (1,))(X, Y),
    "hessian_tuple": lambda D: D.hessian(f, (0, 1))(X, Y),
    "hessian_last": lambda D: D.hessian(f, -1)(X, Y),
    "keyword": lambda D: D.grad(lambda x, *, y: f(x, y))(X, y=Y),
    "keywords_of_other_types": lambda D: D.grad(lambda x, power=2, mode="sum": getattr(x**power, mode)())(X, power=3),
    "default": lambda D: D.grad(lambda x, y=Y, k=2: f(x, y) * k)(X),
    "variadic": lambda D: D.grad(lambda *xs: sum(f(x, Y) for x in xs), (0, 2))(X, Y, X + 1),
    "numbers_and_none": lambda D: D.grad(lambda x, n, s, z: (x**n).sum() * s if z is None else x)(X, 3, 0.5, None),
    "integer_tensor": lambda D: D.jacobian(lambda x, i: x[i] * i)(X, INDEX),
    "bool_tensor": lambda D: D.jacobian(lambda x, m: torch.where(m, x * x, -x))(X, MASK),
    "unused": lambda D: D.grad(lambda x, y: x.sum(), (0, 1))(X, Y),
    "unused_in_a_dict": lambda D: D.grad(lambda p: (p["a"] ** 2).sum())({"a": X, "b": Y}),
    "same_tensor_twice": lambda D: D.grad(f, (0, 1))(X, X),
    "a_view_of_the_other": lambda D: D.grad(lambda a, b: (a * b).sum(), (0, 1))(W, W[:, :1]),
    "hvp_of_one": lambda D: D.hvp(lambda x: f(x, Y), (X,), (Y,)),
    "hvp_of_two": lambda D: D.hvp(f, (X, Y), (Y, X)),
    "hvp_of_a_dict": lambda D: D.hvp(of_dict, (DICT,), ({"a": Y, "nested": [X, SCALE]},)),
}

TREES: dict[str, Program] = {
    "dict": lambda D: D.grad(of_dict)(DICT),
    "dict_value": lambda D: D.value_and_grad(of_dict)(DICT),
    "dict_jacobian": lambda D: D.jacobian(lambda p: p["a"] * p["nested"][1])(DICT),
    "dict_hessian": lambda D: D.hessian(of_dict)(DICT),
    "list": lambda D: D.grad(lambda p: f(p[0], p[1]))([X, Y]),
    "tuple": lambda D: D.grad(lambda p: f(*p))((X, Y)),
    "namedtuple": lambda D: D.grad(lambda p: f(p.left, p.right))(Pair(X, Y)),
    "ordered_dict": lambda D: D.grad(lambda p: f(p["z"], p["a"]))(OrderedDict(z=X, a=Y)),
    "empty_containers": lambda D: D.grad(lambda p: p["x"].sum() * 2)({"x": X, "none": [], "nothing": {}, "tuple": ()}),
    "dict_of_lists_beside": lambda D: D.grad(lambda x, p: f(x, p["a"][0]))(X, {"a": [Y, 2, None, "text"]}),
    "output_dict": lambda D: D.jacobian(lambda x: {"s": x.sin(), "c": {"d": x.sum()}})(X),
    "output_list": lambda D: D.jacobian(lambda x: [x.sin(), (x.cos(), x.sum())])(X),
    "output_namedtuple": lambda D: D.jacobian(lambda x, y: Pair(x * y, y.sum()), (0, 1))(X, Y),
    "output_and_input_dict": lambda D: D.jacobian(lambda p: {"o": p["a"] * p["nested"][0], "s": p["a"].sum()})(DICT),
    "hessian_of_two_outputs": lambda D: D.hessian(lambda x: (x.sin(), (x**3).sum()))(X),
    "repeated_output": lambda D: D.jacobian(lambda x: (lambda y: [y, y, x])(x.exp()))(X),
    "constant_output": lambda D: D.jacobian(lambda x: {"a": torch.ones(2, dtype=x.dtype), "b": x * 1})(X),
    "vjp_of_a_dict": lambda D: _pulled(D.vjp(lambda p: {"o": p["a"] * p["nested"][0]}, DICT), {"o": Y}),
    "vjp_of_two": lambda D: _pulled(D.vjp(lambda x, y: (x * y, y.exp()), X, Y), (Y, X)),
    "vjp_of_a_repeated_output": lambda D: _pulled(D.vjp(lambda x: (lambda y: (y, y))(x.sin()), X), (X, Y)),
    "vjp_of_an_input": lambda D: _pulled(D.vjp(lambda x, y: (x, x * y), X, Y), (X, Y)),
    "vjp_of_a_namedtuple": lambda D: _pulled(D.vjp(lambda x: Pair(x * 2, x.sum()), X), Pair(Y, SCALE)),
    "jvp_of_a_dict": lambda D: D.jvp(lambda p: [p["a"] * p["nested"][0], p["nested"][1]], (DICT,), (DICT,)),
    "jvp_of_two": lambda D: D.jvp(lambda x, y: {"v": vector(x, y), "x": x}, (X, Y), (Y, X)),
    "jvp_of_a_constant": lambda D: D.jvp(lambda x: (x * 2, torch.ones(2, dtype=x.dtype)), (X,), (Y,)),
}

AUXILIARY: dict[str, Program] = {
    "grad": lambda D: D.grad(with_aux, has_aux=True)(X, Y),
    "grad_of_two": lambda D: D.grad(with_aux, (0, 1), has_aux=True)(X, Y),
    "value_and_grad": lambda D: D.value_and_grad(with_aux, 1, has_aux=True)(X, Y),
    "jacobian": lambda D: D.jacobian(vector_with_aux, (0, 1), has_aux=True)(X, Y),
    "jacobian_in_chunks": lambda D: D.jacobian(vector_with_aux, has_aux=True, chunk_size=2)(X, Y),
    "vjp": lambda D: _pulled(D.vjp(vector_with_aux, X, Y, has_aux=True), [Y]),
    "jvp": lambda D: D.jvp(vector_with_aux, (X, Y), (Y, X), has_aux=True),
    "output_as_aux": lambda D: D.grad(lambda x: (lambda y: (y.sum(), y))(x.exp()), has_aux=True)(X),
    "input_as_aux": lambda D: D.grad(lambda x: (x.sin().sum(), x), has_aux=True)(X),
    "nested": lambda D: D.grad(lambda x: D.grad(with_aux, has_aux=True)(x, Y)[0].sum())(X),
}


def _pulled(result: tuple[Any, ...], cotangent: Any) -> Any:
    """What vjp returned, with the pull back called."""
    output, pull_back, *aux = result
    return output, pull_back(cotangent), *aux


class Polynomial:
    """A function with state."""

    def __init__(self, scale: torch.Tensor) -> None:
        self.scale = scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (self.scale * x**3).sum()

    def method(self, x: torch.Tensor) -> torch.Tensor:
        return (self.scale * x.cos()).sum()

    @staticmethod
    def static(x: torch.Tensor) -> torch.Tensor:
        return x.exp().sum()


def decorated(f: Any) -> Any:
    @functools.wraps(f)
    def wrapper(*args: Any) -> Any:
        return f(*args) * SCALE

    return wrapper


CALLABLES: dict[str, Program] = {
    "closure": lambda D: D.grad(lambda x: (x * Y * SCALE).sin().sum())(X),
    "partial": lambda D: D.grad(functools.partial(f, y=Y))(X),
    "partial_of_the_first": lambda D: D.grad(functools.partial(f, X))(Y),
    "method": lambda D: D.grad(Polynomial(Y).method)(X),
    "static_method": lambda D: D.grad(Polynomial.static)(X),
    "object": lambda D: D.grad(Polynomial(Y))(X),
    "decorated": lambda D: D.grad(decorated(f), (0, 1))(X, Y),
    "builtin": lambda D: D.jacobian(torch.tanh)(X),
    "functional": lambda D: D.jacobian(nn.functional.softplus)(X),
    "module": lambda D: D.jacobian(LINEAR)(X),
    "module_in_a_closure": lambda D: D.grad(lambda x: NETWORK(x).square().sum())(X),
    "function_as_argument": lambda D: D.grad(lambda x, g: g(x).sum())(X, torch.sin),
    "nested_functions": lambda D: D.grad(lambda x: (lambda g: g(g(x)))(lambda y: y.sin() * Y).sum())(X),
    "generator_inside": lambda D: D.grad(lambda x: sum(v**k for k, v in enumerate(x)))(X),
}

torch.manual_seed(0)
LINEAR = nn.Linear(3, 2, dtype=torch.float64)
NETWORK = nn.Sequential(LINEAR, nn.Tanh(), nn.Linear(2, 3), nn.LayerNorm(3)).double()
CONVOLUTIONAL = nn.Sequential(
    nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
).double()
RECURRENT = {"lstm": nn.LSTM(2, 3).double(), "gru": nn.GRU(2, 3).double()}
ATTENDING = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).double()


def of_parameters(module: nn.Module, *inputs: torch.Tensor) -> Any:
    """A scalar function of a module's parameters, and the parameters."""

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs = functional_call(module, parameters, inputs)
        return (outputs[0] if isinstance(outputs, tuple) else outputs).square().mean()

    return loss, {name: p.detach() for name, p in module.named_parameters()}


def gradient_of(module: nn.Module, *inputs: torch.Tensor) -> Program:
    def program(D: Any) -> Any:
        loss, parameters = of_parameters(module, *inputs)
        return D.value_and_grad(loss)(parameters)

    return program


def products_of(module: nn.Module, *inputs: torch.Tensor) -> Program:
    def program(D: Any) -> Any:
        loss, parameters = of_parameters(module, *inputs)
        tangents = {name: torch.ones_like(p) for name, p in parameters.items()}
        return D.jvp(loss, (parameters,), (tangents,)), D.hvp(loss, (parameters,), (tangents,))

    return program


MODULES: dict[str, Program] = {
    "mlp": gradient_of(NETWORK, normal(4, 3)),
    "mlp_products": products_of(NETWORK, normal(4, 3)),
    "cnn": gradient_of(CONVOLUTIONAL, normal(2, 1, 4, 4)),
    "cnn_products": products_of(CONVOLUTIONAL, normal(2, 1, 4, 4)),
    "lstm": gradient_of(RECURRENT["lstm"], normal(3, 1, 2)),
    "gru": gradient_of(RECURRENT["gru"], normal(3, 1, 2)),
    "transformer": gradient_of(ATTENDING, normal(1, 3, 4)),
    "jacobian_in_parameters": lambda D: D.jacobian(lambda p: functional_call(LINEAR, p, (X,)))(LINEAR.state_dict()),
}

PROGRAMS = {
    f"{theme}-{name}": program
    for theme, table in {
        "arguments": ARGUMENTS,
        "trees": TREES,
        "auxiliary": AUXILIARY,
        "callables": CALLABLES,
        "modules": MODULES,
    }.items()
    for name, program in table.items()
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_program(program: Program) -> None:
    check(program)


def test_parameters_may_require_grad() -> None:
    loss, parameters = of_parameters(NETWORK, normal(4, 3))
    live = dict(NETWORK.named_parameters())
    expected = pullback.grad(loss)(parameters)
    with torch.no_grad():
        assert_equal(pullback.grad(loss)(live), expected)
    gradient = pullback.grad(loss)(live)
    assert all(g.grad_fn is not None for g in gradient.values())
    assert_equal({name: g.detach() for name, g in gradient.items()}, expected)


def test_a_rebound_closure_is_seen() -> None:
    scale = SCALE
    g = pullback.grad(lambda x: (x * scale).sum())
    assert_equal(g(X), torch.full_like(X, 1.5))
    scale = SCALE * 2
    assert_equal(g(X), torch.full_like(X, 3.0))


def test_auxiliary_results_may_be_anything() -> None:
    def f(x: torch.Tensor) -> Any:
        return x.sum(), {"number": 3, "text": "aux", "none": None, "tuple": (x.shape, True)}

    gradient, aux = pullback.grad(f, has_aux=True)(X)
    assert_equal(gradient, torch.ones_like(X))
    assert aux == {"number": 3, "text": "aux", "none": None, "tuple": (X.shape, True)}


def autograd_step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with reference():
        return list(torch.autograd.grad(model(x).pow(3).sum(), [*model.parameters()]))


def test_batch_norm_in_training_and_evaluation() -> None:
    """The gradient, and the running statistics after each call, which `torch.func` refuses to write."""
    ours, theirs = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    gradient = pullback.grad(lambda p, x: functional_call(ours, p, (x,)).pow(3).sum())
    for k, mode in enumerate((True, False, True, True)):
        ours.train(mode)
        theirs.train(mode)
        x = normal(4, 3, seed=k)
        assert_equal([*gradient(dict(ours.named_parameters()), x).values()], autograd_step(theirs, x))
        assert_equal(dict(ours.named_buffers()), dict(theirs.named_buffers()))
