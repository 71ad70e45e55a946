# SPDX-License-Identifier: AGPL-3.0-or-later
"""One line for each run of a comparison: which of how many, its metric, and the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, RUNNING, WAITING, Job
from yolo_lossplug.tools.compare.measures import label, measured, primary_of


class Progress:
    """Says how far a comparison is.

    Args:
        todo: All runs.
        metric: The primary metric.
    """

    def __init__(self, todo: Sequence[Job], metric: str) -> None:
        self._todo, self._metric = todo, metric
        self._start = time.monotonic()
        self._waiting = sum(job.state == WAITING for job in todo)

    def line(self, job: Job) -> str:
        """Return the line of a run that has ended."""
        ended = sum(job.state in (FINISHED, FAILED) for job in self._todo)
        reason = f" ({job.reason})" if job.reason else ""
        head = f"{ended} of {len(self._todo)}: {job.arm} seed {job.seed} {job.state}{reason}"
        return " · ".join([head, *self._value(job), *self._left()])

    def _value(self, job: Job) -> list[str]:
        result = job.read() if job.state == FINISHED else None
        if result is None:
            return []
        try:
            name = primary_of({(job.arm, job.seed): result}, self._metric)
        except LossPlugError:
            return []
        value = measured(result).get(name)
        return [] if value is None else [f"{label(name)} {value:.4f}"]

    def _left(self) -> list[str]:
        """Return the time left, by the mean time of the runs that ended so far."""
        left = sum(job.state in (WAITING, RUNNING) for job in self._todo)
        ended = self._waiting - left
        seconds = (time.monotonic() - self._start) / ended * left if ended > 0 else 0.0
        return [f"about {duration(seconds)} left"] if left else []


def duration(seconds: float) -> str:
    """Return a time in the two largest units.

    >>> duration(75)
    '1 min 15 s'
    >>> duration(7320)
    '2 h 2 min'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
