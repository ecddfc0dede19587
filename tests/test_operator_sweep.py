"""The evidence over PyTorch's operator database: it finds what is wrong, and its page says what it would say today."""

import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pullback import cli, registry, torch_private
from pullback.evidence import comparison, database, reference
from pullback.evidence.comparison import DISPUTED, LOOSER, Row, Status, examine, judged
from pullback.evidence.page import line, page, rows_of
from pullback.evidence.sweep import tasks
from pullback.rules import RULES, Pointwise
from support import reference as through_the_gate


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet() -> None:
    """A program that was compiled by other rules would be found again: nobody else changes rules."""
    registry.forget("aten.sin.default")


@pytest.fixture(autouse=True)
def pytorch_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what stands for PyTorch's side may pass the gate."""
    for name in ("expected", "quotients", "second_quotients"):
        monkeypatch.setattr(reference, name, through_the_gate()(getattr(reference, name)))


def examined(name: str, limit: int | None = None) -> Row:
    return examine(name, torch.float64, limit)


PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
ROWS = rows_of(PAGE.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- the page


def test_the_page_has_a_row_for_every_operator_and_dtype() -> None:
    expected = [(name, str(dtype).removeprefix("torch.")) for name, dtype in tasks(list(database.operators()))]
    assert sorted((row.name, row.dtype) for row in ROWS) == sorted(expected)


def test_the_page_is_what_its_rows_say() -> None:
    """Its figures, reasons and exceptions are those of its rows and of the tables in the code."""
    assert page(ROWS) == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROWS[::25], ids=lambda row: f"{row.name}-{row.dtype}")
def test_the_page_says_what_the_sweep_says(row: Row) -> None:
    """All samples if they are few; else the first ones, on which nothing worse may happen than the page says."""
    limit = row.samples if row.samples <= 6 else 2
    today = examine(row.name, getattr(torch, row.dtype), limit)
    if limit == row.samples:
        assert line(today) == line(row)
    for before, now in zip(row.outcomes, today.outcomes, strict=True):
        assert now.status <= before.status


def test_exceptions_are_few_and_have_reasons() -> None:
    assert len(LOOSER) <= 15
    assert all(reason for _, reason in LOOSER.values())
    assert all(DISPUTED.values())
    assert (LOOSER.keys() | DISPUTED.keys()) <= database.operators().keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ["fft.fft", "linalg.inv", "mul", "masked_select"])
def test_every_front_end_knows_complex_numbers(name: str, dtype: torch.dtype) -> None:
    recorded = examine(name, dtype, 2).outcomes[-1]
    assert recorded == comparison.Outcome(Status.PASSED)


# ---------------------------------------------------------------- that it can fail


@pytest.mark.parametrize("formula", [lambda x: -x.cos(), lambda x: 2 * x.cos(), lambda x: 0])
def test_a_wrong_rule_is_wrong(monkeypatch: pytest.MonkeyPatch, formula: object) -> None:
    monkeypatch.setitem(RULES, "aten.sin.default", Pointwise(formula))
    assert {o.status for o in examined("sin").outcomes} == {Status.WRONG}


def test_a_missing_rule_is_a_refusal_that_names_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "aten.sin.default")
    row = examined("sin")
    assert {(o.status, o.reason) for o in row.outcomes} == {(Status.REFUSED, "no rule for aten.sin.default")}
    refused = " | ".join(["refused"] * 4)
    assert line(row) == f"| sin | float64 | 1 of 1 | {refused} | no rule for aten.sin.default |"


def test_a_rule_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "aten.sin.default", Pointwise(lambda x: [][0]))
    assert {o.status for o in examined("sin").outcomes} == {Status.FAILED}


def test_differences_catch_what_both_sides_get_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's answer is doubled, as is our rule."""
    monkeypatch.setitem(RULES, "aten.sin.default", Pointwise(lambda x: 2 * x.cos()))
    true = reference.expected

    def doubled(example: database.Example) -> reference.Expected:
        e = true(example)
        return reference.Expected(
            e.values, e.directions, *(tuple(2 * t for t in k) for k in (e.pulled, e.pushed)), None
        )

    monkeypatch.setattr(reference, "expected", doubled)
    pulled, pushed, *_ = examined("sin").outcomes
    assert pulled.status == Status.PASSED
    assert (pushed.status, pushed.reason) == (Status.WRONG, "no sample agrees with its difference quotient")


@pytest.mark.parametrize(
    ("ours", "theirs", "status"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 2e-8], Status.PASSED),
        ([1.0, 2.0], [1.0, 2.0 + 4e-8], Status.WRONG),
        ([float("nan")], [float("nan")], Status.PASSED),
        ([float("nan")], [0.0], Status.WRONG),
        ([0.0], [float("nan")], Status.WRONG),
        ([float("inf")], [float("inf")], Status.PASSED),
        ([float("inf")], [-float("inf")], Status.WRONG),
        ([1.0], [[1.0]], Status.WRONG),
    ],
)
def test_what_counts_as_equal(ours: list[float], theirs: list[float], status: Status) -> None:
    double = torch.float64
    assert judged([torch.tensor(ours, dtype=double)], [torch.tensor(theirs, dtype=double)], 1e-8).status == status


def test_the_worst_sample_counts() -> None:
    outcomes = [comparison.Outcome(Status.PASSED), comparison.Outcome(Status.REFUSED, "why")] * 2
    assert comparison.worst_of(outcomes) == (comparison.Outcome(Status.REFUSED, "why"), 2)


# ---------------------------------------------------------------- the command


def test_the_command_prints_the_rows_and_the_figures() -> None:
    result = CliRunner().invoke(
        cli.app, ["ops", "--op", "sin", "--op", "nn.functional.relu*", "--dtype", "float64", "--jobs", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "| sin | float64 | 1 of 1 | pass | pass | pass | pass |  |" in result.output
    assert "## float64: 3 operators" in result.output
    assert "## Reasons" not in result.output  # where all passed there are none


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--op", "sine"], "'sine' is no differentiable operator"),
        (["--dtype", "float16"], "must be float64 or complex128"),
        (["--write", "nowhere/x.md"], "there is no directory nowhere"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [__file__])  # the command itself, whose line is no news to anybody
    result = CliRunner().invoke(cli.app, ["ops", *options])
    assert result.exit_code == 2
    assert said in result.output
    assert "\n  at " not in result.output


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'expecttest'", name="expecttest")

    database.operators.cache_clear()
    monkeypatch.setattr(database, "operator_database", missing)
    result = CliRunner().invoke(cli.app, ["ops"])
    assert result.exit_code == 2
    assert "needs expecttest: pip install 'pullback[ops]'" in result.output
    monkeypatch.undo()
    assert torch_private.operator_database() is not None
