"""Wrong uses, and what is said of them: the class of the error, the value that was seen, and the line of the caller.

One row is one wrong use.  The messages are counted at the end: they are many, and not one for everything.
"""

import inspect
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback import (
    ArgumentError,
    BatchError,
    CallError,
    CaptureError,
    MissingRuleError,
    OrderError,
    PullbackError,
    RecordError,
    ShapeError,
    SignatureError,
    UnboundError,
    batch_hessian,
    batch_jacobian,
    grad,
    hessian,
    hvp,
    jacobian,
    jvp,
    record,
    trace,
    value_and_grad,
    vjp,
)
from pullback.tapes import THREAD
from pullback.torch_private import count_function_modes

X = torch.tensor([[0.5, 1.0], [2.0, 3.0]])
V = torch.tensor([0.5, 1.0])
META = torch.ones(2, 2, device="meta")
W = torch.ones(2, requires_grad=True)
INTEGERS = torch.arange(2)
two_devices = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
optimiser = torch.optim.SGD([W], lr=0.1)


# ---------------------------------------------------------------- functions that are used wrongly


def total(x: Any, *others: Any) -> Any:
    return (x["w"] if isinstance(x, dict) else x[0] if isinstance(x, (list, tuple)) else x).sum()


def pair(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(), x


def generates(x: Tensor) -> Iterator[Tensor]:
    yield x.sum()


async def waits(x: Tensor) -> Tensor:
    return x.sum()


async def generates_later(x: Tensor) -> Any:
    yield x.sum()


def without_its_variable() -> Callable[[Tensor], Tensor]:
    scale = 2.0

    def f(x: Tensor) -> Tensor:
        return (x * scale).sum()  # noqa: F821

    del scale
    return f


def sets_data(x: Tensor) -> Tensor:
    x.data = x * 2
    return x.sum()


def adds_in_place(x: Tensor) -> Tensor:
    x.view(-1).add_(1)
    return x.sum()


def takes_elements(x: Tensor) -> Tensor:
    return torch.tensor([x[0, 0], x[0, 1]]).sum()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


branching = Branching()


# ---------------------------------------------------------------- tapes that are used wrongly


def recorded() -> tuple[pullback.Tape, Tensor]:
    with record() as tape:
        loss = (W * 2).sum()
    return tape, loss


def asks(tape: pullback.Tape, loss: Any, inputs: Any = W, **options: Any) -> None:
    tape.grad(loss, inputs, **options)


def an_operation_after_the_block() -> None:
    tape, loss = recorded()
    tape.grad(loss.sin(), W)


def a_tensor_of_another_tape() -> None:
    (tape, _), (_, loss) = recorded(), recorded()
    tape.grad(loss, W)


def a_tensor_of_another_tape_backward() -> None:
    (tape, _), (_, loss) = recorded(), recorded()
    tape.backward(loss)


def a_released_tape() -> None:
    tape, loss = recorded()
    tape.release()
    tape.grad(loss, W)


def a_released_tape_backward() -> None:
    tape, loss = recorded()
    tape.release()
    tape.backward(loss)


def a_tape_twice() -> None:
    tape = record()
    with tape:
        pass
    with tape:
        pass


def a_tape_in_itself() -> None:
    with record() as tape, tape:
        pass


def a_tape_of_two_threads() -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with tape:
                pass
        except RecordError as error:
            errors.append(error)

    with record() as tape:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    raise errors[0]


def an_operation_of_another_thread() -> None:
    found: list[Tensor] = []
    with record() as tape:
        doubled = W * 2
        thread = threading.Thread(target=lambda: found.append(doubled.sum()))
        thread.start()
        thread.join()
    tape.grad(found[0], W)


def a_record_in_inference_mode() -> None:
    with torch.inference_mode(), record():
        pass


def a_record_inside_a_transform(x: Tensor) -> Tensor:
    with record():
        return x.sum()


def a_result_changed_afterwards() -> None:
    with record() as tape:
        doubled = W * 2
    doubled.add_(1)
    tape.grad(doubled, W, torch.ones(2))


def a_leaf_changed_afterwards() -> None:
    weight = torch.ones(2, requires_grad=True)
    with record() as tape:
        loss = (weight * weight).sum()
    with torch.no_grad():
        weight.add_(1)
    tape.grad(loss, weight)


def data_that_is_replaced() -> None:
    with record():
        doubled = W * 2
        doubled.data = torch.zeros(2)


def backward_of_autograd() -> None:
    _, loss = recorded()
    loss.backward()


def backward_of_autograd_inside() -> None:
    with record():
        (W * 2).sum().backward()


def grad_of_autograd_inside() -> None:
    with record():
        torch.autograd.grad((W * 2).sum(), W)


def a_suspended_block() -> None:
    def suspended() -> Iterator[None]:
        with record():
            yield

    generator = suspended()
    next(generator)
    with record():
        generator.close()


Misuse = tuple[Callable[[], Any], type[Exception], str]

ARGUMENTS: dict[str, Misuse] = {
    "a number": (lambda: grad(total)(3.0), ArgumentError, r"3\.0.*not a tensor"),
    "None": (lambda: grad(total)(None), ArgumentError, "None.*not a tensor"),
    "a string": (lambda: grad(total)("text"), ArgumentError, "'text'.*not a tensor"),
    "an array": (lambda: grad(total)(np.ones(2)), ArgumentError, r"array\(\[1\..*not a tensor"),
    "a function": (lambda: grad(total)(torch.sin), ArgumentError, "sin.*not a tensor"),
    "a number in a list": (lambda: grad(total)([X, 2.0]), ArgumentError, r"2\.0.*pass it separately"),
    "a number in a dictionary": (lambda: grad(total)({"w": X, "k": 1}), ArgumentError, "holds 1,.*pass it separately"),
    "integers": (lambda: grad(total)(INTEGERS), ArgumentError, r"int64\[2\].*convert it"),
    "booleans": (lambda: grad(total)(X > 0), ArgumentError, r"bool\[2, 2\].*convert it"),
    "bytes": (lambda: grad(total)(X.to(torch.uint8)), ArgumentError, r"uint8\[2, 2\].*convert it"),
    "integers in a dictionary": (lambda: grad(total)({"w": X, "k": INTEGERS}), ArgumentError, r"'k'.*int64\[2\]"),
    "integers second": (lambda: grad(total, 1)(X, INTEGERS), ArgumentError, r"'others_0'.*int64\[2\]"),
    "float8": (lambda: grad(total)(X.to(torch.float8_e4m3fn)), ArgumentError, "float8_e4m3fn.*convert it"),
    "sparse": (lambda: grad(total)(X.to_sparse()), ArgumentError, "'x'.*sparse_coo.*dense tensor first"),
    "compressed": (lambda: grad(total)(X.to_sparse_csr()), ArgumentError, "'x'.*sparse_csr.*dense tensor first"),
    "sparse beside": (lambda: grad(total)(X, X.to_sparse()), ArgumentError, "'others_0'.*sparse_coo"),
    "mkldnn": (lambda: grad(total)(X.to_mkldnn()), ArgumentError, "'x'.*torch._mkldnn.*dense tensor first"),
    "quantised": (
        lambda: grad(total)(torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)),
        ArgumentError,
        "'x'.*quantized.*qint8",
    ),
    "nested": (lambda: grad(total)(torch.nested.nested_tensor([V, V])), ArgumentError, "x is a nested tensor.*pad it"),
    "an object beside": (lambda: grad(total)(X, object()), ArgumentError, "a object, which cannot be compared"),
    "an iterator beside": (lambda: grad(total)(X, iter([1])), ArgumentError, "a list_iterator, which cannot be"),
    "an object for jacobian": (lambda: jacobian(total)(X, object()), ArgumentError, r"args\[1\].*pytree"),
    "nothing": (lambda: grad(total)(), ArgumentError, "argnums=0.*0 positional"),
    "by keyword": (lambda: grad(total)(x=X), ArgumentError, "argnums=0.*0 positional.*keyword"),
    "integers for jacobian": (lambda: jacobian(total)(INTEGERS), ArgumentError, r"int64\[2\].*leave it out"),
    "integers for hessian": (lambda: hessian(total)(INTEGERS), ArgumentError, r"int64\[2\].*leave it out"),
    "a number for plan": (lambda: grad(total).plan(3.0), ArgumentError, r"3\.0.*not a tensor"),
    "a number for graph_module": (lambda: grad(total).graph_module(None), ArgumentError, "None.*not a tensor"),
}

