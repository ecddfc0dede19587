"""A program: a graph that runs, whatever back end made it."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import GraphError
from ..graph import Graph


@dataclass(frozen=True, eq=False)
class Program:
    """A graph that runs.

    run: takes the graph's inputs in order, by position; returns a tuple of its outputs.
    code: the program as text, imports included.
    graph: what it computes.
    backend, reason: which back end made it, and why that one.
    """

    run: Callable[..., tuple[Any, ...]]
    code: str
    graph: Graph
    name: str = "program"
    backend: str = "python"
    reason: str = ""

    def check(self) -> None:
        """Raise GraphError unless the text reads only what it has computed and not yet forgotten."""
        self.graph.check()
        module = ast.parse(self.code)
        bound = {"IndexError", *(name for s in module.body for name in _bound_names(s))}
        for function in (s for s in module.body if isinstance(s, ast.FunctionDef)):
            known = bound | {a.arg for a in function.args.args}
            for statement in function.body:
                _check_statement(statement, known)

    def __str__(self) -> str:
        return self.code


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name for alias in statement.names)
    elif isinstance(statement, ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        yield from (t.id for t in statement.targets if isinstance(t, ast.Name))


def _check_statement(statement: ast.stmt, known: set[str]) -> None:
    """Follow one statement: what it reads has to be known, what it deletes no longer is."""
    names = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
    local = {a.arg for n in ast.walk(statement) if isinstance(n, ast.Lambda) for a in n.args.args}
    for name in names:
        if not isinstance(name.ctx, ast.Store) and name.id not in known | local:
            raise GraphError(f"line {statement.lineno} of the program reads {name.id!r}, which it does not have")
    for name in names:
        if isinstance(name.ctx, ast.Store):
            known.add(name.id)
        elif isinstance(name.ctx, ast.Del):
            known.discard(name.id)
