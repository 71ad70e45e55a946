# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug compare`: trains with several losses and seeds, and tells which differences are more than noise."""

from __future__ import annotations

import datetime
import json
import re
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from filelock import FileLock, Timeout

import yolo_lossplug
from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.tools.arguments import merge
from yolo_lossplug.tools.arms import ARMS, Arm, chosen_by, values_by_key
from yolo_lossplug.tools.compare import average_precision, differ, jobs, measures
from yolo_lossplug.tools.compare.comparison import Comparison, shown, without_folders
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, RUNNING, WAITING, Job
from yolo_lossplug.tools.compare.progress import Progress
from yolo_lossplug.tools.compare.report import write_summary
from yolo_lossplug.tools.report import Report
from yolo_lossplug.ultralytics_hook.console import VERSION, say, training_keys
from yolo_lossplug.ultralytics_hook.console import folder as new_folder
from yolo_lossplug.ultralytics_hook.trial import one_run

HELP = """\
usage: lossplug compare data=DATA model=MODEL loss=NAME,NAME,... [seeds=3]
                        [key=value ...]

Trains with each loss and each seed, everything else equal, and writes into
runs/compare/NAME/: a folder for every run, report.html, results.csv,
summary.md, .csv and .tex and, where there is something to draw, curves.png
and forest.png, with paired differences against the first.
  loss=ciou,eiou   every key of ours takes several values, and an option goes to
                   the losses that have it: cls_loss=bce,qfl tal_topk=7,10
  seeds=3          number of seeds, 0 to 2, or a list of them: seeds=0,7,42
  name=NAME        the same name with the same keys continues: finished runs are
                   kept, losses and seeds may be added
  metric=mAP50-95  the one that carries the verdict: AP_small, AP_medium,
                   AP_large, AP_<class>, mAP50, ...; split=test measures the
                   best checkpoints on the test split too: metric=test/AP_small
  devices=0,1      one run at a time on each of these; without it the runs
                   follow each other on device=
  engine=ray       on a Ray cluster (pip install 'yolo-lossplug[ray]')
  arms="[{'loss':'ciou'},{'tal_topk':7}]"
                   lists the keys of each arm instead, gains included
  cfg=FILE         a recipe as of `yolo train`, and the command line over it;
                   options go to the losses that have them
Every other key is one of `yolo train`. All runs take the same loss_engine;
default auto.
Example: lossplug compare data=coco128.yaml model=yolov8n.yaml loss=ciou,eiou\
"""
OWN = (ARMS, "seeds", "devices", "engine", "name", "project", "metric")
RESERVED = {
    "seed": "give seeds= instead",
    "resume": "the same command continues an unfinished comparison",
    "exist_ok": "a comparison has its own folder: give name=",
    "mode": "it always trains",
    "match_gains": "`lossplug verify loss=NAME` prints the gain that matches, and arms=[...] takes gains for each arm",
}
ENGINES = ("local", "ray")
PLAN, LOCK = "compare.json", "compare.lock"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        arms: The choices of losses; the others are compared with the first.
        seeds: The seeds.
        args: Common arguments of all runs, as `yolo train` takes them.
        devices: Devices of runs that go side by side; empty for one after another.
        engine: ``local`` or ``ray``.
        name: Name of the comparison; None for the default.
        project: Where its folder is; None for the default.
        metric: The primary metric, which carries the verdict.
        is_listed: Whether the arms were listed one by one.
    """

    arms: list[Arm]
    seeds: tuple[int, ...]
    args: dict[str, Any]
    devices: tuple[Any, ...]
    engine: str
    name: Any
    project: Any
    metric: str
    is_listed: bool = False


def main(args: dict[str, Any]) -> None:
    """Compare, and exit with 1 if a run has failed. SIGTERM, which a cluster sends first, ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory, jobs, report = run_plan(plan_of(args))
    print(f"\n{report.terminal()}\nwritten to {directory}")
    if any(job.state == FAILED for job in jobs):
        raise SystemExit(1)


