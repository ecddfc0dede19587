"""Independent evidence on a compiled derivative, and the search for the node that is wrong.

Three kinds of evidence, at random directions v and cotangents u:

    differences      J v against (f(x + hv) − f(x − hv)) / 2h of the captured function
    inner products   ⟨u, J v⟩ from a forward program against ⟨Jᵀ u, v⟩ from a reverse one
    torch.func       the whole result against PyTorch's; only where it is asked for by name

On a mismatch the graph is cut in two until one node is left: the part behind a cut is a function of the values that
cross it, whose derivative is compiled and probed by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from .compilation import OrderName, Task, compile_derivative, differentiated_values, jvp_task, vjp_task
from .derivatives import CapturedCall, Gradient, Jacobian
from .differences import Point, floating_outputs, largest, point_at, random_direction, slope
from .emit.python import Program
from .errors import ArgumentError, VerificationError
from .graph import COMPLEX, Graph, Node, Value, values_in
from .guards import is_transforming
from .recording import CURRENT
from .rules import RULES
from .signature import Entry
from .titles import title
from .torch_private import tree_leaves
from .transform import Transform, captured_call, find, flat_tensors

# Relative to the largest entry; what our program rounds is added to what differences leave uncertain.
TOLERANCES = {"float64": 1e-6, "float32": 5e-3, "float16": 0.2, "bfloat16": 0.5}
INNER_PRODUCT_TOLERANCES = {"float64": 1e-8, "float32": 2e-3, "float16": 0.2, "bfloat16": 0.5}
BLURRED = 1e-2  # differences less certain than this prove nothing
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

    def __init__(self, f: Callable[..., Any], kind: Any, backend: str = "auto") -> None:
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


def transform_of(f: Callable[..., Any], kind: Any, backend: str, verify: bool) -> Transform:
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
    _refuse_complex(call)
    sources = call.sources(tuple(range(len(primals))))
    graph = replace(call.captured.graph, mutations=())
    inputs = [t.detach().clone() for t in flat_tensors(call.captured, primals, {})]
    point = point_at(graph, inputs)
    generator = torch.Generator().manual_seed(0)
    whole = _Part(graph, point, 0, sources, True)
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
        _refuse_complex(call)
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
        directions = [[s] for s in self.sources[:SINGLE_SOURCES]] if len(self.sources) > 1 else []
        directions += [list(self.sources)] * probes
        worst, blurred, problem = 0.0, 0, ""
        for moved in directions:
            error, note = self._compare(random_direction(moved, self.point.values, self.generator))
            blurred += error is None
            worst = max(worst, error or 0.0)
            problem = problem or note
        whole = _Part(self.graph, self.point, 0, self.sources, self.fuse)
        problem = problem or whole.complaint(self.generator, probes)
        found = Verification(self.title, len(directions), blurred, worst, problem)
        return _blamed(found, whole, self.generator, probes) if problem else found

    def _compare(self, direction: Mapping[Value, Tensor]) -> tuple[float | None, str]:
        """The relative error along a direction, None if differences tell nothing; and what is wrong, if anything."""
        expected = slope(self.point, 0, direction)
        if not expected.worst <= BLURRED:  # NaN too
            return None, ""
        count = len(self.sources)
        worst, problem = 0.0, ""
        for k, (output, seen, error) in enumerate(zip(self.outputs, expected.values, expected.errors, strict=True)):
            blocks = zip(self.sources, self.results[k * count : (k + 1) * count], strict=True)
            moved = [self._along(k, s, j, direction[s]) for s, j in blocks if s in direction]
            ours = sum(moved, torch.zeros((), dtype=torch.float64))
            allowed = _tolerance(TOLERANCES, (output, *self.sources)) * max(expected.scale, largest(ours)) + 5 * error
            excess = (ours - seen).abs() - allowed
            worst = max(worst, largest(ours - seen) / max(expected.scale, 1e-300))
            if largest(excess.clamp_min(0)) > 0 or not bool(ours.isfinite().all()):
                problem = (
                    f"∂{output.name} along a direction of {', '.join(v.name for v in direction)} is "
                    f"{_sample(ours, excess)}, and differences give {_sample(seen, excess)}"
                )
        return worst, problem

    def _along(self, output: int, source: Value, jacobian: Tensor, direction: Tensor) -> Tensor:
        """J v, in float64; sample by sample, where each sample has a Jacobian of its own."""
        block, v = jacobian.detach().double(), direction.double()
        if self.axes is None:
            return torch.tensordot(block, v, len(source.shape))
        inward, outward = self.axes
        v = v.movedim(inward[source], 0).reshape(len(block), -1)
        shape = block.shape[: len(self.outputs[output].shape)]
        product = (block.reshape(len(block), -1, v.shape[1]) * v[:, None]).sum(-1)
        return product.reshape(shape).movedim(0, outward[output])


def _blamed(found: Verification, whole: "_Part", generator: torch.Generator, probes: int) -> Verification:
    """The same verification with the node that is to blame."""
    node = whole.first_wrong_node(generator, probes)
    if node is None:
        said = f"{found.problem}.  Every node's rule is right by itself: the fault is in how they were put together"
    else:
        where = f"\n  at {node.source}" if node.source else ""
        said = f"{found.problem}.  The first wrong node is\n  {replace(node, source=None)}{where}\n  "
        said += _single(node, whole.point, whole.fuse).complaint(generator, probes)
    return replace(found, problem=said, culprit=node)


def _differentiated(transform: Transform, call: CapturedCall) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    kind = transform.kind
    assert isinstance(kind, (Gradient, Jacobian))
    _, _, count = call.result(kind.has_aux, 0)
    return call.sources(kind.argnums), call.tensor_outputs(count)


def _refuse_complex(call: CapturedCall) -> None:
    """Probes move real numbers, and inner products are those of real numbers."""
    for node in call.captured.graph.nodes:
        for value in (*node.inputs, *node.results):
            if value.dtype in COMPLEX:
                raise ArgumentError(
                    f"{call.title} holds {value.name!r}, which is {value.type}{call.line_of(value)}: complex numbers "
                    "are not verified yet; compare with difference quotients of your own"
                )


def _tolerance(table: Mapping[str, float], values: Sequence[Value]) -> float:
    return max(table[v.dtype] for v in values if v.is_floating)


def _sample(tensor: Tensor, excess: Tensor) -> str:
    """The entry that is furthest off."""
    return f"{float(tensor.reshape(-1)[int(excess.reshape(-1).nan_to_num(torch.inf).argmax())]):.6g}"


def _difference_from_torch(transform: Transform, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What is wrong with a result by the lights of `torch.func`, or the empty string."""
    ours, theirs = tree_leaves(transform(*args, **kwargs)), tree_leaves(_in_torch(transform)(*args, **kwargs))
    for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(one, Tensor) and one.is_floating_point():
            off = largest(one.double() - other.double()) / max(largest(other), 1e-300)
            if not off <= TOLERANCES[str(one.dtype).removeprefix("torch.")]:
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


