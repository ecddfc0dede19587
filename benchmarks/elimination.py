"""Plan bare elimination problems from files, and print what was found beside what is proved.

    python benchmarks/elimination.py [--effort SECONDS] [--relabellings N] FILE…

A file holds one problem as JSON; `pullback.eliminate` describes the form.  With `--relabellings` each problem is
planned again under that many random numberings of its vertices, and the median is printed: a search that profits from a
lucky numbering shows.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import pullback


def relabelled(problem: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same problem with its inputs, and all others, numbered at random, and its edges shuffled."""
    generator = random.Random(seed)
    inputs, others = list(range(problem["nin"])), list(range(problem["nin"], problem["N"]))
    generator.shuffle(inputs)
    generator.shuffle(others)
    new = [*inputs, *others]
    edges = [[new[source], new[target], *rest] for source, target, *rest in problem["edges"]]
    elim = [new[v] for v in problem["elim"]]
    generator.shuffle(edges)
    generator.shuffle(elim)
    return {**problem, "edges": edges, "outs": [new[v] for v in problem["outs"]], "elim": elim}


def main() -> None:
    parser = argparse.ArgumentParser(description="Plan bare elimination problems from files.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--effort", type=float, help="seconds of search for each; the library's default without")
    parser.add_argument("--relabellings", type=int, default=0)
    arguments = parser.parse_args()
    options = {} if arguments.effort is None else {"effort": arguments.effort}
    heads = "".join(f"{head:>9}" for head in ("vertices", "forward", "reverse", "planned", "bound", "gap", "s"))
    print(f"{'problem':24}{heads}  relabelled")
    for file in arguments.files:
        problem = json.loads(file.read_text(encoding="utf-8"))
        start = time.perf_counter()
        plan = pullback.eliminate(problem, **options)
        seconds = time.perf_counter() - start
        again = [
            pullback.eliminate(relabelled(problem, seed), **options).multiplications
            for seed in range(arguments.relabellings)
        ]
        others = f"median {median(again):g} ({min(again)} to {max(again)})" if again else ""
        print(
            f"{file.stem:24}{len(plan.order):>9}{plan.forward:>9}{plan.reverse:>9}{plan.multiplications:>9}"
            f"{plan.lower_bound:>9}{plan.gap:>9.0%}{seconds:>9.2f}  {others}"
        )


if __name__ == "__main__":
    main()
