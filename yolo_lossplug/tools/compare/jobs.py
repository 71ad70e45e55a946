# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs of a comparison, one after another, one per device, or on a Ray cluster."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Union
from uuid import uuid4

from filelock import FileLock, Timeout

from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.terminal import printable

WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"
ENDED = (FINISHED, FAILED)
PATIENCE = 30
"""Seconds until an interrupted run that does not end is killed."""
PLACES = ("device", "workers", "project", "name", "exist_ok")
"""Arguments in which two runs of the same losses and seed may differ."""
LOCK = ".lock"
MAX_NAME = 80
"""Characters of a folder's name, to which seed, endings and a digest are added; systems allow 255 bytes."""
POLL = 0.2
"""Seconds between looks at the runs."""


@dataclass
class Job:
    """One training run.

    Attributes:
        arm: Name of its choice of losses.
        seed: Its seed.
        folder: Where Ultralytics writes the run.
        args: Arguments of the training.
        state: One of ``waiting``, ``running``, ``finished``, ``failed``.
        reason: Why it failed.
        file: Its arguments, beside the folder, as are the next four.
        result: What came out of it, if it is finished.
        error: Why it failed with an exception.
        log: What it printed.
        lock: Held while it is trained.
    """

    arm: str
    seed: int
    folder: Path
    args: dict[str, Any] = field(repr=False)
    state: str = WAITING
    reason: str = ""

    def __post_init__(self) -> None:
        endings = (".json", ".result.json", ".error.txt", ".log.txt", LOCK)
        files = (self.folder.with_name(self.folder.name + ending) for ending in endings)
        self.file, self.result, self.error, self.log, self.lock = files

    def read(self) -> Optional[dict[str, Any]]:
        """Return the result of a finished run; None if there is none, or none that can be read."""
        result = read_mapping(self.result)
        shape: dict[str, Any] = {"metrics": dict, "losses": dict, "seconds": (int, float), "save_dir": str}
        return result if all(isinstance(result.get(key), kind) for key, kind in shape.items()) else None

    def refuse_others(self) -> None:
        """Raise an error if the run that finished under this name had other arguments."""
        trained_with = args_in(self.file) if self.read() else None
        if trained_with is None:
            return
        before, now = comparable(trained_with), comparable(self.args)
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                old, new = (f"{key}={args.get(key)}" for args in (before, now))
                there = f"{self.folder.parent.parent} holds a run of '{self.arm}' with {old}"
                raise LossPlugError(f"{there}, but you asked for {new}. Give another name=.")

    def prepare(self, device: Any) -> list[str]:
        """Remove the files of an interrupted run, write the arguments, and return the command that runs it.

        A process that was started for the run before, and has not begun yet, finds another name of its start there.

        Raises:
            LossPlugError: If another process still trains it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        args, start = {**self.args, **({} if device is None else {"device": device})}, uuid4().hex
        job = {"args": args, "result": str(self.result), "error": str(self.error), "start": start}
        try:
            with FileLock(self.lock, timeout=PATIENCE):
                shutil.rmtree(self.folder, ignore_errors=True)
                for file in (self.error, self.result):
                    file.unlink(missing_ok=True)
                write_json(self.file, job, default=str)
        except Timeout:
            who = read_mapping(self.file).get("process", "another process")
            raise LossPlugError(f"{who} trains it: wait for its end, or end it, and run the command again.") from None
        self.state = RUNNING
        return [sys.executable, "-m", "yolo_lossplug.tools.compare.train_one", str(self.file), start]

    def finish(self, status: Optional[int] = None) -> None:
        """Set the state after the run has ended with an exit status, None for one that was interrupted."""
        self.state = FINISHED if self.read() else WAITING if status is None else FAILED
        if self.state == FAILED:
            text = self.error.read_text(encoding="utf-8", errors="replace") if self.error.is_file() else ""
            self.fail(text.partition("\n")[0] or f"exit status {status}")

    def fail(self, reason: object) -> None:
        """Set the state of a run that has failed, with the reason in one line without colours."""
        self.state, self.reason = FAILED, printable(str(reason).partition("\n")[0])


Tell = Callable[[Job], None]
Running = dict[Any, tuple[Job, Any]]
"""Jobs that run and their places, by process or task."""


def comparable(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that decide what a run gives, as JSON gives them back; places and devices may change."""
    kept = {key: value for key, value in args.items() if key not in PLACES}
    return dict(json.loads(json.dumps(kept, default=str)))


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the mapping in a file; an empty one if there is none, or none that can be read."""
    try:
        content = read_json(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def args_in(file: Path) -> Optional[dict[str, Any]]:
    """Return the arguments in a file of a run or of a plan; None if there are none, or none that can be read."""
    args = read_mapping(file).get("args")
    return args if isinstance(args, dict) else None


def run_local(jobs: Sequence[Job], devices: Sequence[Any], report: Tell) -> None:
    """Run jobs on this machine, one on each device at a time; each writes a log.

    A device that is named twice takes two jobs, and None is the one that the arguments of a job name. `report` is
    called when a job starts or ends.
    """

    def ended(running: Running) -> list[tuple[Any, Optional[int]]]:
        time.sleep(POLL)
        return [(process, process.returncode) for process in running if process.poll() is not None]

    running: Running = {}
    try:
        _run(jobs, devices, running, lambda command, job: _started(command, job.log), ended, report)
    except BaseException:  # Ctrl-C, or a closed pipe of the output
        _interrupt([*running])
        raise


def _run(
    jobs: Sequence[Job], places: Sequence[Any], running: Running, start: Callable, ended: Callable, report: Tell
) -> None:
    """Run jobs, one at each place at a time; `ended` yields which of `running` have ended, with status or error."""
    waiting, free = list(jobs), list(places)
    while waiting or running:
        while waiting and free:
            job = waiting.pop(0)
            try:
                running[start(job.prepare(free[0]), job)] = job, free[0]
                del free[0]
            except LossPlugError as error:
                job.fail(error)
            report(job)
        for run, status in ended(running):
            job, place = running.pop(run)
            free.append(place)
            job.fail(status) if isinstance(status, Exception) else job.finish(status)
            report(job)


def _started(command: Sequence[str], log: Path, cwd: Optional[str] = None) -> subprocess.Popen:
    """Start a run that writes a log, and that ends with this process, whose end it sees by its standard input."""
    with log.open("w", encoding="utf-8") as output:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=cwd)


def run_on_ray(jobs: Sequence[Job], device: Any, report: Tell) -> None:
    """Run jobs as tasks of a Ray cluster, whose nodes share this file system; of this machine if there is no cluster.

    On ``cpu`` each has a processor, else a GPU of its own.

    Raises:
        LossPlugError: If Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise LossPlugError("engine=ray needs Ray: pip install 'yolo-lossplug[ray]'.") from error
    is_ours, on_cpu = not ray.is_initialized(), str(device).lower() == "cpu"
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    task = ray.remote(num_cpus=1, num_gpus=0 if on_cpu else 1, max_retries=0)(_run_logged)

    def start(command: list[str], job: Job) -> Any:
        return task.remote(command, str(job.log), str(Path.cwd()))

    def ended(running: Running) -> Iterator[tuple[Any, Union[int, Exception]]]:
        for run in ray.wait([*running], num_returns=1)[0] if running else ():
            try:
                yield run, ray.get(run)
            except ray.exceptions.RayError as error:
                yield run, error

    running: Running = {}
    try:
        # As many at a time as there are processors or GPUs; Ray shows a task one GPU, which is its first.
        slots = max(1, int(ray.cluster_resources().get("CPU" if on_cpu else "GPU", 0)))
        _run(jobs, ["cpu" if on_cpu else 0] * slots, running, start, ended, report)
    finally:
        for run in running:  # as Ctrl-C in its process, which takes the training along
            ray.cancel(run)
        if running:
            ray.wait([*running], num_returns=len(running), timeout=PATIENCE)
        if is_ours:
            ray.shutdown()


def _run_logged(command: list[str], log: str, cwd: str) -> int:
    return _started(command, Path(log), cwd).wait()


def _interrupt(processes: Sequence[subprocess.Popen]) -> None:
    """Interrupt runs as Ctrl-C does, and kill those that do not end in time, or before a second Ctrl-C."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    try:
        for process in processes:
            process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def slug(name: str) -> str:
    """Return a name that can be a folder's; different names give different ones.

    >>> slug("focal-eiou focal_gamma=0.3")
    'focal-eiou_focal_gamma=0.3'
    >>> slug("ciou+nwd loss_mix=0.3")
    'ciou+nwd_loss_mix=0.3'
    >>> slug("own/losses.py:mine")
    'own_losses.py_mine-3d9c8131'
    """
    plain = re.sub(r"[^\w.=+-]", "_", name)
    if plain == name.replace(" ", "_") and len(plain) <= MAX_NAME:
        return plain
    return f"{plain[:MAX_NAME]}-{zlib.crc32(name.encode()):08x}"
