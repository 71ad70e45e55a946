# SPDX-License-Identifier: AGPL-3.0-or-later
"""Figures of `lossplug curves` cut into panels, each as wide as a phone, that a page arranges as it has room."""

import base64
import io
from functools import cache
from pathlib import Path
from unittest import mock

import matplotlib
import ultralytics.cfg  # noqa: F401  (before the package's tools, so that the plugin is enabled here as in a training)
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from yolo_lossplug import charts
from yolo_lossplug.tools.arms import arms
from yolo_lossplug.tools.curves import command as curves

WIDTH, HEIGHT = 3.7, 2.7
"""Inches of one panel: about half of the text column, or a phone, at 96 pixels an inch: labels keep their size."""
ROWS = 2
"""A panel shows a loss and its gradient."""
SAME_FILE_EACH_TIME = {"svg.hashsalt": "yolo-lossplug"}


def draw(args, stem, sizes=None):
    """Draw the losses of `lossplug curves` arguments.

    Args:
        args: Arguments of the command.
        stem: Path of the files, less their number and suffix.
        sizes: Sides of the target in pixels; None for the default.

    Returns:
        The SVG files in reading order, the title of the figure, and its legend as name and data URI of a line.
    """
    made = _figure(args, sizes)
    title, names = made.get_suptitle(), made.axes[0].get_legend_handles_labels()[1]
    made.suptitle("")
    legend = [(name, _sample(tuple(style.items()))) for name, style in zip(names, charts.styles())]
    return [_save(made, axes, Path(f"{stem}-{k}.svg")) for k, axes in enumerate(_groups(made), 1)], title, legend


def _figure(args, sizes):
    """Return the figure that the command would write, laid out for panels."""
    figures = []
    make = curves.draw_class_curves if "cls_loss" in args else curves.draw_box_curves
    with mock.patch.object(charts, "save", lambda figure, *_: figures.append(figure)):
        make(arms(args, args.get("task")), None, *([sizes] if sizes else []))
    (made,) = figures
    grid = made.axes[0].get_subplotspec().get_gridspec()
    for legend in list(made.legends):
        legend.remove()
    made.set_size_inches(WIDTH * grid.ncols, HEIGHT * grid.nrows)
    return made


def _groups(made):
    """Lay the figure out for good, and return the axes of each loss and its gradient, row by row."""
    made.canvas.draw()
    made.set_layout_engine("none")
    groups = {}
    for axes in made.axes:
        slot = axes.get_subplotspec()
        groups.setdefault((slot.rowspan.start // ROWS, slot.colspan.start), []).append(axes)
    return [groups[key] for key in sorted(groups)]


def _save(made, shown, file):
    """Write some of the axes alone."""
    for axes in made.axes:
        axes.set_visible(axes in shown)
    box = Bbox.union([axes.get_tightbbox(made.canvas.get_renderer()) for axes in shown])
    inches = box.transformed(made.dpi_scale_trans.inverted()).padded(0.06)
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(SAME_FILE_EACH_TIME):
        made.savefig(file, bbox_inches=inches, metadata={"Date": None})
    return file


@cache
def _sample(style):
    """Return a piece of a line as data URI."""
    figure, data = Figure(figsize=(0.5, 0.16)), io.BytesIO()
    figure.add_artist(Line2D([0.04, 0.5, 0.96], [0.5] * 3, markevery=[1], **dict(style)))
    with matplotlib.rc_context(SAME_FILE_EACH_TIME):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(data.getvalue()).decode()}"
