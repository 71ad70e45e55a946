# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cases of the loss step beyond those of `lossplug bench`, over the same code: python benchmarks/bench_loss.py.

A step is the criterion's forward and the backward to the outputs of the head, of three batches in turn. Both sides are
compared first, foreground, loss and gradients; a case in which they differ has no ratio. Then they alternate in one
process (ABBA). Peak memory is that of a process of its own for each side. `lossplug bench` measures the engines of this
machine, and `lossplug bench device=0 all=True` those of a GPU.

    python benchmarks/bench_loss.py                          the standard cases, batch 16, 1 thread
    python benchmarks/bench_loss.py --cases b64              those at batch 64
    python benchmarks/bench_loss.py --cases xview crowd300   by name
    python benchmarks/bench_loss.py --assigner               the assigner alone, with dense outputs
    python benchmarks/bench_loss.py --train-step             whole training steps of YOLOv8n and YOLOv8s
    python benchmarks/bench_loss.py --huge-pages             the fast engine without and with huge pages, in CPU time
    python benchmarks/bench_loss.py --regions                what regions add to a training step, in CPU time
    python benchmarks/bench_loss.py --task segment           masks, also: obb, pose; with --train-step whole steps
    python benchmarks/bench_loss.py --device cuda --amp      on a GPU, mixed precision, with --engine triton by kernels
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import ultralytics
from ultralytics.utils import IterableSimpleNamespace
from ultralytics.utils.loss import FocalLoss, v8DetectionLoss, v8OBBLoss, v8PoseLoss, v8SegmentationLoss

import yolo_lossplug
from yolo_lossplug.regions import ImageRegions, upright_corners
from yolo_lossplug.sparse import huge_pages
from yolo_lossplug.sparse.class_term import class_sum
from yolo_lossplug.ultralytics_hook.criterion import leave_out_regions
from yolo_lossplug.ultralytics_hook.engines import fast
from yolo_lossplug.ultralytics_hook.regions.loss import regions_of
from yolo_lossplug.ultralytics_hook.trial import gauges, timing
from yolo_lossplug.ultralytics_hook.trial.gauges import memory_of
from yolo_lossplug.ultralytics_hook.trial.problems import KEYPOINTS, XVIEW, Head, ObjectSpec, drawn_task_problem

N_BATCHES = 3
HEAD = Head()
ASSIGNER_CASES = ["mosaic30", "crowd300", "crowd1000", "skew1000"]


class Case(NamedTuple):
    """What a step is measured on: objects, keys of the plugin, and numbers of the assigner."""

    objects: ObjectSpec = ObjectSpec()
    loss: tuple = ()
    topk: tuple = (10, None)
    task: str = "detect"


SETTINGS = {
    "coco7": (7, 72),
    "mosaic30": (30, 44),
    "crowd100": (100, 30),
    "crowd300": (300, 20),
    "crowd1000": (1000, 13),
    "skew1000": (-1000, 13),
}
"""Mean number and median side of objects; negative: so many in one image, and 7 in each of the others."""

