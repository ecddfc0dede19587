"""What a record refuses: each with its own error, the values seen, and the user's line."""

import copy
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback import ArgumentError, CaptureError, MissingRuleError, RecordError, ShapeError
from record_support import leaves
from support import reference

HERE = r"(test_record_refusals|support)\.py:\d+: "  # or the gate that the tests are behind


def _closed_over_autograd() -> Tensor:
    with torch.enable_grad():
        return torch.ones(3, dtype=torch.float64, requires_grad=True) * 2


FOREIGN = _closed_over_autograd()
with pullback.record() as OTHER_TAPE:
    OTHER = torch.ones(3, dtype=torch.float64, requires_grad=True) * 2


def _read(x: Tensor) -> Tensor:
    constant = torch.ones(3)
    _ = x * constant
    return constant


INSIDE: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "backward": (lambda x: x.sum().backward(), r"backward\(\) of torch.autograd[\s\S]*call tape.backward"),
    "autograd.backward": (lambda x: torch.autograd.backward([x.sum()]), r"backward\(\) of torch.autograd"),
    "autograd.grad": (lambda x: torch.autograd.grad(x.sum(), x), r"grad\(\) of torch.autograd"),
    "torch.func": (lambda x: torch.func.grad(lambda x: x.sin().sum())(x), "a derivative of torch.func's"),
    "a tensor of autograd's": (lambda x: x * FOREIGN, r"float64\[3\].* computed by torch.autograd.*MulBackward0"),
    "a result of another record": (
        lambda x: x * OTHER,
        r"float64\[3\].* a record that has ended",
    ),
    "replaced data": (
        lambda x: setattr(x * 1, "data", torch.zeros(3)),
        r"\.data of a recorded .* \(float64\[3\]\)",
    ),
    "set_": (lambda x: _read(x).set_(torch.zeros(3)), r"aten.set_.* replaces the memory"),
    "resize_": (lambda x: _read(x).resize_(2), r"float32\[3\].* is given other memory, by resize_"),
    "a leaf in place": (lambda x: x.mul_(2), "a leaf that requires gradients"),
    "out=": (lambda x: torch.add(x, 1, out=torch.empty(3, dtype=torch.float64)), "by out="),
    "foreach in place": (lambda x: torch._foreach_add_([x * 1, x * 2], 1.0), "writes into 2 tensors at once"),
    "deepcopy": (lambda x: copy.deepcopy(x * 2), "copied by deepcopy"),
    "requires_grad off": (lambda x: (x * 2).requires_grad_(False), "requires_grad is set to False"),
    "post-accumulate hook": (
        lambda x: (x * 2).register_post_accumulate_grad_hook(lambda p: None),
        "hook after accumulation",
    ),
    "a sparse tensor": (
        lambda x: torch.mv(torch.eye(3, dtype=torch.float64).to_sparse(), x),
        "a tensor of layout torch.sparse_coo",
    ),
    "an operator that takes functions": (
        lambda x: torch.ops.higher_order.strict_mode(torch.sin, (x * 1,)),
        "operator 'strict_mode'",
    ),
}


@pytest.mark.parametrize("case", INSIDE)
def test_refused_inside_a_block(case: str) -> None:
    (x,) = leaves((3,))
    function, message = INSIDE[case]
    with reference(), pullback.record(), pytest.raises(RecordError, match=message) as error:
        function(x)
    assert re.search(HERE, str(error.value)), error.value
    with pullback.record() as tape:  # and nothing is left behind
        loss = x.sum()
    tape.grad(loss, x)


def _loss(x: Tensor) -> tuple[pullback.Tape, Tensor]:
    with pullback.record() as tape:
        loss = (x * 2).sum()
    return tape, loss


