"""Capture: each trap that PyTorch sets for a tracer has a test here."""

import contextlib
import math
import re
import time
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback import torch_private
from pullback.capture import Captured, capture
from pullback.errors import ArgumentError, CaptureError, UnsupportedTorchError
from pullback.graph import Value
from pullback.torch_private import overload, tree_flatten

KEEP = frozenset({"aten._log_softmax.default", "aten.nll_loss_forward.default"})


def trace(f, *args, keep=frozenset(), **kwargs) -> Captured:
    flat, spec = tree_flatten((args, kwargs))
    return capture(f, flat, spec, keep=keep)


def operators(captured: Captured) -> Counter:
    return Counter(node.op.split(".")[1] for node in captured.graph.nodes)


def evaluate(captured: Captured, *tensors: Tensor) -> tuple[list, list]:
    """The outputs and the written-back values of a captured graph, by running its operators one by one."""
    known = dict(zip(captured.graph.inputs, [*tensors, *captured.lifted], strict=True))

    def real(argument):
        if isinstance(argument, Value):
            return known[argument]
        return [real(item) for item in argument] if isinstance(argument, tuple) else argument

    with torch.no_grad():
        for node in captured.graph.nodes:
            result = overload(node.op)(*map(real, node.args), **{key: real(a) for key, a in node.kwargs})
            results = result if isinstance(result, (tuple, list)) else [result]
            for value, tensor in zip(node.outputs, results, strict=True):
                if value is not None:
                    assert (tuple(tensor.shape), f"torch.{value.dtype}") == (value.shape, str(tensor.dtype)), node
                    known[value] = tensor
    return [real(v) for v in captured.graph.outputs], [known[new] for _, new in captured.graph.mutations]


def assert_functional(captured: Captured) -> None:
    for node in captured.graph.nodes:
        assert not overload(node.op)._schema.is_mutable, node


X = torch.linspace(-1.0, 2.0, 12).reshape(4, 3)
SEQUENCE = torch.linspace(-1.0, 1.0, 2 * 5 * 8).reshape(2, 5, 8)
IMAGES = torch.linspace(-1.0, 1.0, 2 * 8 * 8).reshape(2, 1, 8, 8)


# The graph itself ----------------------------------------------------------------------------------------------------


def test_names_types_and_lines():
    def f(x, params):
        y = x @ params["fc.weight"]  # the line of `mm`
        return torch.tanh(y).sum()

    captured = trace(f, X, {"fc.weight": torch.ones(3, 2)})
    graph = captured.graph
    assert [v.name for v in graph.inputs] == ["x", "fc.weight"]
    assert [n.op for n in graph.nodes] == ["aten.mm.default", "aten.tanh.default", "aten.sum.dim_IntList"]
    assert [n.results[0].name for n in graph.nodes] == ["mm", "tanh", "sum"]
    mm = graph.nodes[0]
    assert mm.results[0].type == "float32[4, 2]"
    assert mm.source.file == __file__
    assert mm.source.function == "f"
    assert "# the line of `mm`" in mm.source.code
    assert len({v.name for n in graph.nodes for v in n.results}) == len(graph.nodes)


def test_names_of_arguments():
    def f(a, *rest, scale, inner):
        return a * rest[0] * rest[1] * scale * inner[0]

    names = [v.name for v in trace(f, X, X, X, scale=X, inner=(X,)).graph.inputs]
    assert names == ["a", "rest_0", "rest_1", "scale", "inner.0"]
    assert trace(torch.sin, X).graph.inputs[0].name
    two = trace(lambda p, q: p["w"] * q["w"], {"w": X}, {"w": X})
    assert [v.name for v in two.graph.inputs] == ["p.w", "q.w"]


def test_given_names():
    flat, spec = tree_flatten(((X, 2.0, X), {}))
    captured = capture(lambda x, c, y: x * c + y, flat, spec, keep=frozenset(), names=["u", "c", "v"])
    assert [v.name for v in captured.graph.inputs] == ["u", "v"]


