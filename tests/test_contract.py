# SPDX-License-Identifier: AGPL-3.0-or-later
"""What holds on every supported release of Ultralytics; `python -m tests.versions` runs this file on many of them."""

import pickletools
import sys
import zipfile

import pytest
import torch
import ultralytics
from packaging.version import Version

from tests.runs import ABSENT, ROOT, STILL, TINY, WITHOUT_PLUGIN, python, results, train, yolo
from yolo_lossplug.tools import verify
from yolo_lossplug.ultralytics_hook.trial import one_step

# Batches of 3: Ultralytics 8.4.0 takes the masks of 2 images for something else.
MODELS = ("yolov8n", "yolov10n", "yolo11n", "yolov8n-seg", "yolov8n-pose")


def step(one, **keys):
    criterion = one_step.criterion_of(one, **keys)
    one.model.zero_grad()
    loss = criterion(one.model(one.batch["img"]), one.batch)[0]
    loss.sum().backward()
    slopes = [p.grad.clone() for p in one.model.parameters() if p.grad is not None]
    return loss.detach(), slopes


@pytest.fixture(scope="module", params=MODELS)
def one(request):
    return one_step.trial({"model": f"{request.param}.yaml", "loss": "eiou", "imgsz": 96, "batch": 3})


def test_the_stock_loss_has_the_numbers_of_stock(one):
    stock, slopes = step(one, is_stock=True)
    named, found = step(one, loss="ciou", loss_engine="reference")
    assert torch.equal(named, stock)
    assert len(found) == len(slopes) and all(map(torch.equal, found, slopes))


def test_another_loss_changes_the_box_term_alone(one):
    stock, ours = (one_step.terms(one_step.criterion_of(one, **keys), one) for keys in ({"is_stock": True}, {}))
    assert ours.keys() == stock.keys()
    for branch, (box, cls, dfl) in ours.items():
        assert box > 1.05 * stock[branch][0]
        assert (cls, dfl) == pytest.approx(stock[branch][1:], rel=2e-4)


def test_another_loss_changes_the_gradient_of_the_box_branch_alone(one):
    (_, stock), (_, ours) = step(one, is_stock=True), step(one)
    assert all(slope.isfinite().all() for slope in ours)
    names = [name for name, p in one.model.named_parameters() if p.grad is not None]
    head = f"model.{len(one.model.model) - 1}."

    def difference(branch):
        """Relative to the norm of all gradients of a branch of the head, of both where there are two."""
        places = tuple(f"{head}{prefix}{branch}." for prefix in ("", "one2one_"))
        rows = [(a, b) for name, a, b in zip(names, stock, ours) if name.startswith(places)]
        before, after = (torch.cat([slope.flatten() for slope in column]) for column in zip(*rows))
        return ((after - before).norm() / before.norm()).item()

    assert difference("cv2") > 0.05, "boxes"
    assert difference("cv3") < 1e-4, "classes"


@pytest.mark.parametrize("keys", [{"loss": "focal-inner-eiou", "cls_loss": "qfl"}, {"loss": "wiou-v3", "tal_topk": 6}])
@pytest.mark.parametrize("model", [*MODELS, "yolov8n-obb"])
def test_every_term_is_what_the_formula_gives(model, keys):
    loss = {"loss": "kld"} if "-obb" in model else {}
    _, rows = verify.verify({"model": f"{model}.yaml", "imgsz": 96, "batch": 3, **keys, **loss})
    assert rows and all(row.agrees for row in rows)


RTDETR = str(ROOT / "tests" / "ultralytics_hook" / "rtdetr-narrow.yaml")


def matched_step(one, **keys):
    """Return the loss of a step of RT-DETR, its terms, and the gradients of all weights, with the same noise."""
    one.model.criterion = one_step.criterion_of(one, **keys)
    one.model.zero_grad()
    torch.manual_seed(0)
    loss, items = one.model.loss(one.batch)
    loss.backward()
    values = list(items.values()) if isinstance(items, dict) else [items]
    slopes = [p.grad.clone() for p in one.model.parameters() if p.grad is not None]
    return [loss.detach(), *values, *slopes]


