# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html of a comparison."""

import re

import pytest

from tests.browser import Browser, needs_chromium
from tests.tools.test_compare_plots import effect, history
from yolo_lossplug.tools import compare_page
from yolo_lossplug.tools.compare_page import Report, Table
from yolo_lossplug.tools.compare_plots import draw_curves, draw_forest
from yolo_lossplug.tools.significance import BETTER, NOISE

EFFECTS = [effect("eiou", 0.0123, 0.004, 0.0206, BETTER), effect("focal-eiou", -0.002, -0.009, 0.005, NOISE)]
CLASSES = [[f"class {k}", *(0.5 + 0.01 * k for _ in range(9))] for k in range(20)]
REPORT = Report(
    baseline="ciou",
    metric="mAP50-95",
    verdicts=["`eiou` is better than `ciou`: +0.0123.", "`focal-eiou` is within noise."],
    effects=EFFECTS,
    states="14 of 15 runs finished.",
    tables=[
        Table("Average precision", ["size", "ciou", "eiou"], [["small", 0.1, 0.12], ["large", 0.5, None]], "By size"),
        Table("Average precision", ["class", *(f"loss {k}" for k in range(9))], CLASSES, "By class", "Of the best."),
        Table("Gains", ["loss", "box", "cls"], [["ciou", 7.5, 0.5], ["eiou", 7.5, 0.5]]),
    ],
    notes=["The deviation of `ciou` over seeds is 0.0051."],
    failed=[("eiou", 3, "RuntimeError: out of luck <b>")],
    command="lossplug compare data=coco128.yaml model=yolov8n.yaml loss=ciou,eiou,focal-eiou",
    foot=["yolo-lossplug 0.1.0", "2026-11-25"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the report and its plots."""
    folder = tmp_path_factory.mktemp("comparison")
    arms = ["ciou", "eiou", "focal-eiou"]
    draw_forest(EFFECTS, "ciou", folder / compare_page.FOREST)
    histories = {(arm, seed): history(9, 0.4, 0.01 * seed) for arm in arms for seed in range(2)}
    draw_curves(histories, arms, folder / compare_page.CURVES)
    compare_page.write(REPORT, folder)
    return folder


def test_the_order_of_the_report(folder):
    html = (folder / "report.html").read_text(encoding="utf-8")
    parts = ("is better than", "Difference of mAP50-95 from", "data:image/png", "Average precision", "Gains")
    parts += ("Noise and power", "Learning curves", "Failed runs", "out of luck &lt;b&gt;", "lossplug compare", "2026")
    body = html[html.index("<header>") :]
    body = body[: body.index("<nav")] + body[body.index("</nav>") :]
    places = [body.index(part) for part in parts]
    assert places == sorted(places)
    assert "Where they differ" not in html and html.count("<h2>Average precision") == 1


def test_a_report_of_nothing(tmp_path):
    report = Report("ciou", "mAP50-95", [compare_page.NOTHING_LEARNT], [], "0 of 2 runs finished.")
    html = compare_page.write(report, tmp_path).read_text(encoding="utf-8")
    assert "nothing has been learnt yet" in html and "0 of 2 runs finished" in html
    assert not re.findall("<img|<table|<h2", html)


def test_images_on_which_losses_differ_are_shown_where_they_are(folder, tmp_path):
    (tmp_path / compare_page.WHERE).write_bytes((folder / compare_page.CURVES).read_bytes())
    assert "Where they differ" in compare_page.write(REPORT, tmp_path).read_text(encoding="utf-8")


@needs_chromium
def test_a_browser_shows_it(folder):
    with Browser() as browser:
        for width in (1280, 390):
            seen = browser.measure(folder / "report.html", width)
            assert seen["overflow"] == [] and seen["errors"] == [] and seen["requests"] == []
            assert len(seen["pictures"]) == 2 and min(seen["pictures"]) > 500
