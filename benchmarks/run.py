"""The table: every task against every peer, ours and theirs alternately.

    python benchmarks/setup_peers.py       # once: the environments of the peers
    python benchmarks/run.py [--task 'robot arm*'] [--peer JAX] [--pairs 40] [--clock cpu] [--quick]

It prints the table, and writes it to `benchmarks/results.md` and `benchmarks/results.json` after each task.  With
`--resume`, what is in there already is kept, and only cells that are missing or have a problem are measured.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import harness
import setup_peers
import torch
from comparison import OURS, Options, Row, compare
from peers.client import ENVIRONMENTS, PEERS
from report import console_table, save, saved
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from targets import verdicts
from tasks.catalogue import TASKS

RESULTS = Path(__file__).parent / "results.md"
QUICK_PAIRS, QUICK_BUDGET = 8, 30.0


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", metavar="NAME", help="a task, or a pattern with *; may be repeated")
    parser.add_argument("--peer", action="append", metavar="NAME", choices=list(PEERS), help="a peer; may be repeated")
    parser.add_argument("--pairs", type=int, default=harness.PAIRS, help="pairs of samples (default %(default)s)")
    parser.add_argument("--clock", choices=harness.CLOCKS, default="wall", help="which clock (default %(default)s)")
    parser.add_argument("--backend", default="auto", help="ours (default %(default)s)")
    parser.add_argument(
        "--expected-calls",
        type=int,
        default=Options.expected_calls,
        help='that ours is told of, for its back end "auto" (default %(default)s: time to compile, as peers have)',
    )
    parser.add_argument("--budget", type=float, default=150, help="seconds for a first call (default %(default)s)")
    parser.add_argument("--pin", type=int, help="bind all processes to this processor")
    parser.add_argument(
        "--keep-compiled", action="store_true", help="torch.compile and ours may find what an earlier run compiled"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_PAIRS} pairs, to see that it runs: no measurement"
    )
    parser.add_argument("--setup", action="store_true", help="make the environments of the peers first")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the page goes (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep what was measured, and measure what is missing")
    parser.add_argument("--list", action="store_true", help="print the names of tasks and peers, and stop")
    options = parser.parse_args(given)
    if options.pairs < 30 and not options.quick:
        parser.error(f"--pairs {options.pairs}: fewer than 30 pairs say nothing on a shared machine")
    options.tasks = chosen(options.task)
    if not options.tasks:
        parser.error(f"--task {' '.join(options.task)}: no such task; --list prints their names")
    return options


def chosen(patterns: Sequence[str] | None) -> list[str]:
    """The names of the tasks that fit one of the patterns; of all tasks where there are none."""
    return [name for name in TASKS if not patterns or any(name == p or fnmatchcase(name, p) for p in patterns)]


def measure(given: argparse.Namespace, before: Sequence[Row], settings: str, console: Console) -> list[Row]:
    """Every row, those of an earlier run among them, saved as it comes."""
    rows = {row.task: row for row in before}
    pairs, budget = (QUICK_PAIRS, QUICK_BUDGET) if given.quick else (given.pairs, given.budget)
    cache = ENVIRONMENTS / "compiled" if given.keep_compiled else None
    options = Options(pairs, given.clock, budget, given.backend, given.expected_calls, given.pin, cache)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(given.tasks))
        for name in given.tasks:
            row = rows.get(name, Row(name, {}))
            missing = row.missing(given.peer or list(PEERS))
            if missing or row.missing([OURS]):
                later = compare(TASKS[name], missing, options, lambda text: progress.update(bar, description=text))
                rows[name] = row.joined(later)
                save(given.out, in_order(rows), peers_of(rows), harness.environment(), settings)
            progress.advance(bar)
    return in_order(rows)


def in_order(rows: Mapping[str, Row]) -> list[Row]:
    """Rows as the catalogue has them."""
    return [rows[name] for name in TASKS if name in rows]


def peers_of(rows: Mapping[str, Row]) -> list[str]:
    """The peers that any row has a cell of."""
    return [name for name in PEERS if any(name in row.cells for row in rows.values())]


def main() -> int:
    """Measure, print and save."""
    given = arguments()
    if given.list:
        print("\n".join([*TASKS, "", *PEERS]))
        return 0
    if given.setup:
        for name in setup_peers.names():
            print(name, setup_peers.make(name) or "ready", flush=True)
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 120)
    pairs = QUICK_PAIRS if given.quick else given.pairs
    settings = f"{pairs} pairs, {given.clock} clock, backend {given.backend}, {given.expected_calls:,} expected calls"
    settings += ", a quick look and no measurement" if given.quick else ""
    try:
        before = saved(given.out, harness.environment(), settings) if given.resume else []
    except ValueError as reason:
        console.print(f"--resume: {reason}", highlight=False)
        return 2
    rows = measure(given, before, settings, console)
    console.print(console_table(rows, peers_of({row.task: row for row in rows})))
    for verdict in verdicts(rows):
        console.print(str(verdict), style="" if verdict.holds else "bold", highlight=False)
    console.print(f"{harness.environment()}; {settings}; written to {given.out}")
    return int(any(row.cells[OURS].problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())
