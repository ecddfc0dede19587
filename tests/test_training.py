"""Training: data are read or refused by name, runs repeat exactly, and our engine equals torch.autograd."""

import gzip
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pullback.training.curves import write_curves
from pullback.training.data import digits, mnist, read_idx
from pullback.training.problems import Problem, cnn, xor
from pullback.training.reference import CheckedEngine, TorchEngine
from pullback.training.runs import Epoch, initial_network, prepare
from pullback.training.settings import Settings, TrainingError
from pullback.training.studies import accuracies, successes
from support import reference

# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": -3}, "batch size must be at least 1, not -3"),
        ({"learning_rate": 0.0}, "positive number, not 0.0"),
        ({"learning_rate": math.nan}, "positive number, not nan"),
        ({"seed": -1}, "seed must be from 0"),
        ({"dtype": "int8"}, "float32 or float64, not 'int8'"),
        ({"device": "toaster"}, "cpu, cuda or cuda:N, not 'toaster'"),
        ({"device": "meta"}, "cpu, cuda or cuda:N, not 'meta'"),
        ({"device": "cuda:99"}, "'cuda:99' is not there"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, words: str) -> None:
    good = Settings(epochs=1, batch_size=1, learning_rate=0.1)
    with pytest.raises(TrainingError, match=words):
        replace(good, **change)


# ---------------------------------------------------------------- data


