# SPDX-License-Identifier: AGPL-3.0-or-later
"""The report of the assignment: what it counts, with either engine, and where it ends up in a run."""

import contextlib
import copy
import csv
import pickle
import types
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.ops import box_iou
from ultralytics import YOLO
from ultralytics.utils.metrics import batch_probiou
from ultralytics.utils.tal import TaskAlignedAssigner

from tests.conftest import dataset
from tests.models import predicted, with_keys
from tests.problems import points
from tests.runs import STILL, Log, interrupt, refuses, results, train
from tests.ultralytics_hook.test_memory import PLAIN
from tests.ultralytics_hook.test_routes import on_two_ranks
from yolo_lossplug import DetectionLoss, LossPlugError, charts, create_box_loss
from yolo_lossplug.boxes import SIZES
from yolo_lossplug.selection.keys import given_keys, keys
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook import config, counts
from yolo_lossplug.ultralytics_hook.assigner import has_own_hooks, set_overlap
from yolo_lossplug.ultralytics_hook.counts import COLUMNS, column_values, no_sums, tally
from yolo_lossplug.ultralytics_hook.engines import fast
from yolo_lossplug.ultralytics_hook.run import report, runs, watch
from yolo_lossplug.ultralytics_hook.running import branch_criteria

MODELS = ["yolov8n", "yolo11n", "yolov10n", "yolov8n-seg", "yolov8n-pose"]
BRANCHES = {"yolov10n": {"one2many", "one2one"}}
PARTS = ("", "_small", "_medium", "_large")
HEADER = ["epoch", "branch", *COLUMNS]


def table(folder, name="lossplug_report.csv"):
    return charts.read_table(Path(folder) / name)


def test_sums_and_classes_by_hand():
    limits = [32.0**2, 96.0**2]
    below = [torch.nextafter(torch.tensor(limit), torch.tensor(0.0)).item() for limit in limits]
    areas = torch.tensor([below[0], limits[0], below[1], limits[1], 5.0, 7.0])
    is_gt = torch.tensor([True, True, True, True, True, False])
    slot = torch.tensor([0, 0, 2, 3, 5, 1, 0])
    is_positive = torch.tensor([True, True, True, True, False, False, False])
    overlap = torch.tensor([0.5, 0.25, 0.125, 1.0, 9.0, 9.0, float("nan")])
    found = tally(areas, is_gt, slot, is_positive, overlap)
    #           objects, without anchor, anchors, overlaps
    expected = [[2, 1, 2, 0.75], [2, 1, 1, 0.125], [1, 0, 1, 1.0]]
    assert found.tolist() == expected
    assert column_values(found.tolist()) == {
        **dict(zip((f"objects{size}" for size in PARTS), (5, 2, 2, 1))),
        **dict(zip((f"unassigned_share{size}" for size in PARTS), (2 / 5, 0.5, 0.5, 0.0))),
        **dict(zip((f"positives_per_object{size}" for size in PARTS), (4 / 5, 1.0, 0.5, 1.0))),
        **{"mean_iou": 1.875 / 4, "conflicts": None, "conflict_share": None, "silenced_share": None},
    }
    counted = column_values(found.tolist(), [8.0, 2.0])
    assert (counted["conflicts"], counted["conflict_share"]) == (2.0, 0.25)
    assert column_values(found.tolist(), None, [40.0, 10.0])["silenced_share"] == 0.25
    values = column_values(no_sums(torch.device("cpu")).tolist())
    by_size = {f"{key}{size}" for key in ("positives_per_object", "unassigned_share") for size in PARTS}
    without = {key for key, value in values.items() if value is None}
    assert without == {*by_size, "mean_iou", "conflicts", "conflict_share", "silenced_share"}
    assert [value for value in values.values() if value is not None] == [0] * 4
    classes = torch.zeros(3, 2)
    labels, is_gt = torch.tensor([0.0, 2, 2, 0, 1]), torch.tensor([True, True, True, True, False])
    slot, is_positive = torch.tensor([1, 1, 0, 3]), torch.tensor([True, True, False, True])
    counts.tally_classes(classes, labels, is_gt, slot, is_positive)
    #                             objects, without anchor: slot 0 is named by a negative only
    assert classes.tolist() == [[2, 1], [0, 0], [2, 1]]


