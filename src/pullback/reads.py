"""What code may ask of a tensor that a graph cannot tell: its value, its address, PyTorch's book-keeping."""

from typing import Any

import torch
from torch import Tensor

BRANCH = "compute both sides and choose by torch.where, or pass what decides as a Python argument"
NUMBER = "keep it a tensor, or pass the number as a Python argument"
SELECTION = "Keep all the entries and choose among them with torch.where, or select outside of f."
ARRAY = "use torch's functions instead of NumPy's or Python's, or compute it outside of f"
READS: dict[Any, tuple[str, str]] = {
    Tensor.__bool__: ("branches on the value of a tensor", BRANCH),
    torch.is_nonzero: ("branches on the value of a tensor", BRANCH),
    Tensor.is_nonzero: ("branches on the value of a tensor", BRANCH),
    torch.equal: ("branches on the values of tensors (torch.equal)", BRANCH),
    Tensor.equal: ("branches on the values of tensors (.equal)", BRANCH),
    torch.allclose: ("branches on the values of tensors (torch.allclose)", BRANCH),
    Tensor.allclose: ("branches on the values of tensors (.allclose)", BRANCH),
    Tensor.__int__: ("turns a tensor into a Python int", NUMBER),
    Tensor.__index__: ("turns a tensor into a Python int", NUMBER),
    Tensor.__float__: ("turns a tensor into a Python float", NUMBER),
    Tensor.__complex__: ("turns a tensor into a Python complex number", NUMBER),
    Tensor.item: ("turns a tensor into a Python number (.item() or .tolist())", NUMBER),
    Tensor.tolist: ("turns a tensor into a Python list (.tolist())", ARRAY),
    Tensor.numpy: ("turns a tensor into a NumPy array (.numpy())", ARRAY),
    Tensor.__array__: ("turns a tensor into a NumPy array", ARRAY),
    Tensor.data_ptr: ("takes the address of a tensor", "a program works at other addresses in each call"),
}
NUMBERS = frozenset({Tensor.__bool__, Tensor.__int__, Tensor.__index__, Tensor.__float__})  # what one number becomes
ASKED: dict[Any, str] = {getattr(Tensor, name).__get__: name for name in ("requires_grad", "is_leaf", "grad_fn")}
MAKERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor})
SETTERS: dict[Any, str] = {getattr(Tensor, name).__set__: f".{name}" for name in ("data", "grad")}
VIEWS = frozenset(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real", "imag"))
ADOPTERS = frozenset({torch.from_numpy, torch.frombuffer, torch.as_tensor, torch.asarray})
