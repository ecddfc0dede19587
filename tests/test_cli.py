"""The command line: what it prints, what it writes, and how it refuses."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from pullback import cli
from pullback.training import console
from pullback.training.reference import TorchEngine
from pullback.training.runs import ENGINES


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.mark.parametrize("engine", ["trace", pytest.param("torch", marks=pytest.mark.reference)])
def test_train_xor_prints_the_loss_and_writes_the_curves(tmp_path: Path, engine: str) -> None:
    result = invoke("train", "xor", "--engine", engine, "--epochs", 50, "--out", tmp_path / "deep" / "er")
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"epoch +\d+   loss 0\.\d+", result.output)) == 10
    assert re.search(r"\d of 4 right", result.output)
    assert "10 under our engine and on 10 under torch.autograd" in result.output
    assert ("s of them in the first, which also traces and compiles" in result.output) == (engine == "trace")
    assert (tmp_path / "deep" / "er" / "xor.png").exists()
    assert len((tmp_path / "deep" / "er" / "xor.csv").read_text().splitlines()) == 51


@pytest.mark.reference  # --check
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_check_prints_the_largest_difference(tmp_path: Path, dtype: str) -> None:
    result = invoke("train", "xor", "--check", "--epochs", 200, "--dtype", dtype, "--batch-size", 3, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "over 400 steps the gradients differed from torch.autograd's by at most" in result.output


@pytest.mark.reference  # --check
def test_check_exits_with_1_when_the_gradients_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(TorchEngine):
        def loss_and_gradients(self, x: torch.Tensor, y: torch.Tensor):
            loss, gradients = super().loss_and_gradients(x, y)
            return loss, {name: 1.001 * g for name, g in gradients.items()}

    monkeypatch.setitem(ENGINES, "trace", Wrong)
    result = invoke("train", "xor", "--check", "--epochs", 5, "--out", tmp_path)
    assert result.exit_code == 1
    assert "--check" in result.output


@pytest.mark.reference  # --check
def test_train_cnn_learns_real_digits(tmp_path: Path) -> None:
    result = invoke("train", "cnn", "--epochs", 2, "--check", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    accuracy = re.search(r"of 360 right \(accuracy ([\d.]+)%\)", result.output)
    assert accuracy
    assert float(accuracy[1]) > 85
    assert (tmp_path / "cnn.csv").read_text().startswith("epoch,loss,held_out_accuracy\n1,")


@pytest.mark.reference  # both engines are run
def test_seeds_compares_the_engines() -> None:
    result = invoke("train", "xor", "--seeds", 2, "--epochs", 20)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"engine trace: everything right with \d of 2 seeds, median accuracy .* \(float64\)", result.output
    )
    assert "engine torch: everything right" in result.output
    alone = invoke("train", "xor", "--seeds", 2, "--epochs", 20, "--engine", "torch", "--dtype", "float32")
    assert "engine trace" not in alone.output
    assert "(float32)" in alone.output


@pytest.mark.reference  # both engines are run
def test_seeds_exits_with_1_when_the_engines_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"trace": [(0, 1.0)], "torch": [(0, 0.75)]}
    monkeypatch.setattr(console, "accuracies", lambda problem, settings, engine, seeds: iter(found[engine]))
    result = invoke("train", "xor", "--seeds", 1)
    assert result.exit_code == 1
    assert "The engines disagree." in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "xor", "--epochs", "0"], "the epochs must be at least 1, not 0"),
        (["train", "xor", "--seeds", "0"], "--seeds takes the number of seeds, at least 1, not 0"),
        (["train", "xor", "--seeds", "2", "--check"], "--check goes with one run"),
        (["train", "xor", "--check", "--engine", "torch"], "--check compares our engine with torch.autograd"),
        (["train", "xor", "--lr", "-1"], "the learning rate must be a positive number, not -1.0"),
        (["train", "cnn", "--data", "/no/such/directory"], "/no/such/directory is not a directory"),
        (["train", "cnn", "--device", "toaster"], "not 'toaster'"),
        (["train", "xor", "--engine", "jax"], "the engine must be trace"),
        (["train", "xor", "--dtype", "float8"], "the dtype must be float32 or float64, not 'float8'"),
        (["train", "xor", "--optimizer", "lbfgs"], "the optimizer must be descent, sgd, adam or adamw, not 'lbfgs'"),
        (["train", "xor", "--batch-size", "0"], "the batch size must be at least 1, not 0"),
        (["train", "xor", "--device", "cuda:99"], "'cuda:99' is not there"),
        (["train", "xor", "--seeds", "2", "--resume"], "--resume goes with one run"),
        (["train", "rnn", "--cell", "mamba"], "the cell must be elman, gru or lstm, not 'mamba'"),
        (["train", "rnn", "--lengths", "odd"], "the lengths must be full or real, not 'odd'"),
        (["train", "rnn", "--lengths", "real", "--engine", "trace"], "use --engine record or torch"),
        (["train", "rnn", "--data", "/no/such/directory"], "/no/such/directory is not a directory"),
        (["demo", "--epochs", "0"], "the epochs must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = invoke(*arguments, *(() if "--seeds" in arguments else ("--out", tmp_path)))
    assert result.exit_code == 2
    assert words in result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_one_epoch_is_counted_as_one(tmp_path: Path) -> None:
    assert re.search(r"after 1 epoch, [\d.]+ s\n", invoke("train", "xor", "--epochs", 1, "--out", tmp_path).output)


def test_a_directory_that_cannot_be_made_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("train", "xor", "--out", tmp_path / "file" / "runs")
    assert result.exit_code == 2
    assert "the curves cannot be written to" in result.output


@pytest.mark.reference  # the demonstration compares with torch.autograd
def test_demo_shows_the_whole_way(tmp_path: Path) -> None:
    result = invoke("demo", "--epochs", 200, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    difference = re.search(r"parameters after it differ by at most ([\d.e+-]+)\.", result.output)
    assert difference
    assert float(difference[1]) <= 1e-9
    assert "aten." in result.output
    assert "edge products performed" in result.output
    assert "fc1_weight" in result.output
    assert "xor.png" in result.output


def test_help_names_every_flag() -> None:
    own = {"xor": (), "cnn": ("data",), "rnn": ("cell", "lengths", "data")}
    shared = (
        "engine",
        "check",
        "resume",
        "epochs",
        "batch-size",
        "lr",
        "optimizer",
        "seed",
        "seeds",
        "device",
        "dtype",
    )
    for command, flags in own.items():
        text = invoke("train", command, "--help").output
        for flag in (*shared, "out", *flags):
            assert f"--{flag}" in text
