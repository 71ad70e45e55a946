# SPDX-License-Identifier: AGPL-3.0-or-later
"""RT-DETR: our losses on matched queries, in every decoder layer and in denoising, as scalar formulas have them."""

import copy
import functools
import itertools
import pickle
from pathlib import Path

import pytest
import torch
import ultralytics
import yaml
from packaging.version import Version
from ultralytics import RTDETR, YOLO
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.utils import loss as host_loss
from ultralytics.models.utils.loss import RTDETRDetectionLoss

from tests import oracles
from tests.checks import class_oracle
from tests.runs import STILL, TINY, Log, interrupt, refuses, results, train
from yolo_lossplug import LossPlugError, create_box_loss
from yolo_lossplug.registry import CLASS, REGISTRY
from yolo_lossplug.selection.keys import DETR
from yolo_lossplug.selection.loss import list_box_losses
from yolo_lossplug.selection.select import select
from yolo_lossplug.state import State
from yolo_lossplug.tools import verify
from yolo_lossplug.tools.compare import plan as compare
from yolo_lossplug.ultralytics_hook import detr
from yolo_lossplug.ultralytics_hook.criterion import plug
from yolo_lossplug.ultralytics_hook.dataset import assignments
from yolo_lossplug.ultralytics_hook.run import runs
from yolo_lossplug.ultralytics_hook.running import banner, mismatches, running
from yolo_lossplug.ultralytics_hook.trial import bench_cases, matched_step, one_step

MODEL = str(Path(__file__).with_name("rtdetr-narrow.yaml"))
IS_PUBLISHED = Version(ultralytics.__version__) < Version("8.3.116")
ALPHA, GAMMA = (0.75, 2.0) if IS_PUBLISHED else (0.25, 1.5)
"""Numbers of the host's own varifocal loss."""
STOCK = {"loss": "giou", "cls_loss": "varifocal", "cls_vfl_alpha": ALPHA, "cls_vfl_gamma": GAMMA}
CLASS_LOSSES = [n for n in REGISTRY.names(CLASS) if "state" not in REGISTRY.specs[CLASS, n].context]
N_CLASSES, LAYERS = 3, 3


def selected(**keys):
    return select({**keys, "task": DETR})


def host():
    return RTDETRDetectionLoss(nc=N_CLASSES, use_vfl=True)


def criterion(state=None, **keys):
    return plug(host(), selected(**keys), state, {i: f"class{i}" for i in range(N_CLASSES)})


@functools.cache
def problem(empty):
    """Return outputs of three layers for two images with 4 + 0 objects, or none, and of denoising; with gradient."""
    rng = torch.Generator().manual_seed(5)
    n = 0 if empty else 4
    batch = {
        "cls": torch.randint(N_CLASSES, (n,), generator=rng),
        "bboxes": torch.rand(n, 4, generator=rng) * 0.3 + torch.tensor([0.3, 0.3, 0.1, 0.1]),
        "gt_groups": [n, 0],
    }
    boxes = torch.rand(LAYERS, 2, 12, 4, generator=rng) * 0.4 + torch.tensor([0.2, 0.2, 0.05, 0.05])
    boxes[:, 0, :n] = batch["bboxes"] * (1 + 0.1 * torch.randn(LAYERS, n, 4, generator=rng))
    scores = torch.randn(LAYERS, 2, 12, N_CLASSES, generator=rng)
    args = {"preds": (boxes.requires_grad_(), scores.requires_grad_()), "batch": batch}
    if not empty:  # two groups of denoising queries; the host makes none without objects
        dn_boxes = (batch["bboxes"].repeat(LAYERS, 2, 2, 1) * 1.2).requires_grad_()
        dn_scores = torch.randn(LAYERS, 2, 8, N_CLASSES, generator=rng).requires_grad_()
        index = [torch.arange(n), torch.arange(0)]
        positive = [torch.arange(2 * n), torch.arange(0)]
        meta = {"dn_pos_idx": positive, "dn_num_group": 2, "dn_gt_idx": index}
        args |= {"dn_bboxes": dn_boxes, "dn_scores": dn_scores, "dn_meta": meta}
    return args


def evaluate(made, empty=False, size=(640, 640)):
    with detr.input_size(*size), matched_step.recorded(made) as calls:
        return made(**problem(empty)), calls


def total(losses, name):
    return sum(value for key, value in losses.items() if key.startswith(name)).item()


def in_pixels(box, size):
    (x, y, w, h), (height, width) = box, size
    return [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]


