"""Functions that bring their own backward: it is used, at every order, and refused where it is no Jacobian."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import pullback
from pullback.verification import verify
from support import reference

X = torch.tensor([[0.3, -0.7, 1.1], [0.2, 0.5, -0.4]], dtype=torch.float64)
W = torch.tensor([[0.5, -0.2], [0.1, 0.9], [-0.6, 0.3]], dtype=torch.float64)


class Exponential(Function):
    """Saves its result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float = 2.0) -> Tensor:
        y = (rate * x).exp()
        ctx.save_for_backward(y)
        ctx.rate = rate
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return g * y * ctx.rate, None


class Attribute(Function):
    """Keeps an argument as an attribute, and a tensor that was computed on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x, ctx.sine = x, x.sin()
        return ctx.sine * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.x.cos() * ctx.x + ctx.sine)


class Twice(Function):
    """Two results, two arguments, a separate context; a backward that is seven times too large in one of them."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x @ w, x.sum(), x.argmax()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return 7 * (g @ w.t()) + h, x.t() @ g


class StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Reversed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Broadcast(Function):
    """Returns a cotangent that autograd sums to the argument's shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor) -> Tensor:
        return x * b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g * 2, g * 3


class Clipped(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-1, 1)


class Shifted(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g + 1


class Once(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].exp()


class ForVmap(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0] * 3


class Nested(Function):
    """A backward that calls another function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return Exponential.apply(ctx.saved_tensors[0]) * g


@torch.library.custom_op("pullback_tests::cube", mutates_args=())
def cube(x: Tensor, scale: float = 1.0) -> Tensor:
    return scale * x**3


@cube.register_fake
def _(x: Tensor, scale: float = 1.0) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.scale = inputs[1]


def _pull(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
    return g * 3 * ctx.scale * ctx.saved_tensors[0] ** 2, None


cube.register_autograd(_pull, setup_context=_save)
aliased = Exponential.apply


def into_views(x: Tensor) -> Tensor:
    z = torch.zeros(2, 3, dtype=x.dtype)
    z[0] = Exponential.apply(x)[1]
    return (z.mul_(2) * Attribute.apply(x)).sum()


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "saves its result": lambda x: (Exponential.apply(x.sin(), 1.5) ** 2).sum(),
    "default argument": lambda x: (Exponential.apply(x) * x).sum(),
    "attributes": lambda x: (Attribute.apply(x) ** 2).sum(),
    "several results": lambda x: (Twice.apply(x.cos(), W)[0] ** 2).sum() * Twice.apply(x, W)[1],
    "captured tensor": lambda x: Twice.apply(x * x, W.sin())[0].sin().sum(),
    "straight through": lambda x: (StraightThrough.apply(3 * x) * x).sum(),
    "reversed": lambda x: (Reversed.apply(x) * x.exp()).sum(),
    "summed to shape": lambda x: (Broadcast.apply(x, x[0]) * x).sum(),
    "in another's backward": lambda x: (Nested.apply(x) * x).sum(),
    "one after the other": lambda x: (Exponential.apply(Attribute.apply(Reversed.apply(x)), 0.5) * x).sum(),
    "custom operator": lambda x: (cube(x.sin(), 2.0) * x).sum(),
    "under another name": lambda x: (aliased(x) * x).sum(),
    "in-place writes": into_views,
    "checkpoint": lambda x: checkpoint(lambda x: x.sin().exp(), x, use_reentrant=False).sum(),
    "reentrant checkpoint": lambda x: checkpoint(lambda x: x.sin().exp() * x, x, use_reentrant=True).sum(),
}
UNDIFFERENTIABLE_TWICE = ("reentrant checkpoint",)  # by PyTorch


