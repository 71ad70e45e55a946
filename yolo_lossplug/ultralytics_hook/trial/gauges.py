# SPDX-License-Identifier: AGPL-3.0-or-later
"""Memory that a step adds, in MiB: of a GPU as torch allocates it, of this process as the system counts it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any, Optional

import torch

from yolo_lossplug.ultralytics_hook.trial.problems import Problem
from yolo_lossplug.ultralytics_hook.trial.timing import autocast, preds_of

MMAP_THRESHOLD = -3
"""Parameter of `mallopt`: bytes from which a block is returned to the system when it is freed."""


def return_freed_blocks() -> None:
    """Return freed blocks to the system, now and as soon as others are freed, which makes this process slower.

    A step would take blocks that an earlier one has left, and they would not count.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_THRESHOLD, 65536)
        libc.malloc_trim(0)
    except (OSError, AttributeError):  # no glibc
        return


class HostGauge:
    """Resident memory of this process beyond that at the start. Linux."""

    def __init__(self) -> None:
        return_freed_blocks()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
        self.start = self._read("VmRSS")

    def _read(self, key: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

    def now(self) -> float:
        """Return the current memory."""
        return self._read("VmRSS") - self.start

    def peak(self) -> float:
        """Return the peak memory."""
        return self._read("VmHWM") - self.start


class GPUGauge:
    """Allocated memory of the GPU beyond that at the start."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.start = torch.cuda.memory_allocated()

    def now(self) -> float:
        """Return the current memory."""
        return (torch.cuda.memory_allocated() - self.start) / 2**20

    def peak(self) -> float:
        """Return the peak memory."""
        return (torch.cuda.max_memory_allocated() - self.start) / 2**20


def memory_of(criterion: Any, problem: Problem, amp: bool = False) -> Optional[dict[str, float]]:
    """Return the memory of a step of a criterion: peak of the forward and of the step, what is saved for backward.

    None where the system does not say. Gradients of the head's outputs are part of the step.
    """
    preds, leaves = preds_of(criterion, problem, amp)
    gc.collect()
    try:
        gauge = GPUGauge() if problem.scores.is_cuda else HostGauge()
        with autocast(problem.scores.device, amp):
            loss, _ = criterion(preds, problem.batch)
        forward, kept = gauge.peak(), gauge.now()
        loss.sum().backward()
        step = gauge.peak()
    except (FileNotFoundError, PermissionError):
        return None
    gradients = sum(x.grad.numel() * x.grad.element_size() for x in leaves if x.grad is not None) / 2**20
    return {"forward": forward, "kept": kept, "step": step, "gradients": gradients}
