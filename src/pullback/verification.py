"""Independent evidence on a compiled derivative, and the search for the node that is wrong.

Three kinds of evidence, at random directions v and cotangents u:

    differences      J v against (f(x + hv) − f(x − hv)) / 2h of the captured function
    inner products   ⟨u, J v⟩ from a forward program against ⟨Jᵀ u, v⟩ from a reverse one; real parts of complex ones
    torch.func       the whole result against PyTorch's; only where it is asked for by name

On a mismatch the graph is cut in two until one node is left: the part behind a cut is a function of the values that
cross it, whose derivative is compiled and probed by itself.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from .bisection import BLURRED, TOLERANCES, Part, noise, rounding, single, tolerance
from .derivatives import CapturedCall, Gradient, Jacobian
from .differences import Point, double, largest, point_at, random_direction, slope
from .dtypes import dtype_name
from .emit.backends import Auto
from .errors import ArgumentError, VerificationError
from .graph import COMPLEX, Graph, Node, Value, real_of
from .guards import is_transforming
from .recording import CURRENT
from .signature import Entry
from .titles import title
from .torch_private import tree_leaves
from .transform import Transform, captured_call, find, flat_tensors

PROBES = 3
SampleAxes = tuple[Mapping[Value, int], Mapping[int, int]]
SINGLE_SOURCES = 8  # so many sources are also moved alone


@dataclass(frozen=True)
class Verification:
    """What was found.

    title: the transform.
    probes: how many directions were tried; blurred: how many of these proved nothing, since differences have no limit
        there (a kink, a point at the border of the domain).
    worst: the largest error seen, relative to the largest entry.
    problem: what is wrong, or the empty string.
    culprit: the first node, counted from the outputs, whose derivative is wrong; None if there is none, or if the rules
        of all nodes are right and only the program as a whole is wrong.
    """

    title: str
    probes: int
    blurred: int
    worst: float
    problem: str = ""
    culprit: Node | None = None

    @property
    def passed(self) -> bool:
        """Whether there was evidence, and none against the program."""
        return not self.problem and self.blurred < self.probes

    def __str__(self) -> str:
        if self.problem:
            return f"{self.title} is wrong: {self.problem}"
        if not self.passed:
            return f"{self.title} was not verified: none of {self.probes} differences has a limit at this point"
        seen = f"{self.probes - self.blurred} of {self.probes} probes"
        return f"{self.title} holds at {seen}, with a largest relative error of {self.worst:.1e}"


def verify(
    transform: Transform, *args: Any, probes: int = 3, seed: int = 0, against: str | None = None, **kwargs: Any
) -> Verification:
    """Check a transform's compiled program at some arguments, and find the node that is wrong if it is.

    Arguments:
        transform: what `grad`, `jacobian`, `hessian` and their like return; of nested ones each is checked.
        args, kwargs: what it would be called with.
        probes: how many random directions to try beyond one for each of the first eight arguments' tensors.
        seed: of the directions.
        against: None, or "torch.func" to compare the whole result with PyTorch's as well.

    Returns:
        A `Verification`; print it.

    Raises:
        VerificationError: the program is wrong; names the node, with its line, and by how much it is off.
        ArgumentError: this is not a transform, or `against` is unknown; and whatever calling the transform raises.

    A backward that the user wrote, in a `torch.autograd.Function`, is taken for the derivative that is wanted.

    Cost: a few compilations, and about 16 runs of the function for each probe; on a mismatch as many again for each
    halving.

    >>> import torch, pullback
    >>> from pullback.verification import verify
    >>> verify(pullback.grad(lambda x: x.sin().sum()), torch.tensor([0.3, 1.0], dtype=torch.float64)).passed
    True
    """
    if not isinstance(transform, Transform) or not isinstance(transform.kind, (Gradient, Jacobian)):
        raise ArgumentError(f"verify needs a transform such as pullback.grad(f), not {transform!r}")
    if against not in (None, "torch.func"):
        raise ArgumentError(f"against={against!r}: it must be None or 'torch.func'")
    if isinstance(transform.f, Transform):
        verify(transform.f, *args, probes=probes, seed=seed, **kwargs)
    found = _Evidence.of(transform, args, kwargs, seed).gather(probes)
    if against and not found.problem:
        found = replace(found, problem=_difference_from_torch(transform, args, kwargs))
    if found.problem:
        raise VerificationError(str(found))
    return found


class Verified(Transform):
    """A transform that verifies each program once, before its first result is handed out."""

    def __init__(self, f: Callable[..., Any], kind: Any, backend: str | Auto = "auto") -> None:
        super().__init__(f, kind, backend)
        self._checked: WeakSet[Entry] = WeakSet()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the derivative.  Raises VerificationError if its program turns out to be wrong."""
        if CURRENT.trace is None and not is_transforming():
            entry, _ = find(self.kind, self.f, args, kwargs, self.backend)
            if entry not in self._checked:
                verify(self, *args, **kwargs)
                self._checked.add(entry)
        return super().__call__(*args, **kwargs)


