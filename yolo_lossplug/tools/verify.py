# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug verify`: whether the loss that was asked for runs, and which gain it wants. One step, without training."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Optional

import torch

import yolo_lossplug
from yolo_lossplug import _autoload, terminal
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import CLASSIFY, DETR
from yolo_lossplug.tools.arguments import merge
from yolo_lossplug.tools.term_rows import Row, Scale, quotient
from yolo_lossplug.ultralytics_hook import patches
from yolo_lossplug.ultralytics_hook.console import VERSION, quiet, training_keys
from yolo_lossplug.ultralytics_hook.running import banner, branches
from yolo_lossplug.ultralytics_hook.trial import matched_step, one_step

HELP = """\
usage: lossplug verify [key=value ...] [--json]

Builds the model as training would, takes one step on a seeded batch of
synthetic images, without training, and prints for every term:
  stock, ours   its value in stock Ultralytics and with the keys given, both
                with the gains of the run
  expected      the registered function of your loss, called directly in float64
                on the boxes, logits and targets that the criterion passed to
                it; weights of boxes and classes and label smoothing are derived
                again
Says "active" and exits with 0 if ours is as expected, and with 1 otherwise.
This proves which function runs, with which options, weights and gain, and that
criterion and engine do not change its result. It does not prove that the
function is the formula of the paper: tests of this package compare every
built-in loss with an independent implementation.
Then it compares the scale of every term with a default run (stock loss and
default gains), by value and by the L2 norm of its gradient with respect to the
head's outputs, and prints the gain that would make either equal.
Terms of masks, keypoints and angles are the host's own: expected is there what
its own step gives with the keys.
Keys are those of `yolo train`, of which model= (yolov8n.yaml), imgsz= (160),
batch= (4), device= (cpu) and data=, for the names of classes, have a meaning
here. cfg=FILE reads a recipe, and the command line goes over it. --json prints
the same for machines.
Example: lossplug verify loss=focal-eiou focal_gamma=0.8 cls_loss=qfl\
"""
PROOF = (
    "expected: the registered function, called directly in float64 on what the criterion passed to it, weights derived "
    "again. It proves which function runs, and that criterion and engine do not change it; not that it is the formula "
    "of the paper."
)
STEPS: tuple[dict[str, Any], ...] = ({"is_stock": True}, {}, {"loss_engine": "reference"})
"""The step of stock, ours, and the host's own with our keys."""
NOT_SHOWN = "Terms of masks, keypoints and angles are the host's own, and this release does not name them."
REFUSED_KEYS = {
    "mode": (("train", None), "losses run in training"),
    "resume": ((False, None), "a resumed run goes on with the losses of its checkpoint"),
}
"""Keys with the values that are accepted, and why no others are."""


def main(args: dict[str, Any]) -> None:
    """Print what runs, and exit with 1 if it is not what was asked for."""
    is_json = bool(args.pop("json", False))
    if not yolo_lossplug.is_enabled():
        raise LossPlugError(f"not active: {_autoload.problem or 'switched off by YOLO_LOSSPLUG=0'}.")
    with quiet() if is_json else nullcontext():
        about, rows = verify(args)
    print(json.dumps(_as_json(about, rows), indent=2) if is_json else terminal.fit(_report(about, rows)))
    raise SystemExit(not all(row.agrees for row in rows))


def verify(args: Mapping[str, Any]) -> tuple[dict[str, Any], list[Row]]:
    """Take one step of stock and of ours.

    Args:
        args: As `yolo train` takes them.

    Returns:
        Versions, device, engine and seams, and the terms.

    Raises:
        LossPlugError: If an argument is wrong.
    """
    given = merge(args, training_keys() - {*REFUSED_KEYS, "save_dir"})
    for key, (harmless, why) in REFUSED_KEYS.items():
        if key in given.values and given.values[key] not in harmless:
            raise LossPlugError(f"{key}={given.values[key]} cannot be given to verify: {why}. Remove it.")
    given.say_unused()
    trial = one_step.trial(given.values)
    return _about(trial, str(given.values.get("model", "yolov8n.yaml"))), _rows(trial)


def _about(trial: one_step.Trial, model: str) -> dict[str, Any]:
    """Return versions, device, banner and seams."""
    seams, runs = patches.seams(), banner(trial.selection, one_step.criterion_of(trial))
    return {
        "yolo_lossplug": yolo_lossplug.__version__,
        "ultralytics": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(next(trial.model.parameters()).device),
        "model": model,
        "task": trial.model.task,
        "runs": f"{runs} · {trial.rules.describe()}" if trial.rules else runs,
        "seams": {"found": [name for name, is_there in seams if is_there], "absent": [n for n, i in seams if not i]},
    }


def _rows(trial: one_step.Trial) -> list[Row]:
    """Return the terms of a step by branch."""
    names = one_step.names_of_terms(one_step.criterion_of(trial), trial)
    stock = one_step.terms(one_step.criterion_of(trial, is_stock=True), trial)
    ours = one_step.terms(one_step.criterion_of(trial), trial)
    expected, scales = _expected(trial), _scales(trial, names, ours)
    columns = (stock, ours, expected, scales)
    rows = [Row(branch, *values) for branch in ours for values in zip(names, *(column[branch] for column in columns))]
    return rows + _host_rows(trial)


def _host_rows(trial: one_step.Trial) -> list[Row]:
    """Return the terms that are the host's own, beside those of its own step with our keys."""
    criteria = (one_step.criterion_of(trial, **changes) for changes in STEPS)
    stock, ours, expected = (one_step.host_terms(criterion, trial) for criterion in criteria)
    return [
        Row(branch, term, stock[branch][term], value, expected[branch][term])
        for branch, terms in ours.items()
        for term, value in terms.items()
    ]


