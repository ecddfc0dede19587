"""What stands around a training step under a record: optimisers, hooks, scaling, clipping; as with autograd."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback import RecordError
from support import reference

SETTINGS: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.05, "momentum": 0.9}, "LBFGS": {"lr": 0.1, "max_iter": 3}}
NEEDS_MORE = {"SparseAdam": "sparse gradients, which only sparse embeddings make"}
OPTIMISERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Sigmoid(), nn.Linear(3, 2)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)
    return x.double(), y.double()


def parameters_of(model: nn.Module, name: str) -> list[Tensor]:
    return [p for p in model.parameters() if p.dim() == 2] if name == "Muon" else list(model.parameters())


@pytest.mark.parametrize("name", sorted(OPTIMISERS.keys() - NEEDS_MORE.keys()))
def test_every_optimiser(name: str) -> None:
    ours, theirs = network(), network()
    x, y = batch()
    results = []
    for model, is_ours in ((ours, True), (theirs, False)):
        optimiser = OPTIMISERS[name](parameters_of(model, name), **SETTINGS.get(name, {"lr": 0.01}))

        def closure(
            model: nn.Module = model, optimiser: torch.optim.Optimizer = optimiser, is_ours: bool = is_ours
        ) -> Tensor:
            optimiser.zero_grad()
            if is_ours:
                with torch.enable_grad(), pullback.record() as tape:
                    loss = nn.functional.mse_loss(model(x), y)
                tape.backward(loss)
                return loss
            with reference(), torch.enable_grad():
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                return loss.detach()

        results.append([float(optimiser.step(closure)) for _ in range(5)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_exceptions_exist() -> None:
    assert OPTIMISERS.keys() >= NEEDS_MORE.keys()


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, run: Callable[[Callable[[], Tensor]], None]) -> None:
    x, y = batch()
    optimiser.zero_grad()
    for part in (slice(0, 3), slice(3, 5)):  # two accumulations
        run(lambda part=part: nn.functional.mse_loss(model(x[part]), y[part], reduction="sum"))  # type: ignore[misc]
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimiser.step()


def _ours(loss: Callable[[], Tensor]) -> None:
    with pullback.record() as tape:
        value = loss()
    tape.backward(value)


def _theirs(loss: Callable[[], Tensor]) -> None:
    with reference():
        loss().backward()


def test_accumulation_and_clipping() -> None:
    ours, theirs = network(), network()
    first, second = torch.optim.AdamW(ours.parameters()), torch.optim.AdamW(theirs.parameters())
    for _ in range(4):
        _step(ours, first, _ours)
        _step(theirs, second, _theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_whole_iteration_in_the_block() -> None:
    ours, theirs = network(), network()
    x, y = batch()
    first, second = torch.optim.SGD(ours.parameters(), lr=0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
    with pullback.record() as tape:
        for _ in range(4):
            first.zero_grad()
            loss = nn.functional.mse_loss(ours(x), y)
            tape.backward(loss)
            first.step()
    with reference():
        for _ in range(4):
            second.zero_grad()
            nn.functional.mse_loss(theirs(x), y).backward()
            second.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_gradient_scaler() -> None:
    ours, theirs = network().float(), network().float()
    x, y = (t.float() for t in batch())
    models = []
    for model, is_ours in ((ours, True), (theirs, False)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimiser.zero_grad()
            if is_ours:
                with pullback.record() as tape:
                    scaled = scaler.scale(nn.functional.mse_loss(model(x), y))
                tape.backward(scaled)
            else:
                with reference():
                    scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
            scaler.unscale_(optimiser)
            scaler.step(optimiser)
            scaler.update()
        models.append(list(model.parameters()))
    for a, b in zip(*models, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast() -> None:
    ours, theirs = network().float(), network().float()
    x, y = (t.float() for t in batch())
    for _ in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                ours(x)  # casts that a record must not take for its own
            for model, run in ((ours, _ours), (theirs, _theirs)):
                model.zero_grad()
                run(lambda model=model: nn.functional.mse_loss(model(x).float(), y) + model(x).float().mean())  # type: ignore[misc]
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.grad is not None
            torch.testing.assert_close(a.grad, b.grad, rtol=5e-2, atol=5e-3)


def test_frozen_parameters_and_those_that_are_not_used() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    spare = nn.Parameter(torch.ones(2))
    x, y = batch()
    _ours(lambda: nn.functional.mse_loss(model(x), y))
    assert model[0].weight.grad is None and spare.grad is None and model[2].weight.grad is not None


# ---------------------------------------------------------------- hooks


def _with_hooks(model: nn.Module, events: list[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda g, name=name: events.append(f"hook {name}") or g * 2)
        parameter.register_hook(lambda g, name=name: events.append(f"second {name} {g.abs().sum():.8f}"))
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: events.append(f"after {name} {p.grad.abs().sum():.8f}")
        )


def test_hooks_of_leaves_run_in_pytorch_s_order() -> None:
    x, y = batch()
    logs: list[list[str]] = []
    for run in (_ours, _theirs):
        model, events = network(), []  # type: ignore[var-annotated]
        _with_hooks(model, events)
        for _ in range(4):
            run(lambda model=model: nn.functional.mse_loss(model(x), y))  # type: ignore[misc]
        logs.append(events)
    assert logs[0] == logs[1] and len(logs[0]) == 4 * 18


def test_hooks_of_results_run_in_pytorch_s_order() -> None:
    x, y = batch()
    logs, kept = [], []
    for run in (_ours, _theirs):
        model, events = network(), []  # type: ignore[var-annotated]
        _with_hooks(model, events)

        def loss(model: nn.Module = model, events: list[str] = events) -> Tensor:
            hidden = model[1](model[0](x))  # type: ignore[index]
            hidden.register_hook(lambda g: events.append(f"hidden {g.abs().sum():.8f}") or g * 3)
            removed = hidden.register_hook(lambda g: events.append("removed"))
            removed.remove()
            hidden.retain_grad()
            kept.append(hidden)
            result = nn.functional.mse_loss(model[4](model[3](model[2](hidden))), y)  # type: ignore[index]
            result.register_hook(lambda g: events.append(f"loss {g.item()}"))
            return result

        for _ in range(4):
            run(loss)
        logs.append(events)
    assert logs[0] == logs[1]
    torch.testing.assert_close(kept[0].grad, kept[4].grad)


def test_hooks_change_what_grad_returns_as_in_autograd() -> None:
    x = torch.ones(3, requires_grad=True)
    x.register_hook(lambda g: g * 5)
    x.register_post_accumulate_grad_hook(lambda p: pytest.fail("only backward accumulates"))

    def f() -> tuple[Tensor, Tensor]:
        h = x * 2
        h.register_hook(lambda g: g * 7)
        return h, (h * h).sum()

    with pullback.record() as tape:
        h, loss = f()
    ours = tape.grad(loss, (x, h))
    with reference():  # one by one: asked for both, PyTorch 2.13 leaves the hook out of the second
        h, loss = f()
        theirs = (*torch.autograd.grad(loss, x, retain_graph=True), *torch.autograd.grad(loss, h))
    torch.testing.assert_close(ours, theirs)


def test_a_hook_that_returns_something_else() -> None:
    x = torch.ones(3, requires_grad=True)
    x.register_hook(lambda g: g.sum())
    with pullback.record() as tape:
        loss = (x * x).sum()
    with pytest.raises(RecordError, match=r"returned float32\[\] in place of a gradient float32\[3\]"):
        tape.backward(loss)


def test_an_optimiser_step_inside_a_hook() -> None:
    """The update in each parameter's own hook, which frees gradients early."""
    models = [network(), network()]
    x, y = batch()
    for model, run in zip(models, (_ours, _theirs), strict=True):
        for parameter in model.parameters():

            def update(p: Tensor) -> None:
                assert p.grad is not None
                with torch.no_grad():
                    p -= 0.1 * p.grad
                p.grad = None

            parameter.register_post_accumulate_grad_hook(update)
        run(lambda model=model: nn.functional.mse_loss(model(x), y))  # type: ignore[misc]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


HOOKS_OF_MODULES: dict[str, Callable[[nn.Module], Any]] = {
    "full": lambda m: m.register_full_backward_hook(lambda *_: None),
    "before": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "old": lambda m: m.register_backward_hook(lambda *_: None),
    "global": lambda m: nn.modules.module.register_module_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("kind", HOOKS_OF_MODULES)
@pytest.mark.parametrize("place", [0, 1, 4])
def test_backward_hooks_of_modules_are_refused(kind: str, place: int) -> None:
    model = network()
    handle = HOOKS_OF_MODULES[kind](model[place])
    try:
        with pullback.record(), pytest.raises(RecordError, match=r"backward hooks[\s\S]*test_record_training.py"):
            model(batch()[0])
    finally:
        handle.remove()


def test_forward_hooks_are_followed() -> None:
    models = [network(), network()]
    x, y = batch()
    for model, run in zip(models, (_ours, _theirs), strict=True):
        model[1].register_forward_hook(lambda module, args, result: result * 2)
        run(lambda model=model: nn.functional.mse_loss(model(x), y))  # type: ignore[misc]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_copy_of_a_trained_model() -> None:
    model = network()
    x, y = batch()
    _ours(lambda: nn.functional.mse_loss(model(x), y))
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