FUNCTIONS: dict[str, Misuse] = {
    "grad of a number": (lambda: grad(3), ArgumentError, "not 3: pass the function"),
    "grad of a tensor": (lambda: grad(V), ArgumentError, r"not tensor\(\[0\.5"),
    "jacobian of None": (lambda: jacobian(None), ArgumentError, "not None: pass the function"),
    "value_and_grad of a string": (lambda: value_and_grad("f"), ArgumentError, "not 'f': pass the function"),
    "hessian of a list": (lambda: hessian([total]), ArgumentError, r"not \[<function total"),
    "vjp of None": (lambda: vjp(None, X), ArgumentError, "not None: pass the function"),
    "jvp of a number": (lambda: jvp(3, (X,), (X,)), ArgumentError, "not 3: pass the function"),
    "hvp of a number": (lambda: hvp(3.5, (X,), (X,)), ArgumentError, r"not 3\.5: pass the function"),
    "compile of a number": (lambda: pullback.compile(4), ArgumentError, "not 4: pass the function"),
    "batch_jacobian of a number": (lambda: batch_jacobian(5), ArgumentError, "not 5: pass the function"),
    "trace of a number": (lambda: trace(3, X), ArgumentError, "trace needs a function, not 3"),
    "a generator": (lambda: grad(generates)(X), ArgumentError, "generates .*is a generator function"),
    "a coroutine": (lambda: grad(waits)(X), ArgumentError, "waits .*is an async function"),
    "an async generator": (lambda: grad(generates_later)(X), ArgumentError, "is an async generator function"),
    "a compiled generator": (lambda: pullback.compile(generates)(X), ArgumentError, "is a generator function"),
    "a compiled coroutine": (lambda: pullback.compile(waits)(X), ArgumentError, "is an async function"),
    "vjp of a coroutine": (lambda: vjp(waits, X), ArgumentError, "waits .*is an async function"),
    "a deleted variable": (lambda: grad(without_its_variable())(X), UnboundError, "'scale', which has no value"),
    "an unknown name": (lambda: grad(lambda x: x * missing_name)(X), UnboundError, "'missing_name'"),  # noqa: F821
}

