"""Emission: generated Python and `fx.GraphModule` compute what the graph says, and hold on to nothing longer."""

import gc
import inspect
import linecache
import random
import time
import traceback
import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch

from emit_samples import CPU, F32, FILTER, IMAGE, OTHERS, SAMPLES, A, B, C, I, S, V
from pullback.emit.aliases import aliased_inputs
from pullback.emit.builtins import BUILTINS, SPELLINGS, facts, without_defaults
from pullback.emit.fx import to_graph_module
from pullback.emit.program import Program
from pullback.emit.python import emit_python
from pullback.errors import GraphError
from pullback.graph import Graph, Node, Source, Value
from pullback.terms import HOLE
from pullback.torch_private import TorchDispatchMode, overload

# ---------------------------------------------------------------- making graphs


def value_of(tensor: torch.Tensor, name: str) -> Value:
    return Value(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), str(tensor.device))


def call(op: str, *args: Any, **kwargs: Any) -> tuple[Graph, list[torch.Tensor]]:
    """A graph of one operator call, its tensors as inputs, and every result as an output."""
    tensors: list[torch.Tensor] = []
    inputs: list[Value] = []

    def lifted(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            tensors.append(argument)
            inputs.append(value_of(argument, f"x{len(inputs)}"))
            return inputs[-1]
        return tuple(map(lifted, argument)) if isinstance(argument, (tuple, list)) else argument

    node_args = lifted(args)
    results = results_of(op, args, kwargs)
    outputs = tuple(None if r is None else value_of(r, f"y{k}") for k, r in enumerate(results))
    node = Node(op, node_args, tuple(kwargs.items()), outputs)
    return Graph(tuple(inputs), (node,), outputs), tensors


def results_of(op: str, args: Any, kwargs: dict[str, Any]) -> tuple[torch.Tensor | None, ...]:
    torch.manual_seed(0)
    result = overload(op)(*args, **kwargs)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def run(program: Any, tensors: list[torch.Tensor]) -> tuple[Any, ...]:
    torch.manual_seed(0)
    return tuple(program(*tensors))


def assert_same(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        if not isinstance(b, torch.Tensor):
            assert a == b
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) if a.is_floating_point() else torch.equal(a, b)


def run_text(program: Program) -> Any:
    """The program as its text defines it, without anything that emission bound."""
    namespace: dict[str, Any] = {}
    exec(program.code, namespace)
    return namespace[program.name]


# ---------------------------------------------------------------- the table of builtins


@pytest.mark.parametrize("op", sorted({*BUILTINS, *SPELLINGS}))
def test_every_entry_equals_its_operator(op: str) -> None:
    assert op in SAMPLES, f"{op} has no sample: add one to MORE"
    for args, kwargs in SAMPLES[op]:
        graph, tensors = call(op, *args, **kwargs)
        program = emit_python(graph)
        program.check()
        wanted = results_of(op, args, kwargs)
        assert_same(run(program.run, tensors), wanted)
        assert_same(run(run_text(program), tensors), wanted)
        assert_same(run(to_graph_module(graph), tensors), wanted)


@pytest.mark.parametrize("op", sorted(BUILTINS))
def test_a_builtin_is_a_builtin(op: str) -> None:
    target: Any = torch
    for part in BUILTINS[op].path.split("."):
        target = getattr(target, part)
    assert inspect.isbuiltin(target), f"torch.{BUILTINS[op].path} is a Python function: slower than the operator itself"


def test_the_tables_are_used() -> None:
    """An entry that never applies to any of its samples is of no use."""
    for op in sorted({*BUILTINS, *SPELLINGS} - {"aten.empty_like.default"}):
        texts = [emit_python(call(op, *args, **kwargs)[0]).code for args, kwargs in SAMPLES[op]]
        assert any("torch.ops" not in text for text in texts), f"{op} is always called through the dispatcher"


@pytest.mark.parametrize("op", sorted(OTHERS))
def test_operators_without_a_builtin(op: str) -> None:
    for args, kwargs in OTHERS[op]:
        graph, tensors = call(op, *args, **kwargs)
        program = emit_python(graph)
        program.check()
        wanted = results_of(op, args, kwargs)
        for runs in (program.run, run_text(program), to_graph_module(graph)):
            assert_same(run(runs, tensors), wanted)


# ---------------------------------------------------------------- programs


def chain() -> tuple[Graph, list[Value]]:
    """X → mm → relu → sum, as a user would have it captured."""
    x, w = Value("x", (3, 4), "float32"), Value("fc1.weight", (5, 4), "float32")
    t = Value("permute", (4, 5), "float32")
    h, r, s = Value("mm", (3, 5), "float32"), Value("relu", (3, 5), "float32"), Value("sum", (), "float32")
    first, second = (
        Source("/project/model.py", 12, "forward", "h = self.fc1(x)"),
        Source("/project/model.py", 13, "forward", ""),
    )
    nodes = (
        Node("aten.permute.default", (w, (1, 0)), (), (t,), first),
        Node("aten.mm.default", (x, t), (), (h,), first),
        Node("aten.relu.default", (h,), (), (r,), second),
        Node("aten.sum.default", (r,), (("dtype", None),), (s,), second),
    )
    return Graph((x, w), nodes, (s,)), [t, h, r, s]


def test_text() -> None:
    program = emit_python(chain()[0], "loss")
    assert program.code == (
        "import torch\n"
        "from torch import mm, relu, sum\n"
        "\n"
        "\n"
        "def loss(x, fc1_weight):\n"
        "    # model.py:12: h = self.fc1(x)\n"
        "    permute_0 = fc1_weight.t()\n"
        "    mm_0 = mm(x, permute_0)\n"
        "    del permute_0\n"
        "    # model.py:13\n"
        "    relu_0 = relu(mm_0)\n"
        "    del mm_0\n"
        "    sum_0 = sum(relu_0)\n"
        "    del relu_0\n"
        "    return (sum_0,)\n"
    )
    assert str(program) == program.code


def test_names_are_python_names_and_unique() -> None:
    names = ["a.b", "a_b", "a b", "class", "print", "1st", "", "θ", "add", "add_0", "_", "row", "torch", "__debug__"]
    names += ["float32", "ﬁ", "fi", "cpu", "inf", "match", "strided", "constant", "a.b"]
    inputs = tuple(Value(n, (2,), "float32") for n in names)
    total, nodes = inputs[0], []
    for k, value in enumerate(inputs[1:]):
        result = Value("add" if k % 2 else "self.net", (2,), "float32")
        nodes.append(Node("aten.add.Tensor", (total, value), (), (result,)))
        total = result
    result = Value("full", (2,), "float32")
    kwargs = (("dtype", F32), ("device", CPU), ("layout", torch.sparse_coo))
    nodes.append(Node("aten.full.default", ((2,), float("inf")), kwargs[:2], (result,)))
    program = emit_python(Graph(inputs, tuple(nodes), (total, result)), "add")
    program.check()
    tensors = [torch.rand(2) for _ in names]
    for runs in (program.run, run_text(program)):
        found, filled = runs(*tensors)
        assert torch.allclose(found, torch.stack(tensors).sum(0))
        assert torch.isinf(filled).all()
    assert len(set(inspect.signature(program.run).parameters)) == len(names)


def test_names_do_not_hide_what_is_imported_later() -> None:
    """A value named after a layout, before the layout is named."""
    x, y, z = Value("strided", (2,), "float32"), Value("complex64", (2,), "float32"), Value("z", (2,), "complex64")
    nodes = (
        Node("aten.neg.default", (x,), (), (y,)),
        Node("aten._to_copy.default", (y,), (("dtype", torch.complex64),), (z,)),
    )
    program = emit_python(Graph((x,), nodes, (z, y)))
    program.check()
    for runs in (program.run, run_text(program)):
        assert runs(torch.ones(2))[0].dtype is torch.complex64


def test_two_operators_of_one_name() -> None:
    """`index_put` once as a builtin and once, with a None among its indices, as an operator."""
    x, i, v = value_of(A, "x"), value_of(I, "i"), value_of(S, "v")
    a, b = value_of(A, "a"), value_of(A, "b")
    nodes = (
        Node("aten.index_put.default", (x, (None, i), v), (), (a,)),
        Node("aten.index_put.default", (a, (i,), v), (), (b,)),
    )
    program = emit_python(Graph((x, i, v), nodes, (b,)))
    program.check()
    wanted = A.clone()
    wanted[:, I] = S
    wanted[I] = S
    for runs in (program.run, run_text(program)):
        assert torch.equal(runs(A, I, S)[0], wanted)


def test_outputs_may_repeat_and_may_be_constants() -> None:
    graph, (_, _, _, s) = chain()
    graph = Graph(graph.inputs, graph.nodes, (s, None, 3, s, graph.inputs[0], 1.5, "text", float("-inf"), (s, True)))
    x, w = torch.rand(3, 4), torch.rand(5, 4)
    wanted = torch.relu(x @ w.t()).sum()
    for runs in (emit_python(graph).run, run_text(emit_python(graph))):
        a, none, three, b, same, number, text, low, (c, true) = runs(x, w)
        assert a is b is c
        assert torch.allclose(a, wanted)
        assert same is x
        assert (none, three, number, text, low, true) == (None, 3, 1.5, "text", float("-inf"), True)
    assert_same(to_graph_module(graph)(x, w)[:2], (wanted, None))
    assert emit_python(Graph((), (), ())).run() == ()


def test_unread_results_are_not_kept() -> None:
    x = value_of(A, "x")
    values, indices, rest = Value("v", (3,), "float32"), Value("i", (3,), "int64"), Value("r", (), "float32")
    node = Node("aten.max.dim", (x, 1), (), (values, None))
    assert "v = max(x, 1)[0]" in emit_python(Graph((x,), (node,), (values,))).code
    assert (
        "i = max(x, 1)[1]"
        in emit_python(Graph((x,), (Node("aten.max.dim", (x, 1), (), (None, indices)),), (indices,))).code
    )
    mean, var = Value("mean", (3, 1), "float32"), Value("y", (3, 4), "float32")
    node = Node("aten.native_layer_norm.default", (x, (4,), None, None, 1e-5), (), (var, None, mean))
    program = emit_python(Graph((x,), (node,), (var, mean)))
    assert "y, _, mean_0 = native_layer_norm(x, (4,), None, None, 1e-05)\n    del _\n" in program.code
    program.check()
    dead = Node("aten.sum.default", (x,), (), (rest,))
    assert "del r\n" in emit_python(Graph((x,), (dead,), (x,))).code


def test_memory_is_given_back() -> None:
    """Of a chain of 40 tensors, no more than three live at a time."""
    x = Value("x", (256, 1024), "float32")
    values = [x, *(Value(f"h{k}", x.shape, "float32") for k in range(40))]
    nodes = tuple(Node("aten.neg.default", (a,), (), (b,)) for a, b in pairwise(values))
    program = emit_python(Graph((x,), nodes, (values[-1],)))
    assert program.code.count("del ") == 39
    made: list[weakref.ref[torch.Tensor]] = []
    living: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            made.append(weakref.ref(result))
            living.append(sum(r() is not None for r in made))
            return result

    tensor = torch.rand(256, 1024)
    with Watch():
        program.run(tensor)
    assert len(made) == 40
    assert max(living) <= 3


def test_check_finds_a_name_that_is_gone() -> None:
    program = emit_python(chain()[0])
    broken = Program(program.run, program.code.replace("relu(mm_0)", "relu(permute_0)"), program.graph)
    with pytest.raises(GraphError, match="permute_0"):
        broken.check()


def test_mutations_come_last() -> None:
    """BatchNorm's way: the output reads the old buffer, the buffer then takes the new value."""
    x, buffer = value_of(V, "x"), value_of(V, "bn.running_mean")
    y, new = value_of(V, "y"), value_of(V, "new")
    nodes = (
        Node("aten.add.Tensor", (buffer, x), (("alpha", 2),), (new,)),
        Node("aten.mul.Tensor", (buffer, x), (), (y,)),
    )
    graph = Graph((x, buffer), nodes, (y,), ((buffer, new),))
    program = emit_python(graph)
    assert program.code.endswith("    bn_running_mean.copy_(new)\n    return (y,)\n")
    for runs in (program.run, to_graph_module(graph)):
        held, old = V.clone(), V.clone()
        (found,) = runs(torch.ones(4), held)
        assert torch.equal(found, old)
        assert torch.equal(held, old + 2)


def test_what_is_returned_survives_a_mutation() -> None:
    """Returned views of what is overwritten, and two buffers that change places, are copied first."""
    a, b = value_of(A, "a"), value_of(A, "b")
    view, column = Value("view", (12,), "float32"), Value("row", (4,), "float32")
    product = value_of(A, "product")
    nodes = (
        Node("aten._unsafe_view.default", (a, (12,)), (), (view,)),
        Node("aten.select.int", (b, 0, 1), (), (column,)),
        Node("aten.mul.Tensor", (a, b), (), (product,)),
    )
    graph = Graph((a, b), nodes, (view, column, a, product), ((a, b), (b, a)))
    assert set(aliased_inputs(graph)) == {a, b, view, column}
    for runs in (emit_python(graph).run, run_text(emit_python(graph)), to_graph_module(graph)):
        p, q = A.clone(), B.clone()
        found = runs(p, q)
        assert_same(found, (A.reshape(12), B[1], A, A * B))
        assert torch.equal(p, B)
        assert torch.equal(q, A)


def test_a_mutation_that_changes_nothing_is_gone() -> None:
    a = value_of(A, "a")
    assert "copy_" not in emit_python(Graph((a,), (), (a,), ((a, a),))).code


def batched(op: str, args: tuple[Any, ...], output: int, operand: Value, result: Value, **kwargs: Any) -> Node:
    return Node("batched", (op, args, tuple(kwargs.items()), output, operand), (), (result,))


def test_batched() -> None:
    rows, w, y = Value("rows", (7, 3, 4), "float32"), value_of(C, "w"), Value("y", (7, 3, 5), "float32")
    graph = Graph((rows, w), (batched("aten.mm.default", (HOLE, w), 0, rows, y),), (y,))
    tensors = [torch.rand(7, 3, 4), C]
    program = emit_python(graph)
    assert "y = vmap(lambda row: mm(row, w))(rows)" in program.code
    program.check()
    for runs in (program.run, run_text(program), to_graph_module(graph)):
        assert torch.allclose(runs(*tensors)[0], tensors[0] @ C)


def test_batched_reads_one_of_several_results() -> None:
    shape = (2, 2, 4, 4, 4)
    g, x, w = Value("g", shape, "float32"), value_of(IMAGE, "x"), value_of(FILTER, "w")
    y = Value("y", (2, *FILTER.shape), "float32")
    args = (HOLE, x, w, (0,), (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False))
    graph = Graph((g, x, w), (batched("aten.convolution_backward.default", args, 1, g, y),), (y,))
    cotangent = torch.rand(shape)
    plain = [overload("aten.convolution_backward.default")(c, IMAGE, FILTER, *args[3:])[1] for c in cotangent]
    for runs in (emit_python(graph).run, run_text(emit_python(graph)), to_graph_module(graph)):
        assert torch.allclose(runs(cotangent, IMAGE, FILTER)[0], torch.stack(plain), atol=1e-5)


def test_batched_with_the_operand_in_a_list_and_its_neighbours_forgotten() -> None:
    rows, a = Value("rows", (5, 3, 4), "float32"), value_of(A, "a")
    n, y = value_of(A, "n"), Value("y", (5, 3, 8), "float32")
    nodes = (Node("aten.neg.default", (a,), (), (n,)), batched("aten.cat.default", ((n, HOLE), 1), 0, rows, y))
    graph = Graph((rows, a), nodes, (y,))
    program = emit_python(graph)
    program.check()
    assert "del n\n" in program.code
    cotangents = torch.rand(5, 3, 4)
    for runs in (program.run, run_text(program), to_graph_module(graph)):
        wanted = torch.stack([torch.cat([-A, c], 1) for c in cotangents])
        assert torch.equal(runs(cotangents, A)[0], wanted)
        assert runs(cotangents[:0], A)[0].shape == (0, 3, 8)


def test_what_is_not_lowered_is_refused() -> None:
    x = value_of(A, "x")
    graph = Graph((x,), (Node("contract", (x,), (), (value_of(A, "y"),)),), ())
    for emission in (emit_python, to_graph_module):
        with pytest.raises(GraphError, match="lower the graph"):
            emission(graph)


def test_errors_pass_unchanged_and_tracebacks_show_the_line() -> None:
    program = emit_python(chain()[0])
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as caught:
        program.run(torch.rand(2, 2), torch.rand(5, 4))
    assert "mm_0 = mm(x, permute_0)" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert "mm_0 = mm(x, permute_0)" in inspect.getsource(program.run)


def test_the_text_is_forgotten_with_the_program() -> None:
    program = emit_python(chain()[0])
    file = program.run.__code__.co_filename
    assert file in linecache.cache
    del program
    gc.collect()
    assert file not in linecache.cache


def test_a_constant_of_any_kind_is_passed_on() -> None:
    """A generator cannot be written down; it is bound as it is."""
    x, y = value_of(A, "x"), value_of(A, "y")
    generator = torch.Generator().manual_seed(3)
    program = emit_python(Graph((x,), (Node("aten.bernoulli.p", (x, 0.5), (("generator", generator),), (y,)),), (y,)))
    assert torch.equal(program.run(A)[0], torch.bernoulli(A, 0.5, generator=torch.Generator().manual_seed(3)))


def test_source_text_cannot_become_code() -> None:
    x, y = value_of(A, "x"), value_of(A, "y")
    source = Source("model.py", 1, "f", "y = -x\n    raise SystemExit" + "z" * 300)
    program = emit_python(Graph((x,), (Node("aten.neg.default", (x,), (), (y,), source),), (y,)))
    assert torch.equal(program.run(A)[0], -A)
    assert max(map(len, program.code.splitlines())) <= 120


def test_defaults_are_left_out() -> None:
    assert without_defaults("aten.add.Tensor", (1, 2), {"alpha": 1}) == ((1, 2), {})
    assert without_defaults("aten.add.Tensor", (1, 2), {"alpha": 2}) == ((1, 2), {"alpha": 2})
    assert without_defaults("aten.sum.dim_IntList", (1, [0], False), {"dtype": None}) == ((1, [0]), {})
    assert without_defaults("aten.slice.Tensor", (1, 0, None, None, 1), {}) == ((1,), {})
    assert facts("aten.view.default").aliases
    assert not facts("aten.clone.default").aliases
    assert facts("aten.unbind.int").returns_many
    assert facts("aten.max.dim").returns_many


# ---------------------------------------------------------------- random programs

POINTWISE = ["aten.add.Tensor", "aten.mul.Tensor", "aten.sub.Tensor", "aten.maximum.default"]
SINGLE = ["aten.tanh.default", "aten.neg.default", "aten.sigmoid.default", "aten.alias.default", "aten.detach.default"]


def random_graph(choose: random.Random, length: int) -> Graph:
    """A program on square matrices, with views, dead values and operators of several results."""
    values = [Value(f"x.{k}", (4, 4), "float32") for k in range(3)]
    nodes = []
    for _ in range(length):
        kind, a, b = choose.randrange(6), choose.choice(values), choose.choice(values)
        made: tuple[Value | None, ...] = (Value(choose.choice(["add", "mm", "h", "x_1"]), (4, 4), "float32"),)
        if kind < 2:
            node = Node(choose.choice(POINTWISE), (a, b), (), made)
        elif kind == 2:
            node = Node(choose.choice(SINGLE), (a,), (), made)
        elif kind == 3:
            node = Node("aten.permute.default", (a, (1, 0)), (), made)
        elif kind == 4:
            made = (*made, Value("i", (4, 4), "int64")) if choose.random() < 0.5 else (*made, None)
            node = Node("aten.sort.default", (a, choose.choice([0, 1])), (), made)
        else:
            node = Node("aten.mm.default", (a, b), (), made)
        nodes.append(node)
        values += [v for v in made if v is not None and v.dtype == "float32"]
    outputs = tuple(choose.choices(values, k=3))
    return Graph(tuple(values[:3]), tuple(nodes), outputs, ((values[0], values[-1]),))


def interpret(graph: Graph, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Slow and obvious: every operator through its overload, nothing forgotten."""
    known = dict(zip(graph.inputs, tensors, strict=True))
    for node in graph.nodes:
        result = overload(node.op)(
            *(known.get(a, a) if isinstance(a, Value) else a for a in node.args), **dict(node.kwargs)
        )
        for value, tensor in zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=True):
            if value is not None:
                known[value] = tensor
    outputs = tuple(known[v].clone() for v in graph.outputs)
    for old, new in graph.mutations:
        known[old].copy_(known[new].clone())
    return outputs


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed: int) -> None:
    graph = random_graph(random.Random(seed), 2 + seed)
    graph.check()
    program = emit_python(graph)
    program.check()
    tensors = [torch.rand(4, 4, generator=torch.Generator().manual_seed(seed + k)) for k in range(3)]
    wanted_inputs = [t.clone() for t in tensors]
    wanted = interpret(graph, wanted_inputs)
    for runs in (program.run, run_text(program), to_graph_module(graph)):
        given = [t.clone() for t in tensors]
        assert_same(runs(*given), wanted)
        assert_same(tuple(given), tuple(wanted_inputs))


# ---------------------------------------------------------------- speed


def long_graph(length: int) -> Graph:
    x, w = Value("x", (4, 4), "float32"), Value("w", (4, 4), "float32")
    nodes, last, before = [], x, w
    for k in range(length):
        op, args = [
            ("aten.mul.Tensor", (last, before)),
            ("aten.sum.dim_IntList", (last, (0,))),
            ("aten.add.Tensor", (w, last)),
            ("aten.mm.default", (w, last)),
        ][k % 4]
        result = Value(f"h_{k}", (4, 4), "float32")
        nodes.append(Node(op, args, (), (result,), Source("model.py", k, "f", f"h = h * {k}")))
        before, last = last, result
    return Graph((x, w), tuple(nodes), (last,))


def test_emission_is_quick() -> None:
    emit_python(long_graph(30))
    graph = long_graph(3000)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        emit_python(graph)
        times.append(time.perf_counter() - start)
    print(f"\nemission of 3,000 nodes: {min(times) * 1e3:.0f} ms")
    assert min(times) < 0.5  # 0.1 s on a quiet machine


def test_the_program_is_quicker_than_its_operators() -> None:
    x, w = torch.rand(4, 4), torch.rand(4, 4)
    graph = long_graph(32)
    program = emit_python(graph).run
    module = to_graph_module(graph)

    def least(function: Any) -> float:
        best = float("inf")
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(10):
                function(x, w)
            best = min(best, (time.perf_counter() - start) / 10)
        return best * 1e6

    generated, exported = least(program), least(module)
    print(f"\n32 operators: generated {generated:.1f} µs, fx.GraphModule {exported:.1f} µs")
    assert generated < exported
