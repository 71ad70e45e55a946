# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug inspect` reports: tables of what was found, pictures, and what is worth a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from yolo_lossplug.boxes import SIZES
from yolo_lossplug.tools.inspect import counts as numbers
from yolo_lossplug.tools.inspect.advice import Advice, advise
from yolo_lossplug.tools.inspect.findings import Findings
from yolo_lossplug.tools.inspect.rules import percent
from yolo_lossplug.tools.inspect.views import FEW
from yolo_lossplug.tools.report import Block, Code, Picture, Report, Section, Table, Text
from yolo_lossplug.ultralytics_hook.console import VERSION

NOTE_ON_COSTS = (
    "Memory is estimated from shapes: stock has 13 bytes or more for each (image, object, anchor), the fast engine 56 "
    "for each candidate; both on top of predictions and gradients. Time is that of one loss step, forward and "
    "backward, measured on this machine's CPU; without masks and "
    "keypoints; large steps are not timed. Mosaic joins the objects of four images."
)


def make_report(found: Findings, pictures: Sequence[Picture], command: str, folder: Path) -> Report:
    """Return the report of a dataset with pictures, and the command that makes it again."""
    advice = advise(found.facts, folder)
    note = (
        f"One forward of every image by {found.facts.model}, in batches of {found.plan.batch}, without augmentation, "
        f"and the assignment of a training step{_weights_of(found)}. Contested anchors are claimed by two objects."
    )
    ratio = f"The largest class has {found.facts.imbalance:.4g} times as many objects as the smallest that has any."
    sections = [
        Section("", [Text(headline(found), is_brief=True)]),
        Section("Pictures", [*pictures]),
        Section("Size of objects", [sizes_table(found)]),
        Section("Candidates of objects", [candidates_table(found)]),
        *([Section("Assignment", [Text(note), assignment_table(found)])] if found.model else []),
        Section("Crowding", [*_crowding_tables(found)]),
        Section("Labels", [*_faults(found)]),
        Section("Classes", [Text(ratio, is_brief=True), classes_table(found)]),
        Section("Need of the loss step", [Text(NOTE_ON_COSTS), costs_table(found)]),
        Section("Worth a comparison", [block for piece in advice for block in advised(piece)]),
    ]
    footer = [f"{date.today().isoformat()}, ultralytics {VERSION}"]
    return Report(f"{found.facts.data}, inspected", "", command, [main_point(advice)], sections, footer)


def _weights_of(found: Findings) -> str:
    return ", from the random weights of an untrained model" if found.is_untrained else ""


def headline(found: Findings) -> str:
    """Return what was read."""
    read, there = found.labels, int((found.classes[0] > 0).sum())
    classes, split = f"{there} of {len(read.names)} classes", found.plan.args.get("split", "train")
    return f"{len(read.files):,} images, {len(read.cls):,} objects, {classes}, task {read.task}, split {split}"


def main_point(advice: Sequence[Advice]) -> str:
    """Return what a reader takes along, the first piece of advice, and how many others there are."""
    if advice[0].name == "none":
        return f"No threshold is reached: {advice[0].text}."
    more = len(advice) - 1
    rest = f" {more} more {'comparison is' if more == 1 else 'comparisons are'} worth running." if more else ""
    measured = f" {advice[0].measured}" if "worse" in advice[0].measured else ""
    return f"{_sentence(advice[0].text)}{measured}{rest}"


def advised(piece: Advice) -> Iterator[Block]:
    """Yield what a terminal shows of a piece of advice too, what was measured of it included, and its source."""
    yield Text(_sentence(piece.text), is_brief=True)
    yield from [Text(piece.measured, is_brief=True)] if piece.measured else []
    yield from [Code(piece.command, is_brief=True)] if piece.command else []
    yield from [Text(piece.estimate, is_brief=True)] if piece.estimate else []
    yield Text(f"Source: {piece.source}.")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def sizes_table(found: Findings) -> Table:
    """Return the shares of objects by size, in pixels of the image and of each input."""
    areas = {"the image itself": found.labels.sides.prod(1)}
    areas.update({f"the input at imgsz {view.imgsz}": view.areas for view in found.views})
    rows = []
    for name, values in areas.items():
        rows.append([name, *map(percent, numbers.size_shares(values)), f"{np.median(np.sqrt(values.clip(0))):.0f}"])
    caption = "Small is below 32² pixels, large from 96² on; sides are roots of areas"
    return Table(("pixels of", *SIZES, "median side"), rows, caption, columns=5)


