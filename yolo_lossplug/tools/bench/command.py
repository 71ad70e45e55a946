# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug bench`: which engine is fastest on this machine, proven identical first, and remembered for `auto`."""

from __future__ import annotations

import datetime
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch

from yolo_lossplug import kernels
from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import flag_of
from yolo_lossplug.selection.names import suggest
from yolo_lossplug.tools.arguments import merge, split_list, whole_number
from yolo_lossplug.tools.bench import children as bench_children
from yolo_lossplug.tools.bench import report as bench_report
from yolo_lossplug.tools.bench.child import read_result
from yolo_lossplug.tools.bench.results import Results, entries_of, refused
from yolo_lossplug.ultralytics_hook.console import new_folder, progress, say
from yolo_lossplug.ultralytics_hook.engines import record
from yolo_lossplug.ultralytics_hook.engines.choice import FAST, REFERENCE, TRITON
from yolo_lossplug.ultralytics_hook.trial import one_bench, one_run
from yolo_lossplug.ultralytics_hook.trial.one_bench import CLASS_KERNELS, PARTS, STEP, TRAIN, Work
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
OF_TRAINING = ("model", "batch", "imgsz", "data", "device", "amp")
OWN = ("objects", "engines", "train_step", "all", "limit", "name", "project")
ENGINES = (REFERENCE, FAST, TRITON)
OBJECTS, ALL_OBJECTS, TRAIN_OBJECTS = (7, 30, 300), (7, 30, 100, 300, 1000), (7, 300)
ALL_MODELS = ("yolov8n.yaml", "yolov8s.yaml")
PLAN = "bench.json"


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        works: The cases.
        engines: The engines, without the host's own.
        device: As the user names it.
        limit: Seconds that an engine may take no step for.
        name: Name of the folder.
        project: Where the folder is.
    """

    works: tuple[Work, ...]
    engines: tuple[str, ...]
    device: Any
    limit: float
    name: Any
    project: Any


def main(args: dict[str, Any]) -> None:
    """Measure, print the table, and say what `auto` takes; exit with 1 if an engine is disqualified.

    SIGTERM, which a cluster sends first, ends it as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder, results = bench(args)
    print(f"\n{bench_report.text(results)}\n\nwritten to {folder}")
    raise SystemExit(any(why for name, why in results.disqualified.items() if name not in results.missing))


def bench(args: Mapping[str, Any]) -> tuple[Path, Results]:
    """Measure what has no result yet, and write report and record.

    Args:
        args: As the command takes them; see `HELP`.

    Returns:
        The folder, and what was measured.

    Raises:
        LossPlugError: If an argument is wrong; nothing is measured or written then.
        KeyboardInterrupt: After Ctrl-C; cases that are finished stay.
    """
    plan, device = plan_of(args)
    for model in dict.fromkeys(work.model for work in plan.works):
        one_bench.model_of(model, plan.works[0].data)  # raises an error if its steps cannot be measured
    key = record.record_key(device)
    today = datetime.date.today().isoformat()
    record.add((), key, {}, today)  # a record that cannot be written is said now, not after minutes
    folder = _folder(plan, key)
    cases = folder / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, _described(plan, key))
    missing = {name: why for name in plan.engines if name == TRITON and (why := kernels.missing(device))}
    command = " ".join(["lossplug bench", *(shlex.quote(f"{k}={_typed(v)}") for k, v in args.items())])
    try:
        failed = _measure(plan, cases, missing)
    except KeyboardInterrupt:
        say(f"interrupted. Finished cases stay in {folder}; the same command with name={folder.name} continues.")
        raise
    results = Results.read(cases, plan.works, plan.engines, {**missing, **failed}, key, today, command)._replace(
        missing=tuple(missing)
    )
    record.add(entries_of(results), key, refused(results), today)
    results = results._replace(record=str(record.file()), measured=record.fastest_engines(device, lambda name: True))
    bench_report.write(results, folder)
    return folder, results


def _measure(plan: Plan, cases: Path, missing: Mapping[str, str]) -> dict[str, str]:
    """Measure each engine in a process of its own, and return those that failed, with the reasons."""
    engines = [name for name in plan.engines or (REFERENCE,) if name not in missing]
    works = {name: [one for one in plan.works if is_fit(name, one)] for name in engines}
    total = sum(PARTS[one.kind] for of_engine in works.values() for one in of_engine)
    failed, bar = {}, progress(total, "bench")
    try:
        for name, of_engine in works.items():
            waiting = [one for one in of_engine if not _is_finished(cases, name, one)]
            bar.update(sum(PARTS[one.kind] for one in of_engine if one not in waiting))
            why = bench_children.run(name, waiting, cases, plan.device, plan.limit, bar.update)
            if why:
                failed[name] = why
    finally:
        bar.close()
    return failed


def _is_finished(cases: Path, engine: str, work: Work) -> bool:
    return bench_children.is_finished(read_result(bench_children.result_file(cases, engine, work)))


def is_fit(engine: str, work: Work) -> bool:
    """Return whether an engine has a result in a case: class kernels belong to one engine."""
    return work.kind != CLASS_KERNELS or engine == TRITON


