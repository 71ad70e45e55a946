# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html of a comparison."""

import json
import re

import pytest
from PIL import Image

from tests.browser import Browser, needs_chromium
from tests.tools.test_compare_plots import effect, history
from yolo_lossplug.tools.compare import answer, differ, summary
from yolo_lossplug.tools.compare import command as compare
from yolo_lossplug.tools.compare import page as compare_page
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, Job
from yolo_lossplug.tools.compare.page import conclusions
from yolo_lossplug.tools.compare.significance import BETTER, NOISE, WORSE
from yolo_lossplug.tools.compare.tables import spread, tables

MAP, MAP50 = "metrics/mAP50-95(B)", "metrics/mAP50(B)"
ARMS = ["ciou", "eiou", "focal-eiou focal_gamma=0.3"]
VALUES = dict(zip(ARMS, (0.3, 0.32, 0.301)))
HEADER = ["`lossplug compare data=coco128.yaml loss=ciou,eiou,focal-eiou`", "yolo-lossplug 0.1.0 · cpu"]


def result(arm, seed, folder):
    """What a run gives; seeds differ, and arms do not quite differ alike."""
    value = VALUES[arm] + 0.001 * seed + 0.0005 * ((ARMS.index(arm) + 1) * seed % 3)
    return {
        "metrics": {MAP: value, MAP50: value + 0.2},
        "losses": {"val/box_loss": 1.0 + value},
        "seconds": 20 + seed,
        "save_dir": str(folder),
        "versions": "a",
    }


