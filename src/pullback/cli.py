"""The command line: `pullback train xor | cnn`, and `pullback demo`, which shows the whole way on XOR."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
except ModuleNotFoundError as missing:
    raise SystemExit(f"the command line needs {missing.name}: pip install 'pullback[cli]'") from None

from .errors import PullbackError
from .explain import trace
from .training.curves import prepare_directory, write_curves
from .training.engines import TraceEngine
from .training.problems import Problem, cnn, xor
from .training.reference import ABSOLUTE_LIMIT_FLOAT64, CheckedEngine
from .training.runs import Epoch, Run, prepare
from .training.settings import Settings, TrainingError
from .training.studies import MEDIANS_AGREE_TO, RECORDED_SEEDS, RECORDED_XOR_SUCCESSES, accuracies, successes

EngineName = StrEnum("EngineName", ["trace", "torch"])
DtypeName = StrEnum("DtypeName", ["float32", "float64"])

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="A derivative compiler for PyTorch."
)
train = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train a small network on our derivatives, or on torch.autograd's.",
)
app.add_typer(train, name="train")
console = Console()

EngineOption = Annotated[EngineName | None, typer.Option(help="Whose derivatives: ours (trace) or torch.autograd's.")]
CheckOption = Annotated[bool, typer.Option("--check", help="Run torch.autograd beside it; exit 1 if they differ.")]
EpochsOption = Annotated[int | None, typer.Option(help="How often to go through the examples.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Examples in one step.")]
RateOption = Annotated[float | None, typer.Option(help="Learning rate.")]
SeedOption = Annotated[int | None, typer.Option(help="Drives the initial parameters and the shuffling.")]
SeedsOption = Annotated[int | None, typer.Option(help="Train with seeds 0 to N-1, on both engines or --engine's.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
DtypeOption = Annotated[DtypeName | None, typer.Option(help="Default: float32, but float64 for xor --seeds.")]
OutOption = Annotated[Path, typer.Option(help="Directory for the curves, PNG and CSV.")]
DataOption = Annotated[Path | None, typer.Option(help="Directory of MNIST's IDX files, plain or gzip.")]


def main() -> None:
    """Run the command line."""
    app()


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Turn an error of ours into one sentence on stderr and exit code 2."""
    try:
        yield
    except PullbackError as error:
        Console(stderr=True).print(f"pullback: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def say(text: object = "") -> None:
    """Print as it stands: graphs and programs are full of brackets, which are no markup."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- commands


@train.command("xor")
def train_xor(
    engine: EngineOption = None,
    check: CheckOption = False,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    lr: RateOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    out: OutOption = Path("runs"),
) -> None:
    """Teach two ReLU units the exclusive or.

    By gradient descent written by hand.  Defaults: 10,000 epochs of the four points as one batch, learning rate 0.1,
    and seed 5, with which neither unit dies.
    """
    with errors_as_sentences():
        problem = xor()
        settings = changed(problem.defaults, epochs, batch_size, lr, seed, device, dtype)
        if seeds is not None:
            study(problem, settings if dtype else replace(settings, dtype="float64"), engine, seeds, check)
            return
        train_and_report(problem, settings, engine or EngineName.trace, check, out)
        say(
            f"Of seeds 0–{RECORDED_SEEDS - 1} this network learns all four points on {RECORDED_XOR_SUCCESSES['trace']} "
            f"under our engine and on {RECORDED_XOR_SUCCESSES['torch']} under torch.autograd; on the others it "
            f"gets stuck (recorded in float64; `pullback train xor --seeds {RECORDED_SEEDS}` runs it again)."
        )


@train.command("cnn")
def train_cnn(
    engine: EngineOption = None,
    check: CheckOption = False,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    lr: RateOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    out: OutOption = Path("runs"),
    data: DataOption = None,
) -> None:
    """Teach a small convolutional network to read digits.

    Handwritten ones, by Adam.  Defaults: 10 epochs in shuffled batches of 64, learning rate 0.001, seed 0.
    """
    with errors_as_sentences():
        problem = cnn(data)
        settings = changed(problem.defaults, epochs, batch_size, lr, seed, device, dtype)
        if seeds is not None:
            study(problem, settings, engine, seeds, check)
            return
        train_and_report(problem, settings, engine or EngineName.trace, check, out)


@app.command()
def demo(epochs: Annotated[int, typer.Option(help="Epochs of XOR.")] = 10_000, out: OutOption = Path("runs")) -> None:
    """Show the whole way on XOR, compared with torch.autograd.

    Trains on our derivatives and on torch.autograd's, and prints the graph, the plan and the program.  Exits with 1 if
    the parameters differ.
    """
    with errors_as_sentences():
        problem = xor()
        settings = replace(problem.defaults, epochs=epochs, dtype="float64")
        ours = train_and_report(problem, settings, EngineName.trace, False, out)
        say()
        difference = compare_with_torch(problem, settings, ours)
        show_derivative(ours)
        say(f"The curves lie in {out / 'xor.png'} and {out / 'xor.csv'}.")
    if not difference <= ABSOLUTE_LIMIT_FLOAT64:
        raise typer.Exit(1)


# ---------------------------------------------------------------- what they share


def changed(
    defaults: Settings,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int | None,
    device: str,
    dtype: DtypeName | None,
) -> Settings:
    """The defaults with whatever was given on the command line.  Raises TrainingError if it makes no sense."""
    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "seed": seed, "dtype": dtype}
    present: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(defaults, device=device, **present)


def train_and_report(problem: Problem, settings: Settings, engine: EngineName, check: bool, out: Path) -> Run:
    """Train, say how it went, and write the curves; exits with 1 if --check found a difference."""
    if check and engine == EngineName.torch:
        raise TrainingError("--check compares our engine with torch.autograd: leave out --engine torch")
    prepare_directory(out)
    run = prepare(problem, settings, engine, check)
    say(
        f"{problem.name}: {problem.data.name}, {len(problem.data.inputs):,} examples; engine {engine}, "
        f"seed {settings.seed}, {settings.dtype} on {settings.device}"
    )
    history, seconds = follow(run)
    judged = len(run.data.held_out_targets)
    accuracy = run.accuracy()
    say(
        f"{round(accuracy * judged)} of {judged} right (accuracy {accuracy:.1%}) after {counted(settings.epochs)}, "
        f"{sum(seconds):.1f} s{of_which_first(engine, seconds)}"
    )
    table, picture = write_curves(out, problem.name, history)
    say(f"Curves: {picture} and {table}")
    if isinstance(run.engine, CheckedEngine):
        say(run.engine.report())
        if not run.engine.passed:
            raise typer.Exit(1)
    return run


def counted(epochs: int) -> str:
    """As in `1 epoch` and `10,000 epochs`."""
    return "1 epoch" if epochs == 1 else f"{epochs:,} epochs"


def of_which_first(engine: EngineName, seconds: Sequence[float]) -> str:
    """What the first epoch took, for our engine: it contains all tracing and compiling, the others none."""
    if engine == EngineName.torch or len(seconds) == 1:
        return ""
    return f", {seconds[0]:.1f} s of them in the first, which also traces and compiles"


def follow(run: Run) -> tuple[list[Epoch], list[float]]:
    """Train behind a progress bar, and say how it goes; returns the epochs and the seconds that each took.

    Prints the loss every 1,000 epochs, or ten times if there are fewer than 10,000.
    """
    every = min(1000, max(1, run.settings.epochs // 10))
    history, ends = [], [time.perf_counter()]
    with progress_bar() as progress:
        task = progress.add_task("training", total=run.settings.epochs)
        for epoch in run.epochs():
            history.append(epoch)
            ends.append(time.perf_counter())
            if epoch.number % every == 0:
                judged = "" if epoch.accuracy is None else f"   held-out accuracy {epoch.accuracy:.1%}"
                say(f"epoch {epoch.number:>6,}   loss {epoch.loss:.6f}{judged}")
            progress.update(task, completed=epoch.number)
    return history, [end - start for start, end in pairwise(ends)]


def progress_bar() -> Progress:
    """A bar that goes away when it is done, so that what stays is the report."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def study(problem: Problem, settings: Settings, engine: EngineName | None, seeds: int, check: bool) -> None:
    """Train with many seeds on each engine asked for, and compare; exits with 1 if the engines disagree."""
    if seeds < 1:
        raise TrainingError(f"--seeds takes the number of seeds, at least 1, not {seeds}")
    if check:
        raise TrainingError("--check goes with one run; --seeds compares the engines' accuracies instead")
    counts, medians = [], []
    for name in [engine] if engine else list(EngineName):
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


# ---------------------------------------------------------------- the demonstration


def compare_with_torch(problem: Problem, settings: Settings, ours: Run) -> float:
    """Train the same network on torch.autograd; print and return the largest difference of any parameter."""
    theirs = prepare(problem, settings, "torch")
    start = time.perf_counter()
    for _ in theirs.epochs():
        pass
    seconds = time.perf_counter() - start
    expected = dict(theirs.network.named_parameters())
    differences = [float((p - expected[n]).detach().abs().max()) for n, p in ours.network.named_parameters()]
    largest = max(differences)
    say(
        f"torch.autograd takes {seconds:.1f} s for the same run; "
        f"the parameters after it differ by at most {largest:.2e}."
    )
    return largest


def show_derivative(run: Run) -> None:
    """Print the graph of a run's loss, and the plan of its gradient with the generated program."""
    engine = run.engine
    if not isinstance(engine, TraceEngine):
        raise TrainingError("only our engine has a graph to show")
    example = (engine.parameters, run.data.inputs, run.data.targets)
    say("\nThe graph of the loss, an operator a line, with the line of the network it comes from:\n")
    here = f"{Path(__file__).parent}{os.sep}"  # the network's own lines: say them without the place of installation
    say(str(trace(engine.loss, *example)).replace(here, ""))
    say("\nThe plan of its gradient, and the program that was compiled from it:\n")
    say(engine.derivative.plan(*example))
