"""The teacher's graph against the compiled program, on every network, and what it prints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pullback
from pullback.evaluation import dense
from pullback.notation import structure
from pullback.terms import Jac
from support import reference


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell = cell(3, 2, batch_first=True)
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


@dataclass(frozen=True)
class Network:
    """A network, and the arguments of its call."""

    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


NETWORKS = {
    "xor": Network(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.Sigmoid()), (normal(4, 2),)),
    "mlp": Network(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), (normal(2, 3),)
    ),
    "cnn": Network(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
        (normal(2, 1, 6, 6),),
    ),
    "strided cnn": Network(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, groups=2), nn.ReLU(), nn.AvgPool2d(2)), (normal(1, 2, 9, 9),)
    ),
    "lstm": Network(lambda: Recurrent(nn.LSTM), (normal(2, 3, 3),)),
    "gru": Network(lambda: Recurrent(nn.GRU), (normal(2, 3, 3),)),
    "elman": Network(lambda: Recurrent(nn.RNN), (normal(2, 3, 3),)),
    "attention": Network(Attention, (normal(1, 3, 4),)),
    "encoder": Network(lambda: nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True), (normal(1, 3, 4),)),
    "batch norm, training": Network(lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), (normal(4, 3),)),
    "batch norm, evaluation": Network(
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Tanh()).eval(), (normal(4, 3),)
    ),
    "layer norm": Network(lambda: nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), (normal(4, 3),)),
    "group norm": Network(lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()), (normal(2, 4, 3),)),
    "embedding": Network(lambda: nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)), (torch.tensor([[0, 2], [2, 4]]),)),
    "dropout": Network(lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0), nn.Linear(3, 1)), (normal(2, 3),)),
    "softmax": Network(lambda: nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(-1)), (normal(2, 3),)),
}


@dataclass(frozen=True)
class Walk:
    """A network's loss, traced, and walked forward and backward."""

    module: nn.Module
    loss: Callable[..., Tensor]
    inputs: tuple[Any, ...]
    graph: pullback.TracedGraph
    values: dict[str, Tensor]
    cotangents: dict[str, Tensor]


WALKS: dict[str, Walk] = {}


def weighted(output: Tensor) -> Tensor:
    """A loss in which no two entries of the output count the same."""
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64).view_as(output)
    return (output * weights + output**2).sum()


def walk(name: str) -> Walk:
    """Each network is walked once for all tests."""
    if name not in WALKS:
        torch.manual_seed(0)
        module = NETWORKS[name].make().double()

        def loss(*inputs: Any) -> Tensor:
            return weighted(module(*inputs))

        inputs = NETWORKS[name].inputs
        graph = pullback.trace(loss, *inputs)
        values = graph.forward(*inputs)
        WALKS[name] = Walk(module, loss, inputs, graph, values, graph.backward(values))
    return WALKS[name]


def close(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------- against the compiled program


@pytest.mark.parametrize("name", NETWORKS)
def test_backward_is_the_compiled_program(name: str) -> None:
    walked = walk(name)
    parameters = {key: p.detach().clone() for key, p in walked.module.named_parameters()}

    def loss(parameters: dict[str, Tensor], *inputs: Any) -> Tensor:
        return weighted(torch.func.functional_call(walked.module, parameters, inputs))

    value, gradient = pullback.value_and_grad(loss)(parameters, *walked.inputs)
    close(walked.values[walked.graph.outputs[0].name], value)
    close({key: walked.cotangents[key] for key in parameters}, gradient)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "embedding"])
