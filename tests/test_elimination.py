"""Bare elimination problems: exact where that can be checked, near it elsewhere, and a bound that is one."""

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback
from published import PUBLISHED
from pullback.planner.annealing import Annealing
from pullback.planner.beam import beam, greedy
from pullback.planner.bounds import disjoint_paths, least_costs
from pullback.planner.components import Component
from pullback.planner.exact import OutOfWork, cheaper_order
from pullback.planner.problems import connected_parts, read
from pullback.planner.states import Work, cost_of

Problem = dict[str, Any]
PLENTY = 10**9


def random_problem(seed: int, most: int = 9) -> Problem:
    """A DAG of at most so many vertices to eliminate, some of them outputs as well, numbered at random."""
    generator = random.Random(seed)
    inputs, inner, outputs = generator.randint(1, 4), generator.randint(1, most), generator.randint(1, 4)
    count = inputs + inner + outputs
    density = generator.choice([0.15, 0.3, 0.5])
    pairs = [(i, j) for j in range(inputs, count) for i in range(min(j, inputs + inner))]
    edges = [pair for pair in pairs if generator.random() < density]
    others = list(range(inputs, count))
    generator.shuffle(others)
    new = [*range(inputs), *others]
    outs = [new[v] for v in range(inputs + inner, count)]
    if generator.random() < 0.3:
        outs.append(new[generator.randrange(inputs, inputs + inner)])
    return {"nin": inputs, "N": count, "edges": [[new[i], new[j], False, 0] for i, j in edges], "outs": outs}


class Oracle:
    """The definition: what a vertex costs when a set has been eliminated, by following paths through that set."""

    def __init__(self, problem: Problem) -> None:
        self.edges = {(i, j) for i, j, *_ in problem["edges"]}
        self.outs = set(problem["outs"])
        sources = {i for i, _ in self.edges}
        self.vertices = [v for v in range(problem["nin"], problem["N"]) if v not in self.outs or v in sources]
        self.best = cache(self._best)

    def reached(self, vertex: int, gone: frozenset[int], towards: int) -> set[int]:
        """The vertices at the ends of paths through eliminated ones; an output stays where it is."""
        found: set[int] = set()
        stack = [vertex]
        seen = {vertex}
        while stack:
            here = stack.pop()
            for edge in self.edges:
                if edge[1 - towards] == here and edge[towards] not in seen:
                    there = edge[towards]
                    seen.add(there)
                    if there in gone:
                        stack.append(there)
                    if there not in gone or (towards == 1 and there in self.outs):
                        found.add(there)
        return found

    def cost(self, vertex: int, gone: frozenset[int]) -> int:
        return len(self.reached(vertex, gone, 0)) * len(self.reached(vertex, gone, 1))

    def cost_of(self, order: list[int] | tuple[int, ...]) -> int:
        return sum(self.cost(v, frozenset(order[:k])) for k, v in enumerate(order))

    def _best(self, gone: frozenset[int]) -> int:
        left = [v for v in self.vertices if v not in gone]
        return min((self.cost(v, gone) + self.best(gone | {v}) for v in left), default=0)


# ---------------------------------------------------------------- exact, and near it


