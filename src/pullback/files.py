"""The file of a compiled program: what it holds, and how it is refused.

A file is an uncompressed zip archive: `program.json` with format, versions, signature, graph and plan; the bytes of
each captured tensor; and `digest`, the SHA-256 of all the rest.  Nothing in it is code: the graph is emitted anew when
it is loaded, from an allow-list of operators.
"""

import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .dtypes import dtype_name, torch_dtype
from .encoding import UnknownContent, decode_graph, decode_tree, encode_graph, encode_leaf, encode_tree
from .errors import GraphError, ProgramFileError, UnsupportedTorchError
from .graph import Graph, Value
from .structure import Leaf, Structure
from .torch_private import SUPPORTED

FORMAT = "pullback program"
VERSION = 2
_PROGRAM, _DIGEST = "program.json", "digest"
_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class TensorType:
    """What a tensor has to be, whatever its values are."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    device: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorType":
        """The type of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), dtype_name(tensor.dtype), str(tensor.device))

    def example(self) -> torch.Tensor:
        """A tensor of this type, whose memory is never touched.  Raises UnknownContent where none can be made."""
        try:
            dtype = torch_dtype(self.dtype)
            return torch.empty_strided(self.shape, self.stride, dtype=dtype, device=self.device)
        except (RuntimeError, AssertionError) as error:
            problem = str(error).splitlines()[0]
            raise UnknownContent(f"a tensor on {self.device!r} cannot be made here ({problem})") from error


@dataclass(frozen=True)
class Contents:
    """What a file holds of a compiled function.

    name, title: what the function is called, and that with the place where it stands.
    args, kwargs, names: the signature: the arguments with a `TensorType` for each tensor, and what the positional ones
        are called.
    graph: the lowered program, from the tensors among the arguments and the captured ones to its flat results; None
        for a function that runs several.
    returned: results, by number, that are an input itself after it was written into.
    structure: how the flat results are put together.
    captured: the tensors that the function read besides its arguments.
    differentiable: inputs, by number, that results depend on.
    plan: the plan as text.
    backend: the back end that runs it, which gives the same bits where it is loaded.
    """

    name: str
    title: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    graph: Graph | None
    returned: Mapping[int, Value]
    structure: Structure
    captured: tuple[torch.Tensor, ...]
    differentiable: tuple[int, ...]
    plan: str
    backend: str


# ---------------------------------------------------------------- writing