def candidates_table(found: Findings) -> Table:
    """Return the shares of objects with few candidates."""
    facts, rows = found.facts, []
    for view, *shares in zip(found.views, facts.none, facts.few, facts.few_p2):
        shares.insert(2, numbers.share(view.total < found.topk))
        medians = [np.median(values) for values in (view.total, *view.candidates.T)]
        rows.append([view.imgsz, *map(percent, shares), *(f"{median:.0f}" for median in medians)])
    header = ("imgsz", "none", f"fewer than {FEW}", f"fewer than {found.topk}", f"fewer than {FEW} with P2", "median")
    levels = [f"median on stride {stride:g}" for stride in found.strides]
    caption = "Candidates of objects: anchors inside the box, which is widened where it is tiny"
    return Table((*header, *levels), rows, caption, columns=6)


def assignment_table(found: Findings) -> Table:
    """Return what the model's assigner makes of the objects, by branch and size."""
    rows = []
    for view in found.views:
        for name, branch in view.assigned.items():
            sums = view.sums(branch)
            for size, values in zip((*SIZES, "all"), (*sums.tolist(), sums.sum(0).tolist())):
                contested = percent(branch.shares.conflicts) if size == "all" else ""
                rows.append([view.imgsz, name, size, *_means(*values), contested])
    header = ("imgsz", "branch", "size", "objects", "no anchor", "anchors each", "mean IoU", "contested")
    return Table(header, rows, f"Anchors that the assigner gives to objects{_weights_of(found)}", columns=8)


def _means(objects: float, missing: float, positives: float, overlap: float) -> list[Any]:
    per_object = [percent(missing / objects), f"{positives / objects:.2f}"] if objects else ["", ""]
    return [int(objects), *per_object, f"{overlap / positives:.3f}" if positives else ""]


def _crowding_tables(found: Findings) -> Iterator[Table]:
    median, high, *others = numbers.crowding(found.counts)
    header = ("median", "95 %", "maximum", "images without")
    yield Table(header, [[f"{median:g}", f"{high:.0f}", *others]], "Objects in an image", columns=4)
    pairs, n = found.pairs, max(1, len(found.labels.cls))
    counted = zip(numbers.OVERLAPS, pairs.above, pairs.objects)
    rows = [[f"{iou:g}", percent(above / max(1, pairs.pairs)), percent(close / n)] for iou, above, close in counted]
    caption = f"Overlap of the {pairs.pairs:,} pairs of one class in one image; NMS cuts at 0.7 by default"
    yield Table(("IoU above", "pairs", "objects in such a pair"), rows, caption, columns=3)


def _faults(found: Findings) -> Iterator[Block]:
    silenced = found.labels.silenced
    if len(silenced):
        shares = ", ".join(f"{found.labels.names[cls]} {percent(share)}" for cls, share in enumerate(silenced))
        yield Text(f"Regions: {percent(silenced.mean())} of the anchors are silenced ({shares}).", is_brief=True)
    rows = [[count, kind] for kind, count in found.faults.items() if count]
    yield Table(("count", "fault of labels"), rows, columns=2) if rows else Text("Labels: no faults.", is_brief=True)
    first = [f"{Path(file).name} ({count} objects): {why}" for file, count, why in found.labels.ignored[:3]]
    if first:
        yield Text(f"Left out: {'; '.join(first)}")


def classes_table(found: Findings) -> Table:
    """Return the classes by number of objects."""
    objects, images = found.classes
    first, total = found.views[0], max(1, objects.sum())
    masks = {f"fewer than {FEW} candidates": first.total < FEW}
    if first.main is not None:
        masks["without an anchor"] = first.main.positives == 0
    sums = [np.bincount(found.labels.cls, mask, len(objects)) for mask in masks.values()]
    rows = []
    for i in np.argsort(-objects, kind="stable").tolist():
        shares = (percent(values[i] / objects[i]) if objects[i] else "" for values in sums)
        name, share = found.labels.names.get(i, str(i)), percent(objects[i] / total)
        rows.append([i, name, int(objects[i]), int(images[i]), share, *shares])
    header = ("class", "name", "objects", "images", "share", *masks)
    return Table(header, rows, f"Last columns at imgsz {first.imgsz}{_weights_of(found)}")


def costs_table(found: Findings) -> Table:
    """Return what the loss step needs."""
    rows = []
    for name, need in zip(("typical", "most crowded"), found.costs):
        times = [
            f"{need.timed} image{'s' * (need.timed > 1)}: {1000 * s:.0f} ms" if s else "not timed"
            for s in (need.stock, need.fast)
        ]
        rows.append([name, need.images, need.most, _bytes(need.dense), _bytes(need.sparse), *times])
    header = ("batch", "images", "most objects", "memory of stock", "memory of fast", "time of stock", "time of fast")
    return Table(header, rows, f"One step at imgsz {found.views[0].imgsz}")


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"
