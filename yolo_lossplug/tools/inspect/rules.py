# SPDX-License-Identifier: AGPL-3.0-or-later
"""The rules of the advice of `lossplug inspect`, in one table: thresholds, sources and what to compare.

A rule names what is worth comparing first. None promises a gain; what came of it on synthetic data is in measured.csv.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from yolo_lossplug.charts import read_table
from yolo_lossplug.selection.keys import WEIGHTS
from yolo_lossplug.tools.inspect.facts import CONTESTED, LONG, MISSED, Facts, Tried, larger
from yolo_lossplug.tools.inspect.views import FEW, TINY

POINT = 0.01
"""By how much a share must fall to count as lower: what the shown numbers tell apart."""
MAX_NAMES = 4
"""Names of classes that a line shows."""
SIDE = "MEAN_SIDE"
"""In place of a value: the mean side of the objects in pixels of the input."""
Keys = dict[str, Any]
"""Keys of a comparison: a tuple holds the values that are compared; each imgsz has a comparison of its own."""


class Rule(NamedTuple):
    """A rule.

    Attributes:
        name: Its name.
        threshold: Value from which it applies.
        value: Takes facts, and returns the value; None where the rule does not apply.
        text: Takes facts, and returns the advice.
        keys: Takes facts, and returns the keys of the comparison; None where there is nothing to compare.
        source: Where rule and threshold come from.
        measured: Beginning of the keys, and dataset, of the rows of measured.csv that belong to it, if there are any.
        is_for_rotated: Whether its keys can be used with rotated boxes; None where they can be with those alone.
    """

    name: str
    threshold: float
    value: Callable[[Facts], Optional[float]]
    text: Callable[[Facts], str]
    keys: Callable[[Facts], Optional[Keys]]
    source: str
    measured: Optional[tuple[str, str]] = None
    is_for_rotated: Optional[bool] = True

    def applies(self, facts: Facts) -> bool:
        """Return whether the threshold is reached, for a task with which the keys can be used."""
        is_usable = self.is_for_rotated is not (False if facts.task == "obb" else None)
        return is_usable and (self.value(facts) or 0) >= self.threshold

    def varied(self, facts: Facts) -> str:
        """Return the key whose values are compared, or the rule's name."""
        return next((key for key, value in (self.keys(facts) or {}).items() if isinstance(value, tuple)), self.name)


@functools.cache
def measurements(key: str, dataset: str) -> str:
    """Return what came of comparisons with stock, by the beginning of their keys and the dataset, empty for all."""
    rows = read_table(Path(__file__).with_name("measured.csv"))
    found = [row for row in rows if row["key"].startswith(key) and dataset in ("", row["dataset"])]
    said = []
    for verdict in ("better", "worse", "within noise"):
        mean = "" if verdict == "within noise" else " ({mean})"
        shown = [row["key"] + mean.format_map(row) for row in found if row["verdict"] == verdict]
        said += [f"{verdict}: {', '.join(shown)}"] if shown else []
    about = f"Measured on synthetic data, {found[0]['seeds']} seeds, {found[0]['metric']} against stock"
    return f"{about}: {'; '.join(said)} (docs/problems.md)."


