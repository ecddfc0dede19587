"""A record against autograd: control flow, what is asked of a tape, what is refused."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pullback
from pullback import RecordError, pulls, replay
from record_support import check, forget, leaves
from support import reference


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of every program that is compiled while a test runs, with empty caches at its start."""
    forget()
    names: list[str] = []

    def count(module: object, function: str, name: str) -> None:
        original = getattr(module, function)

        def counted(*args: object, **kwargs: object) -> object:
            names.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, function, counted)

    count(pulls, "emit_python", "pull")
    count(replay, "emit_python", "backward")
    return names


# ---------------------------------------------------------------- control flow


def test_a_transform_under_vmap_is_recorded() -> None:
    x = torch.linspace(0.1, 0.9, 3, dtype=torch.float64, requires_grad=True)
    with pullback.record() as tape:
        total = torch.vmap(pullback.grad(lambda a: a.sin() * a))(x).sum()
    torch.testing.assert_close(tape.grad(total, x), (2 * x.cos() - x * x.sin()).detach())


def test_a_branch_on_values() -> None:
    def f(x: Tensor) -> Tensor:
        return (x.sin() * 3).sum() if x.sum() > 1 else x.sum()

    check(f, *leaves((3,)))
    check(lambda x: f(x - 10), *leaves((3,)))


def test_a_loop_that_ends_on_values() -> None:
    def f(x: Tensor) -> Tensor:
        while x.norm().item() < 20:
            x = x * 1.5 + x.tanh()
        return x.pow(2).mean()

    check(f, *leaves((4,)))


def test_sequences_of_different_lengths() -> None:
    cell = nn.LSTMCell(3, 4).double()
    parameters = list(cell.parameters())
    for length in (2, 5, 3, 5, 5, 5, 2):
        sequence = torch.randn(length, 1, 3, dtype=torch.float64)

        def loss(*_: Tensor, sequence: Tensor = sequence) -> Tensor:
            state = (torch.zeros(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64))
            for row in sequence:
                state = cell(row, state)
            return state[0].sum()

        with pullback.record() as tape:
            value = loss()
        ours = tape.grad(value, parameters)
        with reference():
            theirs = torch.autograd.grad(loss(), parameters)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_python_functions_and_data_structures() -> None:
    def tree(x: Tensor, depth: int) -> Tensor:
        return x.sin() if depth == 0 else tree(x * 2, depth - 1) + tree(x + 1, depth - 1)

    check(lambda x: tree(x, 3).sum(), *leaves((2,)))


def test_no_grad_enable_grad_and_detach() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x * 2
            with torch.enable_grad():
                inner = y.sin()
        assert torch.is_grad_enabled()
        return (x * scale + inner * y.detach() + y.exp().detach()).sum()

    check(f, *leaves((3,), (3,)))


def test_decorated_no_grad() -> None:
    @torch.no_grad()
    def frozen(x: Tensor) -> Tensor:
        return x.exp()

    check(lambda x: (frozen(x) * x).sum(), *leaves((3,)))


def test_requires_grad_is_as_in_pytorch_inside_the_block() -> None:
    (x,) = leaves((3,))
    with pullback.record():
        y = x * 2
        assert y.requires_grad and not y.detach().requires_grad
        with torch.no_grad():
            assert not (x * 2).requires_grad
    assert not y.requires_grad


# ---------------------------------------------------------------- what is asked of a tape


def test_any_tensor_any_number_of_times_inside_and_after() -> None:
    (x,) = leaves((3,))
    with pullback.record() as tape:
        y = x.sin()
        z = (y * y).sum()
        inside = tape.grad(z, {"x": x, "y": [y]})
        w = z.exp()
    for _ in range(4):
        again = tape.grad(z, {"x": x, "y": [y]})
        assert torch.equal(again["x"], inside["x"]) and torch.equal(again["y"][0], inside["y"][0])
    torch.testing.assert_close(inside["y"][0], 2 * x.detach().sin())
    torch.testing.assert_close(inside["x"], (2 * x.sin() * x.cos()).detach())
    torch.testing.assert_close(tape.grad(w, z), w)
    torch.testing.assert_close(tape.grad(y, x, seed=torch.ones(3, dtype=torch.float64)), x.detach().cos())


def test_an_intermediate_and_what_it_is_computed_from() -> None:
    (x,) = leaves((3,))
    for _ in range(4):
        with pullback.record() as tape:
            y = x.exp()
            z = (y * x).sum()
        d_x, d_y, d_z = tape.grad(z, (x, y, z))
        torch.testing.assert_close(d_x, (x.exp() * x + x.exp()).detach())
        torch.testing.assert_close(d_y, x.detach())
        assert d_z == 1


