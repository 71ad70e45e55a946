# SPDX-License-Identifier: AGPL-3.0-or-later
"""Time and memory of the loss step, Ultralytics' own against the fast engine: python benchmarks/bench_loss.py.

A step is the criterion's forward and the backward to the outputs of the head, of three batches in turn. Both sides are
compared first, foreground, loss and gradients; a case in which they differ has no ratio. Then they alternate in one
process (ABBA). Peak memory is that of a process of its own for each side.

    python benchmarks/bench_loss.py                          the standard cases, batch 16, 1 thread
    python benchmarks/bench_loss.py --cases b64              those at batch 64
    python benchmarks/bench_loss.py --cases xview crowd300   by name
    python benchmarks/bench_loss.py --assigner               the assigner alone, with dense outputs
    python benchmarks/bench_loss.py --train-step             whole training steps of YOLOv8n and YOLOv8s
    python benchmarks/bench_loss.py --huge-pages             the fast engine without and with huge pages, in CPU time
    python benchmarks/bench_loss.py --device cuda --amp      on a GPU, mixed precision
    python benchmarks/bench_loss.py --device cuda --amp --engine triton     there, with kernels
    python benchmarks/bench_loss.py --device cuda --amp --class-kernels     the kernels of the class loss alone
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import psutil
import torch
import ultralytics
from problems import CASES, N_CLASSES, REG_MAX, STANDARD, STRIDES, case_of, problem
from ultralytics.utils import IterableSimpleNamespace
from ultralytics.utils.loss import FocalLoss

import yolo_lossplug
from yolo_lossplug.sparse import huge_pages
from yolo_lossplug.sparse.class_term import class_sum
from yolo_lossplug.ultralytics_hook.engines import fast

N_BATCHES = 3
BYTES_OF_STOCK = 17
"""Peak bytes of Ultralytics per element of (images, gts, anchors), as measured here in crowds."""
ASSIGNER_CASES = ["mosaic30", "crowd300", "crowd1000", "skew1000"]


def stock_class():
    """Return Ultralytics' criterion as installed, without patches."""
    spec = importlib.util.find_spec("ultralytics.utils.loss")
    fresh = importlib.util.spec_from_file_location("ultralytics.utils.stock_loss", spec.origin)
    module = importlib.util.module_from_spec(fresh)
    fresh.loader.exec_module(module)
    return module.v8DetectionLoss


def fake_model(device):
    """Return an object with the attributes that a criterion reads from a model."""
    head = SimpleNamespace(stride=torch.tensor(STRIDES, device=device).float(), nc=N_CLASSES, reg_max=REG_MAX)
    parameter = torch.zeros(1, device=device)
    gains = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    return SimpleNamespace(parameters=lambda: iter((parameter,)), args=gains, model=[head])


class WithAssignment(yolo_lossplug.DetectionLoss):
    """Ours, with the assigned targets that the detect task does not need."""

    def loss(self, preds, batch):
        """Return assigned targets, loss and items."""
        return self.get_assigned_targets_and_loss(preds, batch)


class OneImageAtATime(ultralytics.utils.tal.TaskAlignedAssigner):
    """Ultralytics' assigner where its dense tensors do not fit: its own fallback when a GPU is out of memory."""

    def _forward(self, pd_scores, *args, **kwargs):
        if len(pd_scores) > 1:
            raise RuntimeError("out of memory")
        return super()._forward(pd_scores, *args, **kwargs)


ENGINE = {"cpu": "fast", "cuda": "auto"}
"""The engine of our side, by device."""


def make(side, case, device, cls=yolo_lossplug.DetectionLoss):
    """Return the criterion of a side, "stock" or "ours"."""
    model, (topk, topk2) = fake_model(device), case.topk
    settings = {"tal_topk": topk, **({} if topk2 is None else {"tal_topk2": topk2})}
    if side == "stock" and not case.loss:
        return stock_class()(model, **settings)
    name = ENGINE[device] if side == "ours" else "reference"
    return cls(model, **settings, loss_engine=name, **dict(case.loss))


def needs(case, sample):
    """Return the bytes that Ultralytics needs for its dense tensors."""
    n = int(torch.bincount(sample.batch["batch_idx"].long().cpu()).max()) if sample.n_objects else 0
    return BYTES_OF_STOCK * case.batch * n * sample.scores.shape[2]


