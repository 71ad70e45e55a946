# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug compare`: trains with several losses and seeds, and tells which differences are more than noise."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import yolo_lossplug
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.tools.compare.comparison import Comparison
from yolo_lossplug.tools.compare.jobs import ENDED, FAILED, FINISHED, RUNNING, WAITING, Job, run_local, run_on_ray
from yolo_lossplug.tools.compare.measures import ORDER, label, measured, primary_of
from yolo_lossplug.tools.compare.plan import Plan, checked_plan, jobs_of, write_plan
from yolo_lossplug.tools.compare.report import write_summary
from yolo_lossplug.tools.report import Report
from yolo_lossplug.ultralytics_hook.console import VERSION, say

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
                   AP_large, AP_<class>, mAP50, ..., all of boxes; of masks
                   mAP50-95(M), ..., and of keypoints mAP50-95(P), in quotes for
                   a shell; split=test measures the best checkpoints on the test
                   split too: metric=test/AP_small
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
LOCK = "compare.lock"


def main(args: dict[str, Any]) -> None:
    """Compare, and exit with 1 if a run has failed.

    SIGTERM, which a cluster sends first, and SIGHUP, the end of a terminal, end it as Ctrl-C does.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.default_int_handler)
    directory, jobs, report = run_plan(checked_plan(args))
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
    return run_plan(checked_plan(args))[0]


def run_plan(plan: Plan) -> tuple[Path, list[Job], Report]:
    """Train what a plan has without a result, write the summary, and return the folder, the runs and the report."""
    if len(plan.arms) < 2:
        say(f"only one loss, {plan.arms[0].name}: its seeds show the noise, and there is nothing to compare it with")
    plan.directory.mkdir(parents=True, exist_ok=True)
    with locked(plan.directory):
        return plan.directory, *_run(plan, plan.directory)


def _run(plan: Plan, directory: Path) -> tuple[list[Job], Report]:
    """Run the jobs without a result, and write the summary after every run."""
    todo = jobs_of(plan, directory)
    write_plan(plan, directory)
    waiting = [job for job in todo if job.state == WAITING]
    _say_older(todo)
    say(f"{len(todo)} runs in {directory}, {len(todo) - len(waiting)} already finished")
    progress = Progress(todo, plan.metric)
    versions = f"yolo-lossplug {yolo_lossplug.__version__} · ultralytics {VERSION} · torch {torch.__version__}"

    def write(is_last: bool = False) -> Report:
        foot = [f"{datetime.date.today().isoformat()} · {versions}"]
        return write_summary(todo, directory, plan.metric, plan.command, foot, is_last)

    def report(job: Job) -> None:
        if job.state in ENDED:
            say(progress.line(job))
            if any(other.state not in ENDED for other in todo):
                write()

    try:
        if plan.engine == "ray":
            run_on_ray(waiting, plan.args.get("device", "cpu"), report)
        else:
            run_local(waiting, plan.devices or (None,), report)
    except KeyboardInterrupt:
        say(f"interrupted. Finished runs stay in {directory}; the same command with name={directory.name} continues.")
        raise
    finally:
        for job in todo:
            if job.state == RUNNING:
                job.finish()
        last = write(is_last=all(job.state in ENDED for job in todo))
    return todo, last


def _say_older(todo: Sequence[Job]) -> None:
    """Say which finished runs lack a folder, or what is measured now, and how to have it."""
    lost = sum(job.state == FINISHED and not job.folder.is_dir() for job in todo)
    if lost:
        say(f"the folders of {lost} finished runs are missing: these runs count, but curves.png does not show them")
    for line in Comparison.of(todo, ORDER[0]).older:
        say(f"{line.replace('`', '')} To have it, delete their .result.json files in runs/ and rerun.")


class Progress:
    """Says how far a comparison is.

    Args:
        todo: All runs.
        metric: The primary metric.
    """

    def __init__(self, todo: Sequence[Job], metric: str) -> None:
        self._todo, self._metric = todo, metric
        self._start, self._waiting = time.monotonic(), self._left()

    def _left(self) -> int:
        return sum(job.state not in ENDED for job in self._todo)

    def line(self, job: Job) -> str:
        """Return the line of a run that has ended, with the time left by the mean time of those that ended so far."""
        left, reason = self._left(), f" ({job.reason})" if job.reason else ""
        head = f"{len(self._todo) - left} of {len(self._todo)}: {job.arm} seed {job.seed} {job.state}{reason}"
        ended = self._waiting - left
        seconds = (time.monotonic() - self._start) / ended * left if ended > 0 else 0.0
        return " · ".join([head, *self._value(job), *([f"about {duration(seconds)} left"] if left else [])])

    def _value(self, job: Job) -> list[str]:
        result = job.read() if job.state == FINISHED else None
        if result:
            with suppress(LossPlugError):  # it lacks the metric
                name = primary_of({(job.arm, job.seed): result}, self._metric)
                values = measured(result)
                return [] if values.get(name) is None else [f"{label(name, values)} {values[name]:.4f}"]
        return []


def duration(seconds: float) -> str:
    """Return a time in the two largest units.

    >>> duration(75)
    '1 min 15 s'
    >>> duration(7320)
    '2 h 2 min'
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep another comparison out of a directory while the context is open; the lock ends with its process.

    Raises:
        LossPlugError: If one is running there.
    """
    try:
        lock = FileLock(directory / LOCK).acquire(timeout=0)
    except Timeout:
        remedy = "wait for it to end, or give another name=."
        raise LossPlugError(f"another comparison is running in {directory}; {remedy}") from None
    with lock:
        yield
