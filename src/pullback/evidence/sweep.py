"""The whole database in parallel processes."""

import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from .comparison import Row, examine
from .database import dtypes_of, operators

Task = tuple[str, torch.dtype]


def tasks(names: Sequence[str], dtype: str | None = None) -> list[Task]:
    """Every operator in every dtype it is checked in, or in one of them."""
    pairs = [(name, d) for name in names for d in dtypes_of(operators()[name])]
    return [(name, d) for name, d in pairs if dtype is None or str(d) == f"torch.{dtype}"]


def sweep(todo: Sequence[Task], limit: int | None, jobs: int) -> Iterator[Row]:
    """The row of every task, as they get done; in this process for one job.

    todo, limit: what to examine, on how many samples (None: all).
    jobs: how many processes share the work.
    """
    if jobs == 1:
        yield from (row_of(task, limit) for task in todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=single_threaded) as pool:
        futures = [pool.submit(row_of, task, limit) for task in todo]
        for future in as_completed(futures):
            yield future.result()


def single_threaded() -> None:
    """Prepare a process: the processes are the parallelism."""
    torch.set_num_threads(1)


def row_of(task: Task, limit: int | None) -> Row:
    """Examine one operator in one dtype, without the warnings of PyTorch's own samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return examine(*task, limit)
