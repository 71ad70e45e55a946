# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables and plots of a comparison."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

from yolo_lossplug import charts
from yolo_lossplug.tools import compare_page, compare_plots, significance
from yolo_lossplug.tools.compare_tables import tables
from yolo_lossplug.tools.jobs import FAILED, FINISHED, Job
from yolo_lossplug.ultralytics_hook.trial.one_run import history

ORDER = ("mAP50-95", "mAP50", "mAP75", "precision", "recall")
"""The order of metrics in tables and plots, each for boxes, masks and keypoints; losses are ranked by the first."""
Cells = Mapping[tuple[str, str], Mapping[str, Any]]
"""Rows of the summary by loss and measure."""
MARKS = {"(B)": "", "(M)": " mask", "(P)": " pose"}
SCALE_NOTE = (
    "Values of a loss are on the scale of that loss: `loss=l1` is not worse than `loss=ciou` because its box_loss is "
    "larger. They are listed to see whether a run has converged, and are not compared."
)


def write(runs: Sequence[Job], directory: Path, header: Sequence[str]) -> None:
    """Write results.csv, summary.csv, summary.md, report.html and, once a run is finished, curves.png and forest.png.

    Args:
        runs: All runs of the comparison, in order; the others are compared with the loss of the first.
        directory: Folder of the comparison.
        header: Lines on what was run, for the summary.
    """
    results = {(job.arm, job.seed): result for job in runs if job.state == FINISHED and (result := job.read())}
    charts.save_table([_row(job, results.get((job.arm, job.seed))) for job in runs], directory / "results.csv")
    arms = list(dict.fromkeys(job.arm for job in runs))
    rows = summarise(results, arms)
    if rows:
        charts.save_table(rows, directory / "summary.csv")
    text = markdown(rows, runs, [*header, *_mixed_versions(results)])
    (directory / "summary.md").write_text(text, encoding="utf-8")
    if results:
        histories = {key: _metrics(history(Path(result["save_dir"]))) for key, result in results.items()}
        compare_plots.draw_curves(histories, arms, directory / compare_page.CURVES, label)
        compare_plots.draw_forest(
            _effects(rows) if _has_learnt(rows) else [], arms[0], directory / compare_page.FOREST, label
        )
    compare_page.write(_report(rows, runs, header), directory)


