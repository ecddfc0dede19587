"""The house has storeys: a module imports only from those below it, and says so at its head.

`LAYERS` is the whole rule.  Modules of one package (`emit`, `rules` …) may import each other, but never in a circle.
A new module fails here until it is given its place, in `LAYERS` and in docs/architecture.md.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import FunctionType

import pytest

import pullback
from pullback.torch_private import ATTRIBUTES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pullback"

# From the roof to the ground.  Those on one line do not know each other.
LAYERS: dict[int, tuple[str, ...]] = {
    24: ("__init__", "cli"),
    23: ("training", "evidence", "registry", "batches", "torch_func"),
    22: ("api", "contexts"),
    21: ("explain", "recorder", "teaching", "verification", "nonfinite", "elimination"),
    20: ("transform", "whole", "deferred"),
    19: ("derivatives", "compiled", "observation", "replay"),
    18: (
        *("chunks", "bridge", "bisection", "own_products", "region_products", "files"),
        *("mutations", "interception", "joining"),
    ),
    17: ("recorded_functions", "recorded_control_flow", "pulls", "region_batches"),
    16: ("compilation", "differences", "purity", "retracing", "encoding", "scribe", "paths"),
    15: ("emit", "passes", "calibration", "evaluation", "notation", "recipes"),
    14: ("rules", "planner", "native"),
    13: ("stages", "cost"),
    12: ("signature",),
    11: ("environment", "impurity", "changes"),
    10: ("walk",),
    9: ("capture", "guards", "namespaces"),
    8: ("detachment", "effects", "user_functions", "control_flow", "strides", "adoption", "frontier", "recurrences"),
    7: ("recording", "structure", "titles", "history", "leaves", "decompositions"),
    6: (
        *("provenance", "shared_settings", "function_calls", "reads", "composites", "tapes"),
        *("gauges", "originals", "copied_views", "pairs"),
    ),
    5: ("torch_private", "dtypes", "library", "geometry", "matrix_functions", "alignment", "nested"),
    4: ("expressions",),
    3: ("terms",),
    2: ("parts",),
    1: ("index", "own_derivatives", "regions", "promotion"),
    0: ("graph",),
    -1: ("errors", "collection", "keys", "private_files"),
}
STOREY = {module: storey for storey, modules in LAYERS.items() for module in modules}

# The core between capture and emission knows no tensors.
WITHOUT_TORCH = (
    *("errors", "graph", "own_derivatives", "regions", "keys", "index", "promotion", "parts"),
    *("terms", "expressions", "stages", "cost", "rules", "passes", "planner", "elimination"),
)

# Imports inside a function: an optional extra, in the one function that needs it.
LATE_IMPORTS = {
    ("training.data", "sklearn.datasets"),
    ("training.curves", "matplotlib.backends.backend_agg"),
    ("training.curves", "matplotlib.figure"),
    ("training.curves", "matplotlib.ticker"),
}

# Only what is the reference by definition may name a derivative of PyTorch's.
MAY_NAME_AUTOGRAD = {"training.reference", "verification", "evidence.reference"}
# What is only asked: whether a level of dual numbers is open.
MAY_BE_ASKED = {("torch_private", "torch.autograd.forward_ad")}
# Our results in PyTorch's graph: the one place that defines a node of it.
DEFINES_A_NODE = {"bridge"}
TORCH_DERIVATIVES = re.compile(
    r"torch\.autograd\.(grad|backward|functional|forward_ad)\b"
    r"|torch\.func\.(grad|vjp|jvp|jacrev|jacfwd|hessian|grad_and_value|linearize)\b"
    r"|torch\._functorch\.\w+[.:](grad|vjp|jvp|jacrev|jacfwd|hessian)\w*\b"
)


@dataclass(frozen=True)
class Import:
    """One module that another names; `late` inside a function."""

    target: str
    line: int
    late: bool


@dataclass(frozen=True)
class Module:
    """A file of the package: its name without `pullback.`, and what it imports."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def shelf(self) -> str:
        return self.name.split(".")[0]

    @property
    def imports(self) -> tuple[Import, ...]:
        return tuple(imports_of(self))

    def own_imports(self) -> Iterator[Import]:
        """What it imports from us, as names without `pullback.`."""
        for item in self.imports:
            if item.target == "pullback" or item.target.startswith("pullback."):
                yield Import(item.target.removeprefix("pullback").removeprefix(".") or "__init__", item.line, item.late)


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package, parsed."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


@cache
def module_names() -> frozenset[str]:
    return frozenset(module.name for module in modules())


def imports_of(module: Module) -> Iterator[Import]:
    late = {
        id(inner)
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(function)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in late)
        elif isinstance(node, ast.ImportFrom):
            for target in targets_of(module, node):
                yield Import(target, node.lineno, id(node) in late)