OUTPUTS: dict[str, Misuse] = {
    "None": (lambda: grad(lambda x: None)(X), ArgumentError, "returns None as output 0"),
    "a string": (lambda: grad(lambda x: "text")(X), ArgumentError, "returns 'text' as output 0"),
    "a number": (lambda: grad(lambda x: 3.0)(X), ArgumentError, r"returns 3\.0 as output 0.*has_aux"),
    "a NumPy number": (lambda: grad(lambda x: np.float64(2.0))(X), ArgumentError, r"2\.0.* as output 0"),
    "an object": (lambda: grad(lambda x: object())(X), ArgumentError, "<object object.* as output 0"),
    "a generator": (lambda: grad(lambda x: (y for y in x))(X), ArgumentError, "<generator object.* as output 0"),
    "a matrix": (lambda: grad(lambda x: x * 2)(X), ShapeError, r"float32\[2, 2\].*\.sum\(\) or \.mean\(\)"),
    "one element": (lambda: grad(lambda x: x[:1, 0])(X), ShapeError, r"float32\[1\].*or use jacobian"),
    "a pair": (lambda: grad(pair)(X), ShapeError, "a tuple of 2: use jacobian or vjp"),
    "a dictionary": (lambda: grad(lambda x: {"l": x.sum()})(X), ShapeError, "a dict of 1: use jacobian or vjp"),
    "an empty list": (lambda: grad(lambda x: [])(X), ShapeError, "a list of 0"),
    "integers": (lambda: grad(lambda x: x.argmax())(X), ArgumentError, r"int64\[\].*no derivative"),
    "a boolean": (lambda: grad(lambda x: x.any())(X), ArgumentError, r"bool\[\].*floating dtype"),
    "a number beside": (lambda: jacobian(lambda x: (x, 2))(X), ArgumentError, "2 as output 1"),
    "booleans for jacobian": (lambda: jacobian(lambda x: x > 0)(X), ArgumentError, r"bool\[2, 2\].*has_aux"),
    "None for jacobian": (lambda: jacobian(lambda x: None)(X), ArgumentError, "returns None as output 0"),
    "None for hessian": (lambda: hessian(lambda x: None)(X), ArgumentError, "returns None as output 0"),
    "a matrix for hvp": (lambda: hvp(torch.sin, (X,), (X,)), ShapeError, r"grad needs a scalar.*float32\[2, 2\]"),
    "a string for jvp": (lambda: jvp(lambda x: "text", (X,), (X,)), ArgumentError, "'text' as output 0"),
    "a number for vjp": (lambda: vjp(lambda x: 2, X), ArgumentError, "2 as output 0"),
    "integers for vjp": (lambda: vjp(torch.argmax, X), ArgumentError, r"int64\[\].*no derivative"),
    "no aux": (lambda: grad(total, has_aux=True)(X), ArgumentError, r"\(output, aux\).*float32\[\]"),
    "two aux": (lambda: grad(lambda x: (x.sum(), 1, 2), has_aux=True)(X), ArgumentError, "a tuple of 3"),
    "a list with aux": (lambda: grad(lambda x: [x.sum(), 1], has_aux=True)(X), ArgumentError, "a list of 2"),
    "no aux of a jacobian": (lambda: jacobian(total, has_aux=True)(X), ArgumentError, r"\(output, aux\).*float32\[\]"),
    "no aux of a vjp": (lambda: vjp(total, X, has_aux=True), ArgumentError, r"\(output, aux\).*float32\[\]"),
    "no aux of a jvp": (lambda: jvp(total, (X,), (X,), has_aux=True), ArgumentError, r"\(output, aux\).*float32\[\]"),
}