def dumps(contents: Contents) -> bytes:
    """The bytes of a file.  Raises UnknownContent, naming what a file cannot hold."""
    if contents.graph is None:
        raise UnknownContent("a file cannot hold a Jacobian in chunks, which runs several programs")
    number = {value: k for k, value in enumerate(contents.graph.inputs)}
    program = {
        "format": FORMAT,
        "version": VERSION,
        "torch": torch.__version__,
        "byteorder": sys.byteorder,
        "name": contents.name,
        "title": contents.title,
        "signature": {
            "args": encode_tree(contents.args, _encode_type),
            "kwargs": encode_tree(contents.kwargs, _encode_type),
            "names": list(contents.names),
        },
        "graph": encode_graph(contents.graph),
        "returned": [[k, number[value]] for k, value in contents.returned.items()],
        "structure": encode_tree(contents.structure, encode_leaf),
        "captured": [_encode_type(TensorType.of(tensor)) for tensor in contents.captured],
        "differentiable": list(contents.differentiable),
        "plan": contents.plan,
        "backend": contents.backend,
    }
    parts = {_PROGRAM: json.dumps(program, allow_nan=False).encode()}
    parts |= {f"tensor/{k}": _bytes_of(tensor) for k, tensor in enumerate(contents.captured)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (*parts.items(), (_DIGEST, _digest(parts))):
            archive.writestr(zipfile.ZipInfo(name), data)  # without a time: equal programs are equal files
    return buffer.getvalue()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that at any moment the old one or the new one is there, whole."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _encode_type(item: Any) -> list[Any] | None:
    if not isinstance(item, TensorType):
        return None
    return [list(item.shape), list(item.stride), item.dtype, item.device]


def _bytes_of(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def _digest(parts: Mapping[str, bytes]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name} {len(parts[name])}\n".encode())
        digest.update(parts[name])
    return digest.hexdigest().encode()


# ---------------------------------------------------------------- reading


def loads(data: bytes, path: str) -> Contents:
    """What a file holds.

    Raises ProgramFileError, in one sentence that names the path, if it is damaged, foreign, of another version of the
    format or of PyTorch, or holds what no program does.
    """
    parts = _parts(data, path)
    program = _program(parts, path)
    try:
        return _contents(program, parts)
    except (UnknownContent, GraphError, UnsupportedTorchError) as error:
        raise ProgramFileError(f"{path} holds what no program does: {error}") from error
    except _WRONG as error:
        raise ProgramFileError(f"{path} holds no whole program ({type(error).__name__}: {error})") from error


def _parts(data: bytes, path: str) -> dict[str, bytes]:
    """The parts of the archive, whose digest is right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ProgramFileError(f"{path} is compressed, which a compiled program never is")
            parts = {item.filename: archive.read(item) for item in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, *_WRONG) as error:
        raise ProgramFileError(f"{path} is no compiled program, or it is damaged ({error})") from error
    found = parts.pop(_DIGEST, None)
    if found is None or _PROGRAM not in parts:
        raise ProgramFileError(f"{path} is no compiled program of pullback's")
    if found != _digest(parts):
        raise ProgramFileError(f"{path} is damaged: its contents do not match their digest")
    return parts


def _program(parts: Mapping[str, bytes], path: str) -> dict[str, Any]:
    """The description of the program, of a version that can be read here."""
    try:
        program = json.loads(parts[_PROGRAM])
        kind, version, written = program["format"], program["version"], str(program["torch"])
        order = program["byteorder"]
    except (*_WRONG, UnicodeDecodeError) as error:
        raise ProgramFileError(f"{path} is no compiled program of pullback's ({type(error).__name__})") from error
    if kind != FORMAT:
        raise ProgramFileError(f"{path} is no compiled program of pullback's: its format is {str(kind)[:40]!r}")
    if version != VERSION:
        raise ProgramFileError(f"{path} is of version {version!r} of the format, and this pullback reads {VERSION}")
    if ".".join(written.split(".")[:2]) != SUPPORTED:
        running = f"and PyTorch {torch.__version__} is running"
        raise ProgramFileError(f"{path} was compiled for PyTorch {written[:40]}, {running}: compile the function anew")
    if order != sys.byteorder:
        raise ProgramFileError(f"{path} was written on a machine of byte order {str(order)[:10]!r}, unlike this one")
    return program


def _contents(program: Mapping[str, Any], parts: Mapping[str, bytes]) -> Contents:
    graph = decode_graph(program["graph"])
    signature = program["signature"]
    captured = [_tensor(data, parts[f"tensor/{k}"]) for k, data in enumerate(program["captured"])]
    contents = Contents(
        str(program["name"]),
        str(program["title"]),
        decode_tree(signature["args"], _decode_type),
        decode_tree(signature["kwargs"], _decode_type),
        tuple(map(str, signature["names"])),
        graph,
        {int(k): graph.inputs[number] for k, number in program["returned"]},
        decode_tree(program["structure"], _leaf_below(len(graph.outputs))),
        tuple(captured),
        tuple(int(k) for k in program["differentiable"]),
        str(program["plan"]),
        str(program["backend"]),
    )
    _check(contents, graph)
    return contents


def _check(contents: Contents, graph: Graph) -> None:
    """Refuse a file whose parts do not fit each other."""
    if type(contents.args) is not tuple or type(contents.kwargs) is not dict:
        raise UnknownContent("its arguments are no tuple and dictionary")
    types = [*_types(contents.args), *_types(contents.kwargs), *map(TensorType.of, contents.captured)]
    if len(types) != len(graph.inputs):
        raise UnknownContent(f"the program takes {len(graph.inputs)} tensors, and it is given {len(types)}")
    for given, value in zip(types, graph.inputs, strict=True):
        if (given.shape, given.dtype, given.device) != (value.shape, value.dtype, value.device):
            raise UnknownContent(f"the program takes {value!r}, and it is given {given}")
    if not all(0 <= k < len(graph.outputs) for k in contents.returned):
        raise UnknownContent("it returns more than it computes")
    if not all(0 <= k < len(graph.inputs) for k in contents.differentiable):
        raise UnknownContent("its results depend on more than it is given")


def _types(tree: Any) -> list[TensorType]:
    if isinstance(tree, TensorType):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [found for item in items for found in _types(item)]


def _leaf_below(count: int) -> Callable[[Any], Leaf]:
    def leaf(position: Any) -> Leaf:
        if type(position) is not int or not 0 <= position < count:
            raise UnknownContent(f"{str(position)[:40]} is no result")
        return Leaf(position)

    return leaf


def _decode_type(data: Any) -> TensorType:
    match data:
        case [list(shape), list(stride), str(dtype), str(device)] if len(shape) == len(stride):
            if all(type(n) is int and n >= 0 for n in (*shape, *stride)):
                return TensorType(tuple(shape), tuple(stride), dtype, device)
    raise UnknownContent(f"{str(data)[:80]} is no type of a tensor")


def _tensor(data: Any, content: bytes) -> torch.Tensor:
    """A captured tensor with its values."""
    tensor = _decode_type(data).example()
    if len(content) != tensor.numel() * tensor.element_size():
        raise UnknownContent(f"a tensor of shape {list(tensor.shape)} has {len(content)} bytes")
    if content:
        plain = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(tensor.dtype)
        tensor.copy_(plain.reshape(tensor.shape))
    return tensor