def targets_of(module: Module, node: ast.ImportFrom) -> list[str]:
    """The modules behind `from … import …`; a name that is itself a module of ours counts as that module."""
    base = node.module or ""
    if node.level:
        package = ["pullback", *module.name.split(".")]
        is_package = module.path.name == "__init__.py" and module.name != "__init__"
        package = package[: len(package) - node.level + is_package]
        base = ".".join([*package, *([node.module] if node.module else [])])
    inner = [f"{base}.{alias.name}" for alias in node.names]
    ours = [target for target in inner if target.removeprefix("pullback.") in module_names()]
    return ours or [base]


def dotted_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every dotted name and every string that is no docstring, with its line."""
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Constant) and id(node) not in documentation and is_place(node.value):
            yield node.value.replace(":", "."), node.lineno


def is_place(constant: object) -> bool:
    """Whether a constant is "module:name", as torch_private looks names up."""
    return isinstance(constant, str) and ":" in constant and " " not in constant


every_module = pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)


@every_module
def test_imports_point_downwards(module: Module) -> None:
    storey = STOREY[module.shelf]
    for item in module.own_imports():
        shelf = item.target.split(".")[0]
        assert shelf == module.shelf or STOREY[shelf] < storey, (
            f"{module.path}:{item.line} imports {item.target} (storey {STOREY[shelf]}) from storey {storey}: "
            "move what it needs down, or what needs it up"
        )


def test_no_import_closes_a_circle() -> None:
    graph = {m.name: {i.target for i in m.own_imports() if i.target != m.name} for m in modules()}
    assert list(TopologicalSorter(graph).static_order())


@every_module
def test_imports_stand_at_the_head(module: Module) -> None:
    late = {(module.name, item.target) for item in module.imports if item.late}
    assert late <= LATE_IMPORTS, f"{module.path} imports {late - LATE_IMPORTS} inside a function"


def test_late_imports_are_all_in_use() -> None:
    used = {(module.name, item.target) for module in modules() for item in module.imports if item.late}
    assert used >= LATE_IMPORTS, "an exception that nobody needs any more"


def test_only_compilation_imports_the_passes() -> None:
    users = {m.name for m in modules() for i in m.own_imports() if i.target.split(".")[0] == "passes" != m.shelf}
    assert users == {"compilation"}


@every_module
def test_the_core_knows_no_tensors(module: Module) -> None:
    if module.shelf in WITHOUT_TORCH:
        assert not [item for item in module.imports if item.target.split(".")[0] == "torch"]


def test_what_the_core_imports_knows_no_tensors_either() -> None:
    core = {module.name: module for module in modules() if module.shelf in WITHOUT_TORCH}
    for module in core.values():
        for item in module.own_imports():
            assert item.target.split(".")[0] in WITHOUT_TORCH, f"{module.name} imports {item.target}, which is outside"


@every_module
def test_derivatives_are_our_own(module: Module) -> None:
    if module.name in MAY_NAME_AUTOGRAD:
        return
    names = [(name, line) for name, line in dotted_names(module.tree) if (module.name, name) not in MAY_BE_ASKED]
    found = [(name, line) for name, line in names if TORCH_DERIVATIVES.match(name)]
    named = [f"{module.path}:{line}: {name}" for name, line in found]
    assert not named, "only " + ", ".join(sorted(MAY_NAME_AUTOGRAD)) + f" may name these: {named}"


def test_one_module_puts_results_into_autograds_graph() -> None:
    classes = [(m.name, node) for m in modules() for node in ast.walk(m.tree) if isinstance(node, ast.ClassDef)]
    found = {name for name, node in classes if "torch.autograd.Function" in map(ast.unparse, node.bases)}
    assert found == DEFINES_A_NODE


def test_private_torch_stays_in_one_module() -> None:
    private = re.compile(r"torch(\.\w+)*\._[a-zA-Z]")
    attributes = {name for _, names in ATTRIBUTES.values() for name in names}
    for module in modules():
        if module.name != "torch_private":
            used = [*dotted_names(module.tree), *((item.target, item.line) for item in module.imports)]
            found = [(n, line) for n, line in used if private.match(n) or n.rpartition(".")[2] in attributes]
            named = [f"{module.path}:{line}: {name}" for name, line in found]
            assert not named, f"private interfaces of PyTorch belong in torch_private.py: {named}"


def test_every_storey_is_inhabited() -> None:
    assert {module.shelf for module in modules()} == set(STOREY)


def test_no_public_function_hides_a_module() -> None:
    functions = {name for name in pullback.__all__ if isinstance(inspect.unwrap(getattr(pullback, name)), FunctionType)}
    assert not functions & {module.shelf for module in modules()}


@every_module
def test_architecture_page_names_every_module(module: Module) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package, _, name = module.name.rpartition(".")
    if package or not (SOURCE / name).is_dir():
        assert re.search(rf"\b{name}(\.py)?\b", page), f"docs/architecture.md does not say what {module.name} is for"