def transform_of(f: Callable[..., Any], kind: Any, backend: str | Auto, verify: bool) -> Transform:
    """A transform, which verifies its programs if asked to."""
    return Verified(f, kind, backend) if verify else Transform(f, kind, backend)


def verify_products(f: Callable[..., Any], primals: tuple[Any, ...]) -> None:
    """Check Jᵀ u and J v of a function in all of its arguments by probes.

    Raises VerificationError if they are wrong; names the node.
    """
    if CURRENT.trace is not None or is_transforming():
        return
    if isinstance(f, Transform):
        verify(f, *primals)
    call = captured_call(f, primals, {})
    sources = call.sources(tuple(range(len(primals))))
    graph = replace(call.captured.graph, mutations=())
    inputs = [t.detach().clone() for t in flat_tensors(call.captured, primals, {})]
    point = point_at(graph, inputs)
    generator = torch.Generator().manual_seed(0)
    whole = Part(graph, point, 0, sources, True)
    problem = whole.complaint(generator, PROBES)
    if problem:
        found = Verification(title(f), PROBES, 0, 0.0, problem)
        raise VerificationError(str(_blamed(found, whole, generator, PROBES)))


# ---------------------------------------------------------------- evidence


@dataclass(frozen=True)
class _Evidence:
    """One transform at one point: its graph, what is differentiated, and the program's raw results."""

    title: str
    graph: Graph
    sources: tuple[Value, ...]
    outputs: tuple[Value, ...]
    point: Point
    results: tuple[Any, ...]
    fuse: bool
    generator: torch.Generator
    axes: SampleAxes | None

    @classmethod
    def of(cls, transform: Transform, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> "_Evidence":
        call = captured_call(transform.f, args, kwargs)
        sources, outputs = _differentiated(transform, call)
        inputs = [t.detach().clone() for t in flat_tensors(call.captured, args, kwargs)]
        point = point_at(call.captured.graph, inputs)
        fuse = isinstance(transform.kind, Gradient)
        generator = torch.Generator().manual_seed(seed)
        graph = replace(call.captured.graph, outputs=outputs, mutations=())
        point = replace(point, graph=replace(point.graph, outputs=outputs))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            entry, _ = find(transform.kind, transform.f, args, kwargs)
            results = entry.program.run(*[t.clone() for t in inputs])
        axes = transform.kind.sample_axes(call) if isinstance(transform.kind, Jacobian) else None
        return cls(title(transform.f), graph, sources, outputs, point, results, fuse, generator, axes)

    def gather(self, probes: int) -> Verification:
        """Try all directions; on a mismatch, look for the node."""
        directions = list(self._directions(probes))
        worst, blurred, problem = 0.0, 0, ""
        for direction in directions:
            error, note = self._compare(direction)
            blurred += error is None
            worst = max(worst, error or 0.0)
            problem = problem or note
        whole = Part(self.graph, self.point, 0, self.sources, self.fuse)
        problem = problem or whole.complaint(self.generator, probes)
        found = Verification(self.title, len(directions), blurred, worst, problem)
        return _blamed(found, whole, self.generator, probes) if problem else found

    def _directions(self, probes: int) -> Iterator[Mapping[Value, Tensor]]:
        """The first sources alone, complex ones along real and along imaginary numbers; then all together."""
        for source in self.sources[:SINGLE_SOURCES]:
            drawn = random_direction([source], self.point.values, self.generator)
            if source.dtype in COMPLEX:
                yield {source: drawn[source].real + 0j}
                yield {source: 1j * drawn[source].imag}
            elif len(self.sources) > 1:
                yield drawn
        for _ in range(probes):
            yield random_direction(self.sources, self.point.values, self.generator)

    def _compare(self, direction: Mapping[Value, Tensor]) -> tuple[float | None, str]:
        """The relative error along a direction, None if differences tell nothing; and what is wrong, if anything."""
        expected = slope(self.point, 0, direction)
        blur = max(map(largest, expected.errors), default=0.0)
        floor = rounding(self.point, self.graph)
        if not blur <= BLURRED * expected.scale:
            floor = noise(self.point, self.graph)
            if not max(blur, expected.scale) <= floor:  # NaN too
                return None, ""
        count = len(self.sources)
        worst, problem = 0.0, ""
        for k, (output, seen, error) in enumerate(zip(self.outputs, expected.values, expected.errors, strict=True)):
            blocks = zip(self.sources, self.results[k * count : (k + 1) * count], strict=True)
            moved = [self._along(k, s, j, direction[s]) for s, j in blocks if s in direction]
            ours = sum(moved, torch.zeros((), dtype=torch.float64))
            allowed = tolerance(TOLERANCES, self.graph) * max(expected.scale, largest(ours)) + 5 * error
            excess = (ours - seen).abs() - allowed - floor
            worst = max(worst, largest(ours - seen) / max(expected.scale, floor, 1e-300))
            if largest(excess.clamp_min(0)) > 0 or not bool(ours.isfinite().all()):
                problem = (
                    f"∂{output.name} along a direction of {', '.join(v.name for v in direction)} is "
                    f"{_sample(ours, excess)}, and differences give {_sample(seen, excess)}"
                )
        return worst, problem

    def _along(self, output: int, source: Value, jacobian: Tensor, direction: Tensor) -> Tensor:
        """J v in double precision, J being the conjugate of what holds for a complex source, as of any gradient.

        Sample by sample, where each sample has a Jacobian of its own.
        """
        block, v = double(jacobian.detach()), double(direction)
        if v.is_complex():
            return self._contracted(output, source, block.conj(), v).real
        return self._contracted(output, source, block, v.to(block.dtype))

    def _contracted(self, output: int, source: Value, block: Tensor, v: Tensor) -> Tensor:
        if self.axes is None:
            return torch.tensordot(block, v, len(source.shape))
        inward, outward = self.axes
        v = v.movedim(inward[source], 0).reshape(len(block), -1)
        shape = block.shape[: len(self.outputs[output].shape)]
        product = (block.reshape(len(block), -1, v.shape[1]) * v[:, None]).sum(-1)
        return product.reshape(shape).movedim(0, outward[output])


def _blamed(found: Verification, whole: Part, generator: torch.Generator, probes: int) -> Verification:
    """The same verification with the node that is to blame."""
    node = whole.first_wrong_node(generator, probes)
    if node is None:
        said = f"{found.problem}.  Every node's rule is right by itself: the fault is in how they were put together"
    else:
        where = f"\n  at {node.source}" if node.source else ""
        said = f"{found.problem}.  The first wrong node is\n  {replace(node, source=None)}{where}\n  "
        said += single(node, whole.point, whole.fuse).complaint(generator, probes)
    return replace(found, problem=said, culprit=node)


def _differentiated(transform: Transform, call: CapturedCall) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    kind = transform.kind
    assert isinstance(kind, (Gradient, Jacobian))
    _, _, count = call.result(kind.has_aux, 0)
    return call.sources(kind.argnums), call.tensor_outputs(count)


def _sample(tensor: Tensor, excess: Tensor) -> str:
    """The entry that is furthest off."""
    entry = tensor.reshape(-1)[int(excess.reshape(-1).nan_to_num(torch.inf).argmax())].item()
    return f"{entry:.6g}"


def _difference_from_torch(transform: Transform, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What is wrong with a result by the lights of `torch.func`, or the empty string."""
    ours, theirs = tree_leaves(transform(*args, **kwargs)), tree_leaves(_in_torch(transform)(*args, **kwargs))
    for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex()):
            off = largest(double(one) - double(other)) / max(largest(other), 1e-300)
            if not off <= TOLERANCES[real_of(dtype_name(one.dtype))]:
                return f"leaf {k} of the result differs from torch.func's by {off:.1e} of its largest entry"
    return ""


def _in_torch(f: Any) -> Any:
    """The same transforms of `torch.func`, the innermost function excepted."""
    if not isinstance(f, Transform):
        return f
    inner, kind = _in_torch(f.f), f.kind
    if isinstance(kind, Gradient):
        both = torch.func.grad_and_value(inner, kind.argnums, kind.has_aux)
        if not kind.with_value:
            return torch.func.grad(inner, kind.argnums, kind.has_aux)
        return lambda *args, **kwargs: both(*args, **kwargs)[::-1]
    assert isinstance(kind, Jacobian)
    return torch.func.jacrev(inner, kind.argnums, has_aux=kind.has_aux)