def autocast(device, amp):
    """Return the context of a step."""
    return torch.autocast(device, torch.float16) if amp else contextlib.nullcontext()


def step(criterion, sample, device, amp=False):
    """Take a step; return the loss, the gradients, and the seconds of forward and backward."""
    dtype = torch.float16 if amp else torch.float32
    boxes, scores = (tensor.to(dtype).requires_grad_() for tensor in (sample.boxes.detach(), sample.scores.detach()))
    feats = [feat.to(dtype) for feat in sample.feats]
    synchronise(device)
    start = time.perf_counter()
    with autocast(device, amp):
        loss, _ = criterion({"boxes": boxes, "scores": scores, "feats": feats}, sample.batch)
    loss.sum().backward()
    synchronise(device)
    return loss.detach(), (boxes.grad, scores.grad), time.perf_counter() - start


def synchronise(device):
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def differences(case, sample, device, amp, stock):
    """Return the differences between both sides, empty if there are none."""
    ours = make("ours", case, device)
    (loss, grads, _), (other, other_grads, _) = step(stock, sample, device, amp), step(ours, sample, device, amp)
    errors = []
    if not torch.allclose(other, loss, rtol=1e-4 if amp else 1e-5, atol=1e-6):
        errors.append(f"loss {loss.tolist()} and {other.tolist()}")
    for name, one, two in zip(("boxes", "scores"), grads, other_grads):
        one = torch.zeros_like(two) if one is None else one
        error = float((two.float() - one.float()).norm() / one.float().norm().clamp(min=1e-9))
        if error > (5e-3 if amp else 1e-4):  # gradients themselves are rounded to half precision
            errors.append(f"gradient of {name} by {error:.1e}")
    preds = {"boxes": sample.boxes, "scores": sample.scores, "feats": sample.feats}
    with torch.no_grad():
        expected = stock.get_assigned_targets_and_loss(preds, sample.batch)[0]
        actual = make("ours", case, device, WithAssignment).get_assigned_targets_and_loss(preds, sample.batch)[0]
    n_different = int((expected[0] != actual[0]).sum())
    is_foreground = expected[0] & actual[0]
    n_different += int((expected[1] != actual[1])[is_foreground].sum())
    if n_different:
        errors.append(f"{n_different} of {int(expected[0].sum())} positives")
    return errors


def alternate(sides, problems, n_pairs, seconds, take):
    """Return the seconds of one first step of each side, and of pairs of steps in the order ABBA."""
    first = [take(side, problems[0]) for side in sides]
    times, begin = ([], []), time.perf_counter()
    while len(times[0]) < n_pairs or (time.perf_counter() - begin < seconds and len(times[0]) < 60):
        i = len(times[0])
        for which in ((0, 1), (1, 0))[i % 2]:
            times[which].append(take(sides[which], problems[i % len(problems)]))
    return first, times


def summary(times):
    """Return medians, their ratio, and median and quartiles of the paired ratios."""
    stock, ours = (statistics.median(side) for side in times)
    pairs = [one / other for one, other in zip(*times)]
    low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    return {
        "stock_ms": 1e3 * stock,
        "ours_ms": 1e3 * ours,
        "ratio": stock / ours,
        "paired": middle,
        "quartiles": [low, high],
        "pairs": len(pairs),
        "steady": (high - low) / middle <= 0.3,
    }


def measure(name, options):
    """Return the row of a case."""
    case, device = case_of(name), options.device
    problems = [problem(case, seed, device) for seed in range(N_BATCHES)]
    stock = make("stock", case, device)
    row = {
        "case": name,
        "batch": case.batch,
        "objects": problems[0].n_objects,
        "baseline": "reference" if case.loss else "stock",
    }
    if max(needs(case, sample) for sample in problems) > 0.8 * free_memory(device):
        stock.assigner.__class__ = OneImageAtATime
        row["baseline"] = "stock, one image at a time"
    different = differences(case, problems[0], device, options.amp, stock)
    if different:
        return {**row, "differs": different}
    ours = make("ours", case, device)
    n_pairs, seconds = (2, 0) if row["baseline"].endswith("time") else (options.pairs, options.seconds)
    first, times = alternate(
        (stock, ours), problems, n_pairs, seconds, lambda c, sample: step(c, sample, device, options.amp)[2]
    )
    row.update(summary(times), first_call_ms=[1e3 * t for t in first])
    if device == "cuda":
        row.update(on_gpu((stock, ours), problems[0], options.amp))
    if not options.no_memory:
        row.update(memory(name, options, is_stock_too=not row["baseline"].endswith("time")))
    return row


