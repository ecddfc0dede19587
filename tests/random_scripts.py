"""Random programs as Python text, so that one that fails is a script to run: `print(script)`.

A script is a function of a few float64 tensors.  Its lines read earlier values, so that values fan out; what nobody has
read is returned.  There are views, writes in place (into tensors of its own and into views of them), broadcasting,
changes of dtype, and, if asked for, Python control flow on values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

LARGEST = 36  # elements of a value, beyond which a line that would enlarge it is not drawn
HEADER = "import torch\nfrom torch.nn import functional\n\n\n"


@dataclass(frozen=True)
class Script:
    """Text of a program: its inputs' shapes, its lines, and the names of what it returns.

    is_exact: whether it computes in float64 throughout, so that results can be compared closely.
    """

    shapes: tuple[tuple[int, ...], ...]
    lines: tuple[str, ...]
    outputs: tuple[str, ...]
    is_exact: bool

    @property
    def source(self) -> str:
        """The function."""
        head = f"def program({', '.join(f'v{k}' for k in range(len(self.shapes)))}):"
        body = [f"    {line}" for line in self.lines]
        return "\n".join([HEADER + head, *body, f"    return ({', '.join(self.outputs)},)", ""])

    @cached_property
    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        """What the text defines."""
        namespace: dict[str, Any] = {}
        exec(compile(self.source, "<random script>", "exec"), namespace)
        return namespace["program"]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)

    def point(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Inputs, tangents and cotangents."""
        generator = torch.Generator().manual_seed(len(self.lines))

        def normal(shape: Any) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x = tuple(map(normal, self.shapes))
        return x, tuple(map(normal, self.shapes)), tuple(normal(y.shape) for y in self(*x))

    def __repr__(self) -> str:
        calls = [f"torch.randn({shape}, dtype=torch.float64)" for shape in self.shapes]
        return f"\n{self.source}\n\nprogram({', '.join(calls)})  # inputs as of Script.point()\n"


# ---------------------------------------------------------------- lines

