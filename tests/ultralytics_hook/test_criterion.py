# SPDX-License-Identifier: AGPL-3.0-or-later
"""The members of a criterion: what runs in them, and that nothing else changes."""

import copy
import json
import math
from typing import Annotated

import pytest
import torch
from ultralytics.utils.loss import BboxLoss
from ultralytics.utils.tal import TaskAlignedAssigner as StockAssigner

import yolo_lossplug
from tests import oracles
from tests.checks import choices, class_oracle
from tests.models import batch, evaluate, is_plugged, model, predicted, with_keys
from tests.runs import ROOT, refuses
from yolo_lossplug import LossPlugError, Option, box_loss, class_loss, create_box_loss, create_class_loss
from yolo_lossplug.registry import CLASS, MODIFIER, OVERLAP, REGISTRY, ROTATED, ROTATED_MODIFIER, SOFTMAX
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.selection.loss import list_box_losses, list_class_losses
from yolo_lossplug.selection.names import PREFIXES
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook.criterion import PluggedBboxLoss, PluggedClassLoss, plug
from yolo_lossplug.ultralytics_hook.running import branch_criteria

COMMON = {
    "loss": [{"loss": name} for name in list_box_losses() if name != "ciou"],
    # Smoothing lifts the targets of these random boxes to where the slide losses tell them apart.
    "cls_loss": [{"cls_loss": name, "cls_smoothing": 0.5} for name in list_class_losses() if name != "bce"],
    "loss_mix": [{"loss": "ciou+nwd", "loss_mix": 0.7}],
    "tal_iou": [{"tal_iou": name} for name in ("iou", "giou", "diou", "eiou", "siou")],
    "tal_topk": [{"tal_topk": 3}],
    "tal_alpha": [{"tal_alpha": 1.5}],
    "tal_min_side": [{"tal_min_side": 40}],
    "tal_beta": [{"tal_beta": 2.0}],
    "cls_smoothing": [{"cls_smoothing": 0.1}],
    "cls_weights": [
        {"cls_weights": [1, 2, 3]},
        {"cls_weights": {"b": 2.0}},
        {"cls_loss": "qfl", "cls_weights": [0, 1, 1]},
    ],
}
"""Keys of no loss in particular, with values that are not the default."""
# Engines give the same loss; suppression is no part of it; a report changes nothing; regions are those of a batch.
WITHOUT_EFFECT = {"loss_engine", "nms_iou", "lossplug_report", "ignore", "annotated"}


def with_option(spec):
    if spec.kind == CLASS:
        return {"cls_loss": spec.name}
    if spec.kind not in PREFIXES.values():
        return {"loss": spec.name}
    bases = REGISTRY.names(OVERLAP if spec.kind == MODIFIER else ROTATED)
    return {"loss": next(f"{spec.name}-{base}" for base in bases if not spec.bases or base in spec.bases)}


OPTIONS = [
    pytest.param(key, with_option(spec), spec.kind, id=f"{key}-{spec.kind}-{spec.name}")
    for spec in REGISTRY
    for key in spec.parameters
    if spec.kind != SOFTMAX  # whose task is another
]


@pytest.fixture(scope="module")
def v8():
    """A detection model, its predictions on a batch with gradient, and the batch."""
    made, given = model("yolov8n"), batch("yolov8n")
    torch.manual_seed(1)
    preds = made(given["img"])
    preds["boxes"] = (preds["boxes"].detach() * 3).requires_grad_()
    preds["scores"] = (torch.randn(preds["scores"].shape) * 2 - 2).requires_grad_()  # those of a trained model vary
    return made, preds, given


def losses(criterion, preds, given):
    return evaluate(criterion, preds, copy.deepcopy(given))[0].detach()


def assignment(criterion, preds, given):
    (leaf,) = branch_criteria(criterion)
    seen, stock = [], leaf.bbox_loss
    leaf.bbox_loss = lambda *args: (seen.append(args), stock(*args))[1]
    try:
        losses(criterion, preds, given)
    finally:
        leaf.bbox_loss = stock
    return seen[0]