def measure_huge_pages(name, options):
    """Return the row of the fast engine's CPU time with 4 KiB pages ("stock") and with huge pages ("ours")."""
    case = case_of(name)
    problems = [problem(case, seed, "cpu") for seed in range(N_BATCHES)]
    criterion = make("ours", case, "cpu")

    def take(min_bytes, sample):
        with mock.patch.object(huge_pages, "MIN_BYTES", min_bytes):
            start = time.process_time()
            step(criterion, sample, "cpu", options.amp)
            return time.process_time() - start

    _, times = alternate((math.inf, huge_pages.MIN_BYTES), problems, options.pairs, options.seconds, take)
    return {"case": name, "batch": case.batch, "baseline": "4 KiB pages", **summary(times)}


def on_gpu(sides, sample, amp):
    """Return busy milliseconds and launches of a step of each side on the GPU."""
    row, dtype = {}, torch.float16 if amp else torch.float32
    for name, criterion in zip(("stock", "ours"), sides):
        boxes, scores = (tensor.detach().to(dtype).requires_grad_() for tensor in (sample.boxes, sample.scores))
        preds = {"boxes": boxes, "scores": scores, "feats": [feat.to(dtype) for feat in sample.feats]}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            with autocast("cuda", amp):
                loss, _ = criterion(preds, sample.batch)
            torch.autograd.grad(loss.sum(), (boxes, scores))
            torch.cuda.synchronize()
        # Driver calls are recorded too, as CPU events.
        events = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
        row[f"{name}_device_ms"] = sum(event.self_device_time_total for event in events) / 1e3
        row[f"{name}_launches"] = sum(event.count for event in events)
    return row


def measure_class_kernels(name, options):
    """Return the rate of the class kernels, forward and backward, as a share of that of a copy."""
    from yolo_lossplug.kernels.class_term import ClassTargets, class_gradient, class_sums

    case, dtype = CASES["b64-coco7"], torch.float16 if options.amp else torch.float32
    n = case.batch * 8400
    logits = (torch.randn(case.batch, N_CLASSES, 8400, device="cuda") - 4).to(dtype)
    score = torch.rand(n, device="cuda") * (torch.rand(n, device="cuda") < 0.02)
    targets = ClassTargets(torch.randint(N_CLASSES, (n,), dtype=torch.int32, device="cuda"), score)
    kernel, scale = yolo_lossplug.create_class_loss(name).kernel, torch.ones((), device="cuda")
    copy, size = torch.empty_like(logits), logits.numel() * logits.element_size()
    works = {
        "copy": (lambda: copy.copy_(logits), 2 * size),
        "forward": (lambda: class_sums(logits, targets, kernel), size),
        "backward": (lambda: class_gradient(logits, targets, kernel, scale), 2 * size),
    }
    rates = {}
    for work, (function, n_bytes) in works.items():
        times = []
        for _ in range(12):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(20_000_000)  # so that launches are queued before the first runs
            begin.record()
            for _ in range(20):
                function()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 20)
        rates[work] = n_bytes / statistics.median(times[2:]) / 1e9
    print(
        f"{name}: copy {rates['copy']:.2f} TB/s, forward {100 * rates['forward'] / rates['copy']:.0f} % of it, "
        f"backward {100 * rates['backward'] / rates['copy']:.0f} %",
        flush=True,
    )