def test_backward_in_the_arguments(name: str) -> None:
    walked = walk(name)
    close(walked.cotangents[walked.graph.inputs[0].name], pullback.grad(walked.loss)(*walked.inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_is_the_module(name: str) -> None:
    walked = walk(name)
    close(walked.values[walked.graph.outputs[0].name], walked.loss(*walked.inputs).detach())
    produced = {value.name for node in walked.graph.nodes for value in node.results}
    assert produced | {value.name for value in walked.graph.inputs} == walked.values.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_local_jacobians_are_pytorchs(name: str) -> None:
    """Every edge: the node's operator, differentiated by PyTorch at the values of the walk."""
    graph, values = walk(name).graph, walk(name).values
    for edge in graph.edges:
        if "batch_norm" in edge.node.op:  # PyTorch's kernel writes to its buffers; the whole network is compared above
            continue
        if edge.output > 0:  # saved statistics: PyTorch knows no derivative of them
            continue
        close(graph.local_jacobian(edge, values).dense, jacobian_by_pytorch(edge, values))


def jacobian_by_pytorch(edge: pullback.Edge, values: dict[str, Tensor]) -> Tensor:
    def operator(x: Tensor) -> Tensor:
        places = iter(range(len(edge.node.inputs)))

        def given(tree: Any) -> Any:
            if isinstance(tree, pullback.Value):
                return x if next(places) == edge.operand else values[tree.name]
            return [given(item) for item in tree] if isinstance(tree, tuple) else tree

        namespace, op, overload = edge.node.op.split(".")
        function = getattr(getattr(getattr(torch.ops, namespace), op), overload)
        result = function(*given(edge.node.args), **{key: given(a) for key, a in edge.node.kwargs})
        return result[edge.output] if isinstance(result, (tuple, list)) else result

    with reference():
        return torch.autograd.functional.jacobian(operator, values[edge.source.name])


# ---------------------------------------------------------------- cotangents of inner nodes


def test_the_cotangent_of_a_node_is_the_derivative_in_it() -> None:
    x, w = normal(3), normal(3, 2)

    def rest(h: Tensor) -> Tensor:
        return (h.tanh() * h).sum()

    graph = pullback.trace(lambda x, w: rest(x @ w), x, w)
    values = graph.forward(x, w)
    tanh = next(edge for edge in graph.edges if edge.target.name == "tanh")
    close(graph.backward(values)[tanh.source.name], pullback.grad(rest)(x @ w))


def test_cotangents_of_every_node_of_a_network() -> None:
    """Each node in turn is made an argument of what follows it, and differentiated by the compiler."""
    x, w = normal(2, 3), normal(3, 3)
    steps = [torch.sin, lambda h: h @ w, torch.tanh, lambda h: h.softmax(-1), torch.square]

    def run(h: Tensor, start: int) -> Tensor:
        for step in steps[start:]:
            h = step(h)
        return h[0].sum()

    graph = pullback.trace(lambda x: run(x, 0), x)
    values = graph.forward(x)
    cotangents = graph.backward(values)
    h = x
    for k, name in enumerate(("x", "sin", "mm", "tanh", "softmax", "pow")):
        close(cotangents[name], pullback.grad(lambda h, k=k: run(h, k))(h))
        h = steps[k](h) if k < len(steps) else h


def test_what_the_output_does_not_depend_on_gets_zero() -> None:
    x, y = normal(2), normal(2)
    graph = pullback.trace(lambda x, y: (x.detach() * y).sum(), x, y)
    cotangents = graph.backward(graph.forward(x, y))
    close((cotangents["x"], cotangents["y"]), (torch.zeros(2, dtype=torch.float64), x))


def test_the_compiled_program_multiplies_in_the_wider_dtype() -> None:
    """PyTorch would multiply a float64 number and a float32 tensor in float32."""
    x, weight = normal(3), torch.ones(3)
    graph = pullback.trace(lambda x: (x * weight).sum().sin(), x)
    close(graph.backward(graph.forward(x))["x"], pullback.grad(lambda x: (x * weight).sum().sin())(x))
    close(pullback.grad(lambda x: (x * weight).sum().sin())(x), x.sum().cos().expand(3))


# ---------------------------------------------------------------- structures of arguments and results


def several(p: dict[str, Tensor], pair: tuple[Tensor, float]) -> dict[str, Any]:
    x, factor = pair
    return {"a": (p["w"] * x).sin() * factor, "rest": [p["w"].sum(), x.argmax(), 3.0], "again": x, "same": x}


def test_several_outputs_take_a_cotangent_of_their_structure() -> None:
    p, pair = {"w": normal(3)}, (normal(3) + 1, 2.0)
    graph = pullback.trace(several, p, pair)
    values = graph.forward(p, pair)
    cotangent = {"a": normal(3), "rest": [normal()[()], None, None], "again": normal(3), "same": normal(3)}
    found = graph.backward(values, cotangent)

    def floating(w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        result = several({"w": w}, (x, 2.0))
        return result["a"], result["rest"][0], result["again"], result["same"]

    _, pull_back = pullback.vjp(floating, p["w"], pair[0])
    expected = pull_back((cotangent["a"], cotangent["rest"][0], cotangent["again"], cotangent["same"]))
    close((found["w"], found["pair.0"]), expected)


@pytest.mark.parametrize(
    ("cotangent", "error", "said"),
    [
        (None, pullback.ShapeError, "not one scalar"),
        ([normal(3)], pullback.ArgumentError, "structure of the output"),
        ({"a": normal(2), "b": normal()}, pullback.ShapeError, "float64.3"),
        ({"a": normal(3).float(), "b": normal()}, pullback.ShapeError, "float32"),
        ({"a": None, "b": normal()}, pullback.ShapeError, "None"),
    ],
)
def test_a_cotangent_that_does_not_fit(cotangent: Any, error: type[Exception], said: str) -> None:
    graph = pullback.trace(lambda x: {"a": x * 2, "b": x.sum()}, normal(3))
    with pytest.raises(error, match=said):
        graph.backward(graph.forward(normal(3)), cotangent)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((normal(2), 2.0), r"float64\[3\]"),
        ((normal(3).float(), 2.0), "float32"),
        ((normal(3), 3.0), "2.0.*3.0"),
        ((normal(3), 2), "trace it again"),
        ((normal(3), normal(3)), "trace it again"),
        ((2.0, 2.0), "trace it again"),
        ((normal(3),), "traced with arguments"),
    ],
)
def test_forward_refuses_what_was_not_traced(arguments: tuple[Any, ...], said: str) -> None:
    graph = pullback.trace(lambda x, factor: x * factor, normal(3), 2.0)
    close(graph.forward(normal(3) + 1, 2.0)["mul"], (normal(3) + 1) * 2)
    with pytest.raises(pullback.PullbackError, match=said):
        graph.forward(*arguments)


def test_values_of_another_graph_are_refused() -> None:
    graph = pullback.trace(lambda x: x.sin().sum(), normal(3))
    with pytest.raises(pullback.ArgumentError, match="sin, sum: pass what forward"):
        graph.backward({"x": normal(3)})


def test_a_missing_rule_names_the_line() -> None:
    x = normal(2, 2)
    graph = pullback.trace(lambda x: torch.geqrf(x)[0].sum(), x)
    with pytest.raises(pullback.MissingRuleError, match=r"(?s)geqrf.*test_explain\.py:\d+.*detach"):
        graph.backward(graph.forward(x))


def test_trace_needs_a_function() -> None:
    with pytest.raises(pullback.ArgumentError, match="needs a function, not 3"):
        pullback.trace(3)


def test_current_values_of_what_is_closed_over() -> None:
    scale = torch.tensor(2.0)
    graph = pullback.trace(lambda x: x * scale, torch.tensor(3.0))
    scale.fill_(5.0)
    assert graph.forward(torch.tensor(3.0))["mul"] == 15
    assert [v.name for v in graph.inputs] == ["x", "scale"]


def test_forward_writes_no_buffers() -> None:
    norm = nn.BatchNorm1d(2)
    graph = pullback.trace(lambda x: norm(x).sum(), normal(3, 2).float())
    before = norm.running_mean.clone()
    graph.forward(normal(3, 2).float())
    assert torch.equal(norm.running_mean, before)


# ---------------------------------------------------------------- what is printed


def shown(f: Callable[..., Any], *args: Tensor, edge: tuple[Any, ...]) -> tuple[str, str]:
    graph = pullback.trace(f, *args)
    local = graph.local_jacobian(graph.edge(*edge), graph.forward(*args))
    assert str(local) == f"{local.formula}\n    {local.structure}"
    return local.formula, local.structure


x23, w34, v3 = normal(2, 3), normal(3, 4), normal(3).abs() + 1
D = "diagonal"
PRINTED = {
    "tanh": (torch.tanh, (x23,), ("x", "tanh"), "∂tanh[i,j] / ∂x[i,j] = (1 − tanh²)[i,j]", "diagonal"),
    "sigmoid": (torch.sigmoid, (v3,), ("x", "sigmoid"), "∂sigmoid[i] / ∂x[i] = (sigmoid · (1 − sigmoid))[i]", D),
    "exp": (torch.exp, (v3,), ("x", "exp"), "∂exp[i] / ∂x[i] = exp[i]", "diagonal"),
    "log": (torch.log, (v3,), ("x", "log"), "∂log[i] / ∂x[i] = (1 / x)[i]", "diagonal"),
    "relu": (torch.relu, (v3,), ("x", "relu"), "∂relu[i] / ∂x[i] = (relu ≠ 0)[i]", "diagonal"),
    "left factor": (
        torch.mm,
        (x23, w34),
        ("x", "mm"),
        "∂mm[i,j] / ∂x[i,k] = x_1[k,j]",
        "block diagonal (output axis 0 = input axis 0)",
    ),
    "right factor": (
        torch.mm,
        (x23, w34),
        ("x_1", "mm"),
        "∂mm[i,j] / ∂x_1[k,j] = x[i,k]",
        "block diagonal (output axis 1 = input axis 1)",
    ),
    "sum": (torch.sum, (v3,), ("x", "sum"), "∂sum / ∂x[i] = 1", "dense"),
    "mean": (torch.mean, (v3,), ("x", "mean"), "∂mean / ∂x[i] = 0.333333", "dense"),
    "transpose": (
        lambda x: x.T,
        (x23,),
        ("x", "permute"),
        "∂permute[i,j] / ∂x[j,i] = 1",
        "diagonal (output axis 0 = input axis 1, output axis 1 = input axis 0)",
    ),
    "broadcast": (
        lambda x, b: x * b,
        (x23, v3),
        ("b", "mul"),
        "∂mul[i,j] / ∂b[j] = x[i,j]",
        "block diagonal (output axis 1 = input axis 0)",
    ),
    "negation": (torch.neg, (v3,), ("x", "neg"), "∂neg[i] / ∂x[i] = −1", "diagonal"),
    "division": (
        lambda x, y: x / y,
        (v3, v3 + 1),
        ("y", "div"),
        "∂div[i] / ∂y[i] = ",
        "diagonal",
    ),
    "slice": (lambda x: x[1:], (v3,), ("x", "slice"), "∂slice[i] / ∂x[1+i] = 1", "entries at (i | 1+i) only"),
    "flip": (lambda x: x.flip(0), (v3,), ("x", "flip"), "∂flip[i] / ∂x[2−i] = 1", "entries at (i | 2−i) only"),
    "max": (
        lambda x: x.max(1)[0],
        (x23,),
        ("x", "max"),
        "∂max[i] / ∂x[i,max_1[i]] = 1",
        "entries at (i | i,max_1[i]) only",
    ),
    "softmax": (
        lambda x: x.softmax(0),
        (v3,),
        ("x", "softmax"),
        "∂softmax[i] / ∂x[i] = softmax[i]\n  plus ∂softmax[i] / ∂x[j] = −softmax[i] · softmax[j]",
        "dense plus diagonal",
    ),
    "convolution": (
        lambda x, w: F.conv1d(x, w),
        (normal(1, 1, 5), normal(1, 1, 3)),
        ("x", "convolution"),
        "∂convolution / ∂x = convolution(□, w, None, [1], [0], [1], False, [0], 1), linear in □",
        "a linear operator, applied and never written out",
    ),
}


@pytest.mark.parametrize("name", PRINTED)
def test_formula_and_structure(name: str) -> None:
    f, args, edge, formula, structure = PRINTED[name]
    written, words = shown(f, *args, edge=edge)
    assert (written if name != "division" else written[: len(formula)], words) == (formula, structure)


@pytest.mark.parametrize("name", NETWORKS)
def test_structure_agrees_with_the_entries(name: str) -> None:
    """What is called diagonal is, and formulas define every name that they use."""
    graph, values = walk(name).graph, walk(name).values
    for edge in graph.edges:
        local = graph.local_jacobian(edge, values)
        if local.structure == "diagonal":
            whole = local.dense.reshape(edge.target.size, edge.source.size)
            assert torch.equal(whole, torch.diag(whole.diagonal()))
        for line in local.formula.split("\n    where ")[1:]:
            assert line.partition(" = ")[0] in local.formula.replace(line, "")


def test_long_payloads_are_defined_below() -> None:
    edge = ("input", "binary_cross_entropy")
    written, _ = shown(lambda input, target: F.binary_cross_entropy(input, target), v3.sigmoid(), v3 / 9, edge=edge)
    first, *steps = written.split("\n")
    assert first == "∂binary_cross_entropy / ∂input[i] = 0.333333 · div[i]"
    assert steps == ["    where div = (input − target) / clamp_min((1 − input) · input, 1e-12)"]


def test_the_graph_prints_an_operator_a_line() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    graph = pullback.trace(lambda x: model(x).sum(), torch.ones(4, 2))
    lines = str(graph).splitlines()
    assert len(lines) == len(graph.inputs) + len(graph.nodes) + 1
    assert lines[0].split() == ["x", "float32[4,", "2]", "argument"]
    assert lines[1].startswith("0.weight") and lines[1].endswith("read by the function")
    (tanh,) = [line for line in lines if line.startswith("tanh")]
    for said in ("float32[4, 3]", "aten.tanh(addmm)", "# test_explain.py:", "model(x)"):
        assert said in tanh
    assert lines[-1] == "return sum"


def test_the_graph_prints_what_is_written_back() -> None:
    norm = nn.BatchNorm1d(2)
    text = str(pullback.trace(lambda x: norm(x).sum(), torch.ones(3, 2)))
    assert "write " in text and " into running_mean" in text


def test_edges_by_name() -> None:
    graph = pullback.trace(lambda x, y: (x * x).sum() + y, torch.ones(2), torch.ones(()))
    assert str(graph.edge("mul", "sum")) == "mul → sum (aten.sum.default)"
    assert [graph.edge("x", "mul", operand=k).operand for k in (0, 1)] == [0, 1]
    with pytest.raises(pullback.ArgumentError, match="operand 0, 1 of 'mul'"):
        graph.edge("x", "mul")
    with pytest.raises(pullback.ArgumentError, match="'sum' has edges from mul"):
        graph.edge("x", "sum")
    with pytest.raises(pullback.ArgumentError, match="no edge leads to 'cos'"):
        graph.edge("x", "cos")
    assert {e.source.name for e in graph.edges} == {"x", "mul", "sum", "y"}


def test_structure_of_nothing() -> None:
    assert structure(Jac((), (2,), (3,))) == "zero"
    assert dense(Jac((), (2,), (3,)), {}).shape == (2, 3)
