# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug verify` says "active" where the loss runs, and exits with 1 where another one does."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from tests.runs import run
from yolo_lossplug import LossPlugError, cli
from yolo_lossplug.tools import verify
from yolo_lossplug.ultralytics_hook import criterion
from yolo_lossplug.ultralytics_hook.engines import choice, fast
from yolo_lossplug.ultralytics_hook.patches import PATCHES, SEAMS
from yolo_lossplug.ultralytics_hook.trial import one_step

COMMAND = [sys.executable, "-m", "yolo_lossplug", "verify"]
TINY = {"imgsz": 64, "batch": 2}
CASES = (
    ("yolov8n.yaml", {}),
    ("yolov8n.yaml", {"loss": "inner-eiou", "cls_loss": "qfl", "cls_smoothing": 0.1, "tal_topk": 6}),
    ("yolo11n.yaml", {"loss": "mpdiou", "cls_loss": "focal", "loss_engine": "reference"}),
    ("yolov10n.yaml", {"loss": "wiou-v3", "cls_loss": "ghm"}),
    ("yolov8n-seg.yaml", {"loss": "nwd", "cls_loss": "asl"}),
    ("yolov8n-pose.yaml", {"loss": "focal-siou"}),
    ("yolov8n-obb.yaml", {"loss": "kld", "cls_loss": "varifocal"}),
    ("yolov8n-obb.yaml", {"tal_topk": 7}),
    ("yolo26n-seg.yaml", {"loss": "eiou", "cls_loss": "qfl"}),
    ("yolo26n-pose.yaml", {"loss": "eiou"}),
    ("yolov8n-cls.yaml", {"cls_loss": "focal", "cls_smoothing": 0.1}),
)
HOSTS = {"-seg": ["seg", "sem"], "26n-pose": ["pose", "kobj", "rle"], "-pose": ["pose", "kobj"], "-obb": ["angle"]}
"""Terms that are the host's own, as training prints them."""


def values(model="yolov8n.yaml", **keys):
    return verify.verify({"model": model, **TINY, **keys})


@pytest.mark.parametrize(("model", "keys"), CASES, ids=[f"{m[:-5]}-{k.get('loss', '')}" for m, k in CASES])
def test_what_is_asked_for_is_active(model, keys):
    found, rows = values(model, **keys)
    assert all(row.agrees and row.error < 5e-4 for row in rows)
    is_split, is_classify = model.startswith(("yolov10", "yolo26")), "-cls" in model
    terms = ["box", "class", "l1" if "26" in model else "dfl"]
    assert [row.term for row in rows if row.scale] == (["class"] if is_classify else terms * (1 + is_split))
    hosts = next((names for part, names in HOSTS.items() if part in model), [])
    assert [row.term for row in rows if not row.scale] == hosts * (1 + is_split)
    assert all(row.verdict == "the host's own" for row in rows if not row.scale)
    for row in rows:
        if not row.scale and "tal_topk" not in keys:
            assert row.ours == pytest.approx(row.stock, rel=1e-5)
        asked = {"box": "loss", "class": "cls_loss"}.get(row.term)
        if asked in keys and not (is_classify and keys["cls_loss"] == "focal"):
            assert abs(row.ours / row.stock - 1) > 1e-3, "a check that sees no difference proves nothing"
        elif row.term == "dfl" and "tal_topk" not in keys:
            assert row.ours == pytest.approx(row.stock, rel=1e-5)
    assert keys.get("loss", "probiou" if "-obb" in model else "ciou") in found["runs"] or is_classify


def test_the_banner_names_the_overlap_that_runs():
    """Newer releases assign by masks and keypoints, too."""
    overlaps = {"yolo26n-seg.yaml": "siou and mask IoU", "yolo26n-pose.yaml": "OKS, siou without keypoints"}
    for model, overlap in {**overlaps, "yolov8n-seg.yaml": "siou"}.items():
        assert f"iou={overlap})" in values(model, tal_iou="siou")[0]["runs"]
    assert "iou=probiou)" in values("yolov8n-obb.yaml", tal_topk=7)[0]["runs"]