def test_the_stock_loss_stays_the_hosts_which_ours_equals(v8):
    criterion = with_keys(v8[0])
    assert type(criterion.bbox_loss) is BboxLoss
    assert type(criterion.bce) is torch.nn.BCEWithLogitsLoss
    assert type(criterion.assigner) is StockAssigner
    assert not any("lossplug" in name for name in vars(criterion))
    made, preds, given = v8
    assert torch.equal(losses(with_keys(made, loss="ciou"), preds, given), losses(criterion, preds, given))
    made, preds, given = v8
    args = assignment(with_keys(made), preds, given)
    stock, ours = BboxLoss(16), PluggedBboxLoss(BboxLoss(16), create_box_loss("ciou"), made.stride)
    gradients = []
    for module in (stock, ours):
        box, dfl = module(*args)
        gradients.append((box, dfl, *torch.autograd.grad(box + dfl, [args[0], args[1]], retain_graph=True)))
    for theirs, found in zip(*gradients):
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-7)


def unit_of(loss, stride):
    """Return what boxes in cells are multiplied with for a call without strides, as the oracles are."""
    if "stride" not in loss.context:
        return 1.0
    if "imgsz" in loss.context:
        return stride * 640 / 64  # the oracle's image is 10 times as large
    pair = torch.rand(2, 1, 4)
    is_in_cells = torch.equal(loss(*pair, stride=torch.full((1, 1), 8.0)), loss(*pair))
    return stride / 8 if is_in_cells else stride


@pytest.mark.parametrize("name", list_box_losses())
def test_box_term_is_the_requested_formula(v8, name):
    """An independent scalar evaluation of the formula on the boxes that the host has assigned."""
    made, preds, given = v8
    _, pred, _, target, scores, total, foreground, _, stride = assignment(with_keys(made), preds, given)
    rows = foreground.nonzero(as_tuple=True)
    assert len(rows[0]) > 20
    unit = unit_of(create_box_loss(name), stride[rows[1]])
    preds_in_unit, targets_in_unit = ((unit * boxes[rows]).double().tolist() for boxes in (pred, target))
    weights = scores[rows].sum(-1).tolist()
    terms = (oracles.box(name)(p, t) * w for p, t, w in zip(preds_in_unit, targets_in_unit, weights))
    expected = sum(terms) / float(total) * 7.5 * 2
    found, stock = losses(with_keys(made, loss=name), preds, given), losses(with_keys(made), preds, given)
    assert found[0].item() == pytest.approx(expected, rel=2e-5)
    torch.testing.assert_close(found[1:], stock[1:], rtol=1e-6, atol=0, msg="another term than the box term changed")


@pytest.mark.parametrize("name", sorted({*oracles.CLASS, *oracles.BATCH} - {"bce"}))
def test_class_term_is_the_requested_formula(v8, name):
    made, preds, given = v8
    *_, scores, total, _, _, _ = assignment(with_keys(made), preds, given)
    logits, scores = preds["scores"].permute(0, 2, 1).flatten().tolist(), scores.flatten().tolist()
    expected = sum(class_oracle(name)(logits, scores)) / float(total) * 0.5 * 2
    found, stock = losses(with_keys(made, cls_loss=name), preds, given), losses(with_keys(made), preds, given)
    assert found[1].item() == pytest.approx(expected, rel=1e-4 if name in oracles.BATCH else 2e-5)
    torch.testing.assert_close(found[[0, 2]], stock[[0, 2]], rtol=1e-6, atol=0)


