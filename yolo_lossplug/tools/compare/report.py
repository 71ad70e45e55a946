# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug compare` writes of a comparison: tables, plots and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from yolo_lossplug import charts
from yolo_lossplug.tools.compare import differ, measures
from yolo_lossplug.tools.compare.comparison import SECONDS, Comparison, Effect, shown
from yolo_lossplug.tools.compare.jobs import Job
from yolo_lossplug.tools.compare.measures import METRICS, SIZES, TEST, label
from yolo_lossplug.tools.compare.plots import draw_curves, draw_forest
from yolo_lossplug.tools.report import Report, Table
from yolo_lossplug.ultralytics_hook.trial.one_run import history

FOREST, CURVES, RESULTS = "forest.png", "curves.png", "results.csv"
INTERVAL = "95 % intervals of other metrics are each for itself: of twenty differences one looks real by chance."
POWER_NOTE = (
    "Detectable: the true difference that these seeds show four times in five (power 0.8). Seeds needed: how many "
    "would show the observed difference as often."
)
SCALE_NOTE = (
    "Values of a loss are on the scale of that loss: `loss=l1` is not worse than `loss=ciou` because its box_loss is "
    "larger. They are listed to see whether a run has converged, and are not compared."
)
SPREAD = "Mean ± deviation over the seeds"


def write_summary(
    jobs: Sequence[Job],
    directory: Path,
    metric: str = measures.ORDER[0],
    command: str = "",
    foot: Sequence[str] = (),
) -> Report:
    """Write the tables, plots and the page of a comparison, and return the report.

    ``results.csv`` has a row for each run, ``summary.csv`` one for each arm and measure; ``summary.md``,
    ``summary.tex`` and ``report.html`` say the same. Without a finished run there is neither ``summary.csv`` nor
    ``summary.tex``, and there are no plots where nothing was learnt.

    Args:
        jobs: All runs, those of the baseline first.
        directory: Folder of the comparison.
        metric: The primary metric, as ``metric=`` takes it.
        command: The command that makes the comparison.
        foot: Date, versions and the like.
    """
    jobs = shown(jobs)
    comparison = Comparison.of(jobs, metric, command, foot)
    results = comparison.results
    charts.save_table([_run_row(job, results.get((job.arm, job.seed))) for job in jobs], directory / "results.csv")
    if results:
        charts.save_table(summary_rows(comparison), directory / "summary.csv")
        about = [comparison.command, *comparison.foot, *comparison.about]
        (directory / "summary.tex").write_text(latex_table(comparison).latex(about), encoding="utf-8")
        histories = {key: _metrics_of(history(Path(result["save_dir"]))) for key, result in results.items()}
        draw_curves(histories, comparison.arms, directory / CURVES)
        floor = comparison.noise_floor
        draw_forest(comparison.effects, comparison.baseline, directory / FOREST, floor.deviation if floor else None)
    report = report_of(comparison, directory, differ.pairs(jobs))
    (directory / "summary.md").write_text(report.markdown(), encoding="utf-8")
    report.write(directory / "report.html")
    return report


def report_of(
    comparison: Comparison, directory: Optional[Path] = None, pairs: Sequence[differ.DetectionPair] = ()
) -> Report:
    """Return the report of a comparison.

    Args:
        comparison: The comparison.
        directory: Where its plots are, as far as there are any; None for a report without pictures.
        pairs: The runs in whose images arms differ.
    """
    report = Report("Comparison of losses", comparison.state if comparison.n_runs else "", comparison.command)
    for sentence in comparison.verdicts:
        report.verdict(sentence)
    _add_differences(report, comparison, directory)
    _add_metrics(report, comparison)
    if comparison.notes:
        report.section("Noise and power")
    for note in comparison.notes:
        report.text(note)
    if directory:
        _add_pictures(report, comparison, directory, pairs)
    if comparison.failed:
        report.section("Failed runs")
        report.table(["loss", "seed", "reason"], [[f"`{arm}`", *row] for arm, *row in comparison.failed])
    for line in (*comparison.foot, *comparison.about):
        report.foot(line)
    return report


