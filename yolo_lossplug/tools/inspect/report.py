# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug inspect` says: on the terminal, as Markdown, as a page, and in pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from yolo_lossplug import charts
from yolo_lossplug.files import write_text
from yolo_lossplug.tools.inspect import counts as numbers
from yolo_lossplug.tools.inspect.advice import FEW, Advice, advise, percent
from yolo_lossplug.tools.inspect.findings import Findings, reasons
from yolo_lossplug.tools.inspect.pictures import Panel, draw_candidates, draw_images, draw_sizes
from yolo_lossplug.tools.inspect.views import View, report_values
from yolo_lossplug.tools.report import Report as Page
from yolo_lossplug.ultralytics_hook.console import VERSION
from yolo_lossplug.ultralytics_hook.dataset.assignments import AssignedObjects
from yolo_lossplug.ultralytics_hook.dataset.candidates import candidate_pairs, corners_of, points_of
from yolo_lossplug.ultralytics_hook.dataset.labels import pixels_of, shown_part

WIDTH = 80
Cell = Union[str, int, float]


class Table(NamedTuple):
    """A table.

    Attributes:
        title: Heading above it.
        header: Names of the columns.
        rows: The rows.
        note: What a reader has to know.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def tables(found: Findings) -> list[Table]:
    """Return all tables of the report, in their order."""
    made = [sizes(found), candidates(found)]
    made += [assignment(found)] if found.model else []
    return [*made, crowding(found), faults(found), classes(found), costs(found)]


def sizes(found: Findings) -> Table:
    """Return the shares of objects by size, in pixels of the image and of each input."""
    original = ["the image itself", *map(percent, numbers.size_shares(found.labels.sides.prod(1)))]
    original.append(f"{np.median(np.sqrt(found.labels.sides.prod(1))):.0f}")
    rows = [original]
    for view in found.views:
        shares = map(percent, numbers.size_shares(view.areas))
        rows.append([f"the input at imgsz {view.imgsz}", *shares, f"{np.median(view.sides):.0f}"])
    note = "COCO's limits: small is below 32² pixels, large from 96² on. Sides are roots of areas."
    return Table("Size of objects", ("pixels of", "small", "medium", "large", "median side"), rows, note)


def candidates(found: Findings) -> Table:
    """Return the shares of objects with few candidates."""
    rows: list[list[Cell]] = []
    for view in found.views:
        total, p2 = view.total, view.total_p2
        rows.append(
            [
                view.imgsz,
                *(percent(numbers.share(total < limit)) for limit in (1, FEW, found.topk)),
                percent(numbers.share(p2 < FEW)),
                f"{np.median(total):.0f}",
                *(f"{np.median(view.candidates[:, i]):.0f}" for i in range(len(view.strides))),
            ]
        )
    levels = [f"median on stride {stride:g}" for stride in found.views[0].strides]
    header = ("imgsz", "none", f"fewer than {FEW}", f"fewer than {found.topk}", f"fewer than {FEW} with P2", "median")
    note = "Anchors that the assigner may give to an object: those inside of its box, which it widens where it is tiny."
    return Table("Candidates of objects", (*header, *levels), rows, note)


def assignment(found: Findings) -> Table:
    """Return what the model's assigner makes of the objects, by branch and size."""
    rows: list[list[Cell]] = []
    for view in found.views:
        for branch, one in view.assigned.items():
            values = report_values(view, one)
            sums = np.array(list(values.values()))
            for i, size in enumerate((*numbers.SIZES, "all")):
                objects, missing, positives, overlap = (sums.sum(1) if size == "all" else sums[:, i]).tolist()
                rows.append(
                    [
                        view.imgsz,
                        branch,
                        size,
                        int(objects),
                        percent(missing / objects) if objects else "",
                        f"{positives / objects:.2f}" if objects else "",
                        f"{overlap / positives:.3f}" if positives else "",
                        percent(one.conflict_share) if size == "all" else "",
                    ]
                )
    header = (
        *("imgsz", "branch", "size", "objects", "without an anchor", "anchors per object", "mean IoU"),
        "contested anchors",
    )
    note = (
        f"One forward of every image by {found.args['model']}, in batches of {found.batch}, without augmentation, and "
        "the assignment of a training step. Contested: selected by two objects or more."
    )
    return Table("Assignment", header, rows, note)


