# SPDX-License-Identifier: AGPL-3.0-or-later
"""What several commands check about their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection import COMMON, given_keys


def refuse_task(args: Mapping[str, Any], *others: str) -> None:
    """Raise an error for a task without horizontal boxes.

    Args:
        args: The arguments.
        others: Further tasks that are accepted.

    Raises:
        LossPlugError: If it is one.
    """
    accepted = ("detect", "segment", "pose", *others)
    if args.get("task") not in (None, *accepted):
        raise LossPlugError(f"task={args['task']} cannot be used here; remove it, or give {', '.join(accepted)}.")


def refuse_keys_of_training(args: Mapping[str, Any], *others: str) -> None:
    """Raise an error for a key of ours that changes a training run, but no loss of a single box.

    Args:
        args: The arguments.
        others: Further keys without effect.

    Raises:
        LossPlugError: If there is one.
    """
    without_effect = {*COMMON - {"loss", "cls_loss"}, *others}
    for key, value in given_keys(args).items():
        if key in without_effect:
            raise LossPlugError(f"{key}={value} has no effect here, only in training; remove it.")