@pytest.mark.parametrize("block", range(10))
def test_exact_on_a_thousand_small_graphs(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        problem = random_problem(seed)
        oracle, plan = Oracle(problem), pullback.eliminate(problem)
        best = oracle.best(frozenset())
        assert sorted(plan.order) == oracle.vertices
        assert plan.multiplications == oracle.cost_of(plan.order) == best == plan.lower_bound, seed
        assert plan.gap == 0
        assert best <= min(plan.forward, plan.reverse)


@pytest.mark.parametrize("seed", range(20))
def test_the_oracle_tries_every_sequence(seed: int) -> None:
    oracle = Oracle(random_problem(seed, most=5))
    every = [oracle.cost_of(order) for order in itertools.permutations(oracle.vertices)]
    assert min(every) == oracle.best(frozenset())


def graphs(seeds: range, most: int) -> Iterator[Component]:
    """The components of random problems."""
    for seed in seeds:
        yield from connected_parts(read(random_problem(seed, most)))[1]


def test_the_search_alone_is_within_a_percent_of_exact() -> None:
    """Without the exact search: what it finds where nothing can be proved."""
    ratios = {"greedy": [], "beam": [], "annealing": []}
    for part in graphs(range(400), 9):
        count = len(part.vertices)
        start = list(range(count))[::-1]
        known = cost_of(part.graph, start) + 1
        best = cost_of(part.graph, cheaper_order(part.graph, [0] * count, known, Work(PLENTY)))
        annealing = Annealing(part.graph, start, seed=0)
        annealing.run(Work(3000), best)
        assert annealing.best == cost_of(part.graph, annealing.best_order)
        found = {
            "greedy": cost_of(part.graph, greedy(part.graph, count)),
            "beam": cost_of(part.graph, beam(part.graph, count, 8)),
            "annealing": annealing.best,
        }
        for name, cost in found.items():
            assert cost >= best
            ratios[name].append(cost / best if best else 1.0)
    mean = {name: sum(each) / len(each) for name, each in ratios.items()}
    assert mean["beam"] < 1.01
    assert mean["annealing"] < 1.01
    assert mean["greedy"] < 1.05


def test_the_bound_is_never_above_the_optimum_and_often_equal() -> None:
    tight = total = 0
    for part in graphs(range(400), 8):
        count = len(part.vertices)
        least = least_costs(part.graph, Work(PLENTY))
        cheapest = cheaper_order(part.graph, [0] * count, PLENTY, Work(PLENTY))
        best = cost_of(part.graph, cheapest)
        assert sum(least) <= best
        assert sum(least_costs(part.graph, Work(0))) <= sum(least)
        tight, total = tight + (sum(least) == best), total + 1
    assert tight > total / 3


def test_disjoint_paths_by_trying_every_cut() -> None:
    for part in graphs(range(300), 7):
        count = len(part.vertices)
        for vertex in range(count):
            for steps in (part.graph.before, part.graph.after):
                assert disjoint_paths(vertex, steps, count, Work(PLENTY)) == smallest_cut(vertex, steps, count)


def smallest_cut(vertex: int, steps: list[int], count: int) -> int:
    def reached(cut: set[int]) -> set[int]:
        found, stack = {vertex}, [vertex]
        while stack:
            here = stack.pop()
            step = steps[here] if here < count else 0
            for there in range(step.bit_length()):
                if step >> there & 1 and there not in cut and there not in found:
                    found.add(there)
                    stack.append(there)
        return found

    every = reached(set()) - {vertex}
    for size in itertools.count(1):
        for cut in itertools.combinations(sorted(every), size):
            if all(v < count for v in reached(set(cut))):
                return size
    raise AssertionError


def test_an_exact_search_says_when_it_has_no_work_left() -> None:
    part = max(graphs(range(20), 9), key=lambda part: len(part.vertices))
    with pytest.raises(OutOfWork):
        cheaper_order(part.graph, [0] * len(part.vertices), PLENTY, Work(10))


# ---------------------------------------------------------------- larger graphs


def layered(seed: int, layers: int, width: int) -> Problem:
    """A graph of layers, each vertex with two or three predecessors a little before it."""
    generator = random.Random(seed)
    count = layers * width
    edges = set()
    for vertex in range(width, count):
        for _ in range(generator.randint(1, 3)):
            edges.add((max(vertex - generator.randint(1, 2 * width), 0), vertex))
    return {"nin": width, "N": count, "edges": sorted(edges), "outs": list(range(count - width, count))}


def test_never_worse_than_forward_or_reverse_and_the_count_is_what_the_order_costs() -> None:
    for seed in range(6):
        problem = layered(seed, 8, 5)
        plan = pullback.eliminate(problem, effort=0.05)
        assert plan.multiplications <= min(plan.forward, plan.reverse)
        assert plan.multiplications == Oracle(problem).cost_of(plan.order)
        assert plan.lower_bound is not None
        assert plan.lower_bound <= plan.multiplications


def test_more_effort_is_never_worse_here_and_equal_calls_give_equal_plans() -> None:
    problem = layered(3, 12, 6)
    plans = [pullback.eliminate(problem, effort=effort) for effort in (0, 0.02, 0.1, 0.4)]
    costs = [plan.multiplications for plan in plans]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]
    assert pullback.eliminate(problem, effort=0.1) == plans[2]


