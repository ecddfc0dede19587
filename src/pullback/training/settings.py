"""What a training run is told, checked before anything is computed."""

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..errors import PullbackError
from .optimizers import OPTIMIZERS

DTYPES = ("float32", "float64")


class TrainingError(PullbackError, ValueError):
    """A training run cannot start: a setting makes no sense, or data cannot be read."""

    names_line = False


@dataclass(frozen=True)
class Settings:
    """The numbers of a training run.

    optimizer: "descent" (the update written by hand), "sgd", "adam" or "adamw".
    seed: drives the initial parameters and the order of the examples; equal seeds give equal runs.
    device: "cpu", "cuda" or "cuda:0".
    dtype: "float32" or "float64".  Initial parameters are drawn in float32 either way: both start at the same point.

    Raises TrainingError if a number is out of range, or the device is not there.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str = "descent"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, number in (("epochs", self.epochs), ("batch size", self.batch_size)):
            if number < 1:
                raise TrainingError(f"the {name} must be at least 1, not {number}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"the learning rate must be a positive number, not {self.learning_rate}")
        if not 0 <= self.seed < 2**63:
            raise TrainingError(f"the seed must be from 0 to 2^63 - 1, not {self.seed}")
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("dtype", self.dtype, DTYPES)
        _check_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as PyTorch's object."""
        return torch.float64 if self.dtype == "float64" else torch.float32


def check_choice(name: str, chosen: str, choices: Iterable[str]) -> None:
    """Raise TrainingError unless something is one of what there is; names all of that."""
    names = list(choices)
    if chosen not in names:
        raise TrainingError(f"the {name} must be {', '.join(names[:-1])} or {names[-1]}, not {chosen!r}")


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"the device must be cpu, cuda or cuda:N, not {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"the device must be cpu, cuda or cuda:N, not {name!r}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise TrainingError(f"the device {name!r} is not there: PyTorch {torch.__version__} sees {found} CUDA devices")


def require(module: str, distribution: str) -> None:
    """Raise TrainingError unless an optional dependency is installed; names the way to install it."""
    if importlib.util.find_spec(module) is None:
        raise TrainingError(f"this needs {distribution}, which is not installed: pip install 'pullback[train]'")
