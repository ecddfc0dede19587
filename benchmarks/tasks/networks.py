"""Networks, their losses, and other functions of whole arrays.

What the first argument of each function has to offer is what `peers/torch_space.py` and `peers/jax_jit.py` define.
"""

from itertools import pairwise
from typing import Any

import numpy
from numpy.random import Generator

Arrays = tuple[numpy.ndarray, ...]
STEPS, HIDDEN, FEATURES = 50, 16, 8  # of the recurrent network


def layers(np: Any, x: Any, *weights: Any) -> Any:
    """Dense layers without biases."""
    for weight in weights:
        x = np.tanh(x @ weight)
    return x


def dense(*sizes: int, samples: int | None = None) -> Any:
    """What makes the arguments of `layers`."""

    def make(random: Generator) -> Arrays:
        shape = (sizes[0],) if samples is None else (samples, sizes[0])
        return random.standard_normal(shape), *weights_of(random, *sizes)

    return make


def weights_of(random: Generator, *sizes: int) -> list[numpy.ndarray]:
    """Matrices that keep the size of what they multiply."""
    return [random.standard_normal((m, n)) / m**0.5 for m, n in pairwise(sizes)]


def elman(np: Any, state: Any, inputs: Any, recurrent: Any, read: Any, bias: Any) -> Any:
    """Elman, Finding structure in time (1990): the last state."""
    for t in range(inputs.shape[0]):
        state = np.tanh(state @ recurrent + inputs[t] @ read + bias)
    return state


def sequence(random: Generator) -> Arrays:
    """A first state, the inputs, and the weights of `elman`."""
    return random.standard_normal(HIDDEN), random.standard_normal((STEPS, FEATURES)), *cell(random, HIDDEN, FEATURES)


def cell(random: Generator, hidden: int, features: int) -> Arrays:
    """The weights of `elman`."""
    return weights_of(random, hidden, hidden)[0], weights_of(random, features, hidden)[0], 0.1 * random.random(hidden)


