# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where two losses differ: images with most different hits, misses and false alarms at IoU 0.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from matplotlib.figure import Figure

from yolo_lossplug import charts
from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.tools.compare.jobs import FINISHED, Job

DETECTIONS = "detections.json"
MATCH_IOU = 0.5
MIN_SCORE = 0.01
KINDS = {
    "hits": ("hits", "#56b4e9", "-"),
    "misses": ("misses", "#f0e442", ":"),
    "alarms": ("false alarms", "#ff6a00", "--"),
}
"""Names, colours and line styles of boxes."""


def save_detections(images: Sequence[Mapping[str, Any]], names: Mapping[int, str], file: Path) -> None:
    """Write what a validation has found, judged at the score with the best F1 of this run.

    A common score would be unfair: losses of the class term shift the scores of all detections.
    """
    if images and images[0]["gt_boxes"].shape[-1] == 4:
        score = best_score(images)
        rows = {i["file"]: {**judge(i, score), "shape": i["shape"], "pad": i["pad"]} for i in images}
        write_json(file, {"score": score, "names": names, "images": rows}, indent=None)


def best_score(images: Sequence[Mapping[str, Any]]) -> float:
    """Return the score from which detections have the highest F1 at IoU 0.5, at least 0.01."""
    pairs = [(image["scores"], matches(image)[0]) for image in images]
    scores, hits = (np.concatenate(values) for values in zip(*pairs))
    order = np.argsort(-scores, kind="stable")
    count = sum(len(image["gt_classes"]) for image in images)
    f1 = 2 * hits[order].cumsum() / (np.arange(1, len(order) + 1) + max(count, 1))
    return max(MIN_SCORE, float(scores[order][f1.argmax()])) if len(f1) else MIN_SCORE


def matches(image: Mapping[str, Any], min_score: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return which detections (d,) hit an object of their class at IoU 0.5, and which objects (g,) are hit."""
    hits, is_hit = np.zeros(len(image["scores"]), bool), np.zeros(len(image["gt_classes"]), bool)
    for d in np.argsort(-image["scores"], kind="stable"):
        if image["scores"][d] < min_score or not len(is_hit):
            continue
        iou = np.where(~is_hit & (image["gt_classes"] == image["classes"][d]), image["iou"][d], 0.0)
        hits[d] = iou.max() >= MATCH_IOU
        is_hit[iou.argmax()] |= hits[d]
    return hits, is_hit


def judge(image: Mapping[str, Any], score: float) -> dict[str, Any]:
    """Return the boxes that hit, the objects that are missed, and the boxes that are false alarms, from a score on."""
    hits, is_hit = matches(image, score)
    alarms = ~hits & (image["scores"] >= score)
    kinds = {"hits": image["boxes"][hits], "misses": image["gt_boxes"][~is_hit], "alarms": image["boxes"][alarms]}
    boxes = {kind: np.round(boxes, 1).tolist() for kind, boxes in kinds.items()}
    return {**boxes, "is_hit": is_hit.tolist()}


def most_different(run: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the files of the images in which two runs differ most, objects hit by one alone and false alarms."""

    def distance(file: str) -> int:
        a, b = run["images"][file], other["images"][file]
        return int(np.sum(np.not_equal(a["is_hit"], b["is_hit"]))) + abs(len(a["alarms"]) - len(b["alarms"]))

    distances = {file: distance(file) for file in run["images"] if file in other["images"]}
    return [file for file in sorted(distances, key=lambda file: -distances[file]) if distances[file]][:12]


class DetectionPair(NamedTuple):
    """Files with detections of two runs of one seed, of the baseline's and of that of an arm."""

    arm: str
    seed: int
    of_baseline: Path
    of_arm: Path

    def file(self, directory: Path) -> Path:
        """Return the picture of the images in which they differ most, in the folder of a comparison."""
        return directory / f"differ-{self.of_arm.parent.name}.png"


def detection_pairs(jobs: Sequence[Job]) -> list[DetectionPair]:
    """Return the runs of each arm and of the baseline at the first seed for which both have detections."""
    files = {(job.arm, job.seed): job.folder / DETECTIONS for job in jobs if job.state == FINISHED}
    found, baseline = {key: file for key, file in files.items() if file.is_file()}, jobs[0].arm
    pairs = dict[str, DetectionPair]()
    for arm, seed in found:
        if arm != baseline and (baseline, seed) in found:
            pairs.setdefault(arm, DetectionPair(arm, seed, found[baseline, seed], found[arm, seed]))
    return [*pairs.values()]


def draw_differing(pair: DetectionPair, baseline: str, directory: Path) -> Optional[Figure]:
    """Draw the images in which two runs differ most, and write what differs beside the picture; None if nothing does.

    Raises:
        OSError: If an image of the data is gone.
    """
    names, runs = (baseline, pair.arm), [read_json(file) for file in (pair.of_baseline, pair.of_arm)]
    files = most_different(*runs)
    if not files:
        return None
    rows = [{"file": Path(file).name, **{n: run["images"][file] for n, run in zip(names, runs)}} for file in files]
    about = {"iou": MATCH_IOU, "scores": {name: run["score"] for name, run in zip(names, runs)}, "images": rows}
    figure = _draw(files, runs, names)
    write_json(pair.file(directory).with_suffix(".json"), about, indent=None)
    return figure


def _draw(files: Sequence[str], runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Draw images side by side, two pairs in a row, each with the boxes of both runs."""
    from matplotlib.patches import Patch
    from PIL import Image as Picture

    rows = -(-len(files) // 2)
    figure, axes = charts.figure(rows, 4, 2.8, 2.9)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, name in enumerate(files):
        for k, run in enumerate(runs):
            axis, found = axes.flat[2 * i + k], run["images"][name]
            with Picture.open(name) as picture:
                _show(axis, picture.convert("RGB"), found)
            counts = " · ".join(f"{word} {len(found[kind])}" for kind, (word, *_) in KINDS.items())
            axis.set_title(f"{names[k]}\n{counts}", fontsize=7)
    handles = [Patch(**_style(kind), label=word) for kind, (word, *_) in KINDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _show(axis: Any, picture: Any, found: Mapping[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    (height, width), (x, y) = found["shape"], found["pad"]
    axis.imshow(picture, extent=(x, width - x, height - y, y))
    for kind in KINDS:
        for left, top, right, bottom in found[kind]:
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, **_style(kind)))
    axis.set(xlim=(x, width - x), ylim=(height - y, y))


def _style(kind: str) -> dict[str, Any]:
    """Return how boxes of a kind are drawn, with a black outline that shows them on bright images."""
    from matplotlib.patheffects import withStroke

    _, colour, dashes = KINDS[kind]
    outline = [withStroke(linewidth=2.6, foreground="#000000")]
    return {"fill": False, "path_effects": outline, "edgecolor": colour, "linestyle": dashes, "linewidth": 1.4}
