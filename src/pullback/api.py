"""The transforms: what a user calls.

Each takes a function and gives a function, with the argument order and result structure of `torch.func`.  The first
call traces and compiles; later calls with arguments of the same shapes, dtypes and devices look the program up and run
it.
"""

from collections.abc import Callable
from typing import Any

from .compilation import OrderName
from .deferred import VectorJacobian
from .derivatives import Argnums, Gradient, Jacobian, JacobianVector
from .emit.backends import CALLS, normal_backend
from .errors import ArgumentError, ShapeError
from .stages import Search
from .torch_private import tree_flatten
from .transform import Transform, execute
from .verification import transform_of, verify_products
from .whole import WholeFunction


def grad(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    order: OrderName = "auto",
    effort: float | None = None,
    backend: str = "auto",
    expected_calls: int = CALLS,
    verify: bool = False,
) -> Transform:
    """Return a function that computes the gradient of a scalar function.

    Arguments:
        func: a function `f` of tensors, or of any pytrees of them, that returns one scalar tensor of a floating dtype.
        argnums: the position, or a tuple of positions, of the arguments to differentiate; negative ones count from the
            end.
        has_aux: whether `f` returns (output, aux), where `aux` is passed through undifferentiated.
        order: "auto", "forward", "reverse", or a list of vertex names: the sequence of elimination.
        effort: as for `jacobian`; a scalar function needs no search.
        backend: "auto"; "python"; "native" (machine code, where the program is of a kind that is done and there is a C
            compiler; else generated Python, and `plan(...).reason` says why); "inductor" (PyTorch's compiler, or
            NativeError where it cannot make the program).
        expected_calls: how many calls the program is to serve: with "auto", what building takes is weighed against it.
        verify: whether each program is checked when it is first called: see `pullback.verification.verify`.

    Returns:
        A function of the arguments of `f`.  It returns the gradient in the structure, dtype and on the device of the
        argument (a tuple of them for a tuple of positions), and (gradient, aux) if `has_aux`.

    Raises (when the function is called):
        ArgumentError: an argument to differentiate is not a floating tensor, or a position does not exist.
        ShapeError: the output is not a scalar.
        CaptureError: `f` branches on data, or takes a value out of the graph; names the line.
        MissingRuleError: `f` uses operators without a rule; names all of them with their lines.

    Cost: the first call traces and compiles (about 1 ms an operator); a later one looks the program up, a few µs.

    >>> import torch, pullback
    >>> pullback.grad(lambda x: (x * x).sum())(torch.tensor([1.0, 2.0]))
    tensor([2., 4.])
    """
    kind = Gradient(normal_argnums(argnums), has_aux, normal_order(order, effort), False)
    return transform_of(func, kind, normal_backend(backend, expected_calls), verify)


def value_and_grad(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    order: OrderName = "auto",
    effort: float | None = None,
    backend: str = "auto",
    expected_calls: int = CALLS,
    verify: bool = False,
) -> Transform:
    """Return a function that computes a scalar function's value and gradient at once.

    Arguments, errors and cost are those of `grad`.

    Returns:
        A function of the arguments of `f`.  It returns (value, gradient), and ((value, aux), gradient) if `has_aux`.

    >>> import torch, pullback
    >>> pullback.value_and_grad(lambda x: (x * x).sum())(torch.tensor([1.0, 2.0]))
    (tensor(5.), tensor([2., 4.]))
    """
    kind = Gradient(normal_argnums(argnums), has_aux, normal_order(order, effort), True)
    return transform_of(func, kind, normal_backend(backend, expected_calls), verify)


