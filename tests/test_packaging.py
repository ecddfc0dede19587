"""One pure wheel, one place for the version, and a log that says which back end runs."""

import ast
import logging
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from hatchling.builders.wheel import WheelBuilder

import pullback

ROOT = Path(__file__).parents[1]
# PyTorch itself needs ctypes.
NOT_EVERYWHERE = {"fcntl", "pwd", "grp", "resource", "termios", "cffi", "distutils"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as pip builds it."""
    directory = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(directory))))


def test_the_wheel_is_pure_typed_and_whole(wheel: Path) -> None:
    assert wheel.name == f"pullback-{pullback.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "pullback/py.typed" in names
    sources = {
        f"pullback/{p.relative_to(ROOT / 'src/pullback').as_posix()}" for p in (ROOT / "src/pullback").rglob("*.py")
    }
    assert sources <= names
    assert {Path(name).suffix for name in names if name.startswith("pullback/")} == {".py", ".typed"}


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"] and "version" not in project["project"]
    assert f"## {pullback.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_nothing_imports_what_only_some_systems_have() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = {name.split(".")[0] for name in names} & NOT_EVERYWHERE
            assert not found, f"{path} imports {found}"


def test_the_log_says_which_back_end_runs(caplog: pytest.LogCaptureFixture) -> None:
    transform = pullback.grad(lambda x: (x.sin() * 3.5).sum(), backend="python")
    with caplog.at_level(logging.INFO, logger="pullback"):
        transform(torch.ones(2))
        transform(torch.ones(2))
        transform(torch.ones(3))
    lines = [record.getMessage() for record in caplog.records]
    ran = [line.split(" (")[0] for line in lines if "runs on" in line]
    assert ran == ["grad_lambda runs on the backend 'python'"] * 2
    assert sum("traced again: x was float32[2]" in line for line in lines) == 1


def test_back_ends_that_do_not_exist() -> None:
    for make in (pullback.grad, pullback.jacobian, pullback.compile):
        with pytest.raises(pullback.ArgumentError, match="backend='fortran': 'auto' and"):
            make(torch.sin, backend="fortran")
