# SPDX-License-Identifier: AGPL-3.0-or-later
"""Labels of a dataset, read by Ultralytics' own loader, and their boxes in the network's input."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import LetterBox
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import img2label_paths
from ultralytics.utils import LOGGER
from ultralytics.utils.instance import Instances
from ultralytics.utils.patches import imread

from yolo_lossplug.regions import KEY
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import TASKS
from yolo_lossplug.selection.regions import ANNOTATED, IGNORE, as_list
from yolo_lossplug.ultralytics_hook.console import explained
from yolo_lossplug.ultralytics_hook.host import dataset_of
from yolo_lossplug.ultralytics_hook.regions.data import files_of_entry
from yolo_lossplug.ultralytics_hook.regions.share import regions_of_label, silenced_share

DUPLICATES = re.compile(r"(\d+) duplicate labels removed")
IGNORED = re.compile(r"(?:WARNING[^/\w]*)?(?P<file>.*?): ignoring corrupt image/label: (?P<reason>.*)", re.DOTALL)
NOTHING = np.zeros(0)
OUTLINES = {"segment": "the outline of an object", "obb": "four corners"}
"""What labels of a task have beside boxes."""


class Labels(NamedTuple):
    """Labels of n images with G objects.

    Attributes:
        files: Images that the loader accepts (n).
        shapes: Height and width of each image in pixels (n, 2).
        names: Names of the classes by index.
        task: ``detect``, ``segment``, ``pose`` or ``obb``.
        image: Image of each object (G,), ascending.
        cls: Class of each object (G,).
        boxes: Centre x, centre y, width, height (G, 4) as shares of the image, float32.
        polygons: Outline (k, 2) of each rotated object as shares of the image; empty for other tasks.
        removed: Duplicates that the loader has removed.
        ignored: Images that the loader leaves out: file, objects in its label file, reason.
        silenced: Share of the anchors that regions silence, by class (classes,); empty without regions.
        visible: Visible keypoints of each object (G,); empty for other tasks.
        regions: Corners (R, 4, 2) of the upright regions of each image (n), as shares of it; empty without regions.
        entries: Entries of the split (E) where there are several, without a word on what they annotate.
        entry: The entry of each image (n,).
    """

    files: list[str]
    shapes: np.ndarray
    names: dict[int, str]
    task: str
    image: np.ndarray
    cls: np.ndarray
    boxes: np.ndarray
    polygons: list[np.ndarray]
    removed: int
    ignored: list[tuple[str, int, str]]
    silenced: np.ndarray = NOTHING
    visible: np.ndarray = NOTHING
    regions: Sequence[np.ndarray] = ()
    entries: Sequence[str] = ()
    entry: np.ndarray = NOTHING

    @property
    def sides(self) -> np.ndarray:
        """Width and height of each object in pixels of its image (G, 2); of a rotated one along its own axes."""
        if self.polygons:
            return self._rectangles(self.shapes[:, ::-1].astype(np.float32), np.zeros((len(self.files), 2)))[:, 2:4]
        return self.boxes[:, 2:] * self.shapes[self.image, ::-1]

    def at(self, imgsz: int) -> np.ndarray:
        """Return the boxes as the criterion sees them without augmentation, in pixels of an input of imgsz × imgsz.

        Operations and their order are those of the host's letterbox and criterion, in float32.

        Args:
            imgsz: Side of the network's input in pixels.

        Returns:
            Boxes (G, 4), x1 y1 x2 y2; for rotated ones (G, 5), centre x, centre y, width, height, angle in radians.
        """
        resized, padding = letterbox(self.shapes, imgsz)
        if not shifts_whole_pixels():
            padding = (imgsz - resized) / 2
        if self.polygons:
            return self._rectangles(resized, padding)
        scale, shift = resized[self.image].astype(np.float32), padding[self.image].astype(np.float32)
        half = self.boxes[:, 2:] / 2
        corners = np.concatenate((self.boxes[:, :2] - half, self.boxes[:, :2] + half), 1)
        corners = corners * np.tile(scale, 2) + np.tile(shift, 2)
        centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        side = np.float32(imgsz)
        centre, half = centre / side * side, size / side * side / 2
        return np.concatenate((centre - half, centre + half), 1).astype(np.float32)

    def _rectangles(self, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Return the smallest rotated rectangles (G, 5) of the outlines in pixels."""
        rows = np.zeros((len(self.polygons), 5), np.float32)
        for row, polygon, image in zip(rows, self.polygons, self.image.tolist()):
            points = (polygon * scale[image] + shift[image]).astype(np.float32)
            (x, y), (width, height), degrees = cv2.minAreaRect(points)
            row[:] = x, y, width, height, np.radians(degrees)
        return rows