def percent(value: float) -> str:
    """Return a share as text, with a digit below 1 %.

    >>> percent(0.314), percent(0.0042), percent(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    shown = f"{100 * value:.1f} %" if 0 < value < 0.00995 else f"{100 * value:.0f} %"
    return "below 0.1 %" if 0 < value < 0.001 else shown


def _at_sizes(facts: Facts, values: Sequence[float]) -> str:
    """Return shares after the first, which begins the sentence: `` at imgsz 640, 6 % at 960``."""
    others = (f", {percent(value)} at {size}" for value, size in zip(values[1:], facts.imgsz[1:]))
    return f" at imgsz {facts.imgsz[0]}{''.join(others)}"


def _keys(text: str) -> Keys:
    """Return the keys of a comparison as a command line has them."""
    pairs = (word.split("=") for word in text.split())
    return {key: tuple(value.split(",")) if "," in value else value for key, value in pairs}


def _sizes(facts: Facts) -> Keys:
    """Return the inspected sizes, or the one and half as much again, as keys of a comparison."""
    return {"imgsz": facts.imgsz if len(facts.imgsz) > 1 else (*facts.imgsz, larger(facts.imgsz[0]))}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


def _rare(facts: Facts) -> str:
    listed = _some(facts.rare)
    return f"class {listed} has" if len(facts.rare) == 1 else f"classes {listed} have"


def weights_of(facts: Facts) -> tuple[dict[str, int], ...]:
    """Return no weights, and moderate ones for all rare classes."""
    return {facts.rare[0]: 1}, dict.fromkeys(facts.rare, 2)


def _predictor(facts: Facts) -> str:
    return "the random weights of an untrained model" if facts.is_untrained else "this model"


def _best(tried: Sequence[Tried], share: str) -> Optional[Tried]:
    """Return what lowers a share the most, None if nothing does by a point."""
    falls = {one: round(getattr(one.before, share) - getattr(one.after, share), 9) for one in tried}
    best = max(falls, key=lambda one: falls[one], default=None)
    return best if best and falls[best] >= POINT else None


def _reaching(facts: Facts) -> Optional[Tried]:
    """Return what leaves the fewest objects without an anchor; None if they are few, or nothing helps."""
    return _best(facts.tried, "without") if (facts.without or 0) >= MISSED else None


def _parting(facts: Facts) -> Optional[Tried]:
    """Return what leaves the fewest contested anchors, but for another value of a key that is advised already."""
    first = _reaching(facts)
    return _best([one for one in facts.tried if first is None or one == first or one.key != first.key], "conflicts")


def _comparison(best: Optional[Tried]) -> Optional[Keys]:
    return _keys(f"{best.key}={best.now:g},{best.value:g}") if best else None


def _outcomes(facts: Facts, share: str, best: Optional[Tried]) -> str:
    """Return in words what was tried on these labels, with both numbers."""
    said = []
    for one in facts.tried:
        of_part = f" (of {percent(getattr(one.before, share))}, in {one.images} images)" if one.images else ""
        said.append(f"{percent(getattr(one.after, share))} with {one}{of_part}")
    if best:
        verdict = f"compare {best.key} before losses"
    else:  # lower with another value of a key that is advised already, or with none
        verdict = "none of these lowers it by a point"
        verdict = f"compare {_reaching(facts)} first" if _best(facts.tried, share) else verdict
    return f"; it would be {', '.join(said)}: {verdict}" if said else ""


RULES = (
    Rule(
        "faults",
        0.005,
        lambda f: sum(f.faults.values()) / f.n_objects,
        lambda f: (
            f"faults in the labels: {', '.join(f'{count} {kind}' for kind, count in f.faults.items() if count)}. "
            "Correct them first; the noise between seeds of the stock loss tells later whether that changed anything"
        ),
        lambda f: {},
        "a label fault costs more than losses differ (Northcutt et al. 2021, arXiv 2103.14749)",
    ),
    Rule(
        "regions",
        1,
        lambda f: len(f.unused),
        lambda f: (
            f"{len(f.unused)} of the classes ({', '.join(f.unused)}) called like boxes of what shall not be taught "
            f"{'is' if len(f.unused) == 1 else 'are'} taught as objects; if that is wrong, write "
            f"ignore: [{', '.join(f.unused)}] into the data's YAML"
        ),
        lambda f: None,
        "classes of this name in VisDrone, KITTI and CrowdHuman are regions; see docs/regions.md",
    ),
    Rule(
        "entries",
        1,
        lambda f: len(f.absent),
        lambda f: (
            f"{len(f.absent)} of the folders {'has' if len(f.absent) == 1 else 'have'} no object of classes that "
            f"others have ({'; '.join(f'{entry}: {_some(names)}' for entry, names in f.absent.items())}). If such "
            "objects are there without a label, say with annotated: in the data's YAML what each folder annotates"
        ),
        lambda f: None,
        "at the rate of the other folders there would be 10 or more; see docs/regions.md",
    ),
    Rule(
        "no candidates",
        0.005,
        lambda f: f.none[0],
        lambda f: (
            f"{percent(f.none[0])} of objects have no candidate{_at_sizes(f, f.none)}, so no loss reaches them: "
            "a larger imgsz or a P2 head comes before any loss"
        ),
        _sizes,
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
        _sizes,
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
        lambda f: {},
        "COCO's limits are pixels of the image; the assigner sees pixels of the input",
    ),
    Rule(
        "tiny objects",
        0.2,
        lambda f: f.tiny[0],
        lambda f: (
            f"{percent(f.tiny[0])} of objects have a side below {TINY:.0f} pixels{_at_sizes(f, f.tiny)}. A few pixels "
            "of error take all of their IoU; ciou has a gradient even there, of its terms for distance and aspect "
            "ratio alone: compare a loss that measures distance and size there"
        ),
        lambda f: _keys(f"loss=ciou,nwd nwd_constant={SIDE}"),
        "Wang et al. 2021, arXiv 2110.13389",
        ("", "shapes-tiny.yaml"),
        is_for_rotated=False,
    ),
    Rule(
        "rare classes",
        1,
        lambda f: len(f.rare),
        lambda f: (
            f"{_rare(f)} {percent(f.rare_share)} of objects, the largest class {f.imbalance:.0f} times as many as the "
            "smallest: name their images several times in train.txt, which needs no key, before you compare "
            "cls_weights, and read the AP of these classes"
        ),
        lambda f: {WEIGHTS: weights_of(f)},
        "Cui et al. 2019, arXiv 1901.05555, whose mildest imbalance is 10 to 20",
        ("", "shapes-rare.yaml"),
    ),
    Rule(
        "overlapping objects",
        0.02,
        lambda f: None if f.end_to_end else f.crowded,
        lambda f: (
            f"{percent(f.crowded)} of objects overlap one of their class above 0.7, where NMS with its default "
            "keeps only one of the two even if the model finds both"
        ),
        lambda f: _keys("nms_iou=iou,diou"),
        "Zheng et al. 2020, arXiv 1911.08287 (DIoU-NMS); Bodla et al. 2017, arXiv 1704.04503",
        ("nms_iou", "shapes-crowds.yaml"),
        is_for_rotated=False,
    ),
    Rule(
        "elongated objects",
        0.2,
        lambda f: f.long,
        lambda f: (
            f"{percent(f.long)} of objects are at least {LONG:.0f} times as long as wide. Beside IoU, ciou measures "
            "width and height by their ratio alone: compare a loss with a term for each side"
        ),
        lambda f: _keys("loss=ciou,eiou"),
        "Zhang et al. 2022, arXiv 2101.08158",
        ("", "shapes-thin.yaml"),
        is_for_rotated=False,
    ),
    Rule(
        "square rotated objects",
        0.2,
        lambda f: f.square,
        lambda f: (
            f"{percent(f.square)} of objects are squares, of which probiou, kld and gwd do not see the angle: the "
            "Gaussian of a square is a circle. Compare a loss that measures edges"
        ),
        lambda f: _keys("loss=probiou,mgiou"),
        "Le et al. 2025, arXiv 2504.16443",
        is_for_rotated=None,
    ),
    Rule(
        "elongated rotated objects",
        0.2,
        lambda f: f.long,
        lambda f: (
            f"{percent(f.long)} of objects are at least {LONG:.0f} times as long as wide, where a small error of the "
            "angle takes much of the overlap: compare a loss whose gradient by the angle grows with that ratio"
        ),
        lambda f: _keys("loss=probiou,kld"),
        "Yang et al. 2021, arXiv 2106.01883",
        is_for_rotated=None,
    ),
    Rule(
        "objects without an anchor",
        MISSED,
        lambda f: f.without,
        lambda f: (
            f"{percent(f.without or 0)} of objects get no anchor from {_predictor(f)} and this assigner"
            + ("" if f.without_small is None else f", {percent(f.without_small)} of the small ones")
            + _outcomes(f, "without", _reaching(f))
        ),
        lambda f: _comparison(_reaching(f)),
        "19 % of small objects without an anchor in VisDrone (YOLO-Master, pull request 280)",
        ("tal_", ""),
    ),
    Rule(
        "contested anchors",
        CONTESTED,
        lambda f: f.conflicts,
        lambda f: (
            f"{percent(f.conflicts or 0)} of the anchors that {_predictor(f)} and this assigner select are claimed by "
            "two objects or more" + _outcomes(f, "conflicts", _parting(f))
        ),
        lambda f: _comparison(_parting(f)),
        "each goes only to the object with the larger overlap (Feng et al. 2021, arXiv 2108.07755)",
        ("tal_", ""),
    ),
    Rule(
        "memory",
        2.0**31,
        lambda f: None if f.task == "obb" else f.dense_bytes,
        lambda f: (
            f"stock's assigner needs {f.dense_bytes / 2**30:.1f} GB or more for a batch of this crowding; the "
            "fast engine assigns the same without it"
        ),
        lambda f: _keys("loss_engine=fast"),
        "docs/performance.md, measured",
        is_for_rotated=False,
    ),
)