def compare(args: Mapping[str, Any]) -> Path:
    """Train with each loss and seed that has no result yet, and write the summary.

    Args:
        args: As the command takes them; see `HELP`.

    Returns:
        The folder of the comparison.

    Raises:
        LossPlugError: If an argument is wrong; nothing is trained or written then.
        KeyboardInterrupt: After Ctrl-C; the summary of the finished runs is written, and the same call continues.
    """
    return run_plan(plan_of(args))[0]


def run_plan(plan: Plan) -> tuple[Path, list[Job], Report]:
    """Train what a plan has without a result, write the summary, and return the folder, the runs and the report."""
    if len(plan.arms) < 2:
        say(f"only one loss, {plan.arms[0].name}: its seeds show the noise, and there is nothing to compare it with")
    directory = directory_of(plan, plan.name, plan.project)
    if any(job.state == WAITING for job in jobs_of(plan, directory)):
        _check_class(plan.metric, one_run.prepare({**plan.args, **plan.arms[0].keys}))
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        return directory, *_run(plan, directory)


def _run(plan: Plan, directory: Path) -> tuple[list[Job], Report]:
    """Run the jobs without a result, and write the summary after every run."""
    todo = jobs_of(plan, directory)
    _write_plan(plan, directory)
    waiting = [job for job in todo if job.state == WAITING]
    _say_lost(todo)
    _say_older(todo)
    say(f"{len(todo)} runs in {directory}, {len(todo) - len(waiting)} already finished")
    progress = Progress(todo, plan.metric)

    def write() -> Report:
        return write_summary(todo, directory, plan.metric, _command(plan), _foot())

    def report(job: Job) -> None:
        if job.state in (FINISHED, FAILED):
            say(progress.line(job))
            if any(other.state in (WAITING, RUNNING) for other in todo):
                write()

    try:
        _start(plan, waiting, report)
        _write_differing(todo, directory)
    except KeyboardInterrupt:
        say(f"interrupted. Finished runs stay in {directory}; the same command with name={directory.name} continues.")
        raise
    finally:
        for job in todo:
            job.state = WAITING if job.state == RUNNING else job.state
        report_of_all = write()
    return todo, report_of_all


def _start(plan: Plan, waiting: list[Job], report: Callable[[Job], None]) -> None:
    """Run jobs where the plan says."""
    if plan.engine == "ray":
        jobs.run_on_ray(waiting, plan.args.get("device", "cpu"), report)
    elif plan.devices:
        jobs.run_on_devices(waiting, plan.devices, report)
    else:
        jobs.run_in_turn(waiting, report)


def _write_differing(todo: Sequence[Job], directory: Path) -> None:
    """Draw the images in which losses differ; without them, which may be gone since, all else is left."""
    try:
        for pair in differ.pairs(shown(todo)):
            differ.write_differing(pair, shown(todo)[0].arm, directory)
    except OSError as error:
        say(f"the images in which the losses differ cannot be drawn: {error}")


def _say_older(todo: Sequence[Job]) -> None:
    """Say which finished runs lack what is measured now, and how to have it."""
    for line in Comparison.of(todo, measures.ORDER[0]).older:
        say(f"{line.replace('`', '')} To have it, delete their .result.json files in runs/ and rerun.")


def _say_lost(todo: Sequence[Job]) -> None:
    lost = sum(job.state == FINISHED and not job.folder.is_dir() for job in todo)
    if lost:
        say(f"the folders of {lost} finished runs are missing: these runs count, but curves.png does not show them")


def plan_of(args: Mapping[str, Any]) -> Plan:
    """Return what is compared, checked.

    Raises:
        LossPlugError: If an argument is wrong.
    """
    _refuse_reserved(args)
    unused = {*RESERVED, "save_dir", *(["device"] if "devices" in args else [])}
    given = merge(args, training_keys() - unused)
    values = given.values
    _refuse_missing(values)
    common = {key: value for key, value in values.items() if key not in OWN and key not in keys()}
    task = one_run.check(common)
    chosen = [_with_engine(arm, common) for arm in chosen_by(values, task, given.recipe)]
    given.say_unused(chosen)
    devices, engine = _devices(values)
    name, project = values.get("name"), values.get("project")
    metric, seeds = _metric(values), _seeds(values.get("seeds", 3))
    return Plan(chosen, seeds, common, devices, engine, name, project, metric, ARMS in values)


