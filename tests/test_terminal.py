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


def test_lines_and_tables_go_on_below_their_column():
    """And an interval is not broken."""
    first, second, *_ = terminal.fit("  key=1   a word and another one", 20).splitlines()
    assert first == "  key=1   a word and" and second == "          another"
    lines = terminal.fit("  one line that is long\n  and another of them", 16).splitlines()
    assert lines == ["  one line that", "      is long", "  and another of", "      them"]
    first, second = terminal.fit("  a-very-long-entry-that-leaves-no-room   explained", 44).splitlines()
    assert first.startswith("  a-very") and second == "      explained"
    lines = terminal.fit("  [0, 1)   an interval is not broken, that of an exponent in [0, ∞)", 65).splitlines()
    assert len(lines) == 2 and lines[1].strip() == "[0, ∞)"
    assert terminal.cells("损失") == 4 and terminal.cells("a\u0301") == 1
    assert len(terminal.table([["a", "b"], ["损失", "1"]])[0]) == 7
    assert terminal.table([["a", "number"], ["b", "–"], ["c", "12"]])[1:] == ["b       –", "c      12"]


def test_lines_have_the_width_of_the_terminal_or_pipe(monkeypatch):
    for value, columns in (("100", 100), ("12", terminal.MIN_WIDTH), (None, 80)):
        monkeypatch.setenv("COLUMNS", value) if value else monkeypatch.delenv("COLUMNS")
        assert terminal.width() == columns
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert max(len(line.encode()) for line in terminal.fit("α ∞ " * 40, 50).splitlines()) <= 50
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert max(map(len, terminal.fit("α ∞ " * 40, 50).splitlines())) > 45
    text = "LossPlug: " + "loss=eiuo is unknown. " * 8
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert terminal.fit_error(text) == text
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert len(terminal.fit_error(text).splitlines()) > 1 and terminal.fit_error(text).split() == text.split()


ROWS = [["name", "first", "second", "third"], ["a", "1.5", "word", "-"], ["long name", "22.25", "w", "7"]]


def test_a_wide_table_goes_on_below():
    wide, narrow = terminal.table(ROWS, columns=40), terminal.table(ROWS, columns=25)
    assert wide[1:] == ["a            1.5  word        -", "long name  22.25  w           7"]
    assert narrow[3] == "" and max(map(len, narrow)) <= 25
    assert narrow[4].split() == ["name", "third"] and narrow[6].split() == ["long", "name", "7"]
