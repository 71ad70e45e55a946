# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in the host's dataset: where the augmentation carries them, against the colours of the pixels."""

import random

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.runs import TINY
from yolo_lossplug import LossPlugError

SIZE = 64
RED, GREEN = (0, 0, 255), (0, 255, 0)
"""Of images in which a class is unknown, and of those in which all are annotated."""


def rows_of(task, rng):
    """Return label lines of three objects of class 0 and 1."""
    lines = []
    for cls in (0, 1, 0):
        x, y, w, h = *rng.uniform(0.3, 0.7, 2), *rng.uniform(0.1, 0.4, 2)
        box = [x, y, w, h]
        corners = [x - w / 2, y - h / 2, x + w / 2, y - h / 2, x + w / 2, y + h / 2, x - w / 2, y + h / 2]
        numbers = {"detect": box, "segment": corners, "obb": corners, "pose": [*box, x, y, 2]}[task]
        lines.append(" ".join(map(str, [cls, *numbers])))
    return lines


def folders(path, task="detect", ignored=(), heights=(48, 56)):
    """Write two folders of 4 plain images, and return the description of the data: red ones know class 0 alone."""
    rng = np.random.default_rng(0)
    for name, colour in (("red", RED), ("green", GREEN)):
        for kind in ("images", "labels"):
            (path / name / kind).mkdir(parents=True)
        for i in range(4):
            image = np.full((heights[i % 2], 64, 3), colour, np.uint8)
            cv2.imwrite(str(path / name / "images" / f"{i}.png"), image)
            lines = rows_of(task, rng) if i else []  # one without any object
            (path / name / "labels" / f"{i}.txt").write_text("\n".join([*lines, *ignored]))
    data = {"path": str(path), "train": ["red/images", "green/images"], "val": "green/images"}
    data |= {"names": {0: "a", 1: "b", 2: "crowd"}}
    return data | ({"kpt_shape": [1, 3]} if task == "pose" else {})


