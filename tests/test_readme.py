# SPDX-License-Identifier: AGPL-3.0-or-later
"""The README tells the truth, in English and in Chinese, and so do the pages that quote measurements."""

import re

import pytest

from tests.runs import ROOT
from yolo_lossplug import LossPlugError
from yolo_lossplug.cli import markdown
from yolo_lossplug.selection.keys import NAMES, NUMBERS, keys
from yolo_lossplug.selection.select import select

README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def test_the_table_of_losses_is_current():
    """Renew it with `lossplug list --markdown`."""
    table = README.partition("<!-- losses: begin -->\n")[2].partition("<!-- losses: end -->")[0]
    assert table.strip() == markdown().strip()


def test_every_key_is_named():
    for key in keys():
        assert f"`{key}`" in README or f"`{key}=`" in README, key


def test_defaults_of_other_keys():
    for key in ("cls_smoothing", *NAMES):
        if key in ("loss", "cls_loss"):
            continue
        default = NUMBERS[key].default if key in NUMBERS else NAMES[key]
        assert re.search(rf"\| `{key}` \| `?{default}`? \|", README), key
    numbers = ", ".join(str(NUMBERS[key].default) for key in ("tal_topk", "tal_alpha", "tal_beta"))
    assert f"| `tal_topk`, `tal_alpha`, `tal_beta` | {numbers} |" in README


def test_messages_are_real():
    for given in ({"focal_gamma": 0.5}, {"loss": "eiuo"}):
        with pytest.raises(LossPlugError) as caught:
            select(given)
        (line,) = [line for line in README.splitlines() if line.startswith(f"LossPlug: {next(iter(given))}=")]
        assert str(caught.value).startswith(line.removeprefix("LossPlug: ").removesuffix("..."))


def test_the_loss_of_ones_own_is_registered_as_written(registry):
    code = README.partition("## A loss of your own\n\n```python\n")[2].partition("```")[0]
    exec(compile(code, "README", "exec"), {"__name__": "readme"})
    assert select({"loss": "scaled-l1", "l1_scale": 2.0}).resolved()["l1_scale"] == 2.0


@pytest.mark.parametrize(("file", "least"), [("README.md", 5), ("docs/performance.md", 9)])
def test_figures_of_speed_are_those_measured(file, least):
    text = (ROOT / file).read_text(encoding="utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and line.count(" / ") > 2 and "stock /" not in line
    ]
    results = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks" / "results").glob("*.md"))
    assert len(rows) >= least
    assert all(row in results for row in rows)
    assert (ROOT / "benchmarks" / "results" / "cost.png").is_file()


def test_it_is_short_and_shows_one_picture():
    assert README.count("\n") < 200 and CHINESE.count("\n") < 200
    assert README.count("![") == CHINESE.count("![") == 1


def test_links_lead_somewhere():
    for text in (README, CHINESE):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            assert file.startswith("https://") or not file or (ROOT / file).is_file(), target
            page = (ROOT / file).read_text(encoding="utf-8") if anchor and file else text
            anchors = {heading(line) for line in page.splitlines()} | set(re.findall(r'<a id="([^"]+)"', page))
            assert not anchor or anchor in anchors, target


def heading(line):
    """Return the anchor of a heading, as GitHub makes it."""
    words = re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower())
    return words.replace(" ", "-") if line.startswith("#") else None


def blocks(text):
    return re.findall(r"```.*?```", text, re.DOTALL)


def rows(text):
    return [line for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines() if line.startswith("|")]


def facts(line):
    """Return what no translation changes in a line: code and links; and numbers outside of these."""
    code, links = re.findall(r"`[^`]+`", line), re.findall(r"\]\(([^)]+)\)", line)
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
    assert links <= set(re.findall(r"\]\(([^)]+)\)", CHINESE))
    prose = [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in (README, CHINESE)]
    assert set(re.findall(r"`[^`\n]+`", prose[0])) <= set(re.findall(r"`[^`\n]+`", prose[1]))
