# SPDX-License-Identifier: AGPL-3.0-or-later
"""What pages say of stored comparisons is what a calculation of its own makes of the runs."""

import csv
import json
import re
import shlex
from importlib import import_module
from itertools import count

import numpy as np
import pytest

from tests.runs import ROOT
from yolo_lossplug import charts
from yolo_lossplug.tools.compare.command import plan_of
from yolo_lossplug.tools.inspect import advice as inspect_advice
from yolo_lossplug.ultralytics_hook.console import parse

DOCS, STORED = ROOT / "docs", ROOT / "benchmarks" / "results" / "troubles"
MAP = "metrics/mAP50-95(B)"
EFFECT = re.compile(r"`([^`]+)` is (better|worse|within noise), ([-+]0\.\d{4}) \(([-+]0\.\d{4}) to ([-+]0\.\d{4})\)")
TITLES = {"tiny": "Tiny objects", "plain": "Nothing in particular", "rare": "A rare class"}
ARMS = {
    "plain": {"ciou": {"loss": "ciou"}, "eiou": {"loss": "eiou"}},
    "tiny": {
        "ciou": {"loss": "ciou"},
        "nwd": {"loss": "nwd"},
        "tal_min_side=32": {"tal_min_side": 32},
        "inner-ciou inner_ratio=1.2": {"loss": "inner-ciou", "inner_ratio": 1.2},
    },
    "rare": {"ciou": {"loss": "ciou"}, "cls_weights=[1.0, 1.0, 2.5]": {"cls_weights": [1.0, 1.0, 2.5]}},
}
SHIFTS = {"nwd": 0.1, "tal_min_side=32": -0.1, "cls_weights=[1.0, 1.0, 2.5]": 0.02}
"""True differences of made-up runs, whose differences deviate by about 0.014."""
CHOOSE = """| You have | Try | Because |
|---|---|---|
| nothing in particular | `loss=ciou` | stock |
| very small objects | `loss=nwd`, `loss=gcd`, `loss=inner-ciou inner_ratio=1.2` | the IoU is 0 |
| rare classes | `cls_weights=[1,2.5,1]` | the class term |

"""


@pytest.fixture(scope="module")
def measured():
    """The module that makes what pages say of measurements."""
    pytest.importorskip("matplotlib", reason="draws")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield import_module("measured")


def made_up(folder, arms=None, seeds=5):
    """Write runs that nobody has trained, in the format of real ones."""
    rng, troubles = np.random.default_rng(7), {}
    for name, choices in (arms or ARMS).items():
        rows = [
            row(arm, seed, 0.3 + 0.01 * seed + SHIFTS.get(arm, 0) + 0.01 * rng.standard_normal())
            for arm in choices
            for seed in range(seeds)
        ]
        write(folder / f"{name}.csv", rows)
        troubles[name] = about_one(name, choices)
    curves = [
        {"trouble": name, "seed": 100, "epoch": epoch, "mAP50": 1 - 0.9**epoch, "mAP50-95": 0.1}
        for name in troubles
        for epoch in range(1, 21)
    ]
    write(folder / "stock_curves.csv", curves)
    about = {"date": "2026-01-02", "versions": "ours 1, theirs 2", "hardware": "cpu", "model": "small.yaml"}
    about |= {"common": {"epochs": 15, "lr0": 0.005}, "seeds": [*range(seeds)], "troubles": troubles}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def row(arm, seed, value):
    sizes = {"AP_small": value / 2, "AP_medium": value * 2, "AP_large": ""}
    classes = {"AP_circle": value + 0.1, "AP_triangle": value - 0.1}
    return {
        "loss": arm,
        "seed": seed,
        "state": "finished",
        "reason": "",
        "seconds": 9.5,
        MAP: value,
        **sizes,
        **classes,
    }


