"""The page of the documentation that says how every operator fared."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .comparison import CONVENTIONS, DERIVATIVES, DIFFERENCES, DISPUTED, LOOSER, TOLERANCE, Outcome, Row, Status

MARKS = {
    Status.PASSED: "pass",
    Status.UNSUPPORTED: "—",
    Status.REFUSED: "refused",
    Status.FAILED: "error",
    Status.WRONG: "wrong",
}

HEAD = """# Every operator of PyTorch's database

Written by `pullback ops --write docs/operators.md`; not edited by hand.

Every differentiable operator of PyTorch's own test database that a CPU can run, on as many of its samples as its row
says, all differentiable inputs at once: our values and our derivatives along random directions, captured by tracing,
beside those of `torch.autograd` (forward mode where PyTorch has it, else the derivative of its backward), and one
sample of each beside central differences. Second order is the derivative of the gradient of ⟨u, f(x)⟩ along a
direction; the last column is the VJP by `pullback.record`. An operator passes if every sample does; one refusal counts
as a refusal of the operator. Numbers agree if |a − b| ≤ {tolerance:g} · (1 + |b|), for difference quotients
{differences:g}; a dash stands where PyTorch itself has no derivative to compare with.
"""


def page(rows: Sequence[Row]) -> str:
    """The whole page, of the rows of a sweep over all samples."""
    ordered = sorted(rows, key=lambda row: (row.name, row.dtype != "float64"))
    parts = (
        HEAD.format(tolerance=TOLERANCE, differences=DIFFERENCES),
        *summaries(ordered),
        exceptions(),
        conventions(),
    )
    return "\n".join((*parts, reasons(ordered), table(ordered)))


def summaries(rows: Sequence[Row]) -> list[str]:
    """For each dtype how many operators passed, and how many did not."""
    return [summary([row for row in rows if row.dtype == dtype], dtype) for dtype in ("float64", "complex128")]


def summary(rows: Sequence[Row], dtype: str) -> str:
    """The figures of one dtype."""
    samples, available = sum(row.samples for row in rows), sum(row.available for row in rows)
    operators = f"{len(rows)} operator{'s' * (len(rows) != 1)}"
    lines = [f"## {dtype}: {operators}, {samples:,} of {available:,} samples\n"]
    lines += ["| | " + " | ".join(MARKS.values()) + " |", "|---" * (len(MARKS) + 1) + "|"]
    for k, derivative in enumerate(DERIVATIVES):
        counts = [sum(row.outcomes[k].status == status for row in rows) for status in MARKS]
        lines.append(f"| {derivative} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


def exceptions() -> str:
    """Looser tolerances, and where we hold PyTorch to be wrong."""
    lines = ["## Looser tolerances\n", "| operator | tolerance | reason |", "|---|---|---|"]
    lines += [f"| {name} | {tolerance:g} | {reason} |" for name, (tolerance, reason) in LOOSER.items()]
    lines += ["\n## Where difference quotients side with us against PyTorch\n", "| operator | what PyTorch does |"]
    lines += ["|---|---|", *(f"| {name} | {reason} |" for name, reason in DISPUTED.items())]
    return "\n".join(lines) + "\n"


def conventions() -> str:
    """Where no difference quotient can tell anything."""
    lines = ["## Conventions that differences cannot see\n", "| operator | convention |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {reason} |" for name, reason in CONVENTIONS.items())]) + "\n"


def reasons(rows: Sequence[Row]) -> str:
    """What was said about everything that did not pass, and of which operators; nothing if all passed."""
    said: dict[tuple[Status, str], set[str]] = defaultdict(set)
    for row in rows:
        worst = max(outcome.status for outcome in row.outcomes)
        if worst > Status.UNSUPPORTED:
            said[worst, _in_a_cell(row.reason)].add(row.name)
    if not said:
        return ""
    lines = ["## Reasons\n", "| | reason | operators |", "|---|---|---|"]
    for (status, reason), names in sorted(said.items(), key=lambda item: (-item[0][0], -len(item[1]), item[0][1])):
        lines.append(f"| {MARKS[status]} | {reason} | {', '.join(sorted(names))} |")
    return "\n".join(lines) + "\n"


def _in_a_cell(reason: str) -> str:
    return reason.replace("|", "/").replace("\n", " ")


def table(rows: Sequence[Row]) -> str:
    """One line an operator and dtype."""
    lines = ["## Operators\n", "| operator | dtype | samples | " + " | ".join(DERIVATIVES) + " | reason |"]
    return "\n".join([*lines, "|---" * (len(DERIVATIVES) + 4) + "|", *map(line, rows)]) + "\n"


def line(row: Row) -> str:
    """A row of the table; where not all samples fared as the worst did, with the number of those."""
    cells = [
        MARKS[o.status] + (f" ({n} of {row.samples})" if o.status > Status.UNSUPPORTED and n < row.samples else "")
        for o, n in zip(row.outcomes, row.counts, strict=True)
    ]
    return (
        f"| {row.name} | {row.dtype} | {row.samples} of {row.available} | "
        + " | ".join(cells)
        + f" | {_in_a_cell(row.reason)} |"
    )


# ---------------------------------------------------------------- reading it again

LINE = re.compile(r"^\| (\S+) \| (float64|complex128) \| (\d+) of (\d+) \| (.*) \| (.*) \|$", re.MULTILINE)


def rows_of(text: str) -> list[Row]:
    """The rows of a page."""
    return [_row(*match.groups()) for match in LINE.finditer(text)]


def _row(name: str, dtype: str, samples: str, available: str, cells: str, reason: str) -> Row:
    outcomes, counts = [], []
    for cell in cells.split(" | "):
        mark, _, some = cell.partition(" (")
        status = next(s for s, m in MARKS.items() if m == mark)
        outcomes.append(Outcome(status, reason if status > Status.UNSUPPORTED else ""))
        counts.append(int(some.partition(" ")[0]) if some else int(samples))
    return Row(name, dtype, int(samples), tuple(outcomes), tuple(counts), int(available))


def update(path: Path, rows: Sequence[Row]) -> None:
    """Write the page, or put rows in the place of those of the same operators and dtypes on it."""
    known = rows_of(path.read_text(encoding="utf-8")) if path.exists() else []
    merged = {(row.name, row.dtype): row for row in (*known, *rows)}
    path.write_text(page(list(merged.values())), encoding="utf-8")