def _add_differences(report: Report, comparison: Comparison, directory: Optional[Path]) -> None:
    effects = [effect for effect in comparison.effects if effect.mean is not None]
    if not effects:
        return
    report.section(f"Difference of {label(comparison.metric)} from `{comparison.baseline}`")
    if directory and (directory / FOREST).is_file():
        words = "; ".join(f"{effect.arm} {effect.words}" for effect in effects)
        report.picture(directory / FOREST, f"Forest plot of the differences: {words}")
    columns = _columns(effects)
    rows = [[f"`{effect.arm}`", *row] for effect, *row in zip(effects, *columns.values())]
    caption = f"{label(comparison.metric)}: differences from `{comparison.baseline}`, seed by seed"
    report.table(["loss", *columns], rows, caption, columns=1 + [*columns].index("verdict") + 1)
    if comparison.noise_floor:
        report.text(
            f"Noise floor: {label(comparison.metric)} of `{comparison.baseline}` is {comparison.noise_floor.text()}, "
            f"mean ± standard deviation over {comparison.noise_floor.seeds} seeds.",
            is_brief=True,
        )
    if any(effect.smallest is not None for effect in effects):
        report.text(POWER_NOTE)


def _columns(effects: Sequence[Effect]) -> dict[str, list[Any]]:
    """Return the columns of the table of differences; those that are empty are left out."""
    columns: dict[str, list[Any]] = {
        "difference": [_signed(effect.mean) for effect in effects],
        "from": [_signed(effect.low) for effect in effects],
        "to": [_signed(effect.high) for effect in effects],
        "verdict": [effect.verdict for effect in effects],
        "seeds": [effect.seeds for effect in effects],
        "level": [None if effect.level is None else f"{100 * effect.level:.3g} %" for effect in effects],
        "detectable": [effect.smallest for effect in effects],
        "seeds needed": [effect.seeds_needed for effect in effects],
    }
    return {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}


def _add_metrics(report: Report, comparison: Comparison) -> None:
    """Add the tables of all that finished runs have measured, but the differences of the primary metric."""
    names = list(dict.fromkeys(name for _, name in comparison.spreads))
    averages = [name for name in comparison.metrics if name.startswith(METRICS)]
    sizes = [name for name in SIZES if name in names]
    losses = [name for name in names if not measures.is_metric(name) and name != SECONDS]
    by_class = [name for name in comparison.metrics if measures.is_of_class(name) and not name.startswith(TEST)]
    of_test = [name for name in comparison.metrics if name.startswith(TEST)]
    best = f"Of the best checkpoint: {SPREAD.lower()}"
    for heading, tables in (
        ("Metrics", [_by_measure(comparison, [*averages, SECONDS], best), _others(comparison, [*averages, *sizes])]),
        ("Average precision by size", [_by_arm(comparison, "size", sizes)]),
        ("Average precision by class", [_by_arm(comparison, "class", by_class)]),
        ("Test split", [_by_arm(comparison, "metric", of_test)]),
        ("Losses after the last epoch", [_by_measure(comparison, losses, SPREAD)]),
    ):
        shown_tables = [table for table in tables if table.rows and len(table.header) > 1]
        if shown_tables:
            report.section(heading)
        for table in shown_tables:
            report.add(table)
        if shown_tables and tables[0].header[1:] == [*map(label, losses)]:
            report.text(SCALE_NOTE)


def _by_measure(comparison: Comparison, names: Sequence[str], caption: str) -> Table:
    """Return a table with a row for every arm and a column for every measure."""
    names = [name for name in names if any(name == measure for _, measure in comparison.spreads)]
    arms = [arm for arm in comparison.arms if any(arm == other for other, _ in comparison.spreads)]
    rows = [[f"`{arm}`", *(_spread(comparison, arm, name) for name in names)] for arm in arms]
    return Table(["loss", *map(label, names)], rows, caption)


def _others(comparison: Comparison, names: Sequence[str]) -> Table:
    """Return the differences of the metrics that do not decide, a row for every metric and arm."""
    effects = [effect for name in names for effect in comparison.other_effects.get(name, [])]
    rows = [
        [label(effect.metric), f"`{effect.arm}`", *map(_signed, (effect.mean, effect.low, effect.high))]
        for effect in effects
        if effect.mean is not None
    ]
    caption = f"Differences from `{comparison.baseline}`. {INTERVAL} They carry no verdict."
    return Table(["metric", "loss", "difference", "from", "to"], rows, caption)


