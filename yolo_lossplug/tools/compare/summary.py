# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables and plots of a comparison."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from yolo_lossplug import charts
from yolo_lossplug.tools.compare import answer, differ, measures, outward, significance, verdict
from yolo_lossplug.tools.compare import page as compare_page
from yolo_lossplug.tools.compare import plots as compare_plots
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, Job
from yolo_lossplug.tools.compare.measures import METRICS, Results, label
from yolo_lossplug.tools.compare.tables import tables
from yolo_lossplug.ultralytics_hook.trial.one_run import history

Cells = Mapping[tuple[str, str], Mapping[str, Any]]
"""Rows of the summary by loss and measure."""
SCALE_NOTE = (
    "Values of a loss are on the scale of that loss: `loss=l1` is not worse than `loss=ciou` because its box_loss is "
    "larger. They are listed to see whether a run has converged, and are not compared."
)


def write(runs: Sequence[Job], directory: Path, header: Sequence[str], metric: str = measures.ORDER[0]) -> None:
    """Write results.csv, summary.csv, summary.md, report.html and, once a run is finished, summary.tex and the plots.

    Args:
        runs: All runs of the comparison, in order; the others are compared with the loss of the first.
        directory: Folder of the comparison.
        header: Lines on what was run, for the summary.
        metric: The primary metric, which carries the verdict.
    """
    runs = outward.shown(runs)
    results = results_of(runs)
    header = [*header, *outward.about(results), *_mixed_versions(results)]
    charts.save_table([_row(job, results.get((job.arm, job.seed))) for job in runs], directory / "results.csv")
    arms = list(dict.fromkeys(job.arm for job in runs))
    primary = primary_of(results, metric)
    rows = summarise(results, arms, primary)
    if rows:
        charts.save_table(rows, directory / "summary.csv")
    text = markdown(rows, runs, header, results, primary)
    (directory / "summary.md").write_text(text, encoding="utf-8")
    nothing = answer.nothing_learnt(results, primary)
    effects = verdict.effects(results, arms[0], primary) if primary and not nothing else []
    if results and primary:
        text = answer.latex(results, arms, primary, [line.replace("`", "") for line in header])
        (directory / "summary.tex").write_text(text, encoding="utf-8")
        histories = {key: _metrics(history(Path(result["save_dir"]))) for key, result in results.items()}
        compare_plots.draw_curves(histories, arms, directory / compare_page.CURVES, label)
        compare_plots.draw_forest(effects, arms[0], directory / compare_page.FOREST, label)
    notes = answer.notes(results, arms, primary) if results and primary else []
    pictures = [(arm, seed, directory / f"{stem}.png") for arm, seed, stem, *_ in _differing(runs)]
    report = _report(rows, runs, header, effects, primary, notes)
    verdicts = [nothing if results else "No run has finished yet."] if nothing else report.verdicts
    compare_page.write(replace(report, verdicts=verdicts, pictures=pictures), directory)


def _metrics(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the metrics of a run's history, in order, without its losses, times and learning rates."""
    return [{name: row[name] for name in measures.order(row)} for row in rows]


def _report(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Job],
    header: Sequence[str],
    effects: Sequence[verdict.Effect],
    primary: str,
    notes: Sequence[str],
) -> compare_page.Report:
    """Return what report.html shows."""
    baseline, (command, *foot), (states, *_) = runs[0].arm, header, _states(runs)
    verdicts = compare_page.conclusions(effects, baseline, label(primary)) or [answer.conclusion(effects, baseline)]
    cells = {(row["loss"], row["measure"]): row for row in rows}
    return compare_page.Report(
        baseline,
        label(primary),
        verdicts,
        states,
        effects,
        tables(rows, primary, label, SCALE_NOTE),
        [*notes, *(_caution(cells) if effects else [])],
        [(job.arm, job.seed, job.reason) for job in runs if job.state == FAILED],
        command.strip("`"),
        foot,
    )


