"""Planned orders: never a different derivative, never worse than forward and reverse, exact where that is claimed."""

import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pullback
from published import PUBLISHED
from pullback import calibration
from pullback.cost import shipped_model
from pullback.emit.prediction import predicted_seconds
from pullback.graph import Graph, Node, Value
from pullback.index import fresh, of_label, plain_axes
from pullback.planner.chains import Chain, blocks_of
from pullback.planner.search import Found, search
from pullback.planner.states import Work, cost_of
from pullback.planner.structured import Edge, StructuredGraph
from pullback.planner.structures import Structures
from pullback.terms import Factor, Jac, Term

FLOAT = torch.float64
ORDERS = ("forward", "reverse")


KINDS = "sin tanh mix product sum outer softmax slice".split()


def random_program(seed: int) -> tuple[Callable[..., Tensor], tuple[Tensor, Tensor]]:
    """A function of one vector whose graph branches and joins, with vertices of many sizes and structures."""
    generator = random.Random(seed)
    size, count = generator.randint(2, 4), generator.randint(4, 8)
    steps = [(generator.choice(KINDS), generator.random(), generator.random()) for _ in range(count)]
    sizes = [generator.randint(1, 5) for _ in steps]

    def f(x: Tensor, bank: Tensor) -> Tensor:
        values = [x]
        for k, (kind, one, other) in enumerate(steps):
            a, b = values[int(one * len(values))], values[int(other * len(values))]
            values.append(_step(kind, a, b, bank[k, : sizes[k], : len(a)]))
        return torch.cat(values[-3:])

    weights = torch.Generator().manual_seed(seed)
    bank = torch.randn(count, 5, 30, generator=weights, dtype=FLOAT) / 2
    return f, (torch.rand(size, generator=weights, dtype=FLOAT) + 0.2, bank)


def _step(kind: str, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """A vector of at most a few entries from two others."""
    steps: dict[str, Callable[[], Tensor]] = {
        "sin": lambda: a.sin(),
        "tanh": lambda: (a * 0.7).tanh(),
        "mix": lambda: weight @ a,
        "product": lambda: a * b.sum(),
        "sum": lambda: a + b.mean(),
        "outer": lambda: torch.outer(a[:2], b[:2]).reshape(-1),
        "softmax": lambda: a.softmax(0),
        "slice": lambda: torch.cat([a[:1], b[-2:] * 2]),
    }
    return steps[kind]()


# ---------------------------------------------------------------- the same derivative, never worse


@pytest.mark.parametrize("seed", range(9))
def test_twenty_orders_agree(seed: int) -> None:
    f, arguments = random_program(seed)
    expected = pullback.jacobian(f, order="reverse")(*arguments)
    names = [v.name for v in pullback.jacobian(f, order="reverse").plan(*arguments).order.vertices]
    generator = random.Random(seed)
    for _ in range(20):
        generator.shuffle(names)
        torch.testing.assert_close(
            pullback.jacobian(f, order=list(names))(*arguments), expected, rtol=1e-10, atol=1e-10
        )
    planned = pullback.jacobian(f)
    torch.testing.assert_close(planned(*arguments), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pullback.jacobian(f, order="forward")(*arguments), expected, rtol=1e-10, atol=1e-10)
    plan = planned.plan(*arguments)
    assert plan.seconds == min(one.seconds for one in plan.predictions.values())
    assert {"forward", "reverse"} <= plan.predictions.keys() or len(plan.predictions) == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_functions_by_planned_orders(name: str) -> None:
    f, arguments = PUBLISHED[name]
    argnums = tuple(range(len(arguments)))
    plans = {order: pullback.jacobian(f, argnums, order=order).plan(*arguments) for order in (*ORDERS, "auto")}
    assert plans["auto"].seconds <= min(plans[order].seconds for order in ORDERS)
    found = pullback.jacobian(f, argnums)(*arguments)
    reverse = pullback.jacobian(f, argnums, order="reverse")(*arguments)
    torch.testing.assert_close(found, reverse, rtol=1e-10, atol=1e-10)


def layers(x: Tensor, weights: list[Tensor]) -> Tensor:
    for weight in weights:
        x = (x @ weight).tanh()
    return x


def weights_of(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(m, n, generator=generator, dtype=FLOAT) / m for m, n in itertools.pairwise(sizes)]


def test_a_narrow_waist_is_reached_from_both_sides() -> None:
    """Neither forward nor reverse is near: each carries 64 columns or rows through a layer of 64 × 64."""
    x, weights = torch.ones(64, dtype=FLOAT), weights_of(64, 48, 2, 48, 64)
    plan = pullback.jacobian(layers).plan(x, weights)
    assert plan.order.name == "planned"
    assert 8 * plan.multiplications < min(plan.alternatives[order] for order in ORDERS)
    assert plan.lower_bound is not None
    assert plan.lower_bound.multiplications <= plan.multiplications
    assert plan.peak_bytes <= min(plan.predictions[order].peak_bytes for order in ORDERS)
    given = pullback.jacobian(layers, order=[v.name for v in plan.order.vertices])
    assert given.plan(x, weights).multiplications == plan.multiplications
    torch.testing.assert_close(given(x, weights), pullback.jacobian(layers, order="reverse")(x, weights))


def test_a_waist_of_a_graph_that_branches() -> None:
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(*shape, generator=generator, dtype=FLOAT) / 9 for shape in ((3, 40), (40, 3)))

    def f(x: Tensor) -> Tensor:
        waist = down @ (x.sin() * x + x.cos())
        wide = up @ waist
        return wide * wide.exp() + wide

    x = torch.linspace(0, 1, 40, dtype=FLOAT)
    plan = pullback.jacobian(f).plan(x)
    assert 1.5 * plan.multiplications < min(plan.alternatives[order] for order in ORDERS)
    torch.testing.assert_close(pullback.jacobian(f)(x), pullback.jacobian(f, order="reverse")(x))