def _by_arm(comparison: Comparison, kind: str, names: Sequence[str]) -> Table:
    """Return a table with a row for every metric and a column for every arm."""
    arms = [arm for arm in comparison.arms if any(arm == other for other, _ in comparison.spreads)]
    rows = [[label(n).removeprefix("AP_"), *(_spread(comparison, arm, n) for arm in arms)] for n in names]
    return Table([kind, *(f"`{arm}`" for arm in arms)], rows, SPREAD)


def _spread(comparison: Comparison, arm: str, name: str) -> Optional[str]:
    spread = comparison.spreads.get((arm, name))
    return None if spread is None else spread.text(1 if name == SECONDS else 4)


def _signed(value: Optional[float]) -> Optional[str]:
    return None if value is None else f"{value:+.4f}"


def _add_pictures(
    report: Report, comparison: Comparison, directory: Path, pairs: Sequence[differ.DetectionPair]
) -> None:
    """Add the learning curves and the images in which arms differ, as far as they are drawn."""
    if comparison.effects and (directory / CURVES).is_file():
        report.section("Learning curves")
        alt = "Metrics by epoch, and their paired differences from the first loss"
        caption = "Mean over the seeds; a band is one standard deviation. The first epochs may lie below the axis."
        report.picture(directory / CURVES, alt, caption)
    drawn = [pair for pair in pairs if pair.picture(directory).is_file()]
    if drawn:
        report.section("Where they differ")
    for pair in drawn:
        alt = f"Images of seed {pair.seed} in which {comparison.baseline} and {pair.arm} differ most, side by side"
        caption = (
            f"`{comparison.baseline}` and `{pair.arm}`, seed {pair.seed}: the validation images in which they differ "
            "most, each loss at the score of its best F1, matched at IoU 0.5."
        )
        report.picture(pair.picture(directory), alt, caption, is_photo=True)


def latex_table(comparison: Comparison) -> Table:
    """Return means of the primary metric and of AP by size, and the difference of the former, a row for every arm."""
    names = [comparison.metric, *(name for name in SIZES if (comparison.baseline, name) in comparison.spreads)]
    by_arm = {effect.arm: effect for effect in comparison.effects}
    header = ["loss", "seeds", *map(label, names), "difference", "from", "to", "verdict"]
    rows = []
    for arm in comparison.arms:
        effect = by_arm.get(arm, Effect(arm, comparison.metric))
        spread = comparison.spreads.get((arm, comparison.metric))
        difference = map(_signed, (effect.mean, effect.low, effect.high))
        verdict = "baseline" if arm == comparison.baseline else effect.verdict
        means = (_spread(comparison, arm, name) for name in names)
        rows.append([arm, spread.seeds if spread else 0, *means, *difference, verdict])
    return Table(header, rows)


def summary_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for every arm and measure: mean, deviation, and the paired difference from the baseline."""
    effects = [*comparison.effects, *(one for effects in comparison.other_effects.values() for one in effects)]
    by_measure = {(effect.arm, effect.metric): effect for effect in effects if effect.mean is not None}
    nothing = Effect("", "", seeds=None)  # type: ignore[arg-type]
    rows = []
    for (arm, name), spread in comparison.spreads.items():
        effect = by_measure.get((arm, name), nothing)
        rows.append(
            {
                "loss": arm,
                "measure": name,
                "seeds": spread.seeds,
                "mean": spread.mean,
                "sd": spread.deviation,
                "paired_seeds": effect.seeds,
                "difference": effect.mean,
                "low": effect.low,
                "high": effect.high,
                "level": effect.level,
                "verdict": effect.verdict,
                "needed": effect.needed,
            }
        )
    return rows


def _metrics_of(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return the metrics of a run's history, in order, without its losses, times and learning rates."""
    return [{name: row[name] for name in measures.order(row)} for row in rows]


def _run_row(job: Job, result: Optional[measures.Result]) -> dict[str, Any]:
    """Return one run as a row; empty but for its name where it has no result."""
    about = {"loss": job.arm, "seed": job.seed, "state": job.state, "reason": job.reason}
    return {**about, **({SECONDS: None, "save_dir": None} if result is None else measures.flat(result))}