OPTIONS: dict[str, Misuse] = {
    "argnums too large": (lambda: grad(total, 1)(X), ArgumentError, "argnums=1, but.*1 positional"),
    "argnums too small": (lambda: grad(total, -2)(X), ArgumentError, "argnums=-2, but.*1 positional"),
    "argnums twice": (lambda: grad(total, (0, -1))(X), ArgumentError, r"argnums=\(0, -1\).*twice"),
    "argnums a string": (lambda: grad(total, "x"), ArgumentError, "argnums='x'"),
    "argnums empty": (lambda: grad(total, ()), ArgumentError, r"argnums=\(\).*non-empty"),
    "argnums a boolean": (lambda: grad(total, True), ArgumentError, "argnums=True"),
    "argnums a float": (lambda: grad(total, 1.0), ArgumentError, r"argnums=1\.0"),
    "argnums mixed": (lambda: grad(total, (0, "x")), ArgumentError, r"argnums=\(0, 'x'\)"),
    "argnums of jacobian": (
        lambda: jacobian(total, (0, 5))(X, X),
        ArgumentError,
        r"argnums=\(0, 5\), but.*2 positional",
    ),
    "argnums of hessian": (lambda: hessian(total, 3)(X), ArgumentError, "argnums=3, but.*1 positional"),
    "an unknown order": (lambda: grad(total, order="sideways")(X), OrderError, "'sideways'.*'forward'"),
    "an order that is a number": (lambda: grad(total, order=3)(X), ArgumentError, "order=3.*vertex names"),
    "an empty order": (lambda: jacobian(torch.sin, order=[])(X), OrderError, "missing: sin"),
    "an unknown vertex": (lambda: jacobian(torch.sin, order=["cos"])(X), OrderError, "unknown: cos; missing: sin"),
    "a vertex twice": (lambda: jacobian(torch.sin, order=["sin", "sin"])(X), OrderError, "repeated: sin"),
    "an unknown backend": (lambda: grad(total, backend="gpu"), ArgumentError, "backend='gpu'.*'python'"),
    "a backend that is a number": (lambda: pullback.compile(total, backend=3), ArgumentError, "backend=3"),
    "chunks of 0": (lambda: jacobian(torch.sin, chunk_size=0), ArgumentError, "chunk_size=0"),
    "chunks of -1": (lambda: jacobian(torch.sin, chunk_size=-1), ArgumentError, "chunk_size=-1"),
    "chunks of a float": (lambda: jacobian(torch.sin, chunk_size=1.5), ArgumentError, r"chunk_size=1\.5"),
    "chunks of a string": (lambda: jacobian(torch.sin, chunk_size="2"), ArgumentError, "chunk_size='2'"),
    "a plan of chunks": (
        lambda: jacobian(torch.sin, chunk_size=1).plan(X),
        PullbackError,
        "chunk_size.*no single plan",
    ),
    "samples without an axis": (lambda: batch_jacobian(total)(X), ShapeError, r"float32\[\].*no axis 0.*out_dims"),
    "an axis that is missing": (lambda: batch_jacobian(torch.sin, in_dims=5)(X), ShapeError, "no axis 5.*in_dims"),
    "an axis that is a string": (lambda: batch_jacobian(torch.sin, in_dims="a"), ArgumentError, "in_dims='a'"),
    "too many axes": (lambda: batch_jacobian(torch.sin, in_dims=(0, 1))(X), ArgumentError, r"in_dims=\(0, 1\) has 2"),
    "mixed samples": (lambda: batch_jacobian(lambda x: x @ x)(X), BatchError, r"mixes samples.*aten\.mm"),
    "mixed samples twice": (lambda: batch_hessian(lambda x: x.sum() * x.sum(1))(X), BatchError, "mixes samples"),
}