def _metric(args: Mapping[str, Any]) -> str:
    """Return the primary metric; whether the data has its class is checked when it is read.

    Raises:
        LossPlugError: If no run could have it.
    """
    metric = str(args.get("metric", measures.ORDER[0]))
    plain = metric.removeprefix(measures.TEST)
    words = (*measures.ORDER, "accuracy_top1", "accuracy_top5")
    if not plain.startswith("AP_") and re.sub(r"^metrics/|\([BMP]\)$", "", plain) not in words:
        known = ", ".join((*measures.ORDER, *measures.SIZES, "AP_<class>"))
        raise LossPlugError(f"metric={metric} is unknown. Known: {known}; with test/ before it for split=test.")
    if metric != plain and args.get("split") != one_run.TEST:
        raise LossPlugError(f"metric={metric} needs the test split: add split=test.")
    return metric


def _check_class(metric: str, names: Mapping[int, str]) -> None:
    """Raise an error if the primary metric is of a class that the data lacks.

    Raises:
        LossPlugError: If it is.
    """
    plain = metric.removeprefix(measures.TEST)
    known = [*measures.SIZES, *(average_precision.class_key(name) for name in names.values())]
    if plain.startswith("AP_") and plain not in known:
        raise LossPlugError(f"metric={metric}: the data has no such class. Known: {', '.join(known)}.")


def _refuse_reserved(args: Mapping[str, Any]) -> None:
    """Raise an error for keys that a comparison sets itself, or does not take.

    Raises:
        LossPlugError: If there is one.
    """
    for key, why in RESERVED.items():
        if key in args:
            raise LossPlugError(f"{key}={args[key]} cannot be given to compare: {why}.")


def _refuse_missing(args: Mapping[str, Any]) -> None:
    """Raise an error if data or model is missing.

    Raises:
        LossPlugError: If one is.
    """
    for key in ("data", "model"):
        if not args.get(key):
            example = "lossplug compare data=coco128.yaml model=yolov8n.yaml loss=ciou,eiou"
            raise LossPlugError(f"{key}= is missing: {example}")


def _devices(args: Mapping[str, Any]) -> tuple[tuple[Any, ...], str]:
    """Return the devices of runs that go side by side, and the engine.

    Raises:
        LossPlugError: If the engine is unknown, or does not take devices.
    """
    engine = str(args.get("engine", ENGINES[0]))
    devices = tuple(_listed(args.get("devices", ())))
    if engine not in ENGINES:
        raise LossPlugError(f"engine={engine} is unknown. Known: {', '.join(ENGINES)}.")
    if devices and engine == "ray":
        raise LossPlugError("devices= has no effect with engine=ray: Ray schedules the runs. Remove it.")
    if devices and "device" in args:
        raise LossPlugError(
            f"device={args['device']} has no effect with devices=, which each run takes one of. Remove it."
        )
    return devices, engine


def _with_engine(arm: Arm, common: Mapping[str, Any]) -> Arm:
    """Return an arm with the engine named, so that all runs have the same, those with stock numbers too.

    Without the key such a run takes the host's own step and the others what ``auto`` chooses, and their seconds would
    tell engines apart rather than losses.

    Raises:
        LossPlugError: If the arguments of its runs are wrong.
    """
    keys_with_engine = {"loss_engine": "auto", **arm.keys}
    try:
        one_run.check({**common, **keys_with_engine})
    except LossPlugError:
        one_run.check({**common, **arm.keys})  # a task with another criterion has one engine
        return arm
    return replace(arm, keys=keys_with_engine)


def _typed(arm: Arm) -> dict[str, Any]:
    """Return the keys of an arm without the engine that `_with_engine` names."""
    return {key: value for key, value in arm.keys.items() if (key, value) != ("loss_engine", "auto")}


def directory_of(plan: Plan, name: Any, project: Any) -> Path:
    """Return the folder of a comparison: that of an earlier one with the same keys, or a new one.

    Raises:
        LossPlugError: If a comparison of that name has other keys.
    """
    new = new_folder("compare", name, project)
    first = new.parent / str(name or "compare")
    if name is None:
        # Ultralytics numbers folders as name2 or, in newer releases, as name-2.
        numbered = re.compile(re.escape(first.name) + r"-?\d+")
        candidates = [first, *sorted(one for one in first.parent.glob("*") if numbered.fullmatch(one.name))]
        return next((one for one in candidates if _differing_keys(one, plan) == [] and _fits(plan, one)), new)
    differing = _differing_keys(first, plan)
    if differing:
        raise LossPlugError(
            f"name={name} is a comparison with another {', '.join(differing)}: its runs and these would not "
            f"differ by the loss alone. Give another name."
        )
    return first


