# SPDX-License-Identifier: AGPL-3.0-or-later
"""The process of an engine, from both ends: it is started and watched, and ``run_job`` is what it does.

An engine that kills its process, hangs, or is out of memory is disqualified, and the others continue.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, TextIO

from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.ultralytics_hook.trial import bench_cases, gauges
from yolo_lossplug.ultralytics_hook.trial.bench_cases import Reporter, Work

OUT_OF_MEMORY = "out of memory"
STEP_MARK, PART_MARK = ".", "|"
"""What the progress file gets after every step, and after every part of a case."""
PROGRESS, ERROR, LOG = ".progress", ".error.txt", ".log"
"""Endings of the files beside that of a job."""
START_SECONDS = 120.0
"""That importing and building a model may take before the first step."""


def read_results(folder: Path, engines: Sequence[str], work: Work) -> dict[str, dict[str, Any]]:
    """Return the results of engines in a case, by name; none that another program has cut off."""
    results = {}
    for engine in engines:
        with suppress(FileNotFoundError, ValueError):
            results[engine] = dict(read_json(_result_file(folder, engine, work)))
    return results


def is_finished(folder: Path, engine: str, work: Work) -> bool:
    """Return whether a result lacks nothing; on a CPU memory comes last, and may be missing after Ctrl-C."""
    result = read_results(folder, [engine], work).get(engine, {})
    return bool(result) and ("stock_mib" in result or "elements" not in result or "ratio" not in result)


def run_engine(
    engine: str, works: Sequence[Work], folder: Path, device: Any, limit: float, update: Callable[[int], None]
) -> str:
    """Measure an engine in a process of its own, and return why it is disqualified, empty if that ended well.

    Args:
        engine: Its name.
        works: The cases that are not finished.
        folder: Where results go.
        device: As the user names it.
        limit: Seconds without a step after which the process is killed.
        update: Called with the number of parts that are done.
    """
    if not works:
        return ""
    job = folder / f"{engine}.job"
    error, progress = job.with_suffix(ERROR), job.with_suffix(PROGRESS)
    error.unlink(missing_ok=True)
    progress.write_text("", encoding="utf-8")
    write_json(job, {"engine": engine, "device": device, "works": [work._asdict() for work in works]})
    with job.with_suffix(LOG).open("w", encoding="utf-8") as output:
        process = subprocess.Popen(job_command(job), stdout=output, stderr=subprocess.STDOUT)
        is_hanging = _watch(process, progress, limit, update)
    if process.returncode == 0 and not is_hanging:
        return ""
    if error.is_file() and not is_hanging:
        return error.read_text(encoding="utf-8").partition("\n")[0]
    why = f"took no step for {limit:g} s" if is_hanging else ending_of(process.returncode)
    return why + _unfinished_case(folder, engine, works)


def job_command(job: Path) -> list[str]:
    """Return the command that measures what a file says."""
    return [sys.executable, "-m", "yolo_lossplug.tools.bench.child", str(job)]


def ending_of(status: int) -> str:
    """Return in words how a process ended.

    >>> ending_of(-9)
    'its process was killed by SIGKILL, as by a system out of memory'
    >>> ending_of(3)
    'its process ended with status 3'
    """
    if status >= 0:
        return f"its process ended with status {status}"
    name = signal.Signals(-status).name
    return f"its process was killed by {name}" + f", as by a system {OUT_OF_MEMORY}" * (name == "SIGKILL")


def run_job(file: Path) -> int:
    """Measure the cases in a file, write a result for each, or why the engine failed, and return the exit status."""
    job = read_json(file)
    engine, works = job["engine"], [Work(**work) for work in job["works"]]
    try:
        with file.with_suffix(PROGRESS).open("a", encoding="utf-8", buffering=1) as progress:
            reporter = _reporter(file.parent, engine, progress)
            bench_cases.measure_engine(engine, works, bench_cases.bench_device(job["device"]), reporter)
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        why = OUT_OF_MEMORY if gauges.is_out_of_memory(error) else words
        why += _unfinished_case(file.parent, engine, works)
        file.with_suffix(ERROR).write_text(f"{why}\n\n{traceback.format_exc()}", encoding="utf-8")
        return 1
    return 0


def _reporter(folder: Path, engine: str, progress: TextIO) -> Reporter:
    def mark(text: str) -> None:
        progress.write(text)
        progress.flush()

    return Reporter(
        lambda: mark(STEP_MARK),
        lambda: mark(PART_MARK),
        lambda work, result: write_json(_result_file(folder, engine, work), result),
        lambda work: read_results(folder, [engine], work).get(engine, {}),
    )


def _result_file(folder: Path, engine: str, work: Work) -> Path:
    return folder / f"{work.name}.{engine}.json"


def _unfinished_case(folder: Path, engine: str, works: Sequence[Work]) -> str:
    """Return in which case a process ended: the first without a result."""
    unfinished = [work.name for work in works if not _result_file(folder, engine, work).is_file()]
    return f" (case {unfinished[0]})" if unfinished else ""


def _watch(process: subprocess.Popen, progress: Path, limit: float, update: Callable[[int], None]) -> bool:
    """Wait for a process, and return whether it had to be killed, since it took no step for too long."""
    size, parts, heard, patience = 0, 0, time.monotonic(), max(limit, START_SECONDS)
    try:
        while process.poll() is None:
            time.sleep(0.1)
            marks = progress.read_text(encoding="utf-8")
            if len(marks) > size:
                size, heard, patience = len(marks), time.monotonic(), limit
            elif time.monotonic() - heard > patience:
                return True
            update(marks.count(PART_MARK) - parts)
            parts = marks.count(PART_MARK)
        update(progress.read_text(encoding="utf-8").count(PART_MARK) - parts)
    finally:
        if process.poll() is None:  # hangs, or Ctrl-C
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a driver may hold it for as long as it likes
                process.wait(30)
    return False


if __name__ == "__main__":
    sys.exit(run_job(Path(sys.argv[1])))