def test_equal_components_are_planned_once_and_all_of_them_count() -> None:
    one = layered(1, 6, 3)
    copies = 5
    edges = [[i + k * one["N"], j + k * one["N"]] for k in range(copies) for i, j in one["edges"]]
    new = {}
    for v in sorted(range(copies * one["N"]), key=lambda v: (v % one["N"] >= one["nin"], v)):
        new[v] = len(new)
    problem = {
        "nin": copies * one["nin"],
        "N": copies * one["N"],
        "edges": [[new[i], new[j]] for i, j in edges],
        "outs": [new[v + k * one["N"]] for k in range(copies) for v in one["outs"]],
    }
    plan, single = pullback.eliminate(problem, effort=0.1), pullback.eliminate(one, effort=0.1)
    assert plan.multiplications == copies * single.multiplications
    assert plan.lower_bound == copies * single.lower_bound
    assert plan.multiplications == Oracle(problem).cost_of(plan.order)


# ---------------------------------------------------------------- published functions, traced


def problem_of(name: str) -> Problem:
    """The graph of a function of numbers as a bare problem; constants have no edges."""
    f, arguments = PUBLISHED[name]
    traced = pullback.trace(f, *arguments)
    number = {value.name: k for k, value in enumerate(traced.inputs)}
    for node in traced.nodes:
        for value in node.results:
            number.setdefault(value.name, len(number))
    edges = sorted({(number[e.source.name], number[e.target.name]) for e in traced.edges})
    outs = [number[v.name] for v in traced.outputs]
    return {"nin": len(arguments), "N": len(number), "edges": edges, "outs": outs}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_functions_are_planned_below_forward_and_reverse(name: str) -> None:
    problem = problem_of(name)
    plan = pullback.eliminate(problem)
    assert plan.multiplications < min(plan.forward, plan.reverse)
    assert plan.multiplications == Oracle(problem).cost_of(plan.order)
    assert plan.lower_bound is not None
    assert plan.lower_bound <= plan.multiplications
    assert plan.gap is not None
    assert plan.gap <= PROVED_WITHIN[name]


# The largest gap that the bound leaves: the search may not become worse, nor the bound.
PROVED_WITHIN = {
    "heart dipole": 0.0,
    "propane combustion": 0.0,
    "robot arm": 0.2,
    "roe flux": 0.4,
    "black scholes": 0.6,
}


# ---------------------------------------------------------------- the result, and what is refused


def test_a_plan_in_words() -> None:
    edges = [[0, 2], [1, 2], [2, 3], [3, 4], [3, 5], [3, 6]]
    plan = pullback.eliminate({"nin": 2, "N": 7, "edges": edges, "outs": [4, 5, 6]})
    rows = dict(line.rsplit("  ", 1) for line in str(plan).splitlines())
    assert {key.strip(): value.strip() for key, value in rows.items()} == {
        "vertices to eliminate": "2",
        "multiplications": "8",
        "forward": "8",
        "reverse": "9",
        "lower bound": "8 (sequences of vertex eliminations)",
        "gap": "0.0%",
    }


def test_nothing_to_eliminate() -> None:
    plan = pullback.eliminate({"nin": 1, "N": 2, "edges": [[0, 1]], "outs": [1]})
    assert (plan.order, plan.multiplications, plan.lower_bound, plan.gap) == ((), 0, 0, 0.0)


