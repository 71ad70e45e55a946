# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug bench`: which engine is fastest on this machine, proven identical first, and remembered for `auto`."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from yolo_lossplug import kernels
from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import flag_of
from yolo_lossplug.selection.names import suggest
from yolo_lossplug.tools.arguments import command_line, merge, split_list, whole_number
from yolo_lossplug.tools.bench import child
from yolo_lossplug.tools.bench.report import EngineResults, write_report
from yolo_lossplug.tools.report import Report
from yolo_lossplug.ultralytics_hook.console import new_folder, progress, say
from yolo_lossplug.ultralytics_hook.engines import record
from yolo_lossplug.ultralytics_hook.engines.choice import FAST, REFERENCE, TRITON
from yolo_lossplug.ultralytics_hook.trial import bench_cases
from yolo_lossplug.ultralytics_hook.trial.bench_cases import CLASS_KERNELS, PARTS, STEP, TASK_MODELS, TRAIN, Work
from yolo_lossplug.ultralytics_hook.trial.problems import XVIEW

HELP = """\
usage: lossplug bench [key=value ...]

Takes steps of the loss, forward and backward to the head's outputs, of stock
Ultralytics and of each engine in turn on the same batches. An engine whose
assignments, loss or gradients differ is disqualified; the others are timed, and
the result is remembered: from then on loss_engine=auto takes the fastest for
the size of a step. Each engine runs in a process of its own, so that one that
crashes or hangs is disqualified and the others continue.
  model=yolov8n.yaml batch=16 imgsz=640 amp=True device=
                     as for `yolo train`; on a CPU there is no half precision
  task=segment       masks as well; also pose, obb: their batches are drawn, and
                     the record, which is of detect, stays what it is
  objects=7,30,300   objects per image of synthetic batches; predictions are
                     drawn around them. Kernels in Triton's interpreter
                     (TRITON_INTERPRET=1) take minutes for many: default 7 there
  data=DATA          batches of this dataset instead, augmented as in training
  engines=reference,fast,triton
                     default: those that can run here
  train_step=True    whole training steps as well
  all=True           batch and four times as many images, 7 to 1,000 objects, a
                     batch like one of xView, the bandwidth of class kernels and
                     training steps: what a GPU is judged by, in some minutes
  limit=240          seconds after which an engine that takes no step is
                     disqualified
  name=NAME          the same name with the same keys continues: cases that have
                     a result are kept
Writes report.html, report.md and results.json into runs/bench/NAME/, and the
record into Ultralytics' settings folder.
Example: lossplug bench batch=16 objects=7,300\
"""
KNOWN_ENGINES = (REFERENCE, FAST, TRITON)
OBJECTS, ALL_OBJECTS, TRAIN_OBJECTS = (7, 30, 300), (7, 30, 100, 300, 1000), (7, 300)
ALL_MODELS = ("yolov8n.yaml", "yolov8s.yaml")
TRAINING_DEFAULTS = {"model": None, "task": None, "batch": 16, "imgsz": 640, "amp": True, "device": None, "data": None}
OWN_DEFAULTS = {"objects": None, "engines": None, "train_step": False, "all": False, "limit": 240}
DEFAULTS = {**TRAINING_DEFAULTS, **OWN_DEFAULTS, "name": None, "project": None}
"""Keys with their defaults; those of None are derived, or Ultralytics'."""
REMOVED = {"adopt": " Train with loss_engine=fast instead, with stock losses too."}
"""Keys of earlier versions, and what to do instead."""
PLAN_FILE = "bench.json"


class BenchPlan(NamedTuple):
    """What is measured, checked.

    Attributes:
        works: The cases.
        engines: The engines.
        missing: Why engines that were asked for cannot run here, by name.
        device: The device.
        device_argument: The same as the user names it.
        key: Device and versions.
        limit: Seconds that an engine may take no step for.
        folder: Where results go.
        described: What that folder says of the plan: the same one on the same machine continues.
        command: The command that gives it.
        task: The task of the models.
    """

    works: list[Work]
    engines: list[str]
    missing: dict[str, str]
    device: torch.device
    device_argument: Any
    key: record.Key
    limit: float
    folder: Path
    described: dict[str, Any]
    command: str
    task: str