UNARY = (
    *("{x}.sin()", "torch.tanh({x})", "{x}.sigmoid()", "torch.exp(-{x} * {x})", "torch.log(1.5 + {x} * {x})"),
    *("torch.sqrt({x} * {x} + 1)", "1 / (2 + {x} * {x})", "functional.softplus({x})", "functional.gelu({x})"),
    *("{x}.sin() ** 3", "{x}.atan()", "0.7 * {x} - 0.2", "{x}.clone()", "torch.relu({x})", "({x} - 0.11).abs()"),
    *("{x}.clamp(-0.6, 0.7)", "functional.leaky_relu({x})", "{x}.masked_fill({x} > 0.5, 0.25)", "{x} * {x}.detach()"),
    *("torch.where({x} > 0.2, {x} * 2, {x}.cos())", "functional.silu({x})", "{x}.expm1() * 0.3", "{x}.square()"),
)
BINARY = (
    *("{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} / (1.5 + {y} * {y})", "torch.maximum({x}, {y} + 0.03)"),
    *("torch.where({x} > {y}, {x} * 0.5, {y})", "torch.hypot({x}, {y} + 3)", "torch.atan2({x}, {y} + 3)"),
    *("torch.lerp({x}, {y}, 0.3)", "torch.minimum({x}.cos(), {y})"),
)
REDUCTIONS = (
    *("{x}.sum({d}, keepdim={k})", "{x}.mean({d}, keepdim={k})", "{x}.amax({d}, keepdim={k})"),
    *("{x}.logsumexp({d}, keepdim={k})", "(0.5 + {x}.tanh()).prod({d}, keepdim={k})", "({x} + 2).norm(dim={d})"),
    *("{x}.sum()", "{x}.mean()", "{x}.var({d}, correction=0, keepdim={k})", "{x}.max({d}, keepdim={k}).values"),
)
ALONG = (
    *("{x}.softmax({d})", "{x}.log_softmax({d})", "{x}.cumsum({d})", "{x}.sort({d}).values", "{x}.flip({d})"),
    *("{x}.roll(1, {d})", "{x} - {x}.mean({d}, keepdim=True)", "functional.layer_norm({x}, {x}.shape[-1:], eps=0.1)"),
)
VIEWS = (
    *("{x}.narrow({d}, {start}, {rest})", "{x}.select({d}, {start})", "{x}.transpose({d}, {e})", "{x}.reshape(-1)"),
    *("{x}.unsqueeze({d})", "{x}.index_select({d}, torch.tensor({table}))", "functional.pad({x}, (1, 0))"),
    *("{x}.expand(2, *{x}.shape)", "torch.cat([p.sin() for p in {x}.split(1, {d})][::-1], {d})", "{x}[..., ::2]"),
    *("torch.stack([{x}, {x}.cos()], {d})", "{x}[torch.tensor({first_table})]", "{x}.movedim({d}, 0)"),
    *("{x}.unfold({d}, 1, 1)", "{x}.diagonal() if {x}.dim() > 1 else torch.diag({x})"),
    "{x}.gather({d}, {x}.argsort({d}))",
)
CASTS = (
    *("{x}.float().double()", "({x} > 0.1).double() * {x}", "{x} + {x}.round().long()", "{x}.to(torch.float32) + {x}"),
    *("({x}.float() * 2).sin().double()", "torch.where({x}.bfloat16() > 0, {x}, {x} * 0.5)"),
)
WRITES = (
    ("{n} = {x}.clone()", "{n}.mul_({y0})"),
    ("{n} = {x} * 1.0", "{n}.select({d}, 0).copy_({x}.select({d}, -1).sin())"),
    ("{n} = torch.zeros_like({x})", "{n}.narrow({d}, {start}, {rest}).add_({x}.narrow({d}, {start}, {rest}))"),
    ("{n} = {x}.sin()", "{n}[{start0}] = {n}[{start0}] * 2"),
    ("{n} = {x}.clone()", "{n}.index_put_((torch.tensor({first_table}),), {x}[{start0}] * 0.5, accumulate=True)"),
    ("{n} = {x} + 0", "{n}.masked_fill_({x} > 0.3, 0.1)"),
    ("{n} = {x}.clone()", "{n}_a, {n}_b = {n}.narrow({d}, 0, 1), {n}.narrow({d}, -1, 1)", "{n}_a.add_({n}_b)"),
    ("{n} = {x}.clone()", "{n}.reshape(-1)[0:1].mul_(3)", "{n}.sub_({x}.mean())"),
    ("{n} = {x}.exp()", "{n}.transpose({d}, {e}).add_(1)", "{n}.clamp_(0.2, 1.9)"),
    ("{n} = torch.empty_like({x})", "{n}.copy_({x} * {x})", "{n}.div_(2)"),
)
CONTROL = (
    ("if {x}.sum() > 0.05:", "    {n} = {x} * 2", "else:", "    {n} = {x}.sin()"),
    ("{n} = {x}", "for _ in range(int({x}.detach().abs().sum()) % 3 + 1):", "    {n} = {n} * 0.5 + {x}.cos()"),
    ("{n} = {x} * 1", "while {n}.abs().max() > 1:", "    {n} = {n} * 0.6"),
    ("{n} = {x}.clone()", "if {x}.reshape(-1)[0].item() > 0:", "    {n}.mul_({x}.detach() + 2)"),
    ("{n} = max([{x}, {x} * 1.5], key=lambda t: t.sum().item())",),
)
MOST = {
    "unary": 4,
    "binary": 4,
    "reduction": 1,
    "along": 2,
    "view": 3,
    "product": 1,
    "cast": 1,
    "write": 3,
    "control": 2,
}


