# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sum of an elementwise class loss whose targets are 0 but for a few."""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from yolo_lossplug.registry import Background
from yolo_lossplug.sparse.huge_pages import empty_like

PART = {"cpu": 2**19}
"""Elements that are worked on at a time, by kind of device: on a CPU as many as its cache holds."""
LARGEST_PART = 2**26

Elementwise = Callable[[Tensor, Tensor], Tensor]


def class_sum(
    logits: Tensor,
    index: Tensor,
    targets: Tensor,
    loss: Elementwise,
    *,
    background: Optional[Background] = None,
    weights: Optional[Tensor] = None,
) -> Tensor:
    """Return Σ w·L(x, y) over all logits, y = 0 but for the given elements.

    Args:
        logits: x (b, classes, A).
        index: Elements (n,) of the flattened logits with a target, each once.
        targets: Their targets (n,), in [0, 1].
        loss: L, elementwise.
        background: L at y = 0 in closed form; None to evaluate L.
        weights: w (classes,), None for 1.

    Returns:
        The sum (), float32.
    """
    return _ClassSum.apply(logits.contiguous(), index, targets, loss, background, weights)


class _ClassSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        index: Tensor,
        targets: Tensor,
        loss: Elementwise,
        background: Optional[Background],
        weights: Optional[Tensor],
    ) -> Tensor:
        ctx.save_for_backward(logits, index, targets, weights)
        ctx.loss, ctx.background = loss, background
        size = _part_size(logits)
        scratch = torch.empty_like(logits[:size], dtype=torch.float32)  # one for all parts: fresh memory costs more
        sums = torch.cat([_at_zero(part, loss, background, scratch).sum(-1) for part in logits.split(size)])
        total = sums.sum() if weights is None else (sums * weights).sum()
        for some, y in zip(*_split(index, targets, logits.device.type)):
            x = logits.view(-1)[some]
            more = loss(x, y) - loss(x, torch.zeros_like(y))
            total += more.sum() if weights is None else (more * weights[_class_of(some, logits)]).sum()
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Optional[Tensor], ...]:
        logits, index, targets, weights = ctx.saved_tensors
        gradient = empty_like(logits)
        factor = scale if weights is None else (scale * weights).unsqueeze(-1)
        size = _part_size(logits)
        for part, out in zip(logits.split(size), gradient.split(size)):
            _slope_at_zero(part, ctx.loss, ctx.background, out).mul_(factor)
        for some, y in zip(*_split(index, targets, logits.device.type)):
            slope = _slope(logits.view(-1)[some], y, ctx.loss) * scale
            if weights is not None:
                slope *= weights[_class_of(some, logits)]
            gradient.view(-1).scatter_(0, some, slope.to(gradient.dtype))
        return gradient, None, None, None, None, None


def _at_zero(x: Tensor, loss: Elementwise, background: Optional[Background], scratch: Tensor) -> Tensor:
    """Return L(x, 0), same shape, float32; it may lie in the scratch memory."""
    if background is None:
        return loss(x, torch.zeros_like(x))
    x = x.float()
    value = torch.ops.aten.softplus(x, out=scratch[: len(x)])
    if background.exponent:
        value *= x.sigmoid().pow_(background.exponent)
    return value if background.weight == 1 else value.mul_(background.weight)


def _slope_at_zero(x: Tensor, loss: Elementwise, background: Optional[Background], out: Tensor) -> Tensor:
    """Write dL/dx at y = 0 into `out`."""
    if background is None:
        return out.copy_(_slope(x, torch.zeros_like(x), loss))
    if not background.exponent and x.dtype == torch.float32:
        torch.sigmoid(x, out=out)
    else:
        x = x.float()
        p = x.sigmoid()
        slope = p
        if background.exponent:  # d(p^γ·softplus) = p^γ·(γ·(1 − p)·softplus + p)
            slope = torch.nn.functional.softplus(x).mul_(background.exponent).mul_(1 - p).add_(p)
            slope *= p.pow_(background.exponent)
        out.copy_(slope)
    return out if background.weight == 1 else out.mul_(background.weight)


def _slope(x: Tensor, y: Tensor, loss: Elementwise) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x, y).sum(), x)[0]


def _class_of(index: Tensor, logits: Tensor) -> Tensor:
    return index // logits.shape[2] % logits.shape[1]


def _part_size(logits: Tensor) -> int:
    """Return how many images are worked on at a time."""
    return max(1, PART.get(logits.device.type, LARGEST_PART) // max(1, logits[0].numel()))


def _split(index: Tensor, targets: Tensor, device_type: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    size = PART.get(device_type, LARGEST_PART)
    return index.split(size), targets.split(size)
