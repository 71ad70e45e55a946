# SPDX-License-Identifier: AGPL-3.0-or-later
"""One run of a comparison as a separate process: ``python -m yolo_lossplug.tools.compare.train_one job.json START``.

So a run that fails, or runs out of memory, does not end the others, and each starts from the same state of the process.
"""

from __future__ import annotations

import _thread
import os
import platform
import stat
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from filelock import FileLock

from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.tools.compare.jobs import LOCK, PATIENCE


def main(file: Path, start: str) -> int:
    """Train with the arguments in a file, write the result or the error, and return the exit status.

    A lock beside the file is held meanwhile, and falls with this process. Nothing is trained if the file has another
    start by then: the comparison that started this process is gone, and another one has taken the run over.
    """
    job = read_json(file)
    result, error = Path(job["result"]), Path(job["error"])
    lock = FileLock(file.with_suffix(LOCK), timeout=PATIENCE)  # let go with this name: a lock without one is free
    try:
        lock.acquire()
        job = read_json(file)
        if job["start"] != start:
            return 130
        write_json(file, {**job, "process": f"process {os.getpid()} on {platform.node()}"})
        end_with_parent()
        from yolo_lossplug.ultralytics_hook.trial.one_run import train

        write_json(result, with_average_precision(train(job["args"])))
    except KeyboardInterrupt:
        return 130
    except BaseException as problem:  # a trainer may end with SystemExit
        reason = f"{type(problem).__name__}: {problem}"
        error.write_text(f"{reason}\n\n{traceback.format_exc()}", encoding="utf-8")
        print(reason, file=sys.stderr)
        return 1
    return 0


def end_with_parent() -> None:
    """End this process as Ctrl-C does, and at last by force, when the one that started it is gone.

    Its end closes the pipe that is the standard input here.
    """

    def watch() -> None:
        while os.read(0, 1):  # sys.stdin has a lock, and the end of Python fails if this thread holds it
            pass
        _thread.interrupt_main()
        time.sleep(PATIENCE)
        os._exit(130)

    if sys.stdin and stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, daemon=True).start()


def with_average_precision(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with AP by size and class in place of the images, val's and test's."""
    from yolo_lossplug.tools.compare import average_precision, differ

    names, images, test = result.pop("names"), result.pop("images"), result["test"]
    differ.save_detections(images, names, Path(result["save_dir"]) / differ.DETECTIONS)
    average = {"average_precision": average_precision.of_found(images, names)}
    if test is not None:
        test["average_precision"] = average_precision.of_found(test.pop("images"), names)
    return {**result, **average, "data": average_precision.size_of(images)}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