def main(args: dict[str, Any]) -> None:
    """Measure, print the report, and exit with 1 if an engine is disqualified.

    SIGTERM, which a cluster sends first, ends it as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder, results, report = bench(args)
    print(f"\n{report.terminal()}\n\nwritten to {folder}")
    raise SystemExit(bool(results.disqualified.keys() - results.missing.keys()))


def bench(args: Mapping[str, Any]) -> tuple[Path, EngineResults, Report]:
    """Measure what has no result yet, and write report and record; see `HELP` for the arguments.

    Returns:
        The folder, what was measured, and the report.

    Raises:
        LossPlugError: If an argument is wrong; nothing is measured or written then.
        KeyboardInterrupt: After Ctrl-C; cases that are finished stay.
    """
    return measure_plan(bench_plan(args))


def measure_plan(plan: BenchPlan) -> tuple[Path, EngineResults, Report]:
    """Measure what a plan has without a result, write report and record, and return what `bench` does."""
    today = datetime.date.today().isoformat()
    record.add((), plan.key, {}, today)  # a record that cannot be written is said now, not after minutes
    cases = plan.folder / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    write_json(plan.folder / PLAN_FILE, plan.described)
    failed = _measure(plan, cases)
    by_work = [(work, child.read_results(cases, plan.engines, work)) for work in plan.works]
    results = EngineResults(by_work, failed, plan.missing, plan.key, today, plan.command, record.file())
    record.add(results.entries, plan.key, results.refused, today, plan.task, results.proven)
    measured = record.fastest_engines(plan.device, lambda name: True)
    return plan.folder, results, write_report(results, measured, plan.folder)


def _measure(plan: BenchPlan, cases: Path) -> dict[str, str]:
    works, failed = {name: [work for work in plan.works if is_fit(name, work)] for name in plan.engines}, {}
    try:
        with closing(progress(sum(map(_parts, works.values())), "bench")) as bar:
            for name, fit in works.items():
                waiting = [work for work in fit if not child.is_finished(cases, name, work)]
                bar.update(_parts(fit) - _parts(waiting))
                if why := child.run_engine(name, waiting, cases, plan.device_argument, plan.limit, bar.update):
                    failed[name] = why
    except KeyboardInterrupt:
        again = f"the same command with name={plan.folder.name} continues"
        say(f"interrupted. Finished cases stay in {plan.folder}; {again}.")
        raise
    return failed


def _parts(works: Sequence[Work]) -> int:
    return sum(PARTS[work.kind] for work in works)


def is_fit(engine: str, work: Work) -> bool:
    """Return whether an engine has a result in a case: class kernels belong to one engine."""
    return work.kind != CLASS_KERNELS or engine == TRITON


def bench_plan(args: Mapping[str, Any]) -> BenchPlan:
    """Return what is measured, whose steps can be."""
    values = _values(args)
    device = bench_cases.bench_device(values["device"])
    key, why = record.record_key(device), kernels.missing(device)
    asked = _engines(values, has_kernels=not why and not kernels.is_interpreted())
    works = _works(values, device.type, asked)
    described = {"works": [work._asdict() for work in works], "engines": asked, "here": key._asdict()}
    folder = _folder(values["name"], values["project"], described)
    missing = {TRITON: why} if why and TRITON in asked else {}
    engines = [name for name in asked or [REFERENCE] if name not in missing]
    task = "detect"
    for name in dict.fromkeys(work.model for work in works):
        task = bench_cases.model_of(name, works[0].data).task
        _refuse_other_task(name, task, args.get("task"), engines)
    place, command = (key, values["limit"], folder, described), command_line("bench", args)
    return BenchPlan(works, engines, missing, device, values["device"], *place, command, task)


def _refuse_other_task(name: str, task: str, asked: Any, engines: Sequence[str]) -> None:
    """Raise an error if a model is not of the task that is asked for, or if its task has no kernels."""
    if asked is not None and asked != task:
        raise LossPlugError(f"model={name} is of task={task}, not of task={asked}. Remove one of the two.")
    if TRITON in engines and task != "detect":
        raise LossPlugError(f"engines={TRITON} takes the steps of detect, not those of task={task}. Give engines=fast.")


def _values(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments over those of a recipe, and these over the defaults, if bench takes them all."""
    given = merge(args, TRAINING_DEFAULTS)
    values = {**DEFAULTS, **{key: value for key, value in given.values.items() if value is not None}}
    for key, value in values.items():
        if key not in DEFAULTS:
            remedy = REMOVED.get(key) or suggest(key, DEFAULTS) or " Remove it."
            raise LossPlugError(f"{key}={value} cannot be given to bench.{remedy}")
    sizes = {"batch": whole_number("batch", values["batch"], 1), "imgsz": whole_number("imgsz", values["imgsz"], 32)}
    lists = {key: split_list(values[key]) for key in ("objects", "engines") if values[key] is not None}
    given.say_unused()
    return {**values, **sizes, **lists, **{key: flag_of(key, values[key]) for key in ("amp", "train_step", "all")}}


