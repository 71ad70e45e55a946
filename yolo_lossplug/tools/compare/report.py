# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug compare` writes of a comparison: tables, plots and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from yolo_lossplug import charts
from yolo_lossplug.files import write_text
from yolo_lossplug.tools.compare import differ, measures
from yolo_lossplug.tools.compare.comparison import SECONDS, Comparison, Effect, shown
from yolo_lossplug.tools.compare.jobs import Job
from yolo_lossplug.tools.compare.measures import METRICS, SIZES, TEST, label
from yolo_lossplug.tools.compare.plots import draw_curves, draw_forest
from yolo_lossplug.tools.report import Picture, Report, Section, Table, Text
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
    results, floor = comparison.results, comparison.noise_floor
    histories = {key: _metrics_of(history(Path(result["save_dir"]))) for key, result in results.items()}
    figures = {
        CURVES: draw_curves(histories, comparison.arms),
        FOREST: draw_forest(comparison.effects, comparison.baseline, floor.deviation if floor else None),
    }
    texts = {}
    if results:
        about = [comparison.command, *comparison.foot, *comparison.about]
        texts["summary.tex"] = latex_table(comparison).latex(about)
    tables = {
        "results.csv": [_run_row(job, results.get((job.arm, job.seed))) for job in jobs],
        "summary.csv": summary_rows(comparison),
    }
    for name, figure in figures.items():
        if figure:
            charts.save(figure, directory / name)
    for name, rows in tables.items():
        if rows:
            charts.save_table(rows, directory / name)
    report = report_of(comparison, directory, differ.pairs(jobs))
    texts["summary.md"] = report.markdown()
    for name, text in texts.items():
        write_text(directory / name, text)
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
    sections = [
        _differences(comparison, directory),
        *_measured(comparison),
        Section("Noise and power", [Text(note) for note in comparison.notes]),
        *([_curves(comparison, directory), _where_they_differ(comparison, directory, pairs)] if directory else []),
        _failed(comparison),
    ]
    return Report(
        "Comparison of losses",
        comparison.state if comparison.n_runs else "",
        comparison.command,
        comparison.verdicts,
        [section for section in sections if section.blocks],
        [*comparison.foot, *comparison.about],
    )


def _differences(comparison: Comparison, directory: Optional[Path]) -> Section:
    """Return the differences of the primary metric, with their plot where it is drawn."""
    effects = [effect for effect in comparison.effects if effect.mean is not None]
    if not effects:
        return Section()
    name, floor = label(comparison.metric), comparison.noise_floor
    section = Section(f"Difference of {name} from `{comparison.baseline}`")
    if directory and (directory / FOREST).is_file():
        words = "; ".join(f"{effect.arm} {effect.words}" for effect in effects)
        section.blocks.append(Picture(directory / FOREST, f"Forest plot of the differences: {words}"))
    columns = _columns(effects)
    rows = [[f"`{effect.arm}`", *row] for effect, *row in zip(effects, *columns.values())]
    caption = f"{name}: differences from `{comparison.baseline}`, seed by seed"
    section.blocks.append(Table(["loss", *columns], rows, caption, columns=2 + [*columns].index("verdict")))
    if floor:
        text = f"Noise floor: {name} of `{comparison.baseline}` is {floor.text()}, mean ± standard deviation over "
        section.blocks.append(Text(f"{text}{floor.seeds} seeds.", is_brief=True))
    if "detectable" in columns:
        section.blocks.append(Text(POWER_NOTE))
    return section


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


def _measured(comparison: Comparison) -> list[Section]:
    """Return the tables of all that finished runs have measured, but the differences of the primary metric."""
    names = list(dict.fromkeys(name for _, name in comparison.spreads))
    averages = [name for name in comparison.metrics if name.startswith(METRICS)]
    sizes = [name for name in SIZES if name in names]
    losses = [name for name in names if not measures.is_metric(name) and name != SECONDS]
    by_class = [name for name in comparison.metrics if measures.is_of_class(name) and not name.startswith(TEST)]
    of_test = [name for name in comparison.metrics if name.startswith(TEST)]
    best = f"Of the best checkpoint: {SPREAD.lower()}"
    tables = {
        "Metrics": [_by_measure(comparison, [*averages, SECONDS], best), _others(comparison, [*averages, *sizes])],
        "Average precision by size": [_by_arm(comparison, "size", sizes)],
        "Average precision by class": [_by_arm(comparison, "class", by_class)],
        "Test split": [_by_arm(comparison, "metric", of_test)],
        "Losses after the last epoch": [_by_measure(comparison, losses, SPREAD)],
    }
    sections = [Section(heading, [t for t in some if t.rows and len(t.header) > 1]) for heading, some in tables.items()]
    if sections[-1].blocks:
        sections[-1].blocks.append(Text(SCALE_NOTE))
    return sections


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


def _curves(comparison: Comparison, directory: Path) -> Section:
    """Return the learning curves, where they are drawn."""
    if not comparison.effects or not (directory / CURVES).is_file():
        return Section()
    alt = "Metrics by epoch, and their paired differences from the first loss"
    caption = "Mean over the seeds; a band is one standard deviation. The first epochs may lie below the axis."
    return Section("Learning curves", [Picture(directory / CURVES, alt, caption)])


def _where_they_differ(comparison: Comparison, directory: Path, pairs: Sequence[differ.DetectionPair]) -> Section:
    """Return the images in which each arm and the baseline differ, as far as they are drawn."""
    section, baseline = Section("Where they differ"), comparison.baseline
    for arm, seed, file in ((pair.arm, pair.seed, pair.file(directory)) for pair in pairs):
        alt = f"Images of seed {seed} in which {baseline} and {arm} differ most, side by side"
        caption = (
            f"`{baseline}` and `{arm}`, seed {seed}: the validation images in which they differ most, each loss at the "
            "score of its best F1, matched at IoU 0.5."
        )
        if file.is_file():
            section.blocks.append(Picture(file, alt, caption, is_photo=True))
    return section


def _failed(comparison: Comparison) -> Section:
    """Return the failed runs."""
    rows = [[f"`{arm}`", seed, reason] for arm, seed, reason in comparison.failed]
    return Section("Failed runs", [Table(["loss", "seed", "reason"], rows)] if rows else [])


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