def plan_of(args: Mapping[str, Any]) -> tuple[Plan, torch.device]:
    """Return what is measured, checked, and on which device.

    Raises:
        LossPlugError: If an argument is wrong.
    """
    given = merge(args, OF_TRAINING)
    given.say_unused()
    values = {key: value for key, value in given.values.items() if value is not None or key == "device"}
    for key, value in values.items():
        if key == "adopt":
            raise LossPlugError(f"adopt={value} was removed: train with loss_engine=fast, for stock losses too.")
        if key not in OF_TRAINING + OWN:
            remedy = suggest(key, OF_TRAINING + OWN) or " Remove it."
            raise LossPlugError(f"{key}={value} cannot be given to bench.{remedy}")
    if "data" in values and "objects" in values:
        raise LossPlugError(f"objects={values['objects']} has no effect with data=, which has its own. Remove one.")
    one_run.check_arguments({"model": values.get("model", ALL_MODELS[0])})
    device = one_bench.bench_device(values.get("device"))
    engines = _engines(values.get("engines"), device)
    works = _works(values, device, OBJECTS[:1] if any(map(one_bench.has_interpreted_kernels, engines)) else OBJECTS)
    plan = Plan(
        tuple(works),
        engines,
        values.get("device"),
        _number("limit", values.get("limit", 240), 1),
        values.get("name"),
        values.get("project"),
    )
    return plan, device


def _works(values: Mapping[str, Any], device: torch.device, default: Sequence[int] = OBJECTS) -> list[Work]:
    """Return the cases; `default` are the objects per image where none are given."""
    is_all, is_train = (flag_of(key, values.get(key, False)) for key in ("all", "train_step"))
    batch, imgsz = (whole_number(key, values.get(key, default), least) for key, default, least in _SIZES)
    if imgsz % 32:
        raise LossPlugError(f"imgsz={imgsz} must be a multiple of 32, the largest stride of a head.")
    amp = flag_of("amp", values.get("amp", True)) and device.type == "cuda"
    model, data = str(values.get("model", ALL_MODELS[0])), values.get("data")
    objects = _objects(values.get("objects", ALL_OBJECTS if is_all else default))

    def step(batch: int, mean: float, kind: str = STEP, model: str = model) -> Work:
        shown = "-data" if data else "-xview" if mean == XVIEW else f"x{mean:g}"
        name = f"{batch}{shown}" if kind == STEP else f"{kind}-{Path(model).stem}-{batch}{shown}"
        return Work(name, kind, model, batch, imgsz, mean, data, amp)

    means = [0] if data else objects
    works = [step(size, mean) for size in ((batch, 4 * batch) if is_all else (batch,)) for mean in means]
    if is_all and not data:
        works.append(step(8 * batch, XVIEW))
    if is_all and device.type == "cuda":
        works.append(Work(CLASS_KERNELS, CLASS_KERNELS, model, 4 * batch, imgsz, 0, None, amp))
    if is_all or is_train:
        models = ALL_MODELS if is_all and "model" not in values else (model,)
        few = [mean for mean in means if mean in TRAIN_OBJECTS or data] or means[:1]
        works += [step(batch, mean, TRAIN, one) for one in models for mean in (few if is_all else means)]
    return works


_SIZES = (("batch", 16, 1), ("imgsz", 640, 32))


def _objects(value: Any) -> list[int]:
    try:
        numbers = [int(str(word)) for word in split_list(value)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or len({*numbers}) < len(numbers):
        raise LossPlugError(f"objects={value} must be numbers of objects per image, each once: objects=7,30,300.")
    return numbers


def _engines(value: Any, device: torch.device) -> tuple[str, ...]:
    """Return the engines to measure beside the host's own."""
    if value is None:
        return (FAST,) if kernels.missing(device) or kernels.is_interpreted() else (FAST, TRITON)
    names = [str(word).strip().lower() for word in split_list(value)]
    for name in names:
        if name not in ENGINES:
            raise LossPlugError(f"engines={value}: '{name}' is unknown.{suggest(name, ENGINES)} {', '.join(ENGINES)}.")
    return tuple(name for name in dict.fromkeys(names) if name != REFERENCE)


def _number(key: str, value: Any, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise LossPlugError(f"{key}={value} must be a number, at least {least:g}.")
    return float(value)


def _described(plan: Plan, key: record.Key) -> dict[str, Any]:
    """Return what the folder of a plan says of it: the same plan on the same machine continues."""
    return {"works": [work._asdict() for work in plan.works], "engines": list(plan.engines), "here": key._asdict()}


def _folder(plan: Plan, key: record.Key) -> Path:
    """Return the folder of a plan: a new one, or that of the name if the plan is the same.

    Raises:
        LossPlugError: If the name is that of another plan.
    """
    new = new_folder("bench", plan.name, plan.project)
    first = new.parent / str(plan.name or "")
    file = first / PLAN
    if not plan.name or not file.is_file():
        return new
    try:
        earlier: Optional[Any] = read_json(file)
    except ValueError:
        earlier = None
    if earlier != _described(plan, key):
        raise LossPlugError(f"name={plan.name} is a bench with other keys, or of another machine. Give another name.")
    return first


def _typed(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