def dataset(path, data, task="detect", split="train", **keys):
    """Return the host's dataset, as a training makes it."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    file = path / "data.yaml"
    file.write_text(yaml.safe_dump(data))
    plain = {"degrees": 0.0, "shear": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "bgr": 0.0, "erasing": 0.0}
    tiny = {key: value for key, value in TINY.items() if key not in ("epochs", "plots")}
    cfg = get_cfg(overrides={**tiny, "task": task, "imgsz": SIZE, **plain, **keys})
    found = check_det_dataset(str(file))
    return build_yolo_dataset(cfg, found[split], 4, found, mode=split)


def silenced(sample, cls):
    """Return at which pixels a class is silenced (h, w)."""
    from yolo_lossplug.regions import silenced_cells

    size = tuple(sample["img"].shape[1:])
    return silenced_cells([sample["lossplug"]], size, [size], torch.device("cpu"))[0, cls].view(size)


AUGMENTED = {
    "plain": {"mosaic": 0.0, "translate": 0.0, "scale": 0.0, "fliplr": 0.0},
    "affine": {"mosaic": 0.0, "translate": 0.4, "scale": 0.9, "fliplr": 0.5, "flipud": 0.5},
    "mosaic": {"mosaic": 1.0, "translate": 0.4, "scale": 0.9},
    "mixup": {"mosaic": 1.0, "mixup": 1.0},
    "cutmix": {"mosaic": 0.0, "cutmix": 1.0, "translate": 0.0, "scale": 0.0},
    "pasted": {"mosaic": 1.0, "copy_paste": 1.0},
    "pasted from another": {"mosaic": 1.0, "copy_paste": 1.0, "copy_paste_mode": "mixup"},
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_a_class_is_silenced_where_the_pixels_are_of_its_folder(tmp_path, name):
    """Red marks what comes of images in which class 1 is unknown; objects that are pasted out of them are known."""
    from ultralytics.data import augment

    task = "segment" if "pasted" in name else "detect"
    data = folders(tmp_path, task) | {"annotated": [["a"], ["a", "b", "crowd"]]}
    keys = AUGMENTED[name]
    if "cutmix" in keys and not hasattr(getattr(augment, "CutMix", None), "get_params"):
        pytest.skip("this release has no CutMix that tells where it cuts")
    images, shares = dataset(tmp_path, data, task, **keys), []
    random.seed(0)
    np.random.seed(0)
    for _ in range({"plain": 1, "cutmix": 30}.get(name, 6)):
        for i in range(len(images)):
            sample = images[i]
            red, green, blue = sample["img"].numpy().astype(int)
            is_red = (red > 30) & (blue < 10)  # padding is grey
            is_green = (red < 4) & (blue < 4) & (green > 200)
            mask = silenced(sample, 1).numpy()
            inner, outer = (
                cv2.erode(where.astype(np.uint8), np.ones((5, 5)), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
                for where in (is_red, is_green)
            )  # at the borders colours are interpolated
            pasted = np.zeros_like(mask)
            if task == "segment":
                pasted = sample["masks"][0].numpy().repeat(4, 0).repeat(4, 1) > 0
                pasted = cv2.dilate(pasted.astype(np.uint8), np.ones((11, 11))) > 0
            assert (~mask[inner & ~pasted]).sum() <= 4, "seams may be off by a pixel"
            assert not mask[outer & ~pasted].any()
            assert not silenced(sample, 0).any() and torch.equal(silenced(sample, 2), silenced(sample, 1))
            assert set(sample["cls"].flatten().tolist()) <= {0, 1}
            shares.append(is_red.mean())
    assert 0.1 < np.mean(shares) < 0.95


@pytest.mark.parametrize("task", ["detect", "segment", "obb", "pose"])
def test_regions_leave_the_labels_of_every_task(tmp_path, task):
    ignored = {
        "detect": ["2 .5 .5 .2 .2"],
        "segment": ["2 .4 .4 .6 .4 .6 .6 .4 .6"],
        "obb": ["2 .5 .3 .7 .5 .5 .7 .3 .5"],
        "pose": ["2 .5 .5 .2 .2 0 0 0"],
    }[task]
    data = folders(tmp_path, task, ignored)
    data["ignore"], data["annotated"] = ["crowd"], [["a"], "all"]
    images = dataset(tmp_path, data, task, mosaic=1.0, degrees=10.0, translate=0.1, scale=0.3)
    before = [label["cls"].copy() for label in images.labels]
    counts = []
    for i in range(len(images)):
        sample = images[i]
        count = len(sample["cls"])
        assert set(sample["cls"].flatten().tolist()) <= {0, 1}
        assert count == len(sample["bboxes"]) == len(sample["batch_idx"])
        if task == "segment":
            assert int(sample["masks"].max()) <= count
        if task == "pose":
            assert len(sample["keypoints"]) == count
        counts.append(len(sample["lossplug"].kind))
    assert min(counts) >= 1 and all(np.array_equal(*pair) for pair in zip(before, [x["cls"] for x in images.labels]))
    batch = images.collate_fn([images[0], images[1]])
    assert len(batch["lossplug"]) == 2 and batch["lossplug"][0].table.shape[1] == 3
    if task == "obb":
        images = dataset(tmp_path, data, task, split="val")
        corners = images[0]["lossplug"].corners[0]
        drawn = np.array([[0.5, 0.3], [0.7, 0.5], [0.5, 0.7], [0.3, 0.5]])
        assert np.abs(corners[:, None] - drawn).max(-1).min(1).max() < 0.06, "the corners of the rotated box"


def test_without_either_key_a_dataset_is_the_hosts(tmp_path):
    images = dataset(tmp_path, folders(tmp_path, ignored=["2 .5 .5 .2 .2"]), mosaic=0.0)
    assert not hasattr(images, "lossplug") and "lossplug" not in images[0]
    assert not any("lossplug" in type(one).__module__ for one in images.transforms.transforms)
    assert 2 in images[1]["cls"].flatten().tolist()


def test_keys_win_over_the_data_and_are_checked_before_labels_are_read(tmp_path):
    data = folders(tmp_path, ignored=["2 .5 .5 .2 .2"]) | {"ignore": ["crowd"]}
    assert not hasattr(dataset(tmp_path, data, ignore=[]), "lossplug")
    for keys, words in (
        ({"ignore": ["krowd"]}, "no class 'krowd'. Did you mean 'crowd'"),
        ({"single_cls": True}, "cannot be used with single_cls=True"),
        ({"classes": [0, 1]}, "it drops the boxes of 'crowd'; add 2 to it"),
    ):
        for cache in tmp_path.rglob("*.cache"):
            cache.unlink()
        with pytest.raises(LossPlugError) as error:
            dataset(tmp_path, data, **keys)
        assert words in str(error.value) and not list(tmp_path.rglob("*.cache"))


@pytest.mark.parametrize("mode", ["flip", "mixup"])
def test_no_region_that_covers_an_image_is_pasted(tmp_path, mode):
    """Its pixels would come with objects that are annotated, and not pasted."""
    from yolo_lossplug.ultralytics_hook.regions.transforms import WHOLE, is_region

    random.seed(0)
    np.random.seed(0)
    data = folders(tmp_path, "segment") | {"annotated": [["a"], "all"]}
    images = dataset(tmp_path, data, "segment", mosaic=1.0, copy_paste=1.0, copy_paste_mode=mode)
    augmented = images.transforms.transforms[0]
    names = [type(one).__name__ for one in augmented.transforms]
    place = next(i for i, name in enumerate(names) if "CopyPaste" in name)
    added = pasted = 0
    for i in [*range(8)] * 4:
        labels = images.get_image_and_label(i)
        for transform in augmented.transforms[:place]:
            labels = transform(labels)
        before = is_region(labels, WHOLE).sum(), len(labels["cls"])
        labels = augmented.transforms[place](labels)
        added += is_region(labels, WHOLE).sum() - before[0]
        pasted += len(labels["cls"]) - before[1]
        assert len(labels["cls"]) == len(labels["instances"])
    assert not added and pasted