VECTORS: dict[str, Misuse] = {
    "a cotangent of another shape": (
        lambda: vjp(torch.sin, X)[1](V),
        ShapeError,
        r"float32\[2, 2\].*it is float32\[2\]",
    ),
    "a cotangent of another dtype": (lambda: vjp(torch.sin, X)[1](X.double()), ShapeError, r"it is float64\[2, 2\]"),
    "a cotangent elsewhere": (
        lambda: vjp(torch.sin, X)[1](META),
        ArgumentError,
        "on cpu like the output; it is on meta",
    ),
    "a sparse cotangent": (lambda: vjp(torch.sin, X)[1](X.to_sparse()), ArgumentError, "dense.*sparse_coo"),
    "two cotangents": (lambda: vjp(torch.sin, X)[1](X, X), ArgumentError, "must be one argument, a tuple"),
    "an empty cotangent": (lambda: vjp(torch.sin, X)[1](()), ArgumentError, "structure of its output"),
    "a number as cotangent": (lambda: vjp(total, X)[1](1.0), ArgumentError, r"cotangent 0.*1\.0, not a tensor"),
    "None as cotangent": (lambda: vjp(torch.sin, X)[1](None), ArgumentError, "cotangent 0.*None, not a tensor"),
    "one cotangent of two": (lambda: vjp(pair, X)[1](X), ArgumentError, "structure of its output.*not \\*"),
    "a dictionary as cotangent": (lambda: vjp(torch.sin, X)[1]({"a": X}), ArgumentError, "structure.*'a'"),
    "no primals of vjp": (lambda: vjp(total), ArgumentError, "total.*no primals"),
    "a number as primal": (lambda: vjp(torch.sin, 3.0), ArgumentError, r"3\.0, which is not a tensor"),
    "tangents without tuples": (lambda: jvp(torch.sin, X, X), ArgumentError, "not Tensor and Tensor"),
    "tangents in a list": (lambda: jvp(torch.sin, (X,), [X]), ArgumentError, "not tuple and list"),
    "two tangents": (lambda: jvp(torch.sin, (X,), (X, X)), ArgumentError, "structure of the primals"),
    "a tangent of another shape": (lambda: jvp(torch.sin, (X,), (V,)), ShapeError, r"\(2,\).*\(2, 2\)"),
    "a tangent of another dtype": (lambda: jvp(torch.sin, (X,), (X.double(),)), ShapeError, "float64.*float32"),
    "a tangent elsewhere": (lambda: jvp(torch.sin, (X,), (META,)), ArgumentError, "tangent 0 is on meta.*on cpu"),
    "a sparse tangent": (lambda: jvp(torch.sin, (X,), (X.to_sparse(),)), ArgumentError, "sparse_coo.*strided"),
    "a number as tangent": (lambda: jvp(torch.sin, (X,), (1.0,)), ArgumentError, r"its tangent 1\.0"),
    "a dictionary as tangent": (lambda: jvp(torch.sin, (X,), ({"a": X},)), ArgumentError, "structure.*'a'"),
    "integers as tangent": (lambda: jvp(total, (INTEGERS,), (INTEGERS,)), ArgumentError, r"int64\[2\]"),
    "no primals of jvp": (lambda: jvp(torch.sin, (), ()), ArgumentError, "sin.*no primals"),
    "no primals of hvp": (lambda: hvp(total, (), ()), ArgumentError, "hvp.*non-empty tuple"),
    "hvp without tuples": (lambda: hvp(total, X, X), ArgumentError, "hvp.*not Tensor"),
    "hvp of another shape": (lambda: hvp(total, (X,), (V,)), ShapeError, r"\(2,\).*\(2, 2\)"),
}