@pytest.mark.parametrize("n_slots", [0, 3])
def test_an_object_that_loses_every_anchor_is_unassigned(n_slots):
    """Two objects want the same anchors: the first gets all of them, and an empty slot counts as none."""
    assigner, places = TaskAlignedAssigner(topk=10, num_classes=1, alpha=0.5, beta=6.0), points(64, 64, (16,))
    meter = counts.Meter(torch.device("cpu"))
    watch.watch(assigner, meter)
    boxes = torch.tensor([[[4.0, 4, 44, 44], [4, 4, 44, 44], [0, 0, 0, 0]]])[:, :n_slots]
    mask = torch.tensor([[[1.0], [1], [0]]])[:, :n_slots]
    scores, predicted = torch.full((1, len(places), 1), 0.5), torch.tensor([4.0, 4, 44, 24]).expand(1, len(places), 4)
    assigner(scores, predicted, places, torch.zeros(1, n_slots, 1), boxes, mask)
    # 3 x 3 cells of 16 pixels have their centre in the box; half of it is predicted; 40 x 40 is medium.
    assert meter.sums.tolist() == ([[0] * 4, [2, 1, 9, 4.5], [0] * 4] if n_slots else [[0] * 4] * 3)
    assert meter.is_used and meter.has_claims
    assert meter.claims.tolist() == ([9, 9] if n_slots else [0, 0]), "both objects want all nine anchors"


def test_classes_survive_a_resumed_run_and_drop_later_epochs(tmp_path):
    values = dict.fromkeys(COLUMNS, 0.5)
    first = report.Collector(tmp_path / report.FILE, False)
    first.names, first.by_class = {0: "a", 2: "c"}, {"main": [[3.0, 1.0], [0.0, 0.0], [4.0, 0.0]]}
    for epoch in (1, 2, 3):
        first.add(epoch, {"main": values})
    first.write()
    again = report.Collector(tmp_path / report.FILE, True)
    again.names, again.by_class = {0: "a"}, {"main": [[1.0, 1.0]]}
    again.add(3, {"main": values})
    again.write()
    rows = table(tmp_path, report.CLASS_FILE)
    assert [(row["epoch"], row["name"], row["objects"], row["unassigned_share"]) for row in rows] == [
        *(("1", "a", "3", "0.333333"), ("1", "c", "4", "0")),
        *(("2", "a", "3", "0.333333"), ("2", "c", "4", "0")),
        ("3", "a", "1", "1"),
    ]


def test_an_assigner_derived_twice_is_pickled_and_still_sparse():
    assigner = TaskAlignedAssigner(topk=10, num_classes=3, alpha=0.5, beta=6.0)
    watch.watch(assigner, None)
    set_overlap(assigner, create_box_loss("giou"))
    assert not has_own_hooks(assigner)
    again = pickle.loads(pickle.dumps(assigner))
    assert type(again) is type(assigner) and type(copy.deepcopy(assigner)) is type(assigner)
    assert isinstance(again, watch.WatchedMixin) and isinstance(again, TaskAlignedAssigner)
    message = "lossplug_report cannot be used with object, which is not an nn.Module; remove it"
    refuses(message, watch.watch, object(), None)


