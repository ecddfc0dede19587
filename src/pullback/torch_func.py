"""The transforms of `torch.func` that have another name here: same arguments, defaults and result structures."""

from collections.abc import Callable
from typing import Any

from .api import check_chunk, normal_argnums
from .deferred import Linearisation
from .derivatives import Argnums, Gradient, Jacobian
from .errors import ArgumentError
from .transform import Transform, execute
from .verification import transform_of, verify_products

RANDOMNESS = ("error", "different", "same")


def grad_and_value(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False, *, verify: bool = False
) -> Transform:
    """Return a function that computes a scalar function's gradient and value at once.

    Arguments, errors and cost are those of `grad`; `value_and_grad` returns the same the other way round.

    Returns:
        A function of the arguments of `func`.  It returns (gradient, value), and (gradient, (value, aux)) if `has_aux`.

    >>> import torch, pullback
    >>> pullback.grad_and_value(lambda x: (x * x).sum())(torch.tensor([1.0, 2.0]))
    (tensor([2., 4.]), tensor(5.))
    """
    kind = Gradient(normal_argnums(argnums), has_aux, "auto", True, value_first=False)
    return transform_of(func, kind, "auto", verify)


def jacrev(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
    verify: bool = False,
) -> Transform:
    """Return a function that computes the Jacobian from the outputs to the inputs: `jacobian(…, order="reverse")`.

    Arguments:
        func, argnums, has_aux: as for `jacobian`.
        chunk_size: how many rows to compute at once; bounds memory.  None: all.
        _preallocate_and_copy: taken, and without effect: rows are always written into the result as they come.

    Returns, raises, cost: as `jacobian`.

    >>> import torch, pullback
    >>> pullback.jacrev(torch.sin, chunk_size=1)(torch.zeros(2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    check_chunk(chunk_size)
    return transform_of(func, Jacobian(normal_argnums(argnums), has_aux, "reverse", chunk_size), "auto", verify)


def jacfwd(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
    verify: bool = False,
) -> Transform:
    """Return a function that computes the Jacobian from the inputs to the outputs: `jacobian(…, order="forward")`.

    Arguments:
        func, argnums, has_aux: as for `jacobian`.
        randomness: what to do if `func` draws random numbers.  "same": every column is of the same draws.  "error"
            refuses them; so does "different", because one run of `func` serves all columns.

    Returns, raises, cost: as `jacobian`; and ArgumentError for draws that are refused.

    >>> import torch, pullback
    >>> pullback.jacfwd(torch.sin)(torch.zeros(2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    if randomness not in RANDOMNESS:
        raise ArgumentError(f"randomness={randomness!r}: it must be 'error', 'different' or 'same'")
    kind = Jacobian(normal_argnums(argnums), has_aux, "forward", None, randomness)
    return transform_of(func, kind, "auto", verify)


def linearize(func: Callable[..., Any], *primals: Any, verify: bool = False) -> tuple[Any, Callable[..., Any]]:
    """Compute a function's value, and a function that pushes tangents forward.

    Arguments:
        func: a function of tensors, or of pytrees of them, that returns any pytree of floating tensors.
        primals: its arguments; all of them are differentiated.

    Returns:
        (output, push_forward).  `push_forward(*tangents)` takes one tangent for each primal, of its structure, shapes
        and dtypes; it returns the tangent of the output.

    Raises: as `jvp`; `push_forward` raises ShapeError or ArgumentError for tangents that do not fit.

    Cost: `func` runs once, whatever the number of tangents; what they need of it is kept.

    >>> import torch, pullback
    >>> output, push_forward = pullback.linearize(torch.sin, torch.zeros(2))
    >>> push_forward(torch.tensor([1.0, 3.0]))
    tensor([1., 3.])
    """
    if verify:
        verify_products(func, primals)
    return execute(Linearisation(), func, primals, {})
