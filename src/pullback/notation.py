"""Local Jacobians as a textbook writes them: the entries that can be other than zero, and the structure in words.

`y = tanh x` reads ∂y[i,j] / ∂x[i,j] = (1 − y²)[i,j], which is diagonal; `y = A B` reads ∂y[i,j] / ∂A[i,k] = B[k,j].
A letter on both sides is a δ; every entry that no line names is zero; parts that meet in an entry add up.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .expressions import Contraction, Placement
from .graph import Node, Value, live_nodes
from .index import Axis, Index, Indices, Label, labels_of, tables_of, whole_label
from .terms import (
    HOLE,
    Application,
    Chain,
    Factor,
    Jac,
    Kernel,
    Part,
    Pattern,
    Scalar,
    Term,
    pattern,
    summed_labels,
    term_values,
)

LETTERS = "ijklmnpqrstuvwxyz"
LONGEST_INLINE = 40  # characters; a longer payload gets a line of its own
CONJUGATE = "*"
ATOM, POWER, PRODUCT, SUM, COMPARISON = 4, 3, 2, 1, 0

Written = tuple[str, int]  # a formula, and how tightly it holds together


def formula(jac: Jac, target: Value, source: Value, nodes: Sequence[Node]) -> str:
    """The entries of ∂target/∂source, one line a part, and below them what their payloads stand for.

    nodes: what the payloads of the Jacobian are computed by, beyond the values of the graph.
    """
    written, steps = _payloads(live_nodes(tuple(nodes), tuple(_values(jac))), frozenset(_tables(jac)))
    lines = [_entries(part, target, source, written) for part in jac.parts] or [f"∂{target.name} / ∂{source.name} = 0"]
    return "\n".join(["\n  plus ".join(lines), *(f"    where {step}" for step in steps)])


def structure(jac: Jac) -> str:
    """The structure of a Jacobian in words: which output axes equal which input axes."""
    if not jac.parts:
        return "zero"
    words = []
    if any(not isinstance(part, Term) for part in jac.parts):
        words.append("a linear operator, applied and never written out")
    terms = Jac(tuple(p for p in jac.parts if isinstance(p, Term)), jac.out_shape, jac.in_shape)
    words += sorted({_words(p, jac) for p in pattern(terms)}, key=lambda text: (len(text), text))
    return " plus ".join(words) or "zero"


# ---------------------------------------------------------------- structure


def _words(p: Pattern, jac: Jac) -> str:
    if not all(map(_is_plain, (*p.out, *p.inp), (*jac.out_shape, *jac.in_shape))):
        letters = _Letters()
        return f"entries at ({_joined(p.out, letters)} | {_joined(p.inp, letters)}) only"
    shared = set(labels_of(p.out)) & set(labels_of(p.inp))
    if not shared:
        return "dense"
    ties = [(i, j) for i, a in enumerate(p.out) for j, b in enumerate(p.inp) if a == b and set(labels_of([a]))]
    said = ", ".join(f"output axis {i} = input axis {j}" for i, j in ties)
    if shared != set(labels_of(p.out)) or shared != set(labels_of(p.inp)):
        return f"block diagonal ({said})"
    return "diagonal" if jac.out_shape == jac.in_shape and all(i == j for i, j in ties) else f"diagonal ({said})"


def _is_plain(index: Index, extent: int) -> bool:
    return index == Axis(0) if extent == 1 else whole_label(index, extent) is not None


# ---------------------------------------------------------------- entries


class _Letters(dict[Label, str]):
    """Labels as letters, in the order in which they are first written."""

    def __missing__(self, label: Label) -> str:
        count = len(self)
        self[label] = LETTERS[count % len(LETTERS)] + (str(count // len(LETTERS)) if count >= len(LETTERS) else "")
        return self[label]


def _entries(part: Part, target: Value, source: Value, written: Mapping[Value, Written]) -> str:
    if not isinstance(part, Term):
        return f"∂{target.name} / ∂{source.name} = {_map(part)}, linear in □"
    letters = _Letters()
    bar = CONJUGATE if part.antilinear else ""
    left = f"∂{target.name}{_place(part.out, letters)} / ∂{source.name}{bar}{_place(part.inp, letters)}"
    return f"{left} = {_product(part.scale, part.factors, summed_labels(part), letters, written)}"


def _map(part: Part) -> str:
    """A linear map that is applied: an operator, or several one after another."""
    if isinstance(part, Kernel):
        return _application(part.push)
    if isinstance(part, Chain):
        return " ∘ ".join(" + ".join(map(_map, factor.parts)) for factor in part.factors)
    letters = _Letters()
    place = f"{_place(part.out, letters) or '[]'} ← □{_place(part.inp, letters)}"
    return f"({_product(part.scale, part.factors, summed_labels(part), letters, {})} {place})"


def _product(
    scale: Scalar, factors: Sequence[Factor], summed: set[Label], letters: _Letters, written: Mapping[Value, Written]
) -> str:
    entries = [_entry(f, letters, written) for f in factors]
    sigma = f"Σ_{''.join(letters[s] for s in sorted(summed, key=lambda s: letters[s]))} " if summed else ""
    payload = sigma + " · ".join(entries)
    if not payload or abs(scale) != 1:
        return " · ".join(filter(None, [_number(scale), payload]))
    return payload if scale == 1 else f"−{payload}"


def _entry(factor: Factor, letters: _Letters, written: Mapping[Value, Written]) -> str:
    text, strength = written.get(factor.value, (factor.value.name, ATOM))
    bar = CONJUGATE if factor.conj else ""
    return f"{text if strength == ATOM else f'({text})'}{bar}{_place(factor.axes, letters)}"


def _place(indices: Indices, letters: _Letters) -> str:
    return f"[{_joined(indices, letters)}]" if indices else ""


def _joined(indices: Sequence[Index], letters: _Letters) -> str:
    return ",".join(_index(i, letters) for i in indices)


def _index(index: Index, letters: _Letters) -> str:
    if not isinstance(index, Axis):
        return f"{index.table.name}[{_joined(index.axes, letters)}]"
    text = str(index.offset) if index.offset or not index.parts else ""
    for label, stride in index.parts:
        sign = ("+" if text else "") if stride > 0 else "−"
        text += f"{sign}{abs(stride) if abs(stride) != 1 else ''}{letters[label]}"
    return text


# ---------------------------------------------------------------- payloads


def _payloads(nodes: Sequence[Node], named: frozenset[Value]) -> tuple[dict[Value, Written], list[str]]:
    """How to write each computed value: its formula where that is short, else its name and a line that defines it.

    named: values that are written by name in any case.
    """
    written: dict[Value, Written] = {}
    steps: list[str] = []
    for node in nodes:
        text = _computation(node, written)
        is_short = len(text[0]) <= LONGEST_INLINE and node.op not in ("contract", "place", "apply")
        if is_short and len(node.results) == 1 and not named & set(node.results):
            written[node.results[0]] = text
        else:
            steps.append(f"{', '.join(v.name for v in node.results)} = {text[0]}")
    return written, steps


def _computation(node: Node, written: Mapping[Value, Written]) -> Written:
    first = node.args[0] if node.args else None
    letters = _Letters()
    if isinstance(first, Contraction):
        place = _place(first.axes, letters)
        summed = {s for f in first.factors for s in labels_of(f.axes)} - set(first.labels)
        return f"{_product(first.scale, first.factors, summed, letters, written)} at {place or '[]'}", COMPARISON
    if isinstance(first, Placement):
        at = ",".join(letters[label] for label in first.labels)
        return f"{first.value.name}[{at}] put at {_place(first.axes, letters)}, 0 elsewhere", COMPARISON
    if isinstance(first, Application):
        return f"{_application(first)} with □ = {node.args[1].name}", COMPARISON
    name = node.op.split(".")[1] if "." in node.op else node.op
    write = _WRITTEN.get(name)
    operands = [_operand(a, written) for a in node.args]
    return write(*operands[:2]) if write and len(operands) <= 2 and not node.kwargs else _call(name, node, written)


def _operand(argument: Any, written: Mapping[Value, Written]) -> Written:
    if isinstance(argument, Value):
        return written.get(argument, (argument.name, ATOM))
    if isinstance(argument, (tuple, list)):
        return f"[{', '.join(_operand(a, written)[0] for a in argument)}]", ATOM
    return (_number(argument), ATOM if not isinstance(argument, (int, float)) or argument >= 0 else SUM)


def _number(number: Any) -> str:
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    return f"{'−' if number < 0 else ''}{abs(number):g}" if is_number else str(number)


def _call(name: str, node: Node, written: Mapping[Value, Written]) -> Written:
    arguments = [_operand(a, written)[0] for a in node.args]
    arguments += [f"{key}={_operand(a, written)[0]}" for key, a in node.kwargs]
    return f"{name.lstrip('_')}({', '.join(arguments)})", ATOM


def _application(application: Application) -> str:
    arguments = ["□" if a is HOLE else _operand(a, {})[0] for a in application.args]
    return f"{application.op.split('.')[1]}({', '.join(arguments)})"


def _around(operand: Written, strength: int) -> str:
    """An operand, in brackets where it would otherwise fall apart."""
    return operand[0] if operand[1] >= strength else f"({operand[0]})"


def _infix(sign: str, strength: int, swapped: bool = False) -> Callable[..., Written]:
    """a sign b; what stands behind the sign must hold together more tightly, as in a − (b − c)."""

    def write(a: Written, b: Written) -> Written:
        left, right = (b, a) if swapped else (a, b)
        return f"{_around(left, strength)} {sign} {_around(right, strength + 1)}", strength

    return write


def _multiplied(a: Written, b: Written) -> Written:
    if a == b:
        return f"{_around(a, ATOM)}²", POWER
    return f"{_around(a, PRODUCT)} · {_around(b, PRODUCT)}", PRODUCT


def _power(a: Written, b: Written) -> Written:
    exponents = {"2": "²", "3": "³", "4": "⁴"}
    return f"{_around(a, ATOM)}{exponents.get(b[0]) or '^' + _around(b, ATOM)}", POWER


_WRITTEN: Mapping[str, Callable[..., Written]] = {
    "mul": _multiplied,
    "div": _infix("/", PRODUCT),
    "add": _infix("+", SUM),
    "sub": _infix("−", SUM),
    "rsub": _infix("−", SUM, swapped=True),
    "pow": _power,
    "square": lambda a: (f"{_around(a, ATOM)}²", POWER),
    "neg": lambda a: (f"−{_around(a, PRODUCT)}", SUM),
    "reciprocal": lambda a: (f"1 / {_around(a, POWER)}", PRODUCT),
    "sqrt": lambda a: (f"√{_around(a, ATOM)}", POWER),
    "rsqrt": lambda a: (f"1 / √{_around(a, ATOM)}", PRODUCT),
    "gt": _infix(">", COMPARISON),
    "ge": _infix("≥", COMPARISON),
    "lt": _infix("<", COMPARISON),
    "le": _infix("≤", COMPARISON),
    "eq": _infix("=", COMPARISON),
    "ne": _infix("≠", COMPARISON),
    "cast": lambda a, _=None: a,
}


def _values(jac: Jac) -> list[Value]:
    """Every tensor that the parts of a Jacobian read."""
    found: list[Value] = []
    for part in jac.parts:
        if isinstance(part, Kernel):
            found += [*part.push.values(), *part.pull.values()]
        elif isinstance(part, Chain):
            found += [value for factor in part.factors for value in _values(factor)]
        else:
            found += term_values(part)
    return found


def _tables(jac: Jac) -> list[Value]:
    """Every tensor in which a position is looked up."""
    terms = [part for part in jac.parts if isinstance(part, Term)]
    return [v for t in terms for indices in (t.out, t.inp, *(f.axes for f in t.factors)) for v in tables_of(indices)]
