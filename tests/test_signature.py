"""Signatures: what makes a program fit a call, what makes it miss, and what finding it costs.

The programs here are stand-ins; only whether one is found, and with which tensors, is tested.
"""

import functools
import gc
import logging
import math
import threading
import timeit
import types
import weakref
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest
import torch
from torch import nn

from pullback.errors import ArgumentError, CaptureError
from pullback.signature import Cache, lift, make_entry

Point = namedtuple("Point", "x y")
SCALE = 2.0
WEIGHT = torch.ones(3)


class Call:
    """A call that a program has been compiled for."""

    def __init__(self, f, *args, lifted=(), **kwargs):
        self.f = f
        self.entry = make_entry(f, args, kwargs, lifted, [False] * len(lifted), "program")

    def __call__(self, *args, **kwargs):
        return self.entry.lookup(self.f, args, kwargs)

    def hits(self, *args, **kwargs):
        found = self(*args, **kwargs) is not None
        assert found == (self.entry.explain(self.f, args, kwargs) is None)
        return found


def identical(found, expected):
    return (
        found is not None and len(found) == len(expected) and all(a is b for a, b in zip(found, expected, strict=True))
    )


def add(x, *rest, **named):
    return x


X = torch.zeros(4, 3)


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(4, 2),
        torch.zeros(12),
        X.double(),
        X.to("meta"),
        torch.zeros(3, 4).T,
        torch.zeros(4, 6)[:, ::2],
        3.0,
        None,
        [X],
        X.to_sparse(),
    ],
)
def test_another_kind_of_tensor_misses(other):
    call = Call(add, X)
    assert call.hits(torch.ones(4, 3))
    assert not call.hits(other)


def test_tensors_come_in_the_order_of_the_tree():
    a, b, c, d = (torch.zeros(k) for k in range(1, 5))
    call = Call(add, {"p": a, "q": [b, 3, None]}, (c,), z=d)
    fresh = [torch.ones(k) for k in range(1, 5)]
    found = call({"p": fresh[0], "q": [fresh[1], 3, None]}, (fresh[2],), z=fresh[3])
    assert identical(found, fresh)


def test_a_parameter_may_stand_for_a_tensor():
    assert Call(add, torch.zeros(2)).hits(nn.Parameter(torch.zeros(2)))
    assert Call(add, nn.Parameter(torch.zeros(2))).hits(torch.zeros(2))


def test_strides_are_compared_where_they_matter():
    assert Call(add, X.T).hits(torch.ones(4, 3).T)
    assert not Call(add, X.T).hits(torch.ones(3, 4))
    assert Call(add, torch.zeros(1, 3)).hits(torch.zeros(3, 1).T)


def test_a_tensor_changed_in_place_misses():
    x = torch.zeros(4, 3)
    call = Call(add, x)
    x.resize_(2, 3)
    assert not call.hits(x)


@pytest.mark.parametrize(
    ("old", "same", "different"),
    [
        ((X, X), (X, X), (X, X, X)),
        ((X, X), (X, X), [X, X]),
        ([X], [X], []),
        ({"a": X, "b": X}, {"a": X, "b": X}, {"b": X, "a": X}),
        ({"a": X}, {"a": X}, {"c": X}),
        ({"a": X}, {"a": X}, {"a": X, "b": X}),
        ({1: X}, {1: X}, {True: X}),
        ({"a": X}, {"a": X}, OrderedDict(a=X)),
        (OrderedDict(a=X), OrderedDict(a=X), OrderedDict(b=X)),
        (Point(X, 1), Point(X, 1), (X, 1)),
        ({"a": {"b": (X, [X])}}, {"a": {"b": (X, [X])}}, {"a": {"b": (X, [X, X])}}),
        ((), (), []),
        ({}, {}, {"a": X}),
        (X.max(0), X.max(0), X.max(1)),
    ],
)
def test_structures(old, same, different):
    call = Call(add, old)
    assert call.hits(same)
    assert not call.hits(different)


