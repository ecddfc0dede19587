"""What a record has written down: values, the steps between them, and which value each tensor holds now.

A *value* is a tensor at one moment: a change in place gives the same tensor a new value.  Tensors are held strongly,
since both their identities and their addresses are used again as soon as they are gone.  Only what depends on a tensor
that requires gradients is written down; every other tensor that is read is a constant.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dtypes import device_name, dtype_name
from .graph import Graph, Node, Source, Value
from .provenance import source_at
from .torch_private import count_writes, schema, storage

PENDING = -1  # the version of a value that is about to be written


class Ref:
    """A value as an operator's argument; the same object for the same number, in every record."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"v{self.index}"


REFS = [Ref(k) for k in range(1024)]


def ref(index: int) -> Ref:
    """The reference to a value."""
    while index >= len(REFS):
        REFS.append(Ref(len(REFS)))
    return REFS[index]


class Slot:
    """Which value a tensor holds.

    version: PyTorch's count of changes in place, as of that value.
    root: the slot of the tensor that this one is a view of; None for one that is no view.
    epoch: of a root, how often anything was written into it; of a view, the root's count as of this value.
    """

    __slots__ = ("epoch", "is_leaf", "root", "tensor", "value", "version", "written")

    def __init__(self, tensor: Tensor, value: int, version: int, written: int, root: "Slot | None" = None) -> None:
        self.tensor, self.value, self.version, self.written, self.root = tensor, value, version, written, root
        self.epoch: int = 0 if root is None else root.epoch
        self.is_leaf = False


class Place(NamedTuple):
    """A position in the user's code, as cheap as it can be noted."""

    code: CodeType | None
    offset: int

    @property
    def source(self) -> Source | None:
        """The line, looked up."""
        if self.code is None:
            return None
        lines = [line for start, end, line in self.code.co_lines() if start <= self.offset < end and line]
        line = lines[0] if lines else self.code.co_firstlineno
        return source_at(self.code.co_filename, line, self.code.co_name)


@dataclass(frozen=True, slots=True)
class Write:
    """A change in place: of which memory, by which operator, and where."""

    storage: int
    op: str
    place: Place


class Step:
    """One operator: arguments with `Ref`s in place of tensors, results as numbers of values, None where unread.

    backward: what computes the derivative of a `FUNCTION`.
    needed: the values that its derivative reads, once that was asked.
    """

    __slots__ = ("args", "backward", "inputs", "key_end", "kwargs", "needed", "op", "outputs", "place")

    def __init__(
        self,
        op: str,
        args: tuple[Any, ...],
        kwargs: tuple[tuple[str, Any], ...],
        inputs: tuple[int, ...],
        outputs: tuple[int | None, ...],
        place: Place,
    ) -> None:
        self.op, self.args, self.kwargs, self.inputs, self.outputs = op, args, kwargs, inputs, outputs
        self.place = place
        self.key_end = 0
        self.backward: Any = None
        self.needed: frozenset[int] | None = None