def free_memory(device):
    """Return the bytes that are free."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


def memory(name, options, is_stock_too=True):
    """Return the peak MiB of both sides, each in a process of its own."""
    row = {}
    for side in ("stock", "ours") if is_stock_too else ("ours",):
        words = [sys.executable, __file__, "--memory-of", side, name, "--device", options.device]
        process = subprocess.run(
            [*words, "--engine", ENGINE[options.device], *(["--amp"] if options.amp else [])],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        row[f"{side}_mib"] = json.loads(process.stdout.splitlines()[-1])
    return row


def memory_of(side, name, device, amp):
    """Print the MiB that a step adds: peak of forward, memory saved for backward, peak of the step."""
    case = case_of(name)
    small = problem(CASES["b1"], 9, device)
    criterion = make(side, case, device)
    step(criterion, small, device, amp)
    sample = problem(case, 0, device)
    boxes, scores = (
        tensor.to(torch.float16 if amp else torch.float32).requires_grad_() for tensor in (sample.boxes, sample.scores)
    )
    gc.collect()
    gauge = GPUGauge() if device == "cuda" else HostGauge()
    with autocast(device, amp):
        loss, _ = criterion(
            {"boxes": boxes, "scores": scores, "feats": [f.to(boxes.dtype) for f in sample.feats]}, sample.batch
        )
    forward, kept = gauge.peak(), gauge.now()
    loss.sum().backward()
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in (boxes, scores)) / 2**20
    print(json.dumps({"forward": forward, "kept": kept, "step": gauge.peak(), "gradients": gradients}))


class HostGauge:
    """Resident memory of this process, in MiB beyond that at the start. Linux."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        self.start = self.read("VmRSS")

    def read(self, key):
        """Return a value of the process's status in MiB."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

    def now(self):
        """Return the current memory."""
        return self.read("VmRSS") - self.start

    def peak(self):
        """Return the peak memory."""
        return self.read("VmHWM") - self.start


class GPUGauge:
    """Allocated memory of the GPU, in MiB beyond that at the start."""

    def __init__(self):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.start = torch.cuda.memory_allocated()

    def now(self):
        """Return the current memory."""
        return (torch.cuda.memory_allocated() - self.start) / 2**20

    def peak(self):
        """Return the peak memory."""
        return (torch.cuda.max_memory_allocated() - self.start) / 2**20


def measure_assigner(name, options):
    """Return the row of the assigner alone."""
    case, device = CASES[name], options.device
    inputs = [assigner_inputs(case, seed, device) for seed in range(N_BATCHES)]
    settings = {"topk": case.topk[0], "num_classes": N_CLASSES, "alpha": 0.5, "beta": 6.0, "stride": list(STRIDES)}
    stock, ours = ultralytics.utils.tal.TaskAlignedAssigner(**settings), yolo_lossplug.TaskAlignedAssigner(**settings)
    if not all(torch.equal(one, other) for one, other in zip(stock(*inputs[0]), ours(*inputs[0]))):
        return {"case": name, "differs": ["assignment"]}

    def take(assigner, sample):
        synchronise(device)
        start = time.perf_counter()
        assigner(*sample)
        synchronise(device)
        return time.perf_counter() - start

    _, times = alternate((stock, ours), inputs, options.pairs, options.seconds, take)
    return {"case": f"assigner {name}", "batch": case.batch, "baseline": "stock", **summary(times)}


def assigner_inputs(case, seed, device):
    """Return the inputs of the assigner in Ultralytics' criterion."""
    sample, recorded = problem(case, seed, device), []
    criterion = make("stock", case, device)
    criterion.assigner.forward = lambda *args, **kwargs: recorded.extend(args) or 1 / 0
    with contextlib.suppress(ZeroDivisionError), torch.no_grad():
        criterion({"boxes": sample.boxes, "scores": sample.scores, "feats": sample.feats}, sample.batch)
    return recorded


