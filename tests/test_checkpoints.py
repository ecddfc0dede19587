"""A run that was killed or interrupted goes on as if it had not been, and no bad file is taken for a good one."""

import hashlib
import io
import multiprocessing
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from pullback import cli
from pullback.training import checkpoints, console, files
from pullback.training.checkpoints import HEADER, Checkpoint, read
from pullback.training.engines import TraceEngine
from pullback.training.problems import Problem, cnn, rnn, xor
from pullback.training.runs import ENGINES, Run, prepare
from pullback.training.settings import TrainingError
from support import reference
from test_cli import invoke
from test_training import small


def training(problem: Problem, directory: Path, engine: str = "trace", **changed: Any) -> tuple[Run, Checkpoint]:
    run = prepare(problem, replace(problem.defaults, **changed), engine)
    return run, Checkpoint(run, directory)


def state(run: Run) -> list[torch.Tensor]:
    """Every tensor that training changes."""
    kept = [value for entry in run.optimizer.state_dict()["state"].values() for value in entry.values()]
    return [*run.network.state_dict().values(), *(v for v in kept if torch.is_tensor(v)), run.order.get_state()]


def assert_same(run: Run, other: Run) -> None:
    """Bit for bit: parameters, the optimiser's state, the order of the examples, and the curves."""
    assert run.history == other.history
    for mine, its in zip(state(run), state(other), strict=True):
        assert mine.dtype == its.dtype
        assert torch.equal(mine, its)


# ---------------------------------------------------------------- going on