def test_smoothing_moves_the_targets_of_assigned_anchors_only(v8):
    made, preds, given = v8
    criterion = with_keys(made, cls_smoothing=0.2, loss_engine="reference")
    seen = []
    loss = criterion.bce.loss
    criterion.bce.loss = lambda pred, target: (seen.append(target), loss(pred, target))[1]
    losses(criterion, preds, given)
    *_, scores, _, foreground, _, _ = assignment(with_keys(made), preds, given)
    assigned = foreground & (scores.amax(-1) > 0)
    torch.testing.assert_close(seen[0][assigned], scores[assigned] * 0.8 + 0.1)
    assert torch.equal(seen[0][~assigned], scores[~assigned])
    golden = json.loads((ROOT / "tests" / "golden" / "cls_losses.json").read_text(encoding="utf-8"))
    entry = next(entry for entry in golden["losses"] if entry["name"] == "bce_label_smoothing_0.1")
    logits = torch.tensor(golden["logit"], dtype=torch.float64).view(1, -1, 1).expand(-1, -1, 2)
    targets = torch.tensor(golden["target"], dtype=torch.float64).view(1, -1, 1)
    targets = torch.cat((targets, torch.ones_like(targets)), -1)  # a second class makes every anchor an assigned one
    found = PluggedClassLoss(create_class_loss("bce"), 0.1)(logits, targets)[0, :, 0]
    torch.testing.assert_close(found, torch.tensor(entry["loss"], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def changes(unchanged, changed, preds, given):
    """Return whether loss or gradient are others, and whether boxes and scores have a gradient, which is finite."""
    results = []
    for criterion in (unchanged, changed):
        loss, _ = evaluate(criterion, preds, given)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), [preds["boxes"], preds["scores"]])))
    _, *gradients = results[1]
    assert all(g.isfinite().all() for g in gradients)
    return not all(map(torch.equal, *results)), *(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("key", COMMON)
def test_every_key_changes_the_loss_and_trains(v8, key):
    made, preds, given = v8
    for chosen in COMMON[key]:
        neutral = {k: v for k, v in chosen.items() if k != key and k in ("loss", "cls_loss", "cls_smoothing")}
        differs, boxes, scores = changes(with_keys(made, **neutral), with_keys(made, **chosen), preds, given)
        assert differs and scores, chosen
        # A severe overlap gives every one of these random boxes 0, and so no box any weight.
        assert boxes or key == "tal_iou", chosen


@pytest.mark.parametrize(("key", "chosen", "kind"), OPTIONS)
def test_every_option_changes_the_loss_and_trains(v8, key, chosen, kind):
    made, preds, given = v8
    if kind in (ROTATED, ROTATED_MODIFIER):
        made, given = model("yolov8n-obb"), batch("yolov8n-obb")
        preds = made(given["img"])
    plain = create_class_loss if kind == CLASS else create_box_loss
    found = []
    for options in choices(plain(*chosen.values())):
        if list(options) == [key]:
            criteria = [with_keys(made, **chosen), with_keys(made, **chosen, **options)]
            for criterion in criteria:
                state = (criterion.bce if kind == CLASS else criterion.bbox_loss).loss.state
                if state is not None:  # in the middle of a run, where options of what is remembered show
                    state.state.epoch, state.state.epochs = 3, 6
                    losses(criterion, preds, given)
            found.append(changes(*criteria, preds, given))
    assert any(map(all, found)), found


def test_every_key_is_among_those_tested():
    assert set(keys()) == {*COMMON, *(option.values[0] for option in OPTIONS), *WITHOUT_EFFECT}


MODELS = ["yolov8n", "yolo11n", "yolov10n", "yolo26n", "yolov8n-seg", "yolo26n-seg", "yolov8n-pose", "yolo26n-pose"]


@pytest.mark.parametrize("name", MODELS)
def test_every_head_runs_it(name):
    """Both branches of end-to-end heads, and the heads that bring assigners of their own."""
    made, given = model(name), batch(name)
    torch.manual_seed(2)
    preds = made(given["img"])
    chosen = {"loss": "focal-eiou", "cls_loss": "qfl", "tal_topk": 6, "tal_beta": 5.0, "tal_iou": "giou"}
    stock, criterion = with_keys(made), with_keys(made, **chosen)
    parts = list(branch_criteria(criterion))
    assert len(parts) == (2 if name in ("yolov10n", "yolo26n", "yolo26n-seg", "yolo26n-pose") else 1)
    assert is_plugged(criterion, select({**chosen, "task": parts[0].lossplug.selection.task}))
    for part, plain in zip(parts, branch_criteria(stock)):
        assert isinstance(part.assigner, type(plain.assigner)), "another kind of assigner than the host's"
        one_to_one = plain.assigner.topk != 10 or getattr(plain.assigner, "topk2", 10) != 10
        expected = (plain.assigner.topk, plain.assigner.beta) if one_to_one else (6, 5.0)
        assert (part.assigner.topk, part.assigner.beta) == expected
    loss, _ = evaluate(criterion, preds, given)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert not torch.equal(loss, losses(stock, preds, given))
    if hasattr(criterion, "update"):
        before = criterion.o2m
        criterion.update()
        assert criterion.o2m != before


@pytest.mark.parametrize("name", ["yolov8n-obb", "yolo26n-obb"])
def test_rotated_boxes_take_losses_of_their_own(name):
    made, given = model(name), batch(name)
    for loss in ("probiou", "gwd", "kld", "kfiou", "mgiou"):
        preds = made(given["img"])
        found, _ = evaluate(with_keys(made, loss=loss), preds, given)
        expected = losses(with_keys(made), preds, given)
        assert (found[0] == expected[0]) == (loss == "probiou"), "the stock loss is the host's own"
        torch.testing.assert_close(found[1:], expected[1:], rtol=1e-5, atol=0)
        found.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters()), loss
        made.zero_grad()


