"""The benchmarks' own arithmetic, and that their steps still run."""

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="an installed copy comes without its benchmarks")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in {"harness", "steps", "lookup", "compile_time"} & (set(sys.modules) - before):
        del sys.modules[name]


def test_the_interval_is_that_of_the_order_statistics(load: object) -> None:
    harness: ModuleType = load("harness")  # type: ignore[operator]
    estimate = harness.Estimate.of([float(k) for k in range(40)])
    assert (estimate.median, estimate.low, estimate.high) == (19.5, 13.0, 26.0)  # Conover's table A3, n = 40


def test_a_comparison_tells_twice_the_work(load: object) -> None:
    harness: ModuleType = load("harness")  # type: ignore[operator]
    harness.use_clock("wall")

    def wait(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    found = harness.compare(lambda: wait(2e-4), lambda: wait(4e-4), lambda: (), 30)
    assert found.ratio.low <= 2.2
    assert found.ratio.high >= 1.8
    assert found.calls[0] > found.calls[1]


def test_a_verdict_knows_its_direction(load: object) -> None:
    harness: ModuleType = load("harness")  # type: ignore[operator]
    assert harness.Verdict("speed", 2.6, 2.5, at_least=True).holds
    assert not harness.Verdict("time", 1.2, 1.05).holds


@pytest.mark.parametrize("name", ["xor", "cnn"])
def test_our_step_trains(load: object, name: str) -> None:
    steps: ModuleType = load("steps")  # type: ignore[operator]
    training = getattr(steps, name)()
    x, y = training.inputs()
    losses = [training.ours(x, y) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert torch.isfinite(losses[-1])


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The modules of the table, which are not left behind."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {
            "harness",
            "comparison",
            "report",
            "targets",
            "run",
            "predictions",
            "setup_peers",
            "peers",
            "tasks",
        }:
            del sys.modules[name]


def test_messages_arrive_as_they_were_sent(table: object) -> None:
    protocol: ModuleType = table("peers.protocol")  # type: ignore[operator]
    inward, outward = os.pipe()
    large = np.arange(5000.0).reshape(50, 100)  # fits the pipe: nobody reads while it is written
    protocol.send(outward, {"do": "prepare", "result": [large, np.array(3)], "facts": {"plan": {"order": "auto"}}})
    message = protocol.receive(inward, 1)
    assert message["facts"] == {"plan": {"order": "auto"}}
    assert [a.tolist() for a in message["result"]] == [large.tolist(), 3]
    with pytest.raises(protocol.Late):
        protocol.receive(inward, 0.01)
    os.close(outward)
    with pytest.raises(protocol.Closed):
        protocol.receive(inward, 1)
    os.close(inward)


@pytest.mark.reference  # the peer is torch.func, in a process of its own
def test_the_table_compares_ours_with_a_peer(
    table: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: ModuleType = table("run")  # type: ignore[operator]
    out = tmp_path / "results.md"
    given = [
        "run.py",
        "--task",
        "heart dipole",
        "--peer",
        "torch.func",
        "--peer",
        "limit",
        "--quick",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", given)
    assert run.main() == 0
    (row,) = json.loads(out.with_suffix(".json").read_text())["rows"]
    ours, theirs, limit = (row["cells"][name] for name in ("pullback", "torch.func", "limit"))
    assert ours["error"] < 1e-14
    assert theirs["way"] in ("jacrev", "jacfwd")
    assert theirs["ratio"]["low"] <= theirs["ratio"]["median"] <= theirs["ratio"]["high"]
    assert limit["problem"] == "not known"
    assert "| heart dipole | torch.func |" in out.read_text()
    assert "heart dipole" in capsys.readouterr().out


def test_a_peer_that_is_not_there_is_a_cell_with_its_message(table: object, monkeypatch: pytest.MonkeyPatch) -> None:
    client: ModuleType = table("peers.client")  # type: ignore[operator]
    monkeypatch.setattr(client, "ENVIRONMENTS", Path("nowhere"))
    with pytest.raises(client.PeerError, match=r"python benchmarks/setup_peers\.py"):
        client.Worker(client.PEERS["JAX"])
    report: ModuleType = table("report")  # type: ignore[operator]
    comparison: ModuleType = table("comparison")  # type: ignore[operator]
    row = comparison.Row(
        "arm", {"pullback": comparison.Cell("jacobian", 0.5, 3e-6), "JAX": comparison.Cell(problem="no")}
    )
    assert report.lines_of(row, ["JAX"]) == [
        ["pullback", "3 µs", "", "500 ms", "jacobian", ""],
        ["JAX", "", "", "", "no", ""],
    ]


def test_a_way_that_ends_its_process_leaves_time_for_one_that_does_not(
    table: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: ModuleType = table("peers.client")  # type: ignore[operator]
    comparison: ModuleType = table("comparison")  # type: ignore[operator]
    task = table("tasks.catalogue").TASKS["heart dipole"]  # type: ignore[operator]
    budgets: list[float] = []

    class Crashing:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> "Crashing":
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, what: str, *_: object, budget: float = 0, **__: object) -> dict[str, object]:
            if what == "about":
                return {"text": "one"}
            budgets.append(budget)
            if budget:
                raise client.Died("ended by SIGSEGV")
            return {"way": "jacrev", "first": 1.0, "once": 1e-3, "result": [np.ones(2)], "facts": {}}

    monkeypatch.setattr(comparison, "Worker", Crashing)
    with ExitStack() as stack:
        entrant = comparison._enter(stack, task, "JAX", comparison.Options(budget=9), [np.ones(2)])
    assert (entrant.cell.way, budgets) == ("jacrev", [9, 0])


def test_how_a_peer_ended_is_said(table: object) -> None:
    client: ModuleType = table("peers.client")  # type: ignore[operator]
    with client.Worker(client.PEERS["limit"]) as worker:
        worker.process.kill()
        with pytest.raises(client.Died, match="ended by SIGKILL"):
            worker.ask("about")


def test_targets_compare_with_the_quickest_peer(table: object) -> None:
    comparison: ModuleType = table("comparison")  # type: ignore[operator]
    targets: ModuleType = table("targets")  # type: ignore[operator]
    harness: ModuleType = table("harness")  # type: ignore[operator]

    def cell(ratio: float) -> object:
        estimate = harness.Estimate(ratio, ratio, ratio)
        return comparison.Cell("way", 0.1, 1e-6, estimate, estimate)

    cells = {
        "pullback": cell(1.0),
        "JAX": cell(3.0),
        "CasADi kernel": cell(1.5),
        "torch.func": comparison.Cell(problem="no"),
    }
    found = targets.verdicts([comparison.Row("robot arm ×512", cells)])
    assert [(verdict.value, verdict.limit, verdict.holds) for verdict in found] == [(1.5, 2, False)]
    assert "CasADi kernel / ours" in found[0].name
    names = set(table("tasks.catalogue").TASKS)  # type: ignore[operator]
    for target in targets.TARGETS:
        assert all(any(fnmatchcase(name, pattern) for name in names) for pattern in target.tasks)


def test_other_results_are_not_taken_for_right_ones(table: object) -> None:
    comparison: ModuleType = table("comparison")  # type: ignore[operator]
    right = [np.array([1.0, 4.0])]
    assert comparison.largest_error([np.array([1.0, 4.4])], right) == pytest.approx(0.1)
    with pytest.raises(comparison.PeerError, match="shapes"):
        comparison.largest_error([np.array([[1.0, 4.0]])], right)


def test_wrong_results_have_no_time(table: object) -> None:
    comparison: ModuleType = table("comparison")  # type: ignore[operator]
    right = [np.array([2.0, 1.0]), np.array([3.0])]
    assert comparison.checked_error([np.array([2.0, 1.0002]), np.array([3.0])], right, "float32") == pytest.approx(1e-4)
    for wrong in (1.0002, float("nan")):
        with pytest.raises(comparison.PeerError, match="wrong"):
            comparison.checked_error([np.array([2.0, wrong]), np.array([3.0])], right, "float64")


class _Dying:
    """A worker that answers so many samples, and then none."""

    def __init__(self, left: int, failure: type[Exception]) -> None:
        self.left, self.failure = left, failure

    def ask(self, *_: object, **details: object) -> dict[str, float]:
        self.left -= 1
        if self.left < 0:
            raise self.failure("it died")
        return {"seconds": 1e-6}


@pytest.mark.parametrize("dying", ["pullback", "JAX"])
def test_one_that_dies_among_the_samples_is_a_cell_with_its_message(table: object, dying: str) -> None:
    comparison: ModuleType = table("comparison")  # type: ignore[operator]
    task = table("tasks.catalogue").TASKS["heart dipole"]  # type: ignore[operator]
    entrants = [
        comparison._Entrant(
            name, _Dying(12 if name == dying else 10**6, comparison.PeerError), comparison.Cell("way", 0.1, 1e-6), 1
        )
        for name in ("pullback", "JAX", "torch.func")
    ]
    comparison._sample(task, entrants, comparison.Options(pairs=30), lambda _: None)
    cells = {one.name: comparison._finished(one) for one in entrants}
    assert cells[dying].problem == "fails on other arguments: it died"
    assert (cells["torch.func"].seconds is not None) or dying == "pullback"
    assert len(entrants[2].pairs) == (30 if dying == "JAX" else 1)


def test_a_run_goes_on_where_another_ended(
    table: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: ModuleType = table("run")  # type: ignore[operator]
    comparison: ModuleType = table("comparison")  # type: ignore[operator]
    harness: ModuleType = table("harness")  # type: ignore[operator]
    estimate, asked = harness.Estimate(2.0, 1.0, 3.0), []

    def compare(task: object, names: list[str], *_: object) -> object:
        asked.append((task.name, names))  # type: ignore[attr-defined]
        cells = {"pullback": comparison.Cell("", 0.1, 1e-6, estimate, estimate, 0.0)}
        cells |= {
            name: comparison.Cell(problem="no", final=name == "CasADi")
            if name in ("limit", "CasADi")
            else cells["pullback"]
            for name in names
        }
        return comparison.Row(task.name, cells, "2026-01-01")  # type: ignore[attr-defined]

    monkeypatch.setattr(run, "compare", compare)

    def go(*given: str) -> int:
        peers = ["--peer", "JAX", "--peer", "CasADi", "--peer", "limit"]
        monkeypatch.setattr(sys, "argv", ["run.py", *peers, "--out", str(tmp_path / "results.md"), *given])
        return int(run.main())

    assert go("--task", "robot arm") == 0
    assert go("--task", "robot arm", "--task", "roe flux 3-D", "--resume") == 0
    everyone = ["JAX", "CasADi", "limit"]
    assert asked == [("robot arm", everyone), ("roe flux 3-D", everyone), ("robot arm", ["limit"])]
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["task"] for row in rows] == ["roe flux 3-D", "robot arm"]  # as the catalogue has them
    assert rows[1]["cells"]["JAX"]["ratio"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert go("--resume", "--clock", "cpu") == 2
    assert "it cannot be continued" in " ".join(capsys.readouterr().out.split())


def test_ours_may_compile_for_as_many_calls_as_the_head_says(
    table: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: ModuleType = table("run")  # type: ignore[operator]
    comparison: ModuleType = table("comparison")  # type: ignore[operator]
    contenders = table("peers.ours").contenders  # type: ignore[operator]
    told: list[dict[str, object]] = []

    def compare(task: object, names: object, options: object, *_: object) -> object:
        told.append(comparison._peer(comparison.OURS, options).options)
        (ours,) = contenders(task, **told[-1]).values()
        assert ours.call.backend.calls == 1_000_000
        return comparison.Row(task.name, {comparison.OURS: comparison.Cell("", 0.1, 1e-6)}, "2026-01-01")  # type: ignore[attr-defined]

    monkeypatch.setattr(run, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["run.py", "--task", "robot arm", "--out", str(tmp_path / "results.md")])
    run.main()
    assert told == [{"backend": "auto", "expected_calls": 1_000_000}]
    assert "backend auto, 1,000,000 expected calls" in (tmp_path / "results.md").read_text()


def test_predictions_are_compared_and_kept(
    table: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions: ModuleType = table("predictions")  # type: ignore[operator]
    monkeypatch.setattr(predictions, "ROUNDS", 1)
    out = tmp_path / "predictions.md"
    given = ["predictions.py", "--task", "heart dipole", "--random", "1", "--backend", "python", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    predictions.main()
    results = json.loads(out.with_suffix(".json").read_text())["results"]
    assert [one["name"] for group in results.values() for one in group] == ["heart dipole", "random 0"]
    for one in (one for group in results.values() for one in group):
        assert one["backend"] == "python"
        assert 0.1 < one["predicted"] / one["measured"] < 10  # of the right size, on whatever machine
        assert one["behind"] >= 1
    assert "predicted within a factor 2" in capsys.readouterr().out
    assert "| random 0 | " in out.read_text()


def test_tasks_are_the_same_in_every_process(table: object) -> None:
    catalogue: ModuleType = table("tasks.catalogue")  # type: ignore[operator]
    small = [task for task in catalogue.TASKS.values() if "100000" not in task.name and "sum" not in task.name]
    for task in small:
        for first, second in zip(task.arguments(7), task.arguments(7), strict=True):
            np.testing.assert_array_equal(first, second)
            assert first.dtype.name in (task.dtype, "int64")
