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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from filelock import FileLock, Timeout

from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.terminal import printable

WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"
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
    """

    arm: str
    seed: int
    folder: Path
    args: dict[str, Any] = field(repr=False)
    state: str = WAITING
    reason: str = ""

    @property
    def file(self) -> Path:
        """File that holds the arguments, the result beside it with the ending ``.result.json``."""
        return self._beside(".json")

    @property
    def result(self) -> Path:
        """File that exists if the run is finished."""
        return self._beside(".result.json")

    @property
    def error(self) -> Path:
        """File that exists if the run has failed with an exception."""
        return self._beside(".error.txt")

    @property
    def log(self) -> Path:
        """Output of the run."""
        return self._beside(".log.txt")

    def _beside(self, ending: str) -> Path:
        return self.folder.with_name(self.folder.name + ending)

    def read(self) -> Optional[dict[str, Any]]:
        """Return the result of a finished run; None if there is none, or none that can be read."""
        result = read_mapping(self.result)
        shape: dict[str, Any] = {"metrics": dict, "losses": dict, "seconds": (int, float), "save_dir": str}
        return result if all(isinstance(result.get(key), kind) for key, kind in shape.items()) else None

    def trained_with(self) -> Optional[dict[str, Any]]:
        """Return the arguments of the run under this name; None if there is none, or none that can be read."""
        args = read_mapping(self.file).get("args")
        return args if isinstance(args, dict) else None

    def refuse_others(self) -> None:
        """Raise an error if the run that finished under this name had other arguments.

        Raises:
            LossPlugError: If it had.
        """
        before, now = self.trained_with() if self.read() else None, comparable(self.args)
        if before is None:
            return
        before = comparable(before)
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise LossPlugError(
                    f"{self.folder.parent.parent} holds a run of '{self.arm}' with {key}={before.get(key)}, but you "
                    f"asked for {key}={now.get(key)}. Give another name=."
                )

    def prepare(self, device: Any) -> list[str]:
        """Remove the files of an interrupted run, write the arguments, and return the command that runs it.

        Raises:
            LossPlugError: If another process still trains it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._beside(LOCK), timeout=PATIENCE):
                shutil.rmtree(self.folder, ignore_errors=True)
                for file in (self.error, self.result):
                    file.unlink(missing_ok=True)
        except Timeout:
            who = read_mapping(self.file).get("process", "another process")
            raise LossPlugError(f"{who} trains it: wait for its end, or end it, and run the command again.") from None
        args = {**self.args, **({} if device is None else {"device": device})}
        write_json(self.file, {"args": args, "result": str(self.result), "error": str(self.error)}, default=str)
        self.state = RUNNING
        return [sys.executable, "-m", "yolo_lossplug.tools.compare.train_one", str(self.file)]

    def begin(self, device: Any) -> Optional[list[str]]:
        """Return the command that runs it, as `prepare`; None where it fails before it runs."""
        try:
            return self.prepare(device)
        except LossPlugError as error:
            self.fail(error)
            return None

    def finish(self, status: Optional[int] = None) -> None:
        """Set the state after the run has ended with an exit status, None for one that was interrupted."""
        self.state = FINISHED if self.read() else WAITING if status is None else FAILED
        if self.state == FAILED:
            text = self.error.read_text(encoding="utf-8", errors="replace") if self.error.is_file() else ""
            self.fail(text.partition("\n")[0] or f"exit status {status}")

    def fail(self, reason: object) -> None:
        """Set the state of a run that has failed, with the reason in one line without colours."""
        self.state, self.reason = FAILED, printable(str(reason).partition("\n")[0])


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


def run_local(jobs: Sequence[Job], devices: Sequence[Any], report: Callable[[Job], None]) -> None:
    """Run jobs on this machine, one on each device at a time; each writes a log.

    Args:
        jobs: The waiting jobs.
        devices: As Ultralytics takes them, ``0`` or ``cpu``; one that is named twice takes two. None is the one that
            the arguments of a job name.
        report: Called when a job starts or ends.
    """
    waiting, free = list(jobs), list(devices)
    running: list[tuple[Job, Any, subprocess.Popen]] = []
    try:
        while waiting or running:
            while waiting and free:
                job = waiting.pop(0)
                if command := job.begin(free[0]):
                    running.append((job, free.pop(0), start_process(command, job.log)))
                report(job)
            time.sleep(POLL)
            for entry in [entry for entry in running if entry[2].poll() is not None]:
                running.remove(entry)
                free.append(entry[1])
                entry[0].finish(entry[2].returncode)
                report(entry[0])
    except BaseException:  # Ctrl-C, or a closed pipe of the output
        _interrupt([process for _, _, process in running])
        raise


def start_process(command: Sequence[str], log: Path, cwd: Optional[str] = None) -> subprocess.Popen:
    """Start a run that writes a log, and that ends with this process, whose end it sees by its standard input."""
    with log.open("w", encoding="utf-8") as output:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=cwd)


def run_on_ray(jobs: Sequence[Job], device: Any, report: Callable[[Job], None]) -> None:
    """Run jobs as tasks of a Ray cluster, whose nodes share this file system; of this machine if there is no cluster.

    Args:
        jobs: The waiting jobs.
        device: ``cpu`` for a processor each; else each has a GPU of its own.
        report: Called when a job starts or ends.

    Raises:
        LossPlugError: If Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise LossPlugError("engine=ray needs Ray: pip install 'yolo-lossplug[ray]'.") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        _run_tasks(ray, jobs, str(device).lower() == "cpu", report)
    finally:
        if is_ours:
            ray.shutdown()


def _run_tasks(ray: Any, jobs: Sequence[Job], on_cpu: bool, report: Callable[[Job], None]) -> None:
    """Run jobs on a cluster, as many at a time as it has processors or GPUs."""
    task = ray.remote(num_cpus=1, num_gpus=0 if on_cpu else 1, max_retries=0)(_run_logged)
    slots = max(1, int(ray.cluster_resources().get("CPU" if on_cpu else "GPU", 0)))
    waiting = list(jobs)
    pending: dict[Any, Job] = {}
    try:
        while waiting or pending:
            while waiting and len(pending) < slots:
                job = waiting.pop(0)
                if command := job.begin("cpu" if on_cpu else 0):  # Ray shows a task one GPU, which is its first
                    pending[task.remote(command, str(job.log), str(Path.cwd()))] = job
                report(job)
            if not pending:
                break
            (done,), _ = ray.wait(list(pending), num_returns=1)
            job = pending.pop(done)
            try:
                job.finish(ray.get(done))
            except ray.exceptions.RayError as error:
                job.fail(error)
            report(job)
    finally:
        for task_left in pending:  # as Ctrl-C in its process, which takes the training along
            ray.cancel(task_left)
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=PATIENCE)


def _run_logged(command: list[str], log: str, cwd: str) -> int:
    """Run a command with a log where the comparison was started, and return its exit status."""
    return start_process(command, Path(log), cwd).wait()


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