BY_HAND = {"": "DetectionLoss", "-seg": "SegmentationLoss", "-pose": "PoseLoss", "-obb": "OBBLoss"}


@pytest.mark.parametrize("suffix", BY_HAND)
def test_by_hand_equals_by_key(suffix):
    made, preds, given = predicted(f"yolov8n{suffix}")
    cls, chosen = BY_HAND[suffix], {"loss": "kld" if suffix == "-obb" else "eiou", "tal_topk": 6}
    by_hand = getattr(yolo_lossplug, cls)(made, **chosen)
    stock = with_keys(made)
    assert isinstance(by_hand, type(stock))
    by_key = losses(with_keys(made, **chosen), preds, given)
    assert torch.equal(losses(by_hand, preds, given), by_key)
    assert not torch.equal(losses(stock, preds, given), by_key)
    refuses("focal_gamma=0.5 has no effect", getattr(yolo_lossplug, cls), made, focal_gamma=0.5)
    refuses("clss_loss=qfl is unknown. Did you mean 'cls_loss'", getattr(yolo_lossplug, cls), made, clss_loss="qfl")


def test_by_hand_in_a_compound_criterion_and_without_horizontal_boxes():
    from ultralytics.utils.loss import E2ELoss

    made, given = model("yolo26n"), batch("yolo26n")
    made.args.loss, made.args.tal_topk = "eiou", 6
    try:
        by_hand = E2ELoss(made, yolo_lossplug.DetectionLoss)
    finally:
        made.args.loss = made.args.tal_topk = None
    assert [leaf.assigner.topk for leaf in branch_criteria(by_hand)] == [6, 7]
    preds = made(given["img"])
    assert torch.equal(losses(by_hand, preds, given), losses(with_keys(made, loss="eiou", tal_topk=6), preds, given))
    made = model("yolov8n-obb")
    criterion = with_keys(made, cls_loss="focal", tal_topk=4)
    assert criterion.assigner.topk == 4
    for refused, message in (({"loss": "eiou"}, "obb takes .*gwd"), ({"tal_iou": "giou"}, "obb takes loss")):
        refuses(f"task=obb.*{message}", with_keys, made, **refused)
        with pytest.raises(LossPlugError, match=f"task=obb.*{message}"):
            plug(with_keys(made), select(refused))  # also where nobody has said which task it is


def test_assigner_by_hand(v8):
    made, preds, given = v8
    ours = yolo_lossplug.TaskAlignedAssigner(topk=10, num_classes=3, alpha=0.5, beta=6.0)
    stock = StockAssigner(topk=10, num_classes=3, alpha=0.5, beta=6.0)
    giou = yolo_lossplug.TaskAlignedAssigner(topk=10, num_classes=3, alpha=0.5, beta=6.0, iou="giou")
    seen = []
    criterion = with_keys(made)
    criterion.assigner.register_forward_pre_hook(lambda module, args: seen.append(args))
    losses(criterion, preds, given)
    outputs = [module(*seen[0]) for module in (stock, ours, giou)]
    assert all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[1]))
    assert not all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[2]))
    boxes = seen[0][4][0]
    assert giou.iou_calculation(boxes, boxes + 1000).min() == 0
    refuses("tal_iou=gi0u is unknown. Did you mean 'giou'", yolo_lossplug.TaskAlignedAssigner, iou="gi0u")


