# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug bench` has measured: entries for the record, a report, and JSON."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import torch
from matplotlib.ticker import LogFormatter

from yolo_lossplug import charts
from yolo_lossplug.files import write_json, write_text
from yolo_lossplug.tools.bench.child import OUT_OF_MEMORY
from yolo_lossplug.tools.report import Block, Picture, Report, Section, Table, Text
from yolo_lossplug.ultralytics_hook.decision import Measured, size_class
from yolo_lossplug.ultralytics_hook.engines.choice import FAST, REFERENCE, TRITON
from yolo_lossplug.ultralytics_hook.engines.record import Key
from yolo_lossplug.ultralytics_hook.trial.bench_cases import STEP, TRAIN, Work
from yolo_lossplug.ultralytics_hook.trial.problems import XVIEW

UNSTEADY = "(!)"
HEAD = ("images × objects", "engine", "ms", "25-75 %", "× stock", "25-75 %", "MiB")
GPU_HEAD = ("images × objects", "engine", "ms alone", "GPU ms", "launches", "waits")
RATES_HEAD = ("cls_loss", "copy TB/s", "forward", "backward")
STEP_NOTE = (
    "Medians with quartiles; × stock: how many times as fast as stock, of both in turn on the same batches, in one "
    "process. MiB: peak that a step adds, gradients of the head's outputs included."
)
UNSTEADY_NOTE = (
    f"{UNSTEADY} quartiles more than 30 % apart: the machine was busy. Such a case is not recorded; run it again."
)
RECORD_NOTE = (
    "It holds what was measured and proven: for this device, these versions, this type and sizes like these. "
    "`loss_engine=auto` reads it when a training starts, and compares the engine with stock once more before it runs. "
    "Delete the file to forget."
)
ByEngine = Mapping[str, Mapping[str, Any]]
"""Results of a case by engine."""


