"""What a factorisation leaves open, phases and bases: a derivative that depends on them is refused at run time.

PyTorch refuses the same in its backward of complex matrices (not in forward mode, nor inside `torch.func`); bases it
takes for constants.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pullback
from support import reference

Loss = Callable[[Tensor], Tensor]
GENERATOR = torch.Generator().manual_seed(0)
A, P, B = (torch.randn(3, 3, dtype=torch.complex128, generator=GENERATOR) for _ in range(3))
TALL = torch.randn(4, 2, dtype=torch.float64, generator=GENERATOR)


def svd(a: Tensor, read: Callable[..., Tensor], full: bool = False) -> Tensor:
    return read(*torch.linalg.svd(a, full_matrices=full))


def eigh(a: Tensor, read: Callable[..., Tensor]) -> Tensor:
    return read(*torch.linalg.eigh(a + a.mH))


def eig(a: Tensor, read: Callable[..., Tensor]) -> Tensor:
    return read(*torch.linalg.eig(a))


def weighed(v: Tensor) -> Tensor:
    return (v * P[: v.shape[-2], : v.shape[-1]]).real.sum()


def fixed(v: Tensor) -> Tensor:
    """Vectors whose first entry is real: their phases are no longer open."""
    return v * (v[..., :1, :].conj() / v[..., :1, :].abs())


INVARIANT: dict[str, Loss] = {
    "svd": lambda a: svd(a, lambda u, s, vh: weighed(u @ vh) + s.square().sum() + u[:, 0].abs().pow(3).sum()),
    "svd wide": lambda a: svd(a[:2], lambda u, s, vh: weighed(u * s @ vh) + vh.abs().pow(3).sum()),
    "svd of one side": lambda a: svd(a, lambda u, s, vh: weighed(fixed(u))),
    "projector on the rest": lambda a: svd(a[:, :1], lambda u, s, vh: weighed(u[:, 1:] @ u[:, 1:].mH), True),
    "eigh": lambda a: eigh(a, lambda w, v: weighed(v[:, :1] @ v[:, :1].mH) + w.square().sum()),
    "eigh fixed": lambda a: eigh(a, lambda w, v: weighed(fixed(v))),
    "eig": lambda a: eig(a, lambda w, v: weighed(v[:, :1] @ v[:, :1].mH) + weighed(w.diag())),
    "eig fixed": lambda a: eig(a, lambda w, v: weighed(fixed(v))),
    "of real numbers": lambda a: eig(a.real, lambda w, v: v.abs().pow(3).sum()),
    "its norm alone": lambda a: svd(a, lambda u, s, vh: u.abs().square().sum() + s.sum()),
    "twice": lambda a: svd(svd(a, lambda u, s, vh: u @ vh + a), lambda u, s, vh: weighed(u @ vh)),
}
OPEN: dict[str, Loss] = {
    "svd": lambda a: svd(a, lambda u, s, vh: weighed(u) + s.sum()),
    "svd of rows": lambda a: svd(a, lambda u, s, vh: weighed(vh)),
    "one side turned": lambda a: svd(a, lambda u, s, vh: weighed(u * torch.tensor([1j, 1, 1]) @ vh.conj())),
    "a difference of phases": lambda a: svd(a, lambda u, s, vh: (u[0, 0].conj() * u[0, 1]).real),
    "eigh": lambda a: eigh(a, lambda w, v: weighed(v)),
    "eigh, a little": lambda a: eigh(a, lambda w, v: weighed(v @ v.mH) + w.sum() + 1e-2 * v[0, 0].imag),
    "eig": lambda a: eig(a, lambda w, v: weighed(v) + w.abs().sum()),
    "of real numbers": lambda a: eig(a.real, lambda w, v: weighed(v)),
    "a basis of the rest": lambda a: svd(a[:, :1], lambda u, s, vh: u[:, 1:].abs().pow(4).sum(), True),
}


def recorded(f: Loss, a: Tensor, times: int = 3) -> Tensor:
    """The gradient by a record: step by step, then by a compiled program."""
    for _ in range(times):
        x = a.clone().requires_grad_()
        with pullback.record() as tape:
            value = f(x)
        (gradient,) = tape.grad(value, [x])
    return gradient


def recorded_twice(f: Loss, a: Tensor) -> Tensor:
    for _ in range(3):
        x = a.clone().requires_grad_()
        with pullback.record() as outer:
            with pullback.record() as tape:
                value = f(x)
            (gradient,) = tape.grad(value, [x])
            along = (gradient.conj() * B).real.sum()
        (product,) = outer.grad(along, [x])
    return product


def beside_autograd(f: Loss, a: Tensor) -> Tensor:
    x = a.clone().requires_grad_()
    along = (pullback.grad(f)(x).conj() * B).real.sum()
    with reference():
        (product,) = torch.autograd.grad(along, x)
    return product


def pulled(f: Loss, a: Tensor) -> Tensor:
    return pullback.vjp(f, a)[1](torch.ones((), dtype=torch.float64))[0]


FIRST: dict[str, Callable[[Loss, Tensor], Tensor]] = {
    "reverse": lambda f, a: pullback.grad(f, order="reverse")(a),
    "forward": lambda f, a: pullback.grad(f, order="forward")(a),
    "auto": lambda f, a: pullback.grad(f)(a),
    "vjp": pulled,
    "record": recorded,
    "compiled": lambda f, a: pullback.grad(f).compile(a)(a),
    "a program": lambda f, a: pullback.compile(lambda x: pullback.grad(f)(x) * 1)(a),
    "batch": lambda f, a: torch.vmap(pullback.grad(f))(torch.stack([B, a]))[1],
}
SECOND: dict[str, Callable[[Loss, Tensor], Tensor]] = {
    "hvp": lambda f, a: pullback.hvp(f, (a,), (B,))[1],
    "records": recorded_twice,
    "autograd": beside_autograd,
}
TANGENTS: dict[str, Callable[[Loss, Tensor], Tensor]] = {
    "jvp": lambda f, a: pullback.jvp(f, (a,), (B,))[1],
    "linearize": lambda f, a: pullback.linearize(f, a)[1](B),
}


EVERYWHERE = ("svd", "eig")  # the others go some of the ways
SOME = ("auto", "record", "hvp", "jvp")


def ways(name: str, table: dict[str, Callable[[Loss, Tensor], Tensor]]) -> list[Callable[[Loss, Tensor], Tensor]]:
    return [way for which, way in table.items() if name in EVERYWHERE or which in SOME]


@reference()
def expected(f: Loss) -> tuple[Tensor, Tensor]:
    """The gradient, and the Hessian times B."""
    x = A.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(x), x, create_graph=True)
    along = (gradient.conj() * B).real.sum()
    product = torch.autograd.grad(along, x)[0] if along.requires_grad else torch.zeros_like(x)
    return gradient.detach(), product


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", INVARIANT)
def test_what_does_not_depend_on_the_gauge_is_computed(name: str) -> None:
    f = INVARIANT[name]
    gradient, product = expected(f)
    if name == "projector on the rest":  # PyTorch takes the basis for a constant, and the projector with it
        gradient, product = expected(lambda a: svd(a[:, :1], lambda u, s, vh: weighed(rest(u))))
    for way in ways(name, FIRST):
        close(way(f, A), gradient)
    for way in ways(name, SECOND):
        close(way(f, A), product, 1e-8)
    for way in ways(name, TANGENTS):
        close(way(f, A), (gradient.conj() * B).real.sum())
    close(pullback.grad(lambda a: f(a.to(torch.complex64)).double())(A), gradient, 1e-4)


def rest(u: Tensor) -> Tensor:
    """The projector by the vectors in front."""
    return torch.eye(3, dtype=u.dtype) - u[:, :1] @ u[:, :1].mH


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", OPEN)
def test_what_depends_on_the_gauge_is_refused(name: str) -> None:
    f = OPEN[name]
    for way in (*ways(name, FIRST), *ways(name, SECOND), *ways(name, TANGENTS)):
        with pytest.raises(pullback.GaugeError, match=r"leaves open(.|\n)*test_gauges\.py:\d+: return read\(\*torch"):
            way(f, A)
    with pytest.raises(pullback.GaugeError):
        pullback.grad(lambda a: f(a.to(torch.complex64)).double())(A)


def test_in_branches_batches_and_chunks() -> None:
    """Each of these has programs of its own."""

    def branch(f: Loss) -> Loss:
        return lambda x: torch.cond(x.sum() < 99, lambda y: f(torch.view_as_complex(y)), lambda y: y.sum(), (x,))

    pairs = torch.view_as_real(A)

    def closed(a: Tensor) -> Tensor:
        return torch.linalg.svd(a)[0].abs().pow(3).sum()

    def opened(a: Tensor) -> Tensor:
        return torch.linalg.svd(a)[0].imag.sum()

    close(torch.view_as_complex(pullback.grad(branch(closed))(pairs)), pullback.grad(closed)(A))
    stacked = torch.stack([A, B])

    def samples(f: Loss) -> Loss:
        return lambda x: torch.stack([f(torch.view_as_complex(y)) for y in x])

    several: tuple[Callable[[Loss], Tensor], ...] = (
        lambda f: pullback.jacobian(samples(f), chunk_size=1)(torch.view_as_real(stacked)),
        lambda f: pullback.jacobian(samples(f), chunk_size=5, order="forward")(torch.view_as_real(stacked)),
        lambda f: pullback.batch_jacobian(each(f is closed))(stacked),
    )
    for way in several:
        assert way(closed).isfinite().all()
        with pytest.raises(pullback.GaugeError):
            way(opened)
    with pytest.raises(pullback.GaugeError):
        pullback.grad(branch(opened))(pairs)


def each(is_closed: bool) -> Loss:
    """Sample by sample, of a batch of matrices."""
    if is_closed:
        return lambda x: torch.linalg.svd(x)[0].abs().pow(3).sum((1, 2))
    return lambda x: torch.linalg.svd(x)[0].imag.sum((1, 2))


def test_the_line_is_that_of_this_step_and_not_of_the_first_of_its_kind() -> None:
    def gradient(f: Loss) -> None:
        x = A.clone().requires_grad_()
        with pullback.record() as tape:
            value = f(x)
        tape.grad(value, [x])

    def other(a: Tensor) -> Tensor:
        return torch.linalg.svd(a).U.real.sum()  # here

    for _ in range(4):  # the fourth by a program
        with pytest.raises(pullback.GaugeError, match=r"return read\(\*torch"):
            gradient(lambda a: svd(a, lambda u, s, vh: u.real.sum()))
        with pytest.raises(pullback.GaugeError, match="sum\\(\\)  # here"):
            gradient(other)


def test_a_program_in_a_file_checks_as_well(tmp_path: Path) -> None:
    compiled = pullback.grad(INVARIANT["eigh"]).compile(A)
    compiled.save(tmp_path / "closed")
    close(pullback.load(tmp_path / "closed")(A), compiled(A))


def test_jacobians_of_vectors_themselves() -> None:
    with pytest.raises(pullback.GaugeError):
        pullback.jacobian(lambda x: torch.linalg.eigh(x.to(A.dtype) * A + (x.to(A.dtype) * A).mH)[1])(torch.ones(3, 3))
    projector = pullback.jacobian(lambda x: (lambda u: u @ u.mH)(torch.linalg.svd(x * A)[0][:, :1]))(torch.ones(3, 3))
    assert projector.isfinite().all()


def test_signs_and_single_vectors_are_no_gauge() -> None:
    """Real vectors have a sign, which a small change does not turn; so has the one vector that a plane leaves."""
    square = torch.randn(3, 3, dtype=torch.float64)
    for f in (
        lambda a: torch.linalg.svd(a, full_matrices=True)[0].pow(3).sum(),
        lambda a: torch.linalg.eigh(a[:2, :2] + a[:2, :2].mT)[1].sum(),
    ):
        x = square if f.__code__.co_names[1] == "eigh" else TALL[:3]
        assert pullback.grad(f)(x).isfinite().all()
    with pytest.raises(pullback.GaugeError):
        pullback.grad(lambda a: torch.linalg.svd(a, full_matrices=True)[0].pow(3).sum())(TALL)


def test_vectors_that_were_not_computed() -> None:
    f = lambda a: torch.ops.aten._linalg_svd.default(a, False, False)  # noqa: E731
    pulled = pullback.vjp(f, A)[1]((A.new_zeros(0), torch.ones(3, dtype=torch.float64), A.new_zeros(0)))[0]
    close(pulled, pullback.grad(lambda a: torch.linalg.svdvals(a).sum())(A))


def test_no_matrix_at_all() -> None:
    for shape in ((0, 3, 3), (2, 0, 3), (3, 0)):
        a = torch.zeros(shape, dtype=torch.complex128)
        assert pullback.grad(lambda a: svd(a, lambda u, s, vh: s.sum() + u.abs().sum()))(a).shape == shape
