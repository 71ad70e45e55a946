# SPDX-License-Identifier: AGPL-3.0-or-later
"""Labels, candidates and assignments of a dataset: against brute force, the host's own pipeline, and the report."""

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import ultralytics
import yaml
from ultralytics.utils import tal

from tests.conftest import dataset as drawn
from tests.problems import points
from tests.runs import STILL, TINY, refuses, train
from tests.ultralytics_hook.test_report import table
from yolo_lossplug.boxes import LIMITS, SIZES
from yolo_lossplug.selection.select import select
from yolo_lossplug.tools.inspect.command import inspect_plan
from yolo_lossplug.tools.inspect.findings import Findings
from yolo_lossplug.ultralytics_hook import min_side
from yolo_lossplug.ultralytics_hook.counts import column_values
from yolo_lossplug.ultralytics_hook.dataset import assignments, candidates, labels
from yolo_lossplug.ultralytics_hook.running import branches

FAMILIES = ("random", "tiny", "edges", "zero", "outside", "large")


def boxes_of(family, imgsz, seed=0, n=60):
    rng = np.random.default_rng(seed)
    centre, side = rng.uniform(0, imgsz, (n, 2)), 2.0 ** rng.uniform(1, 8, (n, 2))
    if family == "tiny":
        side = rng.uniform(0.1, 20, (n, 2))
    if family == "edges":  # on centres and edges of cells, and exactly as long as a floor
        centre, side = np.round(centre / 4) * 4, rng.choice([4.0, 8.0, 16.0, 24.0, 32.0], (n, 2))
    if family == "zero":
        side *= rng.integers(0, 2, (n, 2))
    if family == "outside":
        centre = rng.uniform(-imgsz, 2 * imgsz, (n, 2))
    if family == "large":
        side = rng.uniform(imgsz / 2, 2 * imgsz, (n, 2))
    return np.concatenate((centre - side / 2, centre + side / 2), 1).astype(np.float32)


def masks(assigner, mask):
    """Return a mask of gts as the host's method takes it: before 8.4 it has none, and nothing is widened."""
    takes_mask = "mask_gt" in inspect.signature(assigner.select_candidates_in_gts).parameters
    return (mask.float(),) if takes_mask else ()


