"""Memory of large results, which serves again once nobody holds it.

What the system hands out it clears page by page, which takes several times as long as to write a result there; it does
so each time beyond 32 MiB, and below whenever others took the memory in between.  So the memory of large results is
remembered: a new result of the same size lies where an earlier one lay, if nothing else holds that any more, no tensor,
view, NumPy array or node of autograd.
"""

import sys
import threading
import weakref
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..torch_private import storage_uses

LEAST = 2**20  # bytes of a result: less is soon written to, wherever it lies
MOST = 2**28  # bytes of memory that are remembered


def _references(storages: Sequence[torch.UntypedStorage], k: int) -> int:
    """How many references there are to the Python object of a storage, those of this look at it included."""
    return sys.getrefcount(storages[k])


_OURS = _references([torch.UntypedStorage(0)], 0)


class ResultMemory:
    """Storages of results, and how many bytes they have together; the least recently used are forgotten first."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._storages: list[torch.UntypedStorage] = []
        self._lock = threading.Lock()

    def tensor(self, like: Tensor) -> Tensor:
        """A new tensor of the shape and dtype of another, contiguous, with anything in it."""
        size = prod(like.shape) * like.itemsize
        if size < LEAST or size > self.most:
            return torch.empty_like(like, memory_format=torch.contiguous_format)
        return torch.empty(0, dtype=like.dtype, device="cpu").set_(self._storage(size), 0, like.shape, ())

    def _storage(self, size: int) -> torch.UntypedStorage:
        with self._lock:
            found = self._free(size)
            if found is None:
                found = torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
                while self._storages and self.bytes() + size > self.most:
                    del self._storages[0]
            self._storages.append(found)
            return found

    def _free(self, size: int) -> torch.UntypedStorage | None:
        """A storage of this size that nobody else holds, taken out of the list."""
        for k in range(len(self._storages)):
            if self._storages[k].nbytes() == size and _is_free(self._storages, k):
                return self._storages.pop(k)
        return None

    def bytes(self) -> int:
        """How many bytes are remembered, whether anybody else holds them or not."""
        return sum(storage.nbytes() for storage in self._storages)


def _is_free(storages: Sequence[torch.UntypedStorage], k: int) -> bool:
    """Whether nobody holds a storage but this list: neither PyTorch, nor Python, nor another process."""
    return (
        storage_uses(storages[k]) == 1
        and _references(storages, k) == _OURS
        and weakref.getweakrefcount(storages[k]) == 0
        and not storages[k].is_shared()
    )


MEMORY = ResultMemory()
result_like = MEMORY.tensor
