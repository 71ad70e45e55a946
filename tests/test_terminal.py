# SPDX-License-Identifier: AGPL-3.0-or-later
"""Text fits the terminal, and nothing of it is lost."""

import pytest

from yolo_lossplug import terminal

HELP = """\
usage: lossplug thing data=DATA model=MODEL loss=NAME,NAME,... [seeds=3] [key=value ...] and a good deal more

Long prose goes on at the margin, and no word of it is cut in two, however narrow the terminal is that shows it.
  loss=ciou,eiou   every key of ours takes several values, and an option goes to the losses that have it
                   [https://arxiv.org/abs/2101.08158, 2022]
  short            fits\
"""


@pytest.mark.parametrize("columns", [44, 60, 80, 200])
def test_lines_fit_and_words_stay(columns):
    fitted = terminal.fit(HELP, columns)
    assert max(map(len, fitted.splitlines())) <= columns or columns < 60
    assert fitted.split() == HELP.split()
    assert columns < 200 or fitted == HELP


def test_lines_go_on_below_their_column():
    first, second, *_ = terminal.fit("  key=1   a word and another one", 20).splitlines()
    assert first == "  key=1   a word and" and second == "          another"


def test_an_entry_too_wide_for_two_columns_goes_on_below_its_indent():
    first, second = terminal.fit("  a-very-long-entry-that-leaves-no-room   explained", 44).splitlines()
    assert first.startswith("  a-very") and second == "      explained"


@pytest.mark.parametrize(("value", "columns"), [("100", 100), ("12", terminal.MIN_WIDTH), (None, 80)])
def test_the_width_is_that_of_the_terminal(monkeypatch, value, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if value:
        monkeypatch.setenv("COLUMNS", value)
    assert terminal.width() == columns


def test_wide_characters_count_twice():
    assert terminal.cells("损失") == 4 and terminal.cells("a\u0301") == 1
    assert len(terminal.table([["a", "b"], ["损失", "1"]])[0]) == 7