class History:
    """Everything that one record knows.

    tensors, versions, types, written, producers: for each value the tensor (or the Python number) that holds it, its
        version, its type, how many writes there had been, and the number of the step that computed it (−1: none).
    keys: what distinguishes this sequence of operators from others: types and strides of inputs, and steps without
        their numbers.
    bindings, constants: by identity, the slots of tensors that have a derivative, and the values of those that do not.
    leaves, sources: the inputs that keep their gradients; all that have any, and these by identity of their tensors.
    addresses: where the memory of inputs was when they were read.
    """

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.versions: list[int] = []
        self.types: list[tuple[Any, ...]] = []
        self.written: list[int] = []
        self.producers: list[int] = []
        self.steps: list[Step] = []
        self.keys: list[Any] = []
        self.bindings: dict[int, Slot] = {}
        self.constants: dict[int, Slot] = {}
        self.addresses: dict[int, int] = {}
        self.leaves: list[int] = []
        self.sources: set[int] = set()
        self.leaf_values: dict[int, int] = {}
        self.writes: list[Write] = []
        self.hooks: dict[int, OrderedDict[int, Any]] = {}
        self.retained: dict[int, Tensor] = {}
        self._lying_in: dict[int, list[int]] = {}  # values by their memory, and the steps that read each value:
        self._readers: dict[int, list[int]] = {}  # kept up only where something is changed in place
        self._indexed = self._read = 0

    # ------------------------------------------------------------ values

    def define(self, tensor: Any, version: int, kind: tuple[Any, ...], producer: int = -1) -> int:
        """A new value."""
        self.tensors.append(tensor)
        self.versions.append(version)
        self.types.append(kind)
        self.written.append(len(self.writes))
        self.producers.append(producer)
        return len(self.tensors) - 1

    def input(self, tensor: Tensor) -> Slot:
        """A value that no step computes, as of now."""
        kind = (tensor.dtype, tensor.shape, tensor.device)
        version = count_writes(tensor)
        index = self.define(tensor, version, kind)
        self.keys.append((kind, tensor.stride()))
        self.addresses[index] = tensor.data_ptr()
        return Slot(tensor, index, version, len(self.writes))

    def leaf(self, tensor: Tensor, accumulates: bool) -> Slot:
        """A tensor that requires gradients, read for the first time; `accumulates`: whether it keeps them."""
        slot = self.input(tensor)
        slot.is_leaf = accumulates
        self.sources.add(slot.value)
        if accumulates:
            self.leaves.append(slot.value)
            self.keys.append("leaf")
        self.leaf_values[id(tensor)] = slot.value
        self.bindings[id(tensor)] = slot
        return slot

    def constant(self, tensor: Tensor) -> Slot:
        """A tensor that has no derivative; a new value if it was changed since it was last read."""
        slot = self.constants.get(id(tensor))
        if slot is None or slot.version != count_writes(tensor):
            slot = self.input(tensor)
            self.constants[id(tensor)] = slot
        return slot

    def number(self, number: float, dtype: torch.dtype) -> int:
        """A Python number that is an input of the derivative's program, in the precision of what it is used for."""
        kind = (dtype, torch.Size(()), "number")
        index = self.define(number, 0, kind)
        self.keys.append(kind)
        return index

    def add(self, step: Step, key: tuple[Any, ...]) -> None:
        """Write down a step whose results have been defined; `key`: the operator and its arguments."""
        self.steps.append(step)
        self.keys.append((*key, *[None if k is None else self.types[k][1] for k in step.outputs]))
        step.key_end = len(self.keys)

    def is_active(self, index: int) -> bool:
        """Whether a value may have a derivative."""
        return (self.producers[index] >= 0 or index in self.sources) and self.is_continuous(index)

    def is_continuous(self, index: int) -> bool:
        """Whether a value is of a dtype that has derivatives at all."""
        dtype = self.types[index][0]
        return bool(dtype.is_floating_point or dtype.is_complex)

    # ------------------------------------------------------------ memory

    def note_write(self, tensor: Tensor, op: str, place: Place) -> None:
        """Remember a change in place."""
        self.writes.append(Write(storage(tensor), op, place))

    def unseen_writes(self, slot: Slot) -> int:
        """How many changes of a tensor were made that the record has not seen."""
        key = storage(slot.tensor)
        seen = sum(write.storage == key for write in self.writes[slot.written :])
        return int(count_writes(slot.tensor)) - slot.version - seen

    def overwriting(self, index: int) -> Write | None:
        """The first write into the memory of a value after it was computed."""
        key = storage(self.tensors[index])
        return next((w for w in self.writes[self.written[index] :] if w.storage == key), None)

    def held_in(self, tensor: Tensor) -> list[int]:
        """The values that lie in a tensor's memory and have not been overwritten."""
        for index in range(self._indexed, len(self.tensors)):
            if isinstance(self.tensors[index], Tensor):
                self._lying_in.setdefault(storage(self.tensors[index]), []).append(index)
        for number in range(self._read, len(self.steps)):
            for index in self.steps[number].inputs:
                self._readers.setdefault(index, []).append(number)
        self._indexed, self._read = len(self.tensors), len(self.steps)
        key = storage(tensor)
        lying = [k for k in self._lying_in.get(key, ()) if self._is_valid(k, key)]
        self._lying_in[key] = lying
        return [k for k in lying if self.versions[k] != PENDING]

    def _is_valid(self, index: int, key: int) -> bool:
        held = self.tensors[index]
        return held is not None and storage(held) == key and self.versions[index] in (count_writes(held), PENDING)

    def steps_at(self, index: int) -> Iterator[Step]:
        """The steps that compute or read a value, as of the last call of `held_in`."""
        if self.producers[index] >= 0:
            yield self.steps[self.producers[index]]
        for number in self._readers.get(index, ()):
            yield self.steps[number]

    def copy_value(self, index: int) -> None:
        """Let a copy hold a value, whose memory is about to be overwritten."""
        self.tensors[index] = self.tensors[index].clone()
        self.versions[index] = count_writes(self.tensors[index])
        self.addresses.pop(index, None)

    def preserve(self, tensor: Tensor) -> None:
        """Copy every value that lies in a tensor's memory, which is about to be overwritten without a count."""
        for index in self.held_in(tensor):
            self.copy_value(index)

    def storages(self) -> set[int]:
        """The memory of every tensor that was read or computed."""
        return {storage(t) for t in self.tensors if isinstance(t, Tensor)}

    # ------------------------------------------------------------ as a graph

    def graph(self, steps: Sequence[Step], outputs: Sequence[int]) -> tuple[Graph, dict[int, Value]]:
        """Some steps as a graph, and its values by their numbers."""
        names = _Names()
        computed = {k for step in steps for k in step.outputs if k is not None}
        read = dict.fromkeys(k for step in steps for k in step.inputs if k not in computed)
        read.update((k, None) for k in outputs if k not in computed)
        leaves = set(self.leaves)
        values = {k: self.value(k, names(self._input_name(k, leaves))) for k in read}
        inputs = tuple(values.values())
        nodes = []
        for step in steps:
            values.update((k, self.value(k, names(_title(step)))) for k in step.outputs if k is not None)
            nodes.append(self.node(step, values))
        return Graph(inputs, tuple(nodes), tuple(values[k] for k in outputs)), values

    def node(self, step: Step, values: dict[int, Value]) -> Node:
        """A step as a node."""
        outputs = tuple(None if k is None else values[k] for k in step.outputs)
        kwargs = tuple((name, _argument(a, values)) for name, a in step.kwargs)
        return Node(step.op, _argument(step.args, values), kwargs, outputs, step.place.source)

    def name(self, index: int) -> str:
        """What a value is called: after the operator that computes it, or what kind of input it is."""
        producer = self.producers[index]
        return _title(self.steps[producer]) if producer >= 0 else self._input_name(index, self.leaf_values.values())

    def _input_name(self, index: int, leaves: Collection[int]) -> str:
        if index in leaves:
            return "leaf"
        return "number" if self.types[index][2] == "number" else "constant"

    def value(self, index: int, name: str) -> Value:
        """A value of a graph, of the type of one of the record."""
        dtype, shape, device = self.types[index]
        place = "cpu" if device == "number" else device_name(device)
        return Value(name, tuple(shape), dtype_name(dtype), place)