def test_what_no_path_runs_through_costs_nothing() -> None:
    """Vertex 3 reaches no output, and nothing reaches vertex 4: neither may make vertex 2 dearer."""
    edges = [[0, 1], [1, 2], [1, 3], [4, 2], [2, 5]]
    plan = pullback.eliminate({"nin": 1, "N": 6, "edges": edges, "outs": [5]})
    assert (plan.multiplications, sorted(plan.order)) == (2, [1, 2, 3, 4])
    assert plan.multiplications == Oracle({"nin": 1, "N": 6, "edges": edges, "outs": [5]}).cost_of(plan.order)


def test_an_output_on_which_others_depend_is_eliminated_and_stays() -> None:
    edges = [[0, 2], [1, 2], [2, 3], [3, 4]]
    plan = pullback.eliminate({"nin": 2, "N": 5, "edges": edges, "outs": [2, 4]})
    assert sorted(plan.order) == [2, 3]
    assert plan.multiplications == 1 + 2  # 3 first, then both inputs of 2 times its one edge


GOOD: Problem = {"nin": 1, "N": 4, "edges": [[0, 1], [1, 2], [2, 3]], "outs": [3]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edges": [[0, 1], [1, 2], [2, 1], [2, 3]]}, r"circle, .*1 → 2 → 1|circle, .*2 → 1 → 2"),
        ({"edges": [[0, 1, True, 0], [1, 2], [2, 3]]}, r"'edges'\[0\].*True.*merge the two vertices"),
        ({"edges": [[0, 4]]}, r"'edges'\[0\].*4.*from 0 to 3|'edges'\[0\].*4.*from 1 to 3"),
        ({"edges": [[1, 0]]}, r"'edges'\[0\].*0.*from 1 to 3"),
        ({"edges": [[1]]}, r"'edges'\[0\].*\[from, to\]"),
        ({"outs": [9]}, r"'outs'\[0\].*9"),
        ({"outs": ["a"]}, r"'outs'\[0\].*'a'"),
        ({"elim": [1]}, r"leaves out 2"),
        ({"elim": [1, 2, 2]}, r"2 more than once"),
        ({"elim": [0, 1, 2]}, r"'elim'\[0\].*0"),
        ({"nin": 5}, r"'nin'.*5.*0 to 4"),
        ({"N": -1}, r"'N'.*-1"),
    ],
)
def test_wrong_problems_are_refused(change: Problem, said: str) -> None:
    with pytest.raises(pullback.ArgumentError, match=said):
        pullback.eliminate({**GOOD, **change})


def test_other_wrong_calls_are_refused() -> None:
    with pytest.raises(pullback.ArgumentError, match="lacks 'outs'; it has 'nin', 'N', 'edges'"):
        pullback.eliminate({key: GOOD[key] for key in ("nin", "N", "edges")})
    with pytest.raises(pullback.ArgumentError, match=r"must be a dict.*list"):
        pullback.eliminate([])  # type: ignore[arg-type]
    for effort in (-1, float("nan"), "much", True):
        with pytest.raises(pullback.ArgumentError, match="effort"):
            pullback.eliminate(GOOD, effort=effort)  # type: ignore[arg-type]


def test_the_command_reads_files(tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    file.write_text(json.dumps({**GOOD, "elim": [1, 2]}))
    script = Path(__file__).parents[1] / "benchmarks" / "elimination.py"
    command = [sys.executable, str(script), "--effort", "0.1", "--relabellings", "2", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert printed.splitlines()[1].split()[:7] == ["small", "2", "2", "2", "2", "2", "0%"]
    assert "median 2 (2 to 2)" in printed


def test_values_of_the_published_functions_are_finite() -> None:
    for f, arguments in PUBLISHED.values():
        assert torch.stack(f(*arguments)).isfinite().all()
