"""The one training loop, for either engine."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .data import Data
from .engines import Engine, TraceEngine
from .problems import Problem, Update
from .reference import CheckedEngine, TorchEngine
from .settings import Settings, TrainingError

ENGINES: dict[str, Callable[[nn.Module, nn.Module], Engine]] = {"trace": TraceEngine, "torch": TorchEngine}
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


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
    """A training run, ready to start.  Its network is trained in place."""

    problem: Problem
    settings: Settings
    data: Data
    network: nn.Module
    engine: Engine
    update: Update
    batches: Batches

    def epochs(self) -> Iterator[Epoch]:
        """Train, and yield after every epoch."""
        for number in range(1, self.settings.epochs + 1):
            self.network.train()
            loss = self._pass()
            yield Epoch(number, loss, self.accuracy() if self.problem.judged_each_epoch else None)

    def _pass(self) -> float:
        total, count = 0.0, 0
        for x, y in self.batches:
            loss, gradients = self.engine.loss_and_gradients(x, y)
            self.update(gradients)
            total += loss.item() * len(x)
            count += len(x)
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
        engine: "trace" for ours, "torch" for plain autograd.
        check: whether torch.autograd computes every gradient too; `run.engine` is a `CheckedEngine` then.

    Raises TrainingError: there is no such engine.
    """
    if engine not in ENGINES:
        raise TrainingError(f"the engine must be {' or '.join(ENGINES)}, not {engine!r}")
    data = problem.data.to(settings)
    network = initial_network(problem, settings)
    chosen = ENGINES[engine](network, problem.criterion)
    if check:
        chosen = CheckedEngine(chosen, TorchEngine(network, problem.criterion), settings.torch_dtype)
    update = problem.update(dict(network.named_parameters()), settings.learning_rate)
    return Run(problem, settings, data, network, chosen, update, _batches(data, settings))


def initial_network(problem: Problem, settings: Settings) -> nn.Module:
    """The network of a problem, its initial parameters drawn from the seed; global randomness is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = problem.network()
    return network.to(settings.device, settings.torch_dtype)


def _batches(data: Data, settings: Settings) -> Batches:
    """The batches of an epoch, shuffled anew each time they are gone through."""
    if len(data.inputs) <= settings.batch_size:
        return [(data.inputs, data.targets)]
    generator = torch.Generator().manual_seed(settings.seed)
    return DataLoader(TensorDataset(data.inputs, data.targets), settings.batch_size, shuffle=True, generator=generator)
