# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug verify`: does the loss that was asked for run? One step of stock, of ours, and of the formula by itself."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

import yolo_lossplug
from yolo_lossplug import _autoload
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection import CLASSIFY
from yolo_lossplug.tools.arguments import merge
from yolo_lossplug.ultralytics_hook import patches, probe, trainer
from yolo_lossplug.ultralytics_hook.console import VERSION, quiet, training_keys
from yolo_lossplug.ultralytics_hook.criterion import branches

HELP = """\
usage: lossplug verify [key=value ...] [--json]

Builds the model as training would, takes one step on a seeded batch of drawn images, without training, and prints for
every term its value in stock Ultralytics, its value with the keys given, and that of the formula evaluated by itself
in float64 on the same assigned boxes. Says "active" and exits with 0 if the last two agree, and with 1 otherwise.
Keys are those of `yolo train`, of which model= (yolov8n.yaml), imgsz= (160), batch= (4), device= (cpu) and data=, for
the names of classes, have a meaning here. cfg=FILE reads a recipe, and the command line goes over it. --json prints
the same for machines.
Example: lossplug verify loss=focal-eiou focal_gamma=0.8 cls_loss=qfl\
"""
RESERVED = {
    "mode": (("train", None), "losses run in training"),
    "resume": ((False, None), "a resumed run goes on with the losses of its checkpoint"),
}
"""Keys with the values that are accepted, and why no others are."""
TOLERANCE = 1e-3
"""Relative. The host's BCE loses up to 2e-4 of a sum over many logits far below 0; a wrong formula is off by more."""


@dataclass(frozen=True)
class Row:
    """One term of one branch of a criterion.

    Attributes:
        branch: ``main``, or one of an end-to-end head.
        term: ``box``, ``class`` or ``dfl``.
        stock: Value in stock Ultralytics, with the host's gain.
        ours: Value with the keys that are verified.
        formula: Value of the formula in float64.
    """

    branch: str
    term: str
    stock: float
    ours: float
    formula: float

    @property
    def error(self) -> float:
        """Relative difference of ours from the formula."""
        return abs(self.ours - self.formula) / max(abs(self.formula), 1e-9)

    @property
    def agrees(self) -> bool:
        """Whether ours is the formula, within rounding; never if one of them is not finite."""
        return self.error <= TOLERANCE


def main(args: dict[str, Any]) -> None:
    """Print what runs, and exit with 1 if it is not what was asked for."""
    is_json = bool(args.pop("json", False))
    if not yolo_lossplug.is_enabled():
        raise LossPlugError(f"not active: {_autoload.problem or 'switched off by YOLO_LOSSPLUG=0'}.")
    with quiet() if is_json else nullcontext():
        found, rows = verify(args)
    is_active = all(row.agrees for row in rows)
    if is_json:
        terms = [{**asdict(row), "error": row.error, "agrees": row.agrees} for row in rows]
        print(json.dumps({**found, "terms": terms, "active": is_active}, indent=2))
    else:
        print(report(found, rows))
    raise SystemExit(not is_active)


def verify(args: Mapping[str, Any]) -> tuple[dict[str, Any], list[Row]]:
    """Take one step of stock and of ours.

    Args:
        args: As `yolo train` takes them.

    Returns:
        What was found about versions, device, engine and seams, and the terms.

    Raises:
        LossPlugError: If an argument is wrong.
    """
    given = merge(args, training_keys() - {*RESERVED, "save_dir"})
    args = given.values
    _refuse_reserved(args)
    given.say_unused()
    one = probe.trial(dict(args))
    stock = probe.terms(probe.criterion_of(one, is_stock=True), one)
    criterion = probe.criterion_of(one)
    ours = probe.terms(criterion, one)
    if one.selection.task == CLASSIFY:
        names: tuple[str, ...] = ("class",)
        formula = {"main": probe.softmax_formula(one)}
    else:
        names, reference = probe.TERMS, probe.criterion_of(one, loss_engine="reference")
        inputs = probe.seen_in(reference, one)
        formula = {name: probe.formula_terms(leaf, inputs[name], one) for name, leaf in branches(reference)}
    rows = [
        Row(branch, term, *values)
        for branch in ours
        for term, *values in zip(names, stock[branch], ours[branch], formula[branch])
    ]
    seams = patches.seams()
    found = {
        "yolo_lossplug": yolo_lossplug.__version__,
        "ultralytics": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(next(one.model.parameters()).device),
        "model": str(args.get("model", "yolov8n.yaml")),
        "runs": trainer.banner(one.selection, trainer.engine_name(one.selection, one.model)),
        "seams": {"found": [name for name, is_there in seams if is_there], "absent": [n for n, i in seams if not i]},
    }
    return found, rows


def _refuse_reserved(args: Mapping[str, Any]) -> None:
    """Raise an error for a key that would make another run of it than a training from the start.

    Raises:
        LossPlugError: If there is one.
    """
    for key, (harmless, why) in RESERVED.items():
        if key in args and args[key] not in harmless:
            raise LossPlugError(f"{key}={args[key]} cannot be given to verify: {why}. Remove it.")


def report(found: Mapping[str, Any], rows: list[Row]) -> str:
    """Return the findings as text."""
    seams = found["seams"]
    lines = [
        f"yolo-lossplug {found['yolo_lossplug']} · ultralytics {found['ultralytics']} · torch {found['torch']} · "
        f"Python {found['python']} · {found['device']} · {found['model']}",
        found["runs"],
        f"seams of the host: {len(seams['found'])} found"
        + (f"; not in this release, and not needed: {', '.join(seams['absent'])}" if seams["absent"] else ""),
        "",
        f"{'term':<18}{'stock':>12}{'ours':>12}{'formula':>12}  {'off by':<9}",
    ]
    several = len({row.branch for row in rows}) > 1
    for row in rows:
        name = f"{row.branch} {row.term}" if several else row.term
        verdict = f"{row.ours / row.stock:.5g} x stock" if row.stock else ""
        lines.append(
            f"{name:<18}{row.stock:>12.6g}{row.ours:>12.6g}{row.formula:>12.6g}  {row.error:<9.1e}"
            f"{verdict if row.agrees else 'NOT WHAT WAS ASKED FOR'}"
        )
    wrong = sorted({row.term for row in rows if not row.agrees})
    lines += ["", "active" if not wrong else f"not active: {', '.join(wrong)} is not what the formula gives"]
    return "\n".join(lines)
