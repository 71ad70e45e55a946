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
ABOUT = json.loads((STORED / "about.json").read_text(encoding="utf-8"))
PROBLEMS = ABOUT["problems"]
SIZES = ("images", "objects")


def main():
    """Write the summaries, the plot and the table."""
    rows, effects = [], []
    for name in PROBLEMS:
        comparison = comparison_of(name)
        (STORED / f"{name}.md").write_text(summary(name, comparison), encoding="utf-8")
        rows += [row_of(PROBLEMS[name], effect) for effect in comparison.effects]
        effects += [replace(effect, arm=f"{name}: {effect.arm}") for effect in comparison.effects]
    with CITED.open("w", encoding="utf-8", newline="") as text:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    charts.save(draw_forest(effects, "ciou"), PLOT)
    Image.open(PLOT).quantize(32).save(PLOT, optimize=True)


def summary(name, comparison):
    """Return what `lossplug compare` writes of a problem, below its title."""
    report = report_of(comparison)
    report = replace(report, title=PROBLEMS[name]["title"])
    return report.markdown()


def comparison_of(name):
    """Return the comparison of a problem, made of its runs and of what all runs have in common."""
    problem = PROBLEMS[name]
    size = {part: {kind: problem["objects"][f"{part} {kind}"] for kind in SIZES} for part in ("train", "val")}
    common = {"versions": ABOUT["versions"], "hardware": ABOUT["hardware"], "train": size["train"], "data": size["val"]}
    rows = charts.read_table(STORED / f"{name}.csv")
    results = {(r["loss"], int(r["seed"])): {**result_of(r), **common} for r in rows if r["state"] == FINISHED}
    foot = [f"{ABOUT['date']} · {ABOUT['versions']}", f"Model {ABOUT['model']}, `{keys_of(ABOUT['common'])}`"]
    metric = primary_of(results, problem["metric"])
    return Comparison([*problem["arms"]], results, metric, (), len(rows), problem["command"], foot)


def result_of(row):
    """Return a row of a table of runs as the result that it was made of, less its seconds: the machine was not idle."""

    def numbers(*prefixes):
        return {name: float(value) if value else None for name, value in row.items() if name.startswith(prefixes)}

    return {
        "metrics": numbers(METRICS),
        "average_precision": numbers("AP_"),
        "losses": numbers("train/", "val/"),
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
