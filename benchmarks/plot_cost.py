# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cost of the loss step against the number of objects in an image: python benchmarks/plot_cost.py.

Four images of 640 pixels with 1 to 5,000 objects each, Ultralytics' own step and the fast engine's, in turn in one
process, peak memory in processes of their own. Writes the plot of docs/performance.md, and the numbers behind it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import bench_loss
import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 5000)
STYLES = {"stock": ("o", "-", "0.55"), "ours": ("s", "--", "0.0")}


def main():
    """Measure and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--output", default=str(HERE / "results" / "cost.jsonl"))
    parser.add_argument("--plot", default=str(HERE.parent / "docs" / "pictures" / "cost.png"))
    options = parser.parse_args()
    options.threads, options.pairs, options.seconds, options.no_memory = 1, 3, 2, False
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    context, rows = bench_loss.context(options), []
    print(context, flush=True)
    for n in options.counts:
        rows.append({**bench_loss.measure(f"{options.batch}x{n}", options), "objects_per_image": n})
        print(json.dumps(rows[-1]), flush=True)
    lines = "\n".join(json.dumps(row) for row in rows)
    Path(options.output).write_text(f"{json.dumps({'context': context})}\n{lines}\n", encoding="utf-8")
    draw([row for row in rows if "differs" not in row], context, Path(options.plot))


def draw(rows, context, file):
    """Write the plot."""
    figure, axes = plt.subplots(2, figsize=(5.6, 6.4), layout="constrained")  # labels are legible on a phone
    x = [row["objects_per_image"] for row in rows]
    for side, (marker, line, colour) in STYLES.items():
        style = {
            "marker": marker,
            "linestyle": line,
            "color": colour,
            "label": {"stock": "Ultralytics", "ours": "fast engine"}[side],
        }
        axes[0].loglog(x, [row[f"{side}_ms"] for row in rows], **style)
        axes[1].loglog(x, [row[f"{side}_mib"]["step"] for row in rows], **style)
    axes[1].loglog(x, [row["ours_mib"]["gradients"] for row in rows], ":", color="0.3", label="gradients of the head")
    for axis, what in zip(axes, ("time of a step, ms", "peak memory of a step, MiB")):
        axis.set(xlabel="objects in an image", ylabel=what)
        axis.grid(which="major", color="0.9")
        axis.legend(frameon=False)
    figure.suptitle(" · ".join(context.split(" · ")[:4]), fontsize=8)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
