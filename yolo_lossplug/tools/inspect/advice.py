# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice of `lossplug inspect`: one table of rules, each with a threshold, a source and a comparison to run.

A rule names what is worth comparing first. None promises a gain.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Callable, NamedTuple, Optional

FEW = 4
"""Candidates below which an object counts as one with few."""
TINY = 16.0
"""Side in pixels of the network's input below which an object counts as tiny."""
LONG = 4.0
"""Ratio of the sides from which an object counts as elongated."""
RARE = 20.0
"""Ratio to the largest class from which a class counts as rare."""
SPECIAL = frozenset('"$`\\!')
"""Characters that a shell reads between double quotes."""
NO_REASON = "no reason seen to leave the stock loss"


@dataclass(frozen=True)
class Facts:
    """Numbers that the rules read. Shares are of objects, in [0, 1]; those by imgsz have one for each imgsz.

    Attributes:
        data: Dataset as the user has named it.
        model: Model for the comparisons.
        task: The task.
        imgsz: The sizes of the input that were inspected.
        n_objects: Number of objects.
        few: Share with fewer than `FEW` candidates.
        few_p2: The same with a level of stride 4 in addition.
        none: Share without any candidate.
        tiny: Share with a side (root of the area) below `TINY` pixels of the input.
        small_input: Share of small objects in pixels of the input.
        small_original: The same in pixels of the image.
        long: Share with sides in a ratio of `LONG` or more.
        crowded: Share in a pair of one class that overlaps above 0.7.
        rare: Names of classes with objects, but fewer than 1/`RARE` of the largest.
        rare_share: Share of objects of these classes.
        imbalance: Objects of the largest class over those of the smallest.
        faults: Labels with faults that a training suffers from, and images that the loader leaves out, by kind.
        dense_bytes: Memory of stock's assigner in a typical batch.
        without: Share without an anchor in the assignment of the model; None without a model.
        without_small: The same of small objects.
        conflicts: Share of selected anchors that two objects select; None without a model.
        end_to_end: Whether the model has a branch without NMS.
    """

    data: str
    model: str
    task: str
    imgsz: tuple[int, ...]
    n_objects: int
    few: tuple[float, ...]
    few_p2: tuple[float, ...]
    none: tuple[float, ...]
    tiny: tuple[float, ...] = (0.0,)
    small_input: tuple[float, ...] = (0.0,)
    small_original: float = 0.0
    long: float = 0.0
    crowded: float = 0.0
    rare: Sequence[str] = ()
    rare_share: float = 0.0
    imbalance: float = 1.0
    faults: Mapping[str, int] = field(default_factory=dict)
    dense_bytes: int = 0
    without: Optional[float] = None
    without_small: Optional[float] = None
    conflicts: Optional[float] = None
    end_to_end: bool = False