def test_backward_accumulates_and_leaves_other_gradients_alone() -> None:
    x, y = leaves((3,), (2,))
    for count in (1, 2, 3, 4):
        with pullback.record() as tape:
            loss = (x * x).sum()
        tape.backward(loss)
        torch.testing.assert_close(x.grad, 2 * count * x.detach())
    assert y.grad is None


def test_gradients_have_memory_of_their_own() -> None:
    x, y = leaves((3,), (3,))
    with pullback.record() as tape:
        loss = (x * y).sum()
    d_x, same = tape.grad(loss, [x, x])
    d_x.zero_()
    assert same.abs().sum() > 0 and y.abs().sum() > 0
    tape.backward(loss)
    x.grad.zero_()
    assert y.detach().abs().sum() > 0


def test_strides_of_gradients_are_those_of_the_leaf() -> None:
    with torch.no_grad():
        x = torch.randn(3, 2).t().clone(memory_format=torch.preserve_format).requires_grad_()
    assert x.stride() == (1, 2)
    with pullback.record() as tape:
        loss = (x.contiguous().view(-1) ** 2).sum()
    tape.backward(loss)
    assert x.grad is not None and x.grad.stride() == x.stride()


def test_a_released_or_dropped_tape_frees_its_tensors() -> None:
    (x,) = leaves((3,))
    for drop in (False, True):
        with pullback.record() as tape:
            y = x.sin()
            loss = y.sum()
        held = weakref.ref(y)
        del y
        assert held() is not None
        if drop:
            del tape
        else:
            tape.release()
            with pytest.raises(RecordError, match="released"):
                tape.grad(loss, x)
        assert held() is None


def test_a_tape_is_no_cycle() -> None:
    (x,) = leaves((3,))
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            with pullback.record() as tape:
                y = torch.zeros(4, dtype=torch.float64)
                y[:3] = x
                loss = (y * y.sin()).sum()
            tape.backward(loss)
        held = weakref.ref(tape.history)
        del tape, y, loss
        assert held() is None
    finally:
        gc.enable()


