"""What the traced Python code read is guarded: after a change the new answer, after its undoing the old one.

Each world is a function, a change of what it reads, and the undoing.  The oracle is `torch.func`, which traces nothing.
"""

import array
import collections
import contextvars
import dataclasses
import enum
import functools
import logging
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

import pullback
from pullback import CaptureError, transform
from support import reference

X = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
SCALE, LIST, WORD = 2.0, [1.0, [2.0]], "sin"
CACHED_SCALE = 2.0  # changed only together with the cache of what reads it


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


@dataclass
class World:
    """A function, a change of what it reads, and the undoing of it."""

    f: Callable[[Tensor], Tensor]
    change: Callable[[], Any]
    undo: Callable[[], Any]


def scaled(read: Callable[[], Any]) -> Callable[[Tensor], Tensor]:
    def f(x: Tensor) -> Tensor:
        return (x * read()).sin().sum()

    return f


def attribute(owner: Any, name: str, new: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The two functions that set an attribute to a new value and to the old one."""
    missing = object()
    old = owner.__dict__.get(name, missing)

    def undo() -> None:
        delattr(owner, name) if old is missing else setattr(owner, name, old)

    return lambda: setattr(owner, name, new), undo


def values(owner: Any, name: str, new: Any, old: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same for an owner without a dictionary."""
    return lambda: setattr(owner, name, new), lambda: setattr(owner, name, old)


def item(container: Any, key: Any, new: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    old = container[key]
    return lambda: container.__setitem__(key, new), lambda: container.__setitem__(key, old)


# ---------------------------------------------------------------- worlds


def a_global_number() -> World:
    return World(scaled(lambda: SCALE), *attribute(sys.modules[__name__], "SCALE", 3.0))


def a_global_read_by_a_callee() -> World:
    def callee() -> float:
        return SCALE

    def caller() -> float:
        return callee() + 1

    return World(scaled(lambda: caller()), *attribute(sys.modules[__name__], "SCALE", 4))


def a_global_list_changed_in_place() -> World:
    return World(scaled(lambda: LIST[1][0]), *item(LIST[1], 0, 7.0))


def a_global_string() -> World:
    return World(lambda x: getattr(x, WORD)().sum(), *attribute(sys.modules[__name__], "WORD", "cos"))


def a_global_by_name() -> World:
    return World(scaled(lambda: globals()["SCALE"]), *attribute(sys.modules[__name__], "SCALE", 5.0))


def a_global_in_evaluated_code() -> World:
    return World(scaled(lambda: eval("SCALE * 2")), *attribute(sys.modules[__name__], "SCALE", 5.0))


def a_builtin_that_is_hidden() -> World:
    return World(scaled(lambda: abs(-2.0)), *attribute(sys.modules[__name__], "abs", lambda value: 7.0))


def a_global_that_was_missing() -> World:
    def read() -> Any:
        try:
            return MISSING  # type: ignore[name-defined]
        except NameError:
            return 2.0

    return World(scaled(read), *attribute(sys.modules[__name__], "MISSING", 3.0))


def a_closure_without_a_value() -> World:
    if X is None:
        value: Any = 0.0

    def read() -> Any:
        try:
            return value
        except NameError:
            return 2.0

    def fill() -> None:
        nonlocal value
        value = 3.0

    def empty() -> None:
        nonlocal value
        del value

    return World(scaled(read), fill, empty)


def a_default() -> World:
    def f(x: Tensor, scale: Any = (2.0, [1.0])) -> Tensor:
        return (x * scale[1][0]).sin().sum()

    def set_default(value: Any) -> Callable[[], None]:
        return lambda: setattr(f, "__defaults__", (value,))

    return World(f, set_default((2.0, [3.0])), set_default((2.0, [1.0])))


def a_mutable_default() -> World:
    scales = [1.0]

    def f(x: Tensor, scale: Any = scales) -> Tensor:
        return (x * scale[0]).sin().sum()

    return World(f, *item(scales, 0, 4.0))


def a_keyword_default() -> World:
    def f(x: Tensor, *, scale: Any = None) -> Tensor:
        return x.sin().sum() if scale is None else (x * scale).sin().sum()

    def set_default(value: Any) -> Callable[[], None]:
        return lambda: setattr(f, "__kwdefaults__", {"scale": value})

    return World(f, set_default(3.0), set_default(None))


def a_default_of_an_inner_function() -> World:
    scales = [1.0]

    def f(x: Tensor) -> Tensor:
        def inner(y: Tensor, k: Any = scales) -> Tensor:
            return y * k[0]

        return inner(x).sin().sum()

    return World(f, *item(scales, 0, 4.0))


def the_order_of_a_dictionary() -> World:
    functions = {"a": torch.sin, "b": torch.exp}

    def f(x: Tensor) -> Tensor:
        for function in functions.values():
            x = function(x)
        return x.sum()

    def turn() -> None:
        functions.update({key: functions.pop(key) for key in [*functions][::-1]})

    return World(f, turn, turn)


def the_order_of_modules() -> World:
    model = nn.Sequential(nn.Sigmoid(), nn.Tanh())

    def turn() -> None:
        model._modules.update({key: model._modules.pop(key) for key in [*model._modules][::-1]})

    return World(lambda x: model(x * 3).sum(), turn, turn)


def a_set_of_functions() -> World:
    functions = {torch.sin}
    f = lambda x: sum(function(x) for function in functions).sum()  # noqa: E731
    return World(f, lambda: functions.add(torch.exp), lambda: functions.discard(torch.exp))


def an_entry_of_a_long_list_of_objects() -> World:
    objects = [types.SimpleNamespace(scale=1.0) for _ in range(150)]
    return World(scaled(lambda: sum(o.scale for o in objects)), *attribute(objects[120], "scale", 5.0))


def an_entry_of_a_long_list_of_numbers() -> World:
    numbers = list(range(500))
    return World(scaled(lambda: numbers[400]), *item(numbers, 400, 3))


def a_tensor_in_a_dictionary() -> World:
    weights = {"w": torch.ones(3, dtype=torch.float64), "k": 2.0}
    return World(scaled(lambda: weights["w"] * weights["k"]), *item(weights, "w", 3 * X))


class Base:
    scale: Any = 2.0

    def method(self) -> Any:
        return self.scale

    @property
    def twice(self) -> Any:
        return self.scale * 2

    @classmethod
    def of_class(cls) -> Any:
        return cls.scale

    @staticmethod
    def of_global() -> Any:
        return SCALE

    def with_factor(self, factor: float) -> Any:
        return self.scale * factor * SCALE

    half = functools.partialmethod(with_factor, 0.5)

    @functools.cached_property
    def cached(self) -> Any:
        return SCALE


class Derived(Base):
    pass


class Other:
    scale = 9.0

    def method(self) -> Any:
        return -self.scale


def a_class_attribute() -> World:
    owner = Derived()
    return World(scaled(owner.method), *attribute(Base, "scale", 3.0))


def a_class_attribute_that_hides_another() -> World:
    owner = Derived()
    return World(scaled(lambda: owner.scale), *attribute(Derived, "scale", 3.0))


def a_class_attribute_read_by_its_name() -> World:
    owner, name = Derived(), "sca"
    return World(scaled(lambda: getattr(owner, name + "le")), *attribute(Base, "scale", 3.0))


def a_method_chosen_by_its_name() -> World:
    owner, kind = Derived(), "global"
    return World(scaled(lambda: getattr(owner, f"of_{kind}")()), *attribute(sys.modules[__name__], "SCALE", 6.0))


def an_instance_attribute_that_hides_one() -> World:
    owner = Derived()
    return World(scaled(lambda: owner.twice), *attribute(owner, "scale", 3.0))


def a_class_method() -> World:
    return World(scaled(Derived.of_class), *attribute(Base, "scale", 3.0))


def a_static_method() -> World:
    return World(scaled(Derived.of_global), *attribute(sys.modules[__name__], "SCALE", 3.0))


def a_method_that_is_replaced() -> World:
    owner = Derived()
    return World(scaled(lambda: owner.method()), *attribute(Base, "method", lambda self: 5.0))


def a_partial_method() -> World:
    owner = Derived()
    return World(scaled(lambda: owner.half()), *attribute(sys.modules[__name__], "SCALE", 3.0))


def a_class_of_an_object() -> World:
    owner: Any = Derived()
    return World(scaled(lambda: owner.method()), *values(owner, "__class__", Other, Derived))


def the_bases_of_a_class() -> World:
    class First:
        scale = 1.0

    class Second:
        scale = 2.0

    class Child(First):
        pass

    owner = Child()

    def set_base(base: type) -> Callable[[], None]:
        return lambda: setattr(Child, "__bases__", (base,))

    return World(scaled(lambda: owner.scale), set_base(Second), set_base(First))


def a_metaclass() -> World:
    values = [2.0]

    class Meta(type):
        @property
        def scale(cls) -> float:
            return values[0]

    class Owner(metaclass=Meta):
        pass

    return World(scaled(lambda: Owner.scale), *item(values, 0, 3.0))


def a_dataclass() -> World:
    @dataclasses.dataclass
    class Settings:
        scale: float = 2.0
        parts: list[float] = dataclasses.field(default_factory=lambda: [1.0, 2.0])

    settings = Settings()
    return World(scaled(lambda: settings.scale * settings.parts[1]), *item(settings.parts, 1, 5.0))


def an_enum() -> World:
    class Kind(enum.Enum):
        ONE, TWO = 1.0, 2.0

    owner = types.SimpleNamespace(kind=Kind.ONE)
    return World(scaled(lambda: owner.kind.value), *attribute(owner, "kind", Kind.TWO))


def slots() -> World:
    class Slotted:
        __slots__ = ("scale",)

    owner = Slotted()
    owner.scale = 2.0
    return World(scaled(lambda: owner.scale), *values(owner, "scale", 3.0, 2.0))


def a_decorator() -> World:
    factors = [2.0]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(x: Tensor) -> Tensor:
            return function(x) * factors[0]

        return wrapped

    return World(decorate(lambda x: x.sin().sum()), *item(factors, 0, 3.0))


def a_partial() -> World:
    factors = [2.0]
    f = functools.partial(lambda factors, x: (x * factors[0]).sin().sum(), factors)
    return World(f, *item(factors, 0, 3.0))


@functools.cache
def cached_scale() -> float:
    return CACHED_SCALE


def a_cached_function() -> World:
    cached_scale.cache_clear()
    change, undo = attribute(sys.modules[__name__], "CACHED_SCALE", 3.0)
    clear = cached_scale.cache_clear
    return World(scaled(lambda: cached_scale()), lambda: (change(), clear()), lambda: (undo(), clear()))


def a_cached_property() -> World:
    owner = Derived()
    change, undo = attribute(sys.modules[__name__], "SCALE", 3.0)

    def forget() -> None:
        owner.__dict__.pop("cached", None)

    return World(scaled(lambda: owner.cached), lambda: (change(), forget()), lambda: (undo(), forget()))


def a_weak_reference() -> World:
    owner = Derived()
    kept = weakref.ref(owner)
    keep_alive = World(scaled(lambda: kept().scale), *attribute(owner, "scale", 3.0))  # type: ignore[union-attr]
    keep_alive.f.owner = owner  # type: ignore[attr-defined]
    return keep_alive


def a_context_variable() -> World:
    variable = contextvars.ContextVar("variable", default=2.0)
    return World(scaled(variable.get), lambda: variable.set(3.0), lambda: variable.set(2.0))


def a_thread_local() -> World:
    local = threading.local()
    local.scale = 2.0
    return World(scaled(lambda: local.scale), *values(local, "scale", 3.0, 2.0))


def a_chain_map() -> World:
    values = {"scale": 2.0}
    chain = collections.ChainMap(values)
    return World(scaled(lambda: chain["scale"]), *item(values, "scale", 3.0))


def a_user_dict() -> World:
    mapping = collections.UserDict(scale=2.0)
    return World(scaled(lambda: mapping["scale"]), *item(mapping, "scale", 3.0))


def a_deque() -> World:
    values = collections.deque([1.0, 2.0])
    return World(scaled(lambda: values[0]), lambda: values.rotate(), lambda: values.rotate(-1))


def a_byte_array() -> World:
    values = bytearray(b"ab")
    return World(scaled(lambda: values[0]), *item(values, 0, 3))


def an_array() -> World:
    values = array.array("d", [1.0, 2.0])
    return World(scaled(lambda: values[0]), *item(values, 0, 3.0))


def helper_module() -> types.ModuleType:
    module = types.ModuleType("helper_of_test_guards")
    module.__file__ = str(Path(__file__).parent / "helper_of_test_guards.py")
    module.SCALE = 2.0  # type: ignore[attr-defined]
    module.sub = types.ModuleType("helper_of_test_guards.sub")  # type: ignore[attr-defined]
    module.sub.__file__ = module.__file__
    module.sub.SCALE = 2.0
    return sys.modules.setdefault(module.__name__, module)


def a_helper_module() -> World:
    helper: Any = helper_module()
    return World(scaled(lambda: helper.SCALE), *attribute(helper, "SCALE", 3.0))


def a_submodule() -> World:
    helper: Any = helper_module()
    return World(scaled(lambda: helper.sub.SCALE), *attribute(helper.sub, "SCALE", 3.0))


def a_module_imported_inside() -> World:
    helper = helper_module()

    def read() -> Any:
        import helper_of_test_guards

        return helper_of_test_guards.SCALE

    return World(scaled(read), *attribute(helper, "SCALE", 3.0))


def a_name_imported_inside() -> World:
    helper = helper_module()

    def read() -> Any:
        from helper_of_test_guards import SCALE

        return SCALE

    return World(scaled(read), *attribute(helper, "SCALE", 3.0))


def the_training_flag() -> World:
    model = nn.Dropout(1.0)
    return World(lambda x: (model(x) + x.sin()).sum(), model.eval, model.train)


def a_training_flag_that_is_read() -> World:
    model = nn.Sequential(nn.Identity(), nn.Tanh())
    f = lambda x: (model(x) * (2.0 if model[0].training else 3.0)).sum()  # noqa: E731
    return World(f, model[0].eval, model[0].train)


def an_attribute_of_a_module() -> World:
    model = nn.ELU(alpha=1.0)
    return World(lambda x: model(-x).sum(), *attribute(model, "alpha", 2.0))


def a_hook_on_every_module() -> World:
    model, handles = nn.Tanh(), []

    def add() -> None:
        handles.append(nn_module.register_module_forward_hook(lambda module, args, output: output * 2))

    return World(lambda x: model(x).sum(), add, lambda: handles.pop().remove())


def a_parameter_that_is_frozen() -> World:
    model = nn.Linear(3, 1).double()
    f = lambda x: x.sin().sum() * sum(p.numel() for p in model.parameters() if p.requires_grad)  # noqa: E731
    return World(f, lambda: model.weight.requires_grad_(False), lambda: model.weight.requires_grad_(True))


def a_gradient_that_appears() -> World:
    weight = nn.Parameter(X.clone())
    f = lambda x: (x * (2.0 if weight.grad is None else 3.0)).sin().sum()  # noqa: E731
    return World(f, lambda: setattr(weight, "grad", X.clone()), lambda: setattr(weight, "grad", None))


def an_attribute_of_a_tensor() -> World:
    weight: Any = X.clone()
    weight.scale = 2.0
    return World(scaled(lambda: weight * weight.scale), *attribute(weight, "scale", 3.0))


def the_default_dtype() -> World:
    f = lambda x: (x * torch.ones(3)).sin().sum() * torch.get_default_dtype().itemsize  # noqa: E731
    return World(f, lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32))


def autocast() -> World:
    context = torch.autocast("cpu", dtype=torch.bfloat16)
    weight = torch.ones(3, 3)
    f = lambda x: (x.float() @ weight).sum() * (2.0 if torch.is_autocast_enabled("cpu") else 3.0)  # noqa: E731
    return World(f, context.__enter__, lambda: context.__exit__(None, None, None))


def inference_mode() -> World:
    f = lambda x: (x * 2.0).sin().sum()  # noqa: E731
    context: list[Any] = []

    def enter() -> None:
        context.append(torch.no_grad())
        context[-1].__enter__()

    return World(f, enter, lambda: context.pop().__exit__(None, None, None))


WORLDS: list[Callable[[], World]] = [
    a_global_number,
    a_global_read_by_a_callee,
    a_global_list_changed_in_place,
    a_global_string,
    a_global_by_name,
    a_global_in_evaluated_code,
    a_builtin_that_is_hidden,
    a_global_that_was_missing,
    a_closure_without_a_value,
    a_default,
    a_mutable_default,
    a_keyword_default,
    a_default_of_an_inner_function,
    the_order_of_a_dictionary,
    the_order_of_modules,
    a_set_of_functions,
    an_entry_of_a_long_list_of_objects,
    an_entry_of_a_long_list_of_numbers,
    a_tensor_in_a_dictionary,
    a_class_attribute,
    a_class_attribute_that_hides_another,
    a_class_attribute_read_by_its_name,
    a_method_chosen_by_its_name,
    an_instance_attribute_that_hides_one,
    a_class_method,
    a_static_method,
    a_method_that_is_replaced,
    a_partial_method,
    a_class_of_an_object,
    the_bases_of_a_class,
    a_metaclass,
    a_dataclass,
    an_enum,
    slots,
    a_decorator,
    a_partial,
    a_cached_function,
    a_cached_property,
    a_weak_reference,
    a_context_variable,
    a_thread_local,
    a_chain_map,
    a_user_dict,
    a_deque,
    a_byte_array,
    an_array,
    a_helper_module,
    a_submodule,
    a_module_imported_inside,
    a_name_imported_inside,
    the_training_flag,
    a_training_flag_that_is_read,
    an_attribute_of_a_module,
    a_hook_on_every_module,
    a_parameter_that_is_frozen,
    a_gradient_that_appears,
    an_attribute_of_a_tensor,
    the_default_dtype,
    autocast,
    inference_mode,
]


def check(gradient: pullback.Transform) -> Tensor:
    with reference():
        expected: Tensor = torch.func.grad(gradient.f)(X)
    found: Tensor = gradient(X)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    return expected


SETTLES = ("a_cached_property",)  # the first run leaves its value behind, with which it is traced once more
CHANGES_NOTHING = ("inference_mode", "autocast")


@pytest.mark.parametrize("make", WORLDS, ids=lambda make: make.__name__)
def test_a_change_is_seen_and_so_is_its_undoing(make: Callable[[], World], captures: list[Any]) -> None:
    world = make()
    gradient = pullback.grad(world.f)
    before = check(gradient)
    check(gradient)
    try:
        world.change()
        after = check(gradient)
        check(gradient)
    finally:
        world.undo()
    torch.testing.assert_close(check(gradient), before)
    check(gradient)
    assert make.__name__ in CHANGES_NOTHING or not torch.equal(before, after), "this change tests nothing"
    assert len(captures) <= (6 if make.__name__ in SETTLES else 2), "traced again without a reason"


def test_what_the_function_does_not_read_is_no_reason_to_trace_again(captures: list[Any]) -> None:
    owner = Derived()
    used, unused = [2.0], [1.0]
    gradient = pullback.grad(lambda x: (x * used[0] * owner.scale).sin().sum())
    check(gradient)
    unused.append(2.0)
    Other.scale += 1
    globals()["SOMETHING_NEW"] = len(unused)
    torch.manual_seed(0)
    with torch.no_grad():
        check(gradient)
    nn.Linear(3, 3)(X.float()).sum()
    check(pullback.grad(gradient.f))
    assert len(captures) == 1


# ---------------------------------------------------------------- a function that changes what it reads


def test_a_counter_counts_as_in_eager(caplog: pytest.LogCaptureFixture) -> None:
    counter = types.SimpleNamespace(count=0)

    def f(x: Tensor) -> Tensor:
        counter.count += 1
        return (x * counter.count).sum()

    gradient = pullback.grad(f)
    with caplog.at_level(logging.INFO, logger="pullback"):
        for turn in range(1, 4):
            torch.testing.assert_close(gradient(X), torch.full_like(X, turn))
    assert counter.count == 3
    assert any("changes what it reads" in record.getMessage() for record in caplog.records)
    counter.count = 0
    torch.testing.assert_close(gradient(X), torch.full_like(X, 1))


def test_what_is_filled_once_is_traced_once_more(captures: list[Any]) -> None:
    table: dict[str, float] = {}

    def f(x: Tensor) -> Tensor:
        return (x * table.setdefault("scale", 2.0)).sum()

    gradient = pullback.grad(f)
    for _ in range(4):
        torch.testing.assert_close(gradient(X), torch.full_like(X, 2.0))
    assert len(captures) == 2


def keeps_in_a_list() -> tuple[Callable[[Tensor], Tensor], Callable[[], Any]]:
    kept: list[Any] = [1.0]
    return lambda x: (kept.append(x.sin()), x.sum())[1], lambda: kept == [1.0]


def keeps_in_a_nested_list() -> tuple[Callable[[Tensor], Tensor], Callable[[], Any]]:
    kept = types.SimpleNamespace(parts={"a": []})
    return lambda x: (kept.parts["a"].append(x.sin()), x.sum())[1], lambda: kept.parts == {"a": []}


def keeps_in_an_attribute() -> tuple[Callable[[Tensor], Tensor], Callable[[], Any]]:
    owner = types.SimpleNamespace(last=None)
    return lambda x: (setattr(owner, "last", x.sin()), x.sum())[1], lambda: owner.last is None


def keeps_in_a_dictionary() -> tuple[Callable[[Tensor], Tensor], Callable[[], Any]]:
    kept: dict[str, Any] = {}
    return lambda x: (kept.update(y=x.sin()), x.sum())[1], lambda: kept == {}


class Running(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.state * 0.5
        return (x * self.state).sum()


def keeps_in_a_buffer() -> tuple[Callable[[Tensor], Tensor], Callable[[], Any]]:
    module = Running()
    return module, lambda: torch.equal(module.state, torch.ones(3, dtype=torch.float64))


KEEPERS = [keeps_in_a_list, keeps_in_a_nested_list, keeps_in_an_attribute, keeps_in_a_dictionary, keeps_in_a_buffer]


@pytest.mark.parametrize("make", KEEPERS, ids=lambda make: make.__name__)
def test_a_tensor_of_the_trace_cannot_be_kept(make: Callable[[], Any]) -> None:
    f, is_as_before = make()
    for _ in range(2):
        with pytest.raises(CaptureError, match=r"puts a tensor that it computes into .*outlives the call.*Return"):
            pullback.grad(f)(X)
        assert is_as_before(), "the tensor of the trace is taken out again"


def test_a_tensor_kept_by_a_function_that_fails_is_taken_out_again() -> None:
    kept: list[Any] = []

    def f(x: Tensor) -> Tensor:
        kept.append(x.sin())
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        pullback.grad(f)(X)
    assert kept == []


def test_a_tensor_kept_in_a_variable_is_refused() -> None:
    last = None

    def f(x: Tensor) -> Tensor:
        nonlocal last
        last = x.sin()
        return x.sum() if last is None else last.sum()

    with pytest.raises(CaptureError, match=r"f \(.*test_guards.py:\d+\) puts a tensor that it computes into f:last"):
        pullback.grad(f)(X)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    assert torch.get_default_dtype() is torch.float32
    assert sys.getprofile() is None


@pytest.mark.parametrize("shape", [(3, 4), (1,)])
@pytest.mark.parametrize("other", [Tensor.to_mkldnn, Tensor.to_sparse])
def test_another_layout_is_another_call(shape: tuple[int, ...], other: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(shape, dtype=torch.float32)
    gradient = pullback.grad(lambda x: x.sum())
    gradient(x)
    with pytest.raises(pullback.ArgumentError, match="layout"):
        gradient(other(x))
