"""Many random scripts: `python tests/random_sweep.py 0:10000 --jobs 2`.

Each number is a script, traced and recorded.  A line tells how far it is; what fails is cut down and printed as a
script to run.  With `--state FILE` a sweep goes on where it was stopped; with `--backend native` every program that can
be machine code is.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from pullback.emit import backends
from pullback.emit.offers import Offer
from random_checks import CHECKS, Untried
from random_scripts import Script, seeded, shrunk

CHUNK = 20


def only(backend: str) -> None:
    """Have `backend="auto"` choose this one in this process, whatever it costs, wherever it does not decline."""
    backends.BACKENDS = {
        name: replace(one, offer=(lambda graph, model: Offer(0.0, 0.0)) if name == backend else None)
        for name, one in backends.BACKENDS.items()
    }


def begin(backend: str | None) -> None:
    """What each process of a sweep starts with."""
    torch.set_num_threads(1)
    if backend:
        only(backend)


def problem(kind: str, script: Script) -> str:
    """What is wrong with a script, or the empty string."""
    try:
        CHECKS[kind](script)
    except Untried:
        return ""
    except Exception as error:  # whatever goes wrong is a finding
        return f"{type(error).__name__}: {error}"
    return ""


def failure(kind: str, seed: int) -> str:
    """What is wrong with the script of a number, cut down; or the empty string."""
    script = seeded(seed, control=kind == "recorded")
    said = problem(kind, script)
    if not said:
        return ""
    error = said.split(":")[0]
    short = shrunk(script, lambda s: problem(kind, s).split(":")[0] == error)
    return f"\n{kind}, number {seed}: {problem(kind, short).split(chr(10) * 2)[0]}\n{short!r}"


def failures(part: tuple[str, int, int]) -> tuple[tuple[str, int, int], list[str]]:
    """Those of some numbers in a row."""
    kind, start, end = part
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return part, [said for seed in range(start, end) if (said := failure(kind, seed))]


def parts(start: int, end: int, kinds: list[str], done: set[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
    for first in range(start, end, CHUNK):
        for kind in kinds:
            part = (kind, first, min(first + CHUNK, end))
            if part not in done:
                yield part


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", help="first:end, as in 0:10000")
    parser.add_argument("--kind", choices=[*CHECKS, "both"], default="both")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--state", type=Path, help="file of what is done")
    parser.add_argument("--backend", choices=list(backends.BACKENDS), help="for every program that it can make")
    given = parser.parse_args(arguments)
    start, end = map(int, given.numbers.split(":"))
    done = read(given.state)
    todo = list(parts(start, end, list(CHECKS) if given.kind == "both" else [given.kind], done))
    if not todo:
        print("nothing left to do")
        return 0
    return run(todo, given)


def run(todo: list[tuple[str, int, int]], given: argparse.Namespace) -> int:
    total, finished, wrong, started = sum(e - s for _, s, e in todo), 0, 0, time.perf_counter()
    with ProcessPoolExecutor(given.jobs, initializer=begin, initargs=(given.backend,)) as pool:
        for part, found in pool.map(failures, todo):
            finished += part[2] - part[1]
            wrong += len(found)
            print(*found, sep="\n", end="" if not found else "\n")
            left = (time.perf_counter() - started) / finished * (total - finished)
            print(f"\r{finished:,} of {total:,} scripts, {wrong} failed, {left / 60:.0f} min left ", end="", flush=True)
            if given.state and not found:
                with given.state.open("a") as file:
                    print(*part, file=file)
    print()
    return int(wrong > 0)


def read(state: Path | None) -> set[tuple[str, int, int]]:
    lines = state.read_text().splitlines() if state and state.exists() else []
    return {(kind, int(start), int(end)) for kind, start, end in map(str.split, lines)}


if __name__ == "__main__":
    sys.exit(main())