def theirs(f: Callable[[Tensor], Tensor], twice: bool = True) -> tuple[Tensor, Tensor]:
    """The gradient by autograd, and the gradient's derivative along X."""
    with reference():
        x = X.clone().requires_grad_()
        if not twice:
            f(x).backward()
            assert x.grad is not None
            return x.grad, x.grad
        (gradient,) = torch.autograd.grad(f(x), x, create_graph=True)
        (product,) = torch.autograd.grad((gradient * X).sum(), x)
    return gradient.detach(), product


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_order(name: str) -> None:
    f, twice = FUNCTIONS[name], name not in UNDIFFERENTIABLE_TWICE
    gradient, product = theirs(f, twice)
    torch.testing.assert_close(pullback.grad(f)(X), gradient)
    torch.testing.assert_close(pullback.vjp(f, X)[1](torch.ones((), dtype=torch.float64))[0], gradient)
    if twice:  # the Hessian need not be symmetric, where the author's derivative is not that of the function
        torch.testing.assert_close(pullback.vjp(pullback.grad(f), X)[1](X)[0], product)
        hessian = pullback.hessian(f)(X)
        torch.testing.assert_close(torch.tensordot(X, hessian, 2), product)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_records_call_the_author_s_backward(name: str) -> None:
    f, twice = FUNCTIONS[name], name not in UNDIFFERENTIABLE_TWICE
    gradient, product = theirs(f, twice)
    for _ in range(4):  # interpreted, and compiled where no author's backward is on the way
        x = X.clone().requires_grad_()
        with pullback.record() as tape:
            loss = f(x)
        torch.testing.assert_close(tape.grad(loss, x), gradient)
        tape.backward(loss)
        torch.testing.assert_close(x.grad, gradient)
    if twice:
        x = X.clone().requires_grad_()
        with pullback.record() as outer:
            with pullback.record() as inner:
                loss = f(x)
            first = inner.grad(loss, x)
            along = (first * X).sum()
        torch.testing.assert_close(outer.grad(along, x, allow_unused=True), product)


