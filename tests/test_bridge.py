"""Beside autograd: what of ours belongs to PyTorch's graph, and that its derivatives there are right.

Every test calls `loss.backward()` or its like on a result of ours; what that runs is compared with PyTorch's own.
"""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import pullback
from catalogue import weighted_sum
from programs import REFERENCE, assert_equal, normal
from test_api_functions import BY_NAME

pytestmark = pytest.mark.reference

X, Y = normal(3), normal(3, seed=1)
W = normal(3, 3, seed=2)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def scalar(w: Tensor) -> Callable[..., Tensor]:
    return lambda x: ((w @ x).tanh() ** 3).sum() + (w * x).sin().prod()


def vector(w: Tensor) -> Callable[..., Tensor]:
    return lambda x: torch.stack([(w @ x).tanh().sum(), (x.exp() * w[0]).prod()])


def with_aux(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: (f(x), {"moved": x * 2, "same": x, "index": torch.arange(2)})


# Each takes an engine, a weight and an argument, and returns tensors that depend on both.
CALLS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "grad": lambda T, w, x: T.grad(scalar(w))(x),
    "grad with aux": lambda T, w, x: T.grad(with_aux(scalar(w)), has_aux=True)(x),
    "value_and_grad": lambda T, w, x: T.value_and_grad(scalar(w))(x),
    "value_and_grad of both": lambda T, w, x: T.value_and_grad(lambda w, x: scalar(w)(x), (0, 1))(w, x),
    "jacobian": lambda T, w, x: T.jacobian(vector(w))(x),
    "jacobian, forward": lambda T, w, x: T.jacobian(vector(w), order="forward")(x),
    "jacobian with aux": lambda T, w, x: T.jacobian(with_aux(vector(w)), has_aux=True)(x),
    "jacobian in rows": lambda T, w, x: T.jacobian(vector(w), chunk_size=1)(x),
    "jacobian in columns": lambda T, w, x: T.jacobian(vector(w), order="forward", chunk_size=2)(x),
    "hessian": lambda T, w, x: T.hessian(scalar(w))(x),
    "batch_jacobian": lambda T, w, x: batched(T, lambda rows: (rows * w).sin() * rows.sum(1, keepdim=True), w * x),
    "vjp": lambda T, w, x: pulled(T.vjp(vector(w), x), x[:2] * w[0, 0]),
    "vjp with aux": lambda T, w, x: pulled(T.vjp(with_aux(vector(w)), x, has_aux=True), x[:2]),
    "vjp of a cotangent": lambda T, w, x: pulled(T.vjp(vector(W), X), (w @ x)[:2]),
    "vjp of a repeated output": lambda T, w, x: pulled(T.vjp(lambda x: twice(vector(w)(x)), x), (x[:2], w[0, :2])),
    "jvp": lambda T, w, x: T.jvp(vector(w), (x,), (w[0] * x,)),
    "jvp of a tangent": lambda T, w, x: T.jvp(vector(W), (X,), (w @ x,))[1],
    "hvp": lambda T, w, x: T.hvp(scalar(w), (x,), (w[1],)),
    "grad of grad": lambda T, w, x: T.grad(lambda x: (T.grad(scalar(w))(x) * w[2]).sum())(x),
    "grad of a view": lambda T, w, x: T.grad(scalar(w.t()))(w.t()[0] * x.flip(0)),
}
LINEAR: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "linearize": lambda T, w, x: pushed(T, vector(w), x, w[0] * x),
    "linearize of a tangent": lambda T, w, x: pushed(T, vector(W), X, w @ x)[1],
}


def pushed(T: Any, f: Callable[..., Any], x: Tensor, tangent: Tensor) -> Any:
    if T is pullback:
        output, push_forward = T.linearize(f, x)
        return output, push_forward(tangent)
    return T.jvp(f, (x,), (tangent,))


def pulled(found: Any, cotangents: Any) -> Any:
    output, pull_back, *aux = found
    return output, pull_back(cotangents), *aux