def measure_focal(options):
    """Return the row of the focal loss alone, forward and backward, against Ultralytics' class."""
    device, case = options.device, CASES["coco7"]
    sample = problem(case, 0, device)
    targets = fast.targets_of(
        make("ours", case, device), sample.batch, case.batch, torch.tensor([640.0, 640.0], device=device)
    )
    assigned = assignment_of(case, sample, device)
    label = targets.labels.flatten().long()[assigned.slot]
    n_anchors = sample.scores.shape[2]
    index = (assigned.anchor // n_anchors * N_CLASSES + label) * n_anchors + assigned.anchor % n_anchors
    dense = torch.zeros(case.batch, n_anchors, N_CLASSES, device=device)
    dense.view(-1, N_CLASSES)[assigned.anchor, label] = assigned.score
    stock_loss, own = FocalLoss(2.0, 0.25), yolo_lossplug.create_class_loss("focal")

    def stock(scores):
        return stock_loss(scores.permute(0, 2, 1).contiguous(), dense) * n_anchors  # undo its mean

    def ours(scores):
        return class_sum(scores, index, assigned.score, own, background=own.background)

    def take(function, _):
        scores = sample.scores.detach().requires_grad_()
        synchronise(device)
        start = time.perf_counter()
        function(scores).backward()
        synchronise(device)
        return time.perf_counter() - start

    if not torch.allclose(stock(sample.scores), ours(sample.scores), rtol=1e-4):
        return {"case": "focal alone", "differs": ["loss"]}
    _, times = alternate((stock, ours), [sample], options.pairs, options.seconds, take)
    return {"case": "focal alone", "batch": case.batch, "baseline": "FocalLoss", **summary(times)}


def assignment_of(case, sample, device):
    """Return the assignment of a problem."""
    criterion = make("ours", case, device)
    anchors = fast.anchors_of(criterion, sample.feats, torch.float32)
    targets = fast.targets_of(criterion, sample.batch, case.batch, anchors.imgsz)
    decoder = fast.Decoder(criterion, sample.boxes, anchors, torch.float32)
    return fast.assigned_by(criterion, decoder, sample.scores, targets, {})


def measure_training(name, case_name, options):
    """Return the row of whole training steps of a model: forward, loss, backward, and the optimiser."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    device, case = options.device, CASES[case_name]
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=N_CLASSES, verbose=False).to(device).train()
    model.args = get_cfg()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batches = [
        {**problem(case, seed, device).batch, "img": torch.rand(case.batch, 3, 640, 640, device=device)}
        for seed in range(2)
    ]
    criteria = [
        stock_class()(model),
        yolo_lossplug.DetectionLoss(model, loss_engine=ENGINE[device]),
    ]

    def take(criterion, batch):
        synchronise(device)
        start = time.perf_counter()
        with autocast(device, options.amp):
            loss, _ = criterion(model(batch["img"]), batch)
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise(device)
        return time.perf_counter() - start

    _, times = alternate(criteria, batches, min(options.pairs, 3) if device == "cpu" else options.pairs, 0, take)
    return {"case": f"{name} step, {case_name}", "batch": case.batch, "baseline": "stock", **summary(times)}


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
    ("GPU ms: stock / ours", lambda row: on_device(row, "device_ms", ".2f")),
    ("launches: stock / ours", lambda row: on_device(row, "launches", "d")),
)


def table(rows):
    """Return rows as a Markdown table."""
    columns = COLUMNS if any("ours_launches" in row for row in rows) else COLUMNS[:-2]  # the last two are for a GPU
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
    parser.add_argument("--cases", nargs="*", default=STANDARD, help=f"b64, or of {', '.join(CASES)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of steps at least")
    parser.add_argument("--seconds", type=float, default=10, help="seconds for a case at least")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--assigner", action="store_true")
    parser.add_argument("--train-step", action="store_true")
    parser.add_argument("--huge-pages", action="store_true", help="what huge pages save on a CPU")
    parser.add_argument("--engine", help="of our side: fast on a CPU and auto on a GPU unless named")
    parser.add_argument("--class-kernels", action="store_true", help="rates of the class kernels on a GPU")
    parser.add_argument("--models", nargs="*", default=["yolov8n", "yolov8s"], help="of --train-step")
    parser.add_argument("--output", help="file for the table and the lines, e.g. benchmarks/results/cpu.md")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        ENGINE[options.device] = options.engine
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)  # as Ultralytics' trainer sets both
    torch.utils.deterministic.fill_uninitialized_memory = False
    if options.memory_of:
        memory_of(*options.memory_of, options.device, options.amp)
        return
    if options.class_kernels:
        print(context(options))
        for name in ("bce", "focal", "qfl", "varifocal"):
            measure_class_kernels(name, options)
        return
    names = [
        n for name in options.cases for n in ([c for c in CASES if c.startswith("b64-")] if name == "b64" else [name])
    ]
    if options.assigner:
        jobs = [lambda n=n: measure_assigner(n, options) for n in ASSIGNER_CASES]
    elif options.train_step:
        pairs = [(m, c) for m in options.models for c in ("coco7", "crowd300")]
        jobs = [lambda m=m, c=c: measure_training(m, c, options) for m, c in pairs]
    elif options.huge_pages:
        jobs = [lambda n=n: measure_huge_pages(n, options) for n in names]
    else:
        jobs = [lambda n=n: measure(n, options) for n in names]
        jobs += [lambda: measure_focal(options)] * ("focal" in names)
    head, rows = context(options, " · CPU time" * options.huge_pages), []
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