def test_result_structure_with_constants():
    captured = trace(lambda x: {"a": x * 2, "b": (3, None)}, X)
    assert captured.graph.outputs[1:] == (3, None)
    assert torch_private.tree_unflatten([0, 1, 2], captured.out_spec) == {"a": 0, "b": (1, 2)}


def test_argument_returned_twice_and_unused():
    captured = trace(lambda x, y: (x, x), X, X)
    assert captured.graph.outputs == (captured.graph.inputs[0],) * 2
    assert captured.graph.nodes == ()


def test_dead_code_is_dropped():
    assert operators(trace(lambda x: (x.sin(), x * 2)[1], X)) == {"mul": 1}


def test_unread_results_stay_for_rules_to_read():
    node = trace(lambda x: x.max(0)[0], X).graph.nodes[0]
    assert node.op == "aten.max.dim"
    assert [v.type for v in node.results] == ["float32[3]", "int64[3]"]


def test_module_scope_and_parameter_names():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 2)))
    captured = trace(model, X)
    assert {n.scope for n in captured.graph.nodes} == {"0", "1", "2.0"}
    assert {v.name for v in captured.graph.inputs[1:]} == {"0.weight", "0.bias", "2.0.weight", "2.0.bias"}
    assert all(any(t is p for p in model.parameters()) for t in captured.lifted)


def test_functional_call_names_are_those_of_the_module():
    model = nn.Linear(3, 2)
    f = lambda params, x: torch.func.functional_call(model, params, (x,))  # noqa: E731
    captured = trace(f, dict(model.named_parameters()), X)
    assert [v.name for v in captured.graph.inputs] == ["weight", "bias", "x"]
    assert captured.lifted == ()


def test_line_is_right_in_the_second_pass():
    def f(x):
        y = x.clone()
        y.mul_(2)  # here
        return y.exp()

    nodes = trace(f, X).graph.nodes
    assert [n.op for n in nodes] == ["aten.clone.default", "aten.mul.Tensor", "aten.exp.default"]
    assert "# here" in nodes[1].source.code
    assert nodes[2].source.line == nodes[1].source.line + 1


# Traps of composite operators and in-place changes -------------------------------------------------------------------

recurrent = {
    "lstm": nn.LSTM(8, 8, 2),
    "gru": nn.GRU(8, 8, bidirectional=True),
    "rnn": nn.RNN(8, 8),
}
encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
cell = nn.LSTMCell(8, 8)
attention = nn.MultiheadAttention(8, 2, batch_first=True)
MODELS = {
    **{name: lambda x, m=m: m(x)[0] for name, m in recurrent.items()},
    "lstm cell": lambda x: cell(x[0])[0],
    "encoder in training": lambda x: encoder.train()(x),
    "encoder in evaluation": lambda x: encoder.eval()(x),
    "attention": lambda x: attention(x, x, x)[0],
    "sdpa": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True),
    "views": lambda x: x.transpose(0, 1).contiguous().view(5, 16)[:, 1:9].unsqueeze(0).expand(2, 5, 8).sum(0),
    "in place": lambda x: x.clone().add_(1).mul_(x),
    "write to a slice": lambda x: _write_slice(x),
    "write to a view": lambda x: _write_view(x),
    "out=": lambda x: torch.add(x, x, out=torch.empty(2, 5, 8)),
    "einsum": lambda x: torch.einsum("bij,bkj,bkl->bil", x, x, x),
    "matmul of a non-contiguous batch": lambda x: x.transpose(0, 1) @ torch.ones(8, 3),
    "vmap inside": lambda x: torch.vmap(lambda row: row.sin().sum())(x),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False),
    "inference mode": lambda x: torch.inference_mode()(lambda y: F.linear(y, torch.ones(4, 8)))(x),
}


