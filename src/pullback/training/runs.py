"""The one training loop, for any engine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .data import Data
from .engines import Engine, RecordEngine, TraceEngine
from .optimizers import OPTIMIZERS
from .problems import Problem
from .reference import CheckedEngine, TorchEngine
from .settings import Settings, TrainingError, check_choice

ENGINES: dict[str, Callable[[nn.Module, nn.Module], Engine]] = {
    "trace": TraceEngine,
    "record": RecordEngine,
    "torch": TorchEngine,
}
# `len` of it is the number of batches; going through it again gives the next epoch's.
Batches = Sequence[Any] | DataLoader[Any]


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    number: counted from 1.
    loss: the mean over the epoch's examples, each at the parameters it was trained with.
    accuracy: the share of held-out examples that are right after it; None where it was not measured.
    """

    number: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Run:
    """A training run, ready to start or to go on.  Its network is trained in place.

    order: the generator that shuffles the examples, which is all the randomness after the start.
    history: the epochs so far.
    """

    problem: Problem
    settings: Settings
    data: Data
    network: nn.Module
    engine_name: str
    engine: Engine
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    batches: Batches
    history: list[Epoch] = field(default_factory=list)

    def epochs(self, watch: Callable[[float], None] | None = None) -> Iterator[Epoch]:
        """Train from where the history ends, and yield after every epoch.

        Arguments:
            watch: is told after every batch how many epochs are done, with the part of the present one.
        """
        for number in range(len(self.history) + 1, self.settings.epochs + 1):
            self.network.train()
            loss = self._pass(watch)
            epoch = Epoch(number, loss, self.accuracy() if self.problem.judged_each_epoch else None)
            self.history.append(epoch)
            yield epoch

    def _pass(self, watch: Callable[[float], None] | None) -> float:
        parameters = dict(self.network.named_parameters())
        total, count, done = 0.0, 0, len(self.history)
        for k, (x, y) in enumerate(self.batches, start=1):
            loss, gradients = self.engine.loss_and_gradients(x, y)
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
            self.optimizer.step()
            total += loss.item() * len(x)
            count += len(x)
            if watch:
                watch(done + k / len(self.batches))
        return total / count

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of held-out examples that the network gets right, as it is now."""
        self.network.eval()
        outputs = [self.network(x) for x in self.data.held_out_inputs.split(1024)]  # bounds the memory on MNIST
        return self.problem.judge(torch.cat(outputs), self.data.held_out_targets).double().mean().item()


def prepare(problem: Problem, settings: Settings, engine: str = "trace", check: bool = False) -> Run:
    """Draw the initial parameters and make everything a run needs.

    Arguments:
        problem: what to train; its data are moved to the device and dtype of the settings.
        settings: the numbers of the run.
        engine: "trace" or "record" for ours, "torch" for plain autograd.
        check: whether torch.autograd computes every gradient too; `run.engine` is a `CheckedEngine` then.

    Raises TrainingError: there is no such engine, or it cannot follow this network.
    """
    check_choice("engine", engine, ENGINES)
    if engine == "trace" and not problem.traceable:
        raise TrainingError(
            f"{problem.name} loops as far as each image's ink reaches, which one trace cannot follow: "
            "use --engine record or torch"
        )
    data = problem.data.to(settings)
    network = initial_network(problem, settings)
    chosen = ENGINES[engine](network, problem.criterion)
    if check:
        chosen = CheckedEngine(chosen, TorchEngine(network, problem.criterion), settings.torch_dtype)
    optimizer = OPTIMIZERS[settings.optimizer](network.parameters(), lr=settings.learning_rate)
    order = torch.Generator().manual_seed(settings.seed)
    return Run(problem, settings, data, network, engine, chosen, optimizer, order, _batches(data, settings, order))


def initial_network(problem: Problem, settings: Settings) -> nn.Module:
    """The network of a problem, its initial parameters drawn from the seed; global randomness is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = problem.network()
    return network.to(settings.device, settings.torch_dtype)


def _batches(data: Data, settings: Settings, order: torch.Generator) -> Batches:
    """The batches of an epoch, shuffled anew each time they are gone through."""
    if len(data.inputs) <= settings.batch_size:
        return [(data.inputs, data.targets)]
    return DataLoader(TensorDataset(data.inputs, data.targets), settings.batch_size, shuffle=True, generator=order)