def test_the_plot_shows_shares_in_percent(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("yolo_lossplug.charts.save", lambda figure, file: drawn.append(figure))
    shares = {f"unassigned_share_{size}": f"{share}" for size, share in zip(SIZES, (0.4, 0.2, 0.0))}
    row = {**dict.fromkeys(HEADER, "0.1"), **shares, "branch": "main", "conflict_share": "0.25"}
    report.plot([{**row, "epoch": str(epoch)} for epoch in (1, 2)], tmp_path / "x.png")
    first, _, _, last = drawn[0].axes
    assert first.get_ylabel() == last.get_ylabel() == "%"
    assert {line.get_label(): line.get_ydata()[0] for line in first.lines} == pytest.approx(
        {"all": 10, "small": 40, "medium": 20, "large": 0}
    )
    assert last.lines[0].get_ydata()[0] == 25 and first.get_ylim()[1] == pytest.approx(44)


def run(made, preds, data, loss_engine):
    """Take a step and return the criterion, and the inputs and outputs of its assigners."""
    criterion, seen = with_keys(made, save_dir="here", lossplug_report=True, loss_engine=loss_engine), []
    for leaf in branch_criteria(criterion):
        leaf.assigner.register_forward_hook(lambda module, inputs, outputs: seen.append((inputs, outputs)))
    criterion(copy.deepcopy(preds), data)
    return criterion, seen


def by_hand(inputs, outputs):
    sums, taken = no_sums(torch.device("cpu")), set()
    found, objects, mask, foreground, index = inputs[1], inputs[4], inputs[5], outputs[3], outputs[4]

    def size(box):
        width, height = (box[2], box[3]) if len(box) == 5 else (box[2] - box[0], box[3] - box[1])
        return 0 if width * height < 1024 else 1 if width * height < 9216 else 2

    for image, anchor in foreground.nonzero().tolist():
        slot = int(index[image, anchor])
        wanted, overlap = objects[image, slot], box_iou if objects.shape[2] == 4 else batch_probiou
        sums[size(wanted), 2] += 1
        sums[size(wanted), 3] += overlap(found[image, anchor][None], wanted[None]).item()
        taken.add((image, slot))
    for image, slot in mask.squeeze(-1).nonzero().tolist():
        sums[size(objects[image, slot]), 0] += 1
        sums[size(objects[image, slot]), 1] += (image, slot) not in taken
    return sums


@pytest.mark.parametrize("name", [*MODELS, "yolov8n-obb"])
def test_the_reference_counts_what_its_assigners_answer(name, collector):
    criterion, seen = run(*predicted(name, size=256), "reference")
    assert collector.meters.keys() == BRANCHES.get(name, {"main"})
    for leaf, (inputs, outputs) in zip(branch_criteria(criterion), seen):
        expected, found = by_hand(inputs, outputs), watch.meter_of(leaf.assigner).sums
        assert torch.equal(found[:, :3], expected[:, :3])
        torch.testing.assert_close(found[:, 3], expected[:, 3], rtol=1e-5, atol=1e-5)
        assert found[:, 0].sum() == 5 and found[:, 2].sum() > 0 and (found[:, 3].sum() > 0)
        # All anchors, the others with whatever they predict, as on a GPU.
        first = torch.arange(2).unsqueeze(1) * inputs[4].shape[1]
        boxes = inputs[1].masked_fill(~outputs[3].bool().unsqueeze(-1), float("nan")).flatten(0, 1)
        whole = counts.Meter(torch.device("cpu"))
        whole.add(inputs[4], inputs[5], (outputs[4] + first).flatten(), outputs[3].bool().flatten(), boxes)
        torch.testing.assert_close(whole.sums, found, rtol=1e-12, atol=1e-12)
    assert len(seen) == len(collector.meters)


@pytest.mark.parametrize("name", MODELS)
def test_engines_agree(name, collector, monkeypatch):
    """Whether the fast engine assigns by itself, or asks the assigner, or leaves the step to the host."""
    inputs = predicted(name, size=256)
    run(*inputs, "reference")
    expected = {branch: meter.sums.clone() for branch, meter in collector.meters.items()}
    claims = {branch: meter.claims.clone() for branch, meter in collector.meters.items()}
    classes = {branch: meter.classes.clone() for branch, meter in collector.meters.items()}
    changes = {"sparse": (), "dense": ("is_sparse", lambda *_: False), "host": ("fast_step", lambda *_: None)}
    for way, change in changes.items():
        collector.clear()
        with monkeypatch.context() as patch:
            if change:
                patch.setattr(fast, *change)
            _, seen = run(*inputs, "fast")
        assert len(seen) == (0 if way == "sparse" else len(expected)), way
        for branch, meter in collector.meters.items():
            assert torch.equal(meter.sums[:, :3], expected[branch][:, :3]), way
            assert torch.equal(meter.claims, claims[branch]) and torch.equal(meter.classes, classes[branch]), way
            assert meter.has_claims and (meter.claims > 0).any() and meter.classes[:, 0].sum() == 5, way
            torch.testing.assert_close(meter.sums[:, 3], expected[branch][:, 3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_engine", ["reference", "fast"])
def test_only_training_counts_and_only_once(loss_engine, collector):
    made, preds, data = predicted("yolov8n", size=256)
    criterion, _ = run(made, preds, data, loss_engine)
    (meter,) = collector.meters.values()
    once = meter.sums.clone()
    for guard in (torch.no_grad(), torch.inference_mode()):
        with guard:
            criterion(copy.deepcopy(preds), data)
            copy.deepcopy(criterion)(copy.deepcopy(preds), data)
    assert torch.equal(meter.sums, once), "a validation counted"
    assert len(watch.on_assigner(criterion.assigner).claims) <= 1, "claims of validations pile up"
    copy.deepcopy(criterion)(copy.deepcopy(preds), data)
    assert torch.equal(meter.sums, 2 * once), "a copy counts apart, or twice"
    assert not meter.sums.requires_grad
    empty = {**data, **{key: data[key][:0] for key in ("batch_idx", "cls", "bboxes")}}
    criterion(copy.deepcopy(preds), empty)
    assert torch.equal(meter.sums, 2 * once)
    collector.clear()
    assert not watch.meter_of(criterion.assigner).sums.any()


def test_a_criterion_made_by_hand_reports_to_its_run_and_to_no_other(collector):
    made, preds, data = predicted("yolov8n", size=256)
    alone = with_keys(made, lossplug_report=True)
    alone(copy.deepcopy(preds), data)
    assert watch.meter_of(alone.assigner) is None and not collector.meters
    stock, made.args = made.args, types.SimpleNamespace(**vars(made.args), save_dir="here")
    try:
        criterion = DetectionLoss(made, lossplug_report=True)
    finally:
        made.args = stock
    criterion(copy.deepcopy(preds), data)
    assert collector.counted()["main"]["objects"] == 5


def test_rows_are_kept_until_an_epoch_and_a_table_is_complete_or_as_it_was(tmp_path, monkeypatch):
    values = dict.fromkeys(COLUMNS, 0.123456789)
    first = report.Collector(tmp_path / report.FILE, False)
    for epoch in (1, 2, 3):
        first.add(epoch, {"one2many": {**values, "objects": 1234567.0}, "one2one": {**values, "mean_iou": None}})
    first.write()
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "1", "2", "2", "3", "3"]
    assert table(tmp_path)[0]["objects"] == "1234567" and table(tmp_path)[0]["mean_iou"] == "0.123457"
    assert table(tmp_path)[1]["mean_iou"] == ""
    again = report.Collector(tmp_path / report.FILE, True)
    again.add(2, {"one2many": {**values, "objects": 5.0}})
    before = (tmp_path / report.FILE).read_bytes()
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        again.write()
    assert (tmp_path / report.FILE).read_bytes() == before
    monkeypatch.undo()
    again.write()
    assert [(row["epoch"], row["objects"]) for row in table(tmp_path)] == [("1", "1234567"), ("1", "0"), ("2", "5")]
    assert report.Collector(tmp_path / report.FILE, False).rows == []
    assert not list(tmp_path.glob("*.tmp"))


class Logger:
    """What a logger sees of a run, as those of Ultralytics: metrics of epochs, and plots at the end."""

    def __init__(self):
        self.seen, self.left, self.plots = [], [], []

    @property
    def callbacks(self):
        return (
            ("on_fit_epoch_end", lambda trainer: self.seen.append(dict(trainer.metrics))),
            ("on_model_save", lambda trainer: self.left.append(dict(trainer.metrics))),
            ("on_train_end", lambda trainer: self.plots.extend(path.name for path in trainer.plots)),
        )


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """A stock run and one that reports, which is asked for on the loggers' side too, and what was logged."""
    project, runs = tmp_path_factory.mktemp("report"), []
    # Both have the dataset's cache, and validate in the last epoch only: metrics of the first stay where they are.
    keys = {"data": data, "project": str(project), "epochs": 2, "val": False}
    train(data=data, project=str(project))
    for more in ({}, {"lossplug_report": True}):
        logger = Logger()
        with Log() as log:
            trainer = train(callbacks=logger.callbacks, **keys, **more)
        runs.append((trainer, logger, log.text))
    return runs


def test_a_report_changes_nothing_else_and_is_recorded_where_it_is_on(pair):
    (stock, _, _), (trainer, _, _) = pair
    assert results(trainer.save_dir) == results(stock.save_dir) and len(results(stock.save_dir)) == 2
    lines = [(run[0].save_dir / "results.csv").read_text().splitlines() for run in pair]
    assert lines[0][0] == lines[1][0] and "lossplug" not in lines[1][0]
    checkpoints = [torch.load(run[0].last, map_location="cpu", weights_only=False) for run in pair]
    one, other = (checkpoint["model"].state_dict() for checkpoint in checkpoints)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert checkpoints[0]["train_metrics"] == checkpoints[1]["train_metrics"]
    assert trainer.metrics.keys() == stock.metrics.keys()
    for (trainer, _, _), expected in zip(pair, (None, True)):
        recorded = yaml.safe_load((trainer.save_dir / "args.yaml").read_text())
        assert recorded.get("lossplug_report") is expected
        checkpoint = torch.load(trainer.last, map_location="cpu", weights_only=False)
        assert checkpoint["train_args"].get("lossplug_report") is expected
    assert "lossplug_report" not in select({"loss": "eiou"}).resolved()
    assert "lossplug_report" not in select({"loss": "eiou", "lossplug_report": False}).resolved()


def test_the_table_of_a_run(pair, data):
    trainer = pair[1][0]
    rows = table(trainer.save_dir)
    assert list(rows[0]) == HEADER
    assert [(row["epoch"], row["branch"]) for row in rows] == [("1", "main"), ("2", "main")]
    labels = Path(yaml.safe_load(Path(data).read_text())["path"]) / "labels" / "train"
    n_objects = sum(len(file.read_text().splitlines()) for file in labels.glob("*.txt"))
    for row in rows:
        # Augmentation may push an object out, and nothing of the validation is counted.
        assert 0.7 * n_objects <= int(row["objects"]) <= n_objects
        assert int(row["objects"]) == sum(int(row[f"objects{size}"]) for size in PARTS[1:])
        assert 0 < float(row["positives_per_object"]) <= 10
        assert 0 <= float(row["unassigned_share"]) < 1 and 0 < float(row["mean_iou"]) < 1
        missing = sum(int(row[f"objects{s}"]) * float(row[f"unassigned_share{s}"] or 0) for s in PARTS[1:])
        assert missing == pytest.approx(int(row["objects"]) * float(row["unassigned_share"]), abs=1e-3)
        assert int(row["conflicts"]) > 0 and 0 < float(row["conflict_share"]) < 1
        mine = [one for one in table(trainer.save_dir, "lossplug_report_classes.csv") if one["epoch"] == row["epoch"]]
        assert sum(int(one["objects"]) for one in mine) == int(row["objects"])
        assert {(one["class"], one["name"]) for one in mine} <= {("0", "circle"), ("1", "square"), ("2", "triangle")}
        shares = [int(one["objects"]) * float(one["unassigned_share"]) for one in mine]
        assert sum(shares) == pytest.approx(missing, abs=1e-3)
    assert runs.find(vars(trainer.args)) is None, "the run is over, and its collector is still held"
    assert not (trainer.save_dir / "lossplug_report.png").exists(), "plots=False"


def test_loggers_see_what_the_table_says_and_nobody_else_does(pair):
    (_, plain, _), (trainer, logger, text) = pair
    assert len(logger.seen) == len(plain.seen) == 3, "two epochs and the last validation"
    for row, seen, stock in zip(table(trainer.save_dir), logger.seen, plain.seen):
        ours = {key: value for key, value in seen.items() if key.startswith("lossplug/")}
        assert seen.keys() - ours.keys() == stock.keys()
        assert ours.keys() == {f"lossplug/{key}" for key in COLUMNS if row[key]}
        for key, value in ours.items():
            assert value == pytest.approx(float(row[key.removeprefix("lossplug/")]), rel=1e-5)
    for metrics in (*logger.left, logger.seen[2], *plain.seen):
        assert not [key for key in metrics if "lossplug" in key]
    assert len(logger.left) == 2
    (line,) = [line for line in text.splitlines() if "LossPlug: " in line]
    assert "box ciou · " in line and "report lossplug_report.csv" in line and "engine reference" in line


@pytest.mark.slow
def test_branches_plots_and_the_fast_engine(data, tmp_path):
    logger = Logger()
    keys = {"data": data, "project": str(tmp_path), "epochs": 2, "plots": True, "loss": "eiou"}
    trainer = train("yolov10n.yaml", callbacks=logger.callbacks, lossplug_report=True, **keys)
    rows = table(trainer.save_dir)
    assert [(row["epoch"], row["branch"]) for row in rows] == [
        (epoch, branch) for epoch in "12" for branch in ("one2many", "one2one")
    ]
    for row in rows:
        assert float(row["positives_per_object"]) <= (1 if row["branch"] == "one2one" else 10)
    assert float(rows[0]["positives_per_object"]) > float(rows[1]["positives_per_object"])
    assert {"lossplug/one2many/mean_iou", "lossplug/one2one/unassigned_share"} <= logger.seen[0].keys()
    picture = trainer.save_dir / "lossplug_report.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    assert picture.name in logger.plots
    # The moving average is what is saved: it knows nothing of us, nor of its criterion.
    assert b"OnAssigner" not in trainer.last.read_bytes()


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_table(data, tmp_path):
    folder = interrupt("yolov8n.yaml", data=data, project=tmp_path, lossplug_report=True)
    file = folder / "lossplug_report.csv"
    rows = table(folder)
    assert [row["epoch"] for row in rows] == ["1"]
    kept = {**rows[0], "objects": "321"}  # to be recognised; and rows of epochs that the checkpoint has not seen
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, HEADER)
        writer.writeheader()
        writer.writerows([kept, {**kept, "epoch": "2"}, {**kept, "epoch": "9"}])
    with Log() as log:
        YOLO(folder / "weights" / "last.pt").train(resume=True)
    assert table(folder)[0] == kept
    assert [(row["epoch"], row["objects"] == "321") for row in table(folder)] == [("1", 1), ("2", 0), ("3", 0)]
    assert "is ignored" not in log.text


@pytest.mark.slow
def test_an_epoch_that_is_begun_again_counts_once(data, tmp_path):
    """As after an out of memory error, or not-a-number: what was counted is forgotten."""

    def again(trainer):
        if trainer.epoch == 0:
            collector = runs.of(trainer).collector
            assert collector.meters["main"].sums[0, 0] > 0
            report.clear_counts(trainer)
            assert not collector.meters["main"].sums.any()

    keys = {**PLAIN, **STILL, "data": data, "project": str(tmp_path), "lossplug_report": True, "val": False}
    trainer = train(callbacks=[("on_train_epoch_end", again)], epochs=2, **keys)
    first, second = table(trainer.save_dir)
    assert first["objects"] == "0" and first["mean_iou"] == "" and int(second["objects"]) > 0


@pytest.mark.slow
def test_rotated_boxes(tmp_path):
    keys = {"data": dataset("turned-report", task="obb"), "project": str(tmp_path), "lossplug_report": True}
    (row,) = table(train("yolov8n-obb.yaml", **keys).save_dir)
    assert int(row["objects"]) > 0 and 0 < float(row["mean_iou"]) < 1
    assert int(row["conflicts"]) > 0 and 0 < float(row["conflict_share"]) < 1


@pytest.mark.slow
def test_ranks_report_together(data, tmp_path):
    """Two ranks see half of the images each, and the first writes what both have counted."""
    keys = {**PLAIN, **STILL, "data": data, "loss": "eiou", "cls_loss": "qfl", "val": False, "lossplug_report": True}
    on_two_ranks(tmp_path, **keys)
    (file,) = tmp_path.rglob("lossplug_report.csv")
    (row,) = table(file.parent)
    alone = train(**keys, project=str(tmp_path), name="alone")
    (expected,) = table(alone.save_dir)
    assert row["objects"] == expected["objects"] and int(row["objects"]) > 40


def test_where_the_key_has_no_effect_and_values_that_are_none():
    for value in ("maybe", 1, 0, 0.5, "True"):
        refuses(rf"^lossplug_report={value} must be True or False\.$", select, {"lossplug_report": value})
    with pytest.raises(LossPlugError, match="lossplug_report=True has no effect with task=classify"):
        select({"lossplug_report": True, "task": "classify"})
    with pytest.raises(LossPlugError, match="lossplug_report=True has no effect with mode=val"):
        config.refuse_training_keys("val", {"lossplug_report": True})
    assert keys()["lossplug_report"] is None
    for off in (None, False):
        assert given_keys({"lossplug_report": off}) == {} and not select({"lossplug_report": off}).is_active
    assert select({"lossplug_report": True}).loss_engine == "reference"
    assert select({"lossplug_report": True, "loss_engine": "auto"}).loss_engine == "auto"
    assert select({"lossplug_report": True}) != select({"lossplug_report": False, "loss": "ciou"})


@pytest.mark.slow
def test_a_run_that_reports_nothing_leaves_a_table_alone(data, tmp_path):
    """Not even where one that did was broken off in the same folder."""
    keys = {"data": data, "project": str(tmp_path), "name": "run", "exist_ok": True}
    seen = []

    def stop(trainer):
        seen.append(runs.of(trainer))
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(callbacks=[("on_fit_epoch_end", stop)], lossplug_report=True, **keys)
    before = table(tmp_path / "run")
    runs.RUNS[str(tmp_path / "run")] = seen[0]  # releases before 8.4.139 have no teardown after an error
    train(epochs=2, **keys)
    assert table(tmp_path / "run") == before
    assert "lossplug_report" not in yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
