# SPDX-License-Identifier: AGPL-3.0-or-later
"""A process for each engine, watched: one that ends with an error or falls silent disqualifies its engine alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

from yolo_lossplug.files import write_json
from yolo_lossplug.tools.bench.child import OUT_OF_MEMORY, PART
from yolo_lossplug.ultralytics_hook.trial.one_bench import Work

POLL = 0.1
"""Seconds between looks at a process."""
PATIENCE = 30
"""Seconds to wait for the end of a process that was killed."""
START = 120.0
"""Seconds that importing and building a model may take before the first step."""


def result_file(folder: Path, engine: str, work: Work) -> Path:
    """Return the file that holds the result of an engine in a case."""
    return folder / f"{work.name}.{engine}.json"


def is_finished(result: Mapping[str, Any]) -> bool:
    """Return whether a result lacks nothing; on a CPU memory comes last, and may be missing after Ctrl-C."""
    return bool(result) and ("stock_mib" in result or "elements" not in result or "ratio" not in result)


def command(job: Path) -> list[str]:
    """Return the command that measures what a file says."""
    return [sys.executable, "-m", "yolo_lossplug.tools.bench.child", str(job)]


def run(
    engine: str, works: Sequence[Work], folder: Path, device: Any, limit: float, update: Callable[[int], None]
) -> str:
    """Measure an engine in a process of its own.

    Args:
        engine: Its name.
        works: The cases that are not finished.
        folder: Where results go.
        device: As the user names it.
        limit: Seconds without a step after which the process is killed.
        update: Called with the number of parts that are done.

    Returns:
        Why the engine is disqualified, empty if its process ended well.
    """
    if not works:
        return ""
    job, error, progress, log = (folder / f"{engine}{ending}" for ending in (".job", ".error.txt", ".progress", ".log"))
    error.unlink(missing_ok=True)
    progress.write_text("", encoding="utf-8")
    results = {work.name: str(result_file(folder, engine, work)) for work in works}
    words = {"engine": engine, "device": device, "works": [work._asdict() for work in works], "results": results}
    write_json(job, {**words, "progress": str(progress), "error": str(error)})
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command(job), stdout=output, stderr=subprocess.STDOUT)
        is_hanging = _watch(process, progress, limit, update)
    if is_hanging:
        return f"took no step for {limit:g} s{_last_case(works, results)}"
    if process.returncode == 0:
        return ""
    if error.is_file():
        return error.read_text(encoding="utf-8").partition("\n")[0]
    return f"{ending_of(process.returncode)}{_last_case(works, results)}"


def _last_case(works: Sequence[Work], results: dict[str, str]) -> str:
    """Return in which case a process ended: the first without a result."""
    unfinished = [work.name for work in works if not Path(results[work.name]).is_file()]
    return f" (case {unfinished[0]})" if unfinished else ""


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
    return f"its process was killed by {name}{f', as by a system {OUT_OF_MEMORY}' if name == 'SIGKILL' else ''}"


def _watch(process: subprocess.Popen, progress: Path, limit: float, update: Callable[[int], None]) -> bool:
    """Wait for a process, and return whether it had to be killed, since it took no step for too long."""
    size, parts, heard, patience = 0, 0, time.monotonic(), max(limit, START)
    try:
        while process.poll() is None:
            time.sleep(POLL)
            marks = progress.read_text(encoding="utf-8")
            if len(marks) > size:
                size, heard, patience = len(marks), time.monotonic(), limit
            elif time.monotonic() - heard > patience:
                return True
            update(marks.count(PART) - parts)
            parts = marks.count(PART)
        update(progress.read_text(encoding="utf-8").count(PART) - parts)
    finally:
        if process.poll() is None:  # hangs, or Ctrl-C
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a driver may hold it for as long as it likes
                process.wait(PATIENCE)
    return False