def _expected(trial: one_step.Trial) -> dict[str, tuple[float, ...]]:
    """Return the values of the registered functions by branch."""
    if trial.selection.task == CLASSIFY:
        return {"main": one_step.softmax_formula(trial)}
    if trial.selection.task == DETR:
        return matched_step.formula(one_step.criterion_of(trial), trial)
    reference = one_step.criterion_of(trial, loss_engine="reference")
    inputs = one_step.seen_in(reference, trial)
    return {name: one_step.formula_terms(leaf, inputs[name], trial) for name, leaf in branches(reference)}


def _scales(trial: one_step.Trial, names: Sequence[str], ours: Mapping[str, Sequence[float]]) -> dict[str, list[Scale]]:
    """Return the scales of terms by branch; each criterion is a new one, since some losses remember a step."""
    gains = one_step.default_gains()
    default = one_step.terms(one_step.criterion_of(trial, is_stock=True, **gains), trial)
    default_grads = one_step.grad_norms(one_step.criterion_of(trial, is_stock=True, **gains), trial)
    our_grads = one_step.grad_norms(one_step.criterion_of(trial, loss_engine="reference"), trial)
    has_gains = trial.selection.task not in (CLASSIFY, DETR)
    keys = [one_step.GAINS[name] if has_gains else None for name in names]
    run_gains = [1.0 if key is None else float(getattr(trial.args, key)) for key in keys]
    columns = (default, default_grads, ours, our_grads)
    return {name: [*map(Scale, keys, run_gains, *(column[name] for column in columns))] for name in ours}


def _as_json(about: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the findings for machines; what is not finite is null."""
    return {**about, "terms": [_term(row) for row in rows], "active": all(row.agrees for row in rows)}


def _term(row: Row) -> dict[str, Any]:
    derived = ("value_ratio", "grad_ratio", "gain_for_value", "gain_for_grad")
    scale = {**asdict(row.scale), **{name: getattr(row.scale, name) for name in derived}} if row.scale else {}
    return _finite({**asdict(row), "error": row.error, "agrees": row.agrees, "scale": _finite(scale)})


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with None in place of NaN and infinity, which JSON does not have."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def _report(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the findings as text."""
    wrong = sorted({row.term for row in rows if not row.agrees})
    verdict = f"not active: {', '.join(wrong)} is not as expected" if wrong else "active"
    hidden = [NOT_SHOWN] if about["task"] in ("segment", "pose", "obb") and all(row.scale for row in rows) else []
    return "\n\n".join([_header(about), _values_table(rows), *hidden, PROOF, _scale_table(rows), verdict])


def _header(about: Mapping[str, Any]) -> str:
    found, absent = about["seams"]["found"], ", ".join(".".join(n.split(".")[-2:]) for n in about["seams"]["absent"])
    return (
        f"yolo-lossplug {about['yolo_lossplug']} · ultralytics {about['ultralytics']} · torch {about['torch']} · "
        f"Python {about['python']} · {about['device']} · {about['model']}\n{about['runs']}\n"
        f"seams of the host: {len(found)} found" + f"; not in this release, and not needed: {absent}" * bool(absent)
    )


def _values_table(rows: Sequence[Row]) -> str:
    head = ("term", "stock", "ours", "expected", "error", "ours/stock", "ours is")
    cells = [
        [*map(_number, (row.stock, row.ours, row.expected)), f"{row.error:.1e}", _number(quotient(row.ours, row.stock))]
        for row in rows
    ]
    verdicts = [row.verdict for row in rows]
    return _table(head, rows, [[*line, verdict] for line, verdict in zip(cells, verdicts)])


def _scale_table(rows: Sequence[Row]) -> str:
    """Return the scales, with the gain that would make a term as large as in a default run."""
    head = ("term", "default", "value ratio", "grad ratio", "gain", "same value", "same grad")
    scales = [(row, row.scale) for row in rows if row.scale]
    keys = {scale.key for _, scale in scales}
    gains = "".join(f", {key}={gain:g}" for key, gain in one_step.default_gains().items() if key in keys)
    cells = [
        [
            *map(_number, (scale.default, scale.value_ratio, scale.grad_ratio)),
            *(_gain(scale.key, gain) for gain in (scale.gain, scale.gain_for_value, scale.gain_for_grad)),
        ]
        for _, scale in scales
    ]
    title = (
        f"scale beside a default run (stock loss{gains}): ours/default, of the value and of the norm of its gradient, "
        f"and the gain that would make either equal, on this batch with these weights:"
    )
    return f"{title}\n{_table(head, [row for row, _ in scales], cells)}"


def _table(head: Sequence[str], rows: Sequence[Row], cells: Sequence[Sequence[str]]) -> str:
    """Return a table with a line for each term, below its branch if there are several."""
    branches = dict.fromkeys(row.branch for row in rows)
    indent = "  " if len(branches) > 1 else ""
    lines: list[Sequence[str]] = [head]
    for branch in branches:
        lines += [(branch, *[""] * (len(head) - 1))] if indent else []
        lines += [(indent + row.term, *line) for row, line in zip(rows, cells) if row.branch == branch]
    return "\n".join(terminal.table(lines, words_right=True))


def _number(value: float) -> str:
    return f"{value:.5g}" if math.isfinite(value) else "-"


def _gain(key: Optional[str], gain: float) -> str:
    return f"{key}={gain:.3g}" if key and math.isfinite(gain) else "-"
