"""The same run for many seeds, and what was recorded of it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from .problems import Problem
from .runs import prepare
from .settings import Settings

RECORDED_SEEDS = 50
# On how many of seeds 0–49 the XOR network gets all four points right: 10,000 epochs, learning rate 0.1, float64, CPU.
# Recorded with PyTorch 2.13.0 by `pullback train xor --seeds 50`; the seeds were 5, 11, 14, 15, 26, 29, 37, 38, 45, 46.
RECORDED_XOR_SUCCESSES = {"trace": 10, "torch": 10}
# The medians of two engines may differ by this much, half a point.  Recorded by `pullback train cnn --seeds 8` (PyTorch
# 2.13.0, float32, CPU): held-out accuracies of 94.7–97.2 %, median 96.7 %, on either engine and seed for seed the same.
MEDIANS_AGREE_TO = 0.005
# Recorded by `pullback train rnn --cell … --seeds 8` (PyTorch 2.13.0, float32, CPU): the medians over seeds 0–7 of
# accuracies of 91.1–95.6 % (elman), 95.3–97.8 % (gru) and 91.4–98.9 % (lstm).
RECORDED_MEDIANS: dict[str, dict[str, float]] = {
    "rnn-elman": {"trace": 0.943, "torch": 0.943},
    "rnn-gru": {"trace": 0.968, "torch": 0.968},
    "rnn-lstm": {"trace": 0.975, "torch": 0.975},
}


def engines_of(problem: Problem) -> tuple[str, str]:
    """The engines that a study compares: ours, by trace where that is possible, and torch.autograd."""
    return ("trace" if problem.traceable else "record", "torch")


def accuracies(problem: Problem, settings: Settings, engine: str, seeds: range) -> Iterator[tuple[int, float]]:
    """Train once for each seed, and yield (seed, held-out accuracy) after each."""
    for seed in seeds:
        run = prepare(problem, replace(settings, seed=seed), engine)
        for _ in run.epochs():
            pass
        yield seed, run.accuracy()


def recorded_medians(problem: Problem) -> str:
    """The recorded accuracies of a problem, as a sentence that says how to measure them again."""
    ours, theirs = engines_of(problem)
    found = RECORDED_MEDIANS[problem.name]
    _, cell, *real = problem.name.split("-")
    again = f"pullback train rnn --cell {cell}{' --lengths real' if real else ''} --seeds 8"
    return (
        f"Over seeds 0–7 the median accuracy is {found[ours]:.1%} under our engine and {found[theirs]:.1%} under "
        f"torch.autograd (recorded; `{again}` runs it again)."
    )


def successes(found: Sequence[float]) -> int:
    """How many of the accuracies are perfect."""
    return sum(accuracy == 1.0 for accuracy in found)
