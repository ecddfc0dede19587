"""pullback: a derivative compiler for PyTorch.

General back-propagation: a function becomes its computational graph, every edge carries a structured local Jacobian,
and the derivative that was asked for is compiled from them by the chain rule.  The names here are public; all else may
change.
"""

from torch.func import functional_call, stack_module_state, vmap

from .collection import collection_paused

with collection_paused():
    from . import registry as registry
    from . import rules
    from .api import compile, grad, hessian, hvp, jacobian, jvp, value_and_grad, vjp
    from .batches import batch_hessian, batch_jacobian
    from .calibration import calibrate
    from .compiled import CompiledFunction, load
    from .cost import CostModel
    from .elimination import EliminationPlan, eliminate
    from .errors import (
        ArgumentError,
        AutogradError,
        BackendWarning,
        BatchError,
        CallError,
        CaptureError,
        GaugeError,
        GraphError,
        MissingRuleError,
        NativeError,
        OrderError,
        ProgramFileError,
        PullbackError,
        RecordError,
        RuleError,
        ShapeError,
        SignatureError,
        UnboundError,
        UnsupportedTorchError,
        VerificationError,
    )
    from .explain import LocalJacobian, TracedGraph, trace
    from .graph import Graph, Node, Source, Value
    from .nonfinite import NonFinite, first_nonfinite
    from .recorder import Tape, record
    from .stages import Bound, Edge, Order, Plan, Prediction
    from .teaching import generalized_backward
    from .torch_func import grad_and_value, jacfwd, jacrev, linearize
    from .transform import Transform

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AutogradError",
    "BackendWarning",
    "BatchError",
    "Bound",
    "CallError",
    "CaptureError",
    "CompiledFunction",
    "CostModel",
    "Edge",
    "EliminationPlan",
    "GaugeError",
    "Graph",
    "GraphError",
    "LocalJacobian",
    "MissingRuleError",
    "NativeError",
    "Node",
    "NonFinite",
    "Order",
    "OrderError",
    "Plan",
    "Prediction",
    "ProgramFileError",
    "PullbackError",
    "RecordError",
    "RuleError",
    "ShapeError",
    "SignatureError",
    "Source",
    "Tape",
    "TracedGraph",
    "Transform",
    "UnboundError",
    "UnsupportedTorchError",
    "Value",
    "VerificationError",
    "__version__",
    "batch_hessian",
    "batch_jacobian",
    "calibrate",
    "compile",
    "eliminate",
    "first_nonfinite",
    "functional_call",
    "generalized_backward",
    "grad",
    "grad_and_value",
    "hessian",
    "hvp",
    "jacfwd",
    "jacobian",
    "jacrev",
    "jvp",
    "linearize",
    "load",
    "record",
    "rules",
    "stack_module_state",
    "trace",
    "value_and_grad",
    "vjp",
    "vmap",
]
