"""Define-by-run: `record()` writes down what a block computes, and the tape differentiates it afterwards."""

import copy
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentError, RecordError, ShapeError
from .function_calls import function_calls_handled
from .graph import Graph
from .history import History
from .interception import function_handler, say_what_to_call, start_refusing_backward, stop_refusing_backward
from .leaves import accumulate, run_hooks
from .observation import Above, Below
from .provenance import describe
from .pulls import needs
from .recorded_control_flow import UNCOMPILED
from .recording import CURRENT
from .replay import derivative, sighted
from .scribe import Scribe
from .tapes import THREAD, is_recording, mark, was_recorded
from .torch_private import count_writes, gradient_hooks

_HOLDERS = 5  # references to a tensor of a record that has not escaped: three of ours, a loop's, and an argument's


def record() -> "Tape":
    """Record what a block computes, with whatever control flow, so that its derivatives can be asked for.

    Used as `with pullback.record() as tape:`; inside the block or after it, `tape.backward(loss)` and
    `tape.grad(loss, inputs)` differentiate any tensor that was computed in it, as often as wanted.  What has a
    derivative is what PyTorch would say: results of tensors that require gradients, where grad mode is on.

    Raises RecordError, on the line in question, for what a record cannot follow.

    Cost: some microseconds an operator; every tensor with a derivative is kept until the tape is released or dropped.
    The first two times, a sequence of operators is differentiated step by step; from the third time on by a program
    compiled for it.

    >>> import torch, pullback
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> with pullback.record() as tape:
    ...     loss = (w ** 2).sum() if w.sum() > 0 else w.sum()
    >>> tape.grad(loss, w)
    tensor([2., 4.])
    >>> tape.backward(loss)
    >>> w.grad
    tensor([2., 4.])
    """
    return Tape()


