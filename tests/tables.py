# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables of `docs/compatibility.md`, written by the tests that they tell of."""

import datetime
import platform
import re

import torch

from tests.runs import ROOT

PAGE = ROOT / "docs" / "compatibility.md"


def mark(is_passed):
    return "" if is_passed is None else "✅" if is_passed else "❌"


def write(name, head, rows, what):
    """Put a table between the markers of its name."""
    where = f"{datetime.date.today()} · {what} · torch {torch.__version__} · Python {platform.python_version()}"
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    text = PAGE.read_text(encoding="utf-8")
    made = "\n".join([f"<!-- {name}: begin -->", *lines, "", where, f"<!-- {name}: end -->"])
    found, count = re.subn(f"<!-- {name}: begin -->.*?<!-- {name}: end -->", lambda _: made, text, flags=re.DOTALL)
    assert count == 1, f"{PAGE} has no place for the table of {name}"
    PAGE.write_text(found, encoding="utf-8")
