"""Proof that a function keeps the samples of a batch apart, read off the patterns of its local Jacobians.

Where sample b lies in a value is a pattern (position | b), as that of a Jacobian in the batch axis alone, and is pushed
from the inputs to the outputs like one.  Where an operator sums over samples, or looks them up, b is no longer among
the labels of the position: it is that operator which mixes samples.  Sizes play no part in this.
"""

import re
from dataclasses import replace
from itertools import product
from math import inf, prod

import numpy as np
import numpy.typing as npt

from ..errors import BatchError
from ..expressions import Builder
from ..graph import Node, Value
from ..index import Axis, Index, Indices, Unresolvable, is_mixed_radix, labels_of, plain, plain_axes
from ..rules.edges import local_jacobian
from ..rules.kinds import replaced
from ..stages import Batch, Edge, LinearGraph
from ..terms import (
    HOLE,
    Chain,
    Jac,
    Kernel,
    Pattern,
    Term,
    compose_patterns,
    compose_terms,
    pattern,
    term_pattern,
)

MOST_PATTERNS = 64  # a value in which samples lie in more ways than that is taken to depend on all of them
MOST_ENTRIES = 10_000_000

VIEWS = ("aten.view.default",)  # as kernels: a view between shapes whose axes do not fit into each other
NONE, MANY = -1, -2  # for an entry that depends on no sample, or on more than one
Samples = npt.NDArray[np.int64]

_DIMENSIONS = re.compile(r"(avg_pool|upsample\w*|pad)(\d)d")  # operators that leave all but their last axes alone


def check_samples_apart(linear: LinearGraph, batch: Batch) -> None:
    """Raise BatchError, with the operator and its line, unless each sample of an output depends on that of the inputs.

    Cost: linear in the number of edges.
    """
    where = {source: frozenset([_along(source.shape, axis)]) for source, axis in batch.sources.items()}
    builder = Builder()
    for edge in linear.edges:  # in the order in which their targets are computed
        if edge.source in where:
            found = frozenset(_merged(one, edge.target.shape) for one in _pushed(edge, where[edge.source], builder))
            known = where.get(edge.target, frozenset()) | found
            if len(known) > MOST_PATTERNS or any(map(_is_mixed, found)) or _collide(found, known, edge.target.shape):
                raise _mixes(batch, edge.node, edge.target)
            where[edge.target] = known
    node_of = {edge.target: edge.node for edge in linear.edges}
    for output, axis in batch.outputs.items():
        if any(one.out[axis] != one.inp[0] for one in where.get(output, ())):
            raise _misplaced(batch, node_of.get(output), output, axis)


def _along(shape: tuple[int, ...], axis: int) -> Pattern:
    axes = plain_axes(shape)
    return term_pattern(Term(1, (), axes, (axes[axis],)))


def _pushed(edge: Edge, before: frozenset[Pattern], builder: Builder) -> frozenset[Pattern]:
    """Where the samples lie in an edge's target, as far as they come through this edge."""
    jac = local_jacobian(edge, builder)
    if any(isinstance(part, Kernel) and part.push.op in VIEWS for part in jac.parts):
        return _recognised(_by_number(edge.source.shape, before).reshape(jac.out_shape))
    local = _patterns(jac)
    try:
        products = [compose_terms(_bare(a), _bare(b), edge.source.shape) for a in local for b in before]
    except Unresolvable:
        return _pushed_by_number(edge, local, before)
    return frozenset(term_pattern(one) for one in products if one is not None)


def _bare(one: Pattern) -> Term:
    return Term(1, (), one.out, one.inp)