def test_an_error_in_the_block_leaves_nothing_behind() -> None:
    (x,) = leaves((3,))
    with pytest.raises(ZeroDivisionError), pullback.record():
        (y := x * 2).view(1 // 0)
    assert not y.requires_grad and torch.is_grad_enabled()
    with reference():
        z = x.sin()
        assert z.grad_fn is not None
    assert "apply" in torch.autograd.Function.__dict__
    assert torch.autograd.Function.apply.__qualname__.startswith("Function")


def test_the_graph_of_a_record() -> None:
    (x,) = leaves((3,))
    with pullback.record() as tape:
        loss = (x * 2.0).sin().sum()
    graph = tape.graph(loss)
    graph.check()
    assert [node.op for node in graph.nodes] == ["aten.mul.Tensor", "aten.sin.default", "aten.sum.default"]
    assert all(node.source is not None and node.source.file == __file__ for node in graph.nodes)
    assert "sin().sum()" in str(graph)


# ---------------------------------------------------------------- compiled when seen again


def test_a_sequence_is_compiled_when_it_is_seen_the_third_time(compilations: list[str]) -> None:
    (x,) = leaves((3,))

    def run() -> None:
        with pullback.record() as tape:
            loss = (x.sin() * x).sum()
        tape.backward(loss)

    run()
    assert compilations.count("pull") == 3
    run()
    assert compilations.count("backward") == 0
    run()
    assert (compilations.count("pull"), compilations.count("backward")) == (3, 1)
    run()
    assert len(compilations) == 4


def test_numbers_are_inputs_of_compiled_programs(compilations: list[str]) -> None:
    (x,) = leaves((3,))
    for t in range(100):
        factor = 1 - 0.9**t
        with pullback.record() as tape:
            loss = (x * factor / (t + 1.5) + factor - 2.0 * x).sum()
        torch.testing.assert_close(
            tape.grad(loss, x), torch.full_like(x, factor / (t + 1.5) - 2, requires_grad=False), rtol=1e-12, atol=0
        )
    assert compilations.count("backward") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_numbers_do_not_promote(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(lambda x: (x * 0.3 / 0.7 - 1.3).sum() * 1.7, *leaves(shape, dtype=dtype), tolerance=1e-2)


def test_equal_sequences_with_other_constants_indices_and_aliases() -> None:
    x, y = leaves((4,), (4,))
    for round in range(4):
        index = torch.tensor([round % 3, 3])
        constant = torch.full((2,), float(round), dtype=torch.float64)
        check(lambda x, y, i=index, c=constant: (x[i] * c * y[i].exp()).sum(), x, y, times=1)
        check(lambda x, y, i=index: (x[i] * x.exp()[i]).sum(), x, y, times=1)
        check(lambda x, y: (x * y).sum(), x, y, times=1)
        check(lambda x, y: (x * x).sum(), x, y, times=1)
        check(lambda x, y, p=2 + round / 3: (x**p).sum(), x, y, times=1)


def test_a_leaf_and_a_constant_make_other_sequences() -> None:
    x, y = leaves((4,), (4,))
    for _ in range(4):
        check(lambda x, y: (x * y).sum(), x, y, times=1)
        check(lambda x, y: (x * y.detach()).sum(), x, y, times=1)


# ---------------------------------------------------------------- one inside another


def test_nested_records_keep_their_own() -> None:
    (x,) = leaves((3,))
    for _ in range(4):
        with pullback.record() as outer:
            y = x.sin()
            with pullback.record() as inner:
                z = (y * y * x).sum()
            d_y = inner.grad(z, y)
            w = (d_y * x).sum()
        torch.testing.assert_close(d_y.detach(), (2 * x.sin() * x).detach())
        torch.testing.assert_close(outer.grad(w, x), (2 * x.cos() * x * x + 4 * x.sin() * x).detach())
        torch.testing.assert_close(outer.grad(z, x), (2 * x.sin() * x.cos() * x + x.sin() ** 2).detach())


def test_our_transforms_inside_a_block() -> None:
    x, y = leaves((3,), (3,))

    def energy(x: Tensor, y: Tensor) -> Tensor:
        return (torch.tanh(x * y) ** 3).sum()

    for transform in (pullback.grad(energy), pullback.jacobian(energy)):
        for _ in range(4):
            with pullback.record() as tape:
                force = transform(x, y)
                loss = (force * force).sum()
            ours = tape.grad(loss, (x, y))
            with reference():
                (force,) = torch.autograd.grad(energy(x, y), x, create_graph=True)
                theirs = torch.autograd.grad((force * force).sum(), (x, y))
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b)
        outside = transform(x.detach(), y.detach())  # and the program for outside is another
        torch.testing.assert_close(outside, force.detach())


# ---------------------------------------------------------------- networks


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2)), (3, 5)),
    "cnn": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        (2, 1, 8, 8),
    ),
    "inplace": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ELU(inplace=True)),
        (3, 5),
    ),
    "lstm": (lambda: nn.LSTM(3, 4, num_layers=2, batch_first=True), (2, 5, 3)),
    "gru": (lambda: nn.GRU(3, 4), (5, 2, 3)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), (2, 3, 4)),
    "attention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), (2, 3, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_networks(name: str, training: bool) -> None:
    make, shape = NETWORKS[name]
    network = make().double().train(training)
    x = torch.randn(shape, dtype=torch.float64)

    def loss() -> Tensor:
        result = network(x, x, x) if name == "attention" else network(x)
        result = result[0] if isinstance(result, tuple) else result
        return (result * result.detach().cos()).sum()

    parameters = list(network.parameters())
    for _ in range(4):
        with pullback.record() as tape:
            value = loss()
        ours = tape.grad(value, parameters)
        with reference():
            theirs = torch.autograd.grad(loss(), parameters)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_dropout_uses_the_mask_that_was_drawn() -> None:
    (x,) = leaves((50,))
    for _ in range(4):
        with pullback.record() as tape:
            y = F.dropout(x, 0.4)
            loss = y.sum()
        torch.testing.assert_close(tape.grad(loss, x), (y / x).detach(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["pinv", "lstsq", "svd", "solve", "eigh", "exp of a conjugate"])
def test_complex_values_are_what_they_are_without_a_record(name: str) -> None:
    """Below a mode PyTorch forgets lazy conjugation: `linalg.pinv` would compute something else."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "pinv": torch.linalg.pinv,
        "lstsq": lambda a: torch.linalg.lstsq(a, a[:, :1] * 2, driver="gels").solution,
        "svd": lambda a: torch.linalg.svd(a).S,
        "solve": lambda a: torch.linalg.solve(a.mH @ a, a.mH),
        "eigh": lambda a: torch.linalg.eigh(a.mH @ a).eigenvalues,
        "exp of a conjugate": lambda a: a.mH.exp() * a.conj().T.sin(),
    }
    f = functions[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.complex128, generator=generator).requires_grad_()
    u = torch.ones_like(f(x.detach()))
    with reference():
        (expected,) = torch.autograd.grad(f(x), x, u)
    with pullback.record() as tape:
        y = f(x)
        inside = tape.grad(y, x, u)
    torch.testing.assert_close(y.detach(), f(x.detach()))
    torch.testing.assert_close(tape.grad(y, x, u), expected)
    torch.testing.assert_close(inside, expected)