@pytest.mark.parametrize("overlap_mask", [True, False])
def test_masks_of_a_trial_belong_to_its_boxes(overlap_mask):
    batch = one_step.trial({"model": "yolov8n-seg.yaml", "imgsz": 160, "overlap_mask": overlap_mask}).batch
    images = batch["batch_idx"].long()
    assert batch["sem_masks"].shape == (4, 40, 40) and len(batch["masks"]) == (4 if overlap_mask else len(images))
    for i, (x, y, w, h) in enumerate((batch["bboxes"] * 40).tolist()):
        number = int((images[: i + 1] == images[i]).sum())
        mask = batch["masks"][images[i]] == number if overlap_mask else batch["masks"][i] > 0
        rows, columns = mask.nonzero(as_tuple=True)
        assert len(rows), "an object without a mask"
        overlap = (columns + 0.5 - x).abs() * 2 < w + 1.001, (rows + 0.5 - y).abs() * 2 < h + 1.001
        assert all(axis.all() for axis in overlap)
        if not overlap_mask:
            assert len(rows) >= w * h
    assert set(batch["sem_masks"].unique().tolist()) <= {0, *batch["cls"].long().flatten().tolist()}


def test_keypoints_of_a_trial_belong_to_its_boxes():
    batch = one_step.trial({"model": "yolov8n-pose.yaml", **TINY}).batch
    points, (centre, size) = batch["keypoints"], batch["bboxes"].split(2, dim=1)
    assert points.shape[1:] == (17, 3) and (points[..., 2] == 2).all()
    assert ((points[..., :2] - centre[:, None]).abs() < size[:, None] / 2).all()
    assert ((points[..., :2].amax(1) - points[..., :2].amin(1)) > size / 2).all()


def test_a_checkpoint_of_ten_channels(tmp_path):
    """Its weights are an average, which has no gradients of its own."""
    made = YOLO("yolov8n.yaml")
    made.model = DetectionModel(made.model.yaml, ch=10, verbose=False).requires_grad_(False)
    made.save(tmp_path / "ten.pt")
    found, rows = values(str(tmp_path / "ten.pt"), loss="eiou")
    assert all(row.agrees and row.scale.grad_ratio > 0 for row in rows) and "box eiou" in found["runs"]
    assert one_step.trial({"model": str(tmp_path / "ten.pt"), **TINY}).batch["img"].shape[1] == 10


def test_data_of_another_form_is_read_as_training_reads_it(data, tmp_path, monkeypatch):
    """The host makes its own layout of it, images included."""
    from ultralytics.data import converter

    async def convert(*args, **kwargs):
        return Path(data)

    monkeypatch.setattr(converter, "convert_ndjson_to_yolo", convert)
    (tmp_path / "x.ndjson").write_text('{"type": "dataset"}')
    found = values(loss="eiou", cls_weights={"circle": 2.0}, data=str(tmp_path / "x.ndjson"))
    assert all(row.agrees for row in found[1]) and "weights={'circle': 2.0}" in found[0]["runs"]


def test_what_is_not_taught_is_named(data):
    assert values(data=data, ignore=["circle"])[0]["runs"].endswith(" · ignore: 1 class")
    with pytest.raises(LossPlugError, match="no class 'crowd'"):
        values(data=data, ignore=["crowd"])


def test_weights_of_classes_by_name_and_of_the_host(data):
    names = {"circle": 0.5, "triangle": 2.0}
    with pytest.raises(LossPlugError, match=r"circle"):
        values(loss="eiou", cls_weights=names)  # a fresh model has 80 classes without names
    for weights in (names, [0.5, 1, 2]):
        found = values(loss="eiou", cls_weights=weights, data=data)[1]
        assert all(row.agrees for row in found) and found[1].ours != pytest.approx(found[1].stock, rel=1e-3)
    (_, cls, _) = values(loss="eiou", cls_weights=[2.0] * 80)[1]
    assert cls.agrees and cls.ours == pytest.approx(2 * cls.stock, rel=1e-3)


def test_stateful_losses_of_a_formula_start_like_those_of_the_criterion():
    """Every branch of an end-to-end head remembers for itself."""
    assert all(row.error < 2e-4 for row in values("yolov10n.yaml", loss="wise-eiou", cls_loss="ghm")[1])


def wrong_box(self, *args):
    box, dfl = self.stock(*args)
    return box, dfl


def test_a_criterion_that_runs_another_loss_is_found_out(monkeypatch, capsys):
    monkeypatch.setattr(criterion.PluggedBboxLoss, "forward", wrong_box)
    with pytest.raises(SystemExit) as caught:
        verify.main({**TINY, "loss": "eiou", "loss_engine": "reference"})
    said = capsys.readouterr().out
    assert caught.value.code == 1 and "not active: box is not as expected" in said
    assert said.count("NOT WHAT WAS ASKED FOR") == 1