def about_one(name, choices):
    classes = {"circle": 300, "triangle": 10 if name == "rare" else 290}
    sides = {"median side": 8.0, "smallest side": 4.0, "largest side": 12.0, "median elongation": 1.5}
    objects = {"train images": 96, "train objects": 310, "val images": 64, "val objects": 200} | sides
    objects |= {"median objects per image": 3.0, "train objects per class": classes}
    keys = {"title": TITLES.get(name, name), "data": f"shapes-{name}.yaml", "metric": "mAP50-95"}
    return {**keys, "command": f"python examples/troubles.py {name}", "arms": choices, "objects": objects}


def write(file, rows):
    with file.open("w", newline="", encoding="utf-8") as text:
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def differences(folder, trouble, metric=MAP):
    """Return differences from the first arm by arm, in the order of seeds, read without any code of the project."""
    with (folder / f"{trouble}.csv").open(encoding="utf-8") as text:
        rows = [one for one in csv.DictReader(text) if one["state"] == "finished" and one[metric]]
    values = {}
    for one in rows:
        values.setdefault(one["loss"], {})[one["seed"]] = float(one[metric])
    stock = next(iter(values.values()), {})
    arms = list(values)[1:]
    return {arm: np.array([v - stock[s] for s, v in values[arm].items() if s in stock]) for arm in arms}


def student(values, level):
    stats = pytest.importorskip("scipy.stats", reason="the statistics are checked against it: pip install '.[test]'")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


def holm(pairs):
    """Return the arms that Holm's procedure of p-values decides, of all differences of a trouble."""
    stats = pytest.importorskip("scipy.stats", reason="the statistics are checked against it: pip install '.[test]'")
    ranked = sorted((stats.ttest_1samp(values, 0).pvalue, arm) for arm, values in pairs.items())
    decided = set()
    for remaining, (p, arm) in zip(count(len(ranked), -1), ranked):
        if p > 0.05 / remaining:
            break
        decided.add(arm)
    return decided


def cells(text):
    """Return the rows of the table in a text, by the first cell, each by the head."""
    head, _, *rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    names = [name.strip() for name in head]
    return {one[0].strip(): dict(zip(names, (cell.strip() for cell in one))) for one in rows}


def check_section(measured, folder, trouble, text):
    """Compare a section of the page with what its runs say."""
    pairs, decided = differences(folder, trouble.name), holm(differences(folder, trouble.name))
    table = cells(text)
    assert len(table) == len(pairs) + 1 and len(pairs) > 0
    for arm, values in pairs.items():
        shown = table[f"`{measured.keys_of(trouble.arms[arm])}`"]
        expected = ("better" if values.mean() > 0 else "worse") if arm in decided else "within noise"
        assert shown["verdict"].split(" ", 1)[1] == expected, arm
        assert float(shown["difference"]) == pytest.approx(values.mean(), abs=6e-5)
        level = float(shown["level"].strip(" %")) / 100
        low, high = map(float, shown["interval"].split(" to "))
        check_interval(values, low, high, level)
        for metric in {"AP_small", "AP_medium", "AP_large"} | {name for name in shown if name.startswith("AP_")}:
            of_part = differences(folder, trouble.name, metric).get(arm)
            assert (metric in shown) == (of_part is not None)
            assert of_part is None or float(shown[metric]) == pytest.approx(of_part.mean(), abs=6e-5)
        effect = next(e for e in trouble.effects if e.arm == arm)
        check_power(values, effect.smallest, level)
        assert shown["detectable"] == f"{effect.smallest:.4f}"
        assert (shown["difference"], expected) == (f"{effect.mean:+.4f}", effect.verdict), "the drawn one"


def check_interval(values, low, high, level):
    """It is Student's, or a bootstrap that reaches further towards 0."""
    ends = student(values, level)
    if (low, high) != pytest.approx(ends, abs=2e-4):
        assert low < ends[0] if values.mean() > 0 else high > ends[1]


