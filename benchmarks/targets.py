"""What the table is meant to show, and which of it a run has shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from comparison import OURS, Cell, Row
from harness import Verdict

SMALL = ("robot arm", "heart dipole", "propane combustion", "Black-Scholes gradient", "Black-Scholes Hessian")
SEPARATE = "roe flux 1-D, separate numbers"
ANY = ("torch.func", "torch.compile", "JAX", "CasADi", "CasADi kernel")
TORCH = ("torch.func", "torch.compile")


@dataclass(frozen=True)
class Faster:
    """Ours is at least `times` as fast as the quickest of some peers."""

    tasks: tuple[str, ...]
    peers: tuple[str, ...]
    times: float

    def verdict(self, row: Row) -> Verdict | None:
        """Whether it is, in this row; None if no peer was measured."""
        ratios = {name: row.cells[name].ratio for name in self.peers if name in row.cells}
        known = {name: one.median for name, one in ratios.items() if one is not None}
        if not known:
            return None
        quickest = min(known, key=known.__getitem__)
        return Verdict(f"{row.task}: {quickest} / ours", known[quickest], self.times, "", at_least=True)


@dataclass(frozen=True)
class Within:
    """A call of ours, or the `first` one, takes at most so many seconds."""

    tasks: tuple[str, ...]
    seconds: float
    first: bool = False

    def verdict(self, row: Row) -> Verdict | None:
        """Whether it does, in this row."""
        cell = row.cells[OURS]
        value = cell.first if self.first else _per_call(cell)
        name = f"{row.task}: {'first call' if self.first else 'a call'}"
        return None if value is None else Verdict(name, 1e6 * value, 1e6 * self.seconds, "µs")


def _per_call(cell: Cell) -> float | None:
    return cell.seconds.median if cell.seconds else cell.once


TARGETS: tuple[Faster | Within, ...] = (
    Within(SMALL, 5e-6),
    Within((SEPARATE,), 15e-6),
    Within((*SMALL, SEPARATE), 2.0, first=True),
    Faster((*SMALL, SEPARATE), ("JAX",), 1.3),
    Faster((*SMALL, SEPARATE), ("torch.compile",), 5),
    Faster(("* ×512",), ("torch.compile", "JAX", "CasADi", "CasADi kernel"), 2),
    Faster(("* ×100000",), ("torch.compile",), 4),
    Faster(("* ×100000",), ("torch.func",), 30),
    Faster(("bottleneck", "bottleneck, float32"), ANY, 4),
    Faster(("bottleneck ×32*",), ANY, 2.5),
    Faster(("Elman RNN*",), ANY, 2),
    Faster(("transformer block*",), ANY, 2.5),
    Faster(("MLP ×128*",), ("limit",), 1 / 1.25),
    Faster(("(x[*][*]2).sum(-1)",), ("limit",), 1 / 1.2),
    Faster(("* loss*",), TORCH, 1 / 1.03),
    Faster(("transformer loss*",), ("JAX",), 1 / 1.3),
    Faster(("RNN loss*",), ("JAX",), 1),
)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every target, in every row that it is about and that was measured."""
    return list(_verdicts(rows))


def _verdicts(rows: Sequence[Row]) -> Iterator[Verdict]:
    for row in rows:
        for target in TARGETS:
            if any(fnmatchcase(row.task, pattern) for pattern in target.tasks) and not row.cells[OURS].problem:
                verdict = target.verdict(row)
                if verdict is not None:
                    yield verdict
