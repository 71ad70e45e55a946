# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice of `lossplug inspect`: one table of rules, each with a threshold, a source and a comparison to run.

A rule names what is worth comparing first. None promises a gain; what came of it on synthetic data is in measured.csv.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from yolo_lossplug.charts import read_table
from yolo_lossplug.tools.inspect.findings import LONG, Facts
from yolo_lossplug.tools.inspect.views import FEW, TINY

NO_REASON = "no reason to change the stock loss"


class Advice(NamedTuple):
    """One piece of advice: its rule, what was seen and what comes first, a command to paste, and the source."""

    name: str
    text: str
    command: str
    source: str


class Rule(NamedTuple):
    """A rule.

    Attributes:
        name: Its name.
        threshold: Value from which it applies.
        value: Takes facts, and returns the value; None where the rule does not apply.
        text: Takes facts, and returns the advice.
        keys: Takes facts, and returns the keys of the comparison.
        source: Where rule and threshold come from.
        measured: Key and dataset of the row of measured.csv that stands for it, if there is one.
        is_for_rotated: Whether its keys can be used with rotated boxes.
    """

    name: str
    threshold: float
    value: Callable[[Facts], Optional[float]]
    text: Callable[[Facts], str]
    keys: Callable[[Facts], str]
    source: str
    measured: Optional[tuple[str, str]] = None
    is_for_rotated: bool = True

    def applies(self, facts: Facts) -> bool:
        """Return whether the threshold is reached, for a task with which the keys can be used."""
        value = self.value(facts)
        is_usable = self.is_for_rotated or facts.task != "obb"
        return is_usable and value is not None and value >= self.threshold

    def advice(self, facts: Facts) -> Advice:
        """Return what the rule says, with what was measured of it."""
        sources = filter(None, (self.source, self.measured and _measurements().get(self.measured)))
        return Advice(self.name, self.text(facts), _compare(facts, self.keys(facts)), "; ".join(sources))


@functools.cache
def _measurements() -> dict[tuple[str, str], str]:
    """Return what measured.csv says of comparisons with the stock loss, by key and dataset."""
    said = "{key} on synthetic data, {seeds} seeds: {verdict}, {mean} {metric} (docs/problems.md)"
    rows = read_table(Path(__file__).with_name("measured.csv"))
    return {(row["key"], row["dataset"]): said.format_map(row) for row in rows}


