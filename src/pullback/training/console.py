"""What the command line says of training: progress, reports, comparisons, errors as sentences."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..errors import PullbackError
from .checkpoints import Checkpoint
from .curves import prepare_directory, write_curves
from .interruption import first_interrupt_waits
from .problems import Problem
from .reference import CheckedEngine
from .runs import Run, prepare
from .settings import Settings, TrainingError
from .studies import MEDIANS_AGREE_TO, accuracies, engines_of, successes

INTERRUPTED = 130  # the exit code that shells give to what Ctrl-C ended

console = Console()


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Turn an error of ours into one sentence on stderr and exit code 2."""
    try:
        yield
    except PullbackError as error:
        command = f"\n  at {sys.argv[0]}:"  # the line that called us is no news on a command line
        Console(stderr=True).print(
            f"pullback: {str(error).partition(command)[0]}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from error


def say(text: object = "") -> None:
    """Print as it stands: graphs and programs are full of brackets, which are no markup."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- one run


def train_and_report(
    problem: Problem, settings: Settings, engine: str, check: bool, out: Path, resume: bool = False
) -> None:
    """Train, keep checkpoints, say how it went, and write the curves; exits with 1 if --check found a difference."""
    if check and engine == "torch":
        raise TrainingError("--check compares our engine with torch.autograd: leave out --engine torch")
    prepare_directory(out)
    run = prepare(problem, settings, engine, check)
    checkpoint = Checkpoint(run, out)
    resumed = resume and checkpoint.restore()
    announce(run)
    if resumed:
        say(f"Resumed from {checkpoint.path}, after {counted(len(run.history))}.")
    elif resume:
        say(f"There is no {checkpoint.path} to resume from yet: this starts at the beginning.")
    report(run, follow(run, out, checkpoint), out)


def announce(run: Run) -> None:
    """Say what is about to be trained."""
    say(
        f"{run.problem.name}: {run.problem.data.name}, {len(run.data.inputs):,} examples; engine {run.engine_name}, "
        f"seed {run.settings.seed}, {run.settings.dtype} on {run.settings.device}"
    )


def report(run: Run, seconds: list[float], out: Path) -> None:
    """Say what a run came to, and write its curves; exits with 1 if --check found a difference."""
    judged, accuracy = len(run.data.held_out_targets), run.accuracy()
    say(
        f"{round(accuracy * judged)} of {judged} right (accuracy {accuracy:.1%}) after {counted(len(run.history))}, "
        f"{sum(seconds):.1f} s{of_which_first(run, seconds)}"
    )
    table, picture = write_curves(out, run.problem.name, run.history)
    say(f"Curves: {picture} and {table}")
    if isinstance(run.engine, CheckedEngine):
        say(run.engine.report())
        if not run.engine.passed:
            raise typer.Exit(1)


def counted(epochs: int) -> str:
    """As in `1 epoch` and `10,000 epochs`."""
    return "1 epoch" if epochs == 1 else f"{epochs:,} epochs"


def of_which_first(run: Run, seconds: list[float]) -> str:
    """What the first epoch took, for our engine: it contains all tracing and compiling, the others none."""
    if run.engine_name == "torch" or len(seconds) < 2:
        return ""
    return f", {seconds[0]:.1f} s of them in the first, which also traces and compiles"


def follow(run: Run, out: Path, checkpoint: Checkpoint | None = None) -> list[float]:
    """Train behind a progress bar, keep checkpoints, and return the seconds that each epoch took.

    Prints the loss every 1,000 epochs, or ten times if there are fewer than 10,000.  The first Ctrl-C ends the run
    after the epoch that has begun, with a checkpoint and the curves so far; the second ends it at once.  Exits with 130
    then.
    """
    ends = [time.perf_counter()]
    with progress_bar() as progress, first_interrupt_waits(_announce_end) as interrupted:
        task = progress.add_task("training", total=run.settings.epochs, completed=len(run.history))
        try:
            for epoch in run.epochs(_watching(run, progress, task)):
                ends.append(time.perf_counter())
                _report_epoch(run)
                progress.update(task, completed=epoch.number)
                stops = interrupted() or epoch.number == run.settings.epochs
                if checkpoint and (stops or epoch.number % run.problem.checkpoint_every == 0):
                    checkpoint.write()
                if stops:
                    break
        except KeyboardInterrupt:
            raise _stopped("at once", checkpoint) from None
    if len(run.history) < run.settings.epochs:
        write_curves(out, run.problem.name, run.history)
        raise _stopped(f"after {counted(len(run.history))}", checkpoint)
    return [end - start for start, end in pairwise(ends)]


def _announce_end() -> None:
    say("Stopping after this epoch; Ctrl-C once more stops at once.")


def _stopped(when: str, checkpoint: Checkpoint | None) -> typer.Exit:
    """Say that Ctrl-C ended a run, and from where it can go on."""
    kept = checkpoint.path if checkpoint and checkpoint.path.exists() else None
    say(f"Stopped {when}; " + (f"--resume goes on from {kept}." if kept else "nothing was kept."))
    return typer.Exit(INTERRUPTED)


def _watching(run: Run, progress: Progress, task: TaskID) -> Callable[[float], None] | None:
    """What moves the bar within an epoch; nothing, where an epoch is one batch."""
    return None if len(run.batches) == 1 else lambda done: progress.update(task, completed=done)


def _report_epoch(run: Run) -> None:
    epoch, every = run.history[-1], min(1000, max(1, run.settings.epochs // 10))
    if epoch.number % every == 0:
        judged = "" if epoch.accuracy is None else f"   held-out accuracy {epoch.accuracy:.1%}"
        say(f"epoch {epoch.number:>6,}   loss {epoch.loss:.6f}{judged}")


def progress_bar() -> Progress:
    """A bar that goes away when it is done, so that what stays is the report."""
    counter = TextColumn("{task.completed:,.0f}/{task.total:,.0f}")
    columns = (TextColumn("{task.description}"), BarColumn(), counter, TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


# ---------------------------------------------------------------- many runs


def study(problem: Problem, settings: Settings, engine: str | None, seeds: int) -> None:
    """Train with many seeds on each engine asked for, and compare; exits with 1 if the engines disagree."""
    if seeds < 1:
        raise TrainingError(f"--seeds takes the number of seeds, at least 1, not {seeds}")
    counts, medians = [], []
    for name in [engine] if engine else engines_of(problem):
        found = []
        with progress_bar() as progress:
            for seed, accuracy in progress.track(
                accuracies(problem, settings, name, range(seeds)), total=seeds, description=f"engine {name}"
            ):
                found.append(accuracy)
                say(f"engine {name}   seed {seed:>3}   accuracy {accuracy:.1%}")
        counts.append(successes(found))
        medians.append(median(found))
        perfect = f"everything right with {counts[-1]} of {seeds} seeds, " if problem.name == "xor" else ""
        spread = f"from {min(found):.1%} to {max(found):.1%}"
        say(f"engine {name}: {perfect}median accuracy {medians[-1]:.1%}, {spread} ({settings.dtype})")
    if (problem.name == "xor" and len(set(counts)) > 1) or max(medians) - min(medians) > MEDIANS_AGREE_TO:
        say("The engines disagree.")
        raise typer.Exit(1)
