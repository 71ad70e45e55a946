# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fast engine against the reference: every model, loss and key, and when it does not run."""

import copy
import math
from types import SimpleNamespace
from typing import Annotated

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.utils import tal
from ultralytics.utils.loss import v8DetectionLoss, v8OBBLoss, v8PoseLoss, v8SegmentationLoss

from tests.models import batch, is_plugged, model, predicted, step, with_agreeing_engines, with_keys
from tests.parts import ASSIGNERS, with_part
from tests.runs import Log, results, train
from yolo_lossplug import LossPlugError, Option, class_loss, create_class_loss
from yolo_lossplug.registry import REGISTRY, ROTATED
from yolo_lossplug.selection.loss import list_box_losses, list_class_losses
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook.attached import on_assigner
from yolo_lossplug.ultralytics_hook.criterion import plug
from yolo_lossplug.ultralytics_hook.engines import agreement, choice, fast, keypoints, parity
from yolo_lossplug.ultralytics_hook.engines.fast import FastMixin
from yolo_lossplug.ultralytics_hook.engines.install import remove_fast_step, running_part
from yolo_lossplug.ultralytics_hook.running import branch_criteria

MODELS = ["yolov8n", "yolo11n", "yolov10n", "yolo26n", "yolov8n-seg", "yolo26n-seg", "yolov8n-pose", "yolo26n-pose"]
MODELS += ["yolov8n-obb", "yolo26n-obb"]
KINDS = {"-seg": v8SegmentationLoss, "-pose": v8PoseLoss, "-obb": v8OBBLoss}
ROTATED_LOSSES = [spec.name for spec in REGISTRY if spec.kind == ROTATED]


@pytest.fixture(scope="module")
def step_inputs():
    """Predictions of a model for images on which the sparse assignment runs, and their batch."""
    return predicted("yolov8n", size=256)


def compared(made, preds, data, **keys):
    """Assert that both engines agree; return the criterion of the fast one."""
    criterion = with_agreeing_engines(made, preds, data, ("reference", "fast"), **keys)
    assert all(isinstance(leaf, FastMixin) for leaf in branch_criteria(criterion))
    return criterion


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("name", MODELS)
def test_every_model(name, size, empty):
    inputs = predicted(name, size=size, empty=empty)
    compared(*inputs, loss="kld" if "-obb" in name else "eiou", cls_loss="qfl")
    # Elementwise, BCE cancels at the logits that a head starts with, which shows where there are a few hundred.
    compared(*inputs, rtol=1e-4 if size == 64 and empty else 1e-5)


@pytest.mark.skipif(not hasattr(tal, "SegTaskAlignedAssigner"), reason="no assigner of this release looks at masks")
def test_the_mask_aware_assigner_stays(monkeypatch):
    """YOLO26-seg measures overlap of masks too, whatever the engine and the overlap of boxes."""
    kind, seen = tal.SegTaskAlignedAssigner, []
    stock = kind.pair_overlaps
    monkeypatch.setattr(kind, "pair_overlaps", lambda *args, **keys: seen.append(args[0]) or stock(*args, **keys))
    criterion = compared(*predicted("yolo26n-seg", size=256), tal_iou="giou")
    leaves = branch_criteria(criterion)
    assert all(leaf.assigner in seen and on_assigner(leaf.assigner).overlap for leaf in leaves) and len(leaves) == 2


@pytest.mark.parametrize("loss", list_box_losses())
def test_every_box_loss(step_inputs, loss):
    compared(*step_inputs, loss=loss, n_steps=2)


@pytest.mark.parametrize("cls_loss", list_class_losses())
def test_every_class_loss(step_inputs, cls_loss):
    loss = create_class_loss(cls_loss)
    for keys in ({}, {"cls_smoothing": 0.2}, {"cls_weights": [0, 1, 2]}):
        criterion = compared(*step_inputs, cls_loss=cls_loss, n_steps=2, **keys)
        assert criterion.lossplug.is_class_loss_pointwise == (loss.state is None and cls_loss != "slide"), keys


