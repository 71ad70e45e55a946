# SPDX-License-Identifier: AGPL-3.0-or-later
"""Steps of the kernels against those of the fast engine, and when the kernels do not run."""

import contextlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.loss import v8DetectionLoss

from tests.models import batch, predicted, step, with_agreeing_engines, with_keys
from tests.parts import with_part
from tests.runs import ROOT, Log, refuses, results, slow, train
from yolo_lossplug import LossPlugError, box_loss, create_box_loss, kernels
from yolo_lossplug.kernels import launching
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook import config, console, trainer
from yolo_lossplug.ultralytics_hook.assigner import set_overlap
from yolo_lossplug.ultralytics_hook.counts import Meter
from yolo_lossplug.ultralytics_hook.criterion import plug
from yolo_lossplug.ultralytics_hook.decision import size_class
from yolo_lossplug.ultralytics_hook.engines import choice, record, triton
from yolo_lossplug.ultralytics_hook.run.watch import watch
from yolo_lossplug.ultralytics_hook.running import branch_criteria
from yolo_lossplug.ultralytics_hook.trial.timing import gpu_ties

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of masked elements, in the interpreter
on_gpu = pytest.mark.skipif(kernels.is_interpreted(), reason="only a GPU can be waited for")


@pytest.fixture(autouse=True)
def known_trouble(monkeypatch, request):
    """Compare the kernels with the host once, in the test of that."""
    if "trial" not in request.keywords:
        monkeypatch.setattr(choice, "kernel_trouble", lambda *args: None)


@pytest.fixture(scope="module")
def step_inputs(kernel_device):
    """Predictions of a model for images of 64 pixels, and their batch."""
    return predicted("yolov8n", device=kernel_device)


def run(made, preds, data, name, **keys):
    return step(with_keys(made, loss_engine=name, **keys), preds, data)


def compared(made, preds, data, rtol=1e-5, **keys):
    """Assert that kernels agree with the fast engine; return their criterion."""
    tolerances = {"rtol": rtol, "grad_rtol": max(1e-4, rtol)}
    criterion = with_agreeing_engines(made, preds, data, ("fast", "triton"), **tolerances, **keys)
    assert all(leaf.lossplug.kernels is not None for leaf in branch_criteria(criterion))
    return criterion


@pytest.mark.parametrize("name", ["yolov8n", *map(slow, ("yolov10n", "yolo26n", "yolov8n-seg", "yolo26n-pose"))])
def test_models(name, kernel_device):
    compared(*predicted(name, device=kernel_device), loss="eiou", cls_loss="qfl")


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n-seg"])
def test_batches_without_gts(name, kernel_device):
    compared(*predicted(name, device=kernel_device, empty=True), rtol=1e-4)


@pytest.mark.parametrize(
    "keys",
    [
        *(slow({}), {"loss": "siou", "siou_theta": 3.0, "cls_loss": "focal", "cls_focal_alpha": None}),
        *(slow({"loss": "focal-eiou", "cls_loss": "varifocal"}), slow({"loss": "l1", "cls_loss": "poly"})),
        *(slow({"loss": "wiou-v3", "cls_loss": "ema-slide"}), slow({"loss": "ciou+nwd", "loss_mix": 0.7})),
        *(slow({"cls_smoothing": 0.2, "cls_weights": [0, 1, 2]}), slow({"cls_loss": "poly", "cls_smoothing": 0.2})),
        *(slow({"tal_min_side": 40.5}), slow({"tal_topk": 3, "tal_alpha": 1.0, "tal_beta": 1.0, "tal_iou": "siou"})),
    ],
    ids=str,
)
def test_keys(step_inputs, keys):
    compared(*step_inputs, **keys)


@pytest.mark.slow
def test_class_weights_of_ultralytics(step_inputs, kernel_device, monkeypatch):
    monkeypatch.setattr(step_inputs[0], "class_weights", torch.tensor([0.5, 1, 2], device=kernel_device), raising=False)
    compared(*step_inputs, cls_loss="qfl")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [slow("ciou"), "giou"])