INSIDE: dict[str, Misuse] = {
    "a branch": (lambda: grad(lambda x: x.sum() if x.sum() > 0 else x)(X), CaptureError, r"branches.*bool\[\].*where"),
    "a branch in a module": (lambda: grad(lambda x: branching(x).sum())(X), CaptureError, r"branches.*bool\[\]"),
    "torch.equal": (
        lambda: grad(lambda x: x.sum() * torch.equal(x, x + 1))(X),
        CaptureError,
        r"torch\.equal.*\[2, 2\]",
    ),
    "item": (lambda: grad(lambda x: x.sum() * x[0, 0].item())(X), CaptureError, r"\.item\(\).*float32\[\]"),
    "int": (lambda: grad(lambda x: x.sum() * int(x[0, 0]))(X), CaptureError, r"Python int: float32\[\]"),
    "math": (lambda: grad(lambda x: x.sum() * math.sqrt(x[0, 0]))(X), CaptureError, r"Python float: float32\[\]"),
    "numpy": (lambda: grad(lambda x: torch.from_numpy(x.numpy()).sum())(X), CaptureError, r"\.numpy\(\).*\[2, 2\]"),
    "an address": (
        lambda: grad(lambda x: x.sum() * x.data_ptr())(X),
        CaptureError,
        r"address of a tensor: float32\[2, 2\]",
    ),
    "elements of a tensor": (lambda: grad(takes_elements)(X), CaptureError, r"values of tensors \(tensor\).*stack"),
    "a mask": (lambda: grad(lambda x: x[x > 0].sum())(X), CaptureError, r"aten\.index\.Tensor.*depends on the values"),
    "unique": (lambda: grad(lambda x: x.unique().sum())(X), CaptureError, "_unique2.*depends on the values"),
    "an input changed": (lambda: grad(lambda x: x.mul_(2).sum())(X.clone()), CaptureError, "'x' in place"),
    "an input changed through a view": (lambda: grad(adds_in_place)(X.clone()), CaptureError, "'x' in place"),
    "data that is set": (lambda: grad(sets_data)(X.clone()), CaptureError, r"assigns to \.data"),
    "sparse tensors": (lambda: grad(lambda x: (x.to_sparse() * 2).sum())(X), CaptureError, "_to_sparse.*sparse_coo"),
    "a quantised tensor": (
        lambda: grad(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize().sum())(X),
        MissingRuleError,
        r"quantize_per_tensor.*float32\[2, 2\]",
    ),
    "requires_grad": (
        lambda: grad(lambda x: x.sum() * (2.0 if x.requires_grad else 1.0))(X),
        CaptureError,
        r"\.requires_grad.*argnums",
    ),
    "two devices": (
        lambda: grad(lambda x, y: (x + y).sum())(X, META),
        CallError,
        "cpu and meta.*fails in the same way",
    ),
    "a module on two devices": (lambda: grad(lambda x: two_devices(x).sum())(X), CallError, "cpu and meta"),
    "a weight elsewhere": (lambda: grad(lambda x: (x @ two_devices[1].weight).sum())(X), CallError, "cpu and meta"),
    "a product of other shapes": (lambda: grad(lambda x: (x @ torch.ones(3)).sum())(X), CallError, "2x2.*3"),
    "a sum of other shapes": (lambda: grad(lambda x: (x + torch.ones(3)).sum())(X), CallError, r"\[3\].*\[2, 2\]"),
    "a view of another size": (lambda: grad(lambda x: x.view(3).sum())(X), CallError, r"'\[3\]'.*size 4"),
    "what cannot be joined": (
        lambda: grad(lambda x: torch.cat([x, V]).sum())(X),
        CallError,
        "2-D tensors, but got 1-D",
    ),
    "an optimiser": (lambda: pullback.compile(lambda x: optimiser.step())(X), CaptureError, r"SGD\.step\(\)"),
    "a record": (
        lambda: grad(a_record_inside_a_transform)(V),
        RecordError,
        r"record\(\).*a function that pullback traces",
    ),
}