def _write_slice(x):
    y = x.clone()
    y[:, 1:3] = x[:, :2] * 2
    y[0] = 3.0
    return y


def _write_view(x):
    y = x.clone()
    y.view(-1)[::2].mul_(5)
    return y * 2


@pytest.mark.parametrize("name", MODELS)
def test_program_is_functional_and_right(name):
    captured = trace(MODELS[name], SEQUENCE)
    assert_functional(captured)
    (result,), _ = evaluate(captured, SEQUENCE)
    assert torch.allclose(result, MODELS[name](SEQUENCE), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_both_passes_give_the_same_program(name):
    def with_a_change_in_place(x):
        torch.zeros(2).add_(1)
        return MODELS[name](x)

    assert operators(trace(with_a_change_in_place, SEQUENCE)) == operators(trace(MODELS[name], SEQUENCE))


def test_lstm_is_not_one_opaque_operator():
    assert not any("mkldnn" in op for op in operators(trace(MODELS["lstm"], SEQUENCE)))


def test_encoder_in_evaluation_is_not_one_opaque_operator():
    assert not any("transformer" in op for op in operators(trace(MODELS["encoder in evaluation"], SEQUENCE)))


def test_batch_norm_writes_its_buffers_back():
    model = nn.BatchNorm1d(3)
    captured = trace(model, X)
    assert_functional(captured)
    before = [b.clone() for b in model.buffers()]
    _, written = evaluate(captured, X)
    names = [old.name for old, _ in captured.graph.mutations]
    assert sorted(names) == ["num_batches_tracked", "running_mean", "running_var"]
    assert all(torch.equal(b, old) for b, old in zip(model.buffers(), before, strict=True)), "capture changed a buffer"
    model(X)
    buffers = dict(model.named_buffers())
    for name, value in zip(names, written, strict=True):
        assert torch.allclose(buffers[name], value)


def test_batch_norm_buffers_as_arguments():
    model = nn.BatchNorm1d(3)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    captured = trace(lambda p, x: torch.func.functional_call(model, p, (x,)), tensors, X)
    assert {old.name for old, _ in captured.graph.mutations} == set(dict(model.named_buffers()))
    assert captured.lifted == ()


def test_batch_norm_in_evaluation_writes_nothing():
    assert trace(nn.BatchNorm1d(3).eval(), X).graph.mutations == ()


def test_change_of_an_argument_is_a_mutation():
    captured = trace(lambda x: x.mul_(2).sin(), X)
    ((old, new),) = captured.graph.mutations
    assert (old.name, new.name) == ("x", "mul")


def test_dropout_keeps_its_mask():
    node = trace(lambda x: F.dropout(x, 0.5), X).graph.nodes[0]
    assert node.op == "aten.native_dropout.default"
    assert len(node.outputs) == 2


def test_keep_holds_back_decomposition():
    target = torch.tensor([0, 2, 1, 1])
    loss = lambda x, t: F.cross_entropy(x, t)  # noqa: E731
    assert [n.op for n in trace(loss, X, target, keep=KEEP).graph.nodes] == sorted(KEEP)
    assert len(trace(loss, X, target).graph.nodes) > 5

    def changing(x, t):
        return F.cross_entropy(x.clone().mul_(2), t)

    kept = operators(trace(changing, X, target, keep=KEEP))
    assert kept == {"clone": 1, "mul": 1, "_log_softmax": 1, "nll_loss_forward": 1}


def test_keep_survives_functionalization():
    keep = frozenset({"aten.binary_cross_entropy_with_logits.default"})

    def f(x):
        return F.binary_cross_entropy_with_logits(x.clone().mul_(2), torch.ones(4, 3))

    assert operators(trace(f, X, keep=keep))["binary_cross_entropy_with_logits"] == 1


def test_a_cast_is_a_node():
    captured = trace(lambda x: x.double().sum().half(), X)
    assert operators(captured) == {"_to_copy": 2, "sum": 1}
    assert captured.graph.outputs[0].dtype == "float16"


def test_autocast_is_captured():
    def f(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.T

    captured = trace(f, X)
    assert operators(captured)["_to_copy"] >= 1
    assert captured.graph.outputs[0].dtype == "bfloat16"


# Stopped derivatives -------------------------------------------------------------------------------------------------


def test_detach_is_kept():
    assert operators(trace(lambda x: x.sin().detach() * x, X)) == {"sin": 1, "detach": 1, "mul": 1}


def test_no_grad_becomes_detach():
    def f(x):
        with torch.no_grad():
            y = x.sin()
        return y * x

    assert [n.op for n in trace(f, X).graph.nodes] == ["aten.sin.default", "aten.detach.default", "aten.mul.Tensor"]


def test_no_grad_around_the_caller_does_not_matter():
    with torch.no_grad():
        assert operators(trace(torch.sin, X)) == {"sin": 1}
    with torch.inference_mode():
        assert operators(trace(lambda x: F.linear(x, x), X)) == operators(trace(lambda x: F.linear(x, x), X))


def test_in_place_under_no_grad():
    def fresh(x):
        with torch.no_grad():
            y = x.sin()
            y.add_(x)
        return y * x

    assert operators(trace(fresh, X))["detach"] >= 2

    def differentiated(x):
        y = x.sin()
        with torch.no_grad():
            y.clamp_(0, 1)
        return y

    with pytest.raises(CaptureError, match=r"in place under torch\.no_grad"):
        trace(differentiated, X)


def test_factories_are_not_detached():
    assert "detach" not in operators(trace(lambda x: torch.arange(3).view(1, 3) * x + torch.rand_like(x), X))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_requires_grad_does_not_matter(requires_grad):
    weight = torch.ones(8, 4, requires_grad=requires_grad)
    captured = trace(lambda x: x.transpose(0, 1) @ weight, SEQUENCE.clone().requires_grad_(requires_grad))
    assert operators(captured)["mm"] == 1, "a batch of rows times one matrix is one product, as in autograd"


def test_compiled_function_is_traced_plainly():
    compiled = torch.compile(lambda x: x.sin() * 2)
    assert operators(trace(lambda x: compiled(x) + 1, X)) == {"sin": 1, "mul": 1, "add": 1}


# What the function reads besides its arguments -----------------------------------------------------------------------


def test_closed_over_tensors_are_lifted_by_identity():
    weight, scale = nn.Parameter(torch.ones(3, 3)), torch.tensor(2.0)
    captured = trace(lambda x: (x @ weight) * scale + weight.sum(), X)
    assert len(captured.lifted) == 2
    assert captured.lifted[0] is weight
    assert captured.lifted[1] is scale
    assert captured.constants == (False, False)
    assert [v.name for v in captured.graph.inputs] == ["x", "weight", "scale"]


def test_a_tensor_that_is_only_looked_at_is_not_lifted():
    other = torch.ones(7, 2)
    assert trace(lambda x: x * other.shape[0] * other.dim(), X).lifted == ()


def test_closed_over_tensor_as_result():
    other = torch.ones(2)
    captured = trace(lambda x: (x, other), X)
    assert captured.lifted[0] is other
    assert captured.graph.outputs == captured.graph.inputs


def test_tied_parameters_are_one_input():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    captured = trace(nn.Sequential(first, second), X)
    assert len(captured.lifted) == 1
    assert captured.graph.inputs[1].name == "0.weight"


def test_tensor_made_inside_is_a_constant():
    captured = trace(lambda x: x * torch.tensor([1.0, 2.0, 3.0]), X)
    assert captured.constants == (True,)
    assert captured.lifted[0].tolist() == [1.0, 2.0, 3.0]
    assert operators(captured) == {"mul": 1}


def test_value_of_a_constant_may_be_read():
    assert operators(trace(lambda x: x * int(torch.tensor(3)), X)) == {"mul": 1}


def test_changed_constant_stays_a_constant():
    def f(x):
        c = torch.tensor([1.0, 2.0, 3.0])
        c[0] = x[0, 0]
        return c * 2

    captured = trace(f, X)
    assert captured.graph.mutations == ()
    for _ in range(2):
        assert evaluate(captured, X)[0][0].tolist() == [-2.0, 4.0, 6.0]


def test_array_turned_into_a_tensor():
    captured = trace(lambda x: x * torch.from_numpy(np.ones(3, dtype=np.float32)), X)
    assert captured.constants == (True,)


def test_change_of_shared_memory_is_refused():
    base = torch.ones(4, 3)
    view = base[0]
    with pytest.raises(CaptureError, match="shares its memory"):
        trace(lambda x: (base.mul_(2), x * view)[1], X)
    with pytest.raises(CaptureError, match="shares its memory"):
        trace(lambda x, y: x.mul_(2) + y, X, X)
    assert base.tolist() == torch.ones(4, 3).tolist()


# Nesting -------------------------------------------------------------------------------------------------------------


def test_capture_inside_capture_to_depth_three():
    seen: list[Captured] = []
    w = torch.ones(3)

    def depth(level):
        def f(x):
            y = x * w
            if level:
                seen.append(trace(lambda z: depth(level - 1)(z) + y + w, x))
            return y

        return f

    outer = trace(depth(2), X)
    assert outer.lifted == (w,) or outer.lifted[0] is w
    assert len(seen) == 2
    for inner in seen:
        assert operators(inner) == {"mul": 1, "add": 2}
        assert len(inner.lifted) == 2
        assert sum(torch_private.is_fake(t) for t in inner.lifted) == 1
        assert any(t is w for t in inner.lifted)


def test_lifted_outer_tensor_is_the_very_object():
    found = []

    def f(x):
        y = x.sin()
        inner = trace(lambda z: z * y, x)
        found.append(inner.lifted[0] is y)
        return y

    assert operators(trace(f, X)) == {"sin": 1}
    assert found == [True]


def test_capture_under_vmap():
    seen = []

    def f(row):
        seen.append(trace(lambda r: (r * row).sum(), row))
        return row

    torch.vmap(f)(X)
    assert seen[0].graph.inputs[0].shape == (3,)
    assert torch_private.is_functorch_wrapped(seen[0].lifted[0])


# Refusals ------------------------------------------------------------------------------------------------------------


class Endless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


closed = torch.tensor(0.5)
REFUSED = {
    "branch": (lambda x: x if x.sum() > 0 else -x, "branches on the value.*torch.where"),
    "and": (lambda x: x.all() and x, "branches on the value"),
    "equal": (lambda x: torch.equal(x, x * 2), "branches on the values"),
    "allclose": (lambda x: torch.allclose(x, x * 2), "branches on the values"),
    "int": (lambda x: x * int(x[0, 0]), "Python int"),
    "float": (lambda x: x * float(x[0, 0]), "Python float"),
    "math": (lambda x: x * math.sqrt(x.sum()), "Python float"),
    "item": (lambda x: x * x.sum().item(), r"\.item\(\)"),
    "index": (lambda x: [1, 2, 3][x.argmax()], "Python int"),
    "numpy": (lambda x: torch.from_numpy(x.numpy()), r"\.numpy\(\)"),
    "asarray": (lambda x: torch.from_numpy(np.asarray(x)), "NumPy"),
    "np.sin": (lambda x: torch.from_numpy(np.sin(x)), "NumPy"),
    "tolist": (lambda x: torch.tensor(x.tolist()), r"\.tolist\(\)"),
    "torch.tensor": (lambda x: torch.tensor([x[0, 0], x[0, 1]]), r"torch\.stack"),
    "closed item": (lambda x: x * closed.item(), r"\.item\(\)"),
    "closed branch": (lambda x: x if closed > 0 else -x, "branches on the value"),
    "closed numpy": (lambda x: x * float(closed.numpy()), r"\.numpy\(\)"),
    "nonzero": (lambda x: x.nonzero(), "not done yet"),
    "boolean mask": (lambda x: x[x > 0], "not done yet"),
    "unique": (lambda x: x.unique(), "not done yet"),
    "autograd.Function": (lambda x: Endless.apply(x), "Endless.*no backward.*plain tensor code"),
    "sparse": (lambda x: x.to_sparse(), "not done yet"),
    "cond": (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.sum, (x,)), "branches of cond return.*same structure"),
    "data": (lambda x: setattr(x, "data", x * 2), r"assigns to \.data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_line_and_the_way_out(name):
    f, pattern = REFUSED[name]
    with pytest.raises(CaptureError, match=re.compile(pattern, re.DOTALL)) as refused:
        trace(f, X)
    assert f"{__file__}:{f.__code__.co_firstlineno}: " in str(refused.value)


@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_unsupported_arguments(kind):
    argument = X.to_sparse() if kind == "sparse" else torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    with pytest.raises(ArgumentError, match="'x'"):
        trace(lambda x: x * 1, argument)
    with pytest.raises(CaptureError, match="f reads"):
        trace(lambda x: argument * x, X)


def test_an_error_of_the_user_is_left_alone():
    with pytest.raises(KeyError, match="mine"):
        trace(lambda x: {}["mine"], X)


# State ---------------------------------------------------------------------------------------------------------------


def settings():
    return (
        torch.is_grad_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_autocast_cache_enabled(),
        torch.autograd.Function.__dict__["apply"],
        torch_private.FunctionBase.__dict__.get("apply"),
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
        torch_private.decompositions.should_fold,
        len(nn.modules.module._global_forward_pre_hooks),
        len(nn.modules.module._global_forward_hooks),
    )


def _fails_in_module(x):
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError("on purpose")

    return nn.Sequential(Failing())(x)


@pytest.mark.parametrize(
    "f", [torch.sin, lambda x: x if x.sum() > 0 else -x, _fails_in_module, lambda x: x.clone().mul_(2), Doubled.apply]
)
def test_state_is_restored(f):
    before = settings()
    with contextlib.suppress(CaptureError, ValueError):
        trace(f, X)
    assert settings() == before
    assert torch.equal(Doubled.apply(X), X * 2)
    assert (torch.ones(2) * 2).tolist() == [2.0, 2.0]


def test_arguments_are_left_alone():
    x = X.clone().requires_grad_()
    trace(lambda x: (x * 2).mul_(3).requires_grad_(), x)
    assert torch.equal(x, X)
    assert x.grad is None


# Cost ----------------------------------------------------------------------------------------------------------------


def chain(length):
    def f(x, w):
        for _ in range(length // 4):
            x = torch.tanh(x @ w) + x * 0.5
        return x

    return f


def seconds(f, *args) -> float:
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        trace(f, *args)
        best = min(best, time.perf_counter() - start)
    return best


def test_time_is_linear():
    x = torch.ones(4, 4)
    trace(chain(8), x, x)
    short, long = seconds(chain(500), x, x), seconds(chain(2000), x, x)
    assert len(trace(chain(500), x, x).graph.nodes) == 500
    assert long < 8 * short
    assert long < 6.0  # 0.3 s on a quiet machine


def test_all_private_interfaces_exist(monkeypatch):
    torch_private.check_all()
    monkeypatch.setattr(torch_private, "PLACES", ["torch:no_such_name"])
    with pytest.raises(UnsupportedTorchError, match=r"2\.13.*torch:no_such_name"):
        torch_private.check_all()
    with pytest.raises(UnsupportedTorchError, match="no operator"):
        overload("aten.no_such.default")
