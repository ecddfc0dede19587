"""Functions compiled for one signature: they check it, and run; they are saved, loaded, pickled and copied.

The tensors that the original function read besides its arguments are bound: the very objects, so that a later change of
them in place is seen; what stands in a file, or in a pickle, are their values.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .emit.backends import BACKENDS, Choice, emit
from .encoding import UnknownContent
from .errors import ArgumentError, ProgramFileError, SignatureError
from .files import Contents, TensorType, dumps, loads, write_atomically
from .provenance import describe
from .recording import CURRENT
from .signature import Signature
from .structure import rebuilder
from .torch_private import DisableAutocast, is_any_autocast_enabled, peek_interpreter, tree_flatten, tree_unflatten


@dataclass(frozen=True, eq=False)
class CompiledFunction:
    """A function that was compiled for arguments of one signature: it is never traced again.

    Made by `transform.compile(*examples)` and by `pullback.load`.  It takes arguments of the structure, shapes, dtypes,
    strides and devices of the examples, and the same numbers and strings; tensors that the function read besides them
    are bound.

    >>> import torch, pullback
    >>> slope = pullback.grad(lambda x: (x**3).sum()).compile(torch.ones(2))
    >>> slope(torch.tensor([1.0, 2.0]))
    tensor([ 3., 12.])
    """

    _contents: Contents
    _run: Callable[..., Any]
    _finish: Callable[[Any], Any]
    _signature: Signature
    _code: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            SignatureError: an argument is unlike the one that the function was compiled for; names it.
            ArgumentError: a tensor requires gradients while gradients are on, which results would not be part of; or a
                trace or transform is in progress, of which a finished program cannot be a part.
        """
        flat = self._signature.lookup(None, args, kwargs)
        if flat is None:
            raise SignatureError(self._difference(args, kwargs))
        contents = self._contents
        flat = (*flat, *contents.captured)
        before = torch.is_grad_enabled()
        if before or peek_interpreter() is not None or CURRENT.trace is not None or is_any_autocast_enabled():
            return self._run_carefully(flat)
        return self._finish(self._run(*flat))

    def _run_carefully(self, flat: Sequence[torch.Tensor]) -> Any:
        """Run where settings of PyTorch's are on that the program must not feel, or cannot serve."""
        title = self._contents.title
        if peek_interpreter() is not None or CURRENT.trace is not None:
            raise ArgumentError(
                f"{title} is compiled, and called inside another transform, which cannot look into a finished program: "
                "call the transform that it was compiled from"
            )
        differentiable = self._contents.differentiable if torch.is_grad_enabled() else ()
        found = next((k for k in differentiable if flat[k].requires_grad), None)
        if found is not None:
            raise ArgumentError(
                f"{title} is compiled and computes numbers, outside PyTorch's autograd graph, but a tensor that it "
                f"takes ({describe(flat[found])}) requires gradients, and gradients are on: call it under "
                "torch.no_grad(), or pass x.detach()"
            )
        with torch.no_grad(), DisableAutocast():
            return self._finish(self._run(*flat))

    def _difference(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        text, required, seen = self._signature.difference(args, kwargs)
        return (
            f"{self._contents.title} was compiled for other arguments: {text} has to be {required}, and is {seen}; "
            "compile it for such arguments too, or call the transform itself, which does so when it meets new ones"
        )

    @property
    def code(self) -> str:
        """The program as Python text."""
        return self._code

    @property
    def plan(self) -> str:
        """How the derivative is computed, and what that costs, as `str(transform.plan(...))`."""
        return self._contents.plan

    @property
    def captured(self) -> tuple[torch.Tensor, ...]:
        """The tensors that the function read besides its arguments, which are bound."""
        return self._contents.captured

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program, and the values of the tensors that are bound, to a file for `pullback.load`.

        The file appears whole or not at all.  It holds no code.

        Raises:
            ProgramFileError: the program holds what a file cannot: an argument or result in a container that is no
                tuple, list or dictionary, an operator that is not PyTorch's own, or several programs (a `chunk_size`).
            OSError: the file cannot be written.
        """
        write_atomically(path, self._bytes(os.fspath(path)))

    def _bytes(self, path: str) -> bytes:
        try:
            return dumps(self._contents)
        except UnknownContent as error:
            raise ProgramFileError(f"{path} cannot be written with {self._contents.title}: {error}") from error

    def __reduce__(self) -> Any:
        """Pickle the bytes of a file."""
        return _restored, (self._bytes("a pickle"),)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledFunction":
        """The same program with copies of the tensors that are bound."""
        captured = tuple(copy.deepcopy(list(self._contents.captured), memo))
        return replace(self, _contents=replace(self._contents, captured=captured))

    def __repr__(self) -> str:
        return f"<pullback compiled {self._contents.title}>"


def load(path: str | os.PathLike[str]) -> CompiledFunction:
    """Load a compiled function that `CompiledFunction.save` wrote, without the function that it was compiled from.

    Nothing is traced, and nothing in the file is run as code: the program is put together anew from operators of an
    allow-list, by the back end that it was compiled for; where that needs a compiler which is not there, as a Python
    program, with a warning.

    Raises:
        ProgramFileError: the file is damaged or foreign, of another version of the format, was compiled for another
            version of PyTorch or for a device that is not there; in one sentence that names the path.
        OSError: the file cannot be read.

    Cost: about 0.1 ms an operator; machine code is found where it was built before.

    >>> import tempfile, torch, pullback
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     pullback.grad(lambda x: (x**3).sum()).compile(torch.ones(2)).save(f"{directory}/slope")
    ...     slope = pullback.load(f"{directory}/slope")
    >>> slope(torch.tensor([1.0, 2.0]))
    tensor([ 3., 12.])
    """
    return _loaded(Path(path).read_bytes(), os.fspath(path))


def _restored(data: bytes) -> CompiledFunction:
    return _loaded(data, "the pickled program")


def _loaded(data: bytes, path: str) -> CompiledFunction:
    contents = loads(data, path)
    try:
        return _assembled(contents)
    except UnknownContent as error:
        raise ProgramFileError(f"{path} cannot run here: {error}") from error


def _assembled(contents: Contents) -> CompiledFunction:
    """Emit a program anew, by the same back end, and write the check of its signature."""
    assert contents.graph is not None
    if contents.backend not in BACKENDS:
        raise UnknownContent(f"there is no back end {contents.backend[:40]!r}")
    choice = Choice(contents.backend, "as it was compiled", 0.0)
    program = emit(contents.graph, contents.name, plain=True, backend=choice, returned=contents.returned)
    args, kwargs = _examples(contents.args), _examples(contents.kwargs)
    signature = Signature.of(args, kwargs, contents.names)
    return CompiledFunction(contents, program.run, rebuilder(contents.structure), signature, program.code)


def _examples(tree: Any) -> Any:
    leaves, spec = tree_flatten(tree)
    return tree_unflatten([leaf.example() if isinstance(leaf, TensorType) else leaf for leaf in leaves], spec)


def types_of(tree: Any) -> Any:
    """Arguments with a `TensorType` in place of each tensor."""
    leaves, spec = tree_flatten(tree)
    return tree_unflatten([TensorType.of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)