@pytest.mark.parametrize(
    ("old", "same", "different"),
    [
        (1, 1, True),
        (1, 1, 1.0),
        (0.0, 0.0, -0.0),
        (math.nan, float("nan"), 1.0),
        (1j, 1j, -1j),
        ("mean", "mean", "sum"),
        (None, None, 0),
        (True, True, False),
        (10**30, 10**30, 10**30 + 1),
        (torch.float32, torch.float32, torch.float64),
        (torch.device("cpu"), torch.device("cpu"), torch.device("meta")),
        (slice(1, 2), slice(1, 2), slice(1, 3)),
        (np.float64(1.5), np.float64(1.5), 1.5),
        (..., ..., None),
        (torch.Size([1]), torch.Size([1]), (1,)),
    ],
)
def test_constants_are_compared_by_type_and_value(old, same, different):
    call = Call(add, X, old, key=old)
    assert call.hits(X, same, key=same)
    assert not call.hits(X, different, key=same)
    assert not call.hits(X, same, key=different)


def test_numbers_and_names_of_arguments():
    call = Call(add, X, X, a=X)
    assert call.hits(X, X, a=X)
    assert not call.hits(X, a=X)
    assert not call.hits(X, X, b=X)
    assert not call.hits(X, X)
    assert not call.hits(X, X, a=X, b=X)


def test_arguments_that_cannot_be_compared_are_refused():
    def f(x, config):
        return x

    with pytest.raises(ArgumentError, match=r"config\.y.*object"):
        Call(f, X, Point(1, object()))


def test_a_function_argument_is_guarded_by_its_code():
    def make(scale):
        return lambda x: x * scale

    call = Call(add, X, make(2.0))
    assert call.hits(X, make(2.0))
    assert not call.hits(X, make(3.0))
    assert not call.hits(X, torch.relu)


# Settings ------------------------------------------------------------------------------------------------------------