def _differing_keys(directory: Path, plan: Plan) -> Optional[list[str]]:
    """Return the keys in which a plan differs from the comparison in a folder; None if there is no comparison.

    Raises:
        LossPlugError: If its plan cannot be read.
    """
    file = directory / PLAN
    if not file.is_file():
        return None
    try:
        earlier = read_json(file)
    except ValueError as error:
        raise LossPlugError(f"{file} cannot be read ({error}); give another name=.") from error
    before, now = _comparable(earlier["args"]), _comparable(plan.args)
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def jobs_of(plan: Plan, directory: Path) -> list[Job]:
    """Return the runs of a comparison, seed by seed, so that an early look compares all losses."""
    return [_job(plan, arm, seed, directory / "runs") for seed in plan.seeds for arm in plan.arms]


def _fits(plan: Plan, directory: Path) -> bool:
    """Return whether the finished runs of a comparison had the losses that a plan has under their names."""
    try:
        return bool(jobs_of(plan, directory))
    except LossPlugError:
        return False


def _job(plan: Plan, arm: Arm, seed: int, runs: Path) -> Job:
    """Return one run, finished if its result is there."""
    folder = runs / f"{jobs.slug(arm.name)}-seed{seed}"
    args = {**plan.args, **arm.keys, "seed": seed, "project": str(runs), "name": folder.name, "exist_ok": True}
    job = Job(arm.name, seed, folder, args)
    job.refuse_others(keys())
    job.state = FINISHED if job.read() else WAITING
    return job


def _seeds(value: Any) -> tuple[int, ...]:
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    seeds = tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else tuple(_listed(value))
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise LossPlugError(
            f"seeds={value} must be a number of seeds, at least 1, or a list of different ones: seeds=0,7."
        )
    return seeds


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        words = [word.strip() for word in value.split(",") if word.strip()]
        return [int(word) if word.isdecimal() else word for word in words]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _comparable(args: Mapping[str, Any]) -> Any:
    """Return the arguments that must be equal in all runs, as JSON gives them back; devices may change."""
    kept = {key: value for key, value in args.items() if key not in ("device", "workers")}
    return json.loads(json.dumps(kept, default=str))


def _write_plan(plan: Plan, directory: Path) -> None:
    write_json(directory / PLAN, {"args": plan.args, "seeds": plan.seeds}, default=str)


def _command(plan: Plan) -> str:
    """Return the command with which the comparison can be repeated."""
    words = {key: without_folders(str(value)) for key, value in _words(plan).items()}
    return " ".join(["lossplug compare", *(shlex.quote(f"{key}={value}") for key, value in words.items())])


def _foot() -> list[str]:
    """Return the date and the versions."""
    versions = f"yolo-lossplug {yolo_lossplug.__version__} · ultralytics {VERSION} · torch {torch.__version__}"
    return [f"{datetime.date.today().isoformat()} · {versions}"]


def _words(plan: Plan) -> dict[str, Any]:
    """Return the arguments of the command that gives a plan."""
    lists = {ARMS: [_typed(arm) for arm in plan.arms]} if plan.is_listed else values_by_key(plan.arms)
    is_range = plan.seeds == tuple(range(len(plan.seeds)))
    metric = {} if plan.metric == measures.ORDER[0] else {"metric": plan.metric}
    return {**plan.args, **lists, **metric, "seeds": len(plan.seeds) if is_range else ",".join(map(str, plan.seeds))}


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep another comparison out of a directory while the context is open; the lock ends with its process.

    Raises:
        LossPlugError: If one is running there.
    """
    try:
        lock = FileLock(directory / LOCK).acquire(timeout=0)
    except Timeout:
        raise LossPlugError(
            f"another comparison is running in {directory}; wait for it to end, or give another name=."
        ) from None
    with lock:
        yield