def block(np: Any, x: Any, *p: Any) -> Any:
    """A transformer block with its normalisation first (Xiong et al. 2020): 12 tokens of 32, 4 heads."""
    scale1, shift1, w_qkv, b_qkv, w_out, b_out, scale2, shift2, w_up, b_up, w_down, b_down = p
    tokens, width, heads = 12, 32, 4
    normal = np.layer_norm(x, scale1, shift1)
    qkv = np.transpose(np.reshape(normal @ w_qkv + b_qkv, (tokens, 3, heads, width // heads)), (1, 2, 0, 3))
    q, k, v = qkv[0], qkv[1], qkv[2]
    scores = np.softmax(q @ np.transpose(k, (0, 2, 1)) * (width // heads) ** -0.5)
    mixed = np.reshape(np.transpose(scores @ v, (1, 0, 2)), (tokens, width))
    x = x + mixed @ w_out + b_out
    return x + np.gelu(np.layer_norm(x, scale2, shift2) @ w_up + b_up) @ w_down + b_down


def block_weights(random: Generator) -> Arrays:
    """The weights of `block`."""
    width, wide = 32, 128
    sizes = ((width, 3 * width), (width, width), (width, wide), (wide, width))
    qkv, out, up, down = (weights_of(random, *size)[0] for size in sizes)
    small = [0.1 * random.standard_normal(n) for n in (3 * width, width, width, width, width, width, wide, width)]
    return (1 + small[1], small[2], qkv, small[0], out, small[3], 1 + small[4], small[5], up, small[6], down, small[7])


def tokens(random: Generator) -> Arrays:
    """The argument of `block` and its weights."""
    return random.standard_normal((12, 32)), *block_weights(random)


# ---------------------------------------------------------------- losses: the weights come first


def mlp_loss(np: Any, w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any, x: Any, labels: Any) -> Any:
    """Three dense layers and a cross entropy."""
    x = np.relu(x @ w1 + b1)
    x = np.relu(x @ w2 + b2)
    return np.cross_entropy(x @ w3 + b3, labels)


def mlp_data(random: Generator) -> Arrays:
    w1, w2, w3 = weights_of(random, 64, 256, 256, 10)
    return w1, numpy.zeros(256), w2, numpy.zeros(256), w3, numpy.zeros(10), *labelled(random, (64, 64))


def labelled(random: Generator, shape: tuple[int, ...]) -> Arrays:
    """A batch, and one of ten classes for each sample."""
    return random.standard_normal(shape), random.integers(0, 10, shape[0])


def cnn_loss(np: Any, k1: Any, b1: Any, k2: Any, b2: Any, w: Any, b: Any, x: Any, labels: Any) -> Any:
    """Two convolutions with pooling, a dense layer and a cross entropy, on images of 8 × 8."""
    x = np.max_pool(np.relu(np.convolution(x, k1, b1)))
    x = np.max_pool(np.relu(np.convolution(x, k2, b2)))
    return np.cross_entropy(np.reshape(x, (x.shape[0], 64)) @ w + b, labels)


def cnn_data(random: Generator) -> Arrays:
    k1 = random.standard_normal((8, 1, 3, 3)) / 3
    k2 = random.standard_normal((16, 8, 3, 3)) / 72**0.5
    (w,) = weights_of(random, 64, 10)
    return k1, numpy.zeros(8), k2, numpy.zeros(16), w, numpy.zeros(10), *labelled(random, (64, 1, 8, 8))


def rnn_loss(np: Any, recurrent: Any, read: Any, bias: Any, w: Any, b: Any, inputs: Any, labels: Any) -> Any:
    """An Elman network over 50 steps, a dense layer and a cross entropy."""
    state = np.zeros_like(inputs[0] @ read)
    return np.cross_entropy(elman(np, state, inputs, recurrent, read, bias) @ w + b, labels)


def rnn_data(random: Generator) -> Arrays:
    hidden, features, samples = 32, 8, 32
    (w,) = weights_of(random, hidden, 10)
    inputs = random.standard_normal((STEPS, samples, features))
    return *cell(random, hidden, features), w, numpy.zeros(10), inputs, random.integers(0, 10, samples)


def block_loss(np: Any, *arguments: Any) -> Any:
    """The mean squared error of a transformer block."""
    *weights, x, y = arguments
    difference = block(np, x, *weights) - y
    return np.mean(difference * difference)


def block_data(random: Generator) -> Arrays:
    return *block_weights(random), random.standard_normal((12, 32)), random.standard_normal((12, 32))


def xor_loss(np: Any, w1: Any, b1: Any, w2: Any, b2: Any, x: Any, y: Any) -> Any:
    """Exclusive or: two hidden units."""
    hidden = np.relu(x @ w1 + b1)
    return np.binary_cross_entropy(np.sigmoid(hidden @ w2 + b2), y)


def xor_data(random: Generator) -> Arrays:
    x = random.permutation(numpy.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    weights = random.standard_normal((2, 2)), random.random(2), random.standard_normal((2, 1)), random.random(1)
    return *weights, x, (x.sum(1, keepdims=True) == 1).astype(float)


# ---------------------------------------------------------------- others


def squares(np: Any, x: Any) -> Any:
    """pytorch#105220: the sum of the squares of a row."""
    return np.sum(x**2, -1)


def fixed_point(np: Any, z: Any, x: Any, recurrent: Any, read: Any, bias: Any) -> Any:
    """Bai, Kolter & Koltun, Deep equilibrium models (2019): z = tanh(W z + U x + b)."""
    return np.tanh(z @ recurrent + x @ read + bias)


def fixed_point_data(random: Generator) -> Arrays:
    recurrent, read, bias = cell(random, 32, 16)
    return numpy.zeros(32), random.standard_normal(16), 0.4 * recurrent, read, bias