@dataclass(frozen=True)
class EngineResults:
    """What was measured.

    Attributes:
        cases: Each case with the results of the engines in it.
        failed: Why engines have failed, by name.
        missing: Why engines cannot run here at all, by name.
        key: Device and versions.
        date: The day.
        command: The command.
        record: The file that holds the record.
    """

    cases: Sequence[tuple[Work, ByEngine]]
    failed: Mapping[str, str]
    missing: Mapping[str, str]
    key: Key
    date: str
    command: str
    record: Path

    @cached_property
    def disqualified(self) -> dict[str, str]:
        """Why engines are disqualified, by name."""
        found = {**self.missing, **self.failed}
        for work, results in self.cases:
            for name, result in results.items():
                if result.get("differs"):
                    found.setdefault(name, f"differs in case {work.name}: {'; '.join(result['differs'])}")
        return found

    @cached_property
    def refused(self) -> dict[str, str]:
        """The engines that `auto` must not take from now on, with the reasons.

        One that cannot run here is not taken anyway, and one that is out of memory may have enough in another step.
        """
        reasons = self.disqualified.items()
        return {name: why for name, why in reasons if name not in self.missing and OUT_OF_MEMORY not in why}

    @property
    def proven(self) -> set[str]:
        """The engines that were identical in every case, beside stock."""
        return {name for _, results in self.cases for name in _timed(results, {*self.disqualified, REFERENCE})}

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Entries of the record: for each type and size the engines that were identical in every case, beside stock.

        What the machine was too busy to time is left out.
        """
        unproven = {*self.disqualified, REFERENCE}
        timed = [(work, _timed(results, unproven)) for work, results in self.cases if work.kind == STEP]
        steps = [(work, {name: r for name, r in proven.items() if r["is_steady"]}) for work, proven in timed]
        return [
            {
                **self.key._asdict(),
                "dtype": result["dtype"],
                "anchors_class": size_class(result["anchors"]),
                "size_class": size_class(result["elements"]),
                "case": f"{work.batch} images, {result['objects']:.0f} objects in all, {work.imgsz} px, {work.model}",
                "threads": torch.get_num_threads(),
                "measured": self.date,
                "stock_ms": round(result["stock_ms"][1], 3),
                "engines": {name: _proof(result) for name, result in proven.items()},
            }
            for work, proven in steps
            for result in [*proven.values()][:1]
            if result.get("task", "detect") == "detect"
        ]

    @property
    def has_other_task(self) -> bool:
        """Whether steps are not those of detect, of which the record is."""
        found = (result.get("task", "detect") for _, results in self.cases for result in results.values())
        return any(task != "detect" for task in found)


def _timed(results: ByEngine, without: Collection[str] = ()) -> ByEngine:
    return {name: result for name, result in results.items() if "ratio" in result and name not in without}


def _proof(result: Mapping[str, Any]) -> dict[str, Any]:
    ms, (low, median, high) = round(result["ours_ms"][1], 3), (round(value, 3) for value in result["ratio"])
    return {"ms": ms, "times_faster": median, "quartiles": [low, high]}


def write_report(results: EngineResults, measured: Optional[Measured], folder: Path) -> Report:
    """Write ``report.html``, ``report.md`` and ``results.json``, and return the report."""
    content = {
        "command": results.command,
        "date": results.date,
        **results.key._asdict(),
        "cases": [{**work._asdict(), "engines": by_name} for work, by_name in results.cases],
        "disqualified": results.disqualified,
        "entries": results.entries,
    }
    picture = _draw_steps(results, folder / "steps.png")
    write_json(folder / "results.json", content)
    report = engines_report(results, measured, picture)
    write_text(folder / "report.md", report.markdown())
    report.write(folder / "report.html")
    return report


def engines_report(
    results: EngineResults, measured: Optional[Measured] = None, picture: Optional[Path] = None
) -> Report:
    """Return the report, of which a terminal shows all but the picture and how the record is used."""
    train_rows = [row[:-1] for row in _rows(results, TRAIN)]
    tables = [
        Table(head, rows, caption, len(head))
        for caption, head, rows in (
            ("A step of the loss, forward and backward to the head's outputs:", HEAD, _rows(results, STEP)),
            ("A whole training step:", HEAD[:-1], train_rows),
            (
                "What a step does on the GPU, and what it takes from its start to its end if none is queued:",
                GPU_HEAD,
                _gpu_rows(results),
            ),
            ("Bandwidth of the class kernels, as a share of a copy's:", RATES_HEAD, _rates_rows(results)),
        )
        if rows
    ]
    is_unsteady = any(UNSTEADY in str(cell) for table in tables for row in table.rows for cell in row)
    is_step = any(table.header is HEAD for table in tables)
    remarks = [*[STEP_NOTE] * is_step, *[UNSTEADY_NOTE] * is_unsteady, *_remarks(results)]
    blocks: list[Block] = [Text(_about(results), is_brief=True)]
    if picture:
        alt, caption = "milliseconds of a step by objects", "Median of a step, by objects in all images."
        blocks.append(Picture(picture, alt, caption))
    blocks += [*tables, *(Text(line, is_brief=True) for line in (*remarks, f"record: `{results.record}`"))]
    blocks.append(Text(RECORD_NOTE))
    title = "Engines of the loss, measured on this machine"
    return Report(title, results.key.device, results.command, [_verdict(results, measured)], [Section("", blocks)])


def _verdict(results: EngineResults, measured: Optional[Measured]) -> str:
    if FAST in results.refused:
        return "`loss_engine=auto` takes Ultralytics' own step here, until a bench proves the fast engine."
    if results.has_other_task:
        return "`loss_engine=auto` stays what it was: fast on a CPU; on a GPU the record, which is of detect, decides."
    if not results.entries:
        steps = [result for _, by_name in results.cases for result in _timed(by_name, {REFERENCE}).values()]
        why = (
            "The machine was too busy" if steps and not results.disqualified else "No engine is proven on this machine"
        )
        return f"{why}: `loss_engine=auto` stays what it was."
    if not measured:
        return "`loss_engine=auto` stays what it was: no engine that was measured is faster than stock."
    return (
        f"`loss_engine=auto` takes here, from now on, in steps of {measured.sizes}: {measured}. Other sizes stay what "
        "they were. Anchors: of all images; elements: objects of all images × anchors of one."
    )


def _about(results: EngineResults) -> str:
    work, key = results.cases[0][0], results.key
    triton = f" · triton {key.triton}" if key.triton != "none" else ""
    kind = "float16 by autocast" if work.amp else "float32"
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "-"
    return (
        f"{results.date} · ultralytics {key.ultralytics} · torch {key.torch} · {key.device} · yolo-lossplug "
        f"{key.yolo_lossplug}{triton} · Python {platform.python_version()} · {torch.get_num_threads()} thread(s) · "
        f"{kind} · {work.imgsz} px · load {load}"
    )


def _remarks(results: EngineResults) -> list[str]:
    """Return why engines are disqualified, what their times do not say, and which cases were skipped."""
    lines = [f"{name} is disqualified: {why}." for name, why in results.disqualified.items()]
    if "interpreted" in results.key.triton and any(TRITON in by_name for _, by_name in results.cases):
        lines.append("Kernels ran in Triton's interpreter: that they are identical counts, their times do not.")
    for work, by_name in results.cases:
        for name, result in by_name.items():
            if result.get("exchanged"):
                lines.append(
                    f"{work.name}: {name} exchanged {result['exchanged']} anchors of equal metric, up to rounding."
                )
        lines += dict.fromkeys(f"{work.name} is skipped: {r['skipped']}." for r in by_name.values() if "skipped" in r)
    return lines


def _sides(by_name: ByEngine) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return a name, how its figures are called, and a result: of stock beside the first engine, and of each engine."""
    stock = [("stock", "stock", result) for result in [*_timed(by_name).values()][:1]]
    return [*stock, *((name, "ours", result) for name, result in by_name.items() if name != REFERENCE)]