def test_the_hosts_class_weights(step_inputs, monkeypatch):
    monkeypatch.setattr(step_inputs[0], "class_weights", torch.tensor([0.5, 1, 2]), raising=False)
    for keys in ({}, {"cls_loss": "focal", "cls_smoothing": 0.1}, {"cls_loss": "slide"}, {"cls_weights": [1, 2, 3]}):
        compared(*step_inputs, **keys)


def test_keys_of_the_assigner(step_inputs):
    for keys in ({"tal_topk": 3}, {"tal_min_side": 40}, {"tal_alpha": 1.0, "tal_beta": 1.0}, {"tal_iou": "giou"}):
        compared(*step_inputs, **keys)


@pytest.mark.parametrize("n", [0, 40])
def test_crowds_and_emptiness_without_dense_tensors(n, step_inputs):
    made, preds, data = step_inputs
    rng = torch.Generator().manual_seed(5)
    data = {
        "img": data["img"],
        "batch_idx": torch.arange(2).repeat_interleave(n),
        "cls": torch.randint(3, (2 * n, 1), generator=rng).float(),
        "bboxes": torch.rand(2 * n, 4, generator=rng) * torch.tensor([0.8, 0.8, 0.1, 0.1]) + 0.05,
    }
    criterion = compared(made, preds, data)
    n_dense = 2 * n * preds["scores"].shape[2]

    class NoDense(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and n and not function.is_view:
                assert result.numel() < n_dense, function
            return result

    with NoDense(), torch.no_grad():
        criterion(dict(preds), data)


def test_anchors_that_are_assigned_with_score_zero_are_not_smoothed(step_inputs):
    made, preds, data = step_inputs
    boxes = torch.full_like(preds["boxes"], -20.0)
    boxes[:, ::16] = 20  # every box is a point, so that no metric is above 0
    data = {**data, "bboxes": torch.tensor([[0.1, 0.05, 0.2, 0.1]]).repeat(5, 1)}
    criterion = compared(made, {**preds, "boxes": boxes}, data, cls_smoothing=0.3)
    decoder = fast.Decoder(criterion, boxes, *criterion.lossplug.anchors[1:], torch.float32)
    targets = fast.targets_of(criterion, data, 2, decoder.anchors.imgsz)
    assigned = fast.assigned_by(criterion, decoder, preds["scores"], targets, {})
    assert len(assigned.anchor) and not assigned.score.any()


def test_objects_larger_than_the_distribution_reaches(step_inputs):
    made, preds, data = step_inputs
    boxes = torch.zeros_like(preds["boxes"])
    boxes[:, 15::16, : 32 * 32] = 6  # anchors of the finest level predict the largest boxes, and are assigned
    boxes[:, ::16, 32 * 32 :] = 20
    data = {**data, "bboxes": torch.tensor([[0.5, 0.5, 0.98, 0.98]]).repeat(5, 1)}
    compared(made, {**preds, "boxes": boxes}, data)


def test_predictions_that_are_not_finite_go_the_hosts_way(step_inputs):
    made, preds, data = step_inputs
    preds = {**preds, "scores": preds["scores"].clone()}
    preds["scores"][0, :, 100:140] = float("nan")
    losses = [with_keys(made, loss_engine=name)(dict(preds), data)[0] for name in ("reference", "fast")]
    torch.testing.assert_close(losses[1], losses[0], equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision(step_inputs, dtype):
    made, preds, data = step_inputs
    preds = {key: preds[key].to(dtype) for key in ("boxes", "scores")} | {
        "feats": [f.to(dtype) for f in preds["feats"]]
    }
    with torch.autocast("cpu", dtype):
        compared(made, preds, data, rtol=1e-4, grad_rtol=1e-2, loss="giou")


def test_a_class_loss_that_reads_the_whole_batch_is_given_the_whole_batch(step_inputs, registry):
    shapes = set()

    @class_loss("centred")
    def centred(logits, targets, *, centred_by: Annotated[float, Option("factor", above=0)] = 1.0):
        shapes.add(tuple(logits.shape))
        return (logits - logits.mean() * centred_by).square() + targets

    criterion = compared(*step_inputs, cls_loss="centred")
    assert not criterion.lossplug.is_class_loss_pointwise
    assert tuple(step_inputs[1]["scores"].permute(0, 2, 1).shape) in shapes


@pytest.mark.parametrize("part", ["bce", "bbox_loss", "bbox_decode", *ASSIGNERS])
def test_parts_that_somebody_else_has_put_in_are_used(step_inputs, part):
    made, preds, data = step_inputs
    losses = []
    for name in ("reference", "fast"):
        criterion = with_part(part, made)
        plug(criterion, select({"loss_engine": name}))
        losses.append(criterion(dict(preds), data)[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(losses[1], v8DetectionLoss(made)(dict(preds), data)[0])


def test_state_is_that_of_the_reference(step_inputs):
    made, preds, data = step_inputs
    states = []
    for name in ("reference", "fast"):
        criterion = with_keys(made, loss_engine=name, loss="wiou-v3", cls_loss="ema-slide")
        for _ in range(3):
            criterion(dict(preds), data)
        state = criterion.bbox_loss.loss.state.state
        assert criterion.bce.loss.state.state is state
        state.commit()
        states.append(state)
    reference, fast = (state.tensors for state in states)
    assert set(reference) == set(fast) == {"main.iou_loss.mean", "main.target", "main.steps"}
    for key, expected in reference.items():
        torch.testing.assert_close(fast[key], expected, rtol=1e-5, atol=0)
    assert reference["main.steps"] == 3 and reference["main.iou_loss.mean"] != 1 and reference["main.target"] != 1
    assert [(state.epoch, state.epochs) for state in states] == [(0, 0)] * 2


# Whether it runs.


def test_engines_by_name(step_inputs):
    made, _, _ = step_inputs
    assert isinstance(with_keys(made, loss="eiou"), FastMixin)
    fast, reference = (with_keys(made, loss_engine=name) for name in ("fast", "reference"))
    assert isinstance(fast, FastMixin) and isinstance(fast, v8DetectionLoss) and not fast.lossplug.decision.is_lazy
    assert not isinstance(reference, FastMixin)
    plug(fast, select({"loss_engine": "reference"}))
    assert type(fast) is v8DetectionLoss
    assert type(with_keys(made)) is v8DetectionLoss  # without a key nothing is touched
    # Naming what the host does anyway gives its numbers to the last digit, until the engine is asked for.
    assert type(with_keys(made, loss="ciou", tal_topk=10)) is v8DetectionLoss
    assert isinstance(with_keys(made, loss="ciou", loss_engine="auto"), FastMixin)
    assert isinstance(with_keys(made, tal_topk=9), FastMixin)
    criterion, selection = with_keys(step_inputs[0], loss="eiou"), select({"loss": "eiou"})
    assert is_plugged(criterion, selection)
    remove_fast_step(criterion)
    assert not is_plugged(criterion, selection)


def test_the_trial_of_keypoints_sees_a_host_that_has_changed(monkeypatch):
    assert max(keypoints.keypoint_errors.__wrapped__("cpu")) < 1e-6
    stock = keypoints.KeypointLoss.forward
    monkeypatch.setattr(keypoints.KeypointLoss, "forward", lambda self, p, *args: stock(self, p, *args) * len(p))
    monkeypatch.setattr(keypoints, "gather", lambda rows, anchor: rows[0].T[anchor % rows.shape[2]])
    assert max(keypoints.keypoint_errors.__wrapped__("cpu")) > 1e-2


def test_every_kind_of_criterion_stays_what_it_is():
    for name in MODELS:
        made = model(name)
        for leaf in branch_criteria(with_keys(made, loss_engine="fast")):
            part = "masks" if "-seg" in name else "keypoints" if name == "yolov8n-pose" else ""
            assert running_part(leaf) == part == leaf.lossplug.decision.part
            assert str(leaf.lossplug.decision) == (f"fast, {part} included" if part else "fast")
            remove_fast_step(leaf)
            kind = next((kind for suffix, kind in KINDS.items() if suffix in name), v8DetectionLoss)
            assert isinstance(leaf, kind) and type(leaf).__module__ == v8DetectionLoss.__module__


@pytest.mark.parametrize(("task", "name"), [("-seg", "single_mask_loss"), ("-pose", "kpts_decode")])
def test_a_method_of_one_object_is_somebody_elses(task, name):
    criterion = KINDS[task](model(f"yolov8n{task}"))
    setattr(criterion, name, lambda *args: args[1] * 2)
    assert not running_part(plug(criterion, select({"loss_engine": "fast"})))


def test_tasks_that_have_no_fast_engine():
    for task, engine in (("obb", "triton"), ("classify", "triton"), ("classify", "fast")):
        with pytest.raises(LossPlugError, match=f"loss_engine={engine} cannot be used with task={task}: it"):
            select({"task": task, "loss_engine": engine})
        assert select({"task": task, "loss_engine": "auto"}).loss_engine == "auto"


@pytest.mark.parametrize("name", ["loss", "calculate_angle_loss"])
def test_a_fork_of_the_step_of_rotated_boxes_is_left_alone(name):
    kind = type("Fork", (v8OBBLoss,), {name: lambda self, *args: getattr(v8OBBLoss, name)(self, *args)})
    criterion = plug(kind(model("yolov8n-obb")), select({"task": "obb", "loss": "kld"}))
    assert type(criterion) is kind and "another one" in str(criterion.lossplug.decision)
    with pytest.raises(LossPlugError, match="loss_engine=triton cannot be used: boxes are rotated"):
        choice.decide_engine("triton", with_keys(model("yolov8n-obb"), loss="kld"))


@pytest.mark.parametrize("loss", ROTATED_LOSSES)
def test_every_loss_of_rotated_boxes(loss):
    compared(*predicted("yolov8n-obb", size=256), loss=loss, n_steps=2)


@pytest.mark.parametrize("kind", ["right angles", "duplicates", "tiny", "outside", "whole", "crowd"])
def test_hostile_rotated_boxes(kind):
    made, preds, data = predicted("yolov8n-obb", size=256)
    rng, n = torch.Generator().manual_seed(3), 250 if kind == "crowd" else 6
    boxes = torch.rand(2 * n, 5, generator=rng) * torch.tensor([1, 1, 0.2, 0.2, math.pi]) - torch.tensor(
        [0, 0, 0, 0, 1]
    )
    if kind == "right angles":
        boxes[:, 4] = torch.tensor([math.pi / 2, -math.pi / 2, 0.0, math.pi]).repeat(n)[: 2 * n]
    if kind == "tiny":  # some with less than 2 pixels, which are left out
        boxes[:, 2:4] = torch.tensor([[1.9, 9], [2.1, 2.1], [0, 0], [2.0, 256]]).repeat(n, 1)[: 2 * n] / 256
    if kind == "outside":
        boxes[:, :2] = boxes[:, :2] * 3 - 1
    if kind == "whole":
        boxes[:, :4] = torch.tensor([0.5, 0.5, 1, 1])
    if kind == "duplicates":
        boxes[:] = boxes[:1].clone()
    labels = torch.randint(3, (2 * n, 1), generator=rng).float()
    data = {**data, "batch_idx": torch.arange(2).repeat_interleave(n), "cls": labels, "bboxes": boxes}
    compared(made, preds, data)
    compared(made, preds, data, tal_min_side=40, tal_topk=3, cls_smoothing=0.1)


def test_a_batch_without_angles_is_refused_by_the_host():
    made, preds, data = predicted("yolov8n-obb", size=256)
    data = {**data, "bboxes": data["bboxes"][:, :4]}
    with pytest.raises(TypeError, match="OBB dataset incorrectly formatted"):
        with_keys(made, loss="kld")(dict(preds), data)


@pytest.mark.parametrize("errors", [(1e-3, 0.0), (0.0, 1e-3), (float("inf"), float("inf"))], ids=str)
def test_a_host_that_computes_something_else(step_inputs, monkeypatch, errors):
    made, preds, data = step_inputs
    monkeypatch.setattr(choice, "self_test", lambda *args: errors)
    criterion = with_keys(made, loss="eiou")
    assert not isinstance(criterion, FastMixin)
    assert criterion(dict(preds), data)[0].isfinite().all()
    described = str(criterion.lossplug.decision)
    reason = "it fails with" if errors[0] == float("inf") else "its loss would differ by"
    assert described.startswith(f"reference ({reason} ")
    with pytest.raises(LossPlugError, match=f"loss_engine=fast cannot be used: {reason}"):
        with_keys(made, loss_engine="fast")


def test_the_self_test_sees_a_host_that_has_changed(monkeypatch):
    strides = (8.0, 16.0, 32.0)
    assert max(parity.self_test.__wrapped__("cpu", 16, strides)) < 1e-6
    stock = v8DetectionLoss.get_assigned_targets_and_loss

    def other(self, preds, batch, **kwargs):
        first, loss, items = stock(self, preds, batch, **kwargs)
        return first, loss * torch.tensor([1.0, 1.001, 1.0]), items

    monkeypatch.setattr(v8DetectionLoss, "get_assigned_targets_and_loss", other)
    error, grad_error = parity.self_test.__wrapped__("cpu", 16, strides)
    assert error > agreement.TOLERANCE and grad_error > agreement.GRAD_TOLERANCE
    monkeypatch.undo()
    monkeypatch.setattr(fast, "fast_step", lambda *args: 1 / 0)
    assert parity.self_test.__wrapped__("cpu", 1, strides) == (float("inf"), float("inf"))


@pytest.mark.parametrize(
    "context", [torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)], ids=["inference mode", "autocast"]
)
def test_the_first_step_may_be_one_of_a_validation(step_inputs, context):
    made, preds, data = step_inputs
    parity.self_test.cache_clear()
    with context:
        criterion = with_keys(made, loss="l1")  # wants the strides of the anchors, which are kept between steps
        criterion(dict(preds), data)
    assert isinstance(criterion, FastMixin)
    assert all(grad.isfinite().all() for grad in step(criterion, preds, data)[2])


def described(engine, head, device):
    """Return the decision for a head, as the banner says it."""
    criterion = SimpleNamespace(device=torch.device(device), stride=head.stride, reg_max=head.reg_max, assigner=None)
    return str(choice.decide_engine(engine, criterion))


def test_a_release_without_the_step(monkeypatch, step_inputs):
    monkeypatch.setattr(choice, "METHOD", "gone")
    head = step_inputs[0].model[-1]
    assert described("auto", head, "cpu") == ("reference (this release of Ultralytics has no step to replace)")
    assert described("auto", head, "mps") == "reference (it is not tested on mps)"
    assert described("reference", head, "cpu") == "reference"


def test_a_gpu_takes_the_dense_form_where_it_is_small(step_inputs, monkeypatch):
    made, preds, data = step_inputs
    criterion = with_keys(made, loss="eiou")
    criterion.lossplug.decision = criterion.lossplug.decision._replace(is_lazy=True)

    class OnGPU(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(fast, "assigned_by", lambda *args: 1 / 0)
    lazy = {**preds, "scores": preds["scores"].as_subclass(OnGPU)}
    assert fast.fast_step(criterion, lazy, data, {}) is None
    monkeypatch.setattr(fast, "DENSE_ON_GPU", 10)
    with pytest.raises(ZeroDivisionError):
        fast.fast_step(criterion, lazy, data, {})


@pytest.mark.slow
def test_both_engines_train_to_the_same_results(data, tmp_path):
    rows = []
    for name in ("reference", "fast"):
        with Log() as log:
            keys = {"project": str(tmp_path), "name": name, "epochs": 2, "imgsz": 160, "loss_engine": name}
            trainer = train(data=data, loss="eiou", **keys)
        assert f"engine {name}" in log.text
        rows.append(results(trainer.save_dir))
    for one, other in zip(*rows):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolov8n-seg", "yolov8n-obb", "yolov8n-pose"])
def test_a_training_has_the_curve_of_stock(name):
    curves, data = [], batch(name, size=192)  # 756 anchors: fewer than 640 go to the assigner as a whole
    for engine in ("reference", "fast"):
        made = copy.deepcopy(model(name))
        criterion = with_keys(made, loss_engine=engine)
        optimizer = torch.optim.SGD(made.parameters(), lr=1e-4, momentum=0.9)
        curve = []
        for _ in range(20):
            loss = criterion(made(data["img"]), data)[0].sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(made.parameters(), 10.0)  # as the host's trainer
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[1] == pytest.approx(curves[0], rel=1e-3) and curves[0][-1] < curves[0][0]
