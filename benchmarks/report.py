"""The table as a terminal, a Markdown page and a JSON file show it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import OURS, TOLERANCES, Cell, Row
from harness import Estimate
from rich.table import Table
from targets import verdicts

COLUMNS = ("", "a call", "× ours (95 %)", "first call", "how", "error")
ERRORS = ", ".join(f"{most:g} in {dtype}" for dtype, most in TOLERANCES.items())
UNITS = ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    size, unit = next((one for one in UNITS if seconds >= one[0]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def ratio(estimate: Estimate) -> str:
    """A ratio and the interval that holds it with 95 %."""
    return f"{estimate.median:.3g}× ({estimate.low:.3g}–{estimate.high:.3g})"


def lines_of(row: Row, names: Sequence[str]) -> list[list[str]]:
    """A row of the table as lines, one for each contender."""
    return [_line(name, row.cells[name]) for name in (OURS, *names) if name in row.cells]


def _line(name: str, cell: Cell) -> list[str]:
    """What a contender is called, and the columns of `COLUMNS`."""
    if cell.problem:
        return [name, "", "", "", _short(cell.problem), ""]
    times = "" if name == OURS else ratio(cell.ratio) if cell.ratio else "too slow for samples"
    error = "" if cell.error is None else f"{cell.error:.0e}"
    return [name, per_call(cell), times, duration(cell.first or 0), _how(cell), error]


def per_call(cell: Cell) -> str:
    """The median of a call's time, or the best of the few calls for which there was time."""
    return duration(cell.seconds.median if cell.seconds else cell.once or 0)


def _how(cell: Cell) -> str:
    """Of ours what the plan says, of a peer which way was the quickest."""
    plan = cell.facts.get("plan", {})
    if "multiplications" not in plan:
        return cell.way
    backend = f", {plan['backend']}" if "backend" in plan else ""
    return f"{plan['multiplications']:,} multiplications ({plan['order']}{backend})"


def _short(problem: str, longest: int = 60) -> str:
    problem = " ".join(problem.split())
    return problem if len(problem) <= longest else problem[: longest - 1] + "…"


def console_table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """For a terminal."""
    table = Table("task", *COLUMNS)
    for row in rows:
        for number, line in enumerate(lines_of(row, names)):
            table.add_row("" if number else row.task, *line)
        table.add_section()
    return table


def markdown(rows: Sequence[Row], names: Sequence[str], heading: Sequence[str]) -> str:
    """For a page: all tasks at a glance, and every figure."""
    glance = [_markdown_row(["task", OURS, *names]), "|---|" + "---:|" * (len(names) + 1)]
    for row in rows:
        glance.append(_markdown_row([row.task, per_call_or_nothing(row.cells[OURS]), *_factors(row, names)]))
    full = [_markdown_row(["task", *COLUMNS]), "|---|---|---:|---:|---:|---|---:|"]
    full += [_markdown_row([row.task, *line]) for row in rows for line in lines_of(row, names)]
    title = ["# Derivatives against peers", "", *heading, ""]
    shown = [f"- {verdict}" for verdict in verdicts(rows)]
    sections = {"At a glance": glance, "Every figure": full, "Targets": shown}
    return "\n".join([*title, *(line for name, lines in sections.items() for line in (f"## {name}", "", *lines, ""))])


def per_call_or_nothing(cell: Cell) -> str:
    """A cell's time, if it has one."""
    return "–" if cell.problem else per_call(cell)


def _factors(row: Row, names: Sequence[str]) -> list[str]:
    cells = [row.cells.get(name, Cell()) for name in names]
    return [f"{cell.ratio.median:.3g}×" if cell.ratio else "–" for cell in cells]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("**", "\\*\\*") for cell in cells) + " |"


def heading(rows: Sequence[Row], environment: str, settings: str) -> list[str]:
    """What the numbers were taken on, and how they are read."""
    versions = {cell.facts["about"]: None for row in rows for cell in row.cells.values() if "about" in cell.facts}
    dates = sorted({row.date for row in rows})
    return [
        f"{environment}. {settings}. Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}",
        "",
        *(f"- {version}" for version in versions),
        "",
        "“× ours”: how many times as long as ours a call takes, the median of the ratios of samples taken next to each "
        "other, with the interval that holds it with 95 %.  The table is about later calls, for which peers compile "
        "for seconds: ours is told to expect as many calls as the line above says (`expected_calls`), so that its back "
        "end “auto” may take the time to build machine code as well; its own default, 1,000 calls, would leave "
        "programs in Python that pay for a compiler only later.  The first call counts compilation but no imports.  "
        "“How”: which of a peer's ways was the quickest.  The error is the largest difference from `torch.func` in "
        "float64, "
        "relative to the largest entry; more than " + ERRORS + " is wrong, and has no time.",
    ]


def save(path: Path, rows: Sequence[Row], names: Sequence[str], environment: str, settings: str) -> None:
    """Write the Markdown page to `path`, and all figures beside it as JSON."""
    data: dict[str, Any] = {"environment": environment, "settings": settings, "rows": [asdict(row) for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(rows, names, heading(rows, environment, settings)), encoding="utf-8")


def saved(path: Path, environment: str, settings: str) -> list[Row]:
    """What an earlier run has written beside `path`, if anything.

    Raises ValueError where that was measured on another machine, with other versions or in another way.
    """
    file = path.with_suffix(".json")
    if not file.exists():
        return []
    data = json.loads(file.read_text(encoding="utf-8"))
    for before, now in ((data["environment"], environment), (data["settings"], settings)):
        if _without_load(before) != _without_load(now):
            raise ValueError(f"{file} was measured with “{before}”, this run is “{now}”: it cannot be continued")
    return [
        Row(row["task"], {name: _cell(cell) for name, cell in row["cells"].items()}, row["date"])
        for row in data["rows"]
    ]


def _without_load(environment: str) -> str:
    return environment.rsplit(", load", 1)[0]


def _cell(data: dict[str, Any]) -> Cell:
    estimates = {key: Estimate(**data[key]) for key in ("seconds", "ratio") if data[key] is not None}
    return Cell(**{**data, **estimates})
