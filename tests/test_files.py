"""Functions compiled once: what they check, and how they are saved, loaded, pickled, copied and refused."""

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import pullback
from catalogue import Case
from catalogue_models import CASES as MODELS
from pullback import files, transform
from pullback.encoding import is_allowed
from pullback.rules import RULES

Pair = namedtuple("Pair", "left right")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def reloaded(compiled: pullback.CompiledFunction, tmp_path: Path) -> pullback.CompiledFunction:
    compiled.save(tmp_path / "program")
    return pullback.load(tmp_path / "program")


@pytest.fixture
def no_trace(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on nothing can be traced."""

    def forbid() -> None:
        def capture(*_: Any, **__: Any) -> Any:
            raise AssertionError("a function was traced")

        monkeypatch.setattr(transform, "capture", capture)

    return forbid


# ---------------------------------------------------------------- the same results


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_every_model_of_the_catalogue_survives_a_file(case: Case, tmp_path: Path) -> None:
    f, arguments = case.closed()
    jacobian = pullback.jacobian(f, tuple(range(len(arguments))))
    loaded = reloaded(jacobian.compile(*arguments), tmp_path)
    torch.testing.assert_close(loaded(*arguments), jacobian(*arguments), rtol=0, atol=0, equal_nan=True)


TRANSFORMS: dict[str, Callable[[Callable[..., Any]], pullback.Transform]] = {
    "grad": pullback.grad,
    "value_and_grad with aux": lambda f: pullback.value_and_grad(lambda p, x: (f(p, x), {"x": x}), has_aux=True),
    "jacobian": pullback.jacobian,
    "hessian": pullback.hessian,
    "compile": pullback.compile,
    "forward": lambda f: pullback.jacobian(f, order="forward"),
}


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_structures(make: Callable[..., pullback.Transform], tmp_path: Path) -> None:
    def f(p: dict[str, Any], x: Tensor) -> Tensor:
        return (F.gelu(x @ p["w"][0]) * p["w"][1]).softmax(-1).square().sum()

    p, x = {"w": [normal(3, 2), normal(2)]}, normal(4, 3)
    made = make(f)
    compiled = made.compile(p, x)
    pickled, copied = pickle.loads(pickle.dumps(compiled)), copy.deepcopy(compiled)
    for found in (compiled, reloaded(compiled, tmp_path), pickled, copied):
        torch.testing.assert_close(found(p, x), made(p, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_captured_tensors_of_every_dtype_and_layout(dtype: torch.dtype, tmp_path: Path) -> None:
    w = torch.arange(12.0).reshape(3, 4).to(dtype).t()
    index = torch.tensor([2, 0])
    jacobian = pullback.jacobian(lambda x: (x @ w)[index] * torch.tensor([2.0, 3.0]).to(dtype)[:, None])
    x = torch.ones(3, 4, dtype=dtype)
    loaded = reloaded(jacobian.compile(x), tmp_path)
    assert torch.equal(loaded(x), jacobian(x))
    assert [t.stride() for t in loaded.captured if t.dim() == 2] == [(1, 4)]


def test_complex_tensors_and_their_conjugates(tmp_path: Path) -> None:
    w = torch.tensor([1.0 + 2.0j, 3.0 - 1.0j]).conj()
    gradient = pullback.grad(lambda x: (x * w).abs().square().sum().real)
    z = torch.tensor([1.0j, 2.0 + 0.0j])
    torch.testing.assert_close(reloaded(gradient.compile(z), tmp_path)(z), gradient(z))


def test_numbers_that_json_has_no_word_for(tmp_path: Path) -> None:
    gradient = pullback.grad(lambda x, s: torch.where(x > -s, x, x * s).clamp(-float("inf"), 1e30).sum())
    compiled = gradient.compile(torch.ones(2), float("inf"))
    loaded = reloaded(compiled, tmp_path)
    assert torch.equal(loaded(torch.ones(2), float("inf")), torch.ones(2))
    with pytest.raises(pullback.SignatureError, match="s has to be inf, and is nan"):
        loaded(torch.ones(2), float("nan"))


OTHER_PROCESS = """
import os, sys
os.environ["CC"] = os.environ["CXX"] = "/nowhere"
os.environ["PATH"] = ""
import torch, pullback
from pullback import transform
def forbidden(*_, **__): raise AssertionError("traced")
transform.capture = forbidden
step = pullback.load(sys.argv[1])
x = torch.arange(6, dtype=torch.float64).reshape(2, 3)
results = [step(x) for _ in range(3)]
assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules
torch.save([results, step.captured], sys.argv[2])
"""


def test_another_process_goes_on_where_this_one_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    parameters = dict(model.named_parameters())

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, p, (x,)).square().mean()

    @pullback.compile
    def step(x: Tensor) -> Tensor:
        value, gradient = pullback.value_and_grad(loss)(parameters, x)
        with torch.no_grad():
            for name, p in parameters.items():
                p.sub_(0.1 * gradient[name])
        return value.detach()

    x = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    compiled = step.compile(x)
    compiled.save(tmp_path / "step")
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "step"), str(tmp_path / "results")]
    environment = dict(os.environ, PYTHONPATH=str(Path(pullback.__file__).parents[1]))
    subprocess.run(command, check=True, env=environment, timeout=120)
    results, captured = torch.load(tmp_path / "results")
    torch.testing.assert_close([compiled(x) for _ in range(3)], results, rtol=0, atol=0)
    torch.testing.assert_close([t.detach() for t in compiled.captured], list(captured), rtol=0, atol=0)


def test_nothing_is_traced_after_compiling(no_trace: Callable[[], None], tmp_path: Path) -> None:
    compiled = pullback.grad(lambda x: x.sin().sum()).compile(torch.ones(2))
    no_trace()
    loaded = reloaded(compiled, tmp_path)
    assert torch.equal(loaded(torch.zeros(2)), torch.ones(2))
    assert "cos" in loaded.code and "multiplications" in loaded.plan
    assert loaded.plan == compiled.plan


# ---------------------------------------------------------------- what is bound


def test_captured_tensors_are_bound_by_reference_and_saved_by_value(tmp_path: Path) -> None:
    scale = torch.tensor(2.0)
    compiled = pullback.grad(lambda x: scale * x).compile(torch.tensor(1.0))
    loaded = reloaded(compiled, tmp_path)
    copied = copy.deepcopy(compiled)
    scale.fill_(5.0)
    found = [float(c(torch.tensor(1.0))) for c in (compiled, loaded, copied)]
    assert found == [5.0, 2.0, 2.0]


def test_a_deep_copy_with_its_module_shares_the_copy_of_its_parameters() -> None:
    model = nn.Linear(2, 1)
    compiled = pullback.grad(lambda x: model(x).sum()).compile(torch.ones(2))
    other, other_compiled = copy.deepcopy((model, compiled))
    with torch.no_grad():
        other.weight.fill_(7.0)
        assert torch.equal(other_compiled(torch.ones(2)), torch.full((2,), 7.0))
        assert not torch.equal(compiled(torch.ones(2)), torch.full((2,), 7.0))


def _call_in_child(compiled: Any, queue: Any) -> None:
    queue.put(compiled(torch.ones(3)).tolist())


def test_after_fork() -> None:
    compiled = pullback.grad(lambda x: (x**3).sum()).compile(torch.ones(3))
    compiled(torch.ones(3))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_call_in_child, args=(compiled, queue))
    child.start()
    assert queue.get(timeout=60) == [3.0, 3.0, 3.0]
    child.join()


def test_eight_threads() -> None:
    compiled = pullback.hessian(lambda x: (x.sin() * x.prod()).sum()).compile(normal(5))
    inputs = [normal(5, seed=k) for k in range(8)]
    expected = [compiled(x) for x in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        if not all(torch.equal(compiled(inputs[k]), expected[k]) for _ in range(100)):
            wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------- signatures


def scaled(p: dict[str, Tensor], x: Tensor, scale: float = 1.0) -> Tensor:
    return (p["w"] * x).sum() * scale


GIVEN: tuple[Any, ...] = ({"w": torch.ones(2, 3)}, torch.ones(3))
WRONG_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "shape": (({"w": torch.ones(2, 4)}, torch.ones(3)), {}, r"p\['w'\] has to be float32\[2, 3\].*is float32\[2, 4\]"),
    "dtype": ((GIVEN[0], torch.ones(3).double()), {}, r"x has to be float32\[3\] on cpu, and is float64\[3\]"),
    "device": ((GIVEN[0], torch.ones(3, device="meta")), {}, r"x has to be .* on cpu, and is float32\[3\] on meta"),
    "strides": ((GIVEN[0], torch.ones(6)[::2]), {}, r"x has to be float32\[3\].*strides \(2,\)"),
    "structure": (([torch.ones(2, 3)], torch.ones(3)), {}, "p has to be a dict with keys .*is a list of 1"),
    "key": (({"v": torch.ones(2, 3)}, torch.ones(3)), {}, r"p has to be a dict with keys \['w'\]"),
    "count": ((GIVEN[0],), {}, "the number of positional arguments has to be 2, and is 1"),
    "keyword": (GIVEN, {"scale": 2.0}, r"the keyword arguments has to be \[\], and is \['scale'\]"),
    "no tensor": ((GIVEN[0], 3.0), {}, "x has to be .*, and is 3.0"),
}


@pytest.mark.parametrize(("args", "kwargs", "message"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_the_argument_that_differs_is_named(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str, tmp_path: Path
) -> None:
    compiled = pullback.grad(scaled).compile(*GIVEN)
    for found in (compiled, reloaded(compiled, tmp_path)):
        with pytest.raises(pullback.SignatureError, match=message):
            found(*args, **kwargs)


def test_python_numbers_belong_to_the_signature(tmp_path: Path) -> None:
    compiled = pullback.grad(scaled).compile(*GIVEN, scale=2.0)
    for found in (compiled, reloaded(compiled, tmp_path)):
        assert torch.equal(found(*GIVEN, scale=2.0)["w"], torch.full((2, 3), 2.0))
        with pytest.raises(pullback.SignatureError, match=r"scale has to be 2\.0, and is 2"):
            found(*GIVEN, scale=2)


def test_settings_of_pytorch_do_not_reach_into_it() -> None:
    compiled = pullback.jacobian(lambda x: x @ x).compile(torch.ones(2, 2))
    expected = compiled(torch.ones(2, 2))
    with torch.autocast("cpu"):
        assert compiled(torch.ones(2, 2)).dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(compiled(torch.ones(2, 2)), expected)
    assert torch.equal(compiled(torch.ones(2, 2)), expected)


def test_gradients_that_a_result_would_lack() -> None:
    x = torch.ones(2)
    compiled = pullback.grad(lambda x, n: (x * x).sum() + n.sum()).compile(x, x)
    with pytest.raises(pullback.ArgumentError, match="outside PyTorch's autograd graph"):
        compiled(torch.ones(2, requires_grad=True), x)
    with torch.no_grad():
        assert torch.equal(compiled(torch.ones(2, requires_grad=True), x), torch.full((2,), 2.0))
    assert torch.equal(compiled(x, torch.ones(2, requires_grad=True)), torch.full((2,), 2.0))


def test_a_finished_program_is_no_part_of_another() -> None:
    compiled = pullback.grad(lambda x: (x**3).sum()).compile(torch.ones(2))
    fixed = torch.ones(2)
    with pytest.raises(pullback.SignatureError, match="FakeTensor"):
        pullback.jacobian(compiled)(torch.ones(2))
    with pytest.raises(pullback.ArgumentError, match="inside another transform"):
        pullback.grad(lambda x: compiled(fixed).sum() * x)(torch.tensor(1.0))
    with pytest.raises(pullback.ArgumentError, match="inside another transform"):
        torch.vmap(compiled)(torch.ones(3, 2))
    with pytest.raises(pullback.ArgumentError, match="outside of other transforms"):
        pullback.grad(lambda x: pullback.grad(torch.sin).compile(x)(x))(torch.tensor(1.0))


# ---------------------------------------------------------------- what is refused


def program_file(tmp_path: Path) -> Path:
    w = normal(3)
    pullback.grad(lambda x: (x * w).sin().sum()).compile(normal(3)).save(tmp_path / "program")
    return tmp_path / "program"


def refused(path: Path, message: str = ".") -> str:
    with pytest.raises(pullback.ProgramFileError, match=message) as caught:
        pullback.load(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


def test_a_truncated_file_at_any_length(tmp_path: Path) -> None:
    path = program_file(tmp_path)
    data = path.read_bytes()
    for length in range(0, len(data), 41):
        path.write_bytes(data[:length])
        refused(path)


def test_a_flipped_bit_anywhere(tmp_path: Path) -> None:
    """Either it is noticed, or it lies in what the archive itself keeps twice and does not read."""
    path = program_file(tmp_path)
    data, x = path.read_bytes(), normal(3)
    expected = pullback.load(path)(x)
    unnoticed = 0
    for k in range(0, len(data), 23):
        path.write_bytes(data[:k] + bytes([data[k] ^ 0x10]) + data[k + 1 :])
        try:
            loaded = pullback.load(path)
        except pullback.ProgramFileError:
            continue
        assert torch.equal(loaded(x), expected)
        unnoticed += 1
    assert unnoticed < len(data) / 23 / 10


def foreign_archive() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"hello, world\n",
    "a pickle": pickle.dumps(print),
    "an archive": foreign_archive(),
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(data)
    refused(path, "no compiled program")


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the description of a program, and make its digest right again: an attacker can do that."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    del parts["digest"]
    program = json.loads(parts["program.json"])
    change(program)
    parts["program.json"] = json.dumps(program).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (*parts.items(), ("digest", files._digest(parts))):
            archive.writestr(name, data)


def _first_node(change: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda program: program["graph"]["nodes"][0].update(change)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a back end": (lambda p: p.update(backend="quantum"), "no back end 'quantum'"),
    "format": (lambda p: p.update(format="other"), "its format is 'other'"),
    "version": (lambda p: p.update(version=3), "version 3 of the format, and this pullback reads 2"),
    "torch": (lambda p: p.update(torch="1.13.1"), r"compiled for PyTorch 1\.13\.1, and PyTorch 2\.13.* is running"),
    "byte order": (lambda p: p.update(byteorder="big"), "byte order"),
    "an operator that writes": (_first_node({"op": "aten.add_.Tensor"}), "no operator that a file may call"),
    "an operator that reads files": (_first_node({"op": "aten.from_file.default"}), "no operator"),
    "an operator of others": (_first_node({"op": "os.system.default"}), "no operator"),
    "an unknown keyword": (_first_node({"kwargs": [["x\n    import os", 1]]}), "has no arguments"),
    "an argument": (_first_node({"args": ["tuple", [["exec", "1"]]]}), "no argument of an operator"),
    "a dtype": (_first_node({"args": ["tuple", [["dtype", "save"]]]}), "no argument of an operator"),
    "a value from nowhere": (_first_node({"args": ["tuple", [["value", 99]]]}), "no argument"),
    "a value read too early": (lambda p: p["graph"]["nodes"].reverse(), "before it is computed"),
    "the structure": (lambda p: p.update(structure=["leaf", 7]), "7 is no result"),
    "the signature": (lambda p: p["signature"].update(args=["tuple", []]), "takes 2 tensors, and it is given 1"),
    "a part": (lambda p: p.pop("graph"), "no whole program"),
    "a type": (lambda p: p["captured"][0].__setitem__(0, [4]), "no type|bytes|no whole"),
    "a device": (lambda p: p["captured"][0].__setitem__(3, "nowhere"), "nowhere"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_changed_files_with_a_right_digest(change: Callable[..., Any], message: str, tmp_path: Path) -> None:
    path = program_file(tmp_path)
    rewritten(path, change)
    refused(path, message)


def test_no_name_in_a_file_becomes_code(tmp_path: Path) -> None:
    path = program_file(tmp_path)

    def change(program: dict[str, Any]) -> None:
        program["name"] = "f():\n    import os\n\ndef g"
        for k, value in enumerate(program["graph"]["values"]):
            value[0] = f"x{k} = __import__('os').abort() #"

    rewritten(path, change)
    assert "import os" not in pullback.load(path).code.replace("import torch", "")
    pullback.load(path)(normal(3))


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program_file(tmp_path)
    before = path.read_bytes()

    def fails(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        pullback.grad(torch.sin).compile(torch.tensor(1.0)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_equal_programs_are_equal_files(tmp_path: Path) -> None:
    compiled = pullback.grad(torch.sin).compile(torch.tensor(1.0))
    compiled.save(tmp_path / "a")
    pullback.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    chunked = pullback.jacobian(torch.sin, chunk_size=2).compile(torch.ones(3))
    assert torch.equal(chunked(torch.zeros(3)), torch.eye(3))
    with pytest.raises(pullback.ProgramFileError, match="in chunks"):
        chunked.save(tmp_path / "program")
    with pytest.raises(pullback.ProgramFileError, match="in chunks"):
        pickle.dumps(chunked)
    named = pullback.jacobian(lambda x: Pair(x, x * 2)).compile(torch.ones(1))
    assert named(torch.ones(1)).right.item() == 2.0
    with pytest.raises(pullback.ProgramFileError, match="Pair"):
        named.save(tmp_path / "program")
    assert not list(tmp_path.iterdir())
    with pytest.raises(pullback.ArgumentError, match=r"argument g is .*from its closure"):
        pullback.grad(lambda x, g: g(x).sum()).compile(torch.ones(2), torch.sin)


def test_every_operator_with_a_rule_may_stand_in_a_file() -> None:
    assert all(map(is_allowed, RULES))
    assert not is_allowed("aten.copy_.default")
    assert not is_allowed("aten.from_file.default")


def test_missing_files_are_pythons_own_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pullback.load(tmp_path / "none")
