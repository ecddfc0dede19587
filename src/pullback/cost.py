"""The cost model: scalar multiplications of a program's nodes, and the seconds that they are predicted to take."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from .expressions import Contraction
from .graph import Node, Value
from .terms import HOLE, Application, Term, term_labels

# Words in the names of element-wise operators that multiply.
_MULTIPLYING = "mul div pow reciprocal square backward softmax norm lerp addcmul addcdiv".split()


@dataclass(frozen=True)
class CostModel:
    """What one kind of work takes on one machine; `calibration` measures it.

    launch: seconds until an operator has begun, and its result exists.
    view: seconds for an operator that only looks at memory in another way.
    multiplication: seconds for each multiplication in a product of matrices.
    entry: seconds for each entry that an operator reads or writes, as long as they all lie in a cache.
    streamed: the same for each entry beyond `CACHED`, which comes from memory.
    fresh: seconds for each byte of memory that the system hands out anew.
    heavy: seconds for each entry of a function such as sin or exp.
    source: where the figures come from.
    """

    launch: float
    view: float
    multiplication: float
    entry: float
    streamed: float
    fresh: float
    heavy: float
    source: str

    def contraction(self, multiplications: int, entries: int) -> float:
        """Seconds for a contraction with so many multiplications, that reads and writes so many entries."""
        return self.launch + self.multiplication * multiplications + self.moved(entries)

    def elementwise(self, entries: int, heavy: bool = False) -> float:
        """Seconds for an element-wise operator that reads and writes so many entries."""
        return self.launch + max(self.moved(entries), self.heavy * entries if heavy else 0.0)

    def moved(self, entries: int) -> float:
        """Seconds until so many entries are read or written."""
        return self.entry * min(entries, CACHED) + self.streamed * max(entries - CACHED, 0)


CACHED = 2**18  # entries; the caches of one processor hold a megabyte or two

SHIPPED: dict[tuple[str, str], CostModel] = {
    ("cpu", "float32"): CostModel(1.8e-6, 0.9e-6, 1.4e-11, 5e-11, 2e-10, 2.8e-10, 3e-10, "shipped"),
    ("cpu", "float64"): CostModel(1.8e-6, 0.9e-6, 2.8e-11, 1e-10, 4e-10, 2.8e-10, 6e-10, "shipped"),
    ("cuda", "float32"): CostModel(7e-6, 1.5e-6, 1e-13, 4e-12, 4e-12, 1e-15, 1e-11, "shipped"),
    ("cuda", "float64"): CostModel(7e-6, 1.5e-6, 4e-13, 8e-12, 8e-12, 1e-15, 2e-11, "shipped"),
}
"""One thread of a server's processor, and a data centre's GPU: what holds where nothing has been measured."""


def shipped_model(device: str, dtype: str) -> CostModel:
    """The model that needs no calibration; other dtypes are taken for float32, other devices for a CPU."""
    kind = device.split(":")[0]
    kind = kind if (kind, "float32") in SHIPPED else "cpu"
    return SHIPPED[kind, "float64" if dtype == "float64" else "float32"]


def kernel_multiplications(
    application: Application, operand: tuple[int, ...], result: tuple[int, ...], dtype: str
) -> int:
    """Multiplications of one application of a linear operator."""
    return _application(application, prod(operand), Value("result", result, dtype), ())


def multiplications(nodes: Iterable[Node]) -> int:
    """Scalar multiplications of nodes, counted as the literature counts: one for each product of two entries.

    Cost: linear in the number of nodes.
    """
    return sum(map(node_multiplications, nodes))


def node_multiplications(node: Node) -> int:
    """Scalar multiplications of one node; an element-wise operator counts one an element if it multiplies at all."""
    if node.op == "contract":
        return _contraction(node.args[0])
    if node.op == "apply":
        application, operand, width = node.args
        return prod(width) * _application(application, operand.size // max(prod(width), 1), node.results[0], width)
    matrix = _matrix_product(node)
    if matrix is not None:
        return matrix
    if "convolution" in node.op:
        return _convolution(node)
    if any(word in node.op for word in _MULTIPLYING):
        return max((v.size for v in node.results), default=0)
    return 0


def _contraction(expression: Contraction) -> int:
    """Every setting of the labels, times the products there; a scale other than ±1 is one more, on the result."""
    products = len([f for f in expression.factors if f.value.dtype != "bool"]) - 1
    labels = set(term_labels(Term(1, expression.factors, (), ()))) | set(expression.labels)
    full = prod(label.size for label in labels)
    scaling = prod(s.size for s in expression.labels) if abs(expression.scale) != 1 and expression.factors else 0
    return max(products, 0) * full + scaling


def _application(application: Application, operand: int, result: Value, width: tuple[int, ...]) -> int:
    """A convolution by its weights; any other linear operator once an element of its larger side."""
    out = result.size // max(prod(width), 1)
    if "convolution" in application.op:
        return _open_convolution(application, operand, Value("result", result.shape[len(width) :], result.dtype))
    return max(operand, out)


def _open_convolution(application: Application, operand: int, result: Value) -> int:
    """Each entry of the output (of the input, if transposed) is a product with the weights of its channel."""
    backward = "backward" in application.op
    y, x, weight = application.args[:3] if backward else (result, *application.args[:2])
    transposed = application.args[7 if backward else 6]
    if backward:
        x, weight = (result, weight) if application.output == 0 else (x, result)
    entries = x if transposed else y
    channels = (entries if entries is not HOLE else weight).shape[1 if entries is not HOLE else 0]
    sizes = [operand if tensor is HOLE else tensor.size for tensor in (entries, weight)]
    return prod(sizes) // max(channels, 1)


def _matrix_product(node: Node) -> int | None:
    name = node.op.split(".")[1] if "." in node.op else node.op
    if name not in ("mm", "bmm", "addmm", "baddbmm", "mv", "dot", "addmv"):
        return None
    left = node.inputs[-2]
    return node.results[0].size * left.shape[-1] if left.shape else node.results[0].size


def _convolution(node: Node) -> int:
    """The forward operator, or one product of the same size for each gradient that a backward kernel returns."""
    if "backward" not in node.op:
        y, (x, weight) = node.results[0], node.args[:2]
        return (x if node.args[6] else y).size * weight.size // max(weight.shape[0], 1)
    y, x, weight = node.args[:3]
    products = sum(v is not None for v in node.outputs[:2])
    return products * (x if node.args[7] else y).size * weight.size // max(weight.shape[0], 1)