def _merged(one: Pattern, shape: tuple[int, ...]) -> Pattern:
    """The same pattern with one label for an axis that several of its own count: so that it is met by other splits.

    Positions that are data and no sample's are taken to be all of their axis: it is the samples that have to be apart.
    """
    out: list[Index] = []
    for place, (index, extent) in enumerate(zip(one.out, shape, strict=True)):
        labels = set(labels_of([index]))
        others = set(labels_of((*one.out[:place], *one.out[place + 1 :], *one.inp)))
        is_whole = labels.isdisjoint(others) and _covers(index, extent)
        is_data = not isinstance(index, Axis) and labels.isdisjoint(labels_of(one.inp))
        out.append(plain(extent) if is_whole or is_data else index)
    return term_pattern(Term(1, (), tuple(out), one.inp))


def _covers(index: Index, extent: int) -> bool:
    """Whether an axis reaches each position once."""
    if not isinstance(index, Axis) or index.offset or prod(label.size for label, _ in index.parts) != extent:
        return False
    return is_mixed_radix(sorted(index.parts, key=lambda part: -part[1]))


def _patterns(jac: Jac) -> frozenset[Pattern]:
    """The patterns of a local Jacobian; of a kernel those in which the axes that it leaves alone are δs."""
    parts = [_term_of(part, jac) if isinstance(part, Kernel) else part for part in jac.parts]
    chains = [part for part in parts if isinstance(part, Chain)]
    found = pattern(replace(jac, parts=tuple(part for part in parts if not isinstance(part, Chain))))
    return found.union(*map(_of_chain, chains))


def _of_chain(chain: Chain) -> frozenset[Pattern]:
    """The patterns of a product; where two of its factors meet in no closed form, the product is dense."""
    total = _patterns(chain.factors[-1])
    for factor in chain.factors[-2::-1]:
        total = compose_patterns(_patterns(factor), total, factor.in_shape)
    return total


def _term_of(kernel: Kernel, jac: Jac) -> Term:
    alone = _axes_left_alone(kernel, jac)
    shared, out, inp = (plain_axes(s) for s in (jac.in_shape[:alone], jac.out_shape[alone:], jac.in_shape[alone:]))
    return Term(1, (), shared + out, shared + inp)


def _axes_left_alone(kernel: Kernel, jac: Jac) -> int:
    """How many leading axes a linear operator maps over, each entry by itself."""
    application, rank = kernel.push, len(jac.in_shape)
    if len(jac.out_shape) != rank and "im2col" not in application.op and "col2im" not in application.op:
        return 0
    if "convolution" in application.op:
        return int(application.args[0] is HOLE and application.output == 0)
    if "im2col" in application.op or "col2im" in application.op:
        return int(len(jac.in_shape) > 2 and jac.in_shape[0] == jac.out_shape[0] and len(jac.out_shape) > 2)
    found = _DIMENSIONS.search(application.op)
    return max(rank - int(found[2]), 0) if found else 0


# ---------------------------------------------------------------- entry by entry


def _pushed_by_number(edge: Edge, local: frozenset[Pattern], before: frozenset[Pattern]) -> frozenset[Pattern]:
    """The same where index maps meet in no closed form (axes merged and split elsewhere): entry by entry.

    Cost: linear in the number of entries of the local Jacobian, which must not be more than `MOST_ENTRIES`.
    """
    shape = edge.target.shape
    if any(_entries(one) > MOST_ENTRIES for one in local):
        return _unknown(shape)
    samples = _by_number(edge.source.shape, before)
    found = np.full(prod(shape), NONE)
    for one in local:
        position, sample = _numbers(one.out, shape, one), samples.ravel()[_numbers(one.inp, edge.source.shape, one)]
        position, sample = position[sample != NONE], sample[sample != NONE]
        known = found[position]
        found[position] = sample
        if ((known != NONE) & (known != sample)).any() or (found[position] != sample).any():
            return _unknown(shape)
    return _recognised(found.reshape(shape))


def _unknown(shape: tuple[int, ...]) -> frozenset[Pattern]:
    """Every entry may depend on every sample."""
    return frozenset([term_pattern(Term(1, (), plain_axes(shape), (plain(2),)))])


