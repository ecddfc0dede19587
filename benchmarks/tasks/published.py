"""Functions of numbers that the literature differentiates, written from their published definitions.

Each takes the functions `sin`, `sqrt` and so on as attributes of its first argument, then numbers, and returns numbers.
A number may be a tensor without axes, a tensor with one number for each sample, or a symbol.
"""

from typing import Any

Numbers = tuple[Any, ...]
GAMMA = 1.4  # the ratio of the specific heats of air


def heart_dipole(np: Any, a: Any, b: Any, c: Any, d: Any, t: Any, u: Any, v: Any, w: Any) -> Numbers:
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


def propane_combustion(np: Any, *x: Any) -> Numbers:
    """The same collection: combustion of propane in air, full formulation."""
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11 = x
    pressure = 40 / x11
    root = np.sqrt(pressure)
    return (
        x1 + x4 - 3,
        2 * x1 + x2 + x4 + x7 + x8 + x9 + 2 * x10 - 10,
        2 * x2 + 2 * x5 + x6 + x7 - 8,
        2 * x3 + x9 - 40,
        1.930e-1 * x2 * x4 - x1 * x5,
        2.597e-3 * np.sqrt(x2 * x4) - np.sqrt(x1) * x6 * root,
        3.448e-3 * np.sqrt(x1 * x2) - np.sqrt(x4) * x7 * root,
        1.799e-5 * x1 - x4 * x8 * pressure,
        2.155e-4 * x1 * np.sqrt(x3) - x4 * x9 * root,
        3.846e-5 * x1 * x1 - x4 * x4 * x10 * pressure,
        x11 - x1 - x2 - x3 - x4 - x5 - x6 - x7 - x8 - x9 - x10,
    )


def robot_arm(np: Any, *angles: Any) -> Numbers:
    """Position and orientation of the hand of an arm with six joints (Denavit & Hartenberg), last joint first."""
    links = [(0.0, 1.0, 0.8), (1.2, 0.0, 0.0), (0.3, 1.0, 0.0), (0.0, -1.0, 1.1), (0.0, 1.0, 0.0), (0.0, 0.0, 0.4)]
    frame = [[float(i == j) for j in range(4)] for i in range(3)]
    for angle, (length, turn, offset) in zip(angles[::-1], links[::-1], strict=True):
        cosine, sine, straight = np.cos(angle), np.sin(angle), 1 - abs(turn)
        joint = [
            [cosine, times(-straight, sine), times(turn, sine), times(length, cosine)],
            [sine, times(straight, cosine), times(-turn, cosine), times(length, sine)],
            [0.0, turn, straight, offset],
        ]
        frame = [[plus(inner(row, frame, j), row[3] if j == 3 else 0.0) for j in range(4)] for row in joint]
    (r11, _, _, x), (r21, _, _, y), (r31, r32, r33, z) = frame
    pitch = np.atan2(-r31, np.sqrt(r32 * r32 + r33 * r33))
    return x, y, z, np.atan2(r32, r33), pitch, np.atan2(r21, r11)


