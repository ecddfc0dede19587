"""The command line.

`pullback train xor | cnn | rnn`; `pullback demo`, which shows the whole way on XOR; `pullback ops`, which checks every
operator.
"""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

try:
    import rich  # noqa: F401
    import typer
except ModuleNotFoundError as missing:
    raise SystemExit(f"the command line needs {missing.name}: pip install 'pullback[cli]'") from None

from .evidence.report import report_operators
from .explain import trace
from .training.commands import OutOption, train
from .training.console import announce, errors_as_sentences, follow, progress_bar, report, say
from .training.curves import prepare_directory
from .training.engines import TraceEngine
from .training.problems import Problem, xor
from .training.reference import ABSOLUTE_LIMIT_FLOAT64
from .training.runs import Run, prepare
from .training.settings import Settings, TrainingError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="A derivative compiler for PyTorch."
)
app.add_typer(train, name="train")


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def demo(epochs: Annotated[int, typer.Option(help="Epochs of XOR.")] = 10_000, out: OutOption = Path("runs")) -> None:
    """Show the whole way on XOR, compared with torch.autograd.

    Trains on our derivatives and on torch.autograd's, and prints the graph, the plan and the program.  Exits with 1 if
    the parameters differ.
    """
    with errors_as_sentences():
        problem = xor()
        settings = replace(problem.defaults, epochs=epochs, dtype="float64")
        prepare_directory(out)
        ours = prepare(problem, settings)
        announce(ours)
        report(ours, follow(ours, out), out)
        say()
        difference = compare_with_torch(problem, settings, ours)
        show_derivative(ours)
        say(f"The curves lie in {out / 'xor.png'} and {out / 'xor.csv'}.")
    if not difference <= ABSOLUTE_LIMIT_FLOAT64:
        raise typer.Exit(1)


@app.command()
def ops(
    op: Annotated[
        list[str] | None, typer.Option(help="Only this operator; a star at the end; may be repeated.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Only float64, or only complex128.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many samples of each operator.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    write: Annotated[Path | None, typer.Option(help="File for the table, as a page of the documentation.")] = None,
) -> None:
    """Check every operator of PyTorch's database against torch.autograd.

    All samples, double precision: VJP, JVP, second order.  Needs the extra "ops".  Exits with 1 if anything is wrong.
    """
    with errors_as_sentences(), progress_bar() as progress:
        if report_operators(op or [], dtype, limit, jobs, write, say, progress.track):
            raise typer.Exit(1)


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
