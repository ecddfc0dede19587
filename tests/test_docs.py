"""The examples of the READMEs, the guide and the docstrings run, and give what they say."""

import doctest
import importlib
import re
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from inspect import getdoc, isfunction
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import pullback
from pullback import registry
from pullback.rules import RULES
from support import reference

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# A block of text right after an example is what the example prints.
EXAMPLE = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)")
SOURCE = ROOT / "src"
MODULES = [
    ".".join(file.relative_to(SOURCE).with_suffix("").parts)
    for file in sorted(SOURCE.rglob("*.py"))
    if re.search(r"^ +>>> ", file.read_text(encoding="utf-8"), re.MULTILINE)
]
FUNCTIONS = [
    name
    for name in pullback.__all__
    if isfunction(getattr(pullback, name)) and getattr(pullback, name).__module__.startswith("pullback.")
]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(page: Path) -> list[tuple[int, str, str | None]]:
    """The Python examples of a page, each with the line it starts at, and what it prints if the page says so."""
    text = page.read_text(encoding="utf-8")
    return [(text[: match.start(1)].count("\n") + 1, match[1], match[2]) for match in EXAMPLE.finditer(text)]


def without_comments(code: str) -> str:
    return re.sub(r"\s*#.*$", "", code, flags=re.MULTILINE)


def without_places(printed: str) -> str:
    """Without files and line numbers: an example does not run in the file that the page says it is in."""
    return re.sub(r"# .*?:\d+: ", "# ", printed)


@pytest.fixture(autouse=True)
def rules_as_before() -> Iterator[None]:
    """A page teaches operators that other tests find without a rule."""
    before = dict(RULES)
    yield
    for op in RULES.keys() - before.keys():
        del RULES[op]
        registry.forget(op)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_a_page_run(page: Path) -> None:
    """In order, in one namespace: a reader types them in one after the other."""
    names: dict[str, Any] = {"__name__": "example"}
    for line, code, printed in examples(page):
        if code.lstrip().startswith(">>>"):
            check_session(code, names, page, line)
            continue
        with redirect_stdout(StringIO()) as output:
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
        if printed is not None:
            assert without_places(output.getvalue()) == without_places(printed)


def check_session(code: str, names: dict[str, Any], page: Path, line: int) -> None:
    """Run a session of `>>>` lines and compare what it prints."""
    session = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line - 1)
    report: list[str] = []
    with reference() if ".backward()" in code else nullcontext():  # autograd's own pass, over a result of ours
        doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(session, out=report.append, clear_globs=False)
    names.update(session.globs)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_say_what_they_raise_and_cost(name: str) -> None:
    """Or that it is what another one raises or costs; with an example, but where that would measure for a second."""
    text = getdoc(getattr(pullback, name)) or ""
    wanted = ["raises|errors", "cost", *([] if name == "calibrate" else [">>> "])]
    assert not [one for one in wanted if not re.search(one, text, re.IGNORECASE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not dead


def test_both_readmes_show_the_same_examples() -> None:
    english, chinese = (
        [(without_comments(code), printed) for _, code, printed in examples(ROOT / name)]
        for name in ("README.md", "README.zh.md")
    )
    assert english == chinese


def test_no_figure_is_left_open() -> None:
    open_figures = [page.name for page in PAGES if "FIGURE" in page.read_text(encoding="utf-8")]
    assert not open_figures, f"figures still to be measured: {open_figures}"