def times(a: Any, b: Any) -> Any:
    """A product in which zeros and ones are no operators."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, float) and one in (0.0, 1.0):
            return other if one else 0.0
    return a * b


def plus(a: Any, b: Any) -> Any:
    """A sum in which a zero is no operator."""
    return b if isinstance(a, float) and a == 0 else a if isinstance(b, float) and b == 0 else a + b


def inner(row: list[Any], matrix: list[list[Any]], column: int) -> Any:
    """The first three entries of a row times a column."""
    total: Any = 0.0
    for k in range(3):
        total = plus(total, times(row[k], matrix[k][column]))
    return total


def roe_flux_1d(np: Any, r0: Any, m0: Any, e0: Any, r1: Any, m1: Any, e1: Any) -> Numbers:
    """Roe, Approximate Riemann solvers (J. Comput. Phys. 43, 1981): the flux between two states in one dimension."""
    (u0, p0, h0), (u1, p1, h1) = primitive(r0, e0, m0), primitive(r1, e1, m1)
    density, (u, h) = roe_average(np, (r0, u0, h0), (r1, u1, h1))
    kinetic = 0.5 * u * u
    sound2 = (GAMMA - 1) * (h - kinetic)
    sound = np.sqrt(sound2)
    dp, du = p1 - p0, u1 - u0
    slow = np.abs(u - sound) * (dp - density * sound * du) / (2 * sound2)
    middle = np.abs(u) * (r1 - r0 - dp / sound2)
    fast = np.abs(u + sound) * (dp + density * sound * du) / (2 * sound2)
    return (
        0.5 * (m0 + m1 - (slow + middle + fast)),
        0.5 * (m0 * u0 + p0 + m1 * u1 + p1 - (slow * (u - sound) + middle * u + fast * (u + sound))),
        0.5 * (m0 * h0 + m1 * h1 - (slow * (h - u * sound) + middle * kinetic + fast * (h + u * sound))),
    )


def roe_flux_3d(np: Any, *states: Any) -> Numbers:
    """The same in three dimensions, through a face across the first axis; density, momenta and energy of two states."""
    (r0, m0, my0, mz0, e0), (r1, m1, my1, mz1, e1) = states[:5], states[5:]
    (u0, v0, w0, p0, h0), (u1, v1, w1, p1, h1) = primitive(r0, e0, m0, my0, mz0), primitive(r1, e1, m1, my1, mz1)
    density, (u, v, w, h) = roe_average(np, (r0, u0, v0, w0, h0), (r1, u1, v1, w1, h1))
    kinetic = 0.5 * (u * u + v * v + w * w)
    sound2 = (GAMMA - 1) * (h - kinetic)
    sound = np.sqrt(sound2)
    dp, du, shear = p1 - p0, u1 - u0, density * np.abs(u)
    slow = np.abs(u - sound) * (dp - density * sound * du) / (2 * sound2)
    middle = np.abs(u) * (r1 - r0 - dp / sound2)
    fast = np.abs(u + sound) * (dp + density * sound * du) / (2 * sound2)
    across, along = shear * (v1 - v0), shear * (w1 - w0)
    waves = slow + middle + fast
    lost = slow * (h - u * sound) + middle * kinetic + across * v + along * w + fast * (h + u * sound)
    return (
        0.5 * (m0 + m1 - waves),
        0.5 * (m0 * u0 + p0 + m1 * u1 + p1 - (slow * (u - sound) + middle * u + fast * (u + sound))),
        0.5 * (m0 * v0 + m1 * v1 - (waves * v + across)),
        0.5 * (m0 * w0 + m1 * w1 - (waves * w + along)),
        0.5 * (m0 * h0 + m1 * h1 - lost),
    )


def primitive(density: Any, energy: Any, *momenta: Any) -> Numbers:
    """Velocities, pressure and enthalpy."""
    velocities = [m / density for m in momenta]
    squares = [m * v for m, v in zip(momenta, velocities, strict=True)]
    pressure = (GAMMA - 1) * (energy - 0.5 * sum(squares[1:], squares[0]))
    return *velocities, pressure, (energy + pressure) / density


def roe_average(np: Any, left: Numbers, right: Numbers) -> tuple[Any, Numbers]:
    """Roe's density, and the means of what stands behind the densities, weighted by the densities' roots."""
    w0, w1 = np.sqrt(left[0]), np.sqrt(right[0])
    weight = w0 + w1
    return w0 * w1, tuple((w0 * a + w1 * b) / weight for a, b in zip(left[1:], right[1:], strict=True))


def black_scholes(np: Any, spot: Any, strike: Any, rate: Any, volatility: Any, time: Any) -> Numbers:
    """Black & Scholes, The pricing of options and corporate liabilities (1973): the price of a call."""
    spread = volatility * np.sqrt(time)
    d1 = (np.log(spot / strike) + (rate + 0.5 * volatility * volatility) * time) / spread
    return (spot * cumulative(np, d1) - strike * np.exp(-rate * time) * cumulative(np, d1 - spread),)


def cumulative(np: Any, x: Any) -> Any:
    """The normal distribution."""
    return 0.5 * (1 + np.erf(x / 1.4142135623730951))


CENTRES: dict[Any, tuple[float, ...]] = {
    heart_dipole: (0.299, 0.186, -0.0273, 0.0254, -0.474, 0.474, -0.0892, 0.0892),
    propane_combustion: (2.2, 1.3, 20.0, 0.8, 2.1, 0.4, 1.1, 0.2, 0.5, 0.3, 29.0),
    robot_arm: (0.3, -0.7, 0.4, 0.9, -0.2, 0.5),
    roe_flux_1d: (1.0, 0.3, 2.5, 0.7, 0.2, 1.9),
    roe_flux_3d: (1.0, 0.3, 0.1, -0.2, 2.5, 0.7, 0.2, -0.1, 0.15, 1.9),
    black_scholes: (1.1, 1.0, 0.05, 0.2, 0.9),
}
