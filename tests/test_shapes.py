# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded dataset."""

import concurrent.futures

import cv2
import numpy as np
import pytest
import yaml

from tests.runs import ROOT
from yolo_lossplug.shapes import CLASSES, draw, write


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_files_every_time_and_labels_that_fit(tmp_path):
    first, second = (write(tmp_path / name, images=10, validation=3) for name in ("a", "b"))
    assert files(first) == files(second)
    assert files(write(tmp_path / "c", images=10, validation=3, seed=1)) != files(first)
    assert len(list((first / "images" / "train").iterdir())) == 7
    counts = set()
    for label in (first / "labels").rglob("*.txt"):
        rows = np.atleast_2d(np.loadtxt(label))
        counts.add(len(rows))
        assert set(rows[:, 0]) <= set(range(len(CLASSES)))
        low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
        assert low.min() >= -1e-6 and high.max() <= 1 + 1e-6 and rows[:, 3:].min() > 0
        image = cv2.imread(str(label).replace("labels", "images").replace(".txt", ".png"))
        assert image.shape == (160, 160, 3)
    assert min(counts) >= 1 and max(counts) <= 12 and len(counts) > 2


def test_boxes_are_those_of_the_drawn_objects():
    """The pixels of an object differ from the background inside its box, up to the very edge."""
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(30):
        image, rows = draw(rng, 160)
        if len(rows) != 1:
            continue
        _, x, y, w, h = np.array(rows[0]) * 160
        inside = np.zeros((160, 160), bool)
        inside[round(y - h / 2) : round(y + h / 2), round(x - w / 2) : round(x + w / 2)] = True
        away = np.abs(image.astype(float) - 128).max(-1) > 70  # the background stays within 90 and 165
        found += away.any()
        assert not (cv2.erode(away.astype(np.uint8), np.ones((3, 3))) & ~inside).any()
    assert found


def test_written_once_by_many_at_once(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: write(tmp_path / "data", images=6, validation=2), range(4)))
    assert len(list((folders[0] / "images" / "val").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["data"], "unfinished folders are left"


def test_an_empty_folder_in_the_way(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "note.txt").write_text("mine")
    write(tmp_path / "data", images=6, validation=2)
    assert (tmp_path / "data" / "note.txt").read_text() == "mine"
    assert len(list((tmp_path / "data" / "images" / "train").iterdir())) == 4


def test_corners_are_those_of_the_drawn_objects():
    rng = np.random.default_rng(5)
    for _ in range(20):
        image, rows = draw(rng, 160, "obb")
        assert {len(row) for row in rows} == {9}
        inside = np.zeros((160, 160), np.uint8)
        for row in rows:
            cv2.fillPoly(inside, [np.round(np.reshape(row[1:], (4, 2)) * 160).astype(np.int32)], 1)
        away = np.abs(image.astype(float) - 128).max(-1) > 70
        assert not (cv2.erode(away.astype(np.uint8), np.ones((3, 3))) & ~cv2.dilate(inside, np.ones((5, 5)))).any()


def test_outlines_are_those_of_what_is_visible():
    """Nearly all pixels inside an outline are those of objects, and nearly all of these are inside one."""
    shares, missed = [], []
    rng = np.random.default_rng(6)
    for _ in range(20):
        image, rows = draw(rng, 160, "segment")
        inside = np.zeros((160, 160), np.uint8)
        for row in rows:
            outline = np.reshape(row[1:], (-1, 2)) * 160 - 0.5
            assert len(outline) >= 3 and outline.min() >= 0 and outline.max() <= 159
            piece = cv2.fillPoly(np.zeros((160, 160), np.uint8), [np.round(outline).astype(np.int32)], 1)
            inside |= piece
        away = np.abs(image.astype(float) - 128).max(-1) > 70
        shares.append(away[inside.astype(bool)].mean())
        missed.append((cv2.erode(away.astype(np.uint8), np.ones((3, 3))) & ~cv2.dilate(inside, np.ones((3, 3)))).mean())
    assert np.mean(shares) > 0.8  # some colours are as grey as the background
    assert np.mean(missed) < 0.005 and np.median(missed) == 0  # pieces of objects that others part


def test_points_are_on_the_objects_and_know_what_hides_them():
    rng = np.random.default_rng(7)
    hidden = 0
    for _ in range(30):
        _, rows = draw(rng, 160, "pose")
        for row in rows:
            _, x, y, w, h = row[:5]
            points = np.reshape(row[5:], (4, 3))
            assert set(points[:, 2]) <= {1, 2}
            top, right, bottom, left = points[:, :2]
            assert (top[1], bottom[1]) == pytest.approx((y - h / 2, y + h / 2), abs=2 / 160)
            assert top[0] == pytest.approx(bottom[0]) and right[1] == pytest.approx(left[1])
            assert left[0] < x < right[0] and right[0] - left[0] <= w + 2 / 160
            hidden += (points[:, 2] == 1).sum()
    assert 5 < hidden < 200


def test_tasks_draw_the_same_images():
    images = [draw(np.random.default_rng(8), 96, task)[0] for task in ("detect", "segment", "pose")]
    assert (images[0] == images[1]).all() and (images[0] == images[2]).all()


def test_an_unknown_task(tmp_path):
    with pytest.raises(ValueError, match="task=depth has no drawn dataset. Known: detect, segment, pose, obb"):
        write(tmp_path / "data", task="depth")


@pytest.mark.parametrize("name", ["shapes128", "shapes128-obb", "shapes128-seg", "shapes128-pose"])
def test_dataset_file(name):
    """Ultralytics writes the dataset through the file's own script, on first use."""
    from ultralytics.data.utils import check_det_dataset

    file = ROOT / "configs" / "data" / f"{name}.yaml"
    found = check_det_dataset(str(file))
    assert tuple(yaml.safe_load(file.read_text())["names"].values()) == CLASSES
    assert found["nc"] == 3
    from pathlib import Path

    assert len(list(Path(found["train"]).iterdir())) == 96
    assert len(list(Path(found["val"]).iterdir())) == 32