ASKED: dict[str, tuple[Callable[[Any, Any, Any], object], type[Exception], str]] = {
    "computed before": (lambda t, l, x: t.grad(torch.ones(()), x), RecordError, r"float32\[\] was not recorded"),
    "computed after": (lambda t, l, x: t.grad(l * 2, x), RecordError, r"float64\[\] was not recorded"),
    "by autograd": (lambda t, l, x: t.grad(FOREIGN, x), RecordError, r"computed by torch.autograd"),
    "of another tape": (lambda t, l, x: t.grad(_loss(x)[1], x), RecordError, "recorded by another tape"),
    "an input of another tape": (lambda t, l, x: t.grad(l, OTHER), RecordError, "recorded by another tape"),
    "no tensor": (lambda t, l, x: t.grad(3.0, x), ArgumentError, "not 3.0"),
    "an input that is none": (lambda t, l, x: t.grad(l, [x, "w"]), ArgumentError, "inputs hold 'w'"),
    "unused": (
        lambda t, l, x: t.grad(l, [x, torch.ones(2, requires_grad=True)]),
        ArgumentError,
        r"does not depend on input 1 \(float32\[2\]\).*allow_unused=True",
    ),
    "without gradients": (
        lambda t, l, x: t.grad(l, torch.ones(2)),
        RecordError,
        "from nothing that requires",
    ),
    "a seed of another shape": (lambda t, l, x: t.grad(l, x, seed=torch.ones(2)), ShapeError, r"seed is float32\[2\]"),
    "a seed of another dtype": (
        lambda t, l, x: t.backward(l, torch.ones(())),
        ShapeError,
        r"float32\[\], but .*64\[\]",
    ),
    "a seed that is none": (lambda t, l, x: t.backward(l, 2.0), ShapeError, "the seed is 2.0"),
    "by backward": (lambda t, l, x: l.backward(), RecordError, r"call tape.backward\(loss\) or tape.grad"),
}


@pytest.mark.parametrize("case", ASKED)
def test_refused_of_a_tape(case: str) -> None:
    (x,) = leaves((3,))
    ask, kind, message = ASKED[case]
    tape, loss = _loss(x)
    with pytest.raises(kind, match=message):
        ask(tape, loss, x)
    assert x.grad is None


def test_a_seed_is_needed() -> None:
    (x,) = leaves((3,))
    with pullback.record() as tape:
        y = x * 2
    with pytest.raises(ShapeError, match=r"float64\[3\] has 3 elements.*pass a tensor of its shape"):
        tape.backward(y)


def test_a_constant_that_was_read_has_no_derivative() -> None:
    (x,) = leaves((3,))
    with pullback.record() as tape:
        loss = (x * (scale := torch.ones(3, dtype=torch.float64))).sum()
    with pytest.raises(RecordError, match="requires no gradients: call requires_grad_"):
        tape.grad(loss, scale)


def test_a_result_that_was_changed_after_the_block() -> None:
    (x,) = leaves((3,))
    tape, loss = _loss(x)
    loss.mul_(2)
    with pytest.raises(RecordError, match="changed in place after the block"):
        tape.backward(loss)


@torch.library.custom_op("record_tests::without_rule", mutates_args=())
def without_rule(x: Tensor) -> Tensor:
    """An operator of the user's own, of which nobody has said what its derivative is."""
    return x * 2


def test_an_operator_without_a_rule_is_named_with_its_line() -> None:
    (x,) = leaves((3,))
    with pullback.record() as tape:
        loss = without_rule(x).sum()
    for _ in range(4):
        with pytest.raises(MissingRuleError, match=rf"record_tests.without_rule.default on float64\[3\].*{HERE}"):
            tape.grad(loss, x)


# ---------------------------------------------------------------- entering and leaving


def test_a_tape_is_entered_once() -> None:
    tape = pullback.record()
    with tape, pytest.raises(RecordError, match="entered a second time, the first time by this thread"), tape:
        pass
    with pytest.raises(RecordError, match="entered a second time"), tape:
        pass


def test_a_tape_is_entered_by_two_threads() -> None:
    tape, errors = pullback.record(), []

    def enter() -> None:
        try:
            with tape:
                pass
        except RecordError as error:
            errors.append(str(error))

    with tape:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(errors) == 1 and "the first time by another thread" in errors[0]


