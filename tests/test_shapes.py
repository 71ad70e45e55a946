# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded dataset."""

import concurrent.futures
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from ultralytics.data.utils import check_det_dataset

from tests.runs import ROOT, slow
from yolo_lossplug.shapes import CLASSES, SCENES, SHAPE_TASKS, draw_shapes, write_shapes


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_files_every_time_and_labels_that_fit(tmp_path):
    first, second = (write_shapes(tmp_path / name, images=10, validation=3) for name in ("a", "b"))
    assert files(first) == files(second)
    assert files(write_shapes(tmp_path / "c", images=10, validation=3, seed=1)) != files(first)
    assert len(list((first / "images" / "train").iterdir())) == 7
    counts = set()
    for label in (first / "labels").rglob("*.txt"):
        rows = rows_of(label)
        counts.add(len(rows))
        assert set(rows[:, 0]) <= set(range(len(CLASSES)))
        low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
        assert low.min() >= -1e-6 and high.max() <= 1 + 1e-6 and rows[:, 3:].min() > 0
        image = cv2.imread(str(label).replace("labels", "images").replace(".txt", ".png"))
        assert image.shape == (160, 160, 3)
    assert min(counts) >= 1 and max(counts) <= 12 and len(counts) > 2


@pytest.mark.parametrize(
    ("task", "expected"),
    list(zip(SHAPE_TASKS, ("22b71cce25db2dc9", "d2d59ea9f0348770", "f59cfe22b88514c4", "a64db95c0fa55bb7"))),
)
def test_the_plain_files_stay_what_they_were(tmp_path, task, expected):
    """Pixels and labels of the first version, so that numbers of then and now are of the same data."""
    folder = write_shapes(tmp_path / "data", images=6, validation=2, task=task)
    digest = hashlib.sha256()
    for name, content in files(folder).items():
        digest.update(name.encode())
        digest.update(cv2.imread(str(folder / name)).tobytes() if name.endswith(".png") else content)
    assert digest.hexdigest()[:16] == expected


def rows_of(file):
    return np.array([line.split() for line in file.read_text().splitlines()], float).reshape(-1, 5)