CASES = {
    **{name: Case(ObjectSpec(16, *setting)) for name, setting in SETTINGS.items()},
    **{
        f"b64-{name}": Case(ObjectSpec(64, *SETTINGS[name]))
        for name in ("coco7", "mosaic30", "crowd100", "crowd300", "skew1000")
    },
    "xview": Case(ObjectSpec(128, XVIEW, 14)),
    "b1": Case(ObjectSpec(1)),
    "b4": Case(ObjectSpec(4)),
    "end-to-end": Case(topk=(7, 1)),
    "focal": Case(loss=(("cls_loss", "focal"),)),
    "qfl": Case(loss=(("cls_loss", "qfl"),)),
    "eiou": Case(loss=(("loss", "eiou"),)),
    "no-objects": Case(ObjectSpec(1, 0)),
    "invalid": Case(ObjectSpec(16, 7, -72)),
    "full-image": Case(ObjectSpec(4, 100, 640, is_exact=True)),
    "constant": Case(ObjectSpec(16, 30, 44, "constant")),
    "fresh": Case(ObjectSpec(16, 30, 44, "fresh")),
    **{
        f"{task}-{n}": Case(ObjectSpec(batch, n, side, is_exact=True), task=task)
        for task, batch, settings in (
            ("segment", 8, ((7, 72), (30, 44), (100, 30), (3, 300), (1, 600))),
            ("obb", 4, ((10, 40), (100, 30), (400, 20), (1000, 13))),
            ("pose", 8, ((7, 72), (30, 44))),
        )
        for n, side in settings
    },
}
TRAIN_MODELS = {
    "detect": ("yolov8n", "yolov8s"),
    "segment": ("yolov8n-seg",),
    "obb": ("yolov8n-obb",),
    "pose": ("yolov8n-pose",),
}
"""Models of training steps, by task."""
TRAIN_CASES = {"detect": ("coco7", "crowd300"), "segment": ("segment-30",), "obb": ("obb-100",), "pose": ("pose-30",)}
N_CLASSES = {"obb": 15, "pose": 1}
"""Classes of a task, 80 unless said."""
CRITERIA = {
    "detect": (v8DetectionLoss, yolo_lossplug.DetectionLoss),
    "segment": (v8SegmentationLoss, yolo_lossplug.SegmentationLoss),
    "obb": (v8OBBLoss, yolo_lossplug.OBBLoss),
    "pose": (v8PoseLoss, yolo_lossplug.PoseLoss),
}
"""Criteria of both sides."""


def standard_cases(task):
    """Return the names of the cases that are measured unless others are named."""
    cases = [name for name, case in CASES.items() if case.task == task]
    return [name for name in cases if not name.startswith("b64-") and name != "xview"]


def head_of(case):
    """Return what the head predicts in a case."""
    return HEAD._replace(n_classes=N_CLASSES.get(case.task, HEAD.n_classes))


def case_of(name):
    """Return a case by name, or by its numbers of images and of objects in each, as in "4x300"."""
    if name in CASES:
        return CASES[name]
    batch, n = map(int, name.split("x"))
    return Case(ObjectSpec(batch, n, 20, is_exact=True))


def problems_of(case, device, n=N_BATCHES):
    """Return the batches of a case."""
    return [drawn_task_problem(case.task, case.objects, seed, device, head_of(case)) for seed in range(n)]


def fake_model(case, device):
    """Return an object with the attributes that a criterion reads from a model."""
    stride = torch.tensor(HEAD.strides, device=device).float()
    head = SimpleNamespace(stride=stride, nc=head_of(case).n_classes, reg_max=HEAD.reg_max, kpt_shape=list(KEYPOINTS))
    parameter = torch.zeros(1, device=device)
    gains = IterableSimpleNamespace(
        box=7.5, cls=0.5, dfl=1.5, angle=1.0, pose=12.0, kobj=1.0, overlap_mask=True, task=case.task
    )
    return SimpleNamespace(parameters=lambda: iter((parameter,)), args=gains, model=[head])


ENGINE = {"cpu": "fast", "cuda": "auto"}
"""The engine of our side, by device."""


def make(side, case, device):
    """Return the criterion of a side, "stock" or "ours"."""
    model, (topk, topk2), (stock, ours) = fake_model(case, device), case.topk, CRITERIA[case.task]
    settings = {"tal_topk": topk, **({} if topk2 is None else {"tal_topk2": topk2})}
    if side == "stock" and not case.loss:
        return stock(model, **settings)
    name = ENGINE[device] if side == "ours" else "reference"
    return ours(model, **settings, loss_engine=name, **dict(case.loss))