def test_a_suspended_generator() -> None:
    (x,) = leaves((3,))

    def suspended() -> Iterator[pullback.Tape]:
        with pullback.record() as tape:
            yield tape

    generator = suspended()
    next(generator)
    with pullback.record(), pytest.raises(RecordError, match="a generator that was suspended"):
        next(generator, None)
    assert not pullback.tapes.THREAD.tapes
    tape, loss = _loss(x)
    tape.grad(loss, x)


def test_inference_mode_and_traces() -> None:
    with torch.inference_mode(), pytest.raises(RecordError, match="inference mode"), pullback.record():
        pass

    def f(x: Tensor) -> Tensor:
        with pullback.record():
            return x.sum()

    with pytest.raises((RecordError, CaptureError), match="inside a function that pullback traces"):
        pullback.grad(f)(torch.ones(3))


# ---------------------------------------------------------------- memory that others see


def test_data_is_seen_as_detached() -> None:
    x, w = leaves((3,), (3,))
    with pullback.record() as tape:
        loss = (x * w).sum()
        w.data.mul_(2)
    with pytest.raises(RecordError, match=rf"aten.mul.Tensor .*{HERE}.*by aten.mul_.Tensor .*{HERE}"):
        tape.grad(loss, x)


def test_arrays_cannot_be_written_through() -> None:
    x, w = leaves((3,), (3,))
    with pullback.record():
        _ = x * w
        array = w.detach().numpy()
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(w.detach())[0] = 5
        torch.zeros(3).numpy()[0] = 1  # which nothing has read
    w.detach().numpy()[0] = 5


def test_another_thread_computes_on_recorded_tensors() -> None:
    (x,) = leaves((3,))
    results: list[Tensor] = []

    def in_thread(function: Callable[[], Tensor]) -> Tensor:
        with reference():
            thread = threading.Thread(target=lambda: results.append(function()))
            thread.start()
            thread.join()
        return results[-1]

    with pullback.record():
        y = x * 2
        with pytest.raises(RecordError, match="in another thread"):
            _ = y * in_thread(lambda: y.sin())
        with pytest.raises(RecordError, match="in another thread"):
            _ = y * in_thread(lambda: x.sin())


def test_another_thread_writes_into_recorded_tensors() -> None:
    (x,) = leaves((3,))
    with pullback.record():
        y = x * 2

        def write() -> None:
            with torch.no_grad():
                y.mul_(3)

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        with pytest.raises(RecordError, match=r"changed in place where the record could not see it"):
            _ = y * 2


# ---------------------------------------------------------------- parallel wrappers


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed = pytest.importorskip("torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_parallel_wrappers_are_refused(process_group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from torch.nn.parallel import DistributedDataParallel

    module = DistributedDataParallel(nn.Linear(2, 2))
    with pullback.record(), pytest.raises(RecordError, match=rf"DistributedDataParallel exchanges[\s\S]*{HERE}"):
        module(torch.ones(1, 2))
    mesh = init_device_mesh("cpu", (1,))
    weight = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh))
    with pullback.record(), pytest.raises(RecordError, match="DTensor"):
        _ = weight * 2


def test_fully_sharded_modules_are_refused(process_group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = nn.Linear(2, 2)
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    with pullback.record(), pytest.raises(RecordError, match=rf"fully_shard \(FSDP\) shards[\s\S]*{HERE}"):
        module(torch.ones(1, 2))


@pytest.mark.parametrize("is_leaf", [True, False])
@pytest.mark.parametrize("name", ["resize_", "resize_as_"])
def test_other_memory_is_refused_by_name(name: str, is_leaf: bool) -> None:
    leaf = torch.ones(3, requires_grad=True)
    arguments = {"resize_": (5,), "resize_as_": (torch.zeros(5),)}[name]
    with pullback.record():
        result = leaf * 2
        with pytest.raises(RecordError, match=rf"given other memory, by {name}\n[\s\S]*{HERE}"):
            getattr(leaf if is_leaf else result, name)(*arguments)
