"""The order in which vertices are eliminated: forward, reverse, or as given."""

from collections.abc import Sequence

from ..errors import OrderError
from ..stages import LinearGraph, Order


def choose_order(linear: LinearGraph, wanted: str | Sequence[str]) -> Order:
    """The elimination order of a name ("forward", "reverse") or of a list of vertex names.

    Raises OrderError for an unknown name, and for a list that leaves out, repeats or invents a vertex.

    Cost: linear in the number of vertices.
    """
    if wanted == "forward":
        return Order("forward", linear.vertices)
    if wanted == "reverse":
        return Order("reverse", linear.vertices[::-1])
    if isinstance(wanted, str):
        raise OrderError(f"order={wanted!r}: it must be 'auto', 'forward', 'reverse' or a list of vertex names")
    return _given(linear, [str(name) for name in wanted])


def _given(linear: LinearGraph, names: list[str]) -> Order:
    known = {v.name: v for v in linear.vertices}
    invented = [name for name in names if name not in known]
    left_out = [name for name in known if name not in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    complaints = [("unknown", invented), ("missing", left_out), ("repeated", repeated)]
    if any(found for _, found in complaints):
        said = "; ".join(f"{what}: {', '.join(found)}" for what, found in complaints if found)
        raise OrderError(
            f"the order must name each vertex once ({said}); the vertices are: {', '.join(known) or 'none'}"
        )
    return Order("given", tuple(known[name] for name in names))


def count_paths(linear: LinearGraph) -> int:
    """The number of paths from the targets down to the sources, parallel edges counted apart.

    Cost: linear in the number of edges.
    """
    arriving: dict[object, int] = dict.fromkeys(linear.sources, 1)
    incoming: dict[object, list[object]] = {}
    for edge in linear.edges:
        incoming.setdefault(edge.target, []).append(edge.source)
    for source, target in linear.seeds:
        incoming.setdefault(target, []).append(source)
    for vertex in (*linear.vertices, *linear.targets):
        arriving[vertex] = arriving.get(vertex, 0) + sum(arriving.get(s, 0) for s in incoming.get(vertex, []))
    return sum(arriving[t] for t in linear.targets)