def test_settings_of_torch():
    call = Call(add, X)
    with torch.no_grad():
        assert call.hits(X)
    with torch.inference_mode():
        assert not call.hits(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not call.hits(X)
        assert Call(add, X).hits(X)
    with torch.device("meta"):
        assert not call.hits(X)
    with torch.device("cpu"):
        assert call.hits(X)
    torch.set_default_dtype(torch.float64)
    try:
        assert not call.hits(X)
    finally:
        torch.set_default_dtype(torch.float32)
    assert call.hits(X)


def test_traces_and_transforms_have_entries_of_their_own():
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode().from_tensor(X)
    plain, traced = Call(add, X), Call(add, fake)
    assert not plain.entry.traced
    assert traced.entry.traced
    assert not plain.hits(fake)
    assert traced.hits(fake)
    assert not traced.hits(X)
    seen = []
    torch.vmap(lambda x: seen.append((Call(add, x).entry.traced, plain.hits(x))) or x)(torch.zeros(2, 4, 3))
    assert seen == [(True, False)]


# The environment -----------------------------------------------------------------------------------------------------


class Rate(float):
    """A number of a class of its own."""


class Table(dict):
    """A dictionary with an attribute."""

    def with_unit(self, unit):
        self.unit = unit
        return self


class Kind(Enum):
    SUM = 1
    MEAN = 2


def closing_over(value):
    def f(x):
        return value

    return f


@pytest.mark.parametrize(
    ("old", "same", "different"),
    [
        (2.0, 2.0, 3.0),
        (True, True, 1),
        (math.nan, float("nan"), 0.0),
        ([1, 2], [1, 2], [1, 3]),
        ({"a": (1, 2.0)}, {"a": (1, 2.0)}, {"a": (1, 2)}),
        ({1, 2}, {1, 2}, {1, 3}),
        (np.arange(3), np.arange(3), np.arange(3) + 1),
        ([X, 1], [X.clone(), 1], [X, 2]),
        (X, X.clone(), X[0]),
        (torch.sin, torch.sin, torch.cos),
        (functools.partial(add, a=1), functools.partial(add, a=1), functools.partial(add, a=2)),
        (types.SimpleNamespace(a=1), types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
        (X.add, X.add, X.sub),
        ((X, "a") * 80, (X, "a") * 80, (X, "a") * 79 + (X, "b")),
        (None, None, X),
        (Rate(2.0), Rate(2.0), Rate(3.0)),
        (Table(a=1), Table(a=1), Table(a=2)),
        (Table(a=1).with_unit("m"), Table(a=1).with_unit("m"), Table(a=1).with_unit("s")),
        (Kind.SUM, Kind.SUM, Kind.MEAN),
        (Point(X, 1), Point(X, 1), Point(X, 2)),
    ],
)
def test_closures(old, same, different):
    entry = make_entry(closing_over(old), (X,), {}, (), (), "program")
    assert entry.lookup(closing_over(old), (X,), {}) is not None
    assert entry.lookup(closing_over(same), (X,), {}) is not None
    assert entry.lookup(closing_over(different), (X,), {}) is None


def test_lists_changed_in_place_miss():
    values = [1, 2]
    call = Call(closing_over(values), X)
    values[1] = 3
    assert not call.hits(X)


def test_a_rebound_closure_tensor_is_fetched_again():
    w = torch.ones(3)

    def f(x):
        return x * w

    call = Call(f, X, lifted=(w,))
    assert identical(call(X), [X, w])
    w = torch.zeros(3)
    assert identical(call(X), [X, w])
    w = torch.zeros(4)
    assert call(X) is None


def read_global(x):
    return helper(x) * WEIGHT


def helper(x):
    return [x * SCALE for _ in range(2)]


def test_globals_of_the_function_and_its_callees(monkeypatch):
    call = Call(read_global, X, lifted=(WEIGHT,))
    assert identical(call(X), [X, WEIGHT])
    monkeypatch.setitem(globals(), "WEIGHT", torch.zeros(3))
    assert identical(call(X), [X, WEIGHT])
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert not call.hits(X)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert call.hits(X)
    monkeypatch.setitem(globals(), "helper", lambda x: x)
    assert not call.hits(X)


def test_modules_of_the_user(monkeypatch):
    settings = types.ModuleType("settings_of_the_user")
    settings.scale, settings.unrelated = 2.0, 1
    call = Call(lambda x: x * settings.scale, X)
    settings.unrelated = 2
    assert call.hits(X)
    settings.scale = 3.0
    assert not call.hits(X)


def test_an_object_may_name_the_attributes_that_matter():
    class Transform:
        guarded_attributes = ("f",)

        def __init__(self, f):
            self.f, self.calls = f, 0

    inner = Transform(closing_over(1))
    call = Call(closing_over(inner), X)
    inner.calls += 1
    assert call.hits(X)
    inner.f = closing_over(2)
    assert not call.hits(X)


def test_default_arguments():
    def f(x, scale=2.0, *, shift=1):
        return x * scale + shift

    call = Call(f, X)
    f.__kwdefaults__["shift"] = 2
    assert not call.hits(X)
    f.__kwdefaults__["shift"] = 1
    assert call.hits(X)
    f.__defaults__ = (3.0,)
    assert not call.hits(X)


class Scaled:
    """A user's class, with what its methods read."""

    factor = 2.0

    def __init__(self, weight):
        self.weight = weight
        self.power = 2

    def __call__(self, x):
        return self.apply(x)

    def apply(self, x):
        return x * self.factor * SCALE * self.weight**self.power


@pytest.mark.parametrize("make", [lambda o: o, lambda o: o.apply, lambda o: lambda x: o(x), functools.partial])
def test_objects_and_bound_methods(make, monkeypatch):
    one, other = Scaled(torch.ones(3)), Scaled(torch.zeros(3))
    entry = make_entry(make(one), (X,), {}, (one.weight,), (False,), "program")

    def find(f):
        return entry.lookup(f, (X,), {})

    assert identical(find(make(one)), [X, one.weight])
    if entry.lookup(make(other), (X,), {}) is not None:
        assert identical(find(make(other)), [X, other.weight])
    one.power = 3
    assert find(make(one)) is None
    one.power = 2
    assert find(make(one)) is not None
    monkeypatch.setattr(Scaled, "factor", 3.0)
    assert find(make(one)) is None
    monkeypatch.setattr(Scaled, "factor", 2.0)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    assert find(make(one)) is None


@dataclass(slots=True)
class Slotted:
    weight: torch.Tensor
    power: int


def test_slots():
    thing = Slotted(torch.ones(3), 2)
    call = Call(closing_over(thing), X, lifted=(thing.weight,))
    assert identical(call(X), [X, thing.weight])
    thing.power = 3
    assert not call.hits(X)


def test_properties_are_not_run():
    class Trap:
        @property
        def value(self):
            raise AssertionError("ran the user's code")

        def __getattr__(self, name):
            raise AssertionError(f"ran the user's code for {name}")

    assert Call(closing_over(Trap()), X).hits(X)


def test_cycles_end():
    loop = [X]
    loop.append(loop)
    thing = types.SimpleNamespace(loop=loop)
    thing.itself = thing
    call = Call(closing_over(thing), X)
    assert call.hits(X)
    thing.itself = types.SimpleNamespace()
    assert not call.hits(X)

    def recursive(x):
        return recursive(x)

    assert Call(recursive, X).hits(X)


def test_big_objects_of_the_standard_library_are_not_searched():
    call = Call(closing_over(logging.getLogger("somebody")), X)
    assert call.hits(X)
    assert len(call.entry.code.splitlines()) < 40


# Modules -------------------------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))


def change_training(model):
    model[1].eval()


def change_attribute(model):
    model[1].p = 0.25


def add_attribute(model):
    model.extra = 1


def change_dtype(model):
    model.double()


def add_hook(model):
    model[0].register_forward_hook(lambda *_: None)


def drop_bias(model):
    model[0].bias = None


def exchange_module(model):
    model[1] = nn.ReLU()


def add_module(model):
    model.append(nn.ReLU())


def add_buffer(model):
    model[0].register_buffer("mask", torch.ones(2))


CHANGES = [
    change_training,
    change_attribute,
    add_attribute,
    change_dtype,
    add_hook,
    drop_bias,
    exchange_module,
    add_module,
    add_buffer,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("wrap", [lambda m: m, closing_over, lambda m: m.forward])
def test_a_changed_module_misses(change, wrap):
    model = network()
    call = Call(wrap(model), X)
    assert call.hits(X)
    change(model)
    assert not call.hits(X)


def test_parameters_are_fetched_again():
    model = network()
    call = Call(closing_over(model), X, lifted=tuple(model.parameters()))
    model[0].weight = nn.Parameter(torch.ones(2, 3))
    model.load_state_dict(network().state_dict(), assign=True)
    assert identical(call(X), [X, *model.parameters()])


def test_tied_parameters_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    call = Call(closing_over(model), X, lifted=(model[0].weight,))
    assert call.hits(X)
    model[1].weight = nn.Parameter(torch.zeros(3, 3))
    assert not call.hits(X)


def test_a_large_module_is_no_trouble():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(250)])
    call = Call(closing_over(model), X, lifted=tuple(model.parameters()))
    assert identical(call(X), [X, *model.parameters()])
    seconds = timeit.timeit(lambda: Call(closing_over(model), X), number=1)
    assert seconds < 2.0


# Lifting -------------------------------------------------------------------------------------------------------------


def test_lifted_tensors_have_names():
    model = network()

    def loss(x):
        return model(x) * WEIGHT

    assert lift(loss, [model[0].weight, WEIGHT]) == ["loss:model.0.weight", "loss:WEIGHT"]


def test_a_tensor_without_a_path_is_refused():
    with pytest.raises(CaptureError, match=r"float32\[5\].*add.*pass it as an argument"):
        Call(add, X, lifted=(torch.zeros(5),))
    with pytest.raises(CaptureError, match="cannot be found again"):
        lift(add, [torch.zeros(5)])


def test_constants_of_the_trace_are_kept():
    w, constant = torch.ones(3), torch.tensor(3.0)
    entry = make_entry(closing_over(w), (X,), {}, (constant, w), (True, False), "program")
    assert identical(entry.lookup(closing_over(w), (X,), {}), [X, constant, w])


# The cache -----------------------------------------------------------------------------------------------------------


def test_a_lambda_made_anew_finds_its_program():
    cache, compiled = Cache(), 0
    for k in range(5):
        w = torch.full((3,), float(k))
        f = lambda x, w=w: x * w  # noqa: E731
        g = functools.partial(lambda y, x: f(x) * y, w)  # noqa: B023
        found = cache.find("grad", g, (X,), {})
        if found is None:
            compiled += 1
            cache.store("grad", g, (X,), {}, (w,), (False,), "program")
        else:
            entry, flat = found
            assert entry.program == "program"
            assert identical(flat, [X, w])
    assert compiled == 1


def test_transforms_and_functions_do_not_share_programs():
    cache = Cache()
    cache.store(("grad", 0), add, (X,), {}, (), (), "first")
    assert cache.find(("grad", 1), add, (X,), {}) is None
    assert cache.find(("grad", 0), helper, (X,), {}) is None
    cache.store(("grad", 0), add, (X.double(),), {}, (), (), "second")
    assert cache.find(("grad", 0), add, (X,), {})[0].program == "first"
    assert cache.find(("grad", 0), add, (X.double(),), {})[0].program == "second"


def test_the_cache_is_bounded_and_forgets_the_oldest():
    cache = Cache(capacity=3)
    for key in range(5):
        cache.find(0, add, (X,), {})
        cache.store(key, add, (X,), {}, (), (), key)
    assert len(cache) == 3
    assert cache.find(0, add, (X,), {}) is not None
    assert cache.find(1, add, (X,), {}) is None
    one = Cache()
    for size in range(100):
        one.store(0, add, (torch.zeros(size),), {}, (), (), size)
    assert len(one) == 64


def test_the_cache_keeps_no_tensor_alive():
    cache = Cache()
    model, x = network(), torch.zeros(4, 3)
    weight = weakref.ref(model[0].weight), weakref.ref(x)
    cache.store(0, closing_over(model), (x,), {}, tuple(model.parameters()), (False,) * 4, "program")
    assert cache.find(0, closing_over(model), (x,), {}) is not None
    del model, x
    gc.collect()
    assert [reference() for reference in weight] == [None, None]


def test_outer_traces_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    cache, constant = Cache(), FakeTensorMode().from_tensor(torch.tensor(3.0))
    entry = cache.store(0, add, (X,), {}, (constant,), (True,), "program")
    assert not entry.reusable
    assert len(cache) == 0


def test_the_log_tells_why_a_function_is_traced_again(caplog):
    cache, scale = Cache(), 2.0

    def loss(x):
        return x * scale

    cache.store(0, loss, (X,), {}, (), (), "program")
    scale = 3.0
    with caplog.at_level(logging.INFO, logger="pullback"):
        cache.find(0, loss, (X,), {})
        scale = 2.0
        cache.find(0, loss, (X.double(),), {})
        cache.find(0, loss, ((X,),), {})
        with torch.inference_mode():
            cache.find(0, loss, (X,), {})
    lines = [record.getMessage() for record in caplog.records]
    assert "loss:scale was 2.0, is 3.0" in lines[0]
    assert "x was float32[4, 3] on cpu, is float64[4, 3] on cpu" in lines[1]
    assert "x was float32[4, 3] on cpu, is a tuple" in lines[2]
    assert "inference mode was False, is True" in lines[3]


def test_threads():
    cache, failures = Cache(capacity=8), []

    def work(key):
        try:
            for size in range(60):
                x = torch.zeros(size % 7)
                if cache.find(key, add, (x,), {}) is None:
                    cache.store(key, add, (x,), {}, (), (), "program")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k % 2,)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures


# Speed ---------------------------------------------------------------------------------------------------------------


def microseconds(entry, f, *args):
    lookup = entry.lookup
    return min(timeit.repeat(lambda: lookup(f, args, {}), number=5000, repeat=5)) / 5000 * 1e6


def test_speed():
    parameters = {f"p{k}": torch.zeros(3, 3) for k in range(8)}
    one = microseconds(make_entry(add, (X,), {}, (), (), None), add, X)
    tree = microseconds(make_entry(add, (parameters, X, X), {}, (), (), None), add, parameters, X, X)
    print(f"one tensor {one:.2f} µs; a dictionary of 8 tensors and two more {tree:.2f} µs")
    assert one < 10
    assert tree < 50
