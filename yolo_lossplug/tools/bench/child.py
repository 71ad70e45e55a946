# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cases of one engine as a separate process: ``python -m yolo_lossplug.tools.bench.child job.json``.

An engine that kills its process, hangs, or is out of memory ends nothing but this.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from yolo_lossplug.files import read_json, write_json

OUT_OF_MEMORY = "out of memory"
ALIVE, PART = ".", "|"
"""What the progress file gets after every step, and after every part of a case."""


def main(file: Path) -> int:
    """Measure the cases in a file, write a result for each, or why the engine failed, and return the exit status."""
    job = read_json(file)
    begun: list[str] = []
    try:
        from yolo_lossplug.ultralytics_hook.trial import one_bench

        works = [one_bench.Work(**work) for work in job["works"]]
        one_bench.measure_engine(job["engine"], works, one_bench.bench_device(job["device"]), _reporter(job, begun))
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        name = job["works"][min(len(begun), len(job["works"]) - 1)]["name"]
        why = f"{_reason(error)} (case {name})"
        Path(job["error"]).write_text(f"{why}\n\n{traceback.format_exc()}", encoding="utf-8")
        return 1
    return 0


def _reason(error: BaseException) -> str:
    from yolo_lossplug.ultralytics_hook.trial.one_bench import is_out_of_memory

    text = " ".join(str(error).split())[:200]
    return OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {text}"


def _reporter(job: dict[str, Any], begun: list[str]) -> Any:
    """Return who writes results and progress; `begun` gets the names of the cases that are done."""
    from yolo_lossplug.ultralytics_hook.trial.one_bench import Reporter, Work

    progress = Path(job["progress"]).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 - as long as the process

    def write(mark: str) -> None:
        progress.write(mark)
        progress.flush()

    def result(work: Work, values: dict[str, Any]) -> None:
        write_json(Path(job["results"][work.name]), values)
        if work.name not in begun:
            begun.append(work.name)

    def earlier(work: Work) -> dict[str, Any]:
        return read_result(Path(job["results"][work.name]))

    return Reporter(lambda: write(ALIVE), lambda: write(PART), result, earlier)


def read_result(file: Path) -> dict[str, Any]:
    """Return the result in a file; empty if there is none, or one that another program has cut off."""
    try:
        return dict(read_json(file))
    except (FileNotFoundError, ValueError):
        return {}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
