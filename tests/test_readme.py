# SPDX-License-Identifier: AGPL-3.0-or-later
"""The README tells the truth."""

import re

import pytest

from tests.runs import ROOT
from yolo_lossplug import LossPlugError
from yolo_lossplug.cli import markdown
from yolo_lossplug.selection import NAMES, NUMBERS, keys, select

README = (ROOT / "README.md").read_text(encoding="utf-8")


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


def test_figures_of_speed_are_those_measured():
    section = README.partition("## Speed\n")[2].partition("## A loss of your own")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and " / " in line]
    results = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks" / "results").glob("*.md"))
    assert len(rows) > 8
    assert all(row in results for row in rows)
    assert (ROOT / "benchmarks" / "results" / "cost.png").is_file()