@pytest.mark.parametrize("term", ["box_terms", "class_term"])
def test_an_engine_that_is_off_is_found_out(monkeypatch, capsys, term):
    if not hasattr(fast.v8DetectionLoss, choice.METHOD):
        pytest.skip("this release of Ultralytics has no fast engine")
    stock = getattr(fast, term)

    def off(*args, **kwargs):
        result = stock(*args, **kwargs)
        return result * 1.01 if term == "class_term" else (result[0] * 1.01, result[1])

    monkeypatch.setattr(choice, "self_test", lambda *_: (0.0, 0.0))
    monkeypatch.setattr(fast, term, off)
    with pytest.raises(SystemExit) as caught:
        verify.main({**TINY, "loss": "eiou"})
    assert caught.value.code == 1 and f"not active: {term[:3].replace('cla', 'class')}" in capsys.readouterr().out


def test_nan_is_not_active():
    assert not verify.Row("main", "box", 1.0, float("nan"), 1.0).agrees
    assert not verify.Row("main", "box", 1.0, 1.0, float("nan")).agrees
    assert not verify.Row("main", "box", 1.0, float("inf"), float("inf")).agrees
    assert verify.Row("main", "box", 1.0, 0.0, 0.0).agrees


def scales(model="yolov8n.yaml", **keys):
    """Return the scale of each term, by its name if there is one branch."""
    return {row.term if row.branch == "main" else (row.branch, row.term): row.scale for row in values(model, **keys)[1]}


def test_the_scale_is_that_beside_a_default_run_whatever_the_gains():
    plain, more = scales(cls_loss="focal"), scales(cls_loss="focal", cls=5.0, box=15.0)
    assert (more["class"].key, more["class"].gain, more["box"].gain, more["dfl"].gain) == ("cls", 5.0, 15.0, 1.5)
    for term, factor in (("box", 2), ("class", 10), ("dfl", 1)):
        assert more[term].default == plain[term].default and more[term].default_grad == plain[term].default_grad
        assert more[term].value_ratio == pytest.approx(factor * plain[term].value_ratio)
        assert more[term].grad_ratio == pytest.approx(factor * plain[term].grad_ratio)
        assert more[term].gain_for_value == pytest.approx(plain[term].gain_for_value)
        assert more[term].gain_for_grad == pytest.approx(plain[term].gain_for_grad)
    assert plain["box"].value_ratio == pytest.approx(1) and plain["box"].gain_for_grad == pytest.approx(7.5)
    assert 0 < plain["class"].value_ratio < 0.5


@pytest.mark.parametrize("loss", ["focal", "ghm"])
@pytest.mark.parametrize("model", ["yolov8n.yaml", "yolov10n.yaml"])
def test_the_gains_that_are_printed_match(model, loss):
    """A run with the gain has the value, or the gradient, of a default run."""
    for term, scale in scales(model, cls_loss=loss).items():
        if term in ("class", ("one2many", "class")):
            by_value = scales(model, cls_loss=loss, cls=scale.gain_for_value)[term]
            by_grad = scales(model, cls_loss=loss, cls=scale.gain_for_grad)[term]
            assert by_value.value_ratio == pytest.approx(1, rel=1e-3)
            assert by_grad.grad_ratio == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("model", ["yolov8n.yaml", "yolov8n-seg.yaml", "yolov8n-pose.yaml", "yolov8n-obb.yaml"])
@pytest.mark.parametrize("term", ["box", "class", "dfl"])
def test_gradients_are_those_of_the_criterion_with_one_gain(model, term):
    """The sum that the host goes backward from, with all other gains at 0, by the boxes and scores of the head."""
    keys = {"cls_loss": "focal", "loss_engine": "reference"}
    one = one_step.trial({"model": model, **TINY, **keys})
    norm = one_step.grad_norms(one_step.criterion_of(one), one)["main"][one_step.TERMS.index(term)]
    others = {key: 0.0 for key in ("box", "cls", "dfl", "pose", "kobj", "angle") if key != one_step.GAINS[term]}
    loss = one_step.criterion_of(one, **others)(one.preds, one.batch)[0].sum() / TINY["batch"]
    # Masks have the gain of boxes; older releases return them behind the boxes and scores.
    old = one.preds[0] if "seg" in model and not isinstance(one.preds, dict) else one.preds
    preds = one.preds if isinstance(one.preds, dict) else {"all": old}
    outputs = [
        t for key in preds if key in ("boxes", "scores", "angle", "all") for t in one_step.head_outputs(preds[key])
    ]
    grads = [g for g in torch.autograd.grad(loss, outputs, allow_unused=True) if g is not None]
    assert norm > 0 and norm == pytest.approx(sum(g.square().sum().item() for g in grads) ** 0.5, rel=1e-3)


def test_classify_has_no_gain():
    (scale,) = scales("yolov8n-cls.yaml", cls_loss="focal").values()
    assert scale.key is None and math.isnan(scale.gain_for_value) and scale.value_ratio != pytest.approx(1, rel=1e-4)


