"""Checkpoints: all that a training run needs to go on as if it had never stopped.

A file is a line that says what it is, a digest, and what `torch.save` writes; PyTorch itself does not notice a changed
bit.  It is read with `weights_only`, so that nothing in it is ever executed.
"""

import hashlib
import io
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .data import Data
from .files import partial_of, write_atomically
from .runs import Epoch, Run
from .settings import TrainingError

HEADER = b"pullback checkpoint 1\n"
CONTENT = ("identity", "losses", "accuracies", "parameters", "optimizer", "order")
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Checkpoint:
    """The place where a run is kept, and how it gets there and back."""

    run: Run
    directory: Path

    @property
    def path(self) -> Path:
        """The file; it exists from the first write on."""
        return self.directory / f"{self.run.problem.name}.checkpoint"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What another run must share to go on from here; it may have more epochs."""
        settings = asdict(self.run.settings)
        del settings["epochs"]
        return {
            "network": self.run.problem.name,
            "engine": self.run.engine_name,
            **settings,
            "data": digest(self.run.data),
        }

    def write(self) -> None:
        """Keep the run as it is after its last epoch.

        Raises TrainingError if the file cannot be written; what was there before then still is.
        """
        run = self.run
        state = {
            "identity": self.identity,
            "losses": torch.tensor([e.loss for e in run.history], dtype=torch.float64),
            "accuracies": [e.accuracy for e in run.history if e.accuracy is not None],
            "parameters": run.network.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "order": run.order.get_state(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        try:
            write_atomically(self.path, HEADER + hashlib.sha256(content).digest() + content)
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def restore(self) -> bool:
        """Put the run where its checkpoint left off; False if there is none.

        Raises TrainingError if the file is no checkpoint, is damaged, or is one of another run; names the difference.
            The run is then as it was, and so is the file.
        """
        partial_of(self.path).unlink(missing_ok=True)
        if not self.path.exists():
            return False
        state = read(self.path)
        self._check_identity(state["identity"])
        run, losses = self.run, state["losses"].tolist()
        if len(losses) > run.settings.epochs:
            raise TrainingError(
                f"{self.path} is {len(losses):,} epochs into the run, and {run.settings.epochs:,} are asked for: "
                "ask for at least as many, or leave out --resume to begin anew"
            )
        accuracies = state["accuracies"] or [None] * len(losses)
        run.network.load_state_dict(state["parameters"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.order.set_state(state["order"])
        run.history[:] = [Epoch(k, *e) for k, e in enumerate(zip(losses, accuracies, strict=True), start=1)]
        return True

    def _check_identity(self, found: dict[str, Any]) -> None:
        for name, wanted in self.identity.items():
            if found.get(name) != wanted:
                what = name.replace("_", " ")
                raise TrainingError(
                    f"{self.path} is of another run: its {what} is {found.get(name)}, not {wanted}; give it "
                    "the settings it was made with, another --out, or leave out --resume to begin anew"
                )


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds; `parameters` is the network's state dictionary.

    Raises TrainingError if the file cannot be read, is no checkpoint, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content.startswith(HEADER):
        raise TrainingError(f"{path} is not a checkpoint of pullback's; it was left as it is")
    start = len(HEADER) + DIGEST_BYTES
    if hashlib.sha256(content[start:]).digest() != content[len(HEADER) : start]:
        raise TrainingError(f"{path} is damaged: its content does not match its digest; it was left as it is")
    try:
        state = torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises a dozen kinds of it
        raise TrainingError(f"{path} is damaged: PyTorch cannot read it; it was left as it is") from error
    if not isinstance(state, dict) or state.keys() != set(CONTENT):
        raise TrainingError(f"{path} is damaged: it does not hold {', '.join(CONTENT)}; it was left as it is")
    return state


def digest(data: Data) -> str:
    """The first digits of a hash of all examples.  Cost: one pass over them."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in (data.inputs, data.targets, data.held_out_inputs, data.held_out_targets):
        found.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
