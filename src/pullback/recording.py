"""Recording of ATen calls below autograd, while a function is traced.

`Trace` knows which tensors belong to the trace, and lifts every other tensor that the function reads to an input.
`Recorder` writes down each ATen call.  What stands above autograd is in `frontier.py`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import torch_private as private
from .copied_views import CopiedViews
from .errors import CaptureError
from .graph import Source
from .matrix_functions import raise_errors
from .nested import flat_results, map_tensors, tensors_in
from .originals import resolved, targets
from .provenance import refusal, user_source
from .reads import NUMBER, SELECTION
from .torch_private import storage

ATEN = torch.ops.aten
DETACH, LIFT_FRESH = ATEN.detach.default, ATEN.lift_fresh.default
BUILT_IN = ("aten", "prims", "pullback", "inductor", "quantized")
CLONE, COPY = ATEN.clone.default, ATEN.copy_.default


class _Current(threading.local):
    """The innermost trace in progress in this thread."""

    trace: "Trace | None" = None


CURRENT = _Current()


# The trace -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Step:
    """One ATen call: its tensors are fakes, told apart by identity."""

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: list[Any]
    source: Source | None
    scope: str
    stopping: bool = False  # made under `no_grad`

    @property
    def mutates(self) -> bool:
        """Whether the call writes into one of its arguments."""
        return bool(private.schema(self.op).is_mutable)


@dataclass
class Trace:
    """What belongs to one capture: its fake tensors, and the real ones that it had to lift.

    lifted: by identity of the tensor that was lifted: that tensor and the fake that stands for it.
    created: identities of lifted tensors which the function itself made of Python numbers.
    names: what the user calls tensors, by their identity.
    inputs: the fakes of the function's own arguments.
    scope: the path of the module that is being called.
    is_final: whether nothing is going to differentiate what is captured.
    statistics: memory that nested programs write into without a derivative.
    own_derivatives: keys of those that the function brings along.
    originals: the fakes of inputs and the tensors that they stand for, by the memory of the fakes.
    may_assume: whether the graph may rely on where these lie, and on the values of integers, which is guarded then.
    placed, valued: the identities of the fakes that were asked for that.
    copies: those that stand for views at places that are data.
    outer, recorder: the trace around this one; what writes the calls down.
    """

    inside_transform: bool = False
    mode: Any = field(default_factory=lambda: private.FakeTensorMode(allow_non_fake_inputs=True))
    lifted: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    created: set[int] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    scope: str = ""
    is_final: bool = False
    statistics: set[int] = field(default_factory=set)
    own_derivatives: list[Any] = field(default_factory=list)
    originals: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    may_assume: bool = False
    placed: set[int] = field(default_factory=set)
    valued: set[int] = field(default_factory=set)
    copies: CopiedViews = field(default_factory=CopiedViews)
    outer: "Trace | None" = None
    recorder: Any = None

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor is a fake of this trace, perhaps inside wrappers of a `vmap` that the function calls."""
        if type(tensor) is private.FakeTensor:
            return getattr(tensor, "fake_mode", None) is self.mode
        return private.is_functorch_wrapped(tensor) and (
            not self.inside_transform or self.owns(private.unwrapped(tensor))
        )

    def fake(self, tensor: Tensor) -> Tensor:
        """A fake with the shape, strides, dtype and device of a tensor, whose values are never looked at."""
        with private.disable_current_modes(), self.mode:
            fake = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        own = self.originals.get(storage(tensor)) if type(tensor) is private.FakeTensor else None
        self.originals[storage(fake)] = (fake, tensor if own is None else own[1])
        return fake

    def lift(self, tensor: Tensor) -> Tensor:
        """The fake that stands for a tensor of the function's surroundings; the same fake each time."""
        if id(tensor) not in self.lifted:
            problem = unsupported_kind(tensor)
            if problem:
                raise refusal(f"f reads {problem}", "Convert it to an ordinary dense tensor first.")
            self.lifted[id(tensor)] = (tensor, self.fake(tensor))
        return self.lifted[id(tensor)][1]

    def own(self, tree: Any) -> Any:
        """Arguments in which every tensor belongs to this trace."""
        return map_tensors(tree, lambda tensor: tensor if self.owns(tensor) else self.lift(tensor))

    @property
    def is_current(self) -> bool:
        """Whether no other capture has started inside this one and not ended yet."""
        return CURRENT.trace is self

    def __enter__(self) -> "Trace":
        self.outer = CURRENT.trace
        CURRENT.trace = self
        return self

    def __exit__(self, *_: object) -> None:
        CURRENT.trace = self.outer
        self.outer = self.recorder = None  # which hold this trace in turn