def crowding(found: Findings) -> Table:
    """Return how many objects images have, and how many pairs overlap."""
    many, pairs_, n = numbers.crowding(found.counts), found.pairs, max(1, len(found.labels.cls))
    rows: list[list[Cell]] = [
        ["objects in an image, median", f"{many.median:g}"],
        ["objects in an image, 95 %", f"{many.high:.0f}"],
        ["objects in an image, maximum", many.maximum],
        ["images without an object", many.empty],
        ["pairs of one class in one image", pairs_.pairs],
    ]
    for limit, above, objects in zip(numbers.OVERLAPS, pairs_.above, pairs_.objects):
        rows.append([f"such pairs with IoU above {limit}", percent(above / max(1, pairs_.pairs))])
        rows.append([f"objects in such a pair above {limit}", percent(objects / n)])
    note = "NMS at 0.7, the default of validation, keeps one of two detections of a class that overlap more."
    return Table("Crowding", ("what", "value"), rows, note)


def faults(found: Findings) -> Table:
    """Return the faults of the labels."""
    rows: list[list[Cell]] = [[kind, count] for kind, count in found.faults.items()]
    first = [f"{Path(file).name} ({count} objects): {why}" for file, count, why in found.labels.ignored[:3]]
    return Table("Labels", ("fault", "count"), rows, "Left out: " + "; ".join(first) if first else "")


def classes(found: Findings) -> Table:
    """Return the classes by number of objects."""
    objects, images = found.classes
    first, total = found.views[0], max(1, objects.sum())
    few = np.bincount(found.labels.cls, weights=first.total < FEW, minlength=len(objects))
    missing = None
    if first.main is not None:
        missing = np.bincount(found.labels.cls, weights=first.main.positives == 0, minlength=len(objects))
    rows: list[list[Cell]] = []
    for i in np.argsort(-objects, kind="stable").tolist():
        row: list[Cell] = [i, found.labels.names.get(i, str(i)), int(objects[i]), int(images[i])]
        row += [percent(objects[i] / total), percent(few[i] / objects[i]) if objects[i] else ""]
        row += [] if missing is None else [percent(missing[i] / objects[i]) if objects[i] else ""]
        rows.append(row)
    header = ["class", "name", "objects", "images", "share", f"fewer than {FEW} candidates"]
    header += [] if missing is None else ["without an anchor"]
    note = f"The largest class has {numbers.imbalance(objects):.4g} times as many objects as the smallest that has any."
    return Table("Classes", header, rows, f"{note} Last columns at imgsz {first.imgsz}.")


def costs(found: Findings) -> Table:
    """Return what the loss step needs."""
    rows: list[list[Cell]] = []
    for name, one in zip(("typical", "most crowded"), found.costs):
        time = [f"{one.timed} images: {1000 * s:.0f} ms" if s else "not timed" for s in (one.stock, one.fast)]
        fast = "none for obb" if found.labels.task == "obb" else _bytes(one.sparse)
        rows.append([name, one.images, one.most, _bytes(one.dense), fast, *time])
    header = ("batch", "images", "most objects", "memory of stock", "memory of fast", "time of stock", "time of fast")
    note = (
        f"At imgsz {found.views[0].imgsz}. Memory is estimated from shapes: stock has 13 bytes or more for each "
        "(image, object, anchor), the fast engine 56 for each candidate; both on top of predictions and gradients. "
        "Time is that of one loss step, forward and backward, measured on this machine's CPU; large steps are not "
        "timed. Mosaic puts the objects of four images into one."
    )
    return Table("Need of the loss step", header, rows, note)


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"