def box_formula(name, calls, size):
    loss, oracle, value = create_box_loss(name), oracles.box(name), 0.0
    pair = torch.tensor([[[1.0, 1, 4, 5]], [[2.0, 1, 6, 6]]])
    in_cells = "stride" in loss.context and torch.equal(loss(*pair, stride=8.0), loss(*pair))
    for method, args in calls:
        if method == "_get_loss_bbox":
            pairs = [[in_pixels(box, size) for box in rows] for rows in zip(args[0].tolist(), args[1].tolist())]
            pairs = [[[v / (8 if in_cells else 1) for v in box] for box in rows] for rows in pairs]
            value += 2 * sum(oracle(p, t) for p, t in pairs) / len(pairs)
    return value


def class_formula(name, calls, weights=(1, 1, 1), smoothing=0.0, **options):
    """Return the class term of all calls as a sum over queries and classes, over the number of objects."""
    value = 0.0
    for method, args in calls:
        if method != "_get_loss_class":
            continue
        logits, classes, scores, n_objects = args[:4]
        flat, targets = [], []
        for row, k, q in zip(logits.flatten(0, 1).tolist(), classes.flatten().tolist(), scores.flatten().tolist()):
            for c, s in enumerate(row):
                y = max(q, 1e-38) if c == k else 0.0
                flat.append(s)
                targets.append(y * (1 - smoothing) + smoothing / 2 if k < N_CLASSES else y)
        elements = class_oracle(name)(flat, targets, **options)
        value += sum(e * weights[i % N_CLASSES] for i, e in enumerate(elements)) / max(n_objects, 1)
    return value


MIXTURES = ["ciou+nwd", "inner-ciou+nwd", "eiou+l1"]


@pytest.mark.parametrize("name", [*(name for name in list_box_losses() if oracles.box(name)), *MIXTURES])
def test_box_losses_are_the_formula_in_every_layer(name):
    """Those that the host has as well included: then its own stays."""
    losses, calls = evaluate(criterion(loss=name))
    stock, _ = evaluate(host())
    assert len(calls) == 2 * 2 * LAYERS, "layers and denoising"
    assert total(losses, "loss_giou") == pytest.approx(box_formula(name, calls, (640, 640)), rel=2e-4)
    for key, value in losses.items():
        if "giou" not in key:
            assert torch.equal(value, stock[key]), "the other terms are the host's"
        elif name not in ("giou", "iou"):
            assert not torch.isclose(value, stock[key], rtol=1e-4), key


@pytest.mark.parametrize("empty", [False, True], ids=["objects", "no object"])
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_losses_are_the_formula_in_every_layer(name, empty):
    formula = "bce" if empty and name in oracles.BATCH else name  # without a positive there is nothing to weigh by
    for more, weighed in (({}, ()), ({"cls_smoothing": 0.2, "cls_weights": [1, 2, 0.5]}, ((1, 2, 0.5), 0.2))):
        losses, calls = evaluate(criterion(cls_loss=name, **more), empty)
        assert len(calls) == 2 * (1 if empty else 2) * LAYERS
        assert total(losses, "loss_class") == pytest.approx(class_formula(formula, calls, *weighed), rel=1e-4)


def test_a_matched_query_without_overlap_is_a_positive():
    made = criterion(cls_loss="varifocal")
    logits, classes = torch.zeros(1, 2, N_CLASSES), torch.tensor([[1, N_CLASSES]])
    ((_, value),) = made._get_loss_class(logits, classes, torch.zeros(1, 2), 1).items()
    negatives = 5 * 0.75 * 0.25 * torch.tensor(2.0).log()
    assert value == pytest.approx(negatives.item()), "its weight is its IoU, 0, as published"


def test_the_host_is_equalled_to_the_last_digit_and_a_batch_without_objects_has_no_box_loss():
    for empty in (False, True):
        named, stock = (evaluate(made, empty)[0] for made in (criterion(**STOCK), host()))
        assert named.keys() == stock.keys() and all(torch.equal(named[key], stock[key]) for key in stock)
    for keys in (STOCK, {"loss": "eiou", "cls_loss": "bce"}):
        losses, _ = evaluate(criterion(**keys), empty=True)
        assert total(losses, "loss_giou") == 0 and total(losses, "loss_class") > 0
        (grad,) = torch.autograd.grad(sum(losses.values()), [problem(True)["preds"][1]])
        assert grad.isfinite().all() and grad.abs().sum() > 0


