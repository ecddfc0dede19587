"""Random scripts, traced and recorded: values and derivatives of first and second order against autograd.

`PULLBACK_EXAMPLES` sets how many are drawn: 175 of either kind if unset, which makes 500 with the programs of
test_random_programs.py.  `./test -m long` checks 20,000 of up to 60 steps, in parts of 250, of which `-k` chooses some;
`python tests/random_sweep.py` does the same with a line of progress, goes on where it was stopped, and cuts what fails
down to a short script.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings

import random_checks
import random_sweep
from pullback.emit import backends
from pullback.emit.program import Program
from random_checks import CHECKS, Untried
from random_scripts import Script, scripts, seeded, shrunk

EXAMPLES = int(os.environ.get("PULLBACK_EXAMPLES", "175"))
LONG, PART = 10_000, 250
QUIET = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def checked(kind: str, script: Script) -> None:
    try:
        CHECKS[kind](script)
    except Untried:
        reject()


@settings(max_examples=EXAMPLES, **QUIET)
@given(scripts(longest=20))
def test_traced_scripts(script: Script) -> None:
    checked("traced", script)


@settings(max_examples=EXAMPLES, **QUIET)
@given(scripts(control=True, longest=30))
def test_recorded_scripts(script: Script) -> None:
    checked("recorded", script)


@pytest.mark.long
@pytest.mark.parametrize("start", range(0, LONG, PART))
@pytest.mark.parametrize("kind", CHECKS)
def test_many_scripts(kind: str, start: int) -> None:
    failures = [random_sweep.failure(kind, seed) for seed in range(start, start + PART)]
    assert not any(failures), "\n".join(filter(None, failures))


def test_a_script_that_fails_prints_itself() -> None:
    script = Script(((2,),), (("v1 = v0.sin()", "v1.mul_(2)"),), ("v1",), True)
    assert "def program(v0):\n    v1 = v0.sin()\n    v1.mul_(2)\n    return (v1,)" in repr(script)
    assert "pullback.hvp(loss, " in repr(script)
    exec(script.source, {})


@pytest.mark.reference
def test_what_is_printed_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(repr(seeded(4, longest=8)), {})
    assert capsys.readouterr().out.count("tensor(") >= 4


def test_scripts_shrink_to_the_line_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """By either way: by hypothesis as a search for fewer draws, in a sweep by leaving steps out."""

    def wrong(script: Script) -> None:
        assert ".tanh(" not in "".join(line for step in script.steps for line in step), repr(script)

    monkeypatch.setitem(CHECKS, "traced", wrong)
    seed = next(k for k in range(99) if "torch.tanh(" in seeded(k).source.split("def program")[1])
    short = shrunk(seeded(seed), lambda s: bool(random_sweep.problem("traced", s)))
    assert len(short.steps) <= 4
    assert ".tanh(" in short.source
    assert "def program" in (random_sweep.failure("traced", seed) or "")


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "done.txt"
    arguments = ["0:6", "--kind", "traced", "--jobs", "1", "--state", str(state)]
    assert random_sweep.main(arguments) == 0
    assert "6 of 6" in capsys.readouterr().out
    assert random_sweep.main(arguments) == 0
    assert "nothing left" in capsys.readouterr().out


def test_a_sweep_of_one_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every script's programs are machine code, not what `backend="auto"` would choose for a few calls."""
    monkeypatch.setattr(backends, "BACKENDS", {**backends.BACKENDS})
    random_sweep.only("native")
    found: list[str] = []
    emit = backends.BACKENDS["native"].emit

    def emitted(*args: Any, **options: Any) -> Program:
        program = emit(*args, **options)
        found.append(program.name)
        return program

    monkeypatch.setitem(backends.BACKENDS, "native", replace(backends.BACKENDS["native"], emit=emitted))
    assert not any(random_sweep.failure("traced", seed) for seed in range(4))
    assert len(found) >= 8


@pytest.mark.parametrize("seed", [6093, 6702])
def test_where_single_precision_rounds_what_cancels_double_precision_decides(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = seeded(seed)
    assert ".float()" in script.source
    assert ".float()" not in script.in_double.source
    monkeypatch.setitem(random_checks.TOLERANCES, "single", (0.0, 0.0))
    CHECKS["traced"](script)
    for other in ("double", "rough"):
        with monkeypatch.context() as patch:
            patch.setitem(random_checks.TOLERANCES, other, (0.0, 0.0))
            with pytest.raises(AssertionError):
                CHECKS["traced"](script)


def test_there_is_something_of_everything() -> None:
    found = "\n".join(seeded(k, True).source.split("def program")[1] for k in range(150))
    for text in ("checkpoint(", "Cube.apply", "fft", "solve", "index_put_", ".float()", "while ", ".conj()", " @ "):
        assert text in found, text
