# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug compare` writes of a comparison: tables, plots and a page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, Callable, Optional

from matplotlib.figure import Figure

from yolo_lossplug import charts
from yolo_lossplug.files import write_text
from yolo_lossplug.tools.compare import differ, measures
from yolo_lossplug.tools.compare.comparison import SECONDS, Comparison, portable
from yolo_lossplug.tools.compare.jobs import Job
from yolo_lossplug.tools.compare.measures import Effect
from yolo_lossplug.tools.compare.plots import draw_curves, draw_forest
from yolo_lossplug.tools.report import Picture, Report, Section, Table, Text
from yolo_lossplug.ultralytics_hook.console import say
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
COLUMNS: dict[str, Callable[[Effect], Any]] = {
    "difference": lambda effect: _signed(effect.mean),
    "from": lambda effect: _signed(effect.low),
    "to": lambda effect: _signed(effect.high),
    "verdict": lambda effect: effect.verdict,
    "seeds": lambda effect: effect.seeds,
    "level": lambda effect: None if effect.level is None else f"{100 * effect.level:.3g} %",
    "detectable": lambda effect: effect.smallest,
    "seeds needed": lambda effect: effect.seeds_needed,
}
"""Columns of the table of differences."""
SUMMARY = (
    *("loss", "measure", "seeds", "mean", "sd"),
    *("paired_seeds", "difference", "low", "high", "level", "verdict", "needed"),
)
SPREAD = "Mean ± deviation over the seeds"


def write_summary(
    jobs: Sequence[Job],
    directory: Path,
    metric: str = measures.ORDER[0],
    command: str = "",
    foot: Sequence[str] = (),
    is_last: bool = False,
) -> Report:
    """Write the tables, plots and the page of a comparison, and return the report.

    Without a finished run there is neither ``summary.csv`` nor ``summary.tex``, and no plot where nothing was learnt.

    Args:
        jobs: All runs, those of the baseline first.
        directory: Folder of the comparison.
        metric: The primary metric, as ``metric=`` takes it.
        command: The command that makes the comparison.
        foot: Date, versions and the like.
        is_last: Whether the images in which arms differ are drawn anew.
    """
    jobs = portable(jobs)
    comparison, pairs = Comparison.of(jobs, metric, command, foot), differ.detection_pairs(jobs)
    floor, results = comparison.noise_floor, comparison.results
    histories = {key: history(Path(result["save_dir"])) for key, result in results.items()}
    forest = draw_forest(comparison.effects, comparison.baseline, floor.deviation if floor else None)
    figures = {directory / CURVES: draw_curves(histories, comparison.arms), directory / FOREST: forest}
    if is_last:
        figures.update({pair.file(directory): _differing(pair, comparison.baseline, directory) for pair in pairs})
    tables = {"results.csv": [_run_row(job, comparison) for job in jobs]}
    if results:
        tables["summary.csv"] = summary_rows(comparison)
        about = [comparison.command, *comparison.foot, *comparison.about]
        write_text(directory / "summary.tex", latex_table(comparison).latex(about))
    for file, figure in figures.items():
        charts.save(figure, file) if figure else file.unlink(missing_ok=True)
    for name, rows in tables.items():
        charts.save_table(rows, directory / name)
    report = report_of(comparison, directory, pairs)
    write_text(directory / "summary.md", report.markdown())
    report.write(directory / "report.html")
    return report


def _differing(pair: differ.DetectionPair, baseline: str, directory: Path) -> Optional[Figure]:
    """Return the picture of the images in which arms differ; None where it cannot be drawn any more."""
    try:
        return differ.draw_differing(pair, baseline, directory)
    except Exception as error:  # of files that may be gone or damaged; all else is written
        say(f"the images in which {pair.arm} differs cannot be drawn: {type(error).__name__}: {error}")
        return None


def report_of(
    comparison: Comparison, directory: Optional[Path] = None, pairs: Sequence[differ.DetectionPair] = ()
) -> Report:
    """Return the report of a comparison, with the plots and the images of pairs that a folder has, if there is one."""
    failed = [[f"`{arm}`", seed, reason] for arm, seed, reason in comparison.failed]
    sections = [
        _differences(comparison, directory),
        *_measured(comparison),
        Section("Noise and power", [Text(note) for note in comparison.notes]),
        *([_curves(comparison, directory), _where_they_differ(comparison, directory, pairs)] if directory else []),
        Section("Failed runs", [Table(["loss", "seed", "reason"], failed)] if failed else []),
    ]
    state, sections = comparison.state if comparison.n_runs else "", [s for s in sections if s.blocks]
    foot = [*comparison.foot, *comparison.about]
    return Report("Comparison of losses", state, comparison.command, comparison.verdicts, sections, foot)