def jacobian(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    order: OrderName = "auto",
    effort: float | None = None,
    backend: str = "auto",
    expected_calls: int = CALLS,
    chunk_size: int | None = None,
    verify: bool = False,
) -> Transform:
    """Return a function that computes the Jacobian of every output in the arguments asked for.

    Arguments:
        func, argnums, has_aux, backend, expected_calls: as for `grad`; `f` may return any pytree of floating tensors.
        order: "forward" eliminates from the inputs, "reverse" from the outputs, a list of vertex names as it says;
            "auto" is the cheapest that a search finds, by the seconds that a cost model predicts, and never worse than
            the first two.
        effort: about how many seconds that search may take (0.5 by default; 0: the better of forward and reverse).
        chunk_size: how many rows (columns, with order="forward") to compute at once; bounds memory.  None: all.

    Returns:
        A function of the arguments of `f`.  For an output of shape (m₁, …) and an argument of shape (n₁, …) it returns
        shape (m₁, …, n₁, …); outputs' structure outside, arguments' structure inside, and (jacobian, aux) if `has_aux`.

    Raises (when the function is called): as `grad`, and
        OrderError: the order names a vertex that is not one, or leaves one out.

    Cost: that of `grad`, and with "auto" the search's: `effort` seconds in the first call.
    Source: vertex elimination, Griewank & Walther, Evaluating Derivatives (2nd ed.), chapter 9.

    >>> import torch, pullback
    >>> pullback.jacobian(lambda x: x.sin())(torch.zeros(2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    check_chunk(chunk_size)
    kind = Jacobian(normal_argnums(argnums), has_aux, normal_order(order, effort), chunk_size)
    return transform_of(func, kind, normal_backend(backend, expected_calls), verify)


def hessian(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    order: OrderName = "auto",
    effort: float | None = None,
    backend: str = "auto",
    expected_calls: int = CALLS,
    verify: bool = False,
) -> Transform:
    """Return a function that computes the second derivatives: the Jacobian of the Jacobian.

    Arguments, errors and cost are those of `jacobian`.

    Returns:
        A function of the arguments of `f`.  For a scalar output and an argument of shape (n₁, …) it returns shape
        (n₁, …, n₁, …); structures nest as in `torch.func.hessian`.

    >>> import torch, pullback
    >>> pullback.hessian(lambda x: (x ** 3).sum())(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    inner = jacobian(func, argnums, backend=backend)
    options: dict[str, Any] = {"backend": backend, "expected_calls": expected_calls, "verify": verify}
    return jacobian(inner, argnums, order=order, effort=effort, **options)


def compile(f: Callable[..., Any], *, backend: str = "auto", expected_calls: int = CALLS) -> Transform:
    """Compile a function that calls our transforms, a training step say, update included, into one program.

    Arguments:
        f: a function of tensors, or of pytrees of them.  It may change tensors in place, whether they are arguments,
            parameters or buffers of modules that it uses; it need not call a transform at all.
        backend, expected_calls: as of `grad`.

    Returns:
        A function of the arguments of `f`, with its results, which writes into the very tensors that `f` would write
        into.  Its results are numbers, outside PyTorch's autograd graph.  What is a view of a tensor that is changed in
        place is returned as a tensor of its own.

    Raises (when the function is called):
        CaptureError: `f` branches on data; it calls an optimiser of PyTorch's; or it changes something that is no
            tensor (a counter, a list), which its program could not repeat.  The message names it.
        ArgumentError: gradients are on, and what is returned, or written in place, depends on a tensor that requires
            them, so that eager PyTorch would record it: call it under `torch.no_grad()`, or `.detach()` the result.

    Cost: the first call traces and compiles; a later one looks the program up and runs it.  Inside a trace or transform
        in progress it is part of that, and `f` itself is called.

    >>> import torch, pullback
    >>> weight = torch.tensor([1.0, 2.0])
    >>> @pullback.compile
    ... def step(x):
    ...     value, gradient = pullback.value_and_grad(lambda w: (w * x).square().sum())(weight)
    ...     weight.sub_(0.1 * gradient)
    ...     return value
    >>> step(torch.ones(2)), weight
    (tensor(5.), tensor([0.8000, 1.6000]))
    """
    return Transform(f, WholeFunction(), normal_backend(backend, expected_calls))


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False, verify: bool = False) -> tuple[Any, ...]:
    """Compute a function's value, and a function that pulls cotangents back.

    Arguments:
        func: a function `f` of tensors, or of pytrees of them, that returns any pytree of floating tensors.
        primals: its arguments; all of them are differentiated.
        has_aux: whether `f` returns (output, aux).

    Returns:
        (output, pull_back), and (output, pull_back, aux) if `has_aux`.  `pull_back(cotangents)` takes what has the
        structure, shapes and dtypes of the output; it returns a tuple with the cotangent of each primal.  After
        `pull_back(…, retain_graph=False)` what was kept is let go.  `create_graph` says whether the results belong to
        autograd's graph where something requires grad; by default they do in grad mode.

    Raises: as `grad`; `pull_back` raises ShapeError or ArgumentError for a cotangent that does not fit.

    Cost: each pull back costs a few times what `f` costs; what it needs of the forward computation is kept.

    >>> import torch, pullback
    >>> output, pull_back = pullback.vjp(torch.sin, torch.zeros(2))
    >>> pull_back(torch.tensor([1.0, 3.0]))
    (tensor([1., 3.]),)
    """
    if verify:
        verify_products(func, primals)
    return execute(VectorJacobian(has_aux), func, primals, {})


def jvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    strict: bool = False,
    has_aux: bool = False,
    verify: bool = False,
) -> Any:
    """Compute a function's value and its derivative along a direction.

    Arguments:
        func: as for `vjp`.
        primals: a tuple of its arguments; all of them are differentiated.
        tangents: a tuple of the same structure, shapes and dtypes.
        strict: whether to refuse an output that does not depend on the primals, instead of giving it a tangent of zero.
        has_aux: whether `f` returns (output, aux).

    Returns:
        (output, tangent of the output), and (output, tangent, aux) if `has_aux`.

    Raises: as `grad`; ShapeError or ArgumentError for tangents that do not fit; ArgumentError if `strict` and an output
        is independent of the primals.

    Cost: two to three times what `func` costs; the first call traces and compiles.

    >>> import torch, pullback
    >>> pullback.jvp(torch.sin, (torch.zeros(2),), (torch.ones(2),))
    (tensor([0., 0.]), tensor([1., 1.]))
    """
    flat = _check_tangents(primals, tangents)
    if verify:
        verify_products(func, tuple(primals))
    return execute(JacobianVector(has_aux, strict), func, tuple(primals), {}, flat)