def _metrics(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the metrics of a run's history, in order, without its losses, times and learning rates."""
    return [{name: row[name] for name in _order(row)} for row in rows]


def _report(rows: Sequence[Mapping[str, Any]], runs: Sequence[Job], header: Sequence[str]) -> compare_page.Report:
    """Return what report.html shows."""
    baseline, effects = runs[0].arm, _effects(rows)
    metric = rows[0]["measure"] if rows else ""
    (command, *foot), (states, *_) = header, _states(runs)
    cells = {(row["loss"], row["measure"]): row for row in rows}
    has_pairs = _has_learnt(rows) and any(effect.mean is not None for effect in effects)
    return compare_page.Report(
        baseline,
        label(metric),
        compare_page.conclusions(effects, baseline, label(metric))
        if _has_learnt(rows)
        else [compare_page.NOTHING_LEARNT if rows else "No run has finished yet."],
        states,
        effects if _has_learnt(rows) else (),
        tables(rows, metric, label, SCALE_NOTE),
        _noise(cells, baseline, metric) + (_caution(cells, len(effects)) if has_pairs else []),
        [(job.arm, job.seed, job.reason) for job in runs if job.state == FAILED],
        command.strip("`"),
        foot,
    )


def _has_learnt(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether any metric is not 0."""
    return any(row["mean"] for row in rows if row["measure"].startswith("metrics/"))


def _noise(cells: Cells, baseline: str, metric: str) -> list[str]:
    """Return by how much the baseline differs from seed to seed."""
    row = cells.get((baseline, metric))
    if row is None or row["sd"] is None:
        return []
    return [
        f"The {label(metric)} of `{baseline}` has a standard deviation of {row['sd']:.4f} over {row['seeds']} seeds."
    ]


def _effects(rows: Sequence[Mapping[str, Any]]) -> list[SimpleNamespace]:
    """Return the differences of the metric that losses are ranked by."""
    return [
        SimpleNamespace(
            arm=row["loss"],
            metric=row["measure"],
            mean=row["difference"],
            low=row["low"],
            high=row["high"],
            seeds=row["paired_seeds"],
            verdict=row["verdict"],
        )
        for row in rows
        if row["measure"] == rows[0]["measure"] and row["loss"] != rows[0]["loss"]
    ]


def _mixed_versions(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[str]:
    """Return a warning if runs were made with different versions."""
    versions = sorted({result["versions"] for result in results.values()})
    return [f"Not all runs were made with the same versions: {'; '.join(versions)}."] if len(versions) > 1 else []


def summarise(results: Mapping[tuple[str, int], Mapping[str, Any]], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for every loss and measure: mean, deviation, and the paired difference against the first loss.

    Args:
        results: What came out of each finished run, by loss and seed.
        arms: Names of the losses, in order.
    """
    rows = []
    for measure in _measures(results):
        values = {key: flat[measure] for key, result in results.items() if measure in (flat := _flat(result))}
        for arm in arms:
            of_arm = [value for (name, _), value in values.items() if name == arm]
            if of_arm:
                mean, deviation = significance.mean_and_deviation(of_arm)
                row = {"loss": arm, "measure": measure, "seeds": len(of_arm), "mean": mean, "sd": deviation}
                rows.append({**row, **_difference(values, arms[0], arm, measure)})
    return rows


def _difference(values: Mapping[tuple[str, int], float], first: str, arm: str, measure: str) -> dict[str, Any]:
    """Return the columns of a paired difference, empty for the first loss and for what is not a metric."""
    columns = ("paired_seeds", "difference", "low", "high", "interval", "verdict")
    seeds = [seed for name, seed in values if name == arm and (first, seed) in values]
    if arm == first or not seeds or not measure.startswith("metrics/"):
        return dict.fromkeys(columns)
    difference = significance.compare([values[arm, seed] - values[first, seed] for seed in seeds])
    return dict(zip(columns, (len(seeds), *difference)))


def markdown(rows: Sequence[Mapping[str, Any]], runs: Sequence[Job], header: Sequence[str]) -> str:
    """Return the summary as Markdown."""
    lines = ["# Comparison", "", *(f"{line}  " for line in header), "", *_states(runs)]
    if not rows:
        return "\n".join([*lines, ""])
    cells = {(row["loss"], row["measure"]): row for row in rows}
    arms, measures = (list(dict.fromkeys(row[key] for row in rows)) for key in ("loss", "measure"))
    metrics = [measure for measure in measures if measure.startswith("metrics/")]
    losses = [measure for measure in measures if measure not in (*metrics, "seconds")]
    if not _has_learnt(rows):
        lines += ["", compare_page.NOTHING_LEARNT]
    lines += ["", "## Metrics of the best checkpoint, mean ± sd over the seeds", ""]
    lines += _means(cells, arms, [*metrics, "seconds"])
    if len(arms) > 1:
        lines += ["", f"## Difference from `{arms[0]}`, seed by seed, with the 95 % interval that decides", ""]
        lines += [*_differences(cells, arms, metrics), "", *_caution(cells, len(arms) - 1)]
    lines += ["", "## Losses after the last epoch", "", SCALE_NOTE, "", *_means(cells, arms, losses)]
    return "\n".join([*lines, ""])


def _states(runs: Sequence[Job]) -> list[str]:
    """Return how many runs have finished, and why others have failed."""
    finished, failed = ([job for job in runs if job.state == state] for state in (FINISHED, FAILED))
    reasons = [f"- failed: {job.arm} seed {job.seed}: {job.reason}" for job in failed]
    return [f"{len(finished)} of {len(runs)} runs finished.", *reasons]


def _means(cells: Cells, arms: Sequence[str], measures: Sequence[str]) -> list[str]:
    head = "| loss | seeds | " + " | ".join(label(measure) for measure in measures) + " |"
    lines = [head, "|---" * (len(measures) + 2) + "|"]
    for arm in arms:
        of_arm = [cells.get((arm, measure)) for measure in measures]
        seeds = max((cell["seeds"] for cell in of_arm if cell), default=0)
        lines.append(f"| `{arm}` | {seeds} | " + " | ".join(_mean(cell) for cell in of_arm) + " |")
    return lines


def _mean(cell: Optional[Mapping[str, Any]]) -> str:
    if cell is None:
        return ""
    digits = 1 if cell["measure"] == "seconds" else 4
    spread = "" if cell["sd"] is None else f" ± {cell['sd']:.{digits}f}"
    return f"{cell['mean']:.{digits}f}{spread}"


def _differences(cells: Cells, arms: Sequence[str], metrics: Sequence[str]) -> list[str]:
    lines = ["| loss | " + " | ".join(label(metric) for metric in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for arm in arms[1:]:
        lines.append(
            f"| `{arm}` | " + " | ".join(_difference_cell(cells.get((arm, metric))) for metric in metrics) + " |"
        )
    return lines


def _difference_cell(cell: Optional[Mapping[str, Any]]) -> str:
    """Return a difference with its interval and verdict."""
    if cell is None or cell["difference"] is None:
        return "no common seed"
    seeds = f"{cell['paired_seeds']} seed{'s' * (cell['paired_seeds'] > 1)}"
    interval = (
        f"{seeds}: no interval"
        if cell["low"] is None
        else f"{cell['low']:+.4f} to {cell['high']:+.4f}, {cell['interval']}"
    )
    return f"{cell['difference']:+.4f} ({interval}), **{cell['verdict']}**"


def _caution(cells: Cells, others: int) -> list[str]:
    """Return notes on what the verdicts mean."""
    fewest = min((row["paired_seeds"] for row in cells.values() if row["paired_seeds"]), default=0)
    lines = [
        "Of the bootstrap interval and Student's the one that reaches further towards 0 is shown, and decides: "
        f'"better" and "worse" need it to exclude 0, and at least {significance.MIN_SEEDS} seeds. All else is '
        '"within noise", which does not prove equality.'
    ]
    if fewest < significance.MIN_SEEDS:
        lines.append(f"{fewest} seed{'s' * (fewest > 1)}: too few for any verdict.")
    elif fewest < 5:
        lines.append(f"{fewest} seeds can show large differences only; 5 or more show smaller ones.")
    if others > 1:
        lines.append(f"{others} losses are compared with one: about 1 verdict in 20 is chance where none differs.")
    return lines


def label(measure: str) -> str:
    """Return a measure's name without Ultralytics' marks.

    >>> label("metrics/mAP50-95(M)")
    'mAP50-95 mask'
    """
    name = measure.removeprefix("metrics/")
    for mark, word in MARKS.items():
        if name.endswith(mark):
            return name.removesuffix(mark) + word
    return name


def read_table(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with file.open(encoding="utf-8") as text:
        return list(csv.DictReader(text))


def _row(job: Job, result: Optional[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one run as a row; empty but for its name where it has no result."""
    return {
        "loss": job.arm,
        "seed": job.seed,
        "state": job.state,
        "reason": job.reason,
        **({"seconds": None, "save_dir": None} if result is None else _flat(result)),
    }


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"seconds": result["seconds"], "save_dir": result["save_dir"], **result["metrics"], **result["losses"]}


def _measures(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[str]:
    """Return the names of all numbers: metrics first, the main one before the others, then losses, then seconds."""
    names = {name: None for result in results.values() for name in (*result["metrics"], *result["losses"])}
    return [*_order(names), *(name for name in names if not name.startswith("metrics/")), "seconds"] if names else []


def _order(names: Mapping[str, Any]) -> list[str]:
    """Return the metrics among names: boxes before masks and keypoints, the main one first."""

    def rank(name: str) -> tuple[int, int]:
        position = next((i for i, word in enumerate(ORDER) if name.startswith(f"metrics/{word}(")), len(ORDER))
        return [*MARKS].index(name[-3:]) if name[-3:] in MARKS else 0, position

    return sorted((name for name in names if name.startswith("metrics/")), key=rank)
