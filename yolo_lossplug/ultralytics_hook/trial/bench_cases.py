# SPDX-License-Identifier: AGPL-3.0-or-later
"""All cases of `lossplug bench` for one engine, in this process: identity first, then times beside the host's own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable, NamedTuple, Optional

import torch
from ultralytics.cfg import get_cfg

from yolo_lossplug import kernels
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.selection.loss import create_class_loss
from yolo_lossplug.ultralytics_hook import host
from yolo_lossplug.ultralytics_hook.engines.agreement import Agreement
from yolo_lossplug.ultralytics_hook.engines.choice import REFERENCE, TRITON
from yolo_lossplug.ultralytics_hook.engines.keypoints import can_have_keypoints
from yolo_lossplug.ultralytics_hook.engines.parity import METHOD
from yolo_lossplug.ultralytics_hook.family import refuse_rtdetr
from yolo_lossplug.ultralytics_hook.originals import v8DetectionLoss
from yolo_lossplug.ultralytics_hook.running import branch_criteria
from yolo_lossplug.ultralytics_hook.trial import gauges, timing
from yolo_lossplug.ultralytics_hook.trial.drawn import channels_of
from yolo_lossplug.ultralytics_hook.trial.problems import Head, ObjectSpec, Problem, drawn_task_problem, predicted

STEP, TRAIN, CLASS_KERNELS = "step", "train", "class-kernels"
N_BATCHES = 3
"""Batches in rotation, so that nothing that is kept from one can serve the next."""
MIN_PAIRS, MIN_TRAIN_PAIRS = 5, 3
SECONDS = {"cpu": 10.0, "cuda": 3.0}
"""Least time for the pairs of a case, by type of device."""
WARM_UP = {"cpu": 0.0, "cuda": 2.0}
"""Seconds of steps before a case is timed: clocks of a GPU rise with load."""
TASK_SUFFIXES = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb"}
TASK_MODELS = {task: f"yolov8n{suffix}.yaml" for task, suffix in TASK_SUFFIXES.items()}
"""Tasks that are measured, each with the model that is taken unless another is named."""
CLASS_LOSSES = ("bce", "focal", "qfl", "varifocal")
PARTS = {STEP: 4, TRAIN: 2, CLASS_KERNELS: 1}
"""Parts of a case that are reported when they are done."""
OTHER_MODEL = "there is no step for bench to measure; give another model="
"""What to do about a model of another family."""


class Work(NamedTuple):
    """One case, which can be written as JSON: a `STEP` of the loss, a whole `TRAIN` step, or the `CLASS_KERNELS`.

    Batches are of a dataset, or drawn if that is None, with as many objects per image as `ObjectSpec.mean` says.
    """

    name: str
    kind: str
    model: str
    batch: int
    imgsz: int
    objects: float
    data: Optional[str]
    amp: bool


class Reporter(NamedTuple):
    """Progress callbacks: after every step, part of a case, and case, which has its memory in another result.

    `earlier` is asked for the result of a case from before, empty if there is none.
    """

    alive: Callable[[], None]
    part: Callable[[], None]
    result: Callable[[Work, dict[str, Any]], Any]
    earlier: Callable[[Work], dict[str, Any]] = lambda work: {}


def model_of(name: str, data: Optional[str] = None) -> Any:
    """Return a model with the classes of a dataset, ready to make the host's criterion.

    Raises:
        LossPlugError: If it cannot be loaded, or no engine takes its steps.
    """
    refuse_rtdetr(name, None, OTHER_MODEL)
    made = host.load_model(name)
    refuse_rtdetr(name, made.model, OTHER_MODEL)
    if made.task not in TASK_MODELS:
        raise LossPlugError(f"model={name} is of task={made.task}; bench measures those of {', '.join(TASK_MODELS)}.")
    if made.task != "detect" and data:
        raise LossPlugError(f"data={data} has no effect with task={made.task}, whose batches are drawn; remove it.")
    cfg = get_cfg(overrides={"mode": "train", "task": made.task, "data": data})
    model = host.network_of(made, cfg, host.dataset_of({"data": data}) if data else None)
    for key in keys():
        vars(model.args).pop(key, None)
    if not (leaves := branch_criteria(model.init_criterion())) or not hasattr(v8DetectionLoss, METHOD):
        raise LossPlugError(f"model={name}: this release of Ultralytics has no step of it that an engine replaces.")
    if made.task == "pose" and not all(map(can_have_keypoints, leaves)):
        raise LossPlugError(f"model={name} has keypoint terms that read other outputs than bench draws; take another.")
    return model.train().requires_grad_()  # weights of a checkpoint have no gradient


def bench_device(name: Any) -> torch.device:
    """Return the device that a user names, as the host chooses it.

    Raises:
        LossPlugError: If it is not there, or several are named.
    """
    if "," in str(name):
        raise LossPlugError(f"device={name} names several: bench measures on one. Take the first.")
    device = host.device_of(name)
    if device.type not in SECONDS:
        raise LossPlugError(f"device={name}: engines run on a CPU or an NVIDIA GPU. Give device=cpu.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def measure_engine(engine: str, works: Sequence[Work], device: torch.device, reporter: Reporter) -> None:
    """Measure an engine in all cases, until it differs in one; memory of a CPU last, since that slows the process."""
    timing.set_deterministic()
    if engine == TRITON:
        from yolo_lossplug.kernels import launching

        launching.listeners.append(reporter.alive)  # compiling them all may take longer than a step may
    cases = []
    for work in works:
        if not (result := reporter.earlier(work)):
            result = _result(engine, work, device, reporter)
            reporter.result(work, result)
        if result.get("differs"):
            return
        cases.append((work, result))
    if device.type == "cuda":
        return
    for work, result in cases:
        if work.kind == STEP and "skipped" not in result and "stock_mib" not in result:
            reporter.result(work, {**result, **_memory(engine, work, device)})
            reporter.part()


def _result(engine: str, work: Work, device: torch.device, reporter: Reporter) -> dict[str, Any]:
    """Return the result of a case; one in which the host's own step fails, too, is skipped, with the reason."""
    take = {STEP: _step_result, TRAIN: _training_result, CLASS_KERNELS: _rates}[work.kind]
    try:
        return take(engine, work, device, reporter)
    except Exception as error:
        if engine == REFERENCE or work.kind == CLASS_KERNELS:
            raise
        error.__traceback__ = None  # it holds tensors
        try:
            take(REFERENCE, work, device, reporter)
        except Exception as other:
            words = f"fails: {type(other).__name__}: {' '.join(str(other).split())[:200]}"
            return {"skipped": f"the host's own step {'is out of memory' if gauges.is_out_of_memory(other) else words}"}
        raise