def row_of(times):
    """Return the figures of both sides as a row of the table."""
    made = timing.time_summary(times)
    low, middle, high = made["ratio"]
    stock, ours = made["stock_ms"][1], made["ours_ms"][1]
    row = {"stock_ms": stock, "ours_ms": ours, "ratio": stock / ours, "paired": middle, "quartiles": [low, high]}
    return {**row, "pairs": made["pairs"], "steady": made["is_steady"]}


def measure(name, options):
    """Return the row of a case."""
    case, device = case_of(name), options.device
    problems = problems_of(case, device)
    stock = make("stock", case, device)
    is_spared = gauges.spare_memory(stock, max(problems, key=lambda one: one.most_objects))
    row = {"case": name, "batch": case.objects.batch, "objects": problems[0].n_objects}
    row["baseline"] = "stock, one image at a time" if is_spared else "reference" if case.loss else "stock"
    different = timing.engine_agreement(stock, make("ours", case, device), problems[0], options.amp).differs
    if different:
        return {**row, "differs": different}
    ours = make("ours", case, device)
    n_pairs, seconds = (2, 0) if is_spared else (options.pairs, options.seconds)
    first, times = timing.alternate(
        (stock, ours),
        problems,
        n_pairs,
        seconds,
        lambda one, sample: timing.timed_step(one, sample, options.amp),
    )
    row.update(row_of(times), first_call_ms=[1e3 * t for t in first])
    if device == "cuda":
        for side, criterion in (("stock", stock), ("ours", ours)):
            found = gauges.on_gpu(criterion, problems[0], options.amp)
            row.update({f"{side}_{key}": value for key, value in found.items()})
    if not options.no_memory:
        row.update(memory(name, options, is_stock_too=not is_spared))
    return row


def measure_huge_pages(name, options):
    """Return the row of the fast engine's CPU time with 4 KiB pages ("stock") and with huge pages ("ours")."""
    case = case_of(name)
    problems = problems_of(case, "cpu")
    criterion = make("ours", case, "cpu")

    def take(min_bytes, sample):
        with mock.patch.object(huge_pages, "MIN_BYTES", min_bytes):
            start = time.process_time()
            timing.timed_step(criterion, sample, options.amp)
            return time.process_time() - start

    _, times = timing.alternate((math.inf, huge_pages.MIN_BYTES), problems, options.pairs, options.seconds, take)
    return {"case": name, "batch": case.objects.batch, "baseline": "4 KiB pages", **row_of(times)}


def memory(name, options, is_stock_too=True):
    """Return the peak MiB of both sides, each in a process of its own."""
    row = {}
    for side in ("stock", "ours") if is_stock_too else ("ours",):
        words = [sys.executable, __file__, "--memory-of", side, name, "--device", options.device]
        process = subprocess.run(
            [*words, "--engine", ENGINE[options.device], *(["--amp"] if options.amp else [])],
            capture_output=True,
            text=True,
            check=True,
        )
        row[f"{side}_mib"] = json.loads(process.stdout.splitlines()[-1])
    return row


def print_memory(side, name, device, amp):
    """Print the MiB that a step adds: peak of forward, memory saved for backward, peak of the step."""
    criterion = make(side, case_of(name), device)
    timing.timed_step(criterion, problems_of(case_of(name)._replace(objects=CASES["b1"].objects), device, 1)[0], amp)
    print(json.dumps(memory_of(criterion, problems_of(case_of(name), device, 1)[0], amp)))


def measure_assigner(name, options):
    """Return the row of the assigner alone."""
    case, device = CASES[name], options.device
    inputs = [assigner_inputs(case, sample, device) for sample in problems_of(case, device)]
    settings = {"topk": case.topk[0], "num_classes": HEAD.n_classes, "alpha": 0.5, "beta": 6.0}
    settings["stride"] = list(HEAD.strides)
    stock, ours = ultralytics.utils.tal.TaskAlignedAssigner(**settings), yolo_lossplug.TaskAlignedAssigner(**settings)
    if not all(torch.equal(one, other) for one, other in zip(stock(*inputs[0]), ours(*inputs[0]))):
        return {"case": name, "differs": ["assignment"]}

    def take(assigner, sample):
        timing.synchronise(torch.device(device))
        start = time.perf_counter()
        assigner(*sample)
        timing.synchronise(torch.device(device))
        return time.perf_counter() - start

    _, times = timing.alternate((stock, ours), inputs, options.pairs, options.seconds, take)
    return {"case": f"assigner {name}", "batch": case.objects.batch, "baseline": "stock", **row_of(times)}