def test_a_recorded_function_s_backward_is_run_anew_each_time() -> None:
    factor = [1.0]

    class Scaled(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, unused: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            return g * factor[0], None

    x, unused = X.clone().requires_grad_(), X.clone().requires_grad_()
    for factor[0] in (1.0, 2.0, 3.0, 4.0):
        with pullback.record() as tape:
            loss = Scaled.apply(x, unused).sum()
        assert tape.grad(loss, [x])[0].eq(factor[0]).all()
    tape.backward(loss)
    assert unused.grad is None


def test_a_saved_tensor_that_was_changed_is_refused_in_a_record() -> None:
    x = X.clone().requires_grad_()
    with pullback.record() as tape:
        y = Exponential.apply(x)
        loss = y.sum()
        y.mul_(2)
    with pytest.raises(pullback.RecordError, match=r"Exponential.*test_own_derivatives.py.*changed in place"):
        tape.grad(loss, x)


def test_once_differentiable_is_honoured_in_a_record() -> None:
    x = X.clone().requires_grad_()
    with pullback.record(), pullback.record() as inner:
        loss = Once.apply(x).sum()
        with pytest.raises(pullback.RecordError, match=r"Once.*once_differentiable"):
            inner.grad(loss, x)
    torch.testing.assert_close(inner.grad(loss, x), X.exp())


def test_needs_input_grad_in_a_record() -> None:
    seen: list[Any] = []

    class Asking(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            seen.append(ctx.needs_input_grad)
            return x * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            return g * 2, None

    x = X.clone().requires_grad_()
    with pullback.record() as tape:
        loss = Asking.apply(x, X).sum()
    assert seen == [(True, False)]
    assert tape.grad(loss, x).eq(2).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_order_and_forward_products(name: str) -> None:
    f = FUNCTIONS[name]
    gradient = pullback.grad(f)(X)
    torch.testing.assert_close(pullback.jvp(f, (X,), (X,))[1], (gradient * X).sum())
    torch.testing.assert_close(pullback.jacobian(f, order="forward")(X), gradient)


def test_jacobians_in_rows_columns_chunks_and_batches() -> None:
    expected = 7 * pullback.jacobian(lambda x: x @ W)(X)
    for order in ("auto", "forward", "reverse"):
        torch.testing.assert_close(pullback.jacobian(lambda x: Twice.apply(x, W)[0], order=order)(X), expected)
    torch.testing.assert_close(pullback.jacobian(lambda x: Twice.apply(x, W)[0], chunk_size=3)(X), expected)
    rows = torch.func.vmap(pullback.grad(lambda x: Exponential.apply(x).sum()))(X)
    torch.testing.assert_close(rows, 2 * (2 * X).exp())
    inside = pullback.grad(lambda x: torch.vmap(ForVmap.apply)(x).sum())(X)
    torch.testing.assert_close(inside, 3 * X.exp())


@pytest.mark.parametrize("way", ["generated", "written"])
def test_batches_of_functions_in_a_record(way: str) -> None:
    """By a rule that PyTorch makes, and by one that the author wrote, which is recorded like other code."""

    class Generated(torch.autograd.Function):
        generate_vmap_rule = way == "generated"

        @staticmethod
        def forward(x: Tensor, y: Tensor) -> Tensor:
            return x.exp() * y

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
            ctx.save_for_backward(output, inputs[0])

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
            output, x = ctx.saved_tensors
            return 3 * cotangent * output, cotangent * x.exp()

    if way == "written":
        rule = lambda info, axes, x, y: (Generated.apply(x.movedim(axes[0], 0), 2 * y) * x.cos(), 0)  # noqa: E731
        Generated.vmap = staticmethod(rule)  # type: ignore[method-assign]
    x, y = X.clone().requires_grad_(), X[0].clone().requires_grad_()
    with pullback.record() as tape:
        found = (torch.vmap(Generated.apply, (0, None))(x, y) * X).sum()
    gradient = tape.grad(found, (x, y))
    if way == "generated":
        expected = 3 * X.exp() * X[0] * X, (X.exp() * X).sum(0)
    else:
        inner = X.exp() * 2 * X[0]
        expected = (3 * inner * X.cos() - inner * X.sin()) * X, (2 * X.exp() * X.cos() * X).sum(0)
    torch.testing.assert_close(gradient, expected)


def test_a_backward_that_clips_serves_gradients_only() -> None:
    def f(x: Tensor) -> Tensor:
        return (Clipped.apply(x) * 3).sum()

    assert pullback.grad(f)(X).eq(1).all()
    assert pullback.vjp(f, X)[1](torch.ones((), dtype=torch.float64))[0].eq(1).all()
    for transform in (pullback.jacobian(Clipped.apply), pullback.hessian(f)):
        with pytest.raises(pullback.MissingRuleError, match=r"Clipped.*not linear.*clamp.*value_and_grad and vjp"):
            transform(X)
    with pytest.raises(pullback.MissingRuleError, match="not linear"):
        pullback.jvp(f, (X,), (X,))


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return Cosine.apply(ctx.saved_tensors[0]) * cotangent


class Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return -Sine.apply(ctx.saved_tensors[0]) * cotangent


def test_backwards_that_call_each_other() -> None:
    """As often as they were captured inside each other."""
    x = torch.tensor(0.7, dtype=torch.float64)
    derivative: Callable[[Tensor], Tensor] = Sine.apply
    for expected in (x.cos(), -x.sin(), -x.cos(), x.sin()):
        derivative = pullback.grad(derivative)
        torch.testing.assert_close(derivative(x), expected)
    with pytest.raises(pullback.MissingRuleError, match=r"Sine, called at .*calls itself"):
        pullback.grad(derivative)(x)


def spiral(power: int) -> Any:
    """Twice x, with a backward that goes through complex numbers."""

    class Turned(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return ((torch.complex(cotangent, cotangent) ** power) * (1 - 2j)).conj().imag * 2

    return Turned


def test_a_backward_may_go_through_complex_numbers() -> None:
    torch.testing.assert_close(pullback.jacobian(spiral(1).apply)(X[0]), 2 * torch.eye(3, dtype=X.dtype))
    torch.testing.assert_close(pullback.jvp(spiral(1).apply, (X,), (X,))[1], 2 * X)
    with pytest.raises(pullback.MissingRuleError, match=r"Turned.*not linear.*pow"):
        pullback.jacobian(spiral(2).apply)(X)


def test_a_backward_that_adds_serves_gradients_only() -> None:
    assert pullback.grad(lambda x: (Shifted.apply(x) * 3).sum())(X).eq(4).all()
    with pytest.raises(pullback.MissingRuleError, match=r"Shifted.*cotangent of zeros"):
        pullback.jacobian(Shifted.apply)(X)


def test_once_differentiable_is_honoured() -> None:
    torch.testing.assert_close(pullback.grad(lambda x: Once.apply(x).sum())(X), X.exp())
    with pytest.raises(pullback.CaptureError, match=r"Once.*test_own_derivatives.py.*once_differentiable"):
        pullback.hessian(lambda x: Once.apply(x).sum())(X)


def test_needs_input_grad_and_dtypes() -> None:
    seen: list[Any] = []

    class Inspecting(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, k: Tensor, name: str) -> Tensor:
            seen.append(ctx.needs_input_grad)
            return x[k].float()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
            return g.new_ones(3), None, None

    gradient = pullback.grad(lambda x: Inspecting.apply(x, torch.tensor([0, 1]), "name").sum())(X[0])
    assert seen == [(True, False, False)]
    assert gradient.dtype is torch.float64
    assert gradient.eq(1).all()


def test_changing_an_argument_in_place_is_refused() -> None:
    class Dirty(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.mark_dirty(x)
            return x.mul_(2)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * 2

    with pytest.raises(pullback.CaptureError, match=r"Dirty.*mark_dirty.*\n.*test_own_derivatives.py.*\n.*new tensor"):
        pullback.grad(lambda x: Dirty.apply(x.clone()).sum())(X)


@pytest.mark.parametrize(
    ("returned", "said"), [(lambda g: "text", "returns 'text'"), (lambda g: g.new_ones(5), r"\(5,\) for an argument")]
)
def test_a_backward_that_returns_nonsense_is_refused(returned: Callable[[Tensor], Any], said: str) -> None:
    class Nonsense(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return returned(g)

    with pytest.raises(pullback.CaptureError, match=said):
        pullback.grad(lambda x: Nonsense.apply(x).sum())(X)


def test_verification_accepts_the_author_s_derivative() -> None:
    assert verify(pullback.grad(FUNCTIONS["reversed"]), X).passed
    assert verify(pullback.grad(FUNCTIONS["several results"]), X).passed


def test_results_share_no_memory_with_arguments() -> None:
    class Identity(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(w)
            return x * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            return ctx.saved_tensors[0], g

    w = X.clone()
    gradient = pullback.grad(lambda x: Identity.apply(x, w).sum())(X)
    gradient.zero_()
    torch.testing.assert_close(w, X)


# ---------------------------------------------------------------- complex numbers


class Spiral(Function):
    """Of complex numbers and a real result beside; saves its arguments, and asks which of them need a gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, w)
        return z * z.conj() * w, (z * w).real

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        assert ctx.needs_input_grad == (True, True)
        z, w = ctx.saved_tensors
        return g * z * w.conj() + g.conj() * z * w + h * w.conj(), g * (z * z.conj()) + h * z.conj()


class ComplexExponential(Function):
    """Saves its result."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        y = z.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return g * y.conj()


@torch.library.custom_op("pullback_tests::turned", mutates_args=())
def turned(z: Tensor) -> Tensor:
    return z * 1j


@turned.register_fake
def _(z: Tensor) -> Tensor:
    return torch.empty_like(z)


turned.register_autograd(lambda ctx, g: g * -1j)

Z, V, U = (torch.complex(*torch.randn(2, 3, dtype=torch.float64)) for _ in range(3))


def spirals(z: Tensor, w: Tensor) -> Tensor:
    y, r = Spiral.apply(ComplexExponential.apply(z).conj(), torch.ops.pullback_tests.turned(w))
    return (y * U).real.sum() + (r**3).sum()


def spirals_in_plain_code(z: Tensor, w: Tensor) -> Tensor:
    y = z.exp().conj()
    return (y * y.conj() * (w * 1j) * U).real.sum() + ((y * (w * 1j)).real ** 3).sum()


def test_functions_of_complex_numbers_traced() -> None:
    ours, theirs = (pullback.hvp(f, (Z, V), (V, U)) for f in (spirals, spirals_in_plain_code))
    torch.testing.assert_close(ours, theirs)
    with reference():
        expected = torch.func.grad(spirals_in_plain_code, (0, 1))(Z, V)
    torch.testing.assert_close(ours[0], expected)
    pushed = [pullback.jvp(f, (Z, V), (V, U))[1] for f in (spirals, spirals_in_plain_code)]
    torch.testing.assert_close(*pushed)
    assert verify(pullback.grad(spirals, (0, 1)), Z, V).passed


def recorded_twice(f: Callable[..., Tensor]) -> list[Tensor]:
    z, w = (t.clone().requires_grad_() for t in (Z, V))
    with pullback.record() as outer:
        with pullback.record() as inner:
            value = f(z, w)
        found = inner.grad(value, [z, w])
        along = sum((g * U).real.sum() + (g.abs() ** 2).sum() for g in found)
    return [*(g.detach() for g in found), *outer.grad(along, [z, w])]


def test_functions_of_complex_numbers_recorded() -> None:
    for _ in range(3):
        torch.testing.assert_close(recorded_twice(spirals), recorded_twice(spirals_in_plain_code))


# ---------------------------------------------------------------- operators with lists, and arguments by name alone


@torch.library.custom_op("pullback_tests::products", mutates_args=())
def products(xs: list[Tensor], y: Tensor, *, scale: float = 2.0) -> list[Tensor]:
    return [x * y * scale for x in xs]


@products.register_fake
def _(xs: list[Tensor], y: Tensor, *, scale: float = 2.0) -> list[Tensor]:
    return [torch.empty_like(x) for x in xs]


def _save_products(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[0], inputs[1])
    ctx.scale = keyword_only_inputs["scale"]


def _products_backward(ctx: Any, cotangents: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    *xs, y = ctx.saved_tensors
    assert [len(ctx.needs_input_grad[0]), ctx.needs_input_grad[1]] == [len(xs), True]
    weighted = [g * x for g, x in zip(cotangents, xs, strict=True)]
    return [3 * g * y for g in cotangents], ctx.scale * torch.stack(weighted).sum(0)


products.register_autograd(_products_backward, setup_context=_save_products)


@torch.library.custom_op("pullback_tests::counted", mutates_args=("count",))
def counted(x: Tensor, count: Tensor) -> Tensor:
    count.add_(1)
    return x * 2


@counted.register_fake
def _(x: Tensor, count: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_operators_with_lists_and_arguments_by_name() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        first, second = products([x, x * y], y, scale=5.0)
        (third,) = torch.ops.pullback_tests.products([y], y)
        return (first * second).sum() + third.sum()

    with reference():
        x, y = X.clone().requires_grad_(), (X + 1).requires_grad_()
        expected = torch.autograd.grad(f(x, y), (x, y), create_graph=True)
        slope = (expected[0] * X).sum() + (expected[1] * X).sum()
        transposed = torch.autograd.grad(slope, (x, y))
    torch.testing.assert_close(pullback.grad(f, (0, 1))(X, X + 1), tuple(g.detach() for g in expected))
    gradient = pullback.grad(f, (0, 1))
    pulled = pullback.vjp(gradient, X, X + 1)[1]((X, X))
    torch.testing.assert_close(pulled, transposed)
    leaves = X.clone().requires_grad_(), (X + 1).requires_grad_()
    with pullback.record() as tape:
        value = f(*leaves)
    torch.testing.assert_close(tape.grad(value, leaves), tuple(g.detach() for g in expected))


def test_operators_that_change_an_argument_are_refused() -> None:
    count = torch.zeros((), dtype=torch.float64)
    with pytest.raises(pullback.CaptureError, match=r"counted.*operator of your own, changes an argument in place"):
        pullback.grad(lambda x: counted(x, count).sum())(X)