def percent(value: float) -> str:
    """Return a share as text, with a digit below 1 %.

    >>> percent(0.314), percent(0.0042), percent(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    if 0 < value < 0.001:
        return "below 0.1 %"
    return f"{100 * value:.1f} %" if 0 < value < 0.00995 else f"{100 * value:.0f} %"


def _at_sizes(facts: Facts, values: Sequence[float]) -> str:
    """Return shares after the first, which begins the sentence: `` at imgsz 640, 6 % at 960``."""
    others = (f", {percent(value)} at {size}" for value, size in zip(values[1:], facts.imgsz[1:]))
    return f" at imgsz {facts.imgsz[0]}{''.join(others)}"


def _larger(facts: Facts) -> str:
    """Return the largest inspected imgsz, or half as much again if only one was inspected, as keys of a comparison."""
    imgsz = max(facts.imgsz) if len(facts.imgsz) > 1 else -(-facts.imgsz[0] * 3 // 2 // 32) * 32
    return f"imgsz={imgsz} seeds=3"


def _rare(facts: Facts) -> str:
    names, is_one = facts.rare, len(facts.rare) == 1
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"class {listed} has" if is_one else f"classes {listed} have"


def _weights(facts: Facts) -> str:
    """Return no weights, and a moderate one for rare classes, as a key that a shell passes on."""
    names = [name.replace("\\", "\\\\").replace("'", "\\'") for name in facts.rare[:4]]
    weights = ",".join(f"'{name}':2" for name in names)
    value = f"[{{'{names[0]}':1}},{{{weights}}}]"
    is_plain = not {*'"$`\\!'}.intersection("".join(facts.rare[:4]))  # what a shell reads between double quotes
    return f'cls_weights="{value}"' if is_plain else shlex.quote(f"cls_weights={value}")


def _word(key: str, value: str) -> str:
    """Return a key with its value as a shell passes it on; a backslash stays, as in paths of Windows."""
    word = f"{key}={value}"
    return word if re.fullmatch(r"[\w@%+=:,./\\-]+", word) else shlex.quote(word)


def _compare(facts: Facts, keys: str) -> str:
    imgsz = "" if "imgsz=" in keys else f" imgsz={facts.imgsz[0]}"
    return f"lossplug compare {_word('data', facts.data)} {_word('model', facts.model)}{imgsz} {keys}"


RULES = (
    Rule(
        "faults",
        0.005,
        lambda f: sum(f.faults.values()) / f.n_objects,
        lambda f: (
            f"faults in the labels: {', '.join(f'{count} {kind}' for kind, count in f.faults.items() if count)}. "
            "Correct them first; the noise between seeds of the stock loss tells later whether that changed anything"
        ),
        lambda f: f"loss={'probiou' if f.task == 'obb' else 'ciou'} seeds=3",
        "a label fault costs more than losses differ (Northcutt et al. 2021, arXiv 2103.14749)",
    ),
    Rule(
        "no candidates",
        0.005,
        lambda f: f.none[0],
        lambda f: (
            f"{percent(f.none[0])} of objects have no candidate{_at_sizes(f, f.none)}, so no loss reaches them: "
            "a larger imgsz or a P2 head comes before any loss"
        ),
        _larger,
        "anchors inside the box are the only candidates of TAL (Feng et al. 2021, arXiv 2108.07755)",
    ),
    Rule(
        "few candidates",
        0.1,
        lambda f: f.few[0],
        lambda f: (
            f"{percent(f.few[0])} of objects have fewer than {FEW} candidates{_at_sizes(f, f.few)}, and "
            f"{percent(f.few_p2[0])} at {f.imgsz[0]} with a P2 head: a larger imgsz or a P2 head comes before any loss"
        ),
        _larger,
        "few positives on small objects are what limits them (NWD, Wang et al. 2021, arXiv 2110.13389)",
    ),
    Rule(
        "small in one scale only",
        0.3,
        lambda f: abs(f.small_original - f.small_input[0]),
        lambda f: (
            f"{percent(f.small_original)} of objects are small in pixels of their image, {percent(f.small_input[0])}"
            f"{_at_sizes(f, f.small_input)}: compare at the imgsz that you deploy with, and read AP by size there"
        ),
        lambda f: f"imgsz={f.imgsz[0]} seeds=3",
        "COCO's limits are pixels of the image; the assigner sees pixels of the input",
    ),
    Rule(
        "tiny objects",
        0.2,
        lambda f: f.tiny[0],
        lambda f: (
            f"{percent(f.tiny[0])} of objects have a side below {TINY:.0f} pixels{_at_sizes(f, f.tiny)}. For these, "
            "IoU drops to 0 within a few pixels of error, so compare a loss that falls off more slowly"
        ),
        lambda f: f"loss=ciou,nwd nwd_constant={0.8 * TINY:.0f} seeds=3",
        "Wang et al. 2021, arXiv 2110.13389",
        ("loss=nwd", "shapes-tiny.yaml"),
        is_for_rotated=False,
    ),
    Rule(
        "rare classes",
        1,
        lambda f: len(f.rare),
        lambda f: (
            f"{_rare(f)} {percent(f.rare_share)} of objects, the largest class {f.imbalance:.0f} times as many as the "
            "smallest: compare cls_weights, and read the AP of these classes"
        ),
        lambda f: f"{_weights(f)} seeds=3",
        "Cui et al. 2019, arXiv 1901.05555, whose mildest imbalance is 10 to 20",
        ("cls_weights=[1,1,2.5]", "shapes-rare.yaml"),
    ),
    Rule(
        "overlapping objects",
        0.02,
        lambda f: None if f.end_to_end else f.crowded,
        lambda f: (
            f"{percent(f.crowded)} of objects overlap one of their class above 0.7, where NMS with its default "
            "keeps only one of the two even if the model finds both"
        ),
        lambda f: "nms_iou=iou,diou seeds=3",
        "Zheng et al. 2020, arXiv 1911.08287 (DIoU-NMS); Bodla et al. 2017, arXiv 1704.04503",
        ("nms_iou=diou", "shapes-crowds.yaml"),
        is_for_rotated=False,
    ),
    Rule(
        "elongated objects",
        0.2,
        lambda f: f.long,
        lambda f: (
            f"{percent(f.long)} of objects are at least {LONG:.0f} times as long as wide, where CIoU's term for the "
            "aspect ratio says little about width and height"
        ),
        lambda f: "loss=ciou,eiou seeds=3",
        "Zhang et al. 2022, arXiv 2101.08158",
        ("loss=eiou", "shapes-thin.yaml"),
        is_for_rotated=False,
    ),
    Rule(
        "objects without an anchor",
        0.05,
        lambda f: f.without,
        lambda f: (
            f"{percent(f.without or 0)} of objects get no anchor from this model and assigner"
            + ("" if f.without_small is None else f", {percent(f.without_small)} of the small ones")
            + ": compare numbers of the assigner before losses"
        ),
        lambda f: "tal_topk=10,20 seeds=3",
        "19 % of small objects without an anchor in VisDrone (YOLO-Master, pull request 280)",
    ),
    Rule(
        "contested anchors",
        0.15,
        lambda f: f.conflicts,
        lambda f: (
            f"{percent(f.conflicts or 0)} of selected anchors are claimed by two objects or more: compare fewer "
            "anchors for each object"
        ),
        lambda f: "tal_topk=10,6 seeds=3",
        "each goes only to the object with the larger overlap (Feng et al. 2021, arXiv 2108.07755)",
        ("tal_topk=7", "shapes-crowds.yaml"),
    ),
    Rule(
        "memory",
        2.0**31,
        lambda f: None if f.task == "obb" else f.dense_bytes,
        lambda f: (
            f"stock's assigner needs {f.dense_bytes / 2**30:.1f} GB or more for a batch of this crowding; the "
            "fast engine assigns the same without it"
        ),
        lambda f: "loss=ciou,eiou loss_engine=fast seeds=3",
        "docs/performance.md, measured",
        is_for_rotated=False,
    ),
)


def advise(facts: Facts) -> list[Advice]:
    """Return the advice of all rules that apply, in the order of the table; one line if none does."""
    given = [rule.advice(facts) for rule in RULES if rule.applies(facts)]
    return given or [Advice("none", NO_REASON, _compare(facts, "seeds=3"), "no threshold of this table is reached")]
