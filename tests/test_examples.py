"""The examples run as they are, and each fits on one screen."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_xor_learns_all_four_points(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("xor").main(epochs=2000) == 1.0
    assert "epoch  2,000" in capsys.readouterr().out


def test_generalized_backward_takes_one_step_of_gradient_descent() -> None:
    example = load("xor")
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    loss = example.generalized_backward(model, lambda p: (p["weight"] ** 2).sum(), learning_rate=0.25)
    assert loss.item() == pytest.approx(before**2)
    assert model.weight.item() == pytest.approx(before - 0.25 * 2 * before)


def test_cnn_learns_real_digits() -> None:
    assert load("cnn").main(epochs=1) > 0.5


def test_train_model_takes_what_learners_give_it() -> None:
    example = load("cnn")
    torch.manual_seed(0)
    model = example.SimpleCNN()
    loader = DataLoader(TensorDataset(torch.rand(6, 1, 28, 28), torch.arange(6)), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history = example.train_model(model, torch.nn.CrossEntropyLoss(), optimizer, loader, epochs=3)
    assert len(history) == 3
    assert history[-1] < history[0]


@pytest.mark.parametrize("name", ["xor", "cnn"])
def test_each_example_is_readable_on_one_screen(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 80