def letterbox(shapes: np.ndarray, imgsz: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how the host fits images into a square: width and height (n, 2) there, and padding left and above (n, 2).

    Args:
        shapes: Height and width of the images (n, 2).
        imgsz: Side of the square.
    """
    ratio = imgsz / shapes.max(1)
    size = np.minimum(np.ceil(shapes[:, ::-1] * ratio[:, None]), imgsz)
    return size, np.round((imgsz - size) / 2 - 0.1)


@functools.cache
def shifts_whole_pixels() -> bool:
    """Return whether the host's letterbox shifts boxes as it shifts images; older releases add halves of pixels."""
    instances = Instances(
        np.zeros((1, 4), np.float32), np.zeros((0, 1000, 2), np.float32), bbox_format="xyxy", normalized=False
    )
    fitted = LetterBox((8, 8), scaleup=False)({"img": np.zeros((8, 7, 3), np.uint8), "instances": instances})
    return float(fitted["instances"].bboxes[0, 0]) == 0.0


def read(args: dict[str, Any], task: Optional[str] = None) -> Labels:
    """Return the labels of a dataset, from the host's cache if it is up to date.

    Args:
        args: ``data``, and ``split`` (``train``), ``fraction`` and ``task``, as `yolo train` takes them.
        task: Task of a model; None guesses it from the labels if the arguments do not tell.

    Raises:
        LossPlugError: If there are no images, or no labels.
    """
    data, path = described(args)
    task = args.get("task") or task or ("pose" if data.get("kpt_shape") else None)
    if task == "pose" and data.get("kpt_shape"):
        _check_mirrored(args["data"], data.get("flip_idx") or [], data["kpt_shape"][0])
    said: list[str] = []
    with _listening(said):
        try:
            host = dataset(data, path, {**args, "task": "pose" if task == "pose" else "detect"}, 640)
        except LossPlugError as error:
            _, ignored = _dropped(said)
            if not ignored:
                raise
            file, _, why = ignored[0]
            raise LossPlugError(
                f"data={args['data']} has no image that the loader accepts, {file} for example: {why}"
            ) from error
    return _labels(host, data, task, said, args)


def shown_part(read: Labels, imgsz: int, image: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom, in pixels of the input, of what is no padding of an image."""
    size, padding = letterbox(read.shapes[image : image + 1], imgsz)
    left, top, right, bottom = np.concatenate((padding[0], padding[0] + size[0])).tolist()
    return left, top, right, bottom


def dataset(data: dict[str, Any], path: Any, args: dict[str, Any], imgsz: int) -> YOLODataset:
    """Return the host's dataset without augmentation.

    Raises:
        LossPlugError: If it has no image that can be read.
    """
    task = args.get("task") or "detect"
    with explained(f"data={args['data']} cannot be read"):
        rules = {key: args[key] for key in (IGNORE, ANNOTATED) if key in args}
        about = {"hyp": get_cfg(overrides={"task": task, **rules}), "fraction": args.get("fraction", 1.0)}
        return YOLODataset(img_path=path, imgsz=imgsz, augment=False, data=data, task=task, **about)


def pixels_of(read: Labels, imgsz: int, image: int) -> Optional[np.ndarray]:
    """Return an image as the network sees it (imgsz, imgsz, 3), RGB, uint8; None if it cannot be read."""
    file = Path(read.files[image])
    try:
        pixels = imread(str(file), cv2.IMREAD_COLOR)
    except Exception:  # of a codec
        pixels = None
    if pixels is None:
        return None
    size, padding = (values[0].astype(int) for values in letterbox(read.shapes[image : image + 1], imgsz))
    whole = np.full((imgsz, imgsz, 3), 114, np.uint8)
    rows, columns = (slice(start, start + length) for start, length in zip(padding[::-1], size[::-1]))
    whole[rows, columns] = cv2.resize(pixels, tuple(size.tolist()), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    return whole


def described(args: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the description of a dataset, and where the images of the split are.

    Raises:
        LossPlugError: If there is no such data, or it lacks the split.
    """
    split, data = str(args.get("split", "train")), dataset_of(args)
    if not data.get(split):
        there = ", ".join(name for name in ("train", "val", "test") if data.get(name))
        raise LossPlugError(f"split={split}: {args['data']} has no such images; it has {there}.")
    return data, data[split]


def _check_mirrored(name: Any, mirrored: Sequence[int], count: int) -> None:
    """Refuse a `flip_idx` that a training refuses, or fails with."""
    if mirrored and not (len(mirrored) == count and {*mirrored} <= {*range(count)}):
        raise LossPlugError(
            f"data={name} has flip_idx={mirrored}; for each of the {count} keypoints of kpt_shape it must have the "
            f"index of the one on the other side, 0 to {count - 1}. A training refuses it."
        )


@contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Keep what the loader says of single images from the terminal, and collect it."""

    def collect(record: logging.LogRecord) -> bool:
        lines = record.getMessage()
        is_about_labels = bool(DUPLICATES.search(lines) or IGNORED.search(lines))
        if is_about_labels:
            said.append(lines)
        return not is_about_labels

    LOGGER.addFilter(collect)
    try:
        yield
    finally:
        LOGGER.removeFilter(collect)


def _labels(host: YOLODataset, data: dict[str, Any], task: Optional[str], said: list[str], args: dict) -> Labels:
    rows, columns = _objects(host), itemgetter("im_file", "shape", "cls", "bboxes", "segments")
    files, shapes, classes, boxes, outlines = zip(*map(columns, rows))
    counts = [*map(len, classes)]
    removed, ignored = _dropped(said)
    if not sum(counts):
        lost = f"; {len(ignored)} images are left out: {ignored[0][2]}" if ignored else ""
        raise LossPlugError(
            f"data={args['data']} has no labels in {len(files)} images of split={args.get('split', 'train')}{lost}. "
            f"Labels are expected in {Path(img2label_paths([files[0]])[0]).parent}."
        )
    polygons = [*chain(*outlines)]
    task = task or _guess(polygons, sum(counts))
    _check_task(task, args["data"], files if len(polygons) != sum(counts) else [])
    silenced, regions = _regions(host)
    return Labels(
        [*files],
        np.array(shapes, dtype=np.float64),
        dict(data["names"]),
        task,
        np.repeat(np.arange(len(files)), counts),
        np.concatenate(classes).reshape(-1).astype(np.int64),
        np.concatenate(boxes).reshape(-1, 4).astype(np.float32),
        polygons if task == "obb" else [],
        removed,
        ignored,
        silenced,
        (np.concatenate([*map(itemgetter("keypoints"), rows)])[..., 2] > 0).sum(1) if task == "pose" else NOTHING,
        regions,
        *_entries(host, [*files], data[str(args.get("split", "train"))]),
    )


def _regions(host: YOLODataset) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """Return the silenced share by class, and the regions of each image."""
    if not hasattr(host, KEY):
        return NOTHING, ()
    return silenced_share(host), [regions_of_label(host.lossplug, label).corners for label in host.labels]


def _entries(host: YOLODataset, files: list[str], path: Any) -> tuple[Sequence[str], np.ndarray]:
    """Return the entries of a split, and that of each image; none where there is one, or what they annotate is said."""
    entries = as_list(path)
    if len(entries) == 1 or (hasattr(host, KEY) and host.lossplug.rules.entries):
        return (), NOTHING
    of_file = {file: i for i, entry in enumerate(entries) for file in files_of_entry(entry)}
    return [*map(str, entries)], np.array([of_file.get(file, 0) for file in files])


def _check_task(task: str, data: Any, files: Sequence[str]) -> None:
    """Refuse a task without boxes, and labels that a training of it refuses; `files` are images without outlines."""
    if task not in TASKS:
        raise LossPlugError(f"task={task} has no boxes to inspect; give {', '.join(TASKS)}.")
    if task in OUTLINES and files:
        raise LossPlugError(
            f"data={data} has boxes of four numbers, in {_file_of_boxes(files)} for example. A training with "
            f"task={task} refuses them: it takes {OUTLINES[task]} on every line."
        )


def _objects(host: YOLODataset) -> list[dict[str, Any]]:
    """Return the labels of a dataset without its regions."""
    if not hasattr(host, KEY):
        return host.labels
    rows = []
    for row in host.labels:
        kept = ~np.isin(row["cls"].reshape(-1), list(host.lossplug.rules.kinds))
        outlines = [one for one, is_kept in zip(row["segments"], kept) if is_kept]
        others = {key: row[key][kept] for key in ("cls", "bboxes", "keypoints") if row[key] is not None}
        rows.append({**row, **others, "segments": outlines})
    return rows


def _guess(polygons: list[np.ndarray], count: int) -> str:
    """Return the task of labels: outlines of four corners, one for each object, are rotated boxes."""
    if len(polygons) != count:
        return "detect"
    return "obb" if all(len(polygon) == 4 for polygon in polygons) else "segment"


def _dropped(said: list[str]) -> tuple[int, list[tuple[str, int, str]]]:
    """Return the number of removed duplicates, and the images left out, from what the loader has said."""
    lines = list(dict.fromkeys(line for text in said for line in re.split(r"\n(?=\S)", text)))
    removed = sum(int(match.group(1)) for line in lines if (match := DUPLICATES.search(line)))
    found = [match for line in lines if (match := IGNORED.match(line))]
    return removed, [(m["file"], _n_lines(m["file"]), " ".join(m["reason"].split())) for m in found]


def _n_lines(image: str) -> int:
    return len(_lines(Path(img2label_paths([image])[0])))


def _file_of_boxes(images: Sequence[str]) -> Path:
    """Return the first file of labels that has a line of a class and four numbers."""
    files = [Path(name) for name in img2label_paths([*images])]
    return next((file for file in files if any(len(line.split()) == 5 for line in _lines(file))), files[0].parent)


def _lines(file: Path) -> list[str]:
    """Return the lines of a file that hold anything; none if it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
