"""Size alarms: what has outgrown them is two things under one name, and wants to be taken apart."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pullback"
FILES = sorted(SOURCE.rglob("*.py"))

LONGEST_FILE = 400
LONGEST_FUNCTION = 60
SHORT_FUNCTION = 20
SHARE_OF_SHORT_FUNCTIONS = 0.9


@dataclass(frozen=True)
class Function:
    """A function and its number of lines, not counting its docstring: long explanations are welcome."""

    name: str
    file: Path
    line: int
    lines: int

    def __str__(self) -> str:
        return f"{self.file.relative_to(SOURCE)}:{self.line} {self.name} has {self.lines} lines"


def functions() -> list[Function]:
    return [function for file in FILES for function in functions_in(file)]


def functions_in(file: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            total = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(node.name, file, node.lineno, total - docstring_lines(node))


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def is_table(file: Path) -> bool:
    """Whether a file is a table of rules, which grows a row at a time and needs no structure for it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    targets = [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    targets += [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return file.parent.name == "rules" and any(isinstance(t, ast.Name) and t.id == "RULES" for t in targets)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_are_short(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE or is_table(file), f"{file.name} has {lines} lines of at most {LONGEST_FILE}"


def test_no_function_is_long() -> None:
    long = [str(function) for function in functions() if function.lines > LONGEST_FUNCTION]
    assert not long, f"more than {LONGEST_FUNCTION} lines: {'; '.join(long)}"


def test_most_functions_are_short() -> None:
    every = functions()
    long = sorted((f for f in every if f.lines > SHORT_FUNCTION), key=lambda f: -f.lines)
    share = 1 - len(long) / len(every)
    assert share >= SHARE_OF_SHORT_FUNCTIONS, (
        f"{share:.1%} of functions have at most {SHORT_FUNCTION} lines, and {SHARE_OF_SHORT_FUNCTIONS:.0%} must: "
        + "; ".join(map(str, long[:20]))
    )