def boxes_of(folder, split):
    """Labels of the images of a split, sides in pixels."""
    return [rows_of(file) * (1, 160, 160, 160, 160) for file in sorted((folder / "labels" / split).iterdir())]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with 40 images of each scene, half of them for validation."""
    place = tmp_path_factory.mktemp("scenes")
    return {name: write_shapes(place / name, images=40, validation=20, scene=name) for name in SCENES}


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_problems_are_like(scenes, split):
    sides = {name: np.concatenate(boxes_of(folder, split))[:, 3:] for name, folder in scenes.items()}
    counts = {name: [len(one) for one in boxes_of(folder, split)] for name, folder in scenes.items()}
    assert sides["tiny"].min() >= 4 and sides["tiny"].max() <= 12.0001
    assert max(counts["tiny"]) <= 12
    assert min(counts["crowds"]) >= 40 and max(counts["crowds"]) <= 120 and np.mean(counts["crowds"]) > 60
    elongation = sides["thin"].max(1) / sides["thin"].min(1)
    assert 7.5 < np.median(elongation) < 9 and elongation.min() > 6
    is_wide = sides["thin"][:, 0] > sides["thin"][:, 1]
    assert 0.3 < is_wide.mean() < 0.7
    assert sides["plain"].min() >= 12 and np.median(elongation_of(sides["plain"])) < 1.5


def elongation_of(sides):
    return sides.max(1) / sides.min(1)


def test_crowds_overlap_and_a_class_is_rare_in_training_only(scenes):
    hidden = []
    for boxes in boxes_of(scenes["crowds"], "train"):
        low, high = boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2
        shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(0).prod(-1)
        np.fill_diagonal(shared, 0)
        hidden.append((shared > 0).any(1).mean())
    assert np.mean(hidden) > 0.7
    train, val = (np.concatenate(boxes_of(scenes["rare"], split))[:, 0].astype(int) for split in ("train", "val"))
    assert np.bincount(val, minlength=3).min() > 0.2 * len(val)
    labels = [
        row[0]
        for i in range(200)
        for row in draw_shapes(np.random.default_rng((9, i)), 64, scene=SCENES["rare"].train)[1]
    ]
    shares = np.bincount(np.int64(labels), minlength=3) / len(labels)
    assert shares[2] == pytest.approx(1 / 61, abs=0.012) and shares[0] == pytest.approx(30 / 61, abs=0.05)
    assert np.bincount(train, minlength=3)[2] < 0.1 * len(train)


def test_labels_are_wrong_in_training_only(scenes):
    wrong, right = files(scenes["labels"]), files(scenes["plain"])
    differing = {name for name in right if wrong[name] != right[name]}
    assert differing and all(name.startswith("labels") and "train" in name for name in differing)
    given, true = (boxes_of(scenes[name], "train") for name in ("labels", "plain"))
    kept, objects = (sum(map(len, boxes)) for boxes in (given, true))
    assert kept / objects == pytest.approx(0.9, abs=0.08)
    errors = [error for pair in zip(given, true) for error in errors_of(*pair)]
    assert np.abs(errors).max() <= 0.2 + 1e-3
    assert np.std(errors, axis=0) == pytest.approx(np.full(4, 0.2 / np.sqrt(3)), rel=0.2)


def errors_of(given, true):
    """Errors of centre and sides as shares of the side, of boxes that are not cut at the border."""
    for box in given:
        inside = (box[1:3] - box[3:] / 2 > 0.1).all() and (box[1:3] + box[3:] / 2 < 159.9).all()
        fitting = [
            one
            for one in true
            if one[0] == box[0]
            and (np.abs(box[1:3] - one[1:3]) <= 0.2001 * one[3:]).all()
            and (np.abs(box[3:] / one[3:] - 1) <= 0.2001).all()
        ]
        assert fitting or not inside
        if inside and len(fitting) == 1:
            yield [*((box[1:3] - fitting[0][1:3]) / fitting[0][3:]), *(box[3:] / fitting[0][3:] - 1)]


@pytest.mark.parametrize("scene", list(SCENES))
def test_the_same_seed_draws_the_same_scene(scenes, tmp_path, scene):
    first = write_shapes(tmp_path / "first", images=4, validation=2, scene=scene)
    assert files(first) == files(write_shapes(tmp_path / "again", images=4, validation=2, scene=scene))
    assert files(first) != files(write_shapes(tmp_path / "other", images=4, validation=2, scene=scene, seed=1))


def test_an_unknown_scene_or_task(tmp_path):
    for keys, message in (
        ({"scene": "fog"}, "scene=fog is unknown. Known: plain, tiny, crowds, rare, labels, thin"),
        ({"scene": "labels", "task": "obb"}, "scene=labels has wrong labels, which task=obb lacks. Give task=detect"),
        ({"task": "depth"}, "task=depth has no synthetic dataset. Known: detect, segment, pose, obb"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shapes(tmp_path / "data", **keys)
    assert not (tmp_path / "data").exists()


def test_boxes_and_corners_are_those_of_the_drawn_objects():
    """The pixels of an object differ from the background inside its box, up to the very edge."""
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(30):
        image, rows = draw_shapes(rng, 160)
        if len(rows) != 1:
            continue
        _, x, y, w, h = np.array(rows[0]) * 160
        inside = np.zeros((160, 160), bool)
        inside[round(y - h / 2) : round(y + h / 2), round(x - w / 2) : round(x + w / 2)] = True
        away = np.abs(image.astype(float) - 128).max(-1) > 70  # the background stays within 90 and 165
        found += away.any()
        assert not (cv2.erode(away.astype(np.uint8), np.ones((3, 3))) & ~inside).any()
    assert found
    rng = np.random.default_rng(5)
    for _ in range(20):
        image, rows = draw_shapes(rng, 160, "obb")
        assert {len(row) for row in rows} == {9}
        inside = np.zeros((160, 160), np.uint8)
        for row in rows:
            cv2.fillPoly(inside, [np.round(np.reshape(row[1:], (4, 2)) * 160).astype(np.int32)], 1)
        away = np.abs(image.astype(float) - 128).max(-1) > 70
        assert not (cv2.erode(away.astype(np.uint8), np.ones((3, 3))) & ~cv2.dilate(inside, np.ones((5, 5)))).any()


def test_written_once_by_many_at_once(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: write_shapes(tmp_path / "data", images=6, validation=2), range(4)))
    assert len(list((folders[0] / "images" / "val").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["data"], "unfinished folders are left"


def test_an_empty_folder_in_the_way(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "note.txt").write_text("mine")
    write_shapes(tmp_path / "data", images=6, validation=2)
    assert (tmp_path / "data" / "note.txt").read_text() == "mine"
    assert len(list((tmp_path / "data" / "images" / "train").iterdir())) == 4


def test_outlines_are_those_of_what_is_visible():
    """Nearly all pixels inside an outline are those of objects, and nearly all of these are inside one."""
    shares, missed = [], []
    rng = np.random.default_rng(6)
    for _ in range(20):
        image, rows = draw_shapes(rng, 160, "segment")
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


def test_points_are_on_the_objects_of_the_same_images():
    rng = np.random.default_rng(7)
    hidden = 0
    for _ in range(30):
        _, rows = draw_shapes(rng, 160, "pose")
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
    images = [draw_shapes(np.random.default_rng(8), 96, task)[0] for task in ("detect", "segment", "pose")]
    assert (images[0] == images[1]).all() and (images[0] == images[2]).all()


@pytest.mark.parametrize(("name", "validation"), [("shapes128", 32), slow("shapes-thin", 64)])
def test_dataset_file(name, validation):
    """Ultralytics writes the dataset through the file's own script, on first use."""
    files = ROOT / "configs" / "data"
    found = check_det_dataset(str(files / f"{name}.yaml"))
    for file in files.glob("shapes*.yaml"):
        assert tuple(yaml.safe_load(file.read_text())["names"].values())[:3] == CLASSES
    assert found["nc"] == 3 and len(list(Path(found["train"]).iterdir())) == 96
    assert len(list(Path(found["val"]).iterdir())) == validation