def hvp(
    func: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], *, verify: bool = False
) -> tuple[Any, Any]:
    """Compute the gradient of a scalar function and the product of its Hessian with a vector.

    Arguments:
        func: a function as for `grad`.
        primals, tangents: tuples as for `jvp`; all of the arguments are differentiated.

    Returns:
        (gradient, product), each in the structure of the primals; not a tuple if there is one primal.

    Raises: as `grad` and `jvp`.

    Cost: a few gradients, whatever the number of inputs; the Hessian is never formed.
    Source: Pearlmutter, Fast exact multiplication by the Hessian (1994): forward over reverse.

    >>> import torch, pullback
    >>> pullback.hvp(lambda x: (x ** 3).sum(), (torch.tensor([1.0, 2.0]),), (torch.ones(2),))
    (tensor([ 3., 12.]), tensor([ 6., 12.]))
    """
    if not isinstance(primals, tuple) or not primals:
        raise ArgumentError(f"hvp: primals must be a non-empty tuple of arguments, not {type(primals).__name__}")
    argnums: Argnums = 0 if len(primals) == 1 else tuple(range(len(primals)))
    return jvp(grad(func, argnums), primals, tangents, verify=verify)


# ---------------------------------------------------------------- checks


def normal_argnums(argnums: Any) -> Argnums:
    """Positions of arguments as they were given, lists as tuples.  Raises ArgumentError for anything else."""
    if isinstance(argnums, int) and not isinstance(argnums, bool):
        return argnums
    if isinstance(argnums, (tuple, list)) and argnums and all(type(k) is int for k in argnums):
        return tuple(argnums)
    raise ArgumentError(f"argnums={argnums!r}: it must be a position or a non-empty tuple of positions")


def normal_order(order: Any, effort: float | None = None) -> OrderName:
    """An order's name, or the names of its vertices; a search of its own effort.  Raises ArgumentError for all else."""
    if effort is not None:
        _check_effort(order, effort)
        return Search(effort)
    if isinstance(order, str):
        return order
    try:
        return tuple(str(name) for name in order)
    except TypeError:
        required = "it must be 'auto', 'forward', 'reverse' or a list of vertex names"
        raise ArgumentError(f"order={order!r}: {required}") from None


def _check_effort(order: Any, effort: Any) -> None:
    if order != "auto":
        raise ArgumentError(f"effort={effort!r} with order={order!r}: only a search, order='auto', takes an effort")
    if isinstance(effort, bool) or not isinstance(effort, (int, float)) or not 0 <= effort < float("inf"):
        raise ArgumentError(f"effort={effort!r}: it must be a number of seconds, 0 or more")


def check_chunk(chunk_size: Any) -> None:
    """Raise ArgumentError unless this is a number of rows, or None."""
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ArgumentError(f"chunk_size={chunk_size!r}: it must be a positive number of rows, or None")


def _check_tangents(primals: Any, tangents: Any) -> list[Any]:
    """The flat tangents; they must look like the primals."""
    if not isinstance(primals, tuple) or not isinstance(tangents, tuple):
        raise ArgumentError(
            f"jvp: primals and tangents must be tuples, not {type(primals).__name__} and {type(tangents).__name__}"
        )
    flat_primals, spec = tree_flatten(primals)
    flat, tangent_spec = tree_flatten(tangents)
    if spec != tangent_spec:
        required = f"jvp: the tangents must have the structure of the primals, {spec}"
        raise ArgumentError(f"{required}; they have {tangent_spec}")
    for k, (primal, tangent) in enumerate(zip(flat_primals, flat, strict=True)):
        if not hasattr(tangent, "shape") or not hasattr(primal, "shape"):
            seen = f"primal {k} is {_seen(primal)} and its tangent {_seen(tangent)}"
            raise ArgumentError(f"jvp: {seen}; both must be tensors")
        if primal.shape != tangent.shape or primal.dtype != tangent.dtype:
            raise ShapeError(
                f"jvp: tangent {k} is {tangent.dtype} of shape {tuple(tangent.shape)}; its primal is {primal.dtype} of "
                f"shape {tuple(primal.shape)}, and they must agree"
            )
        if primal.device != tangent.device or primal.layout != tangent.layout:
            seen = f"on {tangent.device}, {tangent.layout}; its primal is on {primal.device}, {primal.layout}"
            raise ArgumentError(f"jvp: tangent {k} is {seen}, and they must agree")
    return flat


def _seen(leaf: Any) -> str:
    return f"a tensor of shape {tuple(leaf.shape)}" if hasattr(leaf, "shape") else repr(leaf)