def verdict(advice: Sequence[Advice]) -> str:
    """Return the one sentence that a reader takes along."""
    if advice[0].name == "none":
        return f"No threshold is reached: {advice[0].text}."
    more = len(advice) - 1
    rest = f" {more} more {'point' if more == 1 else 'points'} below." if more else ""
    return f"{advice[0].text[:1].upper()}{advice[0].text[1:]}.{rest}"


def headline(found: Findings) -> str:
    """Return what was read."""
    read = found.labels
    there = int((found.classes[0] > 0).sum())
    return (
        f"{len(read.files):,} images, {len(read.cls):,} objects, {there} of {len(read.names)} classes, "
        f"task {read.task}, split {found.args.get('split', 'train')}"
    )


def terminal(found: Findings) -> str:
    """Return the summary for a terminal, at most 80 columns wide."""
    lines = [headline(found), ""]
    for table in (sizes(found), candidates(found)):
        rows = [[str(cell) for cell in row] for row in (table.header, *table.rows)]
        rows = [row[:6] for row in rows]
        lines += [table.title, *_aligned(rows), ""]
    for view in found.views:
        for branch, one in view.assigned.items():
            missing = percent(numbers.share(one.positives == 0))
            lines.append(
                f"imgsz {view.imgsz} {branch}: {missing} of objects without an anchor, "
                f"{one.positives.mean():.1f} anchors each, {percent(one.conflict_share)} contested"
            )
    many = numbers.crowding(found.counts)
    lines.append(f"objects in an image: median {many.median:g}, 95 % {many.high:.0f}, maximum {many.maximum}")
    close = [f"{percent(n / max(1, found.pairs.pairs))} above {x}" for n, x in zip(found.pairs.above, numbers.OVERLAPS)]
    lines.append(f"pairs of one class: {', '.join(close)}")
    lines.append(f"largest class / smallest class: {numbers.imbalance(found.classes[0]):.4g}")
    wrong = [f"{kind}: {count}" for kind, count in found.faults.items() if count]
    lines += [f"labels: {'; '.join(wrong) if wrong else 'no faults'}", ""]
    for piece in advise(found.facts):
        lines += [f"* {piece.text}", f"  {piece.command}"]
    return "\n".join(part for line in lines for part in _wrapped(line))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]


def _wrapped(line: str) -> list[str]:
    """Return a line broken at spaces; commands stay whole, so that they can be pasted."""
    if line.startswith("  lossplug ") or len(line) <= WIDTH:
        return [line]
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def write_classes(found: Findings, file: Path) -> Path:
    """Write classes.csv."""
    table = classes(found)
    return charts.save_table([dict(zip(table.header, row)) for row in table.rows], file, table.header)


def draw(found: Findings, directory: Path, limit: int) -> list[tuple[Path, str, str]]:
    """Draw the pictures; return their files, what they show, and captions."""
    strides = found.views[0].strides
    sides = {view.imgsz: view.sides for view in found.views}
    made = [
        (
            draw_sizes(sides, strides, directory / "sizes.png"),
            "histogram of the sizes of objects, with the strides of the levels",
            "Objects left of the first stride fit into one cell of the finest level.",
        ),
        (
            draw_candidates(
                sides,
                {view.imgsz: view.candidates for view in found.views},
                strides,
                found.topk,
                directory / "candidates.png",
            ),
            "mean number of candidate anchors by size of the object and level",
            f"Last line: share of objects with fewer than {found.topk} candidates, which the assigner asks for.",
        ),
    ]
    panels = [panel for panel in (_panel(found, found.views[0], *one) for one in _chosen(found, limit)) if panel]
    if panels:
        caption = "Images of most interest, as the network sees them. Dots are centres of anchors, coloured by level."
        made.append(
            (draw_images(panels, strides, directory / "images.png"), "images with their objects and anchors", caption)
        )
    return made


def _chosen(found: Findings, limit: int) -> list[tuple[int, str]]:
    view = found.views[0]
    scores = reasons(found, view)
    if view.main is not None:
        is_kept = np.zeros(len(found.counts), bool)
        is_kept[list(view.main.kept)] = True
        scores = {reason: np.where(is_kept, values, 0.0) for reason, values in scores.items()}
    return [(image, _title(scores, image, reason, found)) for image, reason in numbers.telling(scores, limit)]