CASES = [
    *((xor, engine, optimizer) for engine in sorted(ENGINES) for optimizer in ("descent", "sgd", "adam", "adamw")),
    *((make, engine, "adam") for engine in sorted(ENGINES) for make in (cnn, lambda: rnn("gru"))),
    *((make, "record", "adam") for make in (lambda: rnn("elman"), lambda: rnn("lstm"))),
    pytest.param(lambda: rnn("lstm", "real"), "record", "adam", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("make", "engine", "optimizer"), CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(make: Any, engine: str, optimizer: str, tmp_path: Path) -> None:
    problem, settings = small(make(), 40), {"epochs": 5, "batch_size": 16, "optimizer": optimizer}
    with reference() if engine == "torch" else nullcontext():
        whole, _ = training(problem, tmp_path, engine, **settings)
        list(whole.epochs())
        first, checkpoint = training(problem, tmp_path, engine, **settings)
        list(islice(first.epochs(), 2))
        checkpoint.write()
        second, checkpoint = training(problem, tmp_path, engine, **settings)
        assert checkpoint.restore()
        assert_same(first, second)
        list(second.epochs())
    assert_same(whole, second)


def test_a_run_may_be_resumed_for_more_epochs_but_not_for_fewer(tmp_path: Path) -> None:
    run, checkpoint = training(xor(), tmp_path, epochs=4)
    list(run.epochs())
    checkpoint.write()
    longer, kept = training(xor(), tmp_path, epochs=6)
    assert kept.restore()
    assert [epoch.number for epoch in longer.epochs()] == [5, 6]
    with pytest.raises(TrainingError, match="is 4 epochs into the run, and 3 are asked for"):
        training(xor(), tmp_path, epochs=3)[1].restore()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"learning_rate": 0.5}, "its learning rate is 0.1, not 0.5"),
        ({"batch_size": 2}, "its batch size is 4, not 2"),
        ({"optimizer": "adam"}, "its optimizer is descent, not adam"),
        ({"seed": 6}, "its seed is 5, not 6"),
        ({"dtype": "float64"}, "its dtype is float32, not float64"),
        ({"engine": "torch"}, "its engine is trace, not torch"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    run, checkpoint = training(xor(), tmp_path, epochs=2)
    list(run.epochs())
    checkpoint.write()
    before = checkpoint.path.read_bytes()
    other, kept = training(xor(), tmp_path, **changed)
    start = [tensor.clone() for tensor in state(other)]
    with pytest.raises(TrainingError, match=words):
        kept.restore()
    assert checkpoint.path.read_bytes() == before
    assert all(map(torch.equal, state(other), start))
    assert not other.history


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    training(small(cnn(), 20), tmp_path)[1].write()
    with pytest.raises(TrainingError, match="its data is"):
        training(small(cnn(), 21), tmp_path)[1].restore()


# ---------------------------------------------------------------- bad files


def kept_file(directory: Path) -> Path:
    run, checkpoint = training(xor(), directory, epochs=3)
    list(run.epochs())
    checkpoint.write()
    return checkpoint.path


def test_a_single_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = kept_file(tmp_path)
    good, generator = path.read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(good)
        changed[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(TrainingError, match=r"is damaged|is not a checkpoint of pullback's"):
            read(path)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def signed(content: bytes) -> bytes:
    """As a file that is made to look like ours."""
    return HEADER + hashlib.sha256(content).digest() + content


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda good, _: b"", "is not a checkpoint of pullback's"),
        (lambda good, _: good[:20], "is not a checkpoint of pullback's"),
        (lambda good, _: good[:-1], "is damaged: its content does not match its digest"),
        (lambda good, _: good[: len(good) // 2], "is damaged: its content does not match its digest"),
        (lambda good, _: good + b"0", "is damaged: its content does not match its digest"),
        (lambda good, _: saved({"parameters": torch.ones(3)}), "is not a checkpoint of pullback's"),
        (lambda good, _: signed(saved({"parameters": torch.ones(3)})), "is damaged: it does not hold identity, losses"),
        (lambda good, _: signed(b"noise"), "is damaged: PyTorch cannot read it"),
        (lambda good, made: signed(saved(Touch(made))), "is damaged: PyTorch cannot read it"),
        (lambda good, made: signed(pickle.dumps(Touch(made))), "is damaged: PyTorch cannot read it"),
    ],
    ids=["empty", "short", "cut", "half", "long", "foreign", "of something else", "noise", "code", "pickled code"],
)
def test_what_is_no_good_checkpoint_is_one_sentence_and_stays(content: Any, words: str, tmp_path: Path) -> None:
    path, made = kept_file(tmp_path), tmp_path / "made"
    bad = content(path.read_bytes(), made)
    path.write_bytes(bad)
    result = invoke("train", "xor", "--resume", "--epochs", 5, "--out", tmp_path)
    assert result.exit_code == 2
    assert words in result.output
    assert result.output.count("\n") == 1
    assert path.read_bytes() == bad
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept_file(tmp_path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    result = invoke("train", "xor", "--epochs", 5, "--out", tmp_path)
    assert result.exit_code == 2
    assert "xor.checkpoint cannot be written: No space left on device" in result.output
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- on the command line


def test_resume_says_where_it_goes_on_and_gives_the_same_curves(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    invoke("train", "xor", "--epochs", 2500, "--out", whole)
    first = invoke("train", "xor", "--epochs", 1200, "--resume", "--out", parts)
    assert f"There is no {parts / 'xor.checkpoint'} to resume from yet: this starts at the beginning." in first.output
    second = invoke("train", "xor", "--epochs", 2500, "--resume", "--out", parts)
    assert f"Resumed from {parts / 'xor.checkpoint'}, after 1,200 epochs." in second.output
    again = invoke("train", "xor", "--epochs", 2500, "--resume", "--out", parts)
    assert again.exit_code == 0
    assert "4 of 4 right (accuracy 100.0%) after 2,500 epochs, 0.0 s" in again.output
    for name in ("xor.csv", "xor.png"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    for mine, its in zip(contents(whole), contents(parts), strict=True):
        assert torch.equal(mine, its)


def contents(directory: Path, name: str = "xor") -> list[torch.Tensor]:
    """What a checkpoint says of parameters, losses and the order of the examples."""
    found = read(directory / f"{name}.checkpoint")
    return [*found["parameters"].values(), found["losses"], found["order"]]


def test_a_checkpoint_is_kept_every_thousand_epochs_of_xor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    write = checkpoints.Checkpoint.write
    monkeypatch.setattr(
        checkpoints.Checkpoint, "write", lambda self: (kept.append(len(self.run.history)), write(self))[1]
    )
    invoke("train", "xor", "--epochs", 2300, "--out", tmp_path)
    assert kept == [1000, 2000, 2300]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal leaves it: what a script starts in the background ignores it, and so would the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_cleanly(presses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    class Interrupted(TraceEngine):
        def loss_and_gradients(self, x: torch.Tensor, y: torch.Tensor):
            steps.append(1)
            if len(steps) == 1020:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            return super().loss_and_gradients(x, y)

    whole = tmp_path / "whole"
    invoke("train", "xor", "--epochs", 1100, "--out", whole)
    with monkeypatch.context() as patch:
        patch.setitem(ENGINES, "trace", Interrupted)
        result = invoke("train", "xor", "--epochs", 1100, "--out", tmp_path)
    assert result.exit_code == 130
    assert "Stopping after this epoch; Ctrl-C once more stops at once." in result.output
    kept = "after 1,020 epochs" if presses == 1 else "at once"
    assert f"Stopped {kept}; --resume goes on from {tmp_path / 'xor.checkpoint'}." in result.output
    assert (tmp_path / "xor.csv").exists() == (presses == 1)
    assert len(read(tmp_path / "xor.checkpoint")["losses"]) == (1020 if presses == 1 else 1000)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    invoke("train", "xor", "--epochs", 1100, "--resume", "--out", tmp_path)
    assert (whole / "xor.csv").read_bytes() == (tmp_path / "xor.csv").read_bytes()


# ---------------------------------------------------------------- kill -9

WRITER = """
import importlib.util, itertools, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
for k in itertools.count():
    files.write_atomically(Path(sys.argv[2]), bytes([k % 256]) * (200_000 + k % 7))
    print(k, flush=True)
"""


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path, generator = tmp_path / "file", random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(files.__file__), str(path)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.02))
        process.kill()
        process.communicate()
        content = path.read_bytes()
        assert len(set(content)) == 1
        assert len(content) in range(200_000, 200_007)


FORKS = multiprocessing.get_context("forkserver")  # a process for each run, without importing PyTorch for each


def train(out: Path, log: Path, arguments: tuple[object, ...]) -> None:
    """The command line, as the whole of a process."""
    with log.open("w") as file:
        console.console.file = file
        cli.app(["train", *map(str, arguments), "--out", str(out)])


def start(out: Path, log: Path, *arguments: object) -> Any:
    """A process in which training has just begun."""
    FORKS.set_forkserver_preload(["pullback.cli"])
    log.unlink(missing_ok=True)
    process = FORKS.Process(target=train, args=(out, log, arguments))
    process.start()
    while process.is_alive() and not (log.exists() and "examples; engine" in log.read_text()):
        time.sleep(0.01)
    return process


def check_kills(name: str, arguments: tuple[object, ...], span: int, kills: int, tmp: Path) -> None:
    """Kill a run at random moments, resume it each time, and compare it with one that was never killed."""
    generator, done, rounds, log = random.Random(0), 0, 0, tmp / "log"
    whole, began = start(tmp / "whole", log, *arguments), time.monotonic()
    whole.join()
    assert whole.exitcode == 0
    longest = (time.monotonic() - began) / 3
    while done < kills:
        rounds += 1
        out, finished = tmp / str(rounds), False
        while not finished:
            process = start(out, log, *arguments, "--resume")
            if done < kills:
                time.sleep(generator.uniform(0, longest))
                process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            finished = process.exitcode == 0
            done += not finished
            check_kept(out / f"{name}.checkpoint", log.read_text(), span)
        check_equal(name, tmp / "whole", out)


def check_equal(name: str, whole: Path, parts: Path) -> None:
    """Two runs left the same files, bit for bit, and nothing else."""
    for mine, its in zip(contents(whole, name), contents(parts, name), strict=True):
        assert torch.equal(mine, its)
    for kind in ("csv", "png"):
        assert (whole / f"{name}.{kind}").read_bytes() == (parts / f"{name}.{kind}").read_bytes()
    assert {path.name for path in parts.iterdir()} == {f"{name}.{kind}" for kind in ("checkpoint", "csv", "png")}


def check_kept(path: Path, log: str, span: int) -> None:
    """A checkpoint can be read, and is at most a span behind what the run had come to."""
    reported = [int(number.replace(",", "")) for number in re.findall(r"epoch +([\d,]+)   loss", log)]
    kept = len(read(path)["losses"]) if path.exists() else 0
    assert kept >= max(reported, default=0) - span


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    check_kills("xor", ("xor", "--epochs", 8_000), 1000, 2, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "arguments", "span"),
    [
        ("xor", ("xor", "--epochs", 20_000), 1000),
        ("cnn", ("cnn", "--batch-size", 256), 1),
        ("rnn-elman", ("rnn", "--cell", "elman", "--epochs", 15), 1),
    ],
)
def test_fifty_kills(name: str, arguments: tuple[object, ...], span: int, tmp_path: Path) -> None:
    check_kills(name, arguments, span, 50, tmp_path)