def _engines(values: Mapping[str, Any], has_kernels: bool) -> list[str]:
    default = [FAST, TRITON] if has_kernels and values["task"] in (None, "detect") else [FAST]
    words = values["engines"] or default
    names = [str(word).strip().lower() for word in words]
    for name in names:
        if name not in KNOWN_ENGINES:
            remedy, known = suggest(name, KNOWN_ENGINES), ", ".join(KNOWN_ENGINES)
            raise LossPlugError(f"engines={_typed(words)}: '{name}' is unknown.{remedy} {known}.")
    return [name for name in dict.fromkeys(names) if name != REFERENCE]


def _works(values: Mapping[str, Any], device_type: str, engines: Sequence[str]) -> list[Work]:
    has_gpu = device_type == "cuda"
    base = _base(values, values["amp"] and has_gpu)
    means = [0] if base.data else _means(values, engines)
    if values["all"]:
        return _all_works(base, means, [base.model] if values["model"] or values["task"] else ALL_MODELS, has_gpu)
    return [_case(base, mean, kind=kind) for kind in (STEP, TRAIN)[: 1 + values["train_step"]] for mean in means]


def _base(values: Mapping[str, Any], amp: bool) -> Work:
    model, batch, imgsz, data, limit = (values[key] for key in ("model", "batch", "imgsz", "data", "limit"))
    if type(limit) not in (int, float) or not limit >= 1:
        raise LossPlugError(f"limit={limit} must be a number, at least 1.")
    if imgsz % 32:
        raise LossPlugError(f"imgsz={imgsz} must be a multiple of 32, the largest stride of a head.")
    if data and (objects := values["objects"]) is not None:
        raise LossPlugError(f"objects={_typed(objects)} has no effect with data=, which has its own. Remove one.")
    task = values["task"] or "detect"
    if task not in TASK_MODELS:
        raise LossPlugError(f"task={task} cannot be measured: bench takes {', '.join(TASK_MODELS)}.")
    return Work("", STEP, str(model or TASK_MODELS[task]), batch, imgsz, 0, data, amp)


def _means(values: Mapping[str, Any], engines: Sequence[str]) -> list[int]:
    is_slow = TRITON in engines and kernels.is_interpreted()
    words = values["objects"] or (ALL_OBJECTS if values["all"] else OBJECTS[:1] if is_slow else OBJECTS)
    try:
        numbers = [int(str(word)) for word in words]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or len({*numbers}) < len(numbers):
        what = "numbers of objects per image, each once: objects=7,30,300"
        raise LossPlugError(f"objects={_typed(words)} must be {what}.")
    return numbers


def _all_works(base: Work, means: Sequence[int], models: Sequence[str], has_gpu: bool) -> list[Work]:
    """Return the cases that a GPU is judged by."""
    works = [_case(base, mean, times) for times in (1, 4) for mean in means]
    works += [] if base.data else [_case(base, XVIEW, 8)]
    if has_gpu:
        works.append(_case(base, 0, 4)._replace(name=CLASS_KERNELS, kind=CLASS_KERNELS, data=None))
    few = [mean for mean in means if mean in TRAIN_OBJECTS] or means[:1]
    return [*works, *(_case(base._replace(model=model), mean, kind=TRAIN) for model in models for mean in few)]


def _case(base: Work, mean: float, times: int = 1, kind: str = STEP) -> Work:
    """Return a case with a mean number of objects per image, and some times as many images."""
    batch = times * base.batch
    size = f"{batch}-data" if base.data else f"{batch}-xview" if mean == XVIEW else f"{batch}x{mean:g}"
    name = size if kind == STEP else f"{kind}-{Path(base.model).stem}-{size}"
    return base._replace(name=name, kind=kind, batch=batch, objects=mean)


def _folder(name: Any, project: Any, described: Mapping[str, Any]) -> Path:
    """Return the folder of a plan: a new one, or that of the name, which must not be that of another plan."""
    new = new_folder("bench", name, project)
    file = new.parent / str(name or "") / PLAN_FILE
    if not name or not file.is_file():
        return new
    with suppress(ValueError):
        if read_json(file) == described:
            return file.parent
    raise LossPlugError(f"name={name} is a bench with other keys, or of another machine. Give another name.")


def _typed(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