def _step_result(engine: str, work: Work, device: torch.device, reporter: Reporter) -> dict[str, Any]:
    model = model_of(work.model, work.data).to(device)
    is_slow = engine == TRITON and kernels.is_interpreted()  # a test, whose times and memory say nothing
    problems = problems_of(work, model, device, 1 if is_slow else N_BATCHES)
    reporter.part()
    stock, ours = timing.engine_criterion(model, REFERENCE), timing.engine_criterion(model, engine)
    is_spared = gauges.spare_memory(stock, max(problems, key=lambda problem: problem.most_objects))
    about = {**_about(problems, work.amp), "task": model.task, "baseline": "one image at a time" * is_spared}
    found = _agreement(stock, engine, model, problems[:1] if is_spared else problems, work.amp, reporter)
    reporter.part()
    about["exchanged"] = found.n_exchanged
    if found.differs:
        return {**about, "differs": found.differs}
    n_pairs, seconds = (2 - is_slow, 0.0) if is_slow or is_spared else (MIN_PAIRS, SECONDS[device.type])
    latency, throughput = partial(timing.timed_step, amp=work.amp), partial(timing.queued_seconds, amp=work.amp)
    effort = (stock, ours), problems, n_pairs, seconds
    first, times = timing.alternate(*effort, latency, reporter.alive, WARM_UP[device.type])
    result = {**about, **timing.time_summary(times), "first_ms": [1e3 * value for value in first]}
    if device.type == "cuda":  # a training queues steps: `auto` goes by that
        result["latency"] = timing.time_summary(times)
        _, times = timing.alternate(*effort, throughput, reporter.alive)
        result.update({**timing.time_summary(times), **_on_gpu((stock, ours), problems[0], work.amp)})
        reporter.part()
    reporter.part()
    return {**result, "stock_mib": None, "ours_mib": None} if is_slow else result


def _agreement(
    stock: Any, engine: str, model: Any, problems: Sequence[Problem], amp: bool, reporter: Reporter
) -> Agreement:
    """Return where an engine deviates in the first of some batches in which it does, and all anchors in ties."""
    n_exchanged = 0
    for problem in problems:
        found = timing.engine_agreement(stock, timing.engine_criterion(model, engine), problem, amp)
        reporter.alive()
        n_exchanged += found.n_exchanged
        if found.differs:
            return Agreement(found.differs, n_exchanged)
    return Agreement([], n_exchanged)


