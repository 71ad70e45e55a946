# SPDX-License-Identifier: AGPL-3.0-or-later
"""Results of `lossplug bench` for readers: a table of 80 columns, Markdown, a page and JSON."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.ticker import LogFormatter

from yolo_lossplug import catalogue, charts, terminal
from yolo_lossplug.files import write_json, write_text
from yolo_lossplug.tools.bench.results import Results, entries_of, proven, refused
from yolo_lossplug.tools.report import Report as Page
from yolo_lossplug.ultralytics_hook.engines.choice import FAST, REFERENCE, TRITON
from yolo_lossplug.ultralytics_hook.trial.one_bench import CLASS_KERNELS, STEP, TRAIN, Work
from yolo_lossplug.ultralytics_hook.trial.problems import XVIEW

WIDTH = 80
STOCK = "stock"
UNSTEADY = "(!)"
HEAD = ("images × objects", "engine", "ms", "25-75 %", "times as fast", "25-75 %", "MiB")
GPU_HEAD = ("images × objects", "engine", "GPU ms", "launches", "waits")
RATES_HEAD = ("cls_loss", "copy TB/s", "forward", "backward")
TITLES = {
    STEP: "A step of the loss, forward and backward to the head's outputs",
    TRAIN: "A whole training step",
    "gpu": "What a step does on the GPU",
    CLASS_KERNELS: "Bandwidth of the class kernels, as a share of a copy's",
}
NOTE = (
    "Medians with quartiles; times as fast: of stock and engine in turn on the same batches, in one process. MiB: peak "
    "that a step adds, gradients of the head's outputs included."
)
UNSTEADY_NOTE = f"{UNSTEADY} quartiles more than 30 % apart: the machine was busy."


def about(results: Results) -> str:
    """Return device and versions."""
    work, key = results.cases[0][0], results.key
    triton = f" · triton {key.triton}" if key.triton != "none" else ""
    kind = "float16 by autocast" if work.amp else "float32"
    return (
        f"{results.date} · ultralytics {key.ultralytics} · torch {key.torch} · {key.device} · yolo-lossplug "
        f"{key.yolo_lossplug}{triton} · Python {platform.python_version()} · {torch.get_num_threads()} thread(s) · "
        f"{kind} · {work.imgsz} px · load {_load()}"
    )


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "-"


def verdict(results: Results) -> str:
    """Return what `auto` takes from now on."""
    if FAST in refused(results):
        return "loss_engine=auto takes Ultralytics' own step here, until a bench proves the fast engine."
    if not proven(results):
        return "No engine is proven on this machine: loss_engine=auto stays what it was."
    if not results.measured:
        return "loss_engine=auto stays what it was: no engine that was measured is faster than stock."
    auto = f"loss_engine=auto takes here, from now on: {results.measured}."
    is_coarse = "elements" in auto or "anchors" in auto
    return auto + " Anchors: of all images; elements: objects of all images × anchors of one." * is_coarse


def tables(results: Results) -> dict[str, tuple[Sequence[str], list[Sequence[str]]]]:
    """Return head and rows of every table that has rows, by kind."""
    found: dict[str, tuple[Sequence[str], list[Sequence[str]]]] = {
        STEP: (HEAD, _rows(results, STEP)),
        TRAIN: (HEAD[:-1], [row[:-1] for row in _rows(results, TRAIN)]),
        "gpu": (GPU_HEAD, _gpu_rows(results)),
        CLASS_KERNELS: (RATES_HEAD, _rates_rows(results)),
    }
    return {kind: pair for kind, pair in found.items() if pair[1]}


def _rows(results: Results, kind: str) -> list[Sequence[str]]:
    """Return a row of stock and one of each engine for every case of a kind."""
    rows: list[Sequence[str]] = []
    for work, by_name in results.cases:
        if work.kind != kind or not by_name:
            continue
        name = case_name(work)
        timed = [one for one in by_name.values() if "ratio" in one]
        baseline = f" {timed[0]['baseline']}" if timed and timed[0].get("baseline") else ""
        if timed:
            rows.append((name, f"{STOCK}{baseline}", *_times(timed[0]["stock_ms"]), "", "", _mib(timed[0], STOCK)))
        rows += [(name, engine, *_cells(one)) for engine, one in by_name.items() if engine != REFERENCE]
    return rows


def case_name(work: Work) -> str:
    """Return a case in words: images and objects per image, after the model of a training step."""
    objects = "data" if work.data else "xView" if work.objects == XVIEW else f"{work.objects:g}"
    return f"{Path(work.model).stem} {work.batch} × {objects}" if work.kind == TRAIN else f"{work.batch} × {objects}"


def _cells(one: Mapping[str, Any]) -> Sequence[str]:
    if "ratio" not in one:
        return ("differs" if one.get("differs") else "skipped", "", "", "", "")
    low, median, high = one["ratio"]
    mark = "" if one["is_steady"] else f" {UNSTEADY}"
    return (*_times(one["ours_ms"]), _ratio(median), f"{_ratio(low)}-{_ratio(high)}{mark}", _mib(one, "ours"))


def _times(quartiles: Sequence[float]) -> tuple[str, str]:
    low, median, high = quartiles
    return _ms(median), f"{_ms(low)}-{_ms(high)}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float) -> str:
    """Return a ratio, never rounded up."""
    if value < 0.1:
        return f"{value:.1g}"
    return f"{int(value * 100) / 100:.2f}" if value < 100 else f"{int(value)}"


def _mib(one: Mapping[str, Any], side: str) -> str:
    memory = one.get(f"{side}_mib")
    return f"{memory['step']:.{0 if memory['step'] >= 10 else 1}f}" if memory else "-"


def _gpu_rows(results: Results) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for work, by_name in results.cases:
        for engine, one in by_name.items():
            sides = ((STOCK, "stock_gpu"), (engine, "ours_gpu"))
            is_first = engine == next(iter(by_name))
            for name, key in sides if is_first else sides[1:]:
                if key in one and name != REFERENCE:
                    gpu = one[key]
                    rows.append((case_name(work), name, _ms(gpu["device_ms"]), f"{gpu['launches']}", f"{gpu['syncs']}"))
    return rows


def _rates_rows(results: Results) -> list[Sequence[str]]:
    rates = [one["rates"] for _, by_name in results.cases for one in by_name.values() if "rates" in one]
    return [
        (name, f"{rate['copy']:.2f}", f"{100 * rate['forward']:.0f} %", f"{100 * rate['backward']:.0f} %")
        for of_case in rates
        for name, rate in of_case.items()
    ]


def disqualified(results: Results) -> list[str]:
    """Return why engines are disqualified, what their times do not say, and which cases were skipped."""
    lines = [f"{name} is disqualified: {why}." for name, why in results.disqualified.items()]
    if "interpreted" in results.key.triton and any(TRITON in by_name for _, by_name in results.cases):
        lines.append("Kernels ran in Triton's interpreter: that they are identical counts, their times do not.")
    for work, by_name in results.cases:
        reasons = dict.fromkeys(one["skipped"] for one in by_name.values() if "skipped" in one)
        lines += [f"{work.name} is skipped: {why}." for why in reasons]
    return lines


def text(results: Results) -> str:
    """Return the results in at most 80 columns."""
    found = tables(results)
    parts = [_wrapped(about(results))]
    for kind, (head, rows) in found.items():
        lines = terminal.table([_short(head), *_once(rows)], words_right=True)
        parts.append("\n".join([f"{TITLES[kind]}:", *lines]))
    lines = [*_notes(found), *disqualified(results)]
    parts += ["\n".join(map(_wrapped, lines))] if lines else []
    parts += [_wrapped(f"{verdict(results)}\nrecord: {results.record}")]
    return "\n\n".join(parts)


def _notes(found: Mapping[str, Any]) -> list[str]:
    has_unsteady = any(UNSTEADY in cell for _, rows in found.values() for row in rows for cell in row)
    return [*([NOTE] if STEP in found else []), *([UNSTEADY_NOTE] if has_unsteady else [])]


def _once(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Return rows whose first cell is empty where it is that of the row before."""
    firsts = ["", *(row[0] for row in rows)]
    return [("" if row[0] == before else row[0], *row[1:]) for before, row in zip(firsts, rows)]


