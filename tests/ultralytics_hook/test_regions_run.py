# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in trainings and validations of the host."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from tests.runs import STILL, TINY, Log, results, train
from tests.ultralytics_hook.test_regions_data import dataset, folders
from yolo_lossplug import LossPlugError
from yolo_lossplug.regions import ImageRegions, upright_corners


def described(path, **keys):
    """Write data whose images are covered by a box of class 2, and return the file."""
    task = keys.pop("task", "detect")
    box = {"detect": "2 .5 .5 1 1", "segment": "2 0 0 1 0 1 1 0 1", "pose": "2 .5 .5 1 1 0 0 0"}[task]
    data = (
        folders(path, task, [box]) if not (path / "red").exists() else yaml.safe_load((path / "all.yaml").read_text())
    )
    file = path / "data.yaml"
    (path / "all.yaml").write_text(yaml.safe_dump(data))
    file.write_text(yaml.safe_dump(data | keys))
    return str(file)


def test_a_training_leaves_regions_out(tmp_path):
    """By the description or by the key; with no region that silences more, the class term is that of the background."""
    found = {}
    # In 8.4.0 the first training of a process draws other numbers, whatever the seeds: it is repeated.
    for name, given in (
        ("first", {"crowd": "all"}),
        ("all", {"crowd": "all"}),
        ("crowd", {"crowd": ["crowd"]}),
        ("key", None),
    ):
        data = described(tmp_path, **({"ignore": given} if given else {}))
        keys = {} if given else {"ignore": "{crowd: all}", "lossplug_report": True}
        torch.manual_seed(0)
        with Log() as log:
            trainer = train(data=data, project=str(tmp_path / "runs"), name=name, val=False, **STILL, **keys)
        assert "ignore: 1 class, " in log.text and " % of anchors silenced" in log.text
        share = 33.3 if name == "crowd" else 100.0
        assert f"{share} % of anchors silenced" in log.text
        found[name] = results(trainer.save_dir)[0]["train/cls_loss"]
        assert getattr(trainer.args, "ignore", None) == ({"crowd": "all"} if not given else None)
    with (Path(trainer.save_dir) / "lossplug_report.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 0.5 < float(row["silenced_share"]) <= 1, "all but what the augmentation pads"
    assert found["all"] == found["key"] < 0.8 * found["crowd"]


@pytest.mark.parametrize("model", ["yolov8n.yaml", "rtdetr-l.yaml"])
def test_regions_outlive_mosaic(tmp_path, model):
    from ultralytics.models.rtdetr.val import RTDETRDataset

    described(tmp_path)
    data = yaml.safe_load((tmp_path / "all.yaml").read_text()) | {"ignore": ["crowd"]}
    images = dataset(tmp_path, data)
    if "rtdetr" in model:
        from ultralytics.cfg import get_cfg

        images = RTDETRDataset(
            img_path=str(tmp_path / "red" / "images"), imgsz=64, augment=True, hyp=get_cfg(), data=images.data
        )
    hyp = SimpleNamespace(**{**vars(_cfg()), "mosaic": 1.0})
    images.close_mosaic(hyp)
    for i in range(4):
        sample = images[i]
        assert len(sample["lossplug"].kind) == 1 and set(sample["cls"].flatten().tolist()) <= {0, 1}


def _cfg():
    from ultralytics.cfg import get_cfg

    return get_cfg()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolov8n-seg", "yolov8n-pose"])
def test_detections_in_regions_do_not_count(tmp_path, name):
    """What is left out is in no file of detections either: those of class 1 that match no object of it."""
    from ultralytics import YOLO

    task = {"-seg": "segment", "-pose": "pose"}.get(name[7:], "detect")
    lines, totals = {}, {}
    for kind, keys in (("stock", {}), ("ours", {"ignore": {"crowd": [1, 2]}})):
        data = described(tmp_path, task=task, **keys)
        torch.manual_seed(0)
        model = YOLO(f"{name}.yaml")
        points = {"data_kpt_shape": (1, 3)} if task == "pose" else {}
        model.model = type(model.model)(f"{name}.yaml", nc=3, verbose=False, **points)
        model.model.names = {0: "a", 1: "b", 2: "crowd"}
        model.model.args = {"task": task}
        result = model.val(
            data=data, imgsz=64, conf=1e-6, save_txt=True, plots=False, workers=0, project=str(tmp_path / kind)
        )
        files = list((tmp_path / kind).rglob("labels/*.txt"))
        words = [line.split()[0] for file in files for line in file.read_text().splitlines()]
        lines[kind] = {cls: words.count(str(cls)) for cls in (0, 1, 2)}
        totals[kind] = set(np.asarray(result.box.ap_class_index).tolist())
    assert lines["stock"][1] > 4 + lines["ours"][1] and lines["ours"][1] <= 3 and not lines["ours"][2]
    assert lines["ours"][0] == lines["stock"][0]
    assert totals["stock"] == {0, 1, 2} and totals["ours"] <= {0, 1}, "ignored classes leave the mean"


def judged_by_hand(boxes, cls, gts, gt_cls, region, silences):
    """Return which detections are judged: outside of the region, or matched as the host does it."""

    def area(box):
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    def common(one, other):
        pairs = list(zip(one, other))
        return area([max(pairs[0]), max(pairs[1]), min(pairs[2]), min(pairs[3])])

    pairs = []
    for i, box in enumerate(boxes):
        for j, gt in enumerate(gts):
            both = common(box, gt)
            iou = both / (area(box) + area(gt) - both)
            if cls[i] == gt_cls[j] and iou >= 0.5:
                pairs.append((iou, i, j))
    best = {i: j for _, i, j in sorted(pairs)}  # an object belongs to the first of the detections that want it
    matched = {min(i for i in best if best[i] == j) for j in best.values()}
    return [
        i in matched or cls[i] not in silences or common(box, region) <= 0.5 * area(box) for i, box in enumerate(boxes)
    ]


def test_which_detections_are_judged():
    from ultralytics.engine.validator import BaseValidator

    from yolo_lossplug.ultralytics_hook.regions.validation import judged, only

    rng = np.random.default_rng(0)
    validator = SimpleNamespace(iouv=torch.linspace(0.5, 0.95, 10))
    validator.match_predictions = lambda *args: BaseValidator.match_predictions(validator, *args)
    left_out = 0
    for _ in range(20):
        gts = rng.uniform(5, 40, (4, 4))
        gts[:, 2:] = gts[:, :2] + rng.uniform(8, 24, (4, 2))
        boxes = np.concatenate((gts, gts, gts))[rng.permutation(12)] + rng.normal(0, 3, (12, 4))
        gt_cls, cls = rng.integers(2, size=4), rng.integers(2, size=12)
        region, table = [4.0, 8, 44, 52], np.array([[True, False]])
        batch = {
            "img": torch.zeros(1, 3, 64, 64),
            "batch_idx": torch.zeros(4),
            "cls": torch.tensor(gt_cls)[:, None].float(),
            "bboxes": torch.tensor(np.concatenate(((gts[:, :2] + gts[:, 2:]) / 2, gts[:, 2:] - gts[:, :2]), 1) / 64),
            "lossplug": (ImageRegions(upright_corners(np.array([region], np.float32) / 64), np.zeros(1, int), table),),
        }
        pred = {"bboxes": torch.tensor(boxes), "conf": torch.rand(12), "cls": torch.tensor(cls).double(), "extra": None}
        kept = judged(validator, pred, batch, 0)
        assert kept.tolist() == judged_by_hand(boxes.tolist(), cls, gts.tolist(), gt_cls, region, {0})
        table_of = torch.cat((pred["bboxes"], pred["conf"][:, None], pred["cls"][:, None]), 1)
        assert torch.equal(judged(validator, table_of, batch, 0), kept), "in releases where detections are a table"
        assert len(only(pred, kept)["cls"]) == len(only(table_of, kept)) == kept.sum()
        left_out += int((~kept).sum())
    assert 20 < left_out < 120


@pytest.mark.parametrize(
    ("model", "keys", "words"),
    [
        ("yolov8s-world.yaml", {"ignore": ["crowd"]}, "ignore=.* cannot be used with YOLO-World"),
        ("yolov8n-cls.yaml", {"ignore": ["crowd"]}, "ignore=.* has no effect with task=classify"),
        ("yolov8n.yaml", {"ignore": ["krowd"]}, "the data has no class 'krowd'"),
        ("yolov8n.yaml", {"annotated": [["a"], ["a"]]}, "no entry of train: annotates the class 'b'"),
    ],
)
def test_what_cannot_be_trained_is_refused_first(tmp_path, model, keys, words):
    from ultralytics import YOLO

    file = described(tmp_path)
    loaded = YOLO("yolov8n.yaml") if "world" in model else YOLO(model)
    if "world" in model:
        from ultralytics.models.yolo.world import WorldTrainer

        trainer = WorldTrainer
    else:
        trainer = None
    with pytest.raises(LossPlugError, match=words):
        loaded.train(trainer=trainer, **{**TINY, **keys}, data=file, project=str(tmp_path / "runs"))
    assert not list(tmp_path.rglob("*.cache"))


def test_world_is_refused_for_data_with_regions_too(tmp_path):
    from ultralytics import YOLO
    from ultralytics.models.yolo.world import WorldTrainer

    with pytest.raises(LossPlugError, match="ignore and annotated cannot be used with YOLO-World"):
        YOLO("yolov8n.yaml").train(trainer=WorldTrainer, **TINY, data=described(tmp_path, ignore=["crowd"]))


def test_what_inspect_tells_of_regions(tmp_path):
    """The share that is silenced; boxes of ignored classes are no objects, and such names are a hint."""
    from yolo_lossplug.selection.regions import looks_like_region
    from yolo_lossplug.ultralytics_hook.dataset.labels import read

    plain = read({"data": described(tmp_path)})
    assert not len(plain.silenced) and (plain.cls == 2).any() and looks_like_region(plain.names[2])
    described(tmp_path)
    found = read({"data": str(tmp_path / "data.yaml"), "ignore": "{crowd: [b]}"})
    written = read({"data": described(tmp_path, ignore={"crowd": ["b"]})})
    assert written.silenced.tolist() == found.silenced.tolist() and (written.cls == found.cls).all()
    assert found.silenced.tolist() == [0, 1, 0] and not (found.cls == 2).any()
    assert len(found.cls) == len(found.boxes) == len(found.image) == (plain.cls != 2).sum()
    corners = [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert not plain.regions and [one.tolist() for one in found.regions] == [[corners]] * len(found.files)


def test_folders_that_annotate_different_classes_are_a_hint(tmp_path):
    from yolo_lossplug.partly import write_partly
    from yolo_lossplug.tools.inspect.advice import advise
    from yolo_lossplug.tools.inspect.command import inspect_plan
    from yolo_lossplug.tools.inspect.findings import Findings
    from yolo_lossplug.tools.inspect.pictures import draw_pictures

    source = write_partly(tmp_path / "data", "parts", 80, validation=16)
    data = {"path": str(source), "train": ["first/images", "second/images"], "val": "images/val"}
    data["names"], file = ["circle", "square", "triangle"], tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(data))
    for known in (None, "[[circle, square], [triangle]]"):
        found = Findings(inspect_plan({"data": str(file), "imgsz": 160, **({"annotated": known} if known else {})}))
        hint = [piece.text for piece in advise(found.facts) if piece.name == "entries"]
        assert bool(hint) == (known is None) and bool(len(found.labels.regions)) == (known is not None)
        assert not hint or "(first/images: triangle; second/images: circle, square)" in hint[0]
    assert "regions" in found.reasons(found.views[0])
    assert draw_pictures(found, tmp_path)


def test_regions_are_hatched(monkeypatch):
    """Training and validation plot a copy, whose stripes are half as bright; the batch stays."""
    from ultralytics.models.yolo.detect import train as training
    from ultralytics.models.yolo.detect import val as validation

    seen = []
    for module in (training, validation):
        monkeypatch.setattr(module, "plot_images", lambda *args, **keys: seen.append((args, keys)))
    table = np.array([[True, False]])
    region = ImageRegions(upright_corners(np.array([[0, 0, 0.5, 1]], np.float32)), np.zeros(1, int), table)
    empty = ImageRegions(region.corners[:0], region.kind[:0], table)
    names = ("cls", "bboxes", "batch_idx")
    images = torch.full((2, 3, 8, 16), 0.8)
    batch = {"img": images, "lossplug": (region, empty), "im_file": ["a", "b"]}
    batch |= {name: torch.zeros(0, 4 if name == "bboxes" else 1) for name in names}
    owner = SimpleNamespace(save_dir=Path(), on_plot=None, names={}, data={"names": {}})
    training.DetectionTrainer.plot_training_samples(owner, batch, 0)
    validation.DetectionValidator.plot_val_samples(owner, batch, 0)
    for args, keys in seen:
        pools = [*args, *(value for value in (keys.get("labels"), *args) if isinstance(value, dict)), keys]
        drawn = next(v for pool in pools for v in ([pool] if torch.is_tensor(pool) else found_in(pool)) if v.ndim == 4)
        assert drawn[0, 0, 0, :8].tolist() == pytest.approx([0.4] * 4 + [0.8] * 4)
        assert (drawn[0, :, :, 8:] == 0.8).all() and (drawn[1] == 0.8).all()
    assert len(seen) == 2 and (images == 0.8).all()


def found_in(pool):
    """Return the tensors of a mapping."""
    return [value for value in pool.values() if torch.is_tensor(value)] if isinstance(pool, dict) else []