class Advice(NamedTuple):
    """One piece of advice.

    Attributes:
        name: Name of the rule.
        text: What was seen, with its number, and what comes first.
        command: A command to paste.
        source: Where the rule comes from.
    """

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
        is_for_rotated: Whether its keys can be used with rotated boxes.
    """

    name: str
    threshold: float
    value: Callable[[Facts], Optional[float]]
    text: Callable[[Facts], str]
    keys: Callable[[Facts], str]
    source: str
    is_for_rotated: bool = True


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
    return f" at imgsz {facts.imgsz[0]}" + "".join(
        f", {percent(value)} at {size}" for value, size in zip(values[1:], facts.imgsz[1:])
    )


def _larger(facts: Facts) -> int:
    """Return the largest inspected imgsz, or half as much again if only one was inspected."""
    return max(facts.imgsz) if len(facts.imgsz) > 1 else -(-facts.imgsz[0] * 3 // 2 // 32) * 32


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _weights(facts: Facts) -> str:
    """Return no weights, and a moderate one for rare classes, as a key that a shell passes on."""
    names = [name.replace("\\", "\\\\").replace("'", "\\'") for name in facts.rare[:4]]
    weights = ",".join(f"'{name}':2" for name in names)
    value = f"[{{'{names[0]}':1}},{{{weights}}}]"
    is_plain = not SPECIAL.intersection("".join(facts.rare[:4]))
    return f'cls_weights="{value}"' if is_plain else shlex.quote(f"cls_weights={value}")


def _word(key: str, value: str) -> str:
    """Return a key with its value as a shell passes it on; a backslash stays, as in paths of Windows."""
    word = f"{key}={value}"
    return word if re.fullmatch(r"[\w@%+=:,./\\-]+", word) else shlex.quote(word)


MEMORY = 2.0**31
RULES = (
    Rule(
        "faults",
        0.005,
        lambda f: sum(f.faults.values()) / f.n_objects,
        lambda f: (
            "faults in the labels: "
            + ", ".join(f"{count} {kind}" for kind, count in f.faults.items() if count)
            + ". Correct them first; the noise of the stock loss says later what that changed"
        ),
        lambda f: "loss=ciou seeds=3" if f.task != "obb" else "loss=probiou seeds=3",
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
        lambda f: f"imgsz={_larger(f)} seeds=3",
        "anchors inside of the box are the only candidates of TAL (Feng et al. 2021, arXiv 2108.07755)",
    ),
    Rule(
        "few candidates",
        0.1,
        lambda f: f.few[0],
        lambda f: (
            f"{percent(f.few[0])} of objects have fewer than {FEW} candidates{_at_sizes(f, f.few)}, and "
            f"{percent(f.few_p2[0])} at {f.imgsz[0]} with a P2 head: a larger imgsz or a P2 head comes before any loss"
        ),
        lambda f: f"imgsz={_larger(f)} seeds=3",
        "few positives on small objects are what limits them (NWD, Wang et al. 2021, arXiv 2110.13389)",
    ),
    Rule(
        "small in one scale only",
        0.3,
        lambda f: abs(f.small_original - f.small_input[0]),
        lambda f: (
            f"{percent(f.small_original)} of objects are small in pixels of their image, "
            f"{percent(f.small_input[0])}{_at_sizes(f, f.small_input)}: compare at the imgsz that you "
            "deploy with, and read AP by size there"
        ),
        lambda f: f"imgsz={f.imgsz[0]} seeds=3",
        "COCO's limits are pixels of the image; the assigner sees pixels of the input",
    ),
    Rule(
        "tiny objects",
        0.2,
        lambda f: f.tiny[0],
        lambda f: (
            f"{percent(f.tiny[0])} of objects have a side below {TINY:.0f} pixels{_at_sizes(f, f.tiny)}, where IoU "
            "drops to 0 within a few pixels: a loss that does not is worth a comparison"
        ),
        lambda f: f"loss=ciou,nwd nwd_constant={max(4, round(TINY * 0.8))} seeds=3",
        (
            "Wang et al. 2021, arXiv 2110.13389; "
            "loss=nwd on drawn data, 5 seeds: better, +0.1094 mAP50-95 (docs/troubles.md)"
        ),
        is_for_rotated=False,
    ),
    Rule(
        "rare classes",
        1,
        lambda f: len(f.rare),
        lambda f: (
            f"{'class' if len(f.rare) == 1 else 'classes'} {_names(f.rare)} {'has' if len(f.rare) == 1 else 'have'} "
            f"{percent(f.rare_share)} of objects, the largest class {f.imbalance:.0f} times as many as the smallest: "
            "compare cls_weights, and read the AP of these classes"
        ),
        lambda f: f"{_weights(f)} seeds=3",
        (
            "Cui et al. 2019, arXiv 1901.05555, whose mildest imbalance is 10 to 20; "
            "cls_weights=[1,1,2.5] on drawn data, 5 seeds: worse, -0.0828 mAP50-95 (docs/troubles.md)"
        ),
    ),
    Rule(
        "overlapping objects",
        0.02,
        lambda f: None if f.end_to_end else f.crowded,
        lambda f: (
            f"{percent(f.crowded)} of objects overlap one of their class above 0.7, where NMS with its default "
            "keeps one of both even if the model finds both"
        ),
        lambda f: "nms_iou=iou,diou seeds=3",
        (
            "Zheng et al. 2020, arXiv 1911.08287 (DIoU-NMS); Bodla et al. 2017, arXiv 1704.04503; "
            "nms_iou=diou on drawn data, 5 seeds: within noise, -0.0001 mAP50-95 (docs/troubles.md)"
        ),
        is_for_rotated=False,
    ),
    Rule(
        "elongated objects",
        0.2,
        lambda f: f.long,
        lambda f: (
            f"{percent(f.long)} of objects are {LONG:.0f} times as long as wide or more, where CIoU's term for "
            "the aspect ratio says little of width and height"
        ),
        lambda f: "loss=ciou,eiou seeds=3",
        (
            "Zhang et al. 2022, arXiv 2101.08158; "
            "loss=eiou on drawn data, 5 seeds: within noise, -0.0423 mAP50-95 (docs/troubles.md)"
        ),
        is_for_rotated=False,
    ),
    Rule(
        "objects without an anchor",
        0.05,
        lambda f: f.without,
        lambda f: (
            f"{percent(f.without or 0)} of objects get no anchor from this model and assigner"
            + ("" if f.without_small is None else f", {percent(f.without_small)} of the small ones")
            + ": numbers of the assigner are worth a comparison before losses"
        ),
        lambda f: "tal_topk=10,20 seeds=3",
        "19 % of small objects without an anchor in VisDrone (YOLO-Master, pull request 280)",
    ),
    Rule(
        "contested anchors",
        0.15,
        lambda f: f.conflicts,
        lambda f: (
            f"{percent(f.conflicts or 0)} of selected anchors are wanted by two objects or more: fewer anchors "
            "for each object are worth a comparison"
        ),
        lambda f: "tal_topk=10,6 seeds=3",
        (
            "each goes to the object of larger overlap alone (Feng et al. 2021, arXiv 2108.07755); "
            "tal_topk=7 on drawn data, 5 seeds: within noise, +0.0050 mAP50-95 (docs/troubles.md)"
        ),
    ),
    Rule(
        "memory",
        MEMORY,
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
    given = []
    for rule in RULES:
        value = rule.value(facts)
        if value is None or value < rule.threshold or (facts.task == "obb" and not rule.is_for_rotated):
            continue
        given.append(Advice(rule.name, rule.text(facts), command(facts, rule.keys(facts)), rule.source))
    return given or [Advice("none", NO_REASON, command(facts, "seeds=3"), "no threshold of this table is reached")]


def command(facts: Facts, keys: str) -> str:
    """Return the line of a comparison."""
    imgsz = "" if "imgsz=" in keys else f" imgsz={facts.imgsz[0]}"
    return f"lossplug compare {_word('data', facts.data)} {_word('model', facts.model)}{imgsz} {keys}"