class _Names:
    """Names that are not given twice."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def __call__(self, base: str) -> str:
        count = self.taken.get(base)
        self.taken[base] = 0 if count is None else count + 1
        return base if count is None else f"{base}_{count + 1}"


def _title(step: Step) -> str:
    return step.op.split(".")[1].lstrip("_")


def _argument(tree: Any, values: dict[int, Value]) -> Any:
    if isinstance(tree, Ref):
        return values[tree.index]
    return tuple(_argument(item, values) for item in tree) if isinstance(tree, tuple) else tree


def exact(tree: Any) -> Any:
    """Arguments such that those of different calls are equal only if they mean the same."""
    for item in tree:
        if type(item) is not Ref and type(item) in (float, complex, tuple):
            return tuple([_exact(item) for item in tree])
    return tree


def _exact(item: Any) -> Any:
    if type(item) is tuple:
        return exact(item)
    return ("number", repr(item)) if type(item) in (float, complex) else item


def refs_in(tree: Any) -> Iterator[Ref]:
    """Every reference in nested tuples, in order."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, tuple):
        for item in tree:
            yield from refs_in(item)


def note_refs(tree: tuple[Any, ...], found: list[int]) -> None:
    """Append the number of every value that nested tuples refer to, in order."""
    for item in tree:
        if type(item) is Ref:
            found.append(item.index)
        elif type(item) is tuple:
            note_refs(item, found)


def written_arguments(op: Any) -> tuple[str, ...]:
    """The names of the arguments that an operator writes into."""
    return tuple(a.name for a in schema(op).arguments if a.alias_info is not None and a.alias_info.is_write)
