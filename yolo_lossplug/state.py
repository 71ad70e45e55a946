# SPDX-License-Identifier: AGPL-3.0-or-later
"""Numbers that some losses carry from step to step: running means, counts of bins."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, distributed

from yolo_lossplug.files import write_bytes


class State:
    """What the losses of one run remember: plain tensors by key, and how far the run is.

    The trained model, its moving average and the branches of an end-to-end head share one: a part of a criterion uses
    a `scoped` view of it. It changes in training only, that is, where gradients are enabled.

    Attributes:
        tensors: What is saved and restored.
        epoch: Epochs that are finished.
        epochs: Epochs of the run, 0 where nobody knows.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.epoch, self.epochs = 0, 0
        self._pending: dict[str, tuple[Tensor, float]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return self  # a copy of a criterion, as that of the moving average, belongs to the same run

    def scoped(self, name: str) -> Scope:
        """Return a view for one part of a criterion."""
        return Scope(self, name)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return min(self.epoch / self.epochs, 1.0) if self.epochs else 0.0

    def commit(self) -> None:
        """Take what a step has seen into the running means; on every rank of a distributed run, or on none.

        It is a step of its own, because a rank whose batch has no object may skip its box loss.
        """
        pending, self._pending = self._pending, {}
        for key in sorted(self.tensors):
            if key.endswith(MEAN):
                zero = torch.zeros(2, device=self.tensors[key].device)
                seen, momentum = pending.get(key, (zero, 0.0))
                total = torch.cat((reduce(seen), reduce(seen.new_full((1,), momentum), maximum=True)))
                mean, old = total[0] / total[1].clamp(min=1), self.tensors[key]
                usable = (total[1] > 0) & mean.isfinite()
                self.tensors[key] = torch.where(usable, (1 - total[2]) * old + total[2] * mean, old)

    def save(self, file: Path, losses: Sequence[str] = ()) -> None:
        """Write the tensors with the names of the losses they belong to; the file is complete or as it was.

        Without tensors a file that is there, which another run has left, is removed.
        """
        if not self.tensors:
            with suppress(OSError):
                file.unlink()
            return
        saved = io.BytesIO()
        tensors = {key: value.cpu() for key, value in self.tensors.items()}
        torch.save({"epoch": self.epoch, "losses": [*losses], "tensors": tensors}, saved)
        write_bytes(file, saved.getvalue())

    def load(self, file: Path, losses: Sequence[str] = (), shapes: Optional[Mapping[str, torch.Size]] = None) -> None:
        """Read what `save` has written.

        Args:
            file: The file.
            losses: Names of the losses that the tensors must belong to.
            shapes: What these losses remember, by key below the part of a criterion; None where nobody knows.

        Raises:
            ValueError: If it holds something else; the state stays as it was.
        """
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            epoch, of, tensors = int(content["epoch"]), [*content["losses"]], dict(content["tensors"])
            found = {str(key).partition(".")[2]: tensor.shape for key, tensor in tensors.items()}
            is_finite = bool(tensors) and all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        except Exception as error:  # whatever the file holds
            raise ValueError("it is damaged, or another file") from error
        if of != [*losses]:
            raise ValueError(f"it belongs to {' and '.join(map(str, of))}, not to {' and '.join(losses)}")
        if not is_finite:
            raise ValueError("it holds numbers that are not finite, or none")
        if shapes is not None and not found.items() <= shapes.items():
            raise ValueError(f"its numbers are not those that {' and '.join(losses)} keeps")
        self.tensors, self.epoch = tensors, epoch


MEAN = ".mean"


class Scope:
    """The numbers of one part of a criterion.

    Args:
        state: The state of the run.
        name: Name of the part.
    """

    def __init__(self, state: State, name: str) -> None:
        self.state, self.name = state, name

    def scoped(self, name: str) -> Scope:
        """Return a view for one part of this part."""
        return Scope(self.state, f"{self.name}.{name}")

    @property
    def is_training(self) -> bool:
        """Whether the numbers may change."""
        return torch.is_grad_enabled()

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.state.progress

    def get(self, key: str, initial: Tensor) -> Tensor:
        """Return a number, which starts as `initial`, on the device of `initial`."""
        name = f"{self.name}.{key}"
        value = self.state.tensors.setdefault(name, initial.detach().clone().float())
        if value.device != initial.device:
            value = self.state.tensors[name] = value.to(initial.device)
        return value

    def put(self, key: str, value: Tensor) -> None:
        """Set a number; a value that is not finite leaves the old one."""
        name = f"{self.name}.{key}"
        old = self.state.tensors[name]
        self.state.tensors[name] = torch.where(value.isfinite().all(), value.detach().float(), old)

    def running_mean(self, key: str, values: Tensor, momentum: float, initial: float) -> Tensor:
        """Return the mean of the steps before this one, and take note of the values of this one.

        Args:
            key: Name of the mean.
            values: Values of this step (N,); N = 0 changes nothing, nor does a mean that is not finite.
            momentum: Weight of this step in the next mean.
            initial: Mean before the first step.

        Returns:
            A scalar. The values of this step count from the next `State.commit` on.
        """
        name = f"{self.name}.{key}{MEAN}"
        if name in self.state._pending and not is_distributed() and self.is_training:
            self.state.commit()  # used by hand, without a trainer that commits
        mean = self.get(f"{key}{MEAN}", values.new_full((), initial))
        if self.is_training:
            seen = torch.stack((values.detach().float().sum(), values.new_full((), values.numel()).float()))
            self.state._pending[name] = (seen, momentum)
        return mean


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def reduce(value: Tensor, maximum: bool = False) -> Tensor:
    """Return the sum, or the maximum, of a tensor over all ranks; in one process the tensor itself."""
    if is_distributed():
        value = value.clone()
        distributed.all_reduce(value, distributed.ReduceOp.MAX if maximum else distributed.ReduceOp.SUM)
    return value


def scope_or_new(state: Optional[Scope]) -> Scope:
    """Return a scope, a fresh one for None."""
    return State().scoped("own") if state is None else state
