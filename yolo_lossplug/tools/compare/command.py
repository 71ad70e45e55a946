# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug compare`: trains with several losses and seeds, and tells which differences are more than noise."""

from __future__ import annotations

import datetime
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from filelock import FileLock, Timeout

import yolo_lossplug
from yolo_lossplug.files import write_json
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.tools.arms import Arm
from yolo_lossplug.tools.compare import average_precision, jobs, measures
from yolo_lossplug.tools.compare.comparison import Comparison
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, RUNNING, WAITING, Job
from yolo_lossplug.tools.compare.plan import Plan, plan_of
from yolo_lossplug.tools.compare.progress import Progress
from yolo_lossplug.tools.compare.report import write_summary
from yolo_lossplug.tools.report import Report
from yolo_lossplug.ultralytics_hook.console import VERSION, new_folder, say
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
PLAN, LOCK = "compare.json", "compare.lock"


def main(args: dict[str, Any]) -> None:
    """Compare, and exit with 1 if a run has failed.

    SIGTERM, which a cluster sends first, and SIGHUP, the end of a terminal, end it as Ctrl-C does.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.default_int_handler)
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
        split = one_run.TEST if plan.metric.startswith(measures.TEST) else "val"
        _check_class(plan.metric, one_run.prepare({**plan.args, **plan.arms[0].keys}, split))
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

    def write(is_last: bool = False) -> Report:
        return write_summary(todo, directory, plan.metric, plan.command, _foot(), is_last)

    def report(job: Job) -> None:
        if job.state in (FINISHED, FAILED):
            say(progress.line(job))
            if any(other.state in (WAITING, RUNNING) for other in todo):
                write()

    try:
        _start(plan, waiting, report)
    except KeyboardInterrupt:
        say(f"interrupted. Finished runs stay in {directory}; the same command with name={directory.name} continues.")
        raise
    finally:
        for job in todo:
            if job.state == RUNNING:
                job.finish()
        last = write(is_last=all(job.state in (FINISHED, FAILED) for job in todo))
    return todo, last


def _start(plan: Plan, waiting: list[Job], report: Callable[[Job], None]) -> None:
    """Run jobs where the plan says."""
    if plan.engine == "ray":
        jobs.run_on_ray(waiting, plan.args.get("device", "cpu"), report)
    else:
        jobs.run_local(waiting, plan.devices or (None,), report)


def _say_older(todo: Sequence[Job]) -> None:
    """Say which finished runs lack what is measured now, and how to have it."""
    for line in Comparison.of(todo, measures.ORDER[0]).older:
        say(f"{line.replace('`', '')} To have it, delete their .result.json files in runs/ and rerun.")


def _say_lost(todo: Sequence[Job]) -> None:
    lost = sum(job.state == FINISHED and not job.folder.is_dir() for job in todo)
    if lost:
        say(f"the folders of {lost} finished runs are missing: these runs count, but curves.png does not show them")


def _check_class(metric: str, names: Mapping[int, str]) -> None:
    """Raise an error if the primary metric is of a class that no object has which is validated.

    Raises:
        LossPlugError: If it is.
    """
    plain = metric.removeprefix(measures.TEST)
    known = [*measures.SIZES, *(average_precision.class_key(name) for name in names.values())]
    if plain.startswith("AP_") and plain not in known:
        raise LossPlugError(f"metric={metric}: no object that is validated has this class. Known: {', '.join(known)}.")


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
        candidates = [first, *sorted(file for file in first.parent.glob("*") if numbered.fullmatch(file.name))]
        return next((old for old in candidates if _differing_keys(old, plan) == [] and _fits(plan, old)), new)
    differing = _differing_keys(first, plan)
    if differing:
        raise LossPlugError(
            f"name={name} is a comparison with another {', '.join(differing)}: its runs and these would not "
            f"differ by the loss alone. Give another name."
        )
    return first


def _differing_keys(directory: Path, plan: Plan) -> Optional[list[str]]:
    """Return the keys in which a plan differs from the comparison in a folder; None if there is no comparison."""
    before, now = _earlier_args(directory), jobs.comparable(plan.args)
    if before is None:
        return None
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def _earlier_args(directory: Path) -> Optional[dict[str, Any]]:
    """Return the common arguments of the comparison in a folder; None if there is none.

    Where its plan is gone or damaged, they are what all of its runs were trained with.
    """
    plan = jobs.read_mapping(directory / PLAN).get("args")
    if isinstance(plan, dict):
        return jobs.comparable(plan)
    files = (directory / "runs").glob("*.json")
    runs = [args for args in (jobs.read_mapping(file).get("args") for file in files) if isinstance(args, dict)]
    if not runs:
        return None
    ours = {*keys(), "seed"}
    same = {key: value for key, value in runs[0].items() if all(run.get(key) == value for run in runs)}
    return jobs.comparable({key: value for key, value in same.items() if key not in ours})


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
    job.refuse_others()
    job.state = FINISHED if job.read() else WAITING
    return job


def _write_plan(plan: Plan, directory: Path) -> None:
    write_json(directory / PLAN, {"args": plan.args, "seeds": plan.seeds}, default=str)


def _foot() -> list[str]:
    """Return the date and the versions."""
    versions = f"yolo-lossplug {yolo_lossplug.__version__} · ultralytics {VERSION} · torch {torch.__version__}"
    return [f"{datetime.date.today().isoformat()} · {versions}"]


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
