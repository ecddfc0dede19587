"""Curves of a training run as CSV and PNG."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from .files import write_atomically
from .runs import Epoch
from .settings import TrainingError, require

FEW = 30  # epochs, up to which each gets a mark: a curve of one point shows nothing else


def prepare_directory(directory: Path) -> None:
    """Make the directory for the curves before any time is spent on training.

    Raises TrainingError if it cannot be made, or matplotlib is not installed.
    """
    require("matplotlib", "matplotlib")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"the curves cannot be written to {directory}: {error.strerror or error}") from error


def write_curves(directory: Path, name: str, epochs: Sequence[Epoch]) -> tuple[Path, Path]:
    """Write `name.csv` and `name.png` into a directory, and return both paths.

    Raises TrainingError if a file cannot be written.
    """
    table, picture = directory / f"{name}.csv", directory / f"{name}.png"
    try:
        write_atomically(table, _csv(epochs).encode())
        write_atomically(picture, _png(name, epochs))
    except OSError as error:
        raise TrainingError(f"the curves cannot be written to {directory}: {error.strerror or error}") from error
    return table, picture


def _csv(epochs: Sequence[Epoch]) -> str:
    judged = any(e.accuracy is not None for e in epochs)
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["epoch", "loss", *(["held_out_accuracy"] if judged else [])])
    writer.writerows([e.number, e.loss, *([e.accuracy] if judged else [])] for e in epochs)
    return file.getvalue()


def _png(name: str, epochs: Sequence[Epoch]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no display, and no global state
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(epochs) <= FEW else ""
    axes.plot([e.number for e in epochs], [e.loss for e in epochs], color="tab:blue", marker=marker)
    axes.set(title=name, xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    judged = [(e.number, e.accuracy) for e in epochs if e.accuracy is not None]
    if judged:
        right = axes.twinx()
        right.plot(
            [number for number, _ in judged], [accuracy for _, accuracy in judged], color="tab:orange", marker=marker
        )
        right.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        right.set_ylabel("held-out accuracy", color="tab:orange")
        axes.set_ylabel("loss", color="tab:blue")
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