def test_a_gain_of_0_has_no_match():
    scale = scales(cls=0.0)["class"]
    assert scale.ours == 0 and math.isnan(scale.gain_for_value) and scale.default > 0


def test_tables_are_aligned_under_a_heading_for_each_column(capsys):
    with pytest.raises(SystemExit):
        verify.main({**TINY, "cls": 5.0, "cls_loss": "ghm", "loss": "l1"})
    said = capsys.readouterr().out.splitlines()
    starts = [i for i, line in enumerate(said) if line.startswith("term")]
    assert len(starts) == 2
    for start in starts:
        head, *body = (re.split(r" {2,}", line) for line in said[start : start + 4])
        assert {len(row) for row in body} == {len(head)} and [row[0] for row in body] == [*one_step.TERMS]
        assert len({len(line) for line in said[start : start + 4]}) == 1
    class_row = next(line for line in said[starts[1] :] if line.startswith("class"))
    assert "  cls=5  " in class_row and class_row.count("cls=") == 3


@pytest.mark.parametrize("columns", [60, 80])
def test_the_report_fits_the_terminal(columns, monkeypatch, capsys):
    """Also of an end-to-end head, whose branches have lines of their own, and where a loss is not the one asked for."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(criterion.PluggedBboxLoss, "forward", wrong_box)
    with pytest.raises(SystemExit):
        verify.main({**TINY, "model": "yolov10n.yaml", "loss": "eiou", "cls_loss": "ghm", "loss_engine": "reference"})
    said = capsys.readouterr().out
    assert max(len(line.encode()) for line in said.splitlines()) <= columns
    assert said.count("NOT WHAT WAS ASKED FOR") == 2 and said.count("one2many\n") >= 2
    assert len(re.findall(r"cls=0\.5\s", said)) == 2, "the gain, in each branch"


def test_what_is_proven_is_said(capsys):
    with pytest.raises(SystemExit):
        verify.main({**TINY, "loss": "eiou"})
    said = " ".join(capsys.readouterr().out.split())
    assert "the registered function, called directly in float64" in said and "not that it is the formula" in said
    assert "does not prove that the\nfunction is the formula of the paper" in verify.HELP
    assert not any("formula by itself" in text for text in (said, verify.HELP, cli.HELP))


def test_seams_are_listed():
    seams = values(loss="eiou")[0]["seams"]
    assert len(seams["found"]) + len(seams["absent"]) == len(PATCHES) + len(SEAMS)
    assert "ultralytics.nn.tasks.*.init_criterion" in seams["found"]
    moved = ("non_max_suppression", "_YOLO_CLI", "Multi", "cfg.YAML", "cfg.yaml_print", "transforms", "update_metrics")
    assert all(any(part in name for part in moved) for name in seams["absent"])


@pytest.mark.slow
def test_command(tmp_path):
    done = run([*COMMAND, "loss=eiou", "imgsz=64", "--json"], tmp_path)
    found = json.loads(done.stdout)
    assert found["active"] and found["device"] == "cpu" and found["terms"][0]["term"] == "box"
    assert found["terms"][1]["scale"]["key"] == "cls" and found["terms"][1]["scale"]["gain_for_value"] > 0
    done = run([*COMMAND, "loss=eiou", "imgsz=64"], tmp_path, env={"YOLO_LOSSPLUG": "0"}, check=False)
    assert done.returncode == 1 and "switched off" in done.stdout and "Traceback" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "eiuo"}, "Did you mean 'eiou'"),
        ({"los": "eiou"}, "los=eiou is unknown. Did you mean 'loss'"),
        ({"loss": "eiou", "focal_gamma": 1}, "focal_gamma=1 has no effect with loss=eiou"),
        ({"cls_weights": [1, 2], "model": "yolov8s-world.yaml"}, "cannot be used with YOLO-World: its channels"),
        ({"tal_topk": 3, "model": "rtdetr-l.yaml"}, "tal_topk=3 has no effect with RT-DETR"),
        ({"loss": "eiou", "model": "nothere.yaml"}, "nothere.yaml"),
        ({"loss": "eiou", "model": "yolov8n-obb.yaml"}, "rotated"),
        ({"loss": "eiou,giou"}, "loss=eiou,giou names several: verify takes one"),
        ({"imgsz": 0}, "imgsz=0 must be a whole number, at least 32"),
        ({"batch": -1}, "batch=-1 must be"),
        ({"seed": "x"}, "seed"),
        ({"device": "xyz"}, "device"),
        ({"data": "nothere.yaml"}, "nothere.yaml"),
    ],
)
def test_errors(keys, message):
    with pytest.raises(LossPlugError, match=message.replace(".", r"\.")):
        values(**keys)
