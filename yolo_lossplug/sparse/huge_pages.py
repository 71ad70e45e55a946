# SPDX-License-Identifier: AGPL-3.0-or-later
"""Buffers for gradients, in pages as large as the system has them.

A buffer that is new in every step is mapped page by page when it is first written, which at 4 KiB a page takes several
times as long as writing it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any, Optional

import torch
from torch import Tensor

SMALLEST = 8 * 2**20
"""Bytes from which large pages are worth asking for."""
PAGE = 2 * 2**20
MADV_HUGEPAGE = 14


def empty_like(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor of the same shape and type whose values are yet to be written."""
    return _advised(torch.empty_like(tensor, memory_format=torch.contiguous_format))


def empty(shape: torch.Size, like: Tensor) -> Tensor:
    """Return a tensor of that shape, and of the type of another, whose values are yet to be written."""
    return _advised(like.new_empty(shape))


def zeros(shape: torch.Size, like: Tensor) -> Tensor:
    """Return a tensor of zeros of that shape, and of the type of another."""
    return empty(shape, like).zero_()


def _advised(tensor: Tensor) -> Tensor:
    """Ask for large pages behind a tensor; it is no matter whether that is granted."""
    size = tensor.numel() * tensor.element_size()
    advise = _madvise() if tensor.device.type == "cpu" and size >= SMALLEST else None
    if advise is not None:
        begin = -(-tensor.data_ptr() // PAGE) * PAGE
        advise(begin, (tensor.data_ptr() + size - begin) // PAGE * PAGE, MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise() -> Optional[Any]:
    """Return the system's call, None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    advise.argtypes, advise.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return advise
