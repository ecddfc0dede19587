"""CasADi's generated C, built by the C compiler that is there: called from Python, or by a loop in C."""

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import casadi
import numpy
from tasks.task import Task

from .contender import Contender, NotOffered

FLAGS = ("-O3", "-march=native", "-fPIC", "-shared")
LOOP = """
typedef long long number;
int derivative(const double **arg, double **res, number *iw, double *w, int mem);
void loop(number calls, number samples, number inputs, number outputs,
          const double *x, double *y, const double **arg, double **res, number *iw, double *w) {
    for (number call = 0; call < calls; ++call)
        for (number sample = 0; sample < samples; ++sample) {
            arg[0] = x + sample * inputs;
            res[0] = y + sample * outputs;
            derivative(arg, res, iw, w, 0);
        }
}
"""
_directory = tempfile.TemporaryDirectory()  # as long as the process, which has its files loaded


class Space:
    """The functions that tasks are written in, by CasADi."""

    sin, cos, sqrt, exp, log, erf = casadi.sin, casadi.cos, casadi.sqrt, casadi.exp, casadi.log, casadi.erf
    abs, atan2 = casadi.fabs, casadi.atan2


def about() -> str:
    """Versions."""
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return f"CasADi {casadi.__version__}, {compiler[0] if compiler else 'no C compiler'}"


def warm_up() -> None:
    """Nothing to be done."""


def contenders(task: Task, kernel: bool = False) -> dict[str, Contender]:
    """The one way, as Python calls it or (`kernel`) without Python."""
    if task.numbers is None:
        raise NotOffered("not a function of numbers")
    return {"": (_Kernel if kernel else _Call)(task).contender()}


class _Call:
    """The derivative as a CasADi function."""

    def __init__(self, task: Task) -> None:
        self.task = task
        first = task.arguments(0)
        self.samples = first[0].shape[0] if task.batched else 1
        self.inputs = sum(a.size for a in first) // self.samples
        self.function: Any = None

    def build(self) -> Path:
        """Generate C and build it."""
        x = casadi.SX.sym("x", self.inputs)
        y = casadi.vertcat(*self.task.numbers(Space, *casadi.vertsplit(x)))
        derivative = casadi.hessian(y, x)[0] if self.task.derivative == "hessian" else casadi.jacobian(y, x)
        self.shape = derivative.shape
        folder = Path(_directory.name)
        generator = casadi.CodeGenerator("derivative.c")
        generator.add(casadi.Function("derivative", [x], [casadi.densify(derivative)]))
        generator.generate(f"{folder}/")
        (folder / "loop.c").write_text(LOOP)
        for name in ("derivative", "loop"):  # apart, so that the loop cannot be merged with what it calls
            subprocess.run(["cc", *FLAGS[:3], "-c", f"{name}.c", "-o", f"{name}.o"], cwd=folder, check=True)
        subprocess.run(["cc", *FLAGS, "derivative.o", "loop.o", "-lm", "-o", "derivative.so"], cwd=folder, check=True)
        self.function = casadi.external("derivative", str(folder / "derivative.so"))
        self.mapped = self.function if self.samples == 1 else self.function.map(self.samples)
        return folder / "derivative.so"

    def call(self, x: Any) -> Any:
        """Call it as one does from Python."""
        if self.function is None:
            self.build()
        return self.mapped(x)

    def convert(self, arrays: Sequence[numpy.ndarray]) -> tuple[Any, ...]:
        """One column for each sample."""
        return (casadi.DM(numpy.concatenate([a.reshape(self.samples, -1) for a in arrays], 1).T),)

    def arrays(self, result: Any) -> list[numpy.ndarray]:
        """The Jacobians, as the other peers return them."""
        rows, columns = self.shape
        flat = numpy.asarray(result).reshape(rows, self.samples, columns).transpose(1, 0, 2)
        return self.shaped(flat)

    def shaped(self, flat: numpy.ndarray) -> list[numpy.ndarray]:
        """From (samples, rows, columns)."""
        if len(self.task.argnums) > 1:
            return [numpy.array(entry) for entry in flat.ravel()]
        flat = flat[:, 0] if flat.shape[1] == 1 else flat
        return [flat if self.task.batched else flat[0]]

    def contender(self) -> Contender:
        """Through Python."""
        return Contender("call", self.call, self.convert, self.arrays)


class _Kernel(_Call):
    """The same in a loop in C."""

    def call(self, x: numpy.ndarray) -> numpy.ndarray:
        """Once."""
        if self.function is None:
            self.load()
        self.loop((x,), 1)
        return self.results

    def load(self) -> None:
        """Build it, and find its loop."""
        library = ctypes.CDLL(str(self.build()))
        self.entry = library.loop
        self.entry.argtypes = [ctypes.c_longlong] * 4 + [ctypes.c_void_p] * 6
        sizes = [getattr(self.function, f"sz_{name}")() + 1 for name in ("arg", "res", "iw", "w")]
        self.memory = [numpy.zeros(size) for size in sizes]
        self.results = numpy.zeros((self.samples, self.shape[0] * self.shape[1]))

    def loop(self, arguments: tuple[Any, ...], calls: int) -> None:
        """Many times."""
        pointers = [a.ctypes.data for a in (arguments[0], self.results, *self.memory)]
        self.entry(calls, self.samples, self.inputs, self.results.shape[1], *pointers)

    def convert(self, arrays: Sequence[numpy.ndarray]) -> tuple[Any, ...]:
        """One row for each sample."""
        return (numpy.concatenate([a.reshape(self.samples, -1) for a in arrays], 1).copy(),)

    def arrays(self, result: Any) -> list[numpy.ndarray]:
        """The Jacobians, which C holds column by column."""
        rows, columns = self.shape
        return self.shaped(result.reshape(self.samples, columns, rows).transpose(0, 2, 1).copy())

    def contender(self) -> Contender:
        """Without Python."""
        return Contender("kernel", self.call, self.convert, self.arrays, loop=self.loop)