def test_losses_are_reversed_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a search for the order of a scalar's gradient")

    monkeypatch.setattr("pullback.compilation.planned_order", refuse)
    plan = pullback.grad(lambda x: x.sin().cos().sum()).plan(torch.ones(3))
    assert plan.order.name == "reverse"
    with pytest.raises(AssertionError, match="search"):
        pullback.jacobian(lambda x: x.sin().cos())(torch.ones(3))


def test_effort_is_for_searches_and_none_means_forward_or_reverse() -> None:
    x, weights = torch.ones(64, dtype=FLOAT), weights_of(64, 48, 2, 48, 64)
    none = pullback.jacobian(layers, effort=0).plan(x, weights)
    assert none.alternatives.keys() == set(ORDERS)
    some = [pullback.jacobian(layers, effort=0.2).plan(x, weights) for _ in range(2)]
    assert [v.name for v in some[0].order.vertices] == [v.name for v in some[1].order.vertices]
    assert some[0].seconds < none.seconds
    with pytest.raises(pullback.ArgumentError, match=r"effort=1 with order='reverse'"):
        pullback.jacobian(layers, order="reverse", effort=1)
    for wrong in (-1, "much", float("inf"), True):
        with pytest.raises(pullback.ArgumentError, match="effort"):
            pullback.grad(layers, effort=wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- structures


def random_structures(seed: int) -> tuple[Structures, Callable[[int, int], int]]:
    """Structures whose products cost multiplications, and a maker of random ones between given sizes."""
    generator = random.Random(seed)
    structures = Structures(lambda multiplications, entries: multiplications)

    def make(rows: int, columns: int) -> int:
        kind = generator.choice(["dense", "dense", "diagonal", "row", "copy"])
        if kind == "diagonal" and rows == columns:
            label = of_label(fresh(rows))
            return _number(structures, (label,), (label,), (label,))
        out, inp = plain_axes((rows,)), plain_axes((columns,))
        payload = {"dense": (*out, *inp), "row": inp}.get(kind)
        return _number(structures, out, inp, payload)

    return structures, make


def _number(structures: Structures, out: tuple, inp: tuple, payload: tuple | None) -> int:
    factors = () if payload is None else (Factor(Value("payload", (), "float64"), payload),)
    sizes = [tuple(a.parts[0][0].size if a.parts else 1 for a in axes) for axes in (out, inp)]
    return structures.of_jacobian(Jac((Term(1, factors, out, inp),), *sizes), lambda *_: 0)


@pytest.mark.parametrize("seed", range(30))
def test_structures_are_a_semiring(seed: int) -> None:
    structures, make = random_structures(seed)
    sizes = random.Random(seed).choices([2, 3, 3, 4], k=4)
    a, b = make(sizes[0], sizes[1]), make(sizes[1], sizes[2])
    other, c = make(sizes[1], sizes[2]), make(sizes[2], sizes[3])
    times, plus = (lambda x, y: structures.product(x, y)[0]), structures.total
    assert times(times(a, b), c) == times(a, times(b, c))
    assert times(a, plus(b, other)) == plus(times(a, b), times(a, other))
    assert times(plus(b, other), c) == plus(times(b, c), times(other, c))
    assert plus(b, other) == plus(other, b)


def random_graph(seed: int, count: int) -> tuple[Structures, list[Edge]]:
    generator = random.Random(seed)
    structures, make = random_structures(seed)
    sizes = [generator.choice([1, 2, 3, 5]) for _ in range(count + 2)]
    place = [count, *range(count), count + 1]
    pairs = [(i, j) for i, j in itertools.combinations(range(count + 2), 2) if j == i + 1 or generator.random() < 0.3]
    return structures, [(place[i], place[j], make(sizes[j], sizes[i])) for i, j in pairs]


@pytest.mark.parametrize("seed", range(25))
def test_small_graphs_of_structures_are_planned_exactly(seed: int) -> None:
    count = 3 + seed % 4
    structures, edges = random_graph(seed, count)
    graph = StructuredGraph(structures, count, edges)
    every = [cost_of(graph, order) for order in itertools.permutations(range(count))]
    found = search(graph, [0] * count, (range(count), range(count)[::-1]), Work(1e6))
    assert found.cost == found.bound == min(every) == cost_of(graph, found.order)


@pytest.mark.parametrize("seed", range(25))
def test_what_a_search_is_told_of_growth_is_true(seed: int) -> None:
    structures, edges = random_graph(seed, 5)
    graph = StructuredGraph(structures, 5, edges)
    for vertex in range(5):
        after = graph.copy()
        after.eliminate(vertex)
        others = [v for v in range(5) if v != vertex]
        assert graph.growth(vertex) == sum(map(after.cost, others)) - sum(map(graph.cost, others))


@pytest.mark.parametrize("seed", range(20))
def test_chains_are_bracketed_exactly(seed: int) -> None:
    generator = random.Random(seed)
    count = generator.randint(1, 5)
    structures, make = random_structures(seed)
    sizes = [generator.choice([1, 2, 3, 5, 8]) for _ in range(count + 2)]
    place = [count, *range(count), count + 1]
    edges = [(place[k], place[k + 1], make(sizes[k + 1], sizes[k])) for k in range(count + 1)]
    way = Chain(structures, blocks_of(count, edges, count, count + 1), _no_block).cheapest()
    graph = StructuredGraph(structures, count, edges)
    assert way.cost == min(cost_of(graph, order) for order in itertools.permutations(range(count)))
    assert cost_of(graph, way.order) == way.cost


def _no_block(_: StructuredGraph) -> Found:
    raise AssertionError("a chain of single edges has no blocks")


@pytest.mark.parametrize("seed", range(20))
def test_chains_of_blocks_cost_what_their_order_costs_and_equal_blocks_are_planned_once(seed: int) -> None:
    structures, make = random_structures(seed)
    blocks, width = 4, random.Random(seed).choice([2, 3])
    shapes = make(width, width), make(1, width), make(width, 1)
    edges: list[Edge] = []
    count = 3 * blocks - 1
    for k in range(blocks):  # each block: two ways from one cut vertex to the next
        first, last = (3 * k - 1 if k else count), (3 * k + 2 if k + 1 < blocks else count + 1)
        edges += [(first, 3 * k, shapes[0]), (first, 3 * k + 1, shapes[1])]
        edges += [(3 * k, last, shapes[0]), (3 * k + 1, last, shapes[2])]
    planned: list[StructuredGraph] = []

    def plan(graph: StructuredGraph) -> Found:
        planned.append(graph)
        count = len(graph.after)
        return search(graph, [0] * count, (range(count),), Work(1e5))

    way = Chain(structures, blocks_of(count, edges, count, count + 1), plan).cheapest()
    graph = StructuredGraph(structures, count, edges)
    assert sorted(way.order) == list(range(count))
    assert cost_of(graph, way.order) == way.cost
    assert way.cost <= min(cost_of(graph, range(count)), cost_of(graph, range(count)[::-1]))
    assert len(planned) == 1


# ---------------------------------------------------------------- predictions and calibration


def test_predicted_bytes_are_those_of_the_values_that_are_alive() -> None:
    """f keeps sin x and cos x for the product; the derivative adds its own."""
    x = torch.ones(1000, dtype=FLOAT)
    plan = pullback.grad(lambda x: (x.sin() * 2).sum()).plan(x)
    assert 8_000 <= plan.peak_bytes <= 4 * 8_000
    assert pullback.grad(lambda x: (x.sin() * 2).sum()).plan(torch.ones(10, dtype=FLOAT)).peak_bytes < 1_000
    assert 0 < plan.seconds < 1e-3


def test_an_operator_that_is_mapped_over_rows_costs_what_mapping_does() -> None:
    """A kernel without batches is called by vmap: that is no view, even where the operator is one."""
    model = shipped_model("cpu", "float32")
    operand, result = Value("x", (3, 4), "float32"), Value("y", (3, 4), "float32")
    node = Node("batched", ("aten.view.default", (), (), 1, operand), (), (result,))
    assert predicted_seconds(Graph((operand,), (node,), (result,)), model) > 20 * model.launch


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_known", {})
    monkeypatch.setattr(calibration, "SAMPLES", 5)
    return tmp_path / "cache"


INPUT = Value("x", (3,), "float32")


def test_a_calibration_is_kept_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibration.model_for([INPUT]) == shipped_model("cpu", "float32")
    model = pullback.calibrate()
    assert calibration.model_for([INPUT]) == model
    monkeypatch.setattr(calibration, "_known", {})
    assert calibration.model_for([INPUT]) == model
    assert model.source == "calibrated"
    assert calibration.model_for([Value("x", (3,), "float64")]).source == "shipped"
    assert pullback.jacobian(torch.sin).plan(torch.ones(17)).model == "calibrated"
    (file,) = cache.iterdir()
    assert os.stat(cache).st_mode & 0o077 == 0
    assert os.stat(file).st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["cut", "other key", "negative", "shared file", "shared directory"])
def test_a_file_that_is_not_as_it_was_written_is_not_used(cache: Path, damage: str) -> None:
    pullback.calibrate()
    (file,) = cache.iterdir()
    content = json.loads(file.read_text())
    changed = {"other key": {"key": "another machine"}, "negative": {"launch": -1.0}}.get(damage, {})
    file.write_text(json.dumps(content | changed)[: 20 if damage == "cut" else None])
    if damage.startswith("shared"):
        (file if damage == "shared file" else cache).chmod(0o777)
    calibration._known.clear()
    assert calibration.model_for([INPUT]).source == "shipped"


def test_what_cannot_be_calibrated_is_refused(cache: Path) -> None:
    with pytest.raises(pullback.ArgumentError, match=r"float16.*float32"):
        pullback.calibrate(dtype=torch.float16)
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    with pytest.raises(PermissionError, match="PULLBACK_CACHE"):
        pullback.calibrate()