def test_digits_are_28_by_28_between_0_and_1_with_a_fixed_fifth_held_out() -> None:
    data, again = digits(), digits()
    assert data.inputs.shape == (1437, 1, 28, 28)
    assert data.held_out_inputs.shape == (360, 1, 28, 28)
    assert data.inputs.min() >= 0
    assert 0.99 < data.inputs.max() <= 1
    assert set(data.held_out_targets.tolist()) == set(range(10))
    assert torch.equal(data.held_out_inputs, again.held_out_inputs)
    # As it was when the recorded accuracies were measured.
    assert data.held_out_targets[:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, kind, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(directory: Path, ending: str = "", separator: str = "-", count: int = 20) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = generator.integers(0, 256, (count, 28, 28))
        labels = generator.integers(0, 10, count)
        for stem, array in ((f"images{separator}idx3", images), (f"labels{separator}idx1", labels)):
            content = idx(array)
            content = gzip.compress(content) if ending else content
            (directory / f"{part}-{stem}-ubyte{ending}").write_bytes(content)


@pytest.mark.parametrize(("ending", "separator"), [("", "-"), (".gz", "-"), ("", ".")])
def test_mnist_files_are_read_plain_and_compressed(tmp_path: Path, ending: str, separator: str) -> None:
    write_mnist(tmp_path, ending, separator)
    data = mnist(tmp_path)
    assert data.inputs.shape == (20, 1, 28, 28)
    assert data.inputs.dtype == torch.float32
    assert data.targets.dtype == torch.int64
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    assert torch.equal((data.inputs[:, 0] * 255).round().long(), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an IDX file: it starts with nothing"),
        (b"\x89PNG and more", "not an IDX file: it starts with 89 50 4e 47"),
        (idx(np.zeros((2, 2, 2)), kind=13), r"type 0x0d with 3 axes; unsigned bytes \(0x08\) with 3 axes"),
        (idx(np.zeros(4)), "type 0x08 with 1 axes"),
        (idx(np.zeros((2, 2, 2)))[:10], "ends inside its header: 10 bytes of 16"),
        (idx(np.zeros((2, 2, 2)))[:-1], "2×2×2 = 8 bytes after its header; it holds 7"),
        (idx(np.zeros((2, 2, 2))) + b"\0", "it holds 9"),
        (gzip.compress(idx(np.zeros((2, 2, 2))), mtime=0)[:-12], "damaged gzip file"),
        (gzip.compress(b"abc" * 100, mtime=0)[:40] + b"\xff" * 30, "damaged gzip file"),
    ],
    ids=["empty", "png", "floats", "one axis", "short header", "short", "long", "short gzip", "gzip of noise"],
)
def test_damaged_idx_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=words) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_mnist_refuses_what_does_not_fit_together(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not a directory"):
        mnist(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="holds no file train-images-idx3-ubyte"):
        mnist(tmp_path)
    write_mnist(tmp_path)
    labels, images = tmp_path / "train-labels-idx1-ubyte", tmp_path / "train-images-idx3-ubyte"
    labels.write_bytes(idx(np.zeros(19)))
    with pytest.raises(TrainingError, match=r"20 images but .* 19 labels"):
        mnist(tmp_path)
    labels.write_bytes(idx(np.full(20, 11)))
    with pytest.raises(TrainingError, match="the label 11; labels are 0 to 9"):
        mnist(tmp_path)
    images.write_bytes(idx(np.zeros((20, 8, 8))))
    with pytest.raises(TrainingError, match="images of 8×8; 28×28 is required"):
        mnist(tmp_path)


# ---------------------------------------------------------------- runs


def small(problem: Problem, count: int) -> Problem:
    """The same problem with only its first examples."""
    data = problem.data
    return replace(problem, data=replace(data, inputs=data.inputs[:count], targets=data.targets[:count]))


def test_seeds_fix_the_start_and_leave_global_randomness_alone() -> None:
    problem = xor()
    state = torch.random.get_rng_state()
    first, again = initial_network(problem, problem.defaults), initial_network(problem, problem.defaults)
    double = initial_network(problem, replace(problem.defaults, dtype="float64"))
    other = initial_network(problem, replace(problem.defaults, seed=6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.fc1.weight, again.fc1.weight)
    assert torch.equal(first.fc1.weight.double(), double.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


def test_there_is_no_third_engine() -> None:
    with pytest.raises(TrainingError, match=r"trace.* or torch, not 'jax'"):
        prepare(xor(), xor().defaults, "jax")


def test_the_default_seed_learns_xor_on_our_engine() -> None:
    problem = xor()
    run = prepare(problem, replace(problem.defaults, epochs=2500))
    losses = [epoch.loss for epoch in run.epochs()]
    assert len(losses) == 2500
    assert losses[-1] < 0.02
    assert run.accuracy() == 1.0


def test_equal_seeds_give_equal_runs() -> None:
    problem = small(cnn(), 150)
    settings = replace(problem.defaults, epochs=2)
    runs = [[epoch.loss for epoch in prepare(problem, settings).epochs()] for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != [epoch.loss for epoch in prepare(problem, replace(settings, seed=1)).epochs()]


@pytest.mark.reference  # --check
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [xor, cnn])
def test_check_compares_every_step(make, dtype: str) -> None:
    problem = small(make(), 100)
    settings = replace(problem.defaults, epochs=3, dtype=dtype, batch_size=min(64, problem.defaults.batch_size))
    run = prepare(problem, settings, check=True)
    list(run.epochs())
    assert isinstance(run.engine, CheckedEngine)
    assert run.engine.steps == (6 if problem.name == "cnn" else 3)
    assert run.engine.passed
    assert "the limit is 1e-09" in run.engine.report() or dtype == "float32"


class _WrongBy:
    """The reference engine with something added to one gradient."""

    def __init__(self, engine: TorchEngine, error: float) -> None:
        self.engine, self.error = engine, error

    def loss_and_gradients(self, x: torch.Tensor, y: torch.Tensor):
        loss, gradients = self.engine.loss_and_gradients(x, y)
        gradients["fc1.bias"] = gradients["fc1.bias"] + self.error
        return loss, gradients


@pytest.mark.reference  # --check
@pytest.mark.parametrize(
    ("dtype", "error", "passes"),
    [
        ("float64", 1e-10, True),
        ("float64", 1e-8, False),
        ("float32", 1e-6, True),
        ("float32", 1e-3, False),
        ("float32", math.nan, False),
        ("float64", math.inf, False),
    ],
)
def test_check_notices_a_wrong_gradient(dtype: str, error: float, passes: bool) -> None:
    problem = xor()
    settings = replace(problem.defaults, dtype=dtype)
    network = initial_network(problem, settings)
    reference = TorchEngine(network, problem.criterion)
    checked = CheckedEngine(_WrongBy(reference, error), reference, settings.torch_dtype)
    data = problem.data.to(settings)
    checked.loss_and_gradients(data.inputs, data.targets)
    assert checked.passed is passes


def test_seeds_are_run_one_after_the_other() -> None:
    settings = replace(xor().defaults, epochs=30, dtype="float64")
    ours = list(accuracies(xor(), settings, "trace", range(4)))
    with reference():
        theirs = list(accuracies(xor(), settings, "torch", range(4)))
    assert ours == theirs
    assert [seed for seed, _ in ours] == [0, 1, 2, 3]
    assert successes([1.0, 0.75, 1.0]) == 2


# ---------------------------------------------------------------- curves


@pytest.mark.parametrize("accuracy", [None, 0.5])
def test_curves_are_written_as_table_and_picture(tmp_path: Path, accuracy: float | None) -> None:
    table, picture = write_curves(tmp_path, "xor", [Epoch(1, 0.75, accuracy), Epoch(2, 0.5, accuracy)])
    lines = table.read_text().splitlines()
    assert lines[0] == ("epoch,loss" if accuracy is None else "epoch,loss,held_out_accuracy")
    assert lines[2] == ("2,0.5" if accuracy is None else "2,0.5,0.5")
    assert picture.read_bytes().startswith(b"\x89PNG")