def _by_number(shape: tuple[int, ...], before: frozenset[Pattern]) -> Samples:
    """The sample that each entry depends on."""
    samples = np.full(prod(shape), MANY if any(_entries(one) > MOST_ENTRIES for one in before) else NONE)
    for one in before:
        if _entries(one) <= MOST_ENTRIES:
            samples[_numbers(one.out, shape, one)] = _numbers(one.inp, (1,), one)
    return samples.reshape(shape)


def _entries(one: Pattern) -> float:
    if any(not isinstance(index, Axis) for index in one.out + one.inp):
        return inf
    return prod(label.size for label in dict.fromkeys(labels_of(one.out + one.inp)))


def _numbers(indices: Indices, shape: tuple[int, ...], one: Pattern) -> Samples:
    """The flat position that some indices of a pattern mean, for every setting of its labels."""
    labels = list(dict.fromkeys(labels_of(one.out + one.inp)))
    grid = dict(zip(labels, np.ogrid[tuple(slice(label.size) for label in labels)], strict=True)) if labels else {}
    total = np.zeros([label.size for label in labels], dtype=np.int64)
    for index, extent in zip(indices, shape, strict=True):
        assert isinstance(index, Axis)
        along = index.offset + sum(stride * grid[label] for label, stride in index.parts)
        total = total * extent + along
    return total.ravel()


def _recognised(samples: Samples) -> frozenset[Pattern]:
    """The patterns of samples, if one axis counts them, or at least tells them apart."""
    for axis, size in enumerate(samples.shape):
        counted = np.arange(size).reshape([size if k == axis else 1 for k in range(samples.ndim)])
        if ((samples == counted) | (samples == NONE)).all():
            return frozenset([_along(samples.shape, axis)])
    for axis, size in enumerate(samples.shape):
        first = samples.max(axis=tuple(k for k in range(samples.ndim) if k != axis), keepdims=True)
        if size <= MOST_PATTERNS and (samples == first).all() and (first >= 0).all():
            axes = plain_axes(samples.shape)
            each = [(replaced(axes, axis, Axis(k)), (Axis(int(n)),)) for k, n in enumerate(first.ravel())]
            return frozenset(term_pattern(Term(1, (), out, sample)) for out, sample in each)
    return _unknown(samples.shape)


def _is_mixed(one: Pattern) -> bool:
    """Whether a position depends on several samples, or on one that data decide."""
    sample = one.inp[0]
    return not isinstance(sample, Axis) or not set(labels_of([sample])) <= set(labels_of(one.out))


def _collide(found: frozenset[Pattern], known: frozenset[Pattern], shape: tuple[int, ...]) -> bool:
    """Whether one position depends on different samples by two patterns."""
    for one, other in product(found, known):
        if one == other:
            continue
        try:
            met = compose_terms(Term(1, (), one.inp, one.out), _bare(other), shape)
        except Unresolvable:
            continue  # if they meet, they do so in an output as well, where their samples are compared with the place
        if met is not None and met.out != met.inp:
            return True
    return False


def _mixes(batch: Batch, node: Node, value: Value) -> BatchError:
    return BatchError(
        f"{batch.title} mixes samples: an entry of {value.name!r} ({value.type}), which {node.op} computes at "
        f"{node.source or 'a line not recorded'}, depends on more than one of them, or cannot be shown not to. "
        "The Jacobian of each sample by itself does not hold the whole derivative: use jacobian, take the operator out "
        "(a normalisation: in evaluation mode), or choose another axis by in_dims"
    )


def _misplaced(batch: Batch, node: Node | None, value: Value, axis: int) -> BatchError:
    computed = f", which {node.op} computes at {node.source}," if node is not None else ""
    return BatchError(
        f"{batch.title} does not keep samples in their places: sample b of its output {value.name!r} ({value.type})"
        f"{computed} is not along axis {axis} what depends on sample b of the inputs: give the axis by out_dims, or "
        "use jacobian"
    )