def _title(scores: dict[str, np.ndarray], image: int, reason: str, found: Findings) -> str:
    count = int(found.counts[image])
    value = scores[reason][image]
    if reason == "smallest object":
        return f"smallest object: side of {1 / value:.1f}, {count} objects"
    text = f"{value:.0f} {reason}" if reason.split()[0] in ("objects", "anchors", "overlapping") else reason
    return f"{text}, {count} objects" if not reason.startswith("objects") else f"{value:.0f} of {count} {reason}"


def _panel(found: Findings, view: View, image: int, title: str) -> Optional[Panel]:
    pixels = pixels_of(found.labels, view.imgsz, image)
    if pixels is None:
        return None
    points, level = points_of(view.imgsz, view.strides)
    shown = shown_part(found.labels, view.imgsz, image)
    if view.main is not None:
        one: AssignedObjects = view.main.kept[image]
        anchors = one.candidates.any(0).nonzero()[0]
        return Panel(
            pixels,
            shown,
            title,
            corners_of(one.boxes),
            one.positives > 0,
            anchors,
            (one.owner >= 0).nonzero()[0],
            points,
            level,
        )
    rows = found.labels.image == image
    boxes = view.boxes[rows]
    _, anchors = candidate_pairs(boxes, view.imgsz, view.strides, found.assigner())
    nothing = np.zeros(0, np.int64)
    return Panel(pixels, shown, title, corners_of(boxes), view.total[rows] > 0, anchors, nothing, points, level)


def write(found: Findings, pictures: Iterable[tuple[Path, str, str]], directory: Path, command: str) -> None:
    """Write summary.md and report.html."""
    advice, pictures = advise(found.facts), list(pictures)
    facts = f"{headline(found)}. {date.today().isoformat()}, ultralytics {VERSION}."
    _write_markdown(found, advice, pictures, directory, command, facts)
    _write_page(found, advice, pictures, directory, command, facts)


def _write_markdown(
    found: Findings,
    advice: Sequence[Advice],
    pictures: Sequence[tuple[Path, str, str]],
    directory: Path,
    command: str,
    facts: str,
) -> None:
    lines = [
        f"# {found.facts.data}, inspected",
        "",
        facts,
        "",
        f"**{verdict(advice)}**",
        "",
        "## Worth a comparison",
        "",
    ]
    for one in advice:
        lines += [f"- {one.text} ({one.source})", "", f"      {one.command}", ""]
    for table in tables(found):
        lines += [f"## {table.title}", "", *_markdown(table), "", *([table.note, ""] if table.note else [])]
    for file, alt, caption in pictures:
        lines += [f"![{alt}]({file.name})", "", caption, ""]
    write_text(directory / "summary.md", "\n".join([*lines, "```", command, "```", ""]))


def _markdown(table: Table) -> list[str]:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


def _write_page(
    found: Findings,
    advice: Sequence[Advice],
    pictures: Sequence[tuple[Path, str, str]],
    directory: Path,
    command: str,
    facts: str,
) -> None:
    page = Page(f"{found.facts.data}, inspected", headline(found), command)
    page.foot(facts)
    page.verdict(verdict(advice))
    page.section("Worth a comparison")
    for one in advice:
        page.text(f"{one.text[:1].upper()}{one.text[1:]}. Source: {one.source}.")
        page.code(one.command)
    page.section("Pictures")
    for file, alt, caption in pictures:
        page.picture(file, alt, caption)
    for table in tables(found):
        page.section(table.title)
        if table.note:
            page.text(table.note)
        page.table(table.header, table.rows)
    page.write(directory / "report.html")


def command_line(args: dict[str, Any]) -> str:
    """Return the command again."""
    values = {key: ",".join(map(str, v)) if isinstance(v, (list, tuple)) else v for key, v in args.items()}
    return " ".join(["lossplug inspect", *(f"{key}={value}" for key, value in values.items())])