def finished(arm, seed, directory):
    """A job that has finished, with a history."""
    job = Job(arm, seed, directory / "runs" / f"{arm}-{seed}", {})
    job.folder.mkdir(parents=True)
    job.result.write_text(json.dumps(result(arm, seed, job.folder)))
    rows = [{"time": 2.0, **row, "lr/pg0": 0.1} for row in history(9, VALUES[arm], 0.01 * seed)]
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (job.folder / "results.csv").write_text("\n".join(lines))
    job.state = FINISHED
    return job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of 3 losses with 4 seeds, one run of which has failed."""
    folder = tmp_path_factory.mktemp("comparison")
    jobs = [finished(arm, seed, folder) for seed in range(4) for arm in ARMS]
    failed = Job("eiou", 4, folder / "runs" / "failed", {})
    failed.state, failed.reason = FAILED, "RuntimeError: out of luck <b>"
    summary.write([*jobs, failed], folder, HEADER)
    return folder


def html_of(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_order_of_the_report(folder):
    html = html_of(folder)
    parts = ("is better than", "Difference of mAP50-95 from", "data:image/png", ">Metrics<", "Losses after the last")
    parts += ("Noise and power", "Learning curves", "data:image/png", "Failed runs", "out of luck &lt;b&gt;", "0.1.0")
    body = html[html.index("<header>") :]
    body = body[: body.index("<nav")] + body[body.index("</nav>") :]
    at = 0
    for part in parts:
        at = body.index(part, at + 1)
    assert "<code>lossplug compare data=coco128.yaml loss=ciou,eiou,focal-eiou</code>" in body
    assert "12 of 13 runs finished" in body and "standard deviation of 0.0014 over 4 seeds" in body
    assert "Where they differ" not in html and html.count("<h2>Metrics") == 1
    assert str(folder) not in html, "it may be given to others"


def test_plots(folder):
    for name in ("curves.png", "forest.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500 and len(picture.convert("L").getcolors(256)) > 5


def test_conclusions():
    effects = [effect("b", -0.02, -0.03, -0.01, WORSE), effect("c", 0.01, 0.004, 0.02, BETTER)]
    effects += [effect("d", 0.001, -0.01, 0.02, NOISE), effect("e", None, None, None, NOISE)]
    assert conclusions(effects, "a", "mAP") == [
        "`c` is better than `a` in mAP: +0.0100 (+0.0040 to +0.0200, 5 seeds).",
        "`b` is worse than `a` in mAP: -0.0200 (-0.0300 to -0.0100, 5 seeds).",
        "Within noise, which does not prove equality: `d`.",
    ]
    assert conclusions([], "a", "mAP") == []


def row(arm, measure, mean, **more):
    empty = dict.fromkeys(("sd", "difference", "low", "high"))
    return {"loss": arm, "measure": measure, "seeds": 3, "mean": mean, **empty, **more}


def test_tables():
    difference = {"difference": 0.02, "low": -0.01, "high": 0.05}
    rows = [row(arm, name, 0.5) for name in (MAP, "AP_small", "AP_dog", f"test/{MAP}", "val/box_loss") for arm in "ab"]
    rows += [row("a", "seconds", 12.34, sd=1.0), row("a", MAP50, 0.6, sd=0.01), row("b", MAP50, 0.7, **difference)]
    rows += [row("b", "AP_large", None)]
    made = {(table.heading, table.header[0]): table for table in tables(rows, MAP, summary.label, "note")}
    assert list(made["Metrics", "loss"].header) == ["loss", "mAP50-95", "mAP50", "seconds"]
    assert made["Metrics", "loss"].rows == [
        ["`a`", "0.5000", "0.6000 ± 0.0100", "12.3 ± 1.0"],
        ["`b`", "0.5000", "0.7000", None],
    ]
    assert made["Metrics", "metric"].rows == [["mAP50", "`b`", "+0.0200", "-0.0100", "+0.0500"]]
    assert made["Average precision by size", "size"].rows == [["small", "0.5000", "0.5000"], ["large", None, None]]
    assert made["Average precision by class", "class"].rows == [["dog", "0.5000", "0.5000"]]
    assert len(made["Test split", "metric"].rows) == 1
    assert made["Losses after the last epoch", "loss"].note == "note" and len(made) == 6
    assert tables([], "", summary.label) == [] and spread(None) is None


def test_nothing_is_drawn_or_compared_when_nothing_was_learnt(tmp_path, monkeypatch):
    monkeypatch.setitem(VALUES, "ciou", 0.0)
    jobs = [finished("ciou", 0, tmp_path), finished("eiou", 0, tmp_path)]
    for job in jobs:
        nothing = {"metrics": {MAP: 0.0, MAP50: 0.0}}
        job.result.write_text(json.dumps({**result(job.arm, 0, job.folder), **nothing}))
        (job.folder / "results.csv").write_text(f"epoch,{MAP},lr/pg0\n1,0.0,0.01\n")
    summary.write(jobs, tmp_path, HEADER)
    assert "nothing has been learnt yet" in html_of(tmp_path) and "Difference of" not in html_of(tmp_path)
    assert "<img" not in html_of(tmp_path) and not list(tmp_path.glob("*.png"))


def test_no_run_has_finished(tmp_path):
    summary.write([Job("ciou", 0, tmp_path / "a", {})], tmp_path, HEADER)
    assert "No run has finished yet" in html_of(tmp_path) and "0 of 1 runs finished" in html_of(tmp_path)
    assert not re.findall("<img|<table|<h2", html_of(tmp_path))


def test_images_on_which_losses_differ_are_shown_where_they_are(folder, tmp_path):
    (tmp_path / "differ-b-seed2.png").write_bytes((folder / compare_page.CURVES).read_bytes())
    pictures = [(arm, 2, tmp_path / f"differ-{arm}-seed2.png") for arm in "bc"]
    report = compare_page.Report("a", "mAP", [], "1 of 1 runs finished.", pictures=pictures)
    html = compare_page.write(report, tmp_path).read_text(encoding="utf-8")
    assert "Where they differ" in html and html.count("data:image/jpeg") == 1
    assert "<code>a</code> and <code>b</code>, seed 2" in html and str(tmp_path) not in html


def test_where_they_differ_is_of_the_losses_and_seeds_compared(tmp_path, monkeypatch):
    """Another picture in the folder, of a loss that is not compared any more, is not shown."""
    jobs = [finished(arm, seed, tmp_path) for arm in ("ciou", "eiou") for seed in (1, 2)]
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "#88aa88").save(photo)
    for job in jobs:
        hits = [True, job.arm == "eiou"]
        boxes = {"hits": [[5, 5, 20, 20]], "misses": [], "alarms": [], "is_hit": hits, "shape": [64, 64], "pad": [0, 0]}
        (job.folder / differ.FILE).write_text(json.dumps({"score": 0.5, "names": {}, "images": {str(photo): boxes}}))
    (tmp_path / "differ-siou-seed0.png").write_bytes(photo.read_bytes())
    summary.write_differing(jobs, tmp_path)
    summary.write(jobs, tmp_path, HEADER)
    assert [file.name for file in tmp_path.glob("differ-eiou*.png")] == ["differ-eiou-1.png"]
    html = html_of(tmp_path)
    assert html.count("data:image/jpeg") == 1 and "seed 1: the validation images" in html
    told = []
    monkeypatch.setattr(compare, "say", told.append)
    photo.unlink()
    compare._write_differing(jobs, tmp_path)
    summary.write(jobs, tmp_path, HEADER)
    assert "photo.png" in told[0] and "Where they differ" not in html_of(tmp_path)


def test_level_and_power_stand_in_the_table_of_differences(folder, tmp_path):
    heads = re.findall(r"<th scope=\"col\"[^>]*><button>([^<]+)</button>", html_of(folder))
    columns = ["loss", "difference", "from", "to", "level", "seeds", "verdict"]
    assert heads[:9] == [*columns, "detectable", "seeds needed"]
    assert ">97.5 %<" in html_of(folder) and "Holm" in html_of(folder)
    summary.write([finished(arm, 0, tmp_path) for arm in ARMS[:2]], tmp_path, HEADER)
    html = html_of(tmp_path)
    assert ">level<" not in html and ">detectable<" not in html and ">no verdict<" in html
    assert "No verdict, which takes at least 3 common seeds: <code>eiou</code>." in html


def test_summaries_hold_date_hardware_and_size_of_the_data_and_no_folders(tmp_path):
    own = tmp_path / "own.py:broken"
    jobs = [finished("ciou", seed, tmp_path) for seed in range(2)]
    val = {"images": 32, "objects": 190, "small": 100, "medium": 90, "large": 0}
    more = {"hardware": "cpu, 2 cores", "train": {"images": 96, "objects": 582}, "data": val}
    job = jobs[1]  # the other one is of an earlier version
    job.result.write_text(json.dumps({**json.loads(job.result.read_text()), **more}))
    failed = Job(str(own), 0, tmp_path / "runs" / "own", {}, FAILED, f"OSError: {own} is out of luck")
    summary.write([*jobs, failed], tmp_path, [HEADER[0], "2026-01-31 · yolo-lossplug"])
    data = "Data: train 96 images, 582 objects; val 32 images, 190 objects (100 small, 90 medium, 0 large)"
    for name in ("summary.md", "summary.tex", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert all(part in text for part in ("2026-01-31", "Hardware: cpu, 2 cores", data)), name
        assert str(tmp_path) not in text, name
    assert "OSError: own.py:broken is out of luck" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    lines = (tmp_path / "summary.tex").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("% ") for line in lines[: lines.index(r"\begin{tabular}{lrrrl}")])
    assert answer._escaped(r"a_b {50%} x^2 ~ \c") == (
        r"a\_b \{50\%\} x\textasciicircum{}2 \textasciitilde{} \textbackslash{}c"
    )


@needs_chromium
def test_a_browser_shows_it(folder):
    with Browser() as browser:
        for width in (1280, 390):
            seen = browser.measure(folder / "report.html", width)
            assert seen["overflow"] == [] and seen["errors"] == [] and seen["requests"] == []
            assert len(seen["pictures"]) == 2 and min(seen["pictures"]) > 500