def assigner_inputs(case, sample, device):
    """Return the inputs of the assigner in Ultralytics' criterion."""
    recorded = []
    criterion = make("stock", case, device)
    criterion.assigner.forward = lambda *args, **kwargs: recorded.extend(args) or 1 / 0
    with contextlib.suppress(ZeroDivisionError), torch.no_grad():
        criterion({"boxes": sample.boxes, "scores": sample.scores, "feats": sample.feats}, sample.batch)
    return recorded


def measure_focal(options):
    """Return the row of the focal loss alone, forward and backward, against Ultralytics' class."""
    device, case = options.device, CASES["coco7"]
    (sample,) = problems_of(case, device, 1)
    targets = fast.targets_of(
        make("ours", case, device), sample.batch, case.objects.batch, torch.tensor([640.0, 640.0], device=device)
    )
    assigned = assignment_of(case, sample, device)
    label = targets.labels.flatten().long()[assigned.slot]
    n_anchors = sample.scores.shape[2]
    index = (assigned.anchor // n_anchors * HEAD.n_classes + label) * n_anchors + assigned.anchor % n_anchors
    dense = torch.zeros(case.objects.batch, n_anchors, HEAD.n_classes, device=device)
    dense.view(-1, HEAD.n_classes)[assigned.anchor, label] = assigned.score
    stock_loss, own = FocalLoss(2.0, 0.25), yolo_lossplug.create_class_loss("focal")

    def stock(scores):
        return stock_loss(scores.permute(0, 2, 1).contiguous(), dense) * n_anchors  # undo its mean

    def ours(scores):
        return class_sum(scores, index, assigned.score, own, background=own.background)

    def take(function, _):
        scores = sample.scores.detach().requires_grad_()
        timing.synchronise(torch.device(device))
        start = time.perf_counter()
        function(scores).backward()
        timing.synchronise(torch.device(device))
        return time.perf_counter() - start

    if not torch.allclose(stock(sample.scores), ours(sample.scores), rtol=1e-4):
        return {"case": "focal alone", "differs": ["loss"]}
    _, times = timing.alternate((stock, ours), [sample], options.pairs, options.seconds, take)
    return {"case": "focal alone", "batch": case.objects.batch, "baseline": "FocalLoss", **row_of(times)}


def assignment_of(case, sample, device):
    """Return the assignment of a problem."""
    criterion = make("ours", case, device)
    anchors = fast.anchors_of(criterion, sample.feats, torch.float32)
    targets = fast.targets_of(criterion, sample.batch, case.objects.batch, anchors.imgsz)
    decoder = fast.Decoder(criterion, sample.boxes, anchors, torch.float32)
    return fast.assigned_by(criterion, decoder, sample.scores, targets, {})


def measure_training(name, case_name, options):
    """Return the row of whole training steps of a model: forward, loss, backward, and the optimiser."""
    from ultralytics import YOLO
    from ultralytics.cfg import get_cfg

    device, case = options.device, CASES[case_name]
    torch.manual_seed(0)
    made = YOLO(f"{name}.yaml").model
    model = type(made)(f"{name}.yaml", nc=head_of(case).n_classes, verbose=False).to(device).train()
    model.args = get_cfg(overrides={"task": case.task})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    shape = (case.objects.batch, 3, HEAD.imgsz, HEAD.imgsz)
    batches = [{**one.batch, "img": torch.rand(shape, device=device)} for one in problems_of(case, device, 2)]
    stock, ours = CRITERIA[case.task]
    criteria = stock(model), ours(model, loss_engine=ENGINE[device])

    def take(criterion, batch):
        start = time.process_time()
        seconds = timing.training_step(model, optimizer, criterion, batch, options.amp)
        return time.process_time() - start if options.regions else seconds

    n_pairs = min(options.pairs, 3) if device == "cpu" else options.pairs
    _, times = timing.alternate(criteria, batches, n_pairs, 0, take)
    row = {"case": f"{name} step, {case_name}", "batch": case.objects.batch, "baseline": "stock"}
    return {**row, **row_of(times)}


def measure_regions(name, options):
    """Return the row of loss steps with regions in every image ("ours") and without ("stock"), and a training step."""
    case = case_of(name)
    criterion, sides = make("ours", case, "cpu"), (False, True)
    leave_out_regions(criterion)
    problems, n_classes = problems_of(case, "cpu"), head_of(case).n_classes
    table = np.array([[True] * n_classes, [False] + [True] * (n_classes - 1)])  # of boxes, and of a folder
    low = np.random.default_rng(0).uniform(0, 0.7, (case.objects.batch, 3, 2))
    boxes = np.concatenate((low, low + 0.3), 2).astype(np.float32)
    whole, kinds = np.array([[0, 0, 1, 1]], np.float32), np.array([0, 0, 0, 1])
    images = [ImageRegions(upright_corners(np.concatenate((some, whole))), kinds, table) for some in boxes]
    shape = torch.empty(case.objects.batch, 3, HEAD.imgsz, HEAD.imgsz)

    def take(has_regions, sample):
        with regions_of({"img": shape, "lossplug": images if has_regions else None}):
            start = time.process_time()
            timing.timed_step(criterion, sample, options.amp)
            return time.process_time() - start

    _, times = timing.alternate(sides, problems, options.pairs, options.seconds, take)
    row = {"case": f"regions, {name}", "batch": case.objects.batch, "baseline": "without regions", **row_of(times)}
    step = measure_training(TRAIN_MODELS[case.task][0], name, options)["ours_ms"]
    return {**row, "step_ms": step, "of_step": (row["ours_ms"] - row["stock_ms"]) / step}


def context(options, clock=""):
    """Return the line with date, versions, device and settings."""
    cpu = next(
        (line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    amp = " · amp float16" * options.amp
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{cpu}, {options.threads} thread(s)"
    return (
        f"{datetime.date.today()} · ultralytics {ultralytics.__version__} · torch {torch.__version__} · {device}"
        f"{amp}{clock} · OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} · THP "
        f"{pages.read_text().strip() if pages.exists() else '-'} · THP_MEM_ALLOC_ENABLE="
        f"{os.environ.get('THP_MEM_ALLOC_ENABLE', '0')} · load {os.getloadavg()[0]:.1f}"
    )


COLUMNS = (
    ("case", lambda row: row["case"]),
    ("baseline", lambda row: row["baseline"]),
    ("stock ms", lambda row: f"{row['stock_ms']:.1f}"),
    ("ours ms", lambda row: f"{row['ours_ms']:.1f}"),
    ("ratio of medians", lambda row: floor(row["ratio"])),
    ("paired: median, quartiles", lambda row: f"{floor(row['paired'])}, {floor(row['quartiles'][0])} to {spread(row)}"),
    ("step peak MiB: stock / ours / gradients", lambda row: mebibytes(row, "step", "gradients")),
    ("forward peak MiB: stock / ours", lambda row: mebibytes(row, "forward")),
    ("share of a training step", lambda row: f"{row['of_step']:.2%}"),
    ("GPU ms: stock / ours", lambda row: on_device(row, "device_ms", ".2f")),
    ("launches: stock / ours", lambda row: on_device(row, "launches", "d")),
)

NEEDED = {"share of a training step": "of_step", **dict.fromkeys([title for title, _ in COLUMNS[-2:]], "ours_launches")}
"""What a row must have for a column, by title."""


def table(rows):
    """Return rows as a Markdown table."""
    columns = [(title, show) for title, show in COLUMNS if any(NEEDED.get(title, "case") in row for row in rows)]
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (
            ["differs: " + "; ".join(row["differs"])] if "differs" in row else [show(row) for _, show in columns[1:]]
        )
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(row):
    """Return the upper quartile, and whether the quartiles are too far apart for the ratio to count."""
    return f"{row['quartiles'][1]:.2f}{'' if row['steady'] else ' (unsteady)'}"


def mebibytes(row, *keys):
    """Return the memory of both sides, "-" where it was not measured."""
    stock, ours = row.get("stock_mib"), row.get("ours_mib")
    if not ours:
        return "-"
    return " / ".join([f"{stock[keys[0]]:.0f}" if stock else "-", *(f"{ours[key]:.0f}" for key in keys)])


def on_device(row, key, form):
    """Return a value of both sides on a GPU, "-" elsewhere."""
    return " / ".join(f"{row[f'{side}_{key}']:{form}}" for side in ("stock", "ours")) if f"ours_{key}" in row else "-"


def floor(ratio):
    """Return a ratio, never rounded up."""
    return f"{int(ratio * 100) / 100:.2f}"


def main():
    """Measure, and print a JSON line for each case and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TRAIN_MODELS, default="detect")
    parser.add_argument("--cases", nargs="*", help=f"b64, or of {', '.join(CASES)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of steps at least")
    parser.add_argument("--seconds", type=float, default=10, help="seconds for a case at least")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--assigner", action="store_true")
    parser.add_argument("--train-step", action="store_true")
    parser.add_argument("--huge-pages", action="store_true", help="what huge pages save on a CPU")
    parser.add_argument("--regions", action="store_true", help="what regions add to a training step on a CPU")
    parser.add_argument("--engine", help="of our side: fast on a CPU and auto on a GPU unless named")
    parser.add_argument("--models", nargs="*", help="of --train-step")
    parser.add_argument("--output", help="file for the table and the lines, e.g. benchmarks/results/cpu.md")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        ENGINE[options.device] = options.engine
    torch.set_num_threads(options.threads)
    timing.set_deterministic()
    if options.memory_of:
        print_memory(*options.memory_of, options.device, options.amp)
        return
    chosen = options.cases or standard_cases(options.task)
    large = [name for name in CASES if name.startswith("b64-")]
    names = [n for name in chosen for n in (large if name == "b64" else [name])]
    if options.assigner:
        jobs = [lambda n=n: measure_assigner(n, options) for n in ASSIGNER_CASES]
    elif options.train_step:
        models = options.models or TRAIN_MODELS[options.task]
        pairs = [(m, c) for m in models for c in options.cases or TRAIN_CASES[options.task]]
        jobs = [lambda m=m, c=c: measure_training(m, c, options) for m, c in pairs]
    elif options.huge_pages:
        jobs = [lambda n=n: measure_huge_pages(n, options) for n in names]
    elif options.regions:
        jobs = [lambda n=n: measure_regions(n, options) for n in options.cases or TRAIN_CASES[options.task]]
    else:
        jobs = [lambda n=n: measure(n, options) for n in names]
        jobs += [lambda: measure_focal(options)] * ("focal" in names)
    head, rows = context(options, " · CPU time" * (options.huge_pages or options.regions)), []
    print(head, flush=True)
    for job in jobs:
        rows.append(job())
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    if options.output:
        words = " ".join(["python benchmarks/bench_loss.py", *sys.argv[1:]])
        lines = "\n".join(json.dumps(row) for row in rows)
        Path(options.output).write_text(
            f"`{words}`\n\n{head}\n\n{table(rows)}\n\n```json\n{lines}\n```\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