def test_stride_and_image_size_reach_a_loss_that_wants_them(v8):
    made, preds, given = v8
    seen = []

    @box_loss("wants-context")
    def wants_context(pred, target, *, stride, imgsz):
        seen.append((pred, stride, imgsz))
        return (pred - target).abs().mean(-1) * stride.squeeze(-1)

    anchors = assignment(with_keys(made, loss="wants-context", loss_engine="reference"), preds, given)
    pred, stride, imgsz = seen[-1]
    expected = anchors[-1][anchors[6].nonzero(as_tuple=True)[1]]  # the newest hosts hand over those of all anchors
    assert torch.equal(stride, expected) and stride.shape == (len(pred), 1)
    assert imgsz.tolist() == [64, 64]
    wide = {**given, "img": torch.rand(2, 3, 64, 96)}
    evaluate(with_keys(made, loss="wants-context"), made(wide["img"]), wide)
    assert seen[-1][2].tolist() == [64, 96]


def test_class_weights_multiply_any_class_loss():
    made, preds, given = predicted("yolov8n")
    made, preds["scores"] = copy.copy(made), preds["scores"].requires_grad_()

    @class_loss("ends-in-exp")
    def ends_in_exp(
        logits: torch.Tensor, targets: torch.Tensor, *, exp_scale: Annotated[float, Option("scale", above=0)] = 0.5
    ) -> torch.Tensor:
        return torch.exp(exp_scale * (logits - targets))

    plain = losses(with_keys(made, cls_loss="ends-in-exp"), preds, given)
    made.class_weights = torch.full((3,), 2.0)
    loss, _ = evaluate(with_keys(made, cls_loss="ends-in-exp"), preds, given)
    loss.sum().backward()
    assert loss[1].item() == pytest.approx(2 * plain[1].item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(dtype, device):
    """Predictions arrive in half precision; losses are those of the same boxes in float32."""
    made = copy.deepcopy(model("yolov8n")).to(device)
    given = batch("yolov8n", device=device)
    criterion = with_keys(made, loss="eiou", cls_loss="qfl", cls_smoothing=0.05)
    with torch.autocast(device, dtype=dtype):
        preds = made(given["img"])
        loss, _ = evaluate(criterion, preds, given)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


def test_huge_boxes_in_half_precision(v8):
    """A 2,040 pixel box overflows the squares of float16; the box loss computes in float32."""
    made = v8[0]
    module = PluggedBboxLoss(BboxLoss(16), create_box_loss("eiou"), made.stride)
    pred = torch.tensor([[[0.0, 0, 300, 290]]], dtype=torch.float16, requires_grad=True)
    target = torch.tensor([[[0.0, 0, 310, 300]]])
    scores, mask = torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    extra = (torch.tensor([4096.0, 4096.0]), torch.tensor([[8.0]]))
    distances = torch.zeros(1, 1, 64, dtype=torch.float16)
    box, _ = module(distances, pred, torch.tensor([[150.0, 150.0]]), target, scores, scores.sum(), mask, *extra)
    box.backward()
    expected = oracles.box("eiou")((0, 0, 300, 290), (0, 0, 310, 300))
    assert box.item() == pytest.approx(expected, rel=1e-3)
    assert pred.grad.isfinite().all() and math.isfinite(box.item())


def test_a_criterion_can_be_copied_and_plugged_again_and_is_looked_into(v8):
    made, preds, given = v8
    criterion = with_keys(made, loss="eiou", cls_loss="qfl", tal_iou="giou", tal_topk=5)
    expected = losses(criterion, preds, given)
    assert torch.equal(losses(copy.deepcopy(criterion), preds, given), expected)
    plug(criterion, select({"loss": "siou", "tal_topk": 8}))
    assert criterion.assigner.topk == 8
    assert type(criterion.bbox_loss.stock) is BboxLoss
    assert is_plugged(criterion, select({"loss": "siou", "tal_topk": 8})) is False, "cls_loss and tal_iou are still set"
    chosen = {"loss": "eiou", "cls_loss": "qfl", "tal_topk": 5, "tal_iou": "giou", "cls_smoothing": 0.1}
    selection = select(chosen)
    for damage in (
        lambda c: setattr(c, "bbox_loss", BboxLoss(16)),
        lambda c: setattr(c, "bce", torch.nn.BCEWithLogitsLoss(reduction="none")),
        lambda c: setattr(c.assigner, "topk", 10),
        lambda c: setattr(c, "assigner", StockAssigner(topk=5, alpha=0.5)),
        lambda c: setattr(c.bce, "smoothing", 0.0),
        lambda c: delattr(c, "lossplug"),
    ):
        criterion = with_keys(v8[0], **chosen)
        assert is_plugged(criterion, selection)
        damage(criterion)
        assert not is_plugged(criterion, selection)
    assert not is_plugged(object(), selection)


def test_class_weights_by_list_and_by_name(v8):
    made, preds, given = v8
    assert made.names == {0: "a", 1: "b", 2: "c"}
    plain = losses(with_keys(made), preds, given)[1]
    parts = [losses(with_keys(made, cls_weights=[float(i == j) for j in range(3)]), preds, given)[1] for i in range(3)]
    torch.testing.assert_close(sum(parts), plain)
    by_list = losses(with_keys(made, cls_weights=[1, 4, 1]), preds, given)[1]
    torch.testing.assert_close(by_list, plain + 3 * parts[1])
    assert torch.equal(losses(with_keys(made, cls_weights={"b": 4}), preds, given)[1], by_list)
    refuses(r"cls_weights=\[1.0, 2.0\] has 2 values for 3 classes", with_keys, made, cls_weights=[1, 2])
    refuses(r"the data has no class 'd'. Known: a, b, c", with_keys, made, cls_weights={"d": 2})


def test_branches_remember_apart_and_validation_remembers_nothing():
    made, given = model("yolo26n"), batch("yolo26n")
    preds = made(given["img"])
    criterion = with_keys(made, loss="wiou-v3", cls_loss="ema-slide", wiou_momentum=0.5)
    many, one = (leaf.bbox_loss.loss.state for leaf in branch_criteria(criterion))
    assert many.state is one.state
    run = many.state
    with torch.no_grad():
        losses(criterion, preds, given)
        run.commit()
    start = {key: value.clone() for key, value in run.tensors.items()}
    assert set(start) == {f"one2{n}.{key}" for n in ("many", "one") for key in ("iou_loss.mean", "target", "steps")}
    assert start["one2many.iou_loss.mean"] == 1 and start["one2one.target"] == 1
    evaluate(criterion, preds, given)
    run.commit()
    assert all(run.tensors[key] != start[key] for key in start)
    assert run.tensors["one2many.iou_loss.mean"] != run.tensors["one2one.iou_loss.mean"]
    assert copy.deepcopy(criterion).one2one.bbox_loss.loss.state.state is run, "the moving average belongs to the run"


@pytest.mark.parametrize("name", ["yolov8n", "yolov10n", "yolov8n-obb"])
def test_topk_above_the_number_of_anchors_selects_all_of_them(name):
    """An image of 64 x 64 pixels has 64 + 16 + 4 = 84 anchors."""
    made, preds, data = predicted(name)
    engines = ("reference",) if "obb" in name else ("reference", "fast")
    for chosen in ({"loss": "kld" if "obb" in name else "eiou", "loss_engine": engine} for engine in engines):
        criteria = (with_keys(made, **chosen, tal_topk=topk) for topk in (84, 100, 1000))
        first, *others = (evaluate(criterion, copy.deepcopy(preds), data)[0] for criterion in criteria)
        assert all(map(first.equal, others)) and first.isfinite().all(), chosen


def test_topk_above_the_number_of_anchors_in_the_sparse_assignment(monkeypatch):
    """A GPU assigns sparsely however many anchors an image has."""
    from yolo_lossplug.ultralytics_hook import assigner as hook

    made, preds, data = predicted("yolov8n")
    keys = {"loss": "eiou", "loss_engine": "fast", "tal_topk": 100}
    expected = evaluate(with_keys(made, **keys), copy.deepcopy(preds), data)[0]
    monkeypatch.setattr(hook, "is_exact", lambda *_: True)
    sparse = []
    assign = hook.assign_pairs
    monkeypatch.setattr(hook, "assign_pairs", lambda *args, **own: sparse.append(own["topk"]) or assign(*args, **own))
    torch.testing.assert_close(evaluate(with_keys(made, **keys), copy.deepcopy(preds), data)[0], expected)
    assert sparse == [84]
    from yolo_lossplug.ultralytics_hook import assigner as hook

    class Own(StockAssigner):
        def iou_calculation(self, gt_bboxes, pd_bboxes):
            return super().iou_calculation(gt_bboxes, pd_bboxes) / 2

    own, stock = Own(topk=10, num_classes=3), StockAssigner(topk=10, num_classes=3)
    for assigner in (own, stock):
        hook.set_topk(assigner, 7)
    assert hook.has_own_hooks(own) and not hook.has_own_hooks(stock)
