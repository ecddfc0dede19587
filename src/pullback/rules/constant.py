"""Operators whose results do not depend on any operand as far as derivatives are concerned.

Only what PyTorch's own derivative calls zero stands here: no derivative is cut off because a rule is missing.
"""

# PyTorch's own derivative is zero everywhere.
PIECEWISE_CONSTANT = (
    "sign.default floor.default ceil.default trunc.default fix.default round.default "
    "round.decimals fill.Scalar zero.default "
    "signbit.default isnan.default isinf.default isfinite.default isposinf.default isneginf.default "
    "isreal.default eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar "
    "gt.Tensor gt.Scalar ge.Tensor ge.Scalar isclose.default equal.default isin.Tensor_Tensor "
    "isin.Tensor_Scalar isin.Scalar_Tensor logical_and.default logical_or.default logical_xor.default "
    "logical_not.default bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar "
    "bitwise_xor.Tensor bitwise_xor.Scalar bitwise_not.default bitwise_left_shift.Tensor "
    "bitwise_right_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar "
    "where.Scalar"
)
# Positions, counts and truth values.
POSITIONS = (
    "any.default any.dim any.dims all.default all.dim all.dims argmax.default argmin.default "
    "argsort.default argsort.stable count_nonzero.default count_nonzero.dim_IntList nonzero.default "
    "searchsorted.Tensor searchsorted.Scalar bucketize.Tensor"
)
# Draws, which PyTorch calls constant in their probabilities.
DRAWS = (
    "bernoulli.default bernoulli.p bernoulli.Tensor normal.Tensor_float normal.float_Tensor normal.Tensor_Tensor "
    "poisson.default binomial.default multinomial.default exponential.default uniform.default "
    "normal_functional.default geometric.default cauchy.default log_normal.default random.default random.from random.to"
)
# Cut off on purpose.
DETACHED = "detach.default"
# Only the operand's shape and dtype are read.
SHAPED_LIKE = (
    "zeros_like.default ones_like.default full_like.default empty_like.default rand_like.default "
    "randn_like.default randint_like.default randint_like.low_dtype new_zeros.default new_ones.default "
    "new_full.default new_empty.default new_empty_strided.default sym_size.int"
)
# There is no tensor to differentiate.
CREATION = (
    "zeros.default ones.default full.default empty.memory_format empty_strided.default eye.default eye.m "
    "arange.default arange.start arange.start_step linspace.default logspace.default "
    "scalar_tensor.default rand.default randn.default randint.default randint.low randperm.default "
    "tril_indices.default triu_indices.default"
)

# What is only looked at by the check that nothing depends on it.
LOOKED_AT = frozenset(("pullback.gauge_directions.default",))

NONDIFFERENTIABLE = LOOKED_AT | frozenset(
    f"aten.{op}"
    for group in (PIECEWISE_CONSTANT, POSITIONS, DRAWS, DETACHED, SHAPED_LIKE, CREATION)
    for op in group.split()
)

__all__ = ["NONDIFFERENTIABLE"]
