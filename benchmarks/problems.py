# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write what the stored runs of benchmarks/results/problems say: python benchmarks/problems.py.

For each problem it writes the summary that `lossplug compare` makes of its runs, and for all of them the plot of
docs/problems.md and the table that `lossplug inspect` cites. Then run `python docs/build.py`.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image

from yolo_lossplug import charts
from yolo_lossplug.tools.compare.comparison import Comparison
from yolo_lossplug.tools.compare.jobs import FINISHED
from yolo_lossplug.tools.compare.measures import METRICS, label, primary_of
from yolo_lossplug.tools.compare.plots import draw_forest
from yolo_lossplug.tools.compare.report import report_of

ROOT = Path(__file__).parent.parent
STORED = ROOT / "benchmarks" / "results" / "problems"
PLOT = ROOT / "docs" / "pictures" / "problems.png"
CITED = ROOT / "yolo_lossplug" / "tools" / "inspect" / "measured.csv"
ABOUT = ("loss", "seed", "state", "reason", "seconds")
"""Columns that are no result; seconds were taken on a machine that had other work besides."""


def main():
    """Write the summaries, the plot and the table."""
    about = json.loads((STORED / "about.json").read_text(encoding="utf-8"))
    rows, effects = [], []
    for name, problem in about["problems"].items():
        comparison = comparison_of(about, name)
        report = report_of(comparison)
        report.title = problem["title"]
        (STORED / f"{name}.md").write_text(report.markdown(), encoding="utf-8")
        rows += [row_of(problem, effect) for effect in comparison.effects]
        effects += [replace(effect, arm=f"{name}: {effect.arm}") for effect in comparison.effects]
    with CITED.open("w", encoding="utf-8", newline="") as text:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    draw_forest(effects, "ciou", PLOT)
    Image.open(PLOT).quantize(32).save(PLOT, optimize=True)


def comparison_of(about, name):
    """Return the comparison of a problem, as its runs and what all runs have in common tell it."""
    problem, objects = about["problems"][name], about["problems"][name]["objects"]
    size = {part: {kind: objects[f"{part} {kind}"] for kind in ("images", "objects")} for part in ("train", "val")}
    common = {"versions": about["versions"], "hardware": about["hardware"], "train": size["train"], "data": size["val"]}
    rows = charts.read_table(STORED / f"{name}.csv")
    results = {(r["loss"], int(r["seed"])): {**result_of(r), **common} for r in rows if r["state"] == FINISHED}
    foot = [f"{about['date']} · {about['versions']}", f"Model {about['model']}, `{keys_of(about['common'])}`"]
    metric = primary_of(results, problem["metric"])
    return Comparison([*problem["arms"]], results, metric, (), len(rows), problem["command"], foot)


def result_of(row):
    """Return a row of a table of runs as the result that it was made of."""
    values = {name: float(value) if value else None for name, value in row.items() if name not in ABOUT}
    return {
        "metrics": {name: value for name, value in values.items() if name.startswith(METRICS)},
        "average_precision": {name: value for name, value in values.items() if name.startswith("AP_")},
        "losses": {name: value for name, value in values.items() if name.startswith(("train/", "val/"))},
    }


def row_of(problem, effect):
    """Return a difference as a row of the table that is cited."""
    ends = {"mean": effect.mean, "low": effect.low, "high": effect.high}
    return {
        "key": keys_of(problem["arms"][effect.arm]),
        "dataset": problem["data"],
        "metric": label(effect.metric),
        "seeds": effect.seeds,
        **{name: f"{value:+.4f}" for name, value in ends.items()},
        "verdict": effect.verdict,
    }


def keys_of(keys):
    """Return keys as a command has them.

    >>> keys_of({"cls_weights": [1.0, 1.0, 2.5], "cls": 5.0})
    'cls_weights=[1,1,2.5] cls=5'
    """
    return " ".join(f"{key}={_value(value)}" for key, value in keys.items())


def _value(value):
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