@pytest.mark.parametrize("is_autocast", [True, slow(False)])
@pytest.mark.parametrize("dtype", [slow(torch.bfloat16), torch.float16], ids=str)
def test_half_precision(step_inputs, dtype, is_autocast, loss, kernel_device):
    made, preds, data = step_inputs
    preds = {key: preds[key].to(dtype) for key in ("boxes", "scores")} | {
        "feats": [feat.to(dtype) for feat in preds["feats"]]
    }
    with torch.autocast(kernel_device, dtype, enabled=is_autocast):
        # On a CPU Ultralytics sums in half precision what it sums in float32 on a GPU.
        criterion = compared(made, preds, data, rtol=2e-2, loss=loss)
        if loss == "ciou":
            actual = [run(made, preds, data, name, loss=loss)[0][0] for name in ("fast", "triton")]
            torch.testing.assert_close(*actual, rtol=2e-4 if dtype == torch.float16 else 2e-3, atol=0)
        criteria = (with_keys(made, loss_engine=name, loss=loss) for name in ("fast", "triton"))
        foregrounds = [answered(made, preds, data) for made in criteria]
    assert criterion.lossplug.kernels is not None
    assert all(torch.equal(one, other) for one, other in zip(*foregrounds))


def answered(criterion, preds, data):
    """Return foreground, gt slots and boxes of a step, as returned to a criterion with further terms."""
    cls = type(criterion)
    criterion.__class__ = type("Reader", (cls,), {"loss": lambda self, *args: None})
    with torch.no_grad():
        (foreground, slot, boxes, *_), _, _ = criterion.get_assigned_targets_and_loss(dict(preds), data)
    return foreground, slot * foreground, boxes


@pytest.mark.slow
def test_outputs_for_further_terms_and_the_same_every_time(step_inputs):
    made, preds, data = step_inputs
    data = {**data, "batch_idx": torch.ones_like(data["batch_idx"])}  # one image without gts
    for some in (data, batch("yolov8n", empty=True, device=preds["scores"].device)):
        one, other = (answered(with_keys(made, loss_engine=name), preds, some) for name in ("fast", "triton"))
        assert all(torch.equal(a, b) for a, b in zip(one, other))
    (one, _, grads), (other, _, others) = (run(*step_inputs, "triton", loss="eiou") for _ in range(2))
    assert torch.equal(one, other) and all(map(torch.equal, grads, others))


def test_bench_hears_of_each_kernel(step_inputs, monkeypatch):
    seen = []
    monkeypatch.setattr(launching, "launched", {})
    monkeypatch.setattr(launching, "listeners", [lambda: seen.append(1)])
    run(*step_inputs, "triton", loss="eiou")
    assert len(seen) >= 10


def test_a_loss_across_boxes_gets_the_positives_only(step_inputs, registry):
    seen = []

    @box_loss("centred")
    def centred(pred, target):
        seen.append(len(pred))
        distance = (pred - target).abs().sum(-1)
        return distance / distance.mean()

    criterion = compared(*step_inputs, loss="centred")
    assert not criterion.lossplug.kernels.is_box_loss_pointwise
    assert seen[0] == seen[-1] < 50  # those of the fast engine; 5 objects have at most 50 anchors