def check_power(values, smallest, level):
    """Of normal differences with the deviation of these, four in five samples show the smallest one."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(smallest, values.std(ddof=1), (20_000, len(values)))
    half = (student(values, level)[1] - values.mean()) / values.std(ddof=1)
    shown = abs(drawn.mean(1)) > half * drawn.std(1, ddof=1)
    assert shown.mean() == pytest.approx(0.8, abs=0.02)


def check_figure(figure, trouble, pairs):
    """Compare the drawn numbers, and the band, with the runs."""
    (axis,) = figure.axes
    names = [text.get_text().replace("\n", " ") for text in axis.texts if text.get_ha() == "left"]
    assert names == sorted(pairs, key=lambda arm: -pairs[arm].mean())
    points = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
    assert points == pytest.approx([pairs[arm].mean() for arm in names])
    intervals = [list(line.get_xdata()) for line in axis.lines[1:] if len(line.get_xdata()) == 2]
    drawn = {effect.arm: [effect.low, effect.high] for effect in trouble.effects}
    assert intervals == [drawn[arm] for arm in names]
    stock = [result["metrics"][MAP] for (arm, _), result in trouble.results.items() if arm == trouble.baseline]
    (band,) = axis.patches
    box = band.get_extents().transformed(axis.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((-np.std(stock, ddof=1), np.std(stock, ddof=1)))


@pytest.fixture
def figures(monkeypatch):
    """Figures in place of files."""
    drawn = {}
    monkeypatch.setattr(charts, "save", lambda figure, file: drawn.update({file.name: figure}) or file)
    return drawn


def check_all(measured, folder, figures, choose=None):
    """Compare everything that is made of the files in a folder with them."""
    about, troubles = measured.read(folder)
    measured.draw(about, troubles, folder, folder)
    for trouble in troubles:
        pairs = differences(folder, trouble.name)
        text = measured.section(trouble, choose)
        check_section(measured, folder, trouble, text)
        check_figure(figures[measured.picture_of(trouble)], trouble, pairs)
        decided = {
            arm: "within noise" if arm not in holm(pairs) else "better" if values.mean() > 0 else "worse"
            for arm, values in pairs.items()
        }
        said = {keys: (verdict, mean) for keys, verdict, mean, *_ in EFFECT.findall(measured.reading(trouble, choose))}
        assert said == {
            measured.keys_of(trouble.arms[arm]): (decided[arm], f"{values.mean():+.4f}")
            for arm, values in pairs.items()
        }
        line = cells(measured.summary(troubles))[f"[{trouble.title}](#{measured.anchor(trouble)})"]
        for mark, verdict in (("▲", "better"), ("○", "within noise"), ("▼", "worse")):
            shown = re.findall(r"`[^`]+`", line[f"{mark} {verdict}"])
            mine = [f"`{measured.keys_of(trouble.arms[arm])}`" for arm in pairs if decided[arm] == verdict]
            assert shown == mine
        check_commands(text)
    check_curves(figures["troubles-curves.png"], folder, about, troubles)
    return troubles


def check_commands(text):
    (block,) = re.findall(r"```bash\n(.*?)\n```", text, re.DOTALL)
    ours, yours = block.splitlines()
    assert ours.startswith("python examples/troubles.py ")
    assert len(plan_of(parse(shlex.split(yours)[2:])).arms) == len(cells(text))


def check_curves(figure, folder, about, troubles):
    """Compare the drawn curves with the table."""
    (axis,) = figure.axes
    curves, (mark,) = axis.lines[:-1], axis.lines[-1:]
    assert list(mark.get_xdata()) == [about["common"]["epochs"]] * 2
    with (folder / "stock_curves.csv").open(encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert [line.get_label() for line in curves] == [trouble.title for trouble in troubles]
    for line, trouble in zip(curves, troubles):
        of_one = [one for one in rows if one["trouble"] == trouble.name]
        assert list(line.get_xdata()) == [int(one["epoch"]) for one in of_one]
        assert list(line.get_ydata()) == [float(one["mAP50"]) for one in of_one]
        assert all(int(one["seed"]) >= 100 for one in of_one), "pilots have other seeds than reported runs"
    assert not {int(one["seed"]) for one in rows} & set(about["seeds"])


def test_made_up_runs(measured, figures, tmp_path):
    plain, tiny, rare = check_all(measured, made_up(tmp_path), figures, CHOOSE)
    text = measured.section(tiny, CHOOSE)
    assert "**The advice is confirmed for `loss=nwd`, neither confirmed nor contradicted for" in text
    assert "of what was tried besides, `tal_min_side=32` is worse.**" in text
    assert "Not measured: `loss=gcd`." in text
    assert measured.reading(plain, CHOOSE).startswith(
        "**Nothing was shown to help or to harm.** Advice says `loss=ciou`."
    )
    assert "AP_triangle" in measured.differences(rare) and "AP_circle" not in measured.differences(rare)
    assert "AP_triangle" not in measured.differences(tiny) and not measured.rare(tiny)
    values = differences(tmp_path, "rare", "AP_triangle")["cls_weights=[1.0, 1.0, 2.5]"]
    mean, low, high = map(float, re.findall(r"[-+]\d\.\d{4}", measured.rare(rare)))
    assert mean == pytest.approx(values.mean(), abs=6e-5)
    check_interval(values, low, high, 0.95)
    assert "`cls_weights=[1,1,2.5]`" in measured.summary([rare])
    assert measured.cell(plain, page=CHOOSE) == "within noise"
    assert measured.counted([plain, tiny]) == (
        "Of 4 comparisons with the stock loss, 1 came out better, 1 worse, and 2 within noise."
    )


def test_contradicted_advice_is_called_so(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(SHIFTS, "nwd", -0.1)
    monkeypatch.setitem(SHIFTS, "tal_min_side=32", 0.0)
    tiny = measured.read(made_up(tmp_path, {"tiny": ARMS["tiny"]}))[1][0]
    assert "**The advice is contradicted for `loss=nwd`, neither" in measured.reading(tiny, CHOOSE)
    assert measured.cell(tiny, page=CHOOSE) == (
        "`loss=nwd` worse; `loss=gcd` not measured; `loss=inner-ciou inner_ratio=1.2` within noise"
    )
    assert measured.cell(tiny, "zh", page=CHOOSE).startswith("`loss=nwd` 更差；`loss=gcd` 未测量；")
    assert measured.cited(tiny, "nwd").startswith("loss=nwd on drawn data, 5 seeds: worse, -0.09")


def test_two_seeds_have_no_verdict_and_a_failed_run_is_told(measured, tmp_path):
    made_up(tmp_path, {"tiny": ARMS["tiny"]}, seeds=2)
    tiny = measured.read(tmp_path)[1][0]
    assert "`loss=nwd` has no verdict, +0." in measured.reading(tiny, CHOOSE)
    assert "no interval" in measured.reading(tiny, CHOOSE)
    lines = (tmp_path / "tiny.csv").read_text(encoding="utf-8").splitlines()
    lines[-1] = "inner-ciou inner_ratio=1.2,1,failed,out of memory,,,,,,,"
    (tmp_path / "tiny.csv").write_text("\n".join(lines), encoding="utf-8")
    assert "1 of 8 runs failed, and are left out." in measured.noise(measured.read(tmp_path)[1][0])


@pytest.fixture(scope="module")
def stored(measured):
    """What the stored runs have in common, and their troubles by name."""
    about, troubles = measured.read(STORED)
    return about, {trouble.name: trouble for trouble in troubles}


PAGE = (DOCS / "troubles.md").read_text(encoding="utf-8")
CITED = {
    "tiny objects": ("tiny", "nwd"),
    "rare classes": ("rare", "cls_weights=[1.0, 1.0, 2.5]"),
    "overlapping objects": ("crowds", "nms_iou=diou"),
    "elongated objects": ("thin", "eiou"),
    "contested anchors": ("crowds", "tal_topk=7"),
}
"""Trouble and arm that stand for a rule of `lossplug inspect`."""


def test_stored_runs(measured, figures):
    about, troubles = measured.read(STORED)
    check_all(measured, STORED, figures)
    assert [trouble.name for trouble in troubles] == list(measured.ADVICE), "all six"
    for trouble in troubles:
        for arm in trouble.arms:
            assert sorted(seed for name, seed in trouble.results if name == arm) == about["seeds"]
        assert len(about["seeds"]) >= 5 and len(trouble.arms) >= 4
    stored = "".join(file.read_text(encoding="utf-8") for file in STORED.iterdir() if file.suffix != ".md")
    assert not re.search(r'(^|[",= ])/\w', stored, re.MULTILINE), "folders of the machine that made them"


def test_the_page_has_every_trouble_and_the_numbers_of_pilots(stored):
    about, troubles = stored
    assert re.findall(r"<!-- generated: trouble (\w+) -->", PAGE) == list(troubles)
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert [title for title in headings if title not in ("Verdicts", "How it was done")] == [
        trouble.title for trouble in troubles.values()
    ]
    has = next(iter(troubles.values())).about["objects"]
    assert (
        f"{has['train images']} images for training" in PAGE and f"{about['common']['epochs']} epochs on a CPU" in PAGE
    )
    assert f"shapes of {about['common']['imgsz']} pixels" in PAGE
    with (STORED / "stock_curves.csv").open(encoding="utf-8") as text:
        curves = {(one["trouble"], int(one["epoch"])): float(one["mAP50"]) for one in csv.DictReader(text)}
    gained = {name: curves[name, 60] - curves[name, about["common"]["epochs"]] for name in troubles}
    most, second = sorted(gained, key=gained.get)[:-3:-1]
    assert most == "thin"
    words = f"gains at most {gained[second]:.3f}, and {gained[most]:.3f} on thin objects"
    assert words in " ".join(PAGE.split())


@pytest.mark.parametrize("rule", CITED)
def test_advice_before_a_training_cites_what_was_measured(measured, stored, rule):
    trouble, arm = CITED[rule]
    (found,) = (one for one in inspect_advice.RULES if one.name == rule)
    assert found.source.endswith(measured.cited(stored[1][trouble], arm)), found.source


def test_no_other_rule_claims_a_measurement():
    assert {rule.name for rule in inspect_advice.RULES if "troubles.md" in rule.source} == set(CITED)


@pytest.mark.parametrize(
    ("file", "language"),
    [("docs/choose.md", "en"), ("docs/zh/choose.md", "zh"), ("README.md", "en"), ("README.zh-CN.md", "zh")],
)
def test_tables_of_advice_say_what_was_measured(measured, stored, file, language):
    """In the row of each trouble; the others say that there is no measurement."""
    english = (ROOT / file.replace("zh/", "").replace(".zh-CN", "")).read_text(encoding="utf-8")
    rows_ = [line.strip("|").split(" | ") for line in table_of((ROOT / file).read_text(encoding="utf-8"))]
    have = [line.strip("| ").split(" | ")[0] for line in table_of(english)]
    assert len(rows_) == len(have) > 7
    told = []
    for title, row_ in zip(have, rows_):
        of_row = [one for one in stored[1].values() if measured.ADVICE[one.name] in title]
        expected = [measured.entry(one, language, file) for one in of_row] or [measured.WORDS[language]["none"]]
        assert [row_[-1].strip()] == expected, title
        told += of_row
    assert len(told) == len(stored[1]) - ("README" in file), "README has no row for nothing in particular"


def table_of(text):
    head = re.search(r"^\| (You have|你的情况) \|.*$", text, re.MULTILINE)
    return text[head.start() :].partition("\n\n")[0].splitlines()[2:]