def _short(head: Sequence[str]) -> Sequence[str]:
    return ["× stock" if cell == "times as fast" else cell for cell in head]


def _wrapped(paragraphs: str) -> str:
    return "\n".join(
        textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) for line in paragraphs.splitlines()
    )


def markdown(results: Results) -> str:
    """Return the results as Markdown, with the command and the context that every figure needs."""
    found = tables(results)
    parts = [f"`{results.command}`", about(results)]
    made = {kind: catalogue.table(" | ".join(head), rows).rstrip() for kind, (head, rows) in found.items()}
    parts += [f"{TITLES[kind]}:\n\n{table}" for kind, table in made.items()]
    return "\n\n".join([*parts, *_notes(found), *disqualified(results), verdict(results)]) + "\n"


def write(results: Results, folder: Path) -> None:
    """Write ``report.html``, ``report.md`` and ``results.json``."""
    content = {
        "command": results.command,
        "date": results.date,
        **results.key._asdict(),
        "cases": [{**work._asdict(), "engines": by_name} for work, by_name in results.cases],
        "disqualified": results.disqualified,
        "entries": entries_of(results),
    }
    write_json(folder / "results.json", content)
    write_text(folder / "report.md", markdown(results))
    _page(results, folder).write(folder / "report.html")


def _page(results: Results, folder: Path) -> Page:
    found = tables(results)
    page = Page("Engines of the loss, measured on this machine", str(results.key.device), results.command)
    page.verdict(verdict(results).replace("loss_engine=auto", "`loss_engine=auto`"))
    page.foot(about(results))
    for line in disqualified(results):
        page.text(line)
    picture = folder / "steps.png"
    if draw(results, picture):
        page.picture(picture, "milliseconds of a step by objects", "Median of a step, by objects in all images.")
    for kind, (head, rows) in found.items():
        page.section(TITLES[kind])
        page.table(head, rows)
    for line in _notes(found):
        page.text(line)
    page.section("Where it is remembered")
    page.text(
        f"`{results.record}` holds what was measured and proven: for this device, these versions, this type and sizes "
        "like these. `loss_engine=auto` reads it when a training starts, and compares the engine with stock once more "
        "before it runs. Delete the file to forget."
    )
    return page


def draw(results: Results, file: Path) -> bool:
    """Draw the milliseconds of a step against its objects, and return whether there was more than one case."""
    points: dict[str, list[tuple[float, float]]] = {}
    for work, by_name in results.cases:
        timed = {name: one for name, one in by_name.items() if work.kind == STEP and "ratio" in one}
        for name, one in timed.items():
            points.setdefault(name, []).append((one["objects"], one["ours_ms"][1]))
        for one in [*timed.values()][:1]:
            points.setdefault(STOCK, []).append((one["objects"], one["stock_ms"][1]))
    points.pop(REFERENCE, None)
    if max(map(len, points.values()), default=0) < 2:
        return False
    figure, axes = charts.figure(1, 1, width=7)
    for (name, of_engine), style in zip(sorted(points.items(), key=lambda pair: pair[0] != STOCK), charts.styles()):
        axes[0, 0].loglog(*zip(*sorted(of_engine)), label=name, **style)
    axes[0, 0].set(xlabel="objects in all images", ylabel="ms of a step")
    for axis in (axes[0, 0].xaxis, axes[0, 0].yaxis):
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())
    axes[0, 0].grid(alpha=0.3)
    charts.legend_below(figure, axes[0, 0])
    charts.save(figure, file)
    return True
