"""A peer's process: `python -m peers.worker MODULE`, with messages on its standard input and output.

It answers three messages:
    prepare (task, seed, budget, options)   what the first call gives, and how long it takes
    sample (seed, calls, clock)             seconds a call on fresh arguments
    about ()                                versions
"""

import importlib
import os
import sys
import traceback
from dataclasses import replace
from typing import Any

from tasks.catalogue import TASKS

from .contender import CLOCKS, Contender, NotOffered, quickest
from .protocol import Closed, receive, send


class Worker:
    """What a process knows between two messages."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.task = next(iter(TASKS.values()))
        self.contender: Contender | None = None

    def about(self) -> dict[str, Any]:
        """What the peer is, in words."""
        return {"text": self.module.about()}

    def prepare(self, task: str, seed: int, budget: float, precision: str, options: dict[str, Any]) -> dict[str, Any]:
        """Compute the first result; `precision` is another dtype to do it in, if any, with arguments as rounded."""
        self.task = TASKS[task]
        arguments = self.task.arguments(seed)
        if precision:
            self.task = replace(self.task, dtype=precision)
            arguments = tuple(a.astype(precision) if a.dtype.kind == "f" else a for a in arguments)
        self.module.warm_up()
        ways = self.module.contenders(self.task, **options)
        self.contender, first, result = quickest(ways, arguments, budget)
        given = self.contender.convert(arguments)
        once = min(self.contender.seconds(given, 1, CLOCKS["wall"]) for _ in range(5))
        facts = {key: value() if callable(value) else value for key, value in self.contender.facts.items()}
        answer = {"way": self.contender.way, "first": first, "once": once, "facts": facts}
        return answer | {"result": self.contender.arrays(result)}

    def sample(self, seed: int, calls: int, clock: str) -> dict[str, Any]:
        """Time some calls."""
        if self.contender is None:
            raise NotOffered("nothing is prepared")
        arguments = self.contender.convert(self.task.arguments(seed))
        return {"seconds": self.contender.seconds(arguments, calls, CLOCKS[clock])}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message, which may be that there is none."""
        try:
            return getattr(self, message.pop("do"))(**message)
        except NotOffered as reason:
            return {"error": str(reason), "final": True}
        except Exception as failure:
            traceback.print_exc()
            return {"error": f"{type(failure).__name__}: {failure}"}


def main() -> None:
    """Answer messages until there are no more."""
    pipe = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no message
    if "PIN" in os.environ:
        os.sched_setaffinity(0, {int(os.environ["PIN"])})
    worker = Worker(importlib.import_module(f"peers.{sys.argv[1]}"))
    send(pipe, {"ready": True})
    try:
        while True:
            send(pipe, worker.answer(receive(0)))
    except (Closed, BrokenPipeError):
        pass


if __name__ == "__main__":
    main()
