"""What `pullback ops` does: sweep, say what did not pass, and write the page."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from .comparison import Row, Status
from .database import chosen
from .page import line, reasons, summaries, update
from .sweep import sweep, tasks

DTYPES = (None, "float64", "complex128")


def report_operators(
    patterns: list[str],
    dtype: str | None,
    limit: int | None,
    jobs: int,
    path: Path | None,
    say: Callable[[str], None],
    track: Callable[..., Iterable[Any]],
) -> bool:
    """Examine operators and print how they fared.

    patterns, dtype, limit: which operators (all, if there are none), in which dtype, on how many samples.
    jobs: how many processes share the work.
    path: the page to write, if any; rows of other operators that it has are left as they are.
    say, track: print a text; put a progress bar around the rows.

    Returns whether anything is wrong or broke.  Raises ArgumentError for options that make no sense.
    """
    check(dtype, path)
    todo = tasks(names_of(patterns), dtype)
    rows: list[Row] = list(track(sweep(todo, limit, jobs), total=len(todo), description="operators"))
    for row in rows:
        if max(o.status for o in row.outcomes) > Status.UNSUPPORTED or patterns:
            say(line(row))
    say("\n".join(("", reasons(rows), *summaries(rows))))
    if path is not None:
        update(path, rows)
    return any(o.status >= Status.FAILED for row in rows for o in row.outcomes)


def check(dtype: str | None, path: Path | None) -> None:
    """Refuse options that make no sense, before anything takes time."""
    if dtype not in DTYPES:
        raise ArgumentError(f"--dtype {dtype!r}: it must be float64 or complex128")
    if path is not None and not path.parent.is_dir():
        raise ArgumentError(f"--write {path}: there is no directory {path.parent}")


def names_of(patterns: list[str]) -> list[str]:
    """The operators that are meant.  Raises ArgumentError if a package that the database needs is missing."""
    try:
        return chosen(patterns)
    except ModuleNotFoundError as missing:
        raise ArgumentError(f"pullback ops needs {missing.name}: pip install 'pullback[ops]'") from None
