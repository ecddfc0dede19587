"""The cost model of this machine: measured on request, kept on disk, and the shipped one where nothing was measured."""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .cost import CACHED, CostModel, shipped_model
from .dtypes import dtype_name, torch_dtype
from .errors import ArgumentError
from .graph import FLOATING, Value
from .private_files import cache_directory, is_private

SAMPLES, SECONDS = 100, 0.001  # how often each piece of work is timed, and for how long
OF_LAUNCH, OF_VIEW = 2.2, 1.25  # times as long as in a loop: the Python around, and caches that others have filled
FEW = 10  # how often what takes long is timed
_FIGURES = ("launch", "view", "multiplication", "entry", "streamed", "fresh", "heavy")

_known: dict[str, CostModel] = {}


def model_for(inputs: Iterable[Value]) -> CostModel:
    """The cost model for programs on such inputs: that of this machine if it was calibrated, else the shipped one."""
    first = next((v for v in inputs if v.dtype in FLOATING), None)
    device, dtype = ("cpu", "float32") if first is None else (first.device, first.dtype)
    key = _key(device, dtype)
    if key not in _known:
        _known[key] = _read(_path(key), key) or shipped_model(device, dtype)
    return _known[key]


def calibrate(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> CostModel:
    """Measure what operators take on this machine, for `order="auto"` to plan with from now on.

    The figures are kept in a private directory (`$PULLBACK_CACHE`, or `pullback` in the user's cache directory) for
    this device, dtype, number of threads and version of PyTorch.  Where nothing was measured, shipped figures serve.

    Arguments:
        device: where to measure.
        dtype: float32 or float64; other floating dtypes are planned for as float32 is.

    Returns:
        The model.

    Raises:
        ArgumentError: the dtype is another one.
        OSError: the directory cannot be written to, or others could write into it.

    Cost: about a second.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"dtype={dtype}: calibrate for torch.float32 or torch.float64")
    name = dtype_name(dtype)
    key = _key(str(torch.device(device)), name)
    _known[key] = _measured(torch.device(device), torch_dtype(name))
    _write(_path(key), key, _known[key])
    return _known[key]


# ---------------------------------------------------------------- measuring


def _measured(device: torch.device, dtype: torch.dtype) -> CostModel:
    """Times of a few operators, less what launching one takes."""
    small, medium, large = (torch.rand(n, device=device, dtype=dtype) for n in (4, 2**16, 2**20))
    square, into = torch.rand(256, 256, device=device, dtype=dtype), torch.empty_like(large)
    with torch.no_grad():
        launch = _time(lambda: small * small, device)
        view = _time(lambda: square.t(), device)
        entry = max(_time(lambda: medium * medium, device) - launch, 1e-9) / (2 * medium.numel())
        heavy = max(_time(medium.sin, device) - launch, 1e-9) / (2 * medium.numel())
        multiplication = max(_time(lambda: square @ square, device) - launch, 1e-9) / 256**3
        cached = launch + entry * CACHED
        streamed = max(_time(lambda: torch.mul(large, large, out=into), device, FEW) - cached, 1e-9)
        fresh = _fresh(device)
    streamed = max(streamed / (2 * large.numel() - CACHED), entry)
    figures = (OF_LAUNCH * launch, OF_VIEW * view, multiplication, entry, streamed, fresh, heavy)
    return CostModel(*figures, source="calibrated")


def _fresh(device: torch.device) -> float:
    """Seconds for each byte of a tensor that is made, filled, and given back to the system."""
    size = 2**26

    def filled() -> float:
        return _loop(lambda: torch.empty(size, dtype=torch.uint8, device=device).fill_(1), 1, device)

    known = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    again = min(_loop(lambda: known.fill_(2), 1, device) for _ in range(3))
    return max(min(filled() for _ in range(3)) - again, 1e-9) / size


def _time(work: Callable[[], Any], device: torch.device, samples: int | None = None) -> float:
    """The time of one run in the best of many short samples: the one that other work on the machine did not disturb."""
    count = 1
    while min(_loop(work, count, device) for _ in range(3)) < SECONDS / 2 and count < 1_000_000:
        count *= 2
    return min(_loop(work, count, device) for _ in range(samples or SAMPLES)) / count


def _loop(work: Callable[[], Any], count: int, device: torch.device) -> float:
    start = perf_counter()
    for _ in range(count):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start


# ---------------------------------------------------------------- on disk


def _key(device: str, dtype: str) -> str:
    dtype = "float64" if dtype == "float64" else "float32"
    parts = (device, dtype, torch.get_num_threads(), torch.__version__, platform.machine(), platform.processor(), 2)
    return " ".join(map(str, parts))


def _path(key: str) -> Path:
    return cache_directory() / f"cost-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(path: Path, key: str) -> CostModel | None:
    """A model that was written for this key; None for anything else, whatever is wrong with it."""
    try:
        if not is_private(path.parent) or not is_private(path):
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        figures = [found[name] for name in _FIGURES]
        if found["key"] != key or not all(type(x) is float and isfinite(x) and x > 0 for x in figures):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return CostModel(**dict(zip(_FIGURES, figures, strict=True)), source="calibrated")


def _write(path: Path, key: str, model: CostModel) -> None:
    """Write a whole file or none, in a directory that is this user's alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(path.parent):
        raise PermissionError(f"{path.parent} can be written by others: make it private, or set PULLBACK_CACHE")
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"key": key, **{k: v for k, v in asdict(model).items() if k in _FIGURES}}, file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
