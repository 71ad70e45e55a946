# SPDX-License-Identifier: AGPL-3.0-or-later
"""What pages and `lossplug inspect` say of the stored runs is what NumPy and SciPy make of them, without our code."""

import csv
import json
import re
from importlib import import_module

import numpy as np
import pytest

from tests.runs import ROOT

STORED, CITED = ROOT / "benchmarks/results/problems", ROOT / "yolo_lossplug/tools/inspect/measured.csv"
PROBLEMS = json.loads((STORED / "about.json").read_text(encoding="utf-8"))["problems"]
VERDICTS = ("better", "worse", "within noise", "not measured")
WORDS = dict(zip((*VERDICTS, "更好", "更差", "在噪声范围内", "未测量"), 2 * VERDICTS))


def table(file):
    return [*csv.DictReader(file.read_text(encoding="utf-8").splitlines())]


def measured(name):
    """Return verdict, mean and Student's interval by arm, decided by Holm's procedure."""
    values = {}
    for row in table(STORED / f"{name}.csv"):
        values.setdefault(row["loss"], []).append(float(row["metrics/mAP50-95(B)"]))
    return decided({arm: np.subtract(of_arm, values["ciou"]) for arm, of_arm in values.items() if arm != "ciou"})


def decided(pairs):
    """Return verdict, mean and Student's interval of paired differences by arm, decided by Holm's procedure."""
    stats = pytest.importorskip("scipy.stats", reason="the statistics are checked against it: pip install '.[test]'")
    found = {}
    while left := [arm for arm in pairs if arm not in found]:
        level = 1 - 0.05 / len(left)
        sure = [arm for arm in left if stats.ttest_1samp(pairs[arm], 0).pvalue < 1 - level]
        for arm in sure or left:
            mean, error, freedom = pairs[arm].mean(), stats.sem(pairs[arm]), len(pairs[arm]) - 1
            verdict = VERDICTS[int(mean < 0)] if sure else "within noise"
            found[arm] = (verdict, mean, *stats.t.interval(level, freedom, mean, error))
    return found


@pytest.mark.parametrize("name", PROBLEMS)
def test_summaries_and_the_table_of_inspect(name, monkeypatch):
    text, found = (STORED / f"{name}.md").read_text(encoding="utf-8"), measured(name)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    problems = import_module("problems")
    assert problems.summary(name, problems.comparison_of(name)) == text, "run python benchmarks/problems.py"
    shown = re.findall(r"^\| `(.*)` \| (.*?) \| (.*?) \| (.*?) \| (\D+?) \| 5 \| ", text, re.MULTILINE)
    cited = [[*row.values()][4:] for row in table(CITED) if row["dataset"] == PROBLEMS[name]["data"]]
    assert [arm for arm, *_ in shown] == [*found] == [*PROBLEMS[name]["arms"]][1:]
    assert [numbers for _, *numbers in shown] == cited
    for arm, *ends, verdict in shown:
        assert found[arm] == (verdict, *(pytest.approx(float(end), abs=6e-5) for end in ends))


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/choose.md", "docs/zh/choose.md"])
def test_tables_of_advice(page):
    """Each key has the verdict of the arm with that key, whatever its number; keys without an arm are not measured."""
    text, linked = (ROOT / page).read_text(encoding="utf-8"), []
    for tried, cell in re.findall(r"^\| [^|]* \| (`[^|]*`) \| .* \| ([^|]*) \|$", text, re.MULTILINE):
        (name,) = [n for n, p in PROBLEMS.items() if f"#{p['title'].lower().replace(' ', '-')})" in cell] or [""]
        arms = {row["key"]: row["verdict"] for row in table(CITED) if row["dataset"] == f"shapes-{name}.yaml"}
        keys = [key for key in re.findall("`(.*?)`", tried) if key != "loss=ciou"] or [*arms]
        plain = {key: re.sub(r"=(\[.*\]|[\d.]+)", "=", key).split() for key in (*keys, *arms)}
        expected = {key: [arms[arm] for arm in arms if plain[arm][: len(plain[key])] == plain[key]] for key in keys}
        parts = re.split("; |；", re.split(r" ?[(（]\[", cell)[0])
        said = [(part, [WORDS[word] for word in WORDS if word in part]) for part in parts]
        told = {key: verdict for part, verdict in said for key in re.findall("`(.*?)`", part) or keys}
        assert told == {key: verdicts or ["not measured"] for key, verdicts in expected.items()}, tried
        linked += [name] if name else []
    assert sorted(linked) == sorted(PROBLEMS.keys() - ({"plain"} if "README" in page else set()))


def test_the_page_counts_the_verdicts():
    better, worse, noise = ([row["verdict"] for row in table(CITED)].count(verdict) for verdict in VERDICTS[:3])
    counts = f"with the stock loss, {better} came out better, {worse} worse, and {noise} within noise"
    assert counts in (ROOT / "docs/problems.md").read_text(encoding="utf-8")


def test_summary_of_regions_and_its_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    regions, stored = import_module("regions"), ROOT / "benchmarks/results/regions.csv"
    rows, text = table(stored), stored.with_suffix(".md").read_text(encoding="utf-8")
    assert regions.summary(rows) == text
    shown, n_shown = {}, 0
    pattern = r"^\| (\w+) \| `(.*)` and `(.*)` \| (.*?) \| (.*?) \| (.*?) to (.*?) \| (.*?) \|$"
    for data, arm, other, measure, *numbers, verdict in re.findall(pattern, text, re.MULTILINE):
        shown.setdefault((data, measure), {})[arm, other] = (
            verdict,
            *(pytest.approx(float(n), abs=6e-4) for n in numbers),
        )
    for (data, measure), arms in shown.items():
        found = decided({pair: difference(rows, data, *pair, measure) for pair in arms})
        assert found == arms
        n_shown += len(arms)
    assert n_shown == 24
    page = (ROOT / "docs/regions.md").read_text(encoding="utf-8")
    assert all(line in page for line in text.splitlines() if re.match(r"\| \w+ \| [\w ]+ \| \d \|", line))


def difference(rows, data, arm, other, measure):
    """Return the differences of two arms by seed, higher is better."""

    def value(row):
        recall, precision = float(row["recall"]), float(row["precision"])
        derived = {
            "F1": 2 / (1 / recall + 1 / precision),
            "calibration gap": -abs(precision - float(row["confidence"])),
        }
        return derived[measure] if measure in derived else float(row[measure])

    mine = {(row["arm"], row["seed"]): value(row) for row in rows if row["data"] == data}
    seeds = sorted(seed for name, seed in mine if name == arm)
    return np.array([mine[arm, seed] - mine[other, seed] for seed in seeds])
