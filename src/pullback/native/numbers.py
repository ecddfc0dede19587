"""Results without axes, each a tensor of its own, all made by one call of a few lines of C.

To make tensors one by one from Python takes longest in small programs, and parts of one tensor would be views, which
share its memory, its count of changes, and PyTorch's refusals to write into a view.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from ..torch_private import tensors_of_handles
from .building import build
from .libraries import address_of

_CALLS = ("aoti_torch_empty_strided", "aoti_torch_get_data_ptr", "aoti_torch_delete_tensor_object")
SOURCE = """
#include <stdint.h>
#include <string.h>
typedef int32_t make(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, void **);
typedef int32_t locate(void *, void **);
typedef int32_t release(void *);
typedef int hand_over(void *, void *);
struct numbers {
  make *make; locate *locate; release *release; hand_over *hand_over;
  int64_t count, size; int32_t dtype, device;
  void **capsules; const char *values; void **made;
};
int make_numbers(const struct numbers *all)
{
  const int64_t none = 0;
  for (int64_t k = 0; k < all->count; ++k) {
    void *place;
    int failed = all->make(0, &none, &none, all->dtype, all->device, 0, all->made + k);
    if (!failed && (failed = all->locate(all->made[k], &place))) all->release(all->made[k]);
    if (failed) {
      while (k-- > 0) all->release(all->made[k]);
      return failed;
    }
    memcpy(place, all->values + k * all->size, all->size);
  }
  for (int64_t k = 0; k < all->count; ++k) all->hand_over(all->capsules[k], all->made[k]);
  return 0;
}
"""


class _Layout(ctypes.Structure):
    """`struct numbers`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("make", "locate", "release", "hand_over")),
        *(("count", ctypes.c_int64), ("size", ctypes.c_int64), ("dtype", ctypes.c_int32), ("device", ctypes.c_int32)),
        *((name, ctypes.c_void_p) for name in ("capsules", "values", "made")),
    )


class Numbers:
    """Memory for some numbers of one dtype, and what makes tensors of them; for one call at a time.

    values: the address at which the numbers are put.
    """

    def __init__(self, count: int, dtype: str, size: int) -> None:
        functions, device, make = _functions()
        self._capsules = [_capsule(1, None, None) for _ in range(count)]
        self._values = (ctypes.c_int64 * count)()  # of eight bytes each, which are enough
        self._pointers = (ctypes.c_void_p * count)(*map(id, self._capsules))
        self._made = (ctypes.c_void_p * count)()
        places = [ctypes.addressof(one) for one in (self._pointers, self._values, self._made)]
        self._all = _Layout(*functions, count, size, _code("dtype", dtype), device, *places)
        self._address, self._make = ctypes.addressof(self._all), make
        self.values = places[1]

    def tensors(self) -> Any:
        """A new tensor for each number."""
        if self._make(self._address):
            raise MemoryError(f"there is no memory for {len(self._capsules)} numbers")
        return tensors_of_handles(self._capsules)


def are_made_at_once() -> bool:
    """Whether the installed PyTorch has the functions that it takes."""
    return all(address_of(name) is not None for name in _CALLS)


def _code(kind: str, name: str) -> int:
    """PyTorch's number for a dtype or a kind of device."""
    address = address_of(f"aoti_torch_{kind}_{name}")
    assert address is not None
    return int(ctypes.CFUNCTYPE(ctypes.c_int32)(address)())


@cache
def _functions() -> tuple[tuple[int | None, ...], int, Callable[[int], int]]:
    """What the structure points to, the CPU's number, and the function of C, which needs the interpreter's lock."""
    hand_over = ctypes.cast(ctypes.pythonapi.PyCapsule_SetPointer, ctypes.c_void_p).value
    function = ctypes.cast(build(SOURCE).make_numbers, ctypes.c_void_p).value
    assert function is not None
    made = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(function)
    return (*map(address_of, _CALLS), hand_over), _code("device_type", "cpu"), made


_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