def is_tracing() -> bool:
    """Whether a capture is in progress in this thread."""
    return CURRENT.trace is not None


def unsupported_kind(tensor: Tensor) -> str:
    """Why a tensor cannot be an input of a graph, or the empty string."""
    if tensor.layout is not torch.strided and not tensor.is_nested:
        return f"a tensor of layout {tensor.layout}, which is not done yet"
    if tensor.is_nested:
        return "a nested tensor, which is not done yet"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype}), which has no derivative"
    if private.is_wrapper_subclass(tensor):
        return f"a {type(tensor).__name__}, a tensor subclass that overrides dispatch, which is not done yet"
    return ""


# Below autograd ------------------------------------------------------------------------------------------------------


class Recorder(private.TorchDispatchMode):
    """Write down every ATen call, as it was made (`raw`) and decomposed by a table (`steps`).

    `raw` has in-place calls in it; once one is seen, `steps` is no longer kept up, for a functional program is then
    made by a second pass over `raw`.
    """

    supports_higher_order_operators = True  # else they fail before we can name them

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first call of all imports the whole of torch._dynamo

    def __init__(
        self, trace: Trace, table: Mapping[Any, Any], keep_raw: bool, attach: Any = None, region: Any = None
    ) -> None:
        super().__init__()
        self.attach, self.region = attach, region
        self.trace, self.table, self.keep_raw = trace, table, keep_raw
        self.raw: list[Step] = []
        self.steps: list[Step] = []
        self.depth = 0
        self.decomposing = True
        self.source: Source | None = None
        self.scope = ""
        self.stopped: set[int] = set()
        trace.recorder = self

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record one call and return its result, which is fake."""
        kwargs = kwargs or {}
        if not isinstance(op, private.OpOverload):
            return self.higher_order(op, args, kwargs)
        if op.namespace == "prim":  # reads a device or a layout
            return op(*args, **kwargs)
        if op is LIFT_FRESH and not self.trace.owns(args[0]):
            return self.created(args[0])
        args, kwargs = self.trace.own(args), self.trace.own(kwargs)
        if self.depth or not self.keep_raw:
            return self.decomposed(op, args, kwargs)
        return self.outermost(op, args, kwargs)

    def higher_order(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of an operator that takes functions."""
        if self.region is None:
            raise refusal(f"f uses the operator {op.name()!r}, which is not done yet", "Write it as plain tensor code.")
        with self:
            return self.region(op, self.trace.own(args), self.trace.own(kwargs))

    def outermost(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that the user's function made, and not a decomposition."""
        if self.is_composite(op, args):
            with self:
                return op.decompose(*args, **kwargs)
        self.source, self.scope = user_source(), self.trace.scope
        mutates, stopping = private.schema(op).is_mutable, not torch.is_grad_enabled()
        written = targets(op, args, kwargs) if mutates else []
        if mutates and op.namespace not in BUILT_IN:
            problem = f"{op}, an operator of your own, changes an argument in place"
            raise refusal(problem, "Let it return a new tensor, and copy that outside of it: x.copy_(op(x)).")
        if self.trace.copies:
            with self:
                self.trace.copies.before((args, kwargs), written)
        self.decomposing = self.decomposing and not mutates
        if mutates and stopping:
            args, kwargs = self.stop_operands(op, args, kwargs)
        result = self.decomposed(op, args, kwargs)
        self.raw.append(Step(op, args, kwargs, flat_results(result), self.source, self.scope, stopping))
        if self.trace.copies and written:
            with self:
                self.trace.copies.after(written)
        if stopping and not mutates and op is not DETACH:
            return self.stop(result, (args, kwargs))
        if self.attach is None:
            return result
        with self:
            return self.attach(op, args, kwargs, result)

    def decomposed(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call through its decomposition, if it has one."""
        decomposition = self.table.get(op) if self.decomposing else None
        if decomposition is not None:
            self.depth += 1
            try:
                with self:
                    result = decomposition(*args, **kwargs)
            finally:
                self.depth -= 1
            if result is not NotImplemented:
                return result
        if self.is_composite(op, args):
            with self:
                return op.decompose(*args, **kwargs)
        return self.leaf(op, args, kwargs)

    def is_composite(self, op: Any, args: tuple[Any, ...]) -> bool:
        """Whether autograd would have taken the call apart, had it not been skipped (in inference mode, say)."""
        return private.can_decompose(op) and private.would_decompose(op, args)

    def leaf(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call that stays in the graph."""
        if op is ATEN._linalg_check_errors.default and raise_errors(self.steps, args[0]):
            return None
        try:
            result = op(*args, **kwargs)
        except (private.DataDependentOutput, private.DynamicOutputShape) as error:
            known = resolved(self, op, args, kwargs)
            if known is None:
                raise self.unknown(op, error) from error
            return known[0]
        except private.UnsupportedOperator as error:
            way_out = "Say what shapes its results have, by torch.library.register_fake, or use other operators."
            raise refusal(f"PyTorch cannot trace {op}", way_out, self.line()) from error
        results = flat_results(result)
        for tensor in tensors_in(results):
            if problem := unsupported_kind(tensor):
                raise refusal(f"{op} makes {problem}", "Use ordinary dense tensors.", self.line())
        if self.decomposing and (not results or any(isinstance(r, Tensor) for r in results)):
            self.steps.append(Step(op, args, kwargs, results, self.source, self.scope))
        return result

    def unknown(self, op: Any, error: Exception) -> CaptureError:
        """The refusal of a result that depends on values which are not known."""
        if isinstance(error, private.DataDependentOutput):
            problem = f"f takes the value of a tensor out of the graph ({op})"
            return refusal(problem, f"{NUMBER.capitalize()}.", self.line())
        problem = f"{op} has a result whose shape depends on the values of a tensor, which is not done yet"
        return refusal(problem, SELECTION, self.line())

    def line(self) -> Source | None:
        """The line of the call that is being recorded."""
        return user_source() if self.keep_raw else self.source

    def created(self, tensor: Tensor) -> Tensor:
        """A tensor that the function makes of Python numbers (`torch.tensor(3.)`): a constant of the graph."""
        constant = self.trace.lift(tensor)
        self.trace.created.add(id(tensor))
        with self.trace.mode:
            result = LIFT_FRESH(tensor)  # a fake that remembers its value, so that `int(torch.tensor(3))` works
        step = Step(CLONE, (constant,), {}, [result], user_source(), self.trace.scope)
        self.steps.append(step)
        self.raw.append(step)
        return result

    def stop(self, result: Any, operands: Any) -> Any:
        """Cut the derivative of what is computed under `no_grad`, which leaves no other trace below autograd."""
        known = {storage(t) for t in tensors_in(operands)}
        if not known:
            return result
        self.stopped.update(storage(t) for t in tensors_in(result) if storage(t) not in known)
        with self:
            return map_tensors(result, lambda t: DETACH(t) if _differentiable(t) else t)

    def stop_operands(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Under `no_grad`, cut what flows into a tensor that is changed in place."""
        written = targets(op, args, kwargs)
        foreign = {storage(fake) for _, fake in self.trace.lifted.values()}
        foreign |= {storage(fake) for fake in self.trace.inputs}
        for tensor in written:
            if _differentiable(tensor) and storage(tensor) not in self.stopped | foreign:
                raise refusal(
                    "f changes a tensor in place under torch.no_grad() after computing it with gradients on",
                    "The derivative of that is not defined: compute a new tensor, and use .detach() where it is meant.",
                )
        kept = {id(t) for t in written}

        def cut(tensor: Tensor) -> Tensor:
            return DETACH(tensor) if _differentiable(tensor) and id(tensor) not in kept else tensor

        with self:
            return map_tensors(args, cut), map_tensors(kwargs, cut)


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