COMPILED: dict[str, Misuse] = {
    "another shape": (
        lambda: grad(total).compile(X)(V),
        SignatureError,
        r"x has to be float32\[2, 2\].*is float32\[2\]",
    ),
    "another dtype": (lambda: grad(total).compile(X)(X.double()), SignatureError, r"is float64\[2, 2\]"),
    "another device": (lambda: grad(total).compile(X)(META), SignatureError, "on cpu, and is.*on meta"),
    "other strides": (lambda: grad(total).compile(X)(X.T), SignatureError, r"strides \(1, 2\)"),
    "too many arguments": (lambda: grad(total).compile(X)(X, X), SignatureError, "has to be 1, and is 2"),
    "too few arguments": (lambda: grad(total).compile(X)(), SignatureError, "has to be 1, and is 0"),
    "a list": (lambda: grad(total).compile(X)([X]), SignatureError, "and is a list"),
    "a keyword": (lambda: grad(total).compile(X)(x=X), SignatureError, "has to be 1, and is 0"),
    "a number": (lambda: grad(total).compile(X)(3.0), SignatureError, r"and is 3\.0"),
    "another number": (
        lambda: grad(lambda x, k: (x * k).sum()).compile(X, 2.0)(X, 3.0),
        SignatureError,
        r"k has to be 2\.0, and is 3\.0",
    ),
    "no examples": (lambda: grad(total).compile(), ArgumentError, "argnums=0.*0 positional"),
    "a function as an example": (lambda: jacobian(total).compile(X, torch.sin), ArgumentError, "sin.*from its closure"),
    "a branch": (lambda: pullback.compile(lambda x: x if x.sum() > 0 else -x)(X), CaptureError, r"branches.*bool\[\]"),
    "an object": (lambda: pullback.compile(total)(X, object()), ArgumentError, "a object, which cannot be compared"),
    "a graph at another shape": (lambda: trace(total, X).forward(V), ShapeError, r"float32\[2, 2\].*\(2,\)"),
    "a graph without arguments": (
        lambda: trace(total, X).forward(),
        ArgumentError,
        "traced with arguments.*it is given",
    ),
    "a graph without values": (lambda: trace(total, X).local_jacobian("edge", {}), ArgumentError, "values lack x, sum"),
    "two outputs without a cotangent": (
        lambda: trace(pair, X).backward(trace(pair, X).forward(X)),
        ShapeError,
        r"float32\[\], float32\[2, 2\], not one scalar",
    ),
}