def test_our_giou_and_varifocal_have_the_numbers_of_the_host():
    """Without the host's own staying, value and gradient are its: the seam, targets and sums are right."""
    made = criterion(**STOCK)
    assert made.lossplug.terms.box is None and made.lossplug.terms.cls is None
    assert criterion(**STOCK, cls_vfl_detach=1).lossplug.terms.cls is not None, "it has other gradients"
    other = criterion(**{**STOCK, "loss": "eiou", "cls_vfl_alpha": ALPHA + 0.01})
    terms = other.lossplug.terms
    terms.box = terms.others = create_box_loss("giou")
    terms.cls.loss = selected(**STOCK).cls
    leaves = [*problem(False)["preds"], problem(False)["dn_bboxes"], problem(False)["dn_scores"]]
    found = []
    for each in (made, other):
        losses, _ = evaluate(each)
        found.append([*losses.values(), *torch.autograd.grad(sum(losses.values()), leaves)])
    for hosts, ours in zip(*found):
        torch.testing.assert_close(ours, hosts, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_the_l1_term_is_the_hosts_to_the_last_digit(autocast):
    """The formula of the L1 term, and the host's method for it, agree in value and gradient."""
    made = criterion(loss="eiou")
    assert made.lossplug.terms.has_l1
    for n, dtype in itertools.product((0, 1, 50), (torch.float32, torch.float16, torch.bfloat16, torch.float64)):
        rng, found = torch.Generator().manual_seed(n), []
        target = torch.rand(n, 4, generator=rng) * 0.3 + 0.2
        pred = (target + 0.1 * torch.randn(n, 4, generator=rng)).to(dtype).requires_grad_()
        with detr.input_size(640, 640), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            for made.lossplug.terms.has_l1 in (True, False):
                losses = made._get_loss_bbox(pred, target, "_aux")
                found.append([*losses.values(), *torch.autograd.grad(sum(losses.values()), [pred])])
                assert list(losses) == ["loss_bbox_aux", "loss_giou_aux"]
        assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(*found)), (n, dtype)


def test_the_hosts_giou_is_not_computed_to_be_discarded(monkeypatch):
    made, calls = criterion(loss="eiou"), []
    iou = host_loss.bbox_iou
    monkeypatch.setattr(host_loss, "bbox_iou", lambda *args, **kw: calls.append(kw.get("GIoU")) or iou(*args, **kw))
    evaluate(made)
    assert calls == [None] * 2 * LAYERS, "the targets of classes only"


@pytest.mark.parametrize(
    "change",
    [
        lambda losses, postfix: {**losses, f"loss_bbox{postfix}": losses[f"loss_bbox{postfix}"] * 2},
        lambda losses, postfix: {**losses, f"loss_angle{postfix}": losses[f"loss_bbox{postfix}"]},
    ],
    ids=["twice the L1", "another term"],
)
def test_a_host_with_another_l1_term_keeps_it(change, monkeypatch):
    def method(self, pred_bboxes, gt_bboxes, postfix="", stock=host_loss.DETRLoss._get_loss_bbox):
        return change(stock(self, pred_bboxes, gt_bboxes, postfix), postfix)

    monkeypatch.setattr(host_loss.DETRLoss, "_get_loss_bbox", method)
    made, boxes = criterion(loss="eiou"), problem(False)["batch"]["bboxes"]
    assert not made.lossplug.terms.has_l1
    with detr.input_size(640, 640):
        ours, hosts = made._get_loss_bbox(boxes * 1.1, boxes), method(host(), boxes * 1.1, boxes)
    assert ours.keys() == hosts.keys()
    assert all(torch.equal(ours[key], hosts[key]) for key in hosts.keys() - {"loss_giou"})


