"""Every error that `pullback` raises on purpose.

A message names the values that were seen, what is required, the user's source line, and the way out.
"""


class PullbackError(Exception):
    """The base of every error of ours: `except pullback.PullbackError` catches them all."""


class CaptureError(PullbackError):
    """A function could not be turned into a graph: it branches on data, or takes a value out of the graph."""


class MissingRuleError(PullbackError):
    """Operators on the way from the inputs to the outputs have no derivative rule; all of them are listed at once."""


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


class BatchError(PullbackError, ValueError):
    """A function mixes the samples of a batch, where each was to be differentiated by itself; names the operator."""


class GraphError(PullbackError):
    """A stage handed over a graph that contradicts itself.  This is a fault of `pullback`, not of its caller."""


class UnsupportedTorchError(PullbackError, ImportError):
    """The installed PyTorch lacks a private interface that `pullback` uses; names the supported versions."""


class VerificationError(PullbackError):
    """A compiled derivative contradicts independent evidence; names the node that is wrong, with its line."""


class RecordError(PullbackError):
    """A record cannot hold what its block does, or cannot answer what it is asked; names the line."""
