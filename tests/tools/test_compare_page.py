# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html of a comparison."""

import json
import re

import pytest
from PIL import Image

from tests.tools.test_compare_plots import effect, history
from yolo_lossplug.tools.compare import differ, report
from yolo_lossplug.tools.compare.comparison import Comparison
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, Job
from yolo_lossplug.tools.compare.report import CURVES, report_of, write_summary
from yolo_lossplug.tools.compare.significance import BETTER, NO_VERDICT, NOISE, WORSE
from yolo_lossplug.tools.report import Table

MAP, MAP50 = "metrics/mAP50-95(B)", "metrics/mAP50(B)"
ARMS = ["ciou", "eiou", "focal-eiou focal_gamma=0.3"]
VALUES = dict(zip(ARMS, (0.3, 0.32, 0.301)))
COMMAND = "lossplug compare data=coco128.yaml loss=ciou,eiou,focal-eiou"
MORE = {"command": COMMAND, "foot": ["yolo-lossplug 0.1.0 · cpu"]}


def result(arm, seed, folder):
    """What a run gives; seeds differ, and arms do not quite differ alike."""
    value = VALUES[arm] + 0.001 * seed + 0.0005 * ((ARMS.index(arm) + 1) * seed % 3)
    return {
        **{"metrics": {MAP: value, MAP50: value + 0.2}, "losses": {"val/box_loss": 1.0 + value}, "seconds": 20 + seed},
        **{"save_dir": str(folder), "versions": "a"},
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
    write_summary([*jobs, failed], folder, **MORE)
    return folder


def html_of(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_order_of_the_report_and_its_plots(folder):
    html = html_of(folder)
    parts = ("is better than", "Difference of mAP50-95 from", "data:image/png", ">Metrics<", "Losses after the last")
    parts += ("Noise and power", "Learning curves", "data:image/png", "Failed runs", "out of luck &lt;b&gt;", "0.1.0")
    body = html[html.index("<header>") :]
    body = body[: body.index("<nav")] + body[body.index("</nav>") :]
    at = 0
    for part in parts:
        at = body.index(part, at + 1)
    assert "<code>lossplug compare data=coco128.yaml loss=ciou,eiou,focal-eiou</code>" in body
    assert "12 of 13 runs finished" in body and "± 0.0014, mean ± standard deviation over 4 seeds" in body
    assert "Where they differ" not in html and html.count("<h2>Metrics") == 1
    assert str(folder) not in html, "it may be given to others"
    for name in ("curves.png", "forest.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500 and len(picture.convert("L").getcolors(256)) > 5


def test_conclusions(monkeypatch):
    effects = [effect("b", -0.02, -0.03, -0.01, WORSE), effect("c", 0.01, 0.004, 0.02, BETTER)]
    effects += [effect("d", 0.001, -0.01, 0.02, NOISE), effect("e", None, None, None, "")]
    effects += [effect("f", 0.1, None, None, NO_VERDICT, seeds=2)]
    monkeypatch.setattr(Comparison, "effects", effects)
    results = {("a", 0): result("ciou", 0, "x")}
    assert Comparison("abcdef", results, MAP).verdicts == [
        "`c` is better than `a` in mAP50-95: +0.0100 (+0.0040 to +0.0200, 5 seeds).",
        "`b` is worse than `a` in mAP50-95: -0.0200 (-0.0300 to -0.0100, 5 seeds).",
        "Within noise, which does not prove equality: `d`.",
        "No verdict, which takes 3 common seeds: `f`.",
    ]


def run_of(value, **more):
    metrics = {MAP: value, MAP50: value + 0.1, f"{MAP50[:-3]}(M)": None}
    sizes = {"AP_small": 0.5, "AP_large": None, "AP_dog": 0.5}
    test = {"metrics": {MAP: 0.5}, "average_precision": {}}
    return {
        "metrics": metrics,
        "average_precision": sizes,
        "test": test,
        "losses": {"val/box_loss": 0.5},
        "seconds": 12.34,
        **more,
    }


def test_tables():
    results = {(arm, seed): run_of(0.5 + (arm == "b") / 50) for arm in "ab" for seed in range(3)}
    results["a", 0]["seconds"] = 15.34
    sections = {section.heading: section.blocks for section in report_of(Comparison("ab", results, MAP)).sections}
    tables = {heading: [b for b in blocks if isinstance(b, Table)] for heading, blocks in sections.items()}
    means, others = tables["Metrics"]
    assert list(means.header) == ["loss", "mAP50-95 box", "mAP50 box", "seconds"]
    assert means.rows == [
        ["`a`", "0.5000 ± 0.0000", "0.6000 ± 0.0000", "13.3 ± 1.7"],
        ["`b`", "0.5200 ± 0.0000", "0.6200 ± 0.0000", "12.3 ± 0.0"],
    ]
    assert others.rows[0] == ["mAP50 box", "`b`", "+0.0200", "+0.0200", "+0.0200"]
    assert [row[0] for row in others.rows] == ["mAP50 box", "AP_small"]
    (by_size,), (by_class,) = tables["Average precision by size"], tables["Average precision by class"]
    assert by_size.rows == [["small", "0.5000 ± 0.0000", "0.5000 ± 0.0000"]] and by_class.rows[0][0] == "dog"
    assert [len(table.rows) for table in tables["Test split"]] == [1]
    assert "on the scale of that loss" in sections["Losses after the last epoch"][1].text


def test_nothing_is_drawn_or_compared_when_nothing_was_learnt(tmp_path, monkeypatch):
    monkeypatch.setitem(VALUES, "ciou", 0.0)
    jobs = [finished("ciou", 0, tmp_path), finished("eiou", 0, tmp_path)]
    for job in jobs:
        nothing = {"metrics": {MAP: 0.0, MAP50: 0.0}}
        job.result.write_text(json.dumps({**result(job.arm, 0, job.folder), **nothing}))
        (job.folder / "results.csv").write_text(f"epoch,{MAP},lr/pg0\n1,0.0,0.01\n")
    write_summary(jobs, tmp_path, **MORE)
    assert "nothing has been learnt yet" in html_of(tmp_path) and "Difference of" not in html_of(tmp_path)
    assert "<img" not in html_of(tmp_path) and not list(tmp_path.glob("*.png"))
    write_summary([Job("ciou", 0, tmp_path / "a", {})], tmp_path, **MORE)
    assert "No run has finished yet" in html_of(tmp_path) and "0 of 1 runs finished" in html_of(tmp_path)
    assert not re.findall("<img|<table|<h2", html_of(tmp_path))


def test_images_on_which_losses_differ_are_shown_where_they_are(folder, tmp_path):
    (tmp_path / "differ-b-seed2.png").write_bytes((folder / CURVES).read_bytes())
    pairs = [differ.DetectionPair(arm, 2, tmp_path, tmp_path / f"{arm}-seed2" / "x") for arm in "bc"]
    html = report_of(Comparison("abc", {}, ""), tmp_path, pairs).html()
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
        (job.folder / differ.DETECTIONS).write_text(
            json.dumps({"score": 0.5, "names": {}, "images": {str(photo): boxes}})
        )
    (tmp_path / "differ-siou-seed0.png").write_bytes(photo.read_bytes())
    write_summary(jobs, tmp_path, **MORE, is_last=True)
    assert [file.name for file in tmp_path.glob("differ-eiou*.png")] == ["differ-eiou-1.png"]
    html = html_of(tmp_path)
    assert html.count("data:image/jpeg") == 1 and "seed 1: the validation images" in html
    told = []
    monkeypatch.setattr(report, "say", told.append)
    photo.unlink()
    write_summary(jobs, tmp_path, **MORE, is_last=True)
    assert "photo.png" in told[0] and "Where they differ" not in html_of(tmp_path)


def test_level_and_power_stand_in_the_table_of_differences(folder, tmp_path):
    heads = re.findall(r"<th scope=\"col\"[^>]*><button>([^<]+)</button>", html_of(folder))
    columns = ["loss", "difference", "from", "to", "verdict", "seeds", "level"]
    assert heads[:9] == [*columns, "detectable", "seeds needed"]
    assert ">97.5 %<" in html_of(folder) and "Holm" in html_of(folder)
    write_summary([finished(arm, 0, tmp_path) for arm in ARMS[:2]], tmp_path, **MORE)
    html = html_of(tmp_path)
    assert ">level<" not in html and ">detectable<" not in html and ">no verdict<" in html
    assert "No verdict, which takes 3 common seeds: <code>eiou</code>." in html


def test_summaries_hold_date_hardware_and_size_of_the_data_and_no_folders(tmp_path):
    own = tmp_path / "own.py:broken"
    jobs = [finished("ciou", seed, tmp_path) for seed in range(2)]
    val = {"images": 32, "objects": 190, "small": 100, "medium": 90, "large": 0}
    more = {"hardware": "cpu, 2 cores", "train": {"images": 96, "objects": 582}, "data": val}
    job = jobs[1]  # the other one is of an earlier version
    job.result.write_text(json.dumps({**json.loads(job.result.read_text()), **more}))
    failed = Job(str(own), 0, tmp_path / "runs" / "own", {}, FAILED, f"OSError: {own} is out of luck")
    write_summary([*jobs, failed], tmp_path, command=COMMAND, foot=["2026-01-31 · yolo-lossplug"])
    data = "Data: train 96 images, 582 objects; val 32 images, 190 objects (100 small, 90 medium, 0 large)"
    for name in ("summary.md", "summary.tex", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert all(part in text for part in ("2026-01-31", "Hardware: cpu, 2 cores", data)), name
        assert str(tmp_path) not in text, name
    assert "OSError: own.py:broken is out of luck" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    lines = (tmp_path / "summary.tex").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("% ") for line in lines[: lines.index(r"\begin{tabular}{lrrllll}")])
    table = Table([r"a_b {50%} x^2 ~ \c", "n"], [["x", "0.5 ± 0.1"]])
    assert r"a\_b \{50\%\} x\textasciicircum{}2 \textasciitilde{} \textbackslash{}c & n \\" in table.latex()
    assert r"x & $0.5 \pm 0.1$ \\" in table.latex()


def test_a_browser_shows_it(folder, measure):
    for width in (1280, 390):
        seen = measure(folder / "report.html", width)
        assert seen["overflow"] == [] and seen["errors"] == [] and seen["requests"] == []
        assert len(seen["pictures"]) == 2 and min(seen["pictures"]) > 500
