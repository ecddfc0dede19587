"""The examples run as they are, do what their twins in plain PyTorch do, and differ from these by a few lines."""

import difflib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pullback
from support import reference

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAMES = ("xor", "cnn", "rnn")
MOST_LINES = 5


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}".replace("/", "_"), EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def difference(name: str) -> list[str]:
    """What turns a plain PyTorch script into our example."""
    plain, ours = f"examples/plain_pytorch/{name}.py", f"examples/{name}.py"
    before, after = ((ROOT / path).read_text(encoding="utf-8").splitlines() for path in (plain, ours))
    return list(difflib.unified_diff(before, after, plain, ours, n=1, lineterm=""))


# ---------------------------------------------------------------- what they come to


def test_xor_learns_all_four_points(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("xor").main(epochs=2000) == 1.0
    assert "epoch  2,000" in capsys.readouterr().out


def test_cnn_learns_real_digits() -> None:
    assert load("cnn").main(epochs=1) > 0.5


@pytest.mark.parametrize(("name", "arguments"), [("xor", (1000,)), ("cnn", (1,)), ("rnn", (1, 16))])
def test_an_example_prints_what_its_twin_prints(
    name: str, arguments: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(name).main(*arguments), capsys.readouterr().out
    with reference():
        assert found == (load(f"plain_pytorch/{name}").main(*arguments), capsys.readouterr().out)


def test_generalized_backward_takes_one_step_of_gradient_descent() -> None:
    example = load("xor")
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    with pullback.record():
        loss = (model.weight**2).sum()
        example.generalized_backward(model, loss, learning_rate=0.25)
    assert model.weight.item() == pytest.approx(before - 0.25 * 2 * before)


@pytest.mark.parametrize(("name", "network"), [("cnn", "SimpleCNN"), ("rnn", "SimpleRNN")])
def test_train_model_takes_what_learners_give_it(name: str, network: str) -> None:
    example = load(name)
    torch.manual_seed(0)
    model = getattr(example, network)()
    loader = DataLoader(TensorDataset(torch.rand(6, 1, 28, 28), torch.arange(6)), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history = example.train_model(model, torch.nn.CrossEntropyLoss(), optimizer, loader, epochs=3)
    assert len(history) == 3
    assert history[-1] < history[0]


# ---------------------------------------------------------------- how they look


@pytest.mark.parametrize("name", NAMES)
def test_each_example_is_readable_on_one_screen(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_an_example_differs_from_plain_pytorch_by_five_lines_at_most(name: str) -> None:
    added = [line for line in difference(name) if line.startswith("+") and not line.startswith("+++")]
    removed = [line for line in difference(name) if line.startswith("-") and not line.startswith("---")]
    assert len([line for line in added if line != "+"]) <= MOST_LINES
    assert len(removed) <= MOST_LINES


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_readme_shows_the_very_difference(page: str) -> None:
    block = "```diff\n" + "\n".join(difference("rnn")) + "\n```"
    assert block in (ROOT / page).read_text(encoding="utf-8")