TAPES: dict[str, Misuse] = {
    **{
        f.__name__: (f, RecordError, said)
        for f, said in (
            (an_operation_after_the_block, r"float32\[\] was not recorded"),
            (a_tensor_of_another_tape, r"float32\[\] was recorded by another tape"),
            (a_tensor_of_another_tape_backward, r"float32\[\] was recorded by another tape"),
            (a_released_tape, "this tape was released"),
            (a_released_tape_backward, "this tape was released"),
            (a_tape_twice, "second time, the first time by this thread"),
            (a_tape_in_itself, "second time, the first time by this thread"),
            (a_tape_of_two_threads, "second time, the first time by another thread"),
            (an_operation_of_another_thread, r"float32\[\].*outside of the block"),
            (a_record_in_inference_mode, "in inference mode"),
            (a_result_changed_afterwards, r"float32\[2\] was changed in place after the block"),
            (a_leaf_changed_afterwards, r"aten\.mul\.Tensor.*float32\[2\].*changed in place"),
            (data_that_is_replaced, r"\.data of a recorded tensor \(float32\[2\]\)"),
            (backward_of_autograd, r"loss\.backward\(\).*tape\.backward\(loss\)"),
            (backward_of_autograd_inside, r"backward\(\) of torch\.autograd.*tape\.backward\(loss\)"),
            (grad_of_autograd_inside, r"grad\(\) of torch\.autograd.*tape\.grad\(loss, inputs\)"),
            (a_suspended_block, "a generator that was suspended"),
        )
    },
    "a number as loss": (lambda: asks(recorded()[0], 3.0), ArgumentError, r"not 3\.0"),
    "None as loss": (lambda: recorded()[0].backward(None), ArgumentError, "not None"),
    "a number as input": (lambda: asks(*recorded(), 3.0), ArgumentError, r"inputs hold 3\.0"),
    "a string among the inputs": (lambda: asks(*recorded(), [W, "w"]), ArgumentError, "inputs hold 'w'"),
    "an input that was not read": (lambda: asks(*recorded(), V), RecordError, r"float32\[2\] was not recorded"),
    "an unused input": (
        lambda: asks(*recorded(), torch.ones(3, requires_grad=True)),
        ArgumentError,
        r"does not depend on input 0 \(float32\[3\]\).*allow_unused",
    ),
    "a vector without a seed": (lambda: recorded()[0].backward(W), ShapeError, r"float32\[2\] has 2 elements.*seed"),
    "a seed of another shape": (lambda: asks(*recorded(), seed=torch.ones(3)), ShapeError, r"the seed is float32\[3\]"),
    "a seed of another dtype": (
        lambda: asks(*recorded(), seed=torch.ones((), dtype=torch.float64)),
        ShapeError,
        r"the seed is float64\[\]",
    ),
    "a number as seed": (lambda: asks(*recorded(), seed=2.0), ShapeError, r"the seed is 2\.0"),
}

TABLES = {
    "arguments": ARGUMENTS,
    "functions": FUNCTIONS,
    "outputs": OUTPUTS,
    "options": OPTIONS,
    "vectors": VECTORS,
    "inside": INSIDE,
    "compiled": COMPILED,
    "tapes": TAPES,
}
ROWS = {f"{part}: {name}": row for part, table in TABLES.items() for name, row in table.items()}


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def lines_of(use: Callable[..., Any]) -> set[int]:
    """The lines of a use, and those of the functions of this file that it names."""
    pending, seen = [use.__code__], set()
    while pending:
        for code in codes(pending.pop()):
            seen.add(code)
            named = [globals().get(name) for name in code.co_names]
            named += [type(f).forward for f in named if isinstance(f, Branching)]
            pending += [f.__code__ for f in named if inspect.isfunction(f) and f.__code__ not in seen]
    return {line for code in seen if code.co_filename == __file__ for *_, line in code.co_lines() if line}


def said_of(use: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        use()
    return raised.value


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.reference  # the gate in front of torch.autograd would stand between a record and its refusal
@pytest.mark.parametrize("name", ROWS)
def test_the_class_the_value_and_the_line(name: str) -> None:
    use, error, value = ROWS[name]
    said = said_of(use)
    assert type(said) is error, said
    assert isinstance(said, PullbackError)
    assert re.search(value, str(said), re.DOTALL), said
    places = {int(line) for line in re.findall(rf"{re.escape(__file__)}:(\d+)", str(said))}
    in_the_gate = "support.py:" in str(said)  # it stands between the user's call and torch.autograd
    assert in_the_gate or places & lines_of(use), f"{said}\n names no line of this use"
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert count_function_modes() == 0, "a mode is left behind"
    assert not THREAD.tapes


def plain(message: str) -> str:
    """A message without the values in it."""
    for pattern in (
        r"\n  at .*",
        r"\([^()]*\)",
        r"TreeSpec.*",
        r"'[^']*'",
        r"\w+\[[^\]]*\]",
        r"\b\w*\d[\w.]*",
        r"\b(None|True|sin|total|pair|generates|waits|tensor|array|tuple|list|dict|cpu|meta|Tensor)\b",
        rf"{re.escape(str(Path(__file__).parent))}\S*",
    ):
        message = re.sub(pattern, "…", message)
    return re.sub(r"[\s…]+", " ", message)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.reference  # as above
def test_there_are_many_and_they_say_different_things() -> None:
    assert len(ROWS) >= 120, len(ROWS)
    messages = {plain(str(said_of(use))) for use, *_ in ROWS.values()}
    print(f"{len(ROWS)} wrong uses, {len(messages)} different messages")
    assert len(messages) >= 40, "\n".join(sorted(messages))
