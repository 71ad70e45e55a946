# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sum of an elementwise class loss with sparse targets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from yolo_lossplug.registry import Background
from yolo_lossplug.sparse.huge_pages import empty_like

ELEMENTS_PER_CHUNK = {"cpu": 2**19}
"""Elements per chunk, by device type: on a CPU as many as its cache holds."""
MAX_ELEMENTS = 2**26

Elementwise = Callable[[Tensor, Tensor], Tensor]


def class_sum(
    logits: Tensor,
    index: Tensor,
    targets: Tensor,
    loss: Elementwise,
    *,
    background: Optional[Background] = None,
    weights: Optional[Tensor] = None,
    silenced: Optional[Tensor] = None,
) -> Tensor:
    """Return Σ w·L(x, y) over all logits, where y = 0 except at `index`.

    Args:
        logits: x (b, classes, A).
        index: Indices (n,) into the flattened logits of the elements with a target, unique.
        targets: Targets (n,) of these elements, in [0, 1].
        loss: L, elementwise.
        background: L at y = 0 in closed form; None to evaluate L.
        weights: w (classes,), None for 1.
        silenced: Elements (b, classes, A) that are left out, none of them at `index`; None for none.

    Returns:
        The sum (), float32.
    """
    return _ClassSum.apply(logits.contiguous(), index, targets, loss, background, weights, silenced)


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
        silenced: Optional[Tensor],
    ) -> Tensor:
        ctx.save_for_backward(logits, index, targets, weights, silenced)
        ctx.loss, ctx.background = loss, background
        size = _chunk_size(logits)
        scratch = torch.empty_like(logits[:size], dtype=torch.float32)  # one per chunk is slower
        values = ((_at_zero(chunk, loss, background, scratch), rows) for chunk, rows in _chunks(logits, silenced))
        sums = torch.cat([_without(value, rows).sum(-1) for value, rows in values])
        total = sums.sum() if weights is None else (sums * weights).sum()
        for i, y in zip(*_split(index, targets, logits.device.type)):
            x = logits.view(-1)[i]
            extra = loss(x, y) - loss(x, torch.zeros_like(y))
            total += extra.sum() if weights is None else (extra * weights[_class_of(i, logits)]).sum()
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Optional[Tensor], ...]:
        logits, index, targets, weights, silenced = ctx.saved_tensors
        gradient = empty_like(logits)
        factor = scale if weights is None else (scale * weights).unsqueeze(-1)
        for (chunk, rows), out in zip(_chunks(logits, silenced), gradient.split(_chunk_size(logits))):
            _without(_grad_at_zero(chunk, ctx.loss, ctx.background, out).mul_(factor), rows)
        for i, y in zip(*_split(index, targets, logits.device.type)):
            grad = _grad(logits.view(-1)[i], y, ctx.loss) * scale
            if weights is not None:
                grad *= weights[_class_of(i, logits)]
            gradient.view(-1).scatter_(0, i, grad.to(gradient.dtype))
        return gradient, None, None, None, None, None, None


def _chunks(logits: Tensor, silenced: Optional[Tensor]) -> Iterator[tuple[Tensor, Optional[Tensor]]]:
    """Yield chunks of images, and which of their elements are left out."""
    chunks = logits.split(_chunk_size(logits))
    yield from zip(chunks, repeat(None) if silenced is None else silenced.split(_chunk_size(logits)))


def _without(values: Tensor, silenced: Optional[Tensor]) -> Tensor:
    """Return values of ours, in place, with 0 where they are left out."""
    return values if silenced is None else values.masked_fill_(silenced, 0)


def _at_zero(x: Tensor, loss: Elementwise, background: Optional[Background], scratch: Tensor) -> Tensor:
    """Return L(x, 0), same shape, float32; the result may share the memory of `scratch`."""
    if background is None:
        return loss(x, torch.zeros_like(x))
    x = x.float()
    value = torch.ops.aten.softplus(x, out=scratch[: len(x)])
    if background.exponent:
        value *= x.sigmoid().pow_(background.exponent)
    return value if background.weight == 1 else value.mul_(background.weight)


def _grad_at_zero(x: Tensor, loss: Elementwise, background: Optional[Background], out: Tensor) -> Tensor:
    """Write dL/dx at y = 0 into `out`."""
    if background is None:
        return out.copy_(_grad(x, torch.zeros_like(x), loss))
    if not background.exponent and x.dtype == torch.float32:
        torch.sigmoid(x, out=out)
    else:
        x = x.float()
        p = x.sigmoid()
        grad = p
        if background.is_detached:  # sg(p^γ)·d(softplus) = p^γ·p
            grad = p.pow_(background.exponent + 1)
        elif background.exponent:  # d(p^γ·softplus) = p^γ·(γ·(1 − p)·softplus + p)
            grad = torch.nn.functional.softplus(x).mul_(background.exponent).mul_(1 - p).add_(p)
            grad *= p.pow_(background.exponent)
        out.copy_(grad)
    return out if background.weight == 1 else out.mul_(background.weight)


def _grad(x: Tensor, y: Tensor, loss: Elementwise) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x, y).sum(), x)[0]


def _class_of(index: Tensor, logits: Tensor) -> Tensor:
    return index // logits.shape[2] % logits.shape[1]


def _chunk_size(logits: Tensor) -> int:
    """Return the number of images per chunk."""
    return max(1, ELEMENTS_PER_CHUNK.get(logits.device.type, MAX_ELEMENTS) // max(1, logits[0].numel()))


def _split(index: Tensor, targets: Tensor, device_type: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    size = ELEMENTS_PER_CHUNK.get(device_type, MAX_ELEMENTS)
    return index.split(size), targets.split(size)
