"""Functions of numbers that the literature plans eliminations for, written from their published definitions.

Each takes and returns tensors without axes, so that every vertex of the traced graph is a scalar.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


def heart_dipole(a: Tensor, b: Tensor, c: Tensor, d: Tensor, t: Tensor, u: Tensor, v: Tensor, w: Tensor):
    """Averick, Carter, Moré & Xue, The MINPACK-2 Test Problem Collection (1992): human heart dipole."""
    tv, uw = t * t - v * v, u * u - w * w
    t3, v3 = t * t - 3 * v * v, v * v - 3 * t * t
    u3, w3 = u * u - 3 * w * w, w * w - 3 * u * u
    return (
        a + b - 0.485,
        c + d + 0.0019,
        t * a + u * b - v * c - w * d + 0.0581,
        v * a + w * b + t * c + u * d - 0.015,
        a * tv - 2 * c * t * v + b * uw - 2 * d * u * w - 0.105,
        c * tv + 2 * a * t * v + d * uw + 2 * b * u * w - 0.0406,
        a * t * t3 + c * v * v3 + b * u * u3 + d * w * w3 - 0.167,
        c * t * t3 - a * v * v3 + d * u * u3 - b * w * w3 + 0.399,
    )


def propane_combustion(*x: Tensor):
    """The same collection: combustion of propane in air, full formulation."""
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11 = x
    pressure = 40 / x11
    root = pressure.sqrt()
    return (
        x1 + x4 - 3,
        2 * x1 + x2 + x4 + x7 + x8 + x9 + 2 * x10 - 10,
        2 * x2 + 2 * x5 + x6 + x7 - 8,
        2 * x3 + x9 - 40,
        1.930e-1 * x2 * x4 - x1 * x5,
        2.597e-3 * (x2 * x4).sqrt() - x1.sqrt() * x6 * root,
        3.448e-3 * (x1 * x2).sqrt() - x4.sqrt() * x7 * root,
        1.799e-5 * x1 - x4 * x8 * pressure,
        2.155e-4 * x1 * x3.sqrt() - x4 * x9 * root,
        3.846e-5 * x1 * x1 - x4 * x4 * x10 * pressure,
        x11 - x1 - x2 - x3 - x4 - x5 - x6 - x7 - x8 - x9 - x10,
    )


def robot_arm(*angles: Tensor):
    """Position and orientation of the hand of an arm with six joints (Denavit & Hartenberg), last joint first."""
    links = [(0.0, 1.0, 0.8), (1.2, 0.0, 0.0), (0.3, 1.0, 0.0), (0.0, -1.0, 1.1), (0.0, 1.0, 0.0), (0.0, 0.0, 0.4)]
    frame = [[float(i == j) for j in range(4)] for i in range(3)]
    for angle, (length, turn, offset) in zip(angles[::-1], links[::-1], strict=True):
        cosine, sine, straight = angle.cos(), angle.sin(), 1 - abs(turn)
        joint = [
            [cosine, times(-straight, sine), times(turn, sine), times(length, cosine)],
            [sine, times(straight, cosine), times(-turn, cosine), times(length, sine)],
            [0.0, turn, straight, offset],
        ]
        frame = [[plus(product(row, frame, j), row[3] if j == 3 else 0.0) for j in range(4)] for row in joint]
    (r11, _, _, x), (r21, _, _, y), (r31, r32, r33, z) = frame
    return x, y, z, torch.atan2(r32, r33), torch.atan2(-r31, (r32 * r32 + r33 * r33).sqrt()), torch.atan2(r21, r11)


def times(a: Tensor | float, b: Tensor | float):
    """A product in which zeros and ones are no operators."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, float) and one in (0.0, 1.0):
            return other if one else 0.0
    return a * b


def plus(a: Tensor | float, b: Tensor | float):
    return b if isinstance(a, float) and a == 0 else a if isinstance(b, float) and b == 0 else a + b


def product(row: list[Tensor | float], matrix: list[list[Tensor | float]], column: int):
    total: Tensor | float = 0.0
    for k in range(3):
        total = plus(total, times(row[k], matrix[k][column]))
    return total


def roe_flux(r0: Tensor, m0: Tensor, e0: Tensor, r1: Tensor, m1: Tensor, e1: Tensor):
    """Roe, Approximate Riemann solvers (J. Comput. Phys. 43, 1981): the flux between two states in one dimension."""
    left, right = primitive(r0, m0, e0), primitive(r1, m1, e1)
    (u0, p0, h0), (u1, p1, h1) = left, right
    w0, w1 = r0.sqrt(), r1.sqrt()
    weight = w0 + w1
    u, h = (w0 * u0 + w1 * u1) / weight, (w0 * h0 + w1 * h1) / weight
    kinetic = 0.5 * u * u
    sound2 = 0.4 * (h - kinetic)
    sound, density = sound2.sqrt(), w0 * w1
    dp, du, dr = p1 - p0, u1 - u0, r1 - r0
    slow = (u - sound).abs() * (dp - density * sound * du) / (2 * sound2)
    middle = u.abs() * (dr - dp / sound2)
    fast = (u + sound).abs() * (dp + density * sound * du) / (2 * sound2)
    return (
        0.5 * (m0 + m1 - (slow + middle + fast)),
        0.5 * (m0 * u0 + p0 + m1 * u1 + p1 - (slow * (u - sound) + middle * u + fast * (u + sound))),
        0.5 * (m0 * h0 + m1 * h1 - (slow * (h - u * sound) + middle * kinetic + fast * (h + u * sound))),
    )


def primitive(density: Tensor, momentum: Tensor, energy: Tensor):
    velocity = momentum / density
    pressure = 0.4 * (energy - 0.5 * momentum * velocity)
    return velocity, pressure, (energy + pressure) / density


def black_scholes(spot: Tensor, strike: Tensor, rate: Tensor, volatility: Tensor, time: Tensor):
    """Black & Scholes (1973): the derivatives of a call's price in spot, strike, rate, volatility and time."""
    spread = volatility * time.sqrt()
    d1 = ((spot / strike).log() + (rate + 0.5 * volatility * volatility) * time) / spread
    d2 = d1 - spread
    discount = strike * (-rate * time).exp()
    density = (-0.5 * d1 * d1).exp() * 0.3989422804014327
    below1, below2 = cumulative(d1), cumulative(d2)
    vega = spot * density * time.sqrt()
    decay = vega * volatility / (2 * time) + rate * discount * below2
    return below1, -discount * below2 / strike, time * discount * below2, vega, decay


def cumulative(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / 1.4142135623730951))


def numbers(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


PUBLISHED: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "heart dipole": (heart_dipole, numbers(0.299, 0.186, -0.0273, 0.0254, -0.474, 0.474, -0.0892, 0.0892)),
    "propane combustion": (propane_combustion, numbers(2.2, 1.3, 20.0, 0.8, 2.1, 0.4, 1.1, 0.2, 0.5, 0.3, 29.0)),
    "robot arm": (robot_arm, numbers(0.3, -0.7, 0.4, 0.9, -0.2, 0.5)),
    "roe flux": (roe_flux, numbers(1.0, 0.3, 2.5, 0.7, 0.2, 1.9)),
    "black scholes": (black_scholes, numbers(1.1, 1.0, 0.05, 0.2, 0.9)),
}