def _has_learnt(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether any metric is not 0."""
    return any(row["mean"] for row in rows if measures.is_metric(row["measure"]))


def results_of(runs: Sequence[Job]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what came out of each finished run, by loss and seed."""
    return {(job.arm, job.seed): result for job in runs if job.state == FINISHED and (result := job.read())}


def primary_of(results: Results, metric: str) -> str:
    """Return the full name of the primary metric; that of the task where it has no mAP; empty without results.

    Raises:
        LossPlugError: If there is no such metric.
    """
    names = measures.metrics_of(results)
    if metric == measures.ORDER[0] and names and f"{METRICS}{metric}(B)" not in names:
        return names[0]
    return measures.resolve(metric, names) if names else ""


def write_differing(runs: Sequence[Job], directory: Path) -> None:
    """Write the images in which each loss and the first differ most, at the first seed that both have."""
    runs = outward.shown(runs)
    for arm, _, stem, one, other in _differing(runs):
        (directory / f"{stem}.png").unlink(missing_ok=True)  # one of other runs, if these do not differ
        differ.write(one, other, (runs[0].arm, arm), directory, stem)


def _differing(runs: Sequence[Job]) -> list[tuple[str, int, str, Path, Path]]:
    """Return arm, seed, name of the picture, and detections of the first loss and of the arm, if there are any."""
    jobs = {(job.arm, job.seed): job.folder / differ.FILE for job in runs if job.state == FINISHED}
    jobs = {key: file for key, file in jobs.items() if file.is_file()}
    first = runs[0].arm
    pairs: dict[str, tuple[int, Path, Path]] = {}
    for arm, seed in jobs:
        if arm != first and (first, seed) in jobs:
            pairs.setdefault(arm, (seed, jobs[first, seed], jobs[arm, seed]))
    return [(arm, seed, f"differ-{other.parent.name}", one, other) for arm, (seed, one, other) in pairs.items()]


def _mixed_versions(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[str]:
    """Return a warning if runs were made with different versions."""
    versions = sorted({result["versions"] for result in results.values()})
    return [f"Not all runs were made with the same versions: {'; '.join(versions)}."] if len(versions) > 1 else []


def summarise(results: Results, arms: Sequence[str], primary: str = "") -> list[dict[str, Any]]:
    """Return a row for every loss and measure: mean, deviation, and the paired difference against the first loss.

    Args:
        results: What came out of each finished run, by loss and seed.
        arms: Names of the losses, in order.
        primary: Full name of the metric with the verdict; the first if empty.
    """
    rows = []
    metrics = measures.metrics_of(results)
    primary = primary or next(iter(metrics), "")
    for measure in [*metrics, *measures.losses_of(results), *(["seconds"] if results else [])]:
        values = {key: flat[measure] for key, result in results.items() if measure in (flat := measures.flat(result))}
        effects = verdict.effects(results, arms[0], measure, measure == primary) if measure in metrics else []
        by_arm = {effect.arm: effect for effect in effects}
        for arm in arms:
            of_arm = [value for (name, _), value in values.items() if name == arm and value is not None]
            if of_arm:
                mean, deviation = significance.mean_and_deviation(of_arm)
                row = {"loss": arm, "measure": measure, "seeds": len(of_arm), "mean": mean, "sd": deviation}
                rows.append({**row, **_difference(by_arm.get(arm))})
    return rows


def _difference(effect: Optional[verdict.Effect]) -> dict[str, Any]:
    """Return the columns of a paired difference, empty for the first loss and for what is not a metric."""
    columns = ("paired_seeds", "difference", "low", "high", "interval", "level", "verdict", "needed")
    if effect is None or effect.mean is None:
        return dict.fromkeys(columns)
    one = effect
    values = (one.seeds, one.mean, one.low, one.high, one.interval, one.level, one.verdict, one.needed)
    return dict(zip(columns, values))


def markdown(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Job],
    header: Sequence[str],
    results: Optional[Results] = None,
    primary: str = "",
) -> str:
    """Return the summary as Markdown, the verdict first."""
    about = [*(f"{line}  " for line in header), "", *_states(runs)]
    if not rows:
        return "\n".join(["# Comparison", "", *about, ""])
    cells = {(row["loss"], row["measure"]): row for row in rows}
    arms, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("loss", "measure"))
    metrics = [name for name in names if measures.is_metric(name)]
    shown = [name for name in metrics if not measures.is_of_class(name) or name == primary]
    losses = [name for name in names if name not in (*metrics, "seconds")]
    lines = ["# Comparison", ""]
    if results and primary and len(arms) > 1:
        found = verdict.effects(results, arms[0], primary)
        answered = answer.conclusion(found, arms[0], answer.nothing_learnt(results, primary))
        lines += [f"**{answered}** Primary metric: {label(primary)}.", ""]
    lines += about
    if not _has_learnt(rows):
        lines += ["", answer.NOTHING_LEARNT]
    if len(arms) > 1:
        lines += ["", f"## Difference from `{arms[0]}`, seed by seed, with the interval that decides", ""]
        lines += [*_differences(cells, arms, shown), "", *_caution(cells)]
    if results and primary:
        lines += ["", *(f"- {note}" for note in answer.notes(results, arms, primary))]
    lines += ["", "## Metrics of the best checkpoint, mean ± sd over the seeds", ""]
    lines += _means(cells, arms, [*shown, "seconds"])
    classes = [name for name in metrics if measures.is_of_class(name)]
    if classes:
        lines += ["", "## AP by class, mean ± sd over the seeds", "", *_by_class(cells, arms, classes)]
    lines += ["", "## Losses after the last epoch", "", SCALE_NOTE, "", *_means(cells, arms, losses)]
    return "\n".join([*lines, ""])


def _by_class(cells: Cells, arms: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return a table with a row for each class."""
    head = "| class | " + " | ".join(f"`{arm}`" for arm in arms) + " |"
    rows = [f"| {label(n)} | " + " | ".join(_mean(cells.get((arm, n))) for arm in arms) + " |" for n in classes]
    return [head, "|---" * (len(arms) + 1) + "|", *rows]


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
        else f"{cell['low']:+.4f} to {cell['high']:+.4f}, {_interval(cell)}"
    )
    decision = f", **{cell['verdict']}**" if cell["verdict"] else ""
    return f"{cell['difference']:+.4f} ({interval}){decision}"


def _interval(cell: Mapping[str, Any]) -> str:
    """Return the kind of an interval, with its level where it is corrected."""
    level = cell["level"]
    return cell["interval"] if level == significance.LEVEL else f"{cell['interval']} at {100 * level:.1f} %"


def _caution(cells: Cells) -> list[str]:
    """Return notes on what the verdicts mean."""
    fewest = min((row["paired_seeds"] for row in cells.values() if row["paired_seeds"]), default=0)
    lines = [
        "Of the bootstrap interval and Student's the one that reaches further towards 0 is shown, and decides: "
        f'"better" and "worse" need it to exclude 0, and at least {significance.MIN_SEEDS} seeds. All else is '
        '"within noise", which does not prove equality. The primary metric alone has verdicts; others have '
        "intervals at 95 %."
    ]
    if fewest < significance.MIN_SEEDS:
        lines.append(f"{fewest} seed{'s' * (fewest > 1)}: too few for any verdict.")
    elif fewest < 5:
        lines.append(f"{fewest} seeds can show large differences only; 5 or more show smaller ones.")
    return lines


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
        **({"seconds": None, "save_dir": None} if result is None else measures.flat(result)),
    }
