# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which term of the loss was NaN or infinite first: the host says that it cannot recover, and not from what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_lossplug.ultralytics_hook.console import warn

NEVER = -1
TERMS = {"box_loss": "loss", "giou_loss": "loss", "cls_loss": "cls_loss", "loss": "cls_loss"}
"""Which key chooses the loss of a term of the host; classify has one term, `loss`."""


@dataclass
class NanTracker:
    """The batch of this epoch in which each term was first NaN or infinite, on their device, until that is said."""

    first: Optional[Tensor] = None
    batches: int = 0
    is_done: bool = False

    def start(self) -> None:
        """Begin an epoch, which may be one that is begun again."""
        self.first, self.batches = None, 0

    def add(self, items: Tensor) -> None:
        """Look at the terms of a batch, (T,), without waiting for their device."""
        if self.first is None:
            self.first = torch.full_like(items, NEVER, dtype=torch.long)
        is_first = ~items.isfinite() & (self.first == NEVER)
        self.first = torch.where(is_first, self.batches, self.first)
        self.batches += 1

    def earliest(self) -> tuple[int, list[int]]:
        """Return the first batch with a term that is NaN or infinite, and those terms; waits for the device."""
        first = [] if self.first is None else self.first.tolist()
        batch = min((b for b in first if b != NEVER), default=NEVER)
        return batch, [i for i, b in enumerate(first) if b == batch != NEVER]


def flat_terms(items: Any) -> Tensor:
    """Return the terms of a batch as (T,); newer releases keep them by name."""
    values = list(items.values()) if isinstance(items, Mapping) else [items]
    return torch.cat([torch.as_tensor(value).detach().reshape(-1) for value in values])


def tell(terms: NanTracker, epoch: int, names: list[str], running: Mapping[str, Any]) -> None:
    """Say once which terms were NaN or infinite first, if any was, with the loss of each where a key chooses that."""

    def described(i: int) -> str:
        name = names[i] if i < len(names) else f"term {i + 1}"
        key = TERMS.get(name if name.endswith("loss") else f"{name}_loss", "")
        return f"{name} ({key}={running[key]})" if key in running else name

    batch, first = terms.earliest()
    if terms.is_done or not first:
        return
    terms.is_done = True
    warn(
        f"{', '.join(map(described, first))} became NaN or infinite first, in epoch {epoch + 1}, batch {batch + 1}. "
        f"Lower lr0, raise warmup_epochs, or try amp=False; if it stays, choose another loss."
    )
