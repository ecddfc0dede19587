"""The commands `pullback train xor | cnn | rnn`, which share most of their options."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import errors_as_sentences, say, study, train_and_report
from .problems import Problem, cnn, rnn, xor
from .settings import Settings, TrainingError
from .studies import RECORDED_MEDIANS, RECORDED_SEEDS, RECORDED_XOR_SUCCESSES, recorded_medians

OutOption = Annotated[Path, typer.Option(help="Directory for the checkpoint and the curves, PNG and CSV.")]
DataOption = Annotated[Path | None, typer.Option(help="Directory of MNIST's IDX files, plain or gzip.")]
CellOption = Annotated[str, typer.Option(help="elman, gru or lstm.")]
LengthsOption = Annotated[str, typer.Option(help="full: 28 rows; real: the inked rows, which needs record or torch.")]


@dataclass(frozen=True)
class Options:
    """The options that every network has."""

    engine: Annotated[str | None, typer.Option(help="Whose derivatives: ours (trace, record) or torch.autograd's.")] = (
        None
    )
    check: Annotated[bool, typer.Option("--check", help="Run torch.autograd beside it; exit 1 if they differ.")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False
    epochs: Annotated[int | None, typer.Option(help="How often to go through the examples.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Examples in one step.")] = None
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None
    optimizer: Annotated[str | None, typer.Option(help="descent (written by hand), sgd, adam or adamw.")] = None
    seed: Annotated[int | None, typer.Option(help="Drives the initial parameters and the shuffling.")] = None
    seeds: Annotated[int | None, typer.Option(help="Train with seeds 0 to N-1, on ours and torch, or --engine's.")] = (
        None
    )
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu"
    dtype: Annotated[str | None, typer.Option(help="float32 (default; but not for xor --seeds) or float64.")] = None
    out: OutOption = Path("runs")

    def settings(self, defaults: Settings) -> Settings:
        """The defaults with whatever was given.  Raises TrainingError if it makes no sense."""
        given = {name: getattr(self, name) for name in ("epochs", "batch_size", "optimizer", "seed", "dtype")}
        given["learning_rate"] = self.lr
        present: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(defaults, device=self.device, **present)


train = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train a small network on our derivatives, or on torch.autograd's.",
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of `train`: the parameter `options` stands for all of `Options`, the others are its own."""

    def run(**given: Any) -> None:
        shared = {field.name: given.pop(field.name) for field in fields(Options)}
        with errors_as_sentences():
            function(Options(**shared), **given)

    own = list(inspect.signature(function).parameters.values())[1:]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(Options)
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *shared)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = function.__doc__
    return train.command(function.__name__.removeprefix("train_"))(run)


@command
def train_xor(options: Options) -> None:
    """Teach two ReLU units the exclusive or.

    By gradient descent written by hand.  Defaults: 10,000 epochs of the four points as one batch, learning rate 0.1,
    and seed 5, with which neither unit dies.
    """
    defaults = xor().defaults
    if options.seeds is not None:
        defaults = replace(defaults, dtype="float64")
    if run_or_study(xor(), defaults, options):
        say(
            f"Of seeds 0–{RECORDED_SEEDS - 1} this network learns all four points on {RECORDED_XOR_SUCCESSES['trace']} "
            f"under our engine and on {RECORDED_XOR_SUCCESSES['torch']} under torch.autograd; on the others it "
            f"gets stuck (recorded in float64; `pullback train xor --seeds {RECORDED_SEEDS}` runs it again)."
        )


@command
def train_cnn(options: Options, data: DataOption = None) -> None:
    """Teach a small convolutional network to read digits.

    Handwritten ones, by Adam.  Defaults: 10 epochs in shuffled batches of 64, learning rate 0.001, seed 0.
    """
    problem = cnn(data)
    run_or_study(problem, problem.defaults, options)


@command
def train_rnn(
    options: Options, cell: CellOption = "lstm", lengths: LengthsOption = "full", data: DataOption = None
) -> None:
    """Teach a recurrent network to read digits row by row.

    Handwritten ones, by Adam, with 128 hidden units.  Defaults: 30 epochs in shuffled batches of 64, learning rate
    0.001, seed 0.  With --lengths real each digit is cropped to its inked rows and read by a Python loop of its own.
    """
    problem = rnn(cell, lengths, data)
    if run_or_study(problem, problem.defaults, options) and data is None and problem.name in RECORDED_MEDIANS:
        say(recorded_medians(problem))


def run_or_study(problem: Problem, defaults: Settings, options: Options) -> bool:
    """Train once, or with many seeds if --seeds is given; returns whether it was once."""
    settings = options.settings(defaults)
    engine = options.engine or (problem.traceable and "trace") or "record"
    if options.seeds is None:
        train_and_report(problem, settings, engine, options.check, options.out, options.resume)
        return True
    if options.check:
        raise TrainingError("--check goes with one run; --seeds compares the engines' accuracies instead")
    if options.resume:
        raise TrainingError("--resume goes with one run; --seeds keeps no checkpoints")
    study(problem, settings, options.engine, options.seeds)
    return False