@pytest.mark.parametrize(("strides", "keys"), [((8, 16, 32), {}), ((4, 8, 16, 32), {"tal_min_side": 24})], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_are_those_of_the_host(family, strides, keys):
    assigner = candidates.make_assigner("detect", strides, select(keys))
    boxes = boxes_of(family, 160, seed=1)
    rows, mask = torch.from_numpy(boxes)[None], torch.from_numpy(boxes).sum(1)[None, :, None] > 0
    inside = assigner.select_candidates_in_gts(points(160, 160, strides), rows, *masks(assigner, mask))
    expected = (inside * mask)[0].bool()
    found = candidates.count_candidates(boxes, 160, strides, assigner)
    assert found.sum(1).tolist() == expected.sum(1).tolist()
    row, anchor = candidates.candidate_pairs(boxes, 160, strides, assigner)
    assert {*zip(row.tolist(), anchor.tolist())} == {tuple(pair) for pair in expected.nonzero().tolist()}
    level = np.searchsorted(np.cumsum([(160 // stride) ** 2 for stride in strides]), anchor, side="right")
    assert np.array_equal(found, [np.bincount(level[row == i], minlength=len(strides)) for i in range(len(boxes))])


@pytest.mark.parametrize("chunk", [1_000_000, 50])
@pytest.mark.parametrize("family", ["random", "tiny", "edges", "large"])
def test_candidates_of_rotated_boxes_are_those_of_the_host(family, chunk, monkeypatch):
    monkeypatch.setattr(candidates, "MAX_PAIRS", chunk)
    strides, flat = (8, 16, 32), torch.from_numpy(boxes_of(family, 160, seed=2))
    assigner = candidates.make_assigner("obb", strides, select({"task": "obb"}))
    angle = torch.rand(len(flat), 1, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    boxes = torch.cat(((flat[:, :2] + flat[:, 2:]) / 2, flat[:, 2:] - flat[:, :2], angle), 1)
    mask = torch.ones(1, len(boxes), 1)
    inside = assigner.select_candidates_in_gts(points(160, 160, strides), boxes[None], *masks(assigner, mask))
    is_kept = (boxes[:, 2:4] >= 2).all(1)  # the criterion drops the others
    expected = inside[0].bool() & is_kept[:, None]
    assert not is_kept.all() or family != "tiny"
    found = candidates.count_candidates(boxes.numpy(), 160, strides, assigner)
    assert found.sum(1).tolist() == expected.sum(1).tolist() and found.sum() > 0
    row, anchor = candidates.candidate_pairs(boxes.numpy(), 160, strides, assigner)
    assert {*zip(row.tolist(), anchor.tolist())} == {tuple(pair) for pair in expected.nonzero().tolist()}


@pytest.mark.parametrize("side", [0.0, 8.0, 12.5, 16.0, 24.0])
def test_a_floor_of_rotated_boxes_is_measured(side):
    """Whatever a release, or a key, sets it to."""
    strides = (8, 16, 32)
    assigner = candidates.make_assigner("obb", strides, select({"task": "obb"}))
    if not hasattr(assigner, "stride_val"):
        assert min_side.rotated_floor_of(assigner) == (0.0, 0.0)
        return
    assigner.stride_val = side
    boxes = torch.cat((torch.rand(40, 2) * 160, torch.rand(40, 2) * 30 + 2, torch.rand(40, 1) * 3), 1)
    mask = masks(assigner, torch.ones(1, 40, 1))
    expected = assigner.select_candidates_in_gts(points(160, 160, strides), boxes[None], *mask)[0]
    found = candidates.count_candidates(boxes.numpy(), 160, strides, assigner)
    assert found.sum(1).tolist() == expected.bool().sum(1).tolist()


def write_data(folder, images, task="detect", names=("a", "b", "c"), **more):
    """Write a dataset of grey images: lists of label lines by name and size (width, height); return its YAML."""
    import cv2

    for name, ((width, height), lines) in images.items():
        for kind in ("images", "labels"):
            (folder / kind / "train").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / "train" / f"{name}.png"), np.full((height, width, 3), 90, np.uint8))
        if lines is not None:
            text = "".join(" ".join(map(str, line)) + "\n" for line in lines)
            (folder / "labels" / "train" / f"{name}.txt").write_text(text)
    content = {"path": str(folder), "train": "images/train", "val": "images/train", "names": list(names), **more}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def random_lines(rng, n, n_classes=3):
    size = 2.0 ** rng.uniform(-6, -0.5, (n, 2))
    centre = size / 2 + rng.uniform(0, 1, (n, 2)) * (1 - size)
    rows = np.concatenate((centre, size), 1).round(6)
    return [(int(rng.integers(n_classes)), *row) for row in rows.tolist()]


SHAPES = [(640, 480), (333, 500), (1000, 37), (64, 64), (61, 127)]


@pytest.mark.parametrize("imgsz", [64, 320])
def test_boxes_are_those_of_the_hosts_batches(imgsz, tmp_path):
    rng = np.random.default_rng(0)
    images = {f"{i:02}": (size, random_lines(rng, 9)) for i, size in enumerate(SHAPES)}
    args = {"data": write_data(tmp_path, images)}
    read = labels.read(args)
    data, path = labels.described(args)
    host = labels.dataset(data, path, args, imgsz)
    batch = host.collate_fn([host[i] for i in range(len(host))])
    assert tuple(batch["img"].shape[2:]) == (imgsz, imgsz)
    centre, size = batch["bboxes"][:, :2] * imgsz, batch["bboxes"][:, 2:] * imgsz
    expected = torch.cat((centre - size / 2, centre + size / 2), 1).numpy()
    found = read.at(imgsz)
    assert np.abs(found - expected).max() < 1e-3
    assert read.cls.tolist() == batch["cls"].view(-1).tolist()
    assert read.image.tolist() == batch["batch_idx"].tolist()
    assigner = candidates.make_assigner("detect", (8, 16, 32), select({}))
    counted = [candidates.count_candidates(boxes, imgsz, (8, 16, 32), assigner) for boxes in (found, expected)]
    assert np.array_equal(*counted)
    for i in range(len(host)):
        pixels = labels.pixels_of(read, imgsz, i)
        assert np.array_equal(pixels, batch["img"][i].permute(1, 2, 0).numpy())


def test_rotated_boxes_are_those_of_the_hosts_batches(tmp_path):
    file = drawn("turned-labels", task="obb")
    read = labels.read({"data": file})
    assert read.task == "obb" and len(read.polygons) == len(read.cls)
    data, path = labels.described({"data": file})
    host = labels.dataset(data, path, {"data": file, "task": "obb"}, 96)
    batch = host.collate_fn([host[i] for i in range(len(host))])
    expected = batch["bboxes"].clone()
    expected[:, :4] *= 96
    corners = [candidates.corners_of(boxes) for boxes in (read.at(96), expected.numpy())]
    for one, other in zip(*corners):  # angle and sides may be swapped
        near = np.abs(one[:, None] - other[None]).max(-1)
        assert near.min(0).max() < 0.05 and near.min(1).max() < 0.05
    assert np.abs(read.sides.prod(1) - (expected[:, 2] * expected[:, 3]).numpy() * (64 / 96) ** 2).max() < 1


def test_the_task_of_labels_and_a_fraction_of_the_images(data):
    for task in ("detect", "segment", "pose"):
        assert labels.read({"data": drawn(f"guess-{task}", task=task)}).task == task
    whole, part = (labels.read({"data": data, "fraction": fraction}) for fraction in (1.0, 0.5))
    assert part.files == whole.files[: len(whole.files) // 2]


def test_what_the_loader_drops_is_counted(tmp_path):
    line = (0, 0.5, 0.5, 0.2, 0.2)
    images = {
        "a": ((64, 64), [line, line, line, (1, 0.5, 0.5, 0.2, 0.2)]),
        "b": ((64, 64), [line, (1, 1.5, 0.5, 0.2, 0.2)]),
        "c": ((64, 64), [(7, 0.5, 0.5, 0.2, 0.2)]),
        "d": ((64, 64), None),
    }
    file = write_data(tmp_path, images)
    for _ in range(2):  # from the files, and from the host's cache
        read = labels.read({"data": file})
        assert read.removed == 2 and len(read.cls) == 2 and len(read.files) == 2
        assert [(Path(name).stem, count) for name, count, _ in read.ignored] == [("b", 2), ("c", 1)]
        assert "out of bounds" in read.ignored[0][2] and "class" in read.ignored[1][2].lower()


# Assignments.

TASKS = {"": "detect", "-seg": "segment", "-pose": "pose", "-obb": "obb"}
FILES = {file.name for file in Path(ultralytics.__file__).parent.glob("cfg/models/*/*.yaml")}
MODELS = {
    f"{family}n{suffix}.yaml": task
    for family in ("yolov8", "yolov10", "yolo26")
    for suffix, task in TASKS.items()
    if {f"{family}{suffix}.yaml", f"{family}n{suffix}.yaml"} & FILES  # a release does not have those that came later
}


def loaded(name, task, **keys):
    file = drawn(f"inspected-{task}", task=task)
    args = {"data": file, "model": name, **keys}
    data, path = labels.described(args)
    model = assignments.load(args, data)
    host = labels.dataset(data, path, {**args, "task": model.task}, 96)
    return model, host.collate_fn([host[i] for i in range(4)])


@pytest.mark.parametrize("name", MODELS)
def test_objects_get_what_the_report_counts(name, collector):
    """The same weights and images, in a step with gradients, with either engine."""
    model, batch = loaded(name, MODELS[name], tal_topk=7)
    with torch.no_grad():
        preds = model.host(batch["img"].float() / 255)
    model.host.args.save_dir, model.host.args.lossplug_report = "here", True
    model.host.init_criterion()(copy.deepcopy(preds), {**batch, "img": batch["img"].float() / 255})
    expected = {branch: meter.sums for branch, meter in collector.meters.items()}
    claims = {branch: meter.claims.tolist() for branch, meter in collector.meters.items()}
    fixed = model._replace(host=lambda images: preds)
    seen = assignments.assign_batch(fixed, batch)
    assert {one.branch for one in seen} == {branch for branch, _ in branches(model.criterion)} == expected.keys()
    for branch, sums in expected.items():
        mine = [one for one in seen if one.branch == branch]
        found = torch.zeros_like(sums)
        for one in mine:
            sides = one.boxes[:, 2:4] if one.boxes.shape[1] == 5 else one.boxes[:, 2:] - one.boxes[:, :2]
            size = np.searchsorted(LIMITS, sides.prod(1), side="right")
            values = np.ones(len(size)), one.positives == 0, one.positives, one.overlap
            for column, value in enumerate(values):
                found[:, column] += torch.from_numpy(np.bincount(size, weights=value, minlength=3))
        assert torch.equal(found[:, :3], sums[:, :3]) and found[:, 2].sum() > 0
        torch.testing.assert_close(found[:, 3], sums[:, 3], rtol=1e-5, atol=1e-5)
        assert [sum(int(one.wanted.any(0).sum()) for one in mine), sum(one.conflicts for one in mine)] == claims[branch]
        for one in mine:
            assert (one.owner[~one.wanted.any(0)] < 0).all(), "an anchor that nobody wants is assigned"
            assert (one.candidates | ~one.wanted).all(), "an anchor is wanted by an object that it is no candidate of"
            assert ((one.best_iou >= 0) == one.candidates.any(1)).all() and np.nanmax(one.score) <= 1
            assert len(one.row) == len(one.boxes) and (np.diff(one.row) > 0).all()


def test_what_objects_get_by_hand():
    """Two objects of the same box want the same anchors, whose predictions cover a quarter of it, one of them more."""
    assigner, places = tal.TaskAlignedAssigner(topk=5, num_classes=2, alpha=0.5, beta=6.0), points(64, 64, (16,))
    seen = []
    recorder = assignments.RecordingAssigner(assigner, "main", 3, seen)
    boxes = torch.tensor([[[4.0, 4, 44, 44], [4, 4, 44, 44], [50, 50, 63, 63]], [[0.0, 0, 0, 0]] * 3])
    mask = torch.tensor([[[1.0], [1], [1]], [[0], [0], [0]]])
    scores = torch.rand(2, len(places), 2, generator=torch.Generator().manual_seed(0)) / 2 + torch.tensor([0.5, 0.0])
    predicted = torch.tensor([4.0, 4, 24, 24]).repeat(2, len(places), 1)
    predicted[0, 5] = torch.tensor([4.0, 4, 44, 19])
    inputs = (scores, predicted, places, torch.ones(2, 3, 1), boxes, mask)
    outputs = recorder(*inputs)
    for found, expected in zip(outputs, assigner(*inputs)):
        assert torch.equal(found.to(expected.dtype), expected)
    (one,) = seen
    assert one.image == 3 and one.wanted.sum(1).tolist()[:2] == [5, 5] and one.conflicts == 5
    assert one.positives.tolist()[:2] == [5, 0] and one.best_iou.tolist() == pytest.approx([0.375, 0.375, 0])
    assert one.score[:2].tolist() == [scores[0, 5, 1]] * 2 and one.overlap[0] == pytest.approx(0.375 + 4 * 0.25)
    assert not {"get_pos_mask", "select_candidates_in_gts"} & {*vars(assigner)}


def test_rows_of_objects_that_a_criterion_drops():
    """Rotated boxes with a side below 2 pixels; the others keep their indices."""
    model, batch = loaded("yolov8n-obb.yaml", "obb")
    drop = (batch["batch_idx"] == batch["batch_idx"].mode().values).nonzero().squeeze(1)[::2]
    batch["bboxes"][drop, 2] = 0.001
    seen = assignments.assign_batch(model, batch)
    kept = {(one.image, int(row)) for one in seen for row in one.row}
    rows = [(int(i), int((batch["batch_idx"][:n] == i).sum())) for n, i in enumerate(batch["batch_idx"])]
    assert kept == {row for n, row in enumerate(rows) if n not in drop.tolist()}


def test_a_view_adds_up_what_batches_get(data, monkeypatch):
    batches, assigned = [], assignments.assigned

    def counted(*args, **keys):
        for seen in assigned(*args, **keys):
            batches.append(seen)
            yield seen

    monkeypatch.setattr(assignments, "assigned", counted)
    found = Findings(inspect_plan({"data": data, "model": "yolov8n.yaml", "imgsz": 64, "batch": 3}))
    (shown,) = found.views
    branch = shown.assigned["main"]
    objects, _, positives, _ = shown.sums(branch).sum(0)
    assert objects == len(found.labels.cls) and positives == branch.positives.sum() > 0
    assert len(batches) == 3 and np.isnan(branch.best_iou).sum() == (shown.total == 0).sum()
    assert (branch.positives <= shown.total).all()


@pytest.mark.slow
def test_a_training_reports_the_same(data, tmp_path):
    """One batch of all images, with weights that do not move, and without augmentation."""
    plain = dict.fromkeys(("fliplr", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "erasing"), 0.0)
    keys = {**TINY, **STILL, **plain, "batch": 8, "data": data, "project": str(tmp_path), "val": False}
    trainer = train(callbacks=[], lossplug_report=True, **keys)
    (row,) = table(trainer.save_dir)
    inspected = Findings(inspect_plan({"data": data, "model": str(trainer.last), "imgsz": 64, "batch": 8}))
    trained = {k: v for k, v in trainer.model.state_dict().items() if "num_batches" not in k}
    inspected.model.host.load_state_dict(trained, strict=False)
    (shown,) = inspected.views
    found = column_values(shown.sums(shown.assigned["main"]).tolist())
    for key in ("objects", "positives_per_object", "unassigned_share", *(f"objects_{size}" for size in SIZES)):
        assert found[key] == pytest.approx(float(row[key]), rel=1e-5), key
    assert found["mean_iou"] == pytest.approx(float(row["mean_iou"]), rel=1e-3)


def test_models_that_cannot_be_used(data):
    for keys, message in (
        ({"model": "nothere.pt"}, "model=nothere.pt cannot be used"),
        ({"model": "yolov8n-cls.yaml"}, "task=classify, which has no boxes"),
        ({"model": "rtdetr-l.yaml"}, "rtdetr"),
    ):
        refuses(message, assignments.load, {"data": data, **keys}, labels.described({"data": data})[0])