def test_the_report_counts_the_same_and_validation_computes_no_gradient(step_inputs):
    made, preds, data = step_inputs
    sums = []
    for name in ("fast", "triton"):
        criterion = with_keys(made, loss_engine=name, loss="diou")
        meter = Meter(criterion.device, criterion.nc)
        watch(criterion.assigner, meter)
        step(criterion, preds, data)
        sums.append(meter.parts)
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-5, atol=1e-5)
    assert all(part.any() for part in sums[0][:3]) and meter.has_claims
    made, preds, data = step_inputs
    for keys in ({"loss": "giou"}, {"loss": "focal-giou"}):
        losses = []
        for name in ("fast", "triton"):
            with torch.inference_mode():
                losses.append(with_keys(made, loss_engine=name, **keys)(dict(preds), data)[0])
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["bce", "bbox_loss", "bbox_decode", "preprocess", "assigner"])
def test_third_party_parts_are_used(step_inputs, part):
    made, preds, data = step_inputs
    actual, is_left_out = [], part != "bce"  # a third-party class loss computes its own term
    console.warn_once.cache_clear()
    for name in ("fast", "triton"):
        criterion = with_part(part, made)
        plug(criterion, select({"loss_engine": name}))
        criterion.lossplug.decision = criterion.lossplug.decision._replace(is_lazy=False)
        with Log() as log:
            actual.append(criterion(dict(preds), data)[0])
        assert ("the kernels cannot take the steps of this run" in log.text) == (is_left_out and name == "triton")
    torch.testing.assert_close(actual[1], actual[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(actual[1], v8DetectionLoss(made)(dict(preds), data)[0])


@pytest.mark.slow
def test_batches_that_are_views_of_others_or_have_invalid_classes(step_inputs):
    made, preds, data = step_inputs
    labels = torch.cat((data["batch_idx"].unsqueeze(1), data["cls"], data["bboxes"]), 1)
    views = {"batch_idx": labels[:, 0], "cls": labels[:, 1:2], "bboxes": labels[:, 2:]}
    expected = run(made, preds, data, "triton", loss="giou")[0]
    torch.testing.assert_close(run(made, preds, {**data, **views}, "triton", loss="giou")[0], expected)
    backwards = {key: data[key].flip(0) for key in ("batch_idx", "cls", "bboxes")}
    torch.testing.assert_close(run(made, preds, {**data, **backwards}, "triton", loss="giou")[0], expected)
    made, preds, data = step_inputs
    run(made, preds, {**data, "cls": data["cls"] + 1e6}, "triton", loss="giou")
    run(made, preds, {**data, "cls": data["cls"] - 1e6}, "triton", loss="giou")


def test_unsupported_parts_are_named(step_inputs):
    made, preds, _ = step_inputs
    criterion = with_keys(made, loss_engine="triton")
    types = triton.types_of(0.5, preds["scores"])
    assert triton.why_no_kernel(criterion, preds, types) is None
    mixed = {**preds, "boxes": preds["boxes"].half()}
    assert "boxes are torch.float16, scores torch.float32" in triton.why_no_kernel(criterion, mixed, types)
    criterion.assigner.topk = 1000
    assert "an image has only 84 anchors" in triton.why_no_kernel(criterion, preds, types)
    set_overlap(criterion.assigner, create_box_loss("giou"))
    criterion.assigner.lossplug.overlap_loss = None
    assert "the assigner" in triton.why_no_kernel(criterion, preds, types)


def test_the_number_of_cached_image_sizes_is_limited(step_inputs, monkeypatch):
    made, preds, data = step_inputs
    monkeypatch.setattr(triton, "MAX_SIZES", 1)
    criterion = with_keys(made, loss_engine="triton")
    criterion(dict(preds), data)
    with torch.inference_mode():
        criterion(dict(preds), data)
    assert len(criterion.lossplug.kernels.cached) == 1


# Whether they run.


@pytest.mark.slow
@pytest.mark.trial
def test_the_trial_detects_errors(kernel_device, monkeypatch):
    trouble, setting = choice.kernel_trouble.__wrapped__, choice.Setting(kernel_device, 4, (8.0, 16.0), 4, (4, 5))
    with gpu_ties() if kernel_device == "cpu" else contextlib.nullcontext():
        assert trouble(setting) is None
    stock = v8DetectionLoss.get_assigned_targets_and_loss

    def other(self, preds, batch, **kwargs):
        first, loss, items = stock(self, preds, batch, **kwargs)
        return first, loss * torch.tensor([1.0, 1.001, 1.0], device=loss.device), items

    monkeypatch.setattr(v8DetectionLoss, "get_assigned_targets_and_loss", other)
    assert "they differ from the host: loss " in trouble(setting)
    monkeypatch.undo()
    monkeypatch.setattr(triton, "assign_rows", lambda *args: 1 / 0)
    assert trouble(setting) == "the kernels fail (ZeroDivisionError: division by zero)"
    criterion = SimpleNamespace(device="cuda", reg_max=16, stride=[8, 16, 32], nc=7)
    criterion.hyp = SimpleNamespace(imgsz=640, amp=True)
    monkeypatch.setattr(choice.kernels, "is_interpreted", lambda: False)
    assert choice.setting_of(criterion)[3:] == (7, (20, 20), torch.float16)  # what the run will launch


def test_kernels_that_fail_leave_the_run_to_others(step_inputs, monkeypatch):
    made, preds, data = step_inputs
    console.warn_once.cache_clear()
    monkeypatch.setattr(choice, "kernel_trouble", lambda *args: "the kernels fail (RuntimeError: no compiler)")
    with Log() as log:
        for _ in range(2):
            criterion = with_keys(made, loss_engine="triton", loss="eiou")
    said = "loss_engine=triton: the kernels fail (RuntimeError: no compiler); the run continues without kernels"
    assert log.text.count(said) == 1
    assert criterion.lossplug.kernels is None
    criterion.lossplug.decision = criterion.lossplug.decision._replace(is_lazy=False)
    torch.testing.assert_close(criterion(dict(preds), data)[0], run(*step_inputs, "fast", loss="eiou")[0])
    name = str(criterion.lossplug.decision)
    assert name == ("fast" if criterion.device.type == "cpu" else "fast in crowds, else reference")


def test_a_kernel_that_does_not_compile_is_left_out_once(step_inputs, monkeypatch):
    class CompilationError(Exception):
        __module__ = "triton.compiler.errors"

    def fail(*args):
        raise CompilationError("at 3:5: no such instruction")

    console.warn_once.cache_clear()
    expected = run(*step_inputs, "fast", loss="diou")[0]
    criterion = with_keys(step_inputs[0], loss_engine="triton", loss="diou")
    monkeypatch.setattr(triton, "step_losses", fail)
    with Log() as log:
        for _ in range(2):
            criterion.lossplug.decision = criterion.lossplug.decision._replace(is_lazy=False)
            torch.testing.assert_close(step(criterion, *step_inputs[1:])[0], expected)
    said = "a kernel does not compile, and the run continues without kernels: at 3:5: no such instruction"
    assert log.text.count(said) == 1


@pytest.mark.slow
def test_where_there_is_no_triton(step_inputs, monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda device: "Triton cannot be imported (No module named 'triton')")
    with pytest.raises(LossPlugError, match=r"loss_engine=triton cannot be used: Triton cannot .* Remove it, or take"):
        with_keys(step_inputs[0], loss_engine="triton")
    refuses("loss_engine=triton cannot be used with task=obb: ", select, {"task": "obb", "loss_engine": "triton"})
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, yolo_lossplug.ultralytics_hook.criterion\n"
        "from yolo_lossplug import kernels\n"
        "print(kernels.missing(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("Triton cannot be imported (")


def test_a_run_without_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda device: f"the kernels need a GPU, and the device is {device.type}")
    message = "loss_engine=triton cannot be used: the kernels need a GPU, and the device is cpu. Remove it"
    refuses(message, train, data="nowhere.yaml", loss_engine="triton")
    with pytest.raises(LossPlugError, match=message):
        config.check_given(DEFAULT_CFG_DICT, {"model": "nowhere.pt", "loss_engine": "triton", "device": "cpu"})
    assert choice.why_no_kernels("auto", "cpu") is None
    resumed = SimpleNamespace(args=SimpleNamespace(task="detect", device="cpu", resume=True, loss_engine="triton"))
    with Log() as log:
        trainer.check_trainer(resumed, {})
    assert resumed.args.loss_engine == "auto" and "goes on with loss_engine=auto" in log.text


def test_auto_takes_them_where_they_are_recorded(step_inputs, monkeypatch, tmp_path):
    made, preds, data = step_inputs
    assert with_keys(made, loss="eiou").lossplug.kernels is None
    monkeypatch.setattr(record, "USER_CONFIG_DIR", tmp_path)
    key = record.record_key(torch.device("cpu"))
    elements = len(data["batch_idx"]) * preds["scores"].shape[2]
    proof = {"times_faster": 3.0, "quartiles": [2.0, 4.0]}
    anchors = len(preds["scores"]) * preds["scores"].shape[2]
    sizes = {"anchors_class": size_class(anchors), "size_class": size_class(elements)}
    entry = {"dtype": "float32", **sizes, "measured": "2026-01-02"}
    record.add([{**key._asdict(), **entry, "engines": {"triton": proof}}], key, {}, "2026-01-02")
    criterion = with_keys(made, loss="eiou")
    assert criterion.lossplug.kernels is not None
    assert str(criterion.lossplug.decision) == "triton (bench 2026-01-02), other sizes fast"
    taken = []
    monkeypatch.setattr(type(criterion.lossplug.kernels), "step", lambda *args: taken.append(args))
    criterion(dict(preds), data)
    assert len(taken) == 1
    assert with_keys(made, loss="eiou", loss_engine="fast").lossplug.kernels is None
    monkeypatch.setattr(choice, "kernel_trouble", lambda *args: "they fail")
    assert str(with_keys(made, loss="eiou").lossplug.decision) == "fast"
    monkeypatch.undo()
    monkeypatch.setattr(record, "USER_CONFIG_DIR", tmp_path)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert str(with_keys(made, loss="eiou").lossplug.decision) == "fast"


RESULTS = sorted((ROOT / "benchmarks" / "results").glob("20*.md"))  # others are simulations, which have no device


def measured_on(file):
    """Return device and release of torch that a file of results names in its second paragraph."""
    head = file.read_text(encoding="utf-8").split("\n\n")[1]
    release, device = re.search(r" · torch (\d+\.\d+)\S* · ([^·]+)", head).groups()
    return device.partition(",")[0].strip(), release


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_results_name_device_and_release(file):
    device, release = measured_on(file)
    assert device and f"torch {release}." in file.read_text(encoding="utf-8")
    assert ("cpu" in file.name) == ("NVIDIA" not in device)


@pytest.mark.slow
def test_a_run_with_kernels(data, tmp_path, kernel_device):
    rows = []
    for name in ("fast", "triton"):
        with Log() as log:
            made = train(
                data=data, project=str(tmp_path), name=name, device=kernel_device, loss="eiou", loss_engine=name
            )
        assert f"engine {name}" in log.text
        rows += results(made.save_dir)
    for key in rows[0]:
        if key != "time":
            assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-3, abs=1e-5), key


# On a GPU.


@on_gpu
@pytest.mark.parametrize("keys", [{"loss": "eiou"}, {"loss": "focal-eiou"}, {"cls_loss": "poly"}], ids=str)
def test_nothing_waits_for_the_gpu(step_inputs, keys):
    made, preds, data = step_inputs
    criterion = with_keys(made, loss_engine="triton", **keys)
    step(criterion, preds, data)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(criterion, preds, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_a_step_launches_few_kernels_and_can_be_captured(step_inputs):
    made, preds, data = step_inputs
    criterion = with_keys(made, loss_engine="triton", loss="eiou")
    step(criterion, preds, data)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(criterion, preds, data)
    assert 10 < sum(event.count for event in profile.key_averages() if event.device_type == DeviceType.CUDA) <= 80
    made, preds, data = step_inputs
    criterion = with_keys(made, loss_engine="triton", loss="eiou")
    expected = step(criterion, preds, data)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(criterion, preds, data)[0]
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(loss, expected)