def batched(T: Any, f: Callable[..., Tensor], rows: Tensor) -> Tensor:
    """Each row's Jacobian; the function keeps rows apart."""
    if T is pullback:
        return T.batch_jacobian(f)(rows)
    whole = T.jacobian(f)(rows)
    return torch.stack([whole[k, :, k] for k in range(len(rows))])


def twice(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, y


def differentiated(call: Callable[..., Any], T: Any, order: int = 2) -> list[Any]:
    """The results, and their derivatives in weight and argument by autograd, to some order."""
    w, x = leaf(W), leaf(X)
    found = [t for t in tree_leaves(call(T, w, x)) if t.is_floating_point()]
    results: list[Any] = list(found)
    total = weighted_sum([t for t in found if t.requires_grad])
    for _ in range(order):
        gradients = torch.autograd.grad(total, (w, x), create_graph=True)
        results += gradients
        total = weighted_sum(gradients)
    return [t.detach() for t in results]


@pytest.mark.parametrize("call", [*CALLS.values(), *LINEAR.values()], ids=[*CALLS, *LINEAR])
def test_derivatives_by_autograd(call: Callable[..., Any]) -> None:
    """Two derivatives by autograd over ours, which is third order over a gradient and fourth over a Hessian."""
    ours = differentiated(call, pullback)
    assert_equal(ours, differentiated(call, REFERENCE), rtol=1e-7, atol=1e-7)
    assert_equal(differentiated(call, pullback), ours)


def test_third_order_over_a_gradient() -> None:
    ours = differentiated(CALLS["grad"], pullback, 3)
    assert_equal(ours, differentiated(CALLS["grad"], REFERENCE, 3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("call", [*CALLS.values(), *LINEAR.values()], ids=[*CALLS, *LINEAR])
@pytest.mark.parametrize("requiring", ["weight", "argument"])
def test_no_result_is_outside(call: Callable[..., Any], requiring: str) -> None:
    """Each floating result that depends on what requires grad has a `grad_fn`; without grad mode none has."""
    w, x = (leaf(W), X) if requiring == "weight" else (W, leaf(X))
    ours = [t for t in tree_leaves(call(pullback, w, x)) if t.is_floating_point()]
    theirs = [t for t in tree_leaves(call(REFERENCE, w, x)) if t.is_floating_point()]
    assert len(ours) == len(theirs)
    assert all(o.grad_fn is not None for o, t in zip(ours, theirs, strict=True) if t.requires_grad)
    assert any(o.grad_fn is not None for o in ours)
    with torch.no_grad():
        plain = [t for t in tree_leaves(call(pullback, w, x)) if t.is_floating_point()]
    assert all(t.grad_fn is None for t in plain)
    assert all(torch.equal(o.detach(), p) for o, p in zip(ours, plain, strict=True))
    assert not any(t.requires_grad for t in tree_leaves(call(pullback, W, X)))


def test_whole_numbers_stay_outside() -> None:
    _, aux = pullback.grad(with_aux(scalar(W)), has_aux=True)(leaf(X))
    assert not aux["index"].requires_grad
    assert_equal(aux["index"], torch.arange(2))


SLOW = ("lstm", "gru", "rnn", "transformer", "attention", "cnn", "resnet")
CHOSEN = [c for c in BY_NAME.values() if not any(s in c.name for s in SLOW)]
MARKED = [pytest.param(c, marks=[pytest.mark.long] if k % 16 else [], id=str(c)) for k, c in enumerate(CHOSEN)]


@pytest.mark.parametrize("case", MARKED)
def test_catalogue(case: Any) -> None:
    """Gradients of the functions that the API is tested on, differentiated by autograd."""
    f, arguments = case.closed()
    argnums = tuple(range(len(arguments)))

    def second(T: Any) -> Any:
        leaves = [leaf(a) if a.is_contiguous() else a.clone().requires_grad_() for a in arguments]
        gradients = T.grad(lambda *xs: weighted_sum(f(*xs)), argnums)(*leaves)
        assert all(g.requires_grad for g in gradients) or T is torch.func
        if not any(g.requires_grad for g in gradients):
            return [torch.zeros_like(x) for x in leaves]
        weighted_sum(gradients).backward()
        return [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]

    assert_equal(second(pullback), second(torch.func), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("f", [lambda x: pullback.grad(scalar(W))(x), lambda x: pullback.jacobian(vector(W))(x)])
def test_against_differences(f: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(f, leaf(X))
    assert torch.autograd.gradgradcheck(f, leaf(X))


# ---------------------------------------------------------------- training

POINTS = normal(5, 2, seed=5)


def pinn_loss(T: Any, network: nn.Module) -> Tensor:
    """Δu + u³ = 1 inside, u = 0 at one point: second derivatives in the points, by Hessians."""
    u = lambda p: network(p).squeeze()  # noqa: E731
    residuals = [T.hessian(u)(p).diagonal().sum() + u(p) ** 3 - 1 for p in POINTS]
    slopes = [T.jacobian(u)(p).square().sum() for p in POINTS[:2]]
    return torch.stack(residuals).square().mean() + u(torch.zeros(2).double()) ** 2 + 0.1 * sum(slopes)


def trained(T: Any, loss: Callable[..., Tensor], steps: int = 10) -> list[Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 1)).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(T, network)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(value.detach())
    return [*losses, *(p.detach() for p in network.parameters())]


def test_a_physics_informed_network_is_trained() -> None:
    assert_equal(trained(pullback, pinn_loss), trained(REFERENCE, pinn_loss), rtol=0, atol=1e-9)


def test_a_physics_informed_network_is_trained_in_a_batch() -> None:
    """The same by `vmap` of our Hessian, which autograd then sees operator by operator."""

    def loss(T: Any, network: nn.Module) -> Tensor:
        each = torch.func.vmap(T.hessian(lambda p: network(p).squeeze()))(POINTS)
        return (each.diagonal(dim1=1, dim2=2).sum(1) + network(POINTS).squeeze(1) - 1).square().mean()

    assert_equal(trained(pullback, loss), trained(REFERENCE, loss), rtol=0, atol=1e-9)


class Conservative(nn.Module):
    """A field that is the negative gradient of a learned potential: our transform as a layer."""

    def __init__(self, T: Any) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(2, 2), nn.Linear(2, 1)
        self.potential = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1))
        self.force = T.grad(lambda x: -self.potential(x).sum())

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.force(self.enter(x).tanh()).sin())


def test_a_layer_of_a_module() -> None:
    def run(T: Any) -> list[Tensor]:
        torch.manual_seed(1)
        network = Conservative(T).double()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            functional.mse_loss(network(POINTS), POINTS.sum(1, keepdim=True)).backward()
            optimizer.step()
        return [p.detach() for p in network.parameters()]

    assert_equal(run(pullback), run(REFERENCE), rtol=0, atol=1e-9)


def test_a_step_in_mixed_precision_of_types() -> None:
    w, x = leaf(W.float()), leaf(X)
    f = lambda x: ((w.double() @ x).sin().float() * 2).sum()  # noqa: E731
    ours = torch.autograd.grad(pullback.grad(f)(x).square().sum(), (w, x))
    theirs = torch.autograd.grad(torch.func.grad(f)(x).square().sum(), (w, x))
    assert_equal(list(ours), list(theirs), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- draws and buffers


class ByHand(nn.BatchNorm1d):
    """PyTorch's own has wrong third derivatives."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, variance = x.mean(0), x.var(0, correction=0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(x.var(0), 0.1)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


class Noisy(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(3, 6), norm(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.dropout(self.norm(self.enter(x)).tanh(), 0.4, self.training)
        return self.leave(h + 0.1 * torch.randn_like(h)).exp()


NOISY: dict[str, Callable[[Any, nn.Module, Tensor], Any]] = {
    "grad": lambda T, n, x: T.grad(lambda x: n(x).sum())(x),
    "jacobian in rows": lambda T, n, x: T.jacobian(lambda x: n(x)[:2], chunk_size=3)(x),
    "vjp": lambda T, n, x: pulled(T.vjp(n, x), x[:, :2]),
    "jvp": lambda T, n, x: T.jvp(n, (x,), (x.cos(),)),
}


@pytest.mark.parametrize("call", NOISY.values(), ids=NOISY)
@pytest.mark.parametrize("training", [True, False])
def test_draws_are_kept_and_buffers_written_once(call: Callable[..., Any], training: bool) -> None:
    """Against autograd over autograd, with the same draws."""

    def run(T: Any) -> list[Tensor]:
        torch.manual_seed(0)
        network, x = Noisy(nn.BatchNorm1d if T is pullback else ByHand).double().train(training), normal(5, 3, seed=7)
        network.norm.running_mean.normal_()
        found = call(T, network, leaf(x))
        state = torch.get_rng_state()
        weighted_sum(tree_leaves(found)).backward()
        assert torch.equal(torch.get_rng_state(), state)
        return [*map(torch.detach, tree_leaves(found)), *(p.grad for p in network.parameters()), *network.buffers()]

    assert_equal(run(pullback), run(PLAIN), rtol=1e-7, atol=1e-8)
    assert_equal(run(pullback), run(PLAIN), rtol=1e-7, atol=1e-8)


class Plain:
    """Transforms by autograd alone: `torch.func` refuses functions that draw or write into a buffer."""

    @staticmethod
    def grad(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: torch.autograd.grad(f(x), x, create_graph=True)[0]

    @staticmethod
    def jacobian(f: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(x: Tensor) -> Tensor:
            y = f(x)
            rows = [torch.autograd.grad(e, x, create_graph=True)[0] for e in y.flatten()]
            return torch.stack(rows).reshape(y.shape + x.shape)

        return run

    @staticmethod
    def vjp(f: Callable[..., Any], x: Tensor) -> Any:
        y = f(x)
        return y, lambda c: torch.autograd.grad(y, x, c, create_graph=True)

    @staticmethod
    def jvp(f: Callable[..., Any], primals: Any, tangents: Any) -> Any:
        y = f(*primals)
        dual = torch.ones_like(y).requires_grad_()
        (pulled_back,) = torch.autograd.grad(y, primals[0], dual, create_graph=True)
        return y, torch.autograd.grad(pulled_back, dual, tangents[0], create_graph=True)[0]


PLAIN = Plain()


def test_a_buffer_that_depends_on_parameters_is_refused() -> None:
    total, w = torch.zeros(3).double(), leaf(W)

    def f(x: Tensor) -> Tensor:
        y = w @ x
        total.add_(y)
        return y.square().sum()

    with pytest.raises(pullback.AutogradError, match=r"writes into total .*in place.*no_grad"):
        pullback.grad(f)(X)
    assert_equal(total, torch.zeros(3).double())
    with torch.no_grad():
        pullback.grad(f)(X)
    assert_equal(total, (w @ X).detach())


def test_a_detached_write_into_a_buffer_is_done_once() -> None:
    total, w = torch.zeros(3).double(), leaf(W)

    def f(x: Tensor) -> Tensor:
        y = w @ x
        total.add_(y.detach())
        return (y * total).square().sum()

    def run(T: Any) -> list[Tensor]:
        w.grad = None
        total.zero_()
        T.grad(f)(leaf(X)).square().sum().backward()
        return [w.grad, total.clone()]

    assert_equal(run(pullback), run(PLAIN))


def test_complex_numbers() -> None:
    """By `autograd` over ours, and `torch.func` around ours, in PyTorch's convention for complex gradients."""

    def first(T: Any, w: Tensor, z: Tensor) -> Tensor:
        return T.grad(lambda z: (w * z.exp() * z.sum()).abs().square().sum())(z)

    def run(T: Any) -> list[Tensor]:
        w, z = (leaf(torch.complex(normal(3, seed=k), normal(3, seed=k + 1)) / 2) for k in (3, 5))
        found = first(T, w, z)
        (found * z).abs().sum().backward()
        each = torch.func.vmap(lambda z: first(T, w.detach(), z))(torch.stack([z, w]).detach())
        again = torch.func.grad(lambda z: first(T, w.detach(), z).abs().sum())(z.detach())
        return [found.detach(), w.grad, z.grad, each, again]

    assert_equal(run(pullback), run(REFERENCE), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("training", [True, False])
def test_random_slopes(training: bool) -> None:
    def run(T: Any) -> list[Tensor]:
        torch.manual_seed(0)
        w = leaf(W)
        T.grad(lambda x: functional.rrelu(w @ x, training=training).exp().sum())(leaf(X)).square().sum().backward()
        return [w.grad]

    assert_equal(run(pullback), run(PLAIN), rtol=1e-7, atol=1e-8)


def test_attention() -> None:
    def run(T: Any) -> list[Tensor]:
        w, x = leaf(W), leaf(normal(1, 2, 4, 3))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            f = lambda x: functional.scaled_dot_product_attention(x @ w, x, x).exp().sum()  # noqa: E731
            T.grad(f)(x).square().sum().backward()
        return [w.grad, x.grad]

    assert_equal(run(pullback), run(REFERENCE), rtol=1e-7, atol=1e-8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        w, x = leaf(W), leaf(normal(1, 2, 4, 3))
        f = lambda x: functional.scaled_dot_product_attention(x @ w, x, x).exp().sum()  # noqa: E731
        pullback.grad(f)(x).square().sum().backward()
        assert_equal([w.grad, x.grad], run(REFERENCE), rtol=1e-7, atol=1e-8)


def test_a_draw_that_depends_on_a_tensor_is_refused() -> None:
    rate = leaf(torch.ones(3))
    f = lambda x: (x * torch._standard_gamma(rate)).sum()  # noqa: E731
    with pytest.raises(pullback.AutogradError, match=r"aten\._standard_gamma.*test_bridge\.py"):
        pullback.grad(f)(torch.ones(3))


# ---------------------------------------------------------------- autograd's ways


def test_it_is_let_go_and_retained_as_any_graph() -> None:
    w = leaf(W)
    y = pullback.grad(scalar(w))(X).sum()
    y.backward(retain_graph=True)
    first = w.grad.clone()
    y.backward()
    assert_equal(w.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_a_change_in_place_is_noticed() -> None:
    w, v = leaf(W), normal(3, seed=9)
    y = pullback.grad(lambda x: scalar(w)(x * v))(X).sum()
    v.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_change_between_vjp_and_its_pull_back_is_noticed() -> None:
    w, v = leaf(W), normal(3, seed=9)
    _, pull_back = pullback.vjp(lambda x: (w @ x) * v, X)
    v.mul_(2)
    with pytest.raises(pullback.ArgumentError, match="changed in place"):
        pull_back(Y)


def test_hooks_run() -> None:
    w, seen = leaf(W), []
    w.register_hook(lambda g: seen.append("leaf"))
    w.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    y = pullback.grad(scalar(w))(X)
    y.register_hook(lambda g: seen.append("result") or g * 2)
    y.sum().backward()
    assert seen == ["result", "leaf", "accumulated"]
    expected = torch.autograd.grad(torch.func.grad(scalar(w))(X).sum() * 2, w)[0]
    assert_equal(w.grad, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant: bool) -> None:
    def run(T: Any, around: Callable[..., Tensor]) -> list[Tensor]:
        w, x = leaf(W), leaf(X)
        block = lambda x: T.grad(scalar(w))(x) + T.jacobian(vector(w))(x)[0]  # noqa: E731
        y = around(block, around(block, x, use_reentrant=reentrant), use_reentrant=reentrant)
        y.sum().backward()
        return [w.grad, x.grad]

    assert_equal(run(pullback, checkpoint), run(REFERENCE, lambda f, x, **_: f(x)), rtol=1e-7, atol=1e-7)


def test_saved_tensors_may_be_put_elsewhere() -> None:
    w = leaf(W)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.numpy(force=True), torch.from_numpy):
        y = pullback.grad(scalar(w))(leaf(X))
    assert packed
    y.sum().backward()
    expected = torch.autograd.grad(torch.func.grad(scalar(w))(X).sum(), w)[0]
    assert_equal(w.grad, expected)


def test_cotangents_in_a_batch() -> None:
    x = leaf(X)
    y = pullback.grad(scalar(W))(x)
    (rows,) = torch.autograd.grad(y, x, torch.eye(3).double(), is_grads_batched=True)
    assert_equal(rows, pullback.hessian(scalar(W))(X))
    found = torch.autograd.functional.jacobian(pullback.grad(scalar(W)), X, vectorize=True)
    assert_equal(found, rows)


def test_only_what_is_needed() -> None:
    w, x = leaf(W), leaf(X)
    value, gradient = pullback.value_and_grad(scalar(w))(x)
    other = leaf(Y)
    assert torch.autograd.grad(gradient.sum(), (other,), retain_graph=True, allow_unused=True) == (None,)
    assert_equal(torch.autograd.grad(value, x, retain_graph=True)[0], gradient.detach())
    (only,) = torch.autograd.grad(gradient.sum(), w)
    assert_equal(only, torch.autograd.grad(torch.func.grad(scalar(w))(x).sum(), w)[0])


def test_a_cotangent_of_any_layout() -> None:
    x = leaf(normal(3, 2, seed=6))
    for c in (normal(2, 3).t(), torch.ones(()).double().expand(3, 2), normal(6, 4)[::2, ::2]):
        y = pullback.grad(lambda x: (x.exp() * x.sum()).sum())(x)
        z = torch.func.grad(lambda x: (x.exp() * x.sum()).sum())(x)
        ours, theirs = (torch.autograd.grad(t, x, c, create_graph=True)[0] for t in (y, z))
        assert_equal(ours.detach(), theirs.detach())
        second = [torch.autograd.grad(t, x, c)[0] for t in (ours, theirs)]
        assert_equal(second[0], second[1])


def test_backward_in_another_thread() -> None:
    w = leaf(W)
    y = pullback.grad(scalar(w))(X).sum()
    thread = threading.Thread(target=y.backward)
    thread.start()
    thread.join()
    assert_equal(w.grad, torch.autograd.grad(torch.func.grad(scalar(w))(X).sum(), w)[0])


def test_a_result_that_is_an_argument() -> None:
    """An argument that is returned through aux stays as it was, and its alias belongs to the graph."""
    x, y = leaf(X), normal(3)
    gradient, aux = pullback.grad(lambda x: ((x * y).sum(), [x, y, y]), has_aux=True)(x)
    assert not y.requires_grad
    assert x.is_leaf
    assert aux[0].grad_fn is not None
    (aux[0] * gradient).sum().backward()
    assert_equal(x.grad, y)


def test_a_result_may_be_changed_in_place() -> None:
    x = leaf(X)
    y = pullback.grad(scalar(W))(x)
    y.mul_(2)
    assert_equal(torch.autograd.grad(y.sum(), x)[0], 2 * pullback.hessian(scalar(W))(X).sum(0), rtol=1e-7)


def test_views_of_one_another() -> None:
    x = leaf(X)
    _, (h, t) = pullback.grad(lambda x: (x.sum(), (h := x.exp() * 2, h[:2])), has_aux=True)(x)
    (h.sum() + (t * t).sum()).backward()
    expected = leaf(X)
    g = expected.exp() * 2
    (g.sum() + (g[:2] * g[:2]).sum()).backward()
    assert_equal(x.grad, expected.grad)


def test_what_has_no_second_derivative_is_refused_in_backward() -> None:
    x = leaf(normal(1, 2, 2, 3))
    f = lambda x: functional.interpolate(x, scale_factor=2, mode="bicubic").square().sum()  # noqa: E731
    pullback.grad(f)(x).sum().backward()  # a linear map has one
    y = pullback.grad(lambda x: torch.logcumsumexp(x, 0).sum())(leaf(X))
    expected = torch.func.grad(lambda x: torch.logcumsumexp(x, 0).sum())(X)
    assert_equal(y.detach(), expected)


def test_nothing_is_kept_alive() -> None:
    w, x = leaf(W), leaf(X)
    gc.disable()
    try:
        for call in (CALLS["grad"], CALLS["vjp"], CALLS["hessian"]):
            found = [t for t in tree_leaves(call(pullback, w, x)) if t.requires_grad]
            sum(t.sum() for t in found).backward()
            references = [weakref.ref(t) for t in found]
            del found
            assert not any(r() is not None for r in references)
    finally:
        gc.enable()


# ---------------------------------------------------------------- beside PyTorch's other transforms


def normed(T: Any, w: Tensor) -> Callable[[Tensor], Tensor]:
    """With a norm, whose statistics PyTorch would take for constants in our program, as it does in its own third order.

    There the norm is written by hand.
    """
    norm = (lambda h: functional.layer_norm(h, (3,))) if T is pullback else by_hand
    return lambda x: (norm(w * x).tanh() @ x.softmax(0)).square().sum()


def by_hand(h: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


MIXED: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "grad": lambda T, w, x: torch.func.grad(lambda x: T.grad(scalar(w))(x).square().sum())(x),
    "grad in the weight": lambda T, w, x: torch.func.grad(lambda w: T.grad(scalar(w))(x).square().sum())(w),
    "jvp": lambda T, w, x: torch.func.jvp(lambda x: T.grad(scalar(w))(x), (x,), (w[0],)),
    "jacrev": lambda T, w, x: torch.func.jacrev(lambda x: T.value_and_grad(scalar(w))(x))(x),
    "jacfwd": lambda T, w, x: torch.func.jacfwd(lambda x: T.jacobian(vector(w))(x))(x),
    "vmap": lambda T, w, x: torch.func.vmap(lambda r: T.hessian(scalar(w))(r * x))(w),
    "vmap of a vjp": lambda T, w, x: torch.func.vmap(lambda r: pulled(T.vjp(vector(w), r * x), r[:2]))(w),
    "vmap of a pull back": lambda T, w, x: torch.func.vmap(T.vjp(vector(w), x)[1])(w[:, :2]),
    "grad of a norm": lambda T, w, x: torch.func.grad(lambda x: T.grad(normed(T, w))(x).square().sum())(x),
    "jvp of a norm": lambda T, w, x: torch.func.jvp(T.grad(normed(T, w)), (x,), (w[0],)),
    "vmap of a norm": lambda T, w, x: torch.func.vmap(lambda r: T.grad(normed(T, w))(r * x))(w),
    "vmap of vmap": lambda T, w, x: torch.func.vmap(torch.func.vmap(T.grad(normed(T, w))), 1, 2)(w.expand(2, 3, 3) * x),
    "grad of vmap": lambda T, w, x: torch.func.grad(
        lambda x: torch.func.vmap(T.grad(normed(T, w)))(w * x).square().sum()
    )(x),
    "vmap of grad": lambda T, w, x: torch.func.vmap(
        torch.func.grad(lambda r: T.grad(normed(T, w))(r * x).square().sum()), randomness="same"
    )(w),
    "jacfwd of vmap": lambda T, w, x: torch.func.jacfwd(lambda x: torch.func.vmap(T.grad(normed(T, w)))(w * x))(x),
    "hessian": lambda T, w, x: torch.func.hessian(lambda x: T.jvp(normed(T, w), (x,), (x,))[1])(x),
    "with aux": lambda T, w, x: torch.func.vmap(T.grad(with_aux(normed(T, w)), has_aux=True))(w * x),
    "linearize": lambda T, w, x: torch.func.vmap(lambda r: pushed(T, vector(w), x, r)[1])(w),
    "vjp": lambda T, w, x: torch.func.vjp(lambda w, x: T.jacobian(vector(w))(x), w, x)[1](w[:2] * x),
}


@pytest.mark.parametrize("call", MIXED.values(), ids=MIXED)
def test_inside_transforms_of_pytorch(call: Callable[..., Any]) -> None:
    ours = differentiated(call, pullback, 1)
    assert_equal(ours, differentiated(call, REFERENCE, 1), rtol=1e-6, atol=1e-6)


def test_draws_inside_transforms_of_pytorch() -> None:
    """Dropout and a norm: what is drawn differs from row to row, and is what the derivative is of."""
    w, rows = leaf(W), normal(4, 3, seed=8)

    def f(x: Tensor) -> Tensor:
        return (functional.dropout(functional.layer_norm(w @ x, (3,)).exp(), 0.5) ** 2).sum()

    torch.manual_seed(0)
    found = torch.func.vmap(pullback.value_and_grad(f), randomness="different")(rows)
    torch.manual_seed(0)
    values = torch.func.vmap(f, randomness="different")(rows)
    assert len(found[0].unique()) == 4
    ours = torch.autograd.grad(found[0].sum(), w, retain_graph=True)[0]
    assert_equal(found[0].detach(), values.detach())
    assert_equal(ours, torch.autograd.grad(values.sum(), w)[0])
    assert torch.isfinite(torch.autograd.grad(found[1].square().sum(), w)[0]).all()


@pytest.mark.parametrize("name", ["grad", "vjp"])
def test_draws_of_a_tensor_are_refused_inside_transforms(name: str) -> None:
    f = lambda x: (x * torch._standard_gamma(x.detach() + 1)).sum()  # noqa: E731
    call = pullback.grad(f) if name == "grad" else lambda x: pullback.vjp(f, x)[0]
    with pytest.raises(pullback.AutogradError, match="_standard_gamma"):
        torch.func.vmap(call, randomness="different")(torch.ones(2, 3))


def test_draws_of_a_vjp_inside_transforms() -> None:
    w, rows = leaf(W), normal(4, 3, seed=8)
    f = lambda x: functional.dropout((w @ x).exp(), 0.5)  # noqa: E731

    def each(x: Tensor) -> Any:
        output, pull_back = pullback.vjp(f, x)
        return output, pull_back(torch.ones_like(output))[0]

    outputs, gradients = torch.func.vmap(each, randomness="different")(rows)
    kept = (outputs != 0).double() * 2
    assert_equal(outputs.detach(), (kept * (rows @ w.t()).exp()).detach())
    assert_equal(gradients.detach(), ((kept * (rows @ w.t()).exp()) @ w).detach())
    ours = torch.autograd.grad(gradients.square().sum(), w)[0]
    expected = torch.autograd.grad(((kept * (rows @ w.t()).exp()) @ w).square().sum(), w)[0]
    assert_equal(ours, expected)


def test_dual_numbers() -> None:
    def pushed_by_duals(T: Any) -> Tensor:
        with forward_ad.dual_level():
            y = T.grad(lambda x: functional.layer_norm(scalar(W)(x) * x, (3,)).exp().sum())(forward_ad.make_dual(X, Y))
            return forward_ad.unpack_dual(y).tangent

    pullback.grad(lambda x: x.sum())(X)
    assert_equal(pushed_by_duals(pullback), pushed_by_duals(REFERENCE), rtol=1e-6, atol=1e-6)


def test_inside_our_own_trace_autograd_is_not_asked() -> None:
    """A tensor of the surroundings that requires grad has its derivative through the outer program."""
    w, x = leaf(W), leaf(X)
    inner = lambda x: pullback.grad(scalar(w))(Y).sum() * x.sum()  # noqa: E731
    theirs = lambda x: torch.func.grad(scalar(w))(Y).sum() * x.sum()  # noqa: E731
    expected = torch.autograd.grad(torch.func.grad(theirs)(x).sum(), w)[0]
    assert_equal(torch.autograd.grad(pullback.grad(inner)(x).sum(), w)[0], expected)