def _about(problems: Sequence[Problem], amp: bool) -> dict[str, Any]:
    n_images, _, n_anchors = problems[0].scores.shape
    objects, dtype = statistics.mean(problem.n_objects for problem in problems), str(timing.dtype_of(amp))
    elements = {"elements": round(objects * n_anchors), "anchors": n_images * n_anchors}
    return {"objects": objects, **elements, "dtype": dtype.removeprefix("torch.")}


def _on_gpu(sides: tuple[Any, Any], problem: Problem, amp: bool) -> dict[str, Any]:
    """Return memory, and launches and synchronisations, of both sides; without these where the profiler fails."""
    found: dict[str, Any] = {}
    for name, criterion in zip(("stock", "ours"), sides):
        found[f"{name}_mib"] = gauges.memory_of(criterion, problem, amp)
        try:
            found[f"{name}_gpu"] = gauges.on_gpu(criterion, problem, amp)
        except (RuntimeError, AttributeError) as error:  # of the profiler, which not every machine allows
            timing.synchronise(problem.scores.device)  # raises again, if it was the engine's
            found["no_profile"] = " ".join(str(error).split())[:200]
    return found


def _memory(engine: str, work: Work, device: torch.device) -> dict[str, Any]:
    model = model_of(work.model, work.data).to(device)
    problem = problems_of(work, model, device, n=1)[0]
    small = drawn_task_problem(model.task, ObjectSpec(1), 0, device, head_of(model, work.imgsz))
    sides = [timing.engine_criterion(model, name) for name in (REFERENCE, engine)]
    gauges.spare_memory(sides[0], problem)
    for side in sides:  # what is made once and kept is no part of a step
        timing.timed_step(side, small, work.amp)
    return {f"{name}_mib": gauges.memory_of(side, problem, work.amp) for name, side in zip(("stock", "ours"), sides)}


def _training_result(engine: str, work: Work, device: torch.device, reporter: Reporter) -> dict[str, Any]:
    torch.manual_seed(0)
    model = model_of(work.model, work.data).to(device)
    shape = (work.batch, channels_of(model), work.imgsz, work.imgsz)
    problems = problems_of(work, model, device, n=2)
    batches = [{"img": torch.rand(shape, device=device), **problem.batch} for problem in problems]
    reporter.part()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    sides = timing.engine_criterion(model, REFERENCE), timing.engine_criterion(model, engine)
    take = partial(timing.training_step, model, optimizer, amp=work.amp)
    pairs = MIN_PAIRS if device.type == "cuda" else MIN_TRAIN_PAIRS
    _, times = timing.alternate(sides, batches, pairs, 0, take, reporter.alive)
    reporter.part()
    objects = statistics.mean(problem.n_objects for problem in problems)
    return {"objects": objects, **timing.time_summary(times)}


def _rates(engine: str, work: Work, device: torch.device, reporter: Reporter) -> dict[str, Any]:
    head = Head(imgsz=work.imgsz)
    shape = work.batch, head.n_classes, head.n_anchors
    rates = gauges.class_kernel_rates([create_class_loss(name) for name in CLASS_LOSSES], shape, work.amp)
    reporter.part()
    return {"rates": rates}


def head_of(model: Any, imgsz: int) -> Head:
    """Return what the head of a model predicts."""
    last = model.model[-1]
    return Head(int(last.nc), int(last.reg_max), tuple(int(stride) for stride in last.stride), imgsz)


def problems_of(work: Work, model: Any, device: torch.device, n: int = N_BATCHES) -> list[Problem]:
    """Return the batches of a case."""
    head = head_of(model, work.imgsz)
    if work.data is None:
        spec = ObjectSpec(work.batch, work.objects)
        return [drawn_task_problem(model.task, spec, seed, device, head) for seed in range(n)]
    rng, names = torch.Generator().manual_seed(0), ("batch_idx", "cls", "bboxes")
    asked = {"mode": "train", "task": "detect", "data": work.data, "imgsz": work.imgsz, "batch": work.batch}
    batches = host.batches_of(get_cfg(overrides=asked), host.dataset_of(asked), n)
    made = ({"img": batch["img"].float() / 255, **{name: batch[name] for name in names}} for batch in batches)
    return [predicted(batch, len(batch["img"]), rng, device, head) for batch in made]