@pytest.mark.parametrize("objects", [True, False], ids=["objects", "no object"])
def test_the_stock_losses_of_rtdetr_have_the_numbers_of_stock(objects):
    """Its class loss has the published numbers before 8.3.116, and others since."""
    is_published = Version(ultralytics.__version__) < Version("8.3.116")
    alpha, gamma = (0.75, 2.0) if is_published else (0.25, 1.5)
    keys = {"loss": "giou", "cls_loss": "varifocal", "cls_vfl_alpha": alpha, "cls_vfl_gamma": gamma}
    one = one_step.trial({"model": RTDETR, "imgsz": 64, "batch": 2, **keys})
    if not objects:
        one.batch.update({key: one.batch[key][:0] for key in ("cls", "bboxes", "batch_idx")})
    stock, named = matched_step(one, is_stock=True), matched_step(one)
    assert len(named) == len(stock) and all(map(torch.equal, named, stock))
    assert not torch.equal(matched_step(one, cls_vfl_alpha=0.5)[0], stock[0])


@pytest.mark.parametrize("keys", [{"loss": "inner-eiou"}, {"loss": "nwd", "cls_loss": "qfl"}], ids=str)
def test_every_term_of_rtdetr_is_what_the_formula_gives(keys):
    _, rows = verify.verify({"model": RTDETR, "imgsz": 64, "batch": 2, **keys})
    assert len(rows) == 3 and all(row.agrees for row in rows)
    changed = {"box", *(["class"] if "cls_loss" in keys else [])}
    assert {row.term for row in rows if abs(row.ours / row.stock - 1) > 1e-3} == changed


@pytest.mark.slow
def test_rtdetr_trains(data, tmp_path):
    words = ["train", f"model={RTDETR}", f"project={tmp_path}", "loss=eiou", "cls_loss=qfl"]
    done = yolo(*words, cwd=tmp_path, data=data, **TINY)
    assert "box eiou · class qfl(cls_qfl_beta=2.0) · matcher host's" in done.stdout
    (best,) = tmp_path.rglob("best.pt")
    assert b"yolo_lossplug" not in best.read_bytes()


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Folder of runs from the command line on weights that stay, and what each printed."""
    place, said = tmp_path_factory.mktemp("contract"), {}
    train(data=data, project=str(place))  # the dataset's cache is there
    for name, words in (("stock", []), ("eiou", ["loss=eiou"]), ("mixed", ["loss=inner-eiou", "cls_loss=qfl"])):
        words = ["train", "model=yolov8n.yaml", f"project={place}", f"name={name}", *words]
        said[name] = yolo(*words, cwd=place, data=data, **{**TINY, **STILL}).stdout
    return place, said


@pytest.mark.slow
def test_validation_uses_the_loss_of_training(runs):
    place, said = runs
    assert "LossPlug: box eiou" in said["eiou"].replace("\x1b[0m", "") and "LossPlug" not in said["stock"]
    stock, eiou, mixed = (results(place / name)[-1] for name in ("stock", "eiou", "mixed"))
    for part in ("train", "val"):
        assert eiou[f"{part}/box_loss"] > 1.2 * stock[f"{part}/box_loss"]
        assert eiou[f"{part}/dfl_loss"] == pytest.approx(stock[f"{part}/dfl_loss"], rel=1e-3)
        assert eiou[f"{part}/cls_loss"] == pytest.approx(stock[f"{part}/cls_loss"], rel=1e-3)
        assert mixed[f"{part}/cls_loss"] < 0.9 * stock[f"{part}/cls_loss"]


@pytest.mark.slow
def test_checkpoints_are_clean_and_live_without_the_plugin(runs, data):
    place, _ = runs
    best = place / "mixed" / "weights" / "best.pt"
    with zipfile.ZipFile(best) as archive:
        (pickled,) = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    names = [argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)]
    assert not [name for name in names if "yolo_lossplug" in name]
    code = WITHOUT_PLUGIN + (
        "from ultralytics import YOLO; import numpy as np, sys\n"
        "model = YOLO(sys.argv[1]); model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)\n"
        "print('PREDICTED', model.task)"
    )
    assert "PREDICTED detect" in python(code, best, cwd=place, env=ABSENT).stdout


@pytest.mark.slow
def test_the_release_is_the_one_that_was_asked_for():
    import os

    import ultralytics

    wanted = os.environ.get("LOSSPLUG_HOST")
    assert wanted in (None, ultralytics.__version__)
    said = python("import ultralytics; print(ultralytics.__version__)", cwd=".").stdout.split()[-1]
    assert said == ultralytics.__version__, sys.path
