"""Every error that `pullback` raises on purpose.

A message names the values that were seen, what is required, the user's source line, and the way out.
"""

import linecache
import os
import sys
from types import FrameType
from typing import ClassVar

_LIBRARIES = (os.path.dirname(__file__) + os.sep, os.path.dirname(os.__file__) + os.sep, "<frozen", "<pullback")
_PACKAGES = ("site-packages", "dist-packages")


class PullbackError(Exception):
    """The base of every error of ours: `except pullback.PullbackError` catches them all.

    The message ends with the line of the user's that was being executed, unless it names that already.
    """

    names_line: ClassVar[bool] = True

    def __init__(self, message: str = "") -> None:
        super().__init__(message + _users_line() if self.names_line and "\n  at " not in message else message)


def _users_line() -> str:
    """The innermost line that is neither Python's, ours nor an installed package's, as the last line of a message."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARIES) and not any(place in file for place in _PACKAGES):
            return f"\n  at {file}:{frame.f_lineno}: {linecache.getline(file, frame.f_lineno).strip()}"
        frame = frame.f_back
    return ""


class CaptureError(PullbackError):
    """A function could not be turned into a graph: it branches on data, or takes a value out of the graph."""


class CallError(CaptureError, RuntimeError):
    """PyTorch refused a call that a function made while it was captured: shapes, dtypes or devices do not fit."""


class UnboundError(CaptureError, NameError):
    """A function reads a variable that has no value."""


class MissingRuleError(PullbackError):
    """Operators on the way from the inputs to the outputs have no derivative rule; all of them are listed at once."""


class GaugeError(PullbackError, RuntimeError):
    """A derivative depends on a phase, or a basis, that a factorisation leaves open; names the factorisation's line."""


class RuleError(PullbackError):
    """A derivative rule does not describe the operator that it stands for."""


class ArgumentError(PullbackError, TypeError):
    """What a transform was called with cannot be differentiated: wrong dtype, position, or structure."""


class ShapeError(PullbackError, ValueError):
    """Shapes do not fit each other, or a scalar was required."""


class OrderError(PullbackError, ValueError):
    """An accumulation order is not one: unknown names, vertices missing or repeated."""


class SignatureError(ArgumentError):
    """A compiled function was called with arguments unlike those it was compiled for; names the first that differs."""


class ProgramFileError(PullbackError):
    """A compiled function cannot be written to a file, or a file holds none that can run here; names the path."""

    names_line = False  # one sentence: the fault is the file's


class BatchError(PullbackError, ValueError):
    """A function mixes the samples of a batch, where each was to be differentiated by itself; names the operator."""


class GraphError(PullbackError):
    """A stage handed over a graph that contradicts itself.  This is a fault of `pullback`, not of its caller."""

    names_line = False


class AutogradError(PullbackError):
    """A result belongs into PyTorch's autograd graph, and cannot be put there."""


class NativeError(PullbackError):
    """A program could not be made into machine code; another back end makes it instead."""

    names_line = False


class BackendWarning(UserWarning):
    """A back end's program was not used, since it contradicts the Python program; says in what."""


class UnsupportedTorchError(PullbackError, ImportError):
    """The installed PyTorch lacks a private interface that `pullback` uses; names the supported versions."""

    names_line = False


class VerificationError(PullbackError):
    """A compiled derivative contradicts independent evidence; names the node that is wrong, with its line."""


class RecordError(PullbackError):
    """A record cannot hold what its block does, or cannot answer what it is asked; names the line."""