@pytest.mark.parametrize("name", ["nwd", "mpdiou", "l1", "eiou", "ciou+nwd"])
def test_losses_in_pixels_know_the_size_of_the_input(name):
    size = (64, 96)
    losses, calls = evaluate(criterion(loss=name), size=size)
    if name != "mpdiou":  # whose oracle has another image
        assert total(losses, "loss_giou") == pytest.approx(box_formula(name, calls, size), rel=1e-4)
    (_, args) = next(call for call in calls if call[0] == "_get_loss_bbox")
    pred, target = (torch.tensor([in_pixels(box, size) for box in boxes.tolist()]) for boxes in args[:2])
    imgsz = {"imgsz": size} if name == "mpdiou" else {}
    expected = create_box_loss(name)(pred, target, stride=1.0, **imgsz).mean() * 2
    assert losses["loss_giou"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_size_of_the_input_comes_from_the_batch():
    one = one_step.trial({"model": MODEL, "loss": "nwd", "imgsz": 64, "batch": 2})
    seen, made = [], one_step.criterion_of(one)
    made.register_forward_hook(lambda *_: seen.append(detr._input_size.get()))
    one.model.criterion = made
    one.model.loss(one.batch)
    assert seen == [(64, 64)] and detr._input_size.get() is None
    refuses(r"size of the network input is unknown: call model\.loss\(batch\)", made, **problem(False))


def test_a_running_mean_is_that_of_the_last_layer_and_of_training():
    state = State()
    made = criterion(state, loss="wiou-v3", wiou_momentum=0.5)
    with torch.no_grad():
        evaluate(made)
    state.commit()
    assert state.tensors["main.iou_loss.mean"] == 1
    _, calls = evaluate(made)
    state.commit()
    pred, target = next(args for name, args in calls if name == "_get_loss_bbox")[:2]
    last = create_box_loss("iou")(*(torch.tensor([in_pixels(b, (1, 1)) for b in x.tolist()]) for x in (pred, target)))
    assert state.tensors["main.iou_loss.mean"] == pytest.approx(0.5 + 0.5 * last.mean().item(), rel=1e-4)
    evaluate(made, empty=True)
    state.commit()
    assert state.tensors["main.iou_loss.mean"] == pytest.approx(0.5 + 0.5 * last.mean().item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_raised(dtype):
    made = criterion(loss="eiou", cls_loss="qfl")
    boxes = problem(False)["batch"]["bboxes"]
    pred = (boxes * 1.01).to(dtype)
    with detr.input_size(640, 640), torch.autocast("cpu", dtype=torch.bfloat16):
        low, high = (made._get_loss_bbox(p, boxes)["loss_giou"] for p in (pred, pred.float()))
        assert low.dtype == torch.float32 and low == pytest.approx(high.item(), rel=1e-6)
        logits, classes = torch.randn(1, 4, N_CLASSES).to(dtype), torch.tensor([[0, 1, 2, N_CLASSES]])
        args = classes, torch.rand(1, 4), 3
        low, high = (made._get_loss_class(x, *args)["loss_class"] for x in (logits, logits.float()))
        assert low.dtype == torch.float32 and low == pytest.approx(high.item(), rel=1e-6)


def test_what_is_refused_before_data_and_model(tmp_path):
    for keys, message in (
        *(
            ({key: value}, f"{key}={value} has no effect with RT-DETR: its queries are matched")
            for key, value in {
                **{"tal_topk": 3, "tal_alpha": 1.0, "tal_beta": 2.0, "tal_iou": "giou"},
                **{"nms_iou": "diou", "lossplug_report": True},
            }.items()
        ),
        ({"cls_loss": "ghm"}, "cls_loss=ghm cannot be used with RT-DETR: it keeps statistics .* asl, bce, focal"),
        ({"cls_loss": "ema-slide"}, "cls_loss=ema-slide cannot be used with RT-DETR"),
        ({"loss_engine": "fast"}, "loss_engine=fast cannot be used with RT-DETR: it matches queries"),
        ({"loss_engine": "triton"}, "loss_engine=triton cannot be used with RT-DETR"),
        ({"cls_smoothing": 0.1}, "cls_smoothing=0.1 needs cls_loss with RT-DETR"),
        ({"loss": "eiou", "cls_weights": [1, 2, 3]}, r"cls_weights=\[1, 2, 3\] needs cls_loss with RT-DETR"),
        ({"loss": "kld"}, "loss=kld takes rotated boxes"),
        ({"loss": "eiou", "focal_gamma": 1.0}, "focal_gamma=1.0 has no effect with loss=eiou"),
    ):
        overrides = {**TINY, "data": "nowhere.yaml", "model": "best.pt", "project": str(tmp_path), **keys}
        refuses(message, RTDETRTrainer, overrides=overrides)
        refuses(message, RTDETR(MODEL).train, **overrides)
        assert not list(tmp_path.iterdir()), "a run was begun"


def test_class_weights_and_another_host_are_refused(monkeypatch):
    refuses("has 2 values for 3 classes", criterion, cls_loss="bce", cls_weights=[1, 2])

    def moved(self, boxes):
        return {}

    monkeypatch.setattr("ultralytics.models.utils.loss.DETRLoss._get_loss_bbox", moved)
    refuses("RT-DETR cannot be trained with another loss: this release", criterion, loss="eiou")


HOSTS = f"VarifocalLoss(alpha={ALPHA:g}, gamma={GAMMA:g})"
VARIFOCAL = f"varifocal(cls_vfl_gamma={GAMMA}, cls_vfl_alpha={ALPHA}, cls_vfl_detach=0)"


def test_the_banner_names_what_runs():
    for keys, expected in (
        ({"loss": "eiou"}, f"box eiou · class {HOSTS}"),
        ({"cls_loss": "qfl"}, "box giou · class qfl(cls_qfl_beta=2.0)"),
        (STOCK, f"box giou · class {VARIFOCAL}"),
        ({"cls_loss": "bce", "cls_smoothing": 0.1}, "box giou · class bce smoothing=0.1"),
    ):
        said = banner(selected(**keys), criterion(**keys))
        assert said == f"{expected} · matcher host's · engine reference · ultralytics {ultralytics.__version__}"


def test_what_is_recorded_selects_the_same_again_and_copies_evaluate_the_same():
    """A worker and a resumed run start from what a trainer has settled."""
    for keys in ({"loss": "focal-eiou"}, {"cls_loss": "varifocal"}, {"cls_vfl_alpha": 0.5}, STOCK):
        first = selected(**keys)
        again = selected(**first.resolved())
        assert again == first and again.resolved() == first.resolved()
    assert selected(loss="eiou").resolved() == {"loss": "eiou", "loss_engine": "auto"}
    assert selected().resolved() == {} and not selected().is_active
    made = criterion(loss="eiou")
    expected, _ = evaluate(made)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        found, _ = evaluate(other)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_guard_reads_the_criterion():
    keys = {**STOCK, "loss": "eiou"}
    made, selection = criterion(**keys), selected(**keys)
    assert mismatches(made, selection) == []
    assert mismatches(made, selected(loss="giou"))
    (said,) = mismatches(host(), selection)
    assert said.startswith("loss=eiou cls_loss=varifocal") and "training runs RTDETRDetectionLoss" in said
    made.vfl = None  # the host's own, which was the selected one
    (said,) = mismatches(made, selection)
    assert "cls_loss=varifocal" in said and "runs cls_loss=FocalLoss(alpha=0.25, gamma=1.5)" in said


def test_verify(monkeypatch):
    for keys in (
        {"loss": "inner-eiou", "cls_loss": "qfl", "cls_smoothing": 0.1},
        {"loss": "wise-eiou", "cls_weights": [0.5, 1, 2], "cls_loss": "focal"},
        STOCK,
    ):
        about, rows = verify.verify({"model": MODEL, "imgsz": 64, "batch": 2, **keys})
        assert [row.term for row in rows] == ["box", "class", "l1"] and all(row.error < 1e-5 for row in rows)
        assert "matcher host's" in about["runs"] and rows[0].scale.key is None and rows[0].scale.grad_ratio > 0
        assert [row.ours == row.stock for row in rows] == [keys is STOCK, keys is STOCK, True]
    monkeypatch.setattr(detr, "per_object", lambda elements, n: elements.mean())
    rows = verify.verify({"model": MODEL, "imgsz": 64, "batch": 2, "cls_loss": "qfl"})[1]
    assert [row.agrees for row in rows] == [True, False, True]


KEYS = {"loss": "inner-eiou", "cls_loss": "qfl"}


@pytest.mark.slow
def test_a_training(data, tmp_path):
    """Of a model by the class of all, where a release builds this one by it."""
    is_old, seen = Version(ultralytics.__version__) < Version("8.4"), []
    watch = [("on_train_batch_end", lambda t: seen.append((running(t.model.criterion), t.model.criterion)))]
    with Log() as log:
        model = RTDETR(MODEL) if is_old else YOLO(MODEL, task="detect")
        made = train(model, callbacks=watch, data=data, project=str(tmp_path), epochs=2, **KEYS)
    assert "box inner-eiou(inner_ratio=0.7) · class qfl(cls_qfl_beta=2.0) · matcher host's" in log.text
    assert str(seen[-1][0]["loss"]) == "inner-eiou(inner_ratio=0.7)"
    assert not mismatches(seen[-1][1], runs.of(made).selection)
    recorded = yaml.safe_load((made.save_dir / "args.yaml").read_text())
    assert recorded["loss"] == "inner-eiou" and recorded["cls_qfl_beta"] == 2.0 and "tal_topk" not in recorded
    assert recorded["task"] == "detect"
    rows = results(made.save_dir)
    assert len(rows) == 2 and all(0 < row[f"{part}/giou_loss"] < 10 for row in rows for part in ("train", "val"))
    for file in (made.last, made.best):
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        assert "criterion" not in {name.partition(".")[0] for name, m in checkpoint["model"].named_modules() if m}
        assert b"yolo_lossplug" not in file.read_bytes() and b"Plugged" not in file.read_bytes()
        assert {key: checkpoint["train_args"][key] for key in KEYS} == KEYS
    RTDETR(str(made.best)).predict(torch.zeros(1, 3, 64, 64), imgsz=64, verbose=False)


@pytest.mark.slow
def test_mixed_precision(data, tmp_path, monkeypatch):
    """One epoch under autocast to bfloat16; on the CPU, where the host has none, by its own switch."""
    low = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    monkeypatch.setattr("ultralytics.engine.trainer.autocast", lambda *args, **keys: low())
    seen = []

    def look(trainer):
        made = trainer.model.criterion
        made.register_forward_hook(lambda m, args, losses: seen.append((args[0][1].dtype, losses)))

    keys = {"loss": "ciou+nwd", "cls_loss": "mal", "data": data, "project": str(tmp_path)}
    made = train(RTDETR(MODEL), callbacks=[("on_train_batch_end", look)], **keys)
    assert seen and torch.bfloat16 in {scores for scores, _ in seen}
    assert all(value.isfinite() for _, losses in seen for value in losses.values())
    assert all(losses["loss_giou"].dtype == losses["loss_class"].dtype == torch.float32 for _, losses in seen)
    assert all(p.isfinite().all() for p in made.model.parameters())


@pytest.mark.slow
def test_validation_and_ema_use_the_loss_and_the_host_is_equalled(data, tmp_path):
    """On weights that do not move, a training with the host's own losses by name has its very numbers."""
    still = {**STILL, "data": data, "project": str(tmp_path)}
    stock, named, other = (
        results(train(RTDETR(MODEL), **still, **keys).save_dir)[-1] for keys in ({}, STOCK, {"loss": "eiou"})
    )
    assert named == stock
    for part in ("train", "val"):
        assert other[f"{part}/giou_loss"] > 1.1 * stock[f"{part}/giou_loss"]
        assert other[f"{part}/cls_loss"] == pytest.approx(stock[f"{part}/cls_loss"], rel=1e-4)
        assert other[f"{part}/l1_loss"] == pytest.approx(stock[f"{part}/l1_loss"], rel=1e-4)


@pytest.mark.slow
def test_resume_brings_the_choice_back(data, tmp_path):
    folder = interrupt(RTDETR(MODEL), data=data, project=tmp_path, loss="wiou-v3", cls_loss="qfl")
    with Log() as log:
        RTDETR(str(folder / "weights" / "last.pt")).train(resume=True)
    assert "box wiou-v3(" in log.text and "class qfl" in log.text and "matcher host's" in log.text
    assert len(results(folder)) == 3


@pytest.mark.slow
def test_a_replaced_criterion_stops_the_run(data, tmp_path):
    def replace(trainer):
        trainer.model.criterion = host()

    callbacks = [("on_train_batch_start", replace)]
    with pytest.raises(LossPlugError, match="loss=eiou .* was requested, but training runs RTDETRDetectionLoss"):
        train(RTDETR(MODEL), callbacks=callbacks, data=data, project=str(tmp_path), loss="eiou")


def test_compare_takes_it(data):
    arms = compare.plan_of({"model": MODEL, "data": data, "loss": "giou,eiou", "cls_loss": "qfl"}).arms
    assert [arm.name for arm in arms] == ["giou", "eiou"]
    with pytest.raises(LossPlugError, match="tal_topk=3 has no effect with RT-DETR"):
        compare.plan_of({"model": MODEL, "data": data, "loss": "giou,eiou", "tal_topk": 3})


def test_tools_of_anchors_refuse_it(tmp_path):
    """By the name of a file, and by what a checkpoint holds."""
    RTDETR(MODEL).save(str(tmp_path / "best.pt"))
    for file in (Path(MODEL), tmp_path / "best.pt"):
        with pytest.raises(LossPlugError, match=rf"{file.name} is RT-DETR, .* inspect the data without model="):
            assignments.load({"model": str(file)}, {"names": {0: "a"}})
        refuses(rf"{file.name} is RT-DETR, .* give another model=", bench_cases.model_of, str(file))