def test_data_that_are_labelled_in_part(tmp_path):
    """Halves know some classes alone; a region stands for the objects of a quarter; validation knows all."""
    from yolo_lossplug.partly import KNOWN, REGION, write_partly

    parts = write_partly(tmp_path / "parts", "parts", images=12, size=96, validation=4)
    whole = {file.stem: rows_of(file) for file in (parts / "labels" / "train").iterdir()}
    seen = {}
    for half, classes in zip(("first", "second"), KNOWN):
        for file in (parts / half / "labels").iterdir():
            seen[file.stem] = rows_of(file)
            assert np.array_equal(seen[file.stem], whole[file.stem][np.isin(whole[file.stem][:, 0], classes)])
            assert (parts / half / "images" / f"{file.stem}.png").is_file()
    assert seen.keys() == whole.keys()
    ignored = write_partly(tmp_path / "ignored", "ignored", images=12, size=96, validation=4)
    regions = 0
    for file in (ignored / "ignored" / "labels").iterdir():
        rows = rows_of(file)
        before, region = whole[file.stem], rows[rows[:, 0] == REGION]
        kept = {tuple(row) for row in rows[rows[:, 0] != REGION].tolist()}
        hidden = np.array([row for row in before.tolist() if tuple(row) not in kept]).reshape(-1, 5)
        assert len(region) == bool(len(hidden)) and len(kept) + len(hidden) == len(before)
        if len(hidden):
            low, high = (f(hidden[:, 1:3] + s * hidden[:, 3:] / 2, 0) for f, s in ((np.min, -1), (np.max, 1)))
            drawn = np.concatenate((region[0, 1:3] - region[0, 3:] / 2, region[0, 1:3] + region[0, 3:] / 2))
            assert np.allclose(drawn, [*low, *high], atol=2e-6)
        regions += len(region)
    assert regions > 3 and write_partly(ignored, "ignored") == ignored
