# SPDX-License-Identifier: AGPL-3.0-or-later
"""The README tells the truth, in English and in Chinese, and so do the pages that quote measurements."""

import re

import pytest
import yaml

from tests.runs import ROOT
from yolo_lossplug import LossPlugError
from yolo_lossplug.catalogue import losses_markdown
from yolo_lossplug.registry import REGISTRY
from yolo_lossplug.selection.select import select

README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_names_papers_and_messages_are_real():
    """New ones are added at a release: a loss is a file and an oracle."""
    (line,) = [line for line in README.splitlines() if line.startswith("Names:")]
    named = set(re.findall(r"`([\w-]+)`", line))
    assert len(named) > 30 and named <= {spec.name for spec in REGISTRY}
    papers = set(re.findall(r"https://(?:arxiv|doi)[^)]+", README))
    assert len(papers) > 9 and papers <= set(re.findall(r"https://[^)]+", losses_markdown()))
    for given in ({"focal_gamma": 0.5}, {"loss": "eiuo"}):
        with pytest.raises(LossPlugError) as caught:
            select(given)
        (line,) = [line for line in README.splitlines() if line.startswith(f"LossPlug: {next(iter(given))}=")]
        assert str(caught.value).startswith(line.removeprefix("LossPlug: ").removesuffix("..."))


@pytest.mark.parametrize("file", ["README.md", "docs/choose.md"])
def test_what_is_suggested_is_accepted(file):
    table = (ROOT / file).read_text(encoding="utf-8").partition("| You have |")[2].partition("\n\n")[0]
    suggested = [(row, keys) for row in table.splitlines()[2:] for keys in re.findall(r"`([^`]*=[^`]*)`", row)]
    assert len(suggested) > 12
    for row, keys in suggested:
        given = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in keys.split())}
        assert select({**given, "task": "obb" if "(obb)" in row else "detect"}).given == set(given)


def test_the_loss_of_ones_own_is_registered_as_written(registry):
    code = README.partition("## Your own loss\n\n```python\n")[2].partition("```")[0]
    exec(compile(code, "README", "exec"), {"__name__": "readme"})
    assert select({"loss": "scaled-l1", "l1_scale": 2.0}).resolved()["l1_scale"] == 2.0


@pytest.mark.parametrize(("file", "least"), [("README.md", 3), ("docs/performance.md", 9)])
def test_figures_of_speed_are_those_measured(file, least):
    text = (ROOT / file).read_text(encoding="utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and line.count(" / ") > 2 and "stock /" not in line
    ]
    results = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks" / "results").glob("*.md"))
    assert len(rows) >= least
    assert all(row in results for row in rows)


def test_links_and_commands_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            file, _, anchor = target.partition("#")
            if file.startswith("https://"):
                continue
            assert (page.parent / file).exists(), f"{page.name}: {target}"
            there = (page.parent / file).read_text(encoding="utf-8") if anchor and file else text
            assert not anchor or anchor in map(heading, there.splitlines()), f"{page.name}: {target}"
    for page in PAGES:
        for file in re.findall(r"\b(?:configs|examples)/[\w./-]+\.(?:yaml|py)", page.read_text(encoding="utf-8")):
            assert (ROOT / file).is_file(), f"{page.name}: {file}"


def heading(line):
    words = re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower())
    return words.replace(" ", "-") if line.startswith("#") else None


def blocks(text):
    return re.findall(r"```.*?```", text, re.DOTALL)


def rows(text):
    return [line for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines() if line.startswith("|")]


def original(target):
    return target.replace("docs/zh/losses.md", "docs/losses/index.md").replace("docs/zh/", "docs/")


def facts(line):
    """Return what no translation changes in a line: code and links; and numbers outside of these."""
    code, links = re.findall(r"`[^`]+`", line), map(original, re.findall(r"\]\(([^)]+)\)", line))
    rest = re.sub(r"`[^`]+`|\([^)]+\)", "", line)
    return sorted(code), sorted(links), sorted(re.findall(r"\d+(?:\.\d+)?", rest))


def test_the_chinese_readme_says_the_same():
    assert blocks(CHINESE) == blocks(README)
    levels = [[line.split()[0] for line in text.splitlines() if line.startswith("#")] for text in (README, CHINESE)]
    assert levels[0] == levels[1]
    assert len(rows(CHINESE)) == len(rows(README))
    for chinese, english in zip(rows(CHINESE), rows(README)):
        assert facts(chinese)[:2] == facts(english)[:2], chinese
        assert chinese.count("|") == english.count("|"), chinese
    for english in (row for row in rows(README) if " / " in row and "stock" in row and "MiB" not in row):
        assert english in CHINESE, "measurements are not translated"
    links = {target for target in re.findall(r"\]\(([^)]+)\)", README) if "README" not in target and "#" not in target}
    assert links <= set(map(original, re.findall(r"\]\(([^)]+)\)", CHINESE)))
    prose = [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in (README, CHINESE)]
    assert set(re.findall(r"`[^`\n]+`", prose[0])) <= set(re.findall(r"`[^`\n]+`", prose[1]))
