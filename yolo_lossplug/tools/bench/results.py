# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug bench` has measured: read from the files of the cases, and turned into entries of the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch

from yolo_lossplug.tools.bench.child import OUT_OF_MEMORY, read_result
from yolo_lossplug.tools.bench.children import result_file
from yolo_lossplug.ultralytics_hook.decision import Measured, size_class
from yolo_lossplug.ultralytics_hook.engines.choice import REFERENCE
from yolo_lossplug.ultralytics_hook.engines.record import Key
from yolo_lossplug.ultralytics_hook.trial.one_bench import STEP, Work


class Results(NamedTuple):
    """What was measured.

    Attributes:
        cases: Each case with the results of the engines in it, by name.
        disqualified: Why an engine is, by name.
        key: Device and versions.
        date: The day.
        command: The command.
        missing: Disqualified engines that cannot run here at all.
        record: The file that holds the record.
        measured: What `auto` takes from now on.
    """

    cases: tuple[tuple[Work, dict[str, dict[str, Any]]], ...]
    disqualified: dict[str, str]
    key: Key
    date: str
    command: str
    missing: tuple[str, ...] = ()
    record: str = ""
    measured: Optional[Measured] = None

    @classmethod
    def read(
        cls,
        folder: Path,
        works: Sequence[Work],
        engines: Sequence[str],
        failed: Mapping[str, str],
        key: Key,
        date: str,
        command: str,
    ) -> Results:
        """Return the results in a folder.

        Args:
            folder: Where the files of the cases are.
            works: The cases.
            engines: The engines, without the host's own.
            failed: Why an engine has failed, by name.
            key: Device and versions.
            date: The day.
            command: The command.
        """
        names = engines or (REFERENCE,)
        cases = tuple(
            (work, {name: one for name in names if (one := read_result(result_file(folder, name, work)))})
            for work in works
        )
        disqualified = dict(failed)
        for work, by_name in cases:
            for name, one in by_name.items():
                if one.get("differs"):
                    disqualified.setdefault(name, f"differs in case {work.name}: {'; '.join(one['differs'])}")
        return cls(cases, disqualified, key, date, command)


def refused(results: Results) -> dict[str, str]:
    """Return the engines that `auto` must not take from now on, with the reasons.

    One that cannot run here is not taken anyway, and one that is out of memory may have enough in another step.
    """
    reasons = results.disqualified.items()
    return {name: why for name, why in reasons if name not in results.missing and OUT_OF_MEMORY not in why}


def proven(results: Results) -> set[str]:
    """Return the engines that were identical in every case and timed in one."""
    timed = {name for _, by_name in results.cases for name, one in by_name.items() if "ratio" in one}
    return timed - {*results.disqualified, REFERENCE}


def entries_of(results: Results) -> list[dict[str, Any]]:
    """Return the entries of the record: one for each type and size, with the engines that are proven, beside stock."""
    names, entries = proven(results), []
    for work, by_name in results.cases:
        timed = {name: one for name, one in by_name.items() if "ratio" in one and name in names}
        if work.kind != STEP or not timed:
            continue
        one = next(iter(timed.values()))
        entries.append(
            {
                **results.key._asdict(),
                "dtype": one["dtype"],
                "anchors_class": size_class(one["anchors"]),
                "size_class": size_class(one["elements"]),
                "case": f"{work.batch} images, {one['objects']:.0f} objects in all, {work.imgsz} px, {work.model}",
                "threads": torch.get_num_threads(),
                "measured": results.date,
                "stock_ms": round(one["stock_ms"][1], 3),
                "engines": {name: _proof(values) for name, values in timed.items()},
            }
        )
    return entries


def _proof(one: Mapping[str, Any]) -> dict[str, Any]:
    low, median, high = one["ratio"]
    ms, faster = round(one["ours_ms"][1], 3), round(median, 3)
    return {"ms": ms, "times_faster": faster, "quartiles": [round(low, 3), round(high, 3)]}