class Tape:
    """What a block computed; see `record`."""

    def __init__(self) -> None:
        self.history = History()
        self.scribe = Scribe(self.history, needs)
        self._thread: int | None = None
        self._functions: Any = None
        self._above: Above | None = None
        self._below: Below | None = None
        self._is_released = False

    @property
    def above(self) -> Above:
        """What stands above autograd while the block runs."""
        assert self._above is not None
        return self._above

    @property
    def paused(self) -> bool:
        """Whether calls are let through unrecorded at the moment."""
        return self.scribe.paused

    # ------------------------------------------------------------ the block

    def __enter__(self) -> "Tape":
        self._check_entry()
        self._thread = threading.get_ident()
        self._below, self._above = Below(self.scribe), Above(self.scribe)
        self._functions = function_calls_handled(function_handler(self))
        start_refusing_backward()
        UNCOMPILED.__enter__()
        self._functions.__enter__()
        self._below.__enter__()
        self._above.__enter__()
        THREAD.tapes.append(self)
        return self

    def _check_entry(self) -> None:
        if self._thread is not None:
            by = "this" if self._thread == threading.get_ident() else "another"
            raise RecordError(f"a tape is entered a second time, the first time by {by} thread: call record() for each")
        if torch.is_inference_mode_enabled():
            raise RecordError("record() is entered in inference mode, where nothing has a derivative: leave that first")
        if CURRENT.trace is not None:
            raise RecordError(
                "record() is entered inside a function that pullback traces: use pullback.grad and its like there, or "
                "call the function itself without a transform around it"
            )

    def __exit__(self, *_: object) -> None:
        if self._thread != threading.get_ident():
            raise RecordError("a record's block ends in another thread than it began in: call record() for each thread")
        if self._above is None:  # it had to end together with a block around it
            return
        is_innermost = THREAD.tapes[-1] is self
        while THREAD.tapes[-1] is not self:  # no mode is left behind
            THREAD.tapes[-1]._end()
        self._end()
        if not is_innermost:
            raise RecordError(
                "a record's block ends before a block that was entered inside it: a generator that was suspended "
                "inside of a block, for instance. Both have ended now"
            )

    def _end(self) -> None:
        """End the block of the innermost tape."""
        assert self._above is not None and self._below is not None
        THREAD.tapes.pop()
        above, self._above = self._above, None
        below, self._below = self._below, None
        above.__exit__(None, None, None)
        below.__exit__(None, None, None)
        functions, self._functions = self._functions, None
        functions.__exit__(None, None, None)
        UNCOMPILED.__exit__()
        stop_refusing_backward()
        self._unmark(above.marked)

    def _unmark(self, marked: list[Tensor]) -> None:
        """Results become plain tensors again; those that outlive the block say where they are from."""
        outer = THREAD.tapes[-1] if THREAD.tapes else None
        for tensor in marked:
            if outer is not None and id(tensor) in outer.history.bindings:
                outer._above.marked.append(tensor)
                continue
            if tensor.is_leaf:
                tensor.requires_grad_(False)
            if sys.getrefcount(tensor) > _HOLDERS:
                mark(tensor)
                if tensor.numel() == 1:
                    tensor.backward = say_what_to_call  # type: ignore[method-assign]

    # ------------------------------------------------------------ derivatives

    def grad(self, loss: Tensor, inputs: Any, seed: Tensor | None = None, *, allow_unused: bool = False) -> Any:
        """The derivative of a recorded tensor, in the structure of `inputs`.

        Arguments:
            loss: any tensor that was computed in the block.
            inputs: a tensor, or tuples, lists and dictionaries of tensors: leaves, or results in the block.
            seed: the cotangent of `loss`, of its shape and dtype; needed unless `loss` has one element.
            allow_unused: whether None stands for the derivative in an input that `loss` does not depend on; else that
                is an error.

        Raises:
            RecordError: a tensor is none of this record's, or was overwritten; the tape is released.
            ArgumentError: an input is no tensor, or unused.
            ShapeError: the seed does not fit, or is needed.
            MissingRuleError: operators on the way have no rule.

        >>> import torch, pullback
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> with pullback.record() as tape:
        ...     y = x * x
        ...     z = y * y
        >>> tape.grad(z, {"x": x, "y": y})
        {'x': tensor(108.), 'y': tensor(18.)}
        """
        output, seed = self._output(loss), self._seed(loss, seed)
        inputs = tuple(inputs) if isinstance(inputs, Iterator) else inputs
        flat = list(_leaves(inputs))
        sources = [self._source(tensor) for tensor in flat]
        asked = tuple(dict.fromkeys(k for k in sources if k is not None))
        hooked = bool(self.history.hooks) or any(gradient_hooks(t)[0] for t in flat)
        with self._unseen() as fuse:
            hook = self._call_hooks if hooked else None
            found = derivative(self.history, output, seed, asked, fuse=fuse, hook=hook)
        if not allow_unused:
            self._refuse_unused(loss, flat, [k is None or k not in found for k in sources])
        results, given = [], set()
        for k in sources:
            result = None if k is None else found.get(k)
            results.append(result.clone() if k in given and result is not None else result)
            given.add(k)
        return _rebuilt(inputs, iter(results))

    def backward(self, loss: Tensor, seed: Tensor | None = None) -> None:
        """Add the derivative of a recorded tensor to `.grad` of every leaf that requires gradients.

        Hooks of leaves run as PyTorch runs them, and so do those that were registered on results in the block.

        Arguments:
            loss: any tensor that was computed in the block.
            seed: the cotangent of `loss`, of its shape and dtype; needed unless `loss` has one element.

        Raises: as `grad`.
        """
        output, seed = self._output(loss), self._seed(loss, seed)
        history = self.history
        with self._unseen() as fuse:
            if history.hooks or history.retained:
                derivative(history, output, seed, None, fuse=fuse, hook=self._take)
                return
            found = derivative(history, output, seed, None, fuse=fuse, hook=None)
        with torch.no_grad():
            for k, gradient in found.items():
                accumulate(history.tensors[k], gradient)

    def graph(self, output: Tensor) -> Graph:
        """The operators between the leaves and a recorded tensor, with the lines that they come from.

        Raises RecordError if the tensor is none of this record's, or the tape is released.
        """
        k = self._output(output)
        steps = sighted(self.history, k, None, True).path.steps
        return self.history.graph([self.history.steps[n] for n in reversed(steps)], [k])[0]

    def release(self) -> None:
        """Free everything that is kept for derivatives; nothing can be asked of the tape afterwards."""
        self._is_released = True
        self.scribe.paused = True
        self.history = self.scribe.history = History()

    # ------------------------------------------------------------ what is asked for

    def _output(self, tensor: Any) -> int:
        """The number of the value that is differentiated."""
        if self._is_released:
            raise RecordError("this tape was released, or its block failed: record the block again")
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"only a recorded tensor can be differentiated, not {tensor!r}")
        slot = self.history.bindings.get(id(tensor))
        if slot is None:
            raise RecordError(self._why_unknown(tensor))
        if self._above is not None:
            return self.scribe.read(tensor).index
        if slot.version not in (-1, count_writes(tensor)) and not slot.is_leaf:
            raise RecordError(
                f"{describe(tensor)} was changed in place after the block: what it holds now was not recorded"
            )
        return slot.value

    def _why_unknown(self, tensor: Tensor) -> str:
        kind = describe(tensor)
        if was_recorded(tensor):
            return f"{kind} was recorded by another tape: ask the tape in whose block it was computed"
        if tensor.grad_fn is not None:
            return f"{kind} was computed by torch.autograd, outside of the block: compute it inside"
        if id(tensor) in self.history.constants:
            return f"{kind} was read in the block, but requires no gradients: call requires_grad_() before it is used"
        return (
            f"{kind} was not recorded: it was computed outside of the block (before it or after it), under no_grad, or "
            "from nothing that requires gradients"
        )

    def _source(self, tensor: Any) -> int | None:
        """The number of a value to differentiate with respect to; None for a leaf that the block did not read."""
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"inputs hold {tensor!r}, which is no tensor: pass tensors, and structures of tensors")
        leaf = self.history.leaf_values.get(id(tensor))
        if leaf is not None:
            return leaf
        if id(tensor) not in self.history.bindings:
            if tensor.requires_grad and tensor.is_leaf:
                return None
            raise RecordError(self._why_unknown(tensor))
        return self._output(tensor)

    def _seed(self, loss: Tensor, seed: Tensor | None) -> Tensor:
        if seed is None:
            if loss.numel() != 1:
                raise ShapeError(
                    f"{describe(loss)} has {loss.numel()} elements, so that its derivative needs a seed: pass a "
                    "tensor of its shape, or reduce it in the block, by .sum() or .mean()"
                )
            return torch.ones(loss.shape, dtype=loss.dtype, device=loss.device)
        if not isinstance(seed, Tensor) or seed.shape != loss.shape or seed.dtype != loss.dtype:
            seen = describe(seed) if isinstance(seed, Tensor) else repr(seed)
            raise ShapeError(f"the seed is {seen}, but what is differentiated is {describe(loss)}: both must agree")
        return seed

    def _refuse_unused(self, loss: Tensor, inputs: list[Tensor], unused: list[bool]) -> None:
        missing = [f"{k} ({describe(t)})" for k, t in enumerate(inputs) if unused[k]]
        if missing:
            raise ArgumentError(
                f"{describe(loss)} does not depend on input {', '.join(missing)}: leave it out, or pass "
                "allow_unused=True, which gives None for it"
            )

    # ------------------------------------------------------------ while derivatives are computed

    @contextmanager
    def _unseen(self) -> Iterator[bool]:
        """Compute outside of this record, but inside of others; yields whether there are none."""
        before, here = self.scribe.paused, self in THREAD.tapes
        if here:
            self.scribe.paused = True
        try:
            is_alone = not is_recording()
            with torch.set_grad_enabled(torch.is_grad_enabled() and not is_alone):
                yield is_alone
        finally:
            if here:
                self.scribe.paused = before

    @contextmanager
    def _as_user(self) -> Iterator[None]:
        """Run what is the user's own: changes that it makes are seen, but have no derivative."""
        before, self.scribe.paused = self.scribe.paused, self._above is None
        try:
            with torch.no_grad():
                yield
        finally:
            self.scribe.paused = before

    def _call_hooks(self, k: int, cotangent: Tensor) -> Tensor:
        hooks = [*self.history.hooks.get(k, {}).values()]
        held = self.history.tensors[k]
        if self.history.producers[k] < 0:
            hooks += gradient_hooks(held)[0]
        if not hooks:
            return cotangent
        with self._as_user():
            return run_hooks(hooks, cotangent)

    def _take(self, k: int, cotangent: Tensor) -> Tensor:
        """A complete cotangent in `backward`: hooks, and `.grad` of what keeps one."""
        if self.history.producers[k] < 0:
            with self._as_user():
                accumulate(self.history.tensors[k], cotangent)
            return cotangent
        cotangent = self._call_hooks(k, cotangent)
        if k in self.history.retained:
            with self._as_user():
                self._keep_gradient(self.history.retained[k], cotangent)
        return cotangent

    def _keep_gradient(self, result: Tensor, cotangent: Tensor) -> None:
        result.grad = cotangent.clone() if result.grad is None else result.grad + cotangent

    def __repr__(self) -> str:
        state = "released" if self._is_released else "open" if self._above is not None else "closed"
        return f"<pullback tape, {state}: {len(self.history.steps)} operators>"


def _leaves(tree: Any) -> Iterator[Any]:
    """What nested tuples, lists and dictionaries hold, in order."""
    if isinstance(tree, (tuple, list, dict)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(item)
    else:
        yield tree


def _rebuilt(tree: Any, leaves: Iterator[Any]) -> Any:
    """The same structure of other leaves; PyTorch's own function for it leaves a reference cycle at each call."""
    if isinstance(tree, dict):
        changed = copy.copy(tree)
        changed.update({key: _rebuilt(item, leaves) for key, item in tree.items()})
        return changed
    if isinstance(tree, (tuple, list)):
        items = [_rebuilt(item, leaves) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return next(leaves)