def _differences(comparison: Comparison, directory: Optional[Path]) -> Section:
    """Return the differences of the primary metric, with their plot where it is drawn."""
    effects = [effect for effect in comparison.effects if effect.mean is not None]
    if not effects:
        return Section()
    name, floor = comparison.labels[comparison.metric], comparison.noise_floor
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
    columns = {name: [cell_of(effect) for effect in effects] for name, cell_of in COLUMNS.items()}
    return {name: cells for name, cells in columns.items() if set(cells) != {None}}


def _measured(comparison: Comparison) -> list[Section]:
    """Return the tables of all that finished runs have measured, but the differences of the primary metric."""
    groups = comparison.groups
    best = f"Of the best checkpoint: {SPREAD.lower()}"
    tables = {
        "Metrics": [_by_measure(comparison, [*groups["mean"], SECONDS], best), _others(comparison)],
        "Average precision by size": [_by_arm(comparison, "size")],
        "Average precision by class": [_by_arm(comparison, "class")],
        "Test split": [_by_arm(comparison, "test")],
        "Losses after the last epoch": [_by_measure(comparison, groups["loss"], SPREAD)],
    }
    sections = [Section(heading, [t for t in some if t.rows and len(t.header) > 1]) for heading, some in tables.items()]
    if sections[-1].blocks:
        sections[-1].blocks.append(Text(SCALE_NOTE))
    return sections


def _by_measure(comparison: Comparison, names: Sequence[str], caption: str) -> Table:
    """Return a table with a row for every arm and a column for every measure."""
    names = [name for name in names if name in comparison.labels]
    rows = [[f"`{arm}`", *(_spread(comparison, arm, name) for name in names)] for arm in comparison.measured_arms]
    return Table(["loss", *(comparison.labels[name] for name in names)], rows, caption)


def _others(comparison: Comparison) -> Table:
    """Return the differences of the metrics that do not decide, a row for every metric and arm."""
    names = [*comparison.groups["mean"], *comparison.groups["size"]]
    effects = [e for name in names for e in comparison.other_effects.get(name, []) if e.mean is not None]
    ends = [map(_signed, (effect.mean, effect.low, effect.high)) for effect in effects]
    rows = [[comparison.labels[effect.metric], f"`{effect.arm}`", *end] for effect, end in zip(effects, ends)]
    caption = f"Differences from `{comparison.baseline}`. {INTERVAL} They carry no verdict."
    return Table(["metric", "loss", "difference", "from", "to"], rows, caption)


def _by_arm(comparison: Comparison, group: str) -> Table:
    """Return a table with a row for every metric of a group and a column for every arm."""
    arms, labels = comparison.measured_arms, comparison.labels
    names = {name: labels[name].removeprefix("AP_") for name in comparison.groups[group]}
    rows = [[label, *(_spread(comparison, arm, name) for arm in arms)] for name, label in names.items()]
    return Table([group, *(f"`{arm}`" for arm in arms)], rows, SPREAD)


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
    for pair in pairs:
        alt = f"Images of seed {pair.seed} in which {baseline} and {pair.arm} differ most, side by side"
        caption = (
            f"`{baseline}` and `{pair.arm}`, seed {pair.seed}: the validation images in which they differ most, each "
            "loss at the score of its best F1, matched at IoU 0.5."
        )
        picture = Picture(pair.file(directory), alt, caption, is_photo=True)
        with suppress(Exception):  # there is none, or a codec cannot read it
            section.blocks += [picture] if picture.data else []
    return section


def latex_table(comparison: Comparison) -> Table:
    """Return means of the primary metric and of AP by size, and the difference of the former, a row for every arm."""
    names = [n for n in dict.fromkeys((comparison.metric, *comparison.groups["size"])) if n in comparison.labels]
    by_arm = {effect.arm: effect for effect in comparison.effects}
    header = ["loss", "seeds", *(comparison.labels[name] for name in names), "difference", "from", "to", "verdict"]
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
    effects = [*comparison.effects, *(effect for effects in comparison.other_effects.values() for effect in effects)]
    by_measure = {(e.arm, e.metric): e for e in effects if e.mean is not None}
    rows = []
    for key, spread in comparison.spreads.items():
        e = by_measure.get(key)
        difference = (e.seeds, e.mean, e.low, e.high, e.level, e.verdict, e.needed) if e else ()
        values = (*key, spread.seeds, spread.mean, spread.deviation, *difference)
        rows.append(dict(zip_longest(SUMMARY, values)))
    return rows


def _run_row(job: Job, comparison: Comparison) -> dict[str, Any]:
    """Return one run as a row; empty but for its name where it has no result."""
    key = job.arm, job.seed
    about = {"loss": job.arm, "seed": job.seed, "state": job.state, "reason": job.reason, SECONDS: None}
    return {**about, "save_dir": comparison.results.get(key, {}).get("save_dir"), **comparison.numbers.get(key, {})}
