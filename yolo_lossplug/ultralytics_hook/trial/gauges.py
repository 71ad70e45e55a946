# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a step needs besides time: memory in MiB, of a GPU or of this process, launches on a GPU, and bandwidth."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from ultralytics.utils.tal import TaskAlignedAssigner

from yolo_lossplug.ultralytics_hook.running import branch_criteria
from yolo_lossplug.ultralytics_hook.trial.problems import Problem
from yolo_lossplug.ultralytics_hook.trial.timing import autocast, dtype_of, preds_of, timed_step

BYTES_OF_STOCK = 17
"""Peak bytes of the host per element of (images, most objects, anchors), as measured in crowds."""


class OneImageAtATime(TaskAlignedAssigner):
    """The host's assigner where its dense tensors do not fit: its own fallback when a GPU is out of memory."""

    def _forward(self, pd_scores: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(pd_scores) > 1:
            raise RuntimeError("out of memory")
        return super()._forward(pd_scores, *args, **kwargs)


def spare_memory(criterion: Any, problem: Problem) -> bool:
    """Make the host go image by image, if its tensors do not fit into memory, and return whether they do not.

    A GPU that is out of memory makes it do so by itself.
    """
    n_images, _, n_anchors = problem.scores.shape
    needs = BYTES_OF_STOCK * n_images * problem.most_objects * n_anchors
    is_too_large = not problem.scores.is_cuda and needs > 0.8 * available_memory()
    for leaf in branch_criteria(criterion) if is_too_large else ():
        leaf.assigner.__class__ = OneImageAtATime
    return is_too_large


def available_memory() -> float:
    """Return the bytes of memory that are free; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * float(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        return math.inf


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is used up."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def return_freed_blocks() -> None:
    """Return freed blocks to the system, now and as soon as others are freed, which makes this process slower.

    A step would take blocks that an earlier one has left, and they would not count.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: bytes from which a block is returned when it is freed
        libc.malloc_trim(0)


def _memory_now(is_gpu: bool) -> tuple[float, float]:
    """Return allocated memory of the GPU, or resident memory of this process (Linux), and its peak."""
    if is_gpu:
        return torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024


def memory_of(criterion: Any, problem: Problem, amp: bool = False) -> Optional[dict[str, float]]:
    """Return the memory of a step of a criterion: peak of the forward and of the step, what is saved for backward.

    None where the system does not say. Gradients of the head's outputs are part of the step.
    """
    preds, leaves = preds_of(criterion, problem, amp)
    gc.collect()
    is_gpu = problem.scores.is_cuda
    try:
        if is_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            return_freed_blocks()
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        start, _ = _memory_now(is_gpu)
        with autocast(problem.scores.device, amp):
            loss, _ = criterion(preds, problem.batch)
        kept, forward = _memory_now(is_gpu)
        loss.sum().backward()
        _, step = _memory_now(is_gpu)
    except (FileNotFoundError, PermissionError):
        return None
    gradients = sum(x.grad.numel() * x.grad.element_size() for x in leaves if x.grad is not None) / 2**20
    return {"forward": forward - start, "kept": kept - start, "step": step - start, "gradients": gradients}


def on_gpu(criterion: Any, problem: Problem, amp: bool) -> dict[str, float]:
    """Return what a step does on a GPU: its busy milliseconds, launches, and how often the host waits for it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        timed_step(criterion, problem, amp)
    # Driver calls are recorded too, as CPU events.
    events = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "device_ms": sum(event.self_device_time_total for event in events) / 1e3,
        "launches": sum(event.count for event in events),
        "syncs": _syncs(criterion, problem, amp),
    }


def _syncs(criterion: Any, problem: Problem, amp: bool) -> int:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            timed_step(criterion, problem, amp)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


def class_kernel_rates(losses: Iterable[Any], shape: tuple[int, int, int], amp: bool) -> dict[str, dict[str, float]]:
    """Return by class loss the TB/s of a copy of logits (b, classes, A), and forward and backward as shares of that."""
    from yolo_lossplug.kernels.class_term import ClassTargets, class_gradient, class_sums

    n_images, n_classes, n_anchors = shape
    n, device = n_images * n_anchors, torch.device("cuda")
    logits = (torch.randn(shape, device=device) - 4).to(dtype_of(amp))
    score = torch.rand(n, device=device) * (torch.rand(n, device=device) < 0.02)
    targets = ClassTargets(torch.randint(n_classes, (n,), dtype=torch.int32, device=device), score)
    scale, copy = torch.ones((), device=device), torch.empty_like(logits)
    size, rates = logits.numel() * logits.element_size(), {}
    for loss in losses:
        seconds = {
            "copy": _queued_seconds(copy.copy_, logits) / 2,
            "forward": _queued_seconds(class_sums, logits, targets, loss.kernel),
            "backward": _queued_seconds(class_gradient, logits, targets, loss.kernel, scale) / 2,
        }
        shares = {name: seconds["copy"] / seconds[name] for name in ("forward", "backward")}
        rates[loss.name] = {"copy": size / seconds["copy"] / 1e12, **shares}
    return rates


def _queued_seconds(function: Callable[..., Any], *args: Any) -> float:
    """Return the seconds that a function takes on a GPU whose queue is never empty."""
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(20_000_000)  # so that launches are queued before the first runs
        begin.record()
        for _ in range(20):
            function(*args)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 20)
    return statistics.median(times[2:]) / 1e3