# ---------------------------------------------------------------- parts of a graph


@dataclass(frozen=True)
class _Part:
    """The nodes from number `start` on, as a function of the values in front of them that are differentiated."""

    graph: Graph
    point: Point
    start: int
    sources: tuple[Value, ...]
    fuse: bool

    def complaint(self, generator: torch.Generator, probes: int) -> str:
        """What is wrong with its derivative, or the empty string."""
        outputs = [k for k, v in enumerate(self.graph.outputs) if isinstance(v, Value) and v.is_floating]
        if not self.sources or not outputs:
            return ""
        inputs = [_as(v, self.point.values[v]) for v in self.graph.inputs]
        targets = floating_outputs(self.graph)
        cotangents = random_direction(targets, _ones(targets), generator)
        seeds = [_as(v, cotangents[v]) for v in targets]
        backward = self._compiled(vjp_task(self.graph, self.sources, outputs), "reverse")
        pulled = self._run(backward, inputs, seeds)[: len(self.sources)]
        directions = [random_direction(self.sources, self.point.values, generator) for _ in range(probes)]
        for direction in directions:
            if said := self._against_differences(pulled, seeds, direction):
                return said
        forward = self._compiled(jvp_task(self.graph, self.sources, outputs), "forward")
        moves = [_as(v, directions[0][v]) for v in self.sources]
        return self._against_forward(pulled, self._run(forward, inputs, moves)[: len(targets)], seeds, moves)

    def _compiled(self, task: Task, order: OrderName) -> Program:
        return compile_derivative(task, order, fuse=self.fuse).program

    def _run(self, program: Program, inputs: list[Tensor], seeds: list[Tensor]) -> tuple[Any, ...]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first = next((self.point.states[n] for n in self.graph.nodes if n in self.point.states), None)
            if first is not None:
                torch.set_rng_state(first)
            return program.run(*[t.clone() for t in (*inputs, *seeds)])

    def _against_differences(
        self, pulled: Sequence[Tensor], seeds: Sequence[Tensor], direction: Mapping[Value, Tensor]
    ) -> str:
        expected = slope(replace(self.point, graph=self.graph), 0, direction)
        left, size = _inner(pulled, [direction[v] for v in self.sources])
        seen, other = _inner(expected.values, seeds)
        size = max(size, other, 1e-300)
        doubt = sum(float((e * s.abs()).sum()) for e, s in zip(expected.errors, seeds, strict=True))
        if not doubt <= BLURRED * size:
            return ""
        if abs(left - seen) <= _tolerance(TOLERANCES, self._ends) * size + 5 * doubt:
            return ""
        return f"⟨Jᵀu, v⟩ = {left:.6g}, but differences give {seen:.6g}: {_ratio(left, seen)}"

    def _against_forward(
        self, pulled: Sequence[Tensor], pushed: Sequence[Tensor], seeds: Sequence[Tensor], moves: Sequence[Tensor]
    ) -> str:
        left, size = _inner(pulled, moves)
        right, other = _inner(pushed, seeds)
        size = max(size, other, 1e-300)
        if not size < torch.inf or abs(left - right) <= _tolerance(INNER_PRODUCT_TOLERANCES, self._ends) * size:
            return ""
        return f"⟨Jᵀu, v⟩ = {left:.6g}, but ⟨u, Jv⟩ = {right:.6g}"

    @property
    def _ends(self) -> tuple[Value, ...]:
        return (*self.sources, *floating_outputs(self.graph))

    def behind(self, start: int) -> "_Part":
        """The part from a later node on."""
        nodes = self.graph.nodes[start:]
        own = {v for n in nodes for v in n.results}
        read = dict.fromkeys(v for v in values_in(([n.inputs for n in nodes], self.graph.outputs)) if v not in own)
        targets = tuple(dict.fromkeys(floating_outputs(self.graph)))
        differentiated = differentiated_values(self.graph, self.sources, targets)
        crossing = tuple(v for v in read if v in differentiated)
        return replace(self, graph=Graph(tuple(read), nodes, self.graph.outputs), start=start, sources=crossing)

    def first_wrong_node(self, generator: torch.Generator, probes: int) -> Node | None:
        """The last node of the graph such that what follows it is right, and with it is wrong."""
        nodes = self.graph.nodes
        wrong, right = 0, len(nodes)
        while right - wrong > 1:
            middle = (wrong + right) // 2
            if self.behind(middle).complaint(generator, probes):
                wrong = middle
            else:
                right = middle
        suspects = [*nodes[wrong : wrong + 1], *reversed(nodes)]  # should the cuts have missed it
        return next((n for n in suspects if _single(n, self.point, self.fuse).complaint(generator, probes)), None)


def _single(node: Node, point: Point, fuse: bool) -> _Part:
    """One node as a graph of its own."""
    known = node.op in RULES
    sources = tuple(dict.fromkeys(v for v in node.inputs if v.is_floating)) if known else ()
    outputs = tuple(v for v in node.results if v.is_floating)
    return _Part(Graph(tuple(dict.fromkeys(node.inputs)), (node,), outputs), point, 0, sources, fuse)


def _as(value: Value, tensor: Tensor) -> Tensor:
    """A tensor in the dtype that the graph has for it."""
    return tensor.to(getattr(torch, value.dtype)) if value.is_floating else tensor


def _ones(values: Sequence[Value]) -> dict[Value, Tensor]:
    return {v: torch.ones(v.shape, dtype=torch.float64) for v in values}


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[float, float]:
    """⟨left, right⟩ in float64, and the sum of absolute values, which says how large rounding may be."""
    products = [(a.double() * b.double()) for a, b in zip(left, right, strict=True)]
    return sum(float(p.sum()) for p in products), sum(float(p.abs().sum()) for p in products)


def _ratio(ours: float, seen: float) -> str:
    return f"{ours / seen:.4g} times as much" if seen else "which is zero"
