# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gains with which the losses of a comparison have gradients of one norm: `match_gains=True`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import CLASSIFY, DETR, flag_of
from yolo_lossplug.tools.arms import Arm
from yolo_lossplug.ultralytics_hook.console import say, warn
from yolo_lossplug.ultralytics_hook.engines.record import write_json
from yolo_lossplug.ultralytics_hook.trial import gradients, one_step

KEY, FILE = "match_gains", "gains.json"
TERMS = {"box": "box", "cls": "class"}
"""Names of the matched terms, by Ultralytics' keys of their gains."""
FAR = 10.0
"""Ratio of norms, or its inverse, above which that of the first batches says little about the rest of a training.

In a run from random weights the class gradient of `qfl` rose from 0.003 of that of `bce` to 0.65 in 25 epochs.
"""


class Matched(NamedTuple):
    """Gains of one arm.

    Attributes:
        gains: By key, ``box`` and ``cls``.
        ratios: Norm of the gradient of each term before, as a multiple of the baseline's, by the same keys.
        baseline: Name of the arm whose norms it has now.
    """

    gains: dict[str, float]
    ratios: dict[str, float]
    baseline: str


def wanted(args: Mapping[str, Any], task: str) -> bool:
    """Return whether gains are to be matched.

    Raises:
        LossPlugError: If the value is none, or the task or the batch size does not allow it.
    """
    value = flag_of(KEY, args.get(KEY, False))
    if value and task in (CLASSIFY, DETR):
        which = "the classify task has one term" if task == CLASSIFY else "RT-DETR's gains are no keys"
        raise LossPlugError(f"{KEY}=True cannot be used here: {which}, and box= and cls= have no effect. Remove it.")
    batch = args.get("batch", 16)
    if value and (type(batch) is not int or batch < 1):
        raise LossPlugError(f"{KEY}=True needs a batch size to measure with: batch={batch} is chosen later. Give one.")
    return value


def match(arms: Sequence[Arm], args: Mapping[str, Any], stored: Mapping[str, Matched]) -> dict[str, Matched]:
    """Return the gains of all arms: the stored ones, and those of new arms as measured now.

    Args:
        arms: The arms, the baseline first.
        args: Common arguments of the runs.
        stored: Gains of arms of an earlier call.

    Raises:
        LossPlugError: If the gradient of a term is 0, NaN or infinite.
    """
    new = [arm for arm in arms[1:] if arm.name not in stored]
    if not new:
        return dict(stored)
    say(f"measuring gradients of {len(new) + 1} losses on {gradients.N_BATCHES} batches for {KEY}=True")
    chosen = [arms[0], *new]
    measured = gradients.norms(args, [arm.keys for arm in chosen])
    norms = {arm.name: found for arm, found in zip(chosen, measured)}
    defaults = one_step.default_gains()
    matched = scaled({key: float(args.get(key, defaults[key])) for key in TERMS}, norms)
    for arm in new:
        _warn_far(arm.name, matched[arm.name])
    return {**matched, **stored}


def far(ratios: Mapping[str, Any]) -> list[str]:
    """Return the keys of the terms whose norms are more than `FAR` times apart.

    >>> far({"box": 1.5, "cls": 0.003})
    ['cls']
    """
    return [key for key in TERMS if not 1 / FAR <= ratios[key] <= FAR]


def _warn_far(arm: str, one: Matched) -> None:
    for key in far(one.ratios):
        warn(
            f"{KEY}=True: {arm} runs with {key}={one.gains[key]:.4g}, because its {TERMS[key]} gradient has "
            f"{one.ratios[key]:.3g} times the norm of {one.baseline}'s now. So large a ratio is one of untrained "
            "weights and changes within epochs. Give model= a checkpoint that was trained on this data."
        )


def scaled(given: Mapping[str, float], norms: Mapping[str, Mapping[str, float]]) -> dict[str, Matched]:
    """Return gains with which all norms are those of the first arm; norms are proportional to gains.

    Args:
        given: Gains with which the norms were measured, by key.
        norms: Norm of the gradient of each term, by arm and key.

    Raises:
        LossPlugError: If a norm is 0, NaN or infinite.
    """
    baseline = next(iter(norms))
    for arm, values in norms.items():
        for key, name in TERMS.items():
            _check(arm, name, key, values[key])
    ratios = {arm: {key: values[key] / norms[baseline][key] for key in TERMS} for arm, values in norms.items()}
    return {
        arm: Matched({key: given[key] / values[key] for key in TERMS}, values, baseline)
        for arm, values in ratios.items()
    }


def _check(arm: str, term: str, key: str, norm: float) -> None:
    if norm > 0 and math.isfinite(norm):
        return
    state = "0" if norm == 0 else "NaN or infinite"
    raise LossPlugError(
        f"{KEY}=True: the gradient of the {term} term of {arm} is {state} on the first batches, and no {key}= would "
        f"match it. Leave this loss out, or remove {KEY}."
    )


def read(directory: Path) -> dict[str, Matched]:
    """Return the gains that are stored in the folder of a comparison, by arm; empty if there are none.

    Raises:
        LossPlugError: If the file cannot be read.
    """
    file = directory / FILE
    if not file.is_file():
        return {}
    try:
        return {arm: Matched(**values) for arm, values in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise LossPlugError(f"{file} cannot be read ({error}); give another name=.") from error


def write(matched: Mapping[str, Matched], directory: Path) -> None:
    """Store gains in the folder of a comparison, so that it goes on with the same."""
    write_json(directory / FILE, {arm: one._asdict() for arm, one in matched.items()})