@st.composite
def scripts(draw: Any, control: bool = False, longest: int = 60) -> Script:
    """A script of 5 to 60 lines on 1 to 3 inputs; values are computed on the way, to know their shapes."""
    shapes = draw(st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=3))
    namespace: dict[str, Any] = {f"v{k}": torch.full(s, 0.3, dtype=torch.float64) for k, s in enumerate(shapes)}
    namespace |= {"torch": torch, "functional": torch.nn.functional}
    names, lines, exact = [f"v{k}" for k in range(len(shapes))], [], True
    kinds = [kind for kind, weight in MOST.items() for _ in range(weight) if control or kind != "control"]
    for _ in range(draw(st.integers(5, longest))):
        name = f"v{len(names)}"
        kind = draw(st.sampled_from(kinds))
        text = _line(draw, kind, name, names, namespace)
        if text is not None and _fits(text, name, namespace):
            lines += text
            names.append(name)
            exact = exact and kind != "cast"
    body = "\n".join(lines)
    unread = [n for n in names[len(shapes) :] if not any(f"{n}{c}" in body for c in " .[,)*;:")] or names[-1:]
    return Script(tuple(shapes), tuple(lines), tuple(unread[:4]), exact)


def _line(draw: Any, kind: str, name: str, names: list[str], namespace: dict[str, Any]) -> list[str] | None:
    """The text of one step, or None if the values drawn do not suit it."""
    x, y = draw(st.sampled_from(names)), draw(st.sampled_from(names))
    a, b = namespace[x], namespace[y]
    if kind in ("reduction", "along", "view", "write", "product", "control") and not a.dim():
        kind = "unary"
    if kind == "product":
        return _product(name, x, y, a, b)
    places = _places(draw, a) if a.dim() else {}
    whole = y if b.dim() == 0 or b.shape == a.shape else "0.9"
    places |= {"x": x, "y": y, "n": name, "k": draw(st.booleans()), "y0": whole}
    if kind in ("write", "control"):
        chosen = draw(st.sampled_from(WRITES if kind == "write" else CONTROL))
        return [line.format(**places) for line in chosen]
    tables = {"unary": UNARY, "binary": BINARY, "reduction": REDUCTIONS, "along": ALONG, "view": VIEWS, "cast": CASTS}
    return [f"{name} = {draw(st.sampled_from(tables[kind])).format(**places)}"]


def _places(draw: Any, a: Tensor) -> dict[str, Any]:
    """Axes and positions that exist."""
    d, e = (draw(st.integers(0, a.dim() - 1)) for _ in range(2))
    start, start0 = draw(st.integers(0, a.shape[d] - 1)), draw(st.integers(0, a.shape[0] - 1))
    table = draw(st.lists(st.integers(0, a.shape[d] - 1), min_size=1, max_size=3))
    first = draw(st.lists(st.integers(0, a.shape[0] - 1), min_size=1, max_size=3))
    rest = a.shape[d] - start
    return {"d": d, "e": e, "start": start, "rest": rest, "start0": start0, "table": table, "first_table": first}


def _product(name: str, x: str, y: str, a: Tensor, b: Tensor) -> list[str] | None:
    if a.dim() <= 3 and b.dim() == 2 and a.shape[-1] == b.shape[0]:
        return [f"{name} = {x} @ {y}"]
    if a.dim() <= 2 and b.dim() == 2 and a.shape[-1] == b.shape[1]:
        return [f"{name} = {x} @ {y}.t()"]
    if a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]:
        return [f"{name} = torch.bmm({x}, {y})"]
    return [f"{name} = torch.outer({x}, {y})"] if a.dim() == b.dim() == 1 else None


def _fits(text: list[str], name: str, namespace: dict[str, Any]) -> bool:
    """Whether a step can be run and makes a small tensor of float64; it is then in the namespace."""
    trial = dict(namespace)
    try:
        exec("\n".join(text), trial)
    except (RuntimeError, IndexError, ValueError):
        return False
    value = trial[name]
    if value.dtype is not torch.float64 or not 0 < value.numel() <= LARGEST or value.dim() > 4:
        return False
    namespace[name] = value
    return True
