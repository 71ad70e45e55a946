# SPDX-License-Identifier: AGPL-3.0-or-later
"""Large buffers in huge pages, on Linux where transparent huge pages are set to `madvise`.

A large buffer is allocated anew in every step, and the kernel maps it page by page at the first write; at 4 KiB a page
that takes longer than the writing. With huge pages a step at batch 16 takes 29 to 42 % less CPU time, and at batch 4 as
long as without (`python benchmarks/bench_loss.py --huge-pages`, `benchmarks/results/2026-11-25-cpu-huge-pages.md`).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any, Optional

import torch
from torch import Tensor

MIN_BYTES = 8 * 2**20
"""Smallest buffer in bytes for which huge pages are requested."""
PAGE_BYTES = 2 * 2**20
MADV_HUGEPAGE = 14


def empty_like(tensor: Tensor) -> Tensor:
    """Return an uninitialised contiguous tensor of the same shape and dtype."""
    return _advised(torch.empty_like(tensor, memory_format=torch.contiguous_format))


def empty(shape: torch.Size, like: Tensor) -> Tensor:
    """Return an uninitialised tensor of a shape, with the dtype and device of `like`."""
    return _advised(like.new_empty(shape))


def zeros(shape: torch.Size, like: Tensor) -> Tensor:
    """Return a tensor of zeros of a shape, with the dtype and device of `like`."""
    return empty(shape, like).zero_()


def _advised(tensor: Tensor) -> Tensor:
    """Request huge pages for the memory of a tensor; the kernel may refuse without an error."""
    size = tensor.numel() * tensor.element_size()
    advise = _madvise() if tensor.device.type == "cpu" and size >= MIN_BYTES else None
    if advise is not None:
        begin = -(-tensor.data_ptr() // PAGE_BYTES) * PAGE_BYTES
        advise(begin, (tensor.data_ptr() + size - begin) // PAGE_BYTES * PAGE_BYTES, MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise() -> Optional[Any]:
    """Return the system call, None where the platform has none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    advise.argtypes, advise.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return advise