def _rows(results: EngineResults, kind: str) -> list[list[str]]:
    cases = [(_case_name(work), by_name) for work, by_name in results.cases if work.kind == kind]
    return [[case, *_cells(*side)] for case, by_name in cases for side in _sides(by_name)]


def _case_name(work: Work) -> str:
    objects = "data" if work.data else "xView" if work.objects == XVIEW else f"{work.objects:g}"
    return f"{Path(work.model).stem} {work.batch} × {objects}" if work.kind == TRAIN else f"{work.batch} × {objects}"


def _cells(name: str, side: str, result: Mapping[str, Any]) -> list[str]:
    if "ratio" not in result:
        return [name, "differs" if result.get("differs") else "skipped", *[""] * 4]
    if side == "stock":
        faster, name = ["", ""], f"{name} {result.get('baseline', '')}".rstrip()
    else:
        low, median, high = map(_ratio, result["ratio"])
        faster = [median, f"{low}-{high}" if result["is_steady"] else f"{low}-{high} {UNSTEADY}"]
    low, median, high = map(_ms, result[f"{side}_ms"])
    memory = result.get(f"{side}_mib")
    return [name, median, f"{low}-{high}", *faster, _mib(memory["step"]) if memory else ""]


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mib(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _ratio(value: float) -> str:
    """Return a ratio, never rounded up."""
    if value < 0.1:
        return f"{value:.1g}"
    return f"{int(value * 100) / 100:.2f}" if value < 100 else f"{int(value)}"


def _gpu_rows(results: EngineResults) -> list[list[Any]]:
    return [
        [_case_name(work), name, _ms(result.get("latency", result)[f"{side}_ms"][1]), *_on_device(gpu)]
        for work, by_name in results.cases
        for name, side, result in _sides(by_name)
        if (gpu := result.get(f"{side}_gpu"))
    ]


def _on_device(gpu: Mapping[str, Any]) -> list[Any]:
    return [_ms(gpu["device_ms"]), gpu["launches"], gpu["syncs"]]


def _rates_rows(results: EngineResults) -> list[list[str]]:
    rates = [result["rates"] for _, by_name in results.cases for result in by_name.values() if "rates" in result]
    return [
        [name, f"{rate['copy']:.2f}", f"{100 * rate['forward']:.0f} %", f"{100 * rate['backward']:.0f} %"]
        for of_case in rates
        for name, rate in of_case.items()
    ]


def _draw_steps(results: EngineResults, file: Path) -> Optional[Path]:
    """Draw the milliseconds of a step against its objects and return the file; None if there is but one case."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for by_name in (by_name for work, by_name in results.cases if work.kind == STEP):
        for name, side, result in _sides(by_name):
            if "ratio" in result:
                points[name].append((result["objects"], result[f"{side}_ms"][1]))
    if max(map(len, points.values()), default=0) < 2:
        return None
    figure, axes = charts.figure(1, 1, width=7)
    for (name, of_engine), style in zip(points.items(), charts.styles()):
        axes[0, 0].loglog(*zip(*sorted(of_engine)), label=name, **style)
    axes[0, 0].set(xlabel="objects in all images", ylabel="ms of a step")
    for axis in (axes[0, 0].xaxis, axes[0, 0].yaxis):
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())
    axes[0, 0].grid(alpha=0.3)
    charts.legend_below(figure, axes[0, 0])
    return charts.save(figure, file)
