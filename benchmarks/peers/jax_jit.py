"""JAX: `jax.jit` ahead of time, on arrays of its own, until the result is there."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy
from jax import lax
from tasks.task import Task
from tasks.ways import Transforms, ways_of

from .contender import Contender

jax.config.update("jax_enable_x64", True)


class Space:
    """The functions that tasks are written in, by JAX."""

    sin, cos, sqrt, exp, log, abs, atan2 = jnp.sin, jnp.cos, jnp.sqrt, jnp.exp, jnp.log, jnp.abs, jnp.arctan2
    erf, tanh, relu, sigmoid = jax.scipy.special.erf, jnp.tanh, jax.nn.relu, jax.nn.sigmoid
    sum, mean, reshape, zeros_like, transpose = jnp.sum, jnp.mean, jnp.reshape, jnp.zeros_like, jnp.transpose
    softmax = jax.nn.softmax

    @staticmethod
    def entries(x: Any) -> list[Any]:
        return [x[..., k] for k in range(x.shape[-1])]

    @staticmethod
    def join(entries: Sequence[Any]) -> Any:
        return jnp.stack(list(entries), -1)

    @staticmethod
    def gelu(x: Any) -> Any:
        return jax.nn.gelu(x, approximate=False)

    @staticmethod
    def layer_norm(x: Any, scale: Any, shift: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * scale + shift

    @staticmethod
    def convolution(x: Any, kernel: Any, bias: Any) -> Any:
        return lax.conv(x, kernel, (1, 1), "SAME") + bias[:, None, None]

    @staticmethod
    def max_pool(x: Any) -> Any:
        return lax.reduce_window(x, -numpy.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    @staticmethod
    def cross_entropy(scores: Any, labels: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1).mean()

    @staticmethod
    def binary_cross_entropy(p: Any, y: Any) -> Any:
        return -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p)).mean()


TRANSFORMS = Transforms(
    Space,
    jax.jacrev,
    jax.jacfwd,
    lambda f, axes: jax.vmap(f, in_axes=axes),
    jax.value_and_grad,
    jnp.linalg.solve,
    lambda a: jnp.eye(len(a), dtype=a.dtype),
)


def about() -> str:
    """Versions."""
    return f"JAX {jax.__version__}"


def warm_up() -> None:
    """Let the compiler start."""
    jax.jit(jax.jacfwd(lambda x: jnp.sinh(x) * 2))(jnp.ones(3)).block_until_ready()


def contenders(task: Task) -> dict[str, Contender]:
    """Every way."""
    return {name: Contender(name, _ahead_of_time(way), _convert, _arrays) for name, way in _ways(task).items()}


def _ways(task: Task) -> dict[str, Any]:
    return ways_of(task, TRANSFORMS)


def _ahead_of_time(way: Any) -> Any:
    """A function that compiles when it is first called, and only runs what it has compiled from then on."""
    known: list[Any] = []

    def call(*arguments: Any) -> Any:
        if not known:
            known.append(jax.jit(way).lower(*arguments).compile())
        return jax.block_until_ready(known[0](*arguments))

    return call


def _convert(arrays: Sequence[numpy.ndarray]) -> tuple[Any, ...]:
    return jax.block_until_ready(tuple(jnp.array(array) for array in arrays))


def _arrays(result: Any) -> list[numpy.ndarray]:
    return [numpy.asarray(leaf) for leaf in jax.tree.leaves(result)]
