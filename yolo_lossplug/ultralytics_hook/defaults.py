# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our keys in what `yolo help` and `yolo cfg` print, and in the file that `yolo copy-cfg` writes.

Imported while Ultralytics is, and so this module imports nothing of it before a function is called.
"""

from __future__ import annotations

import functools
import textwrap
from pathlib import Path
from typing import Any, Callable

from yolo_lossplug import catalogue, terminal
from yolo_lossplug.selection.keys import keys

HELP = """
    Train with other losses, by the keys of yolo-lossplug
        yolo train data=coco8.yaml model=yolo26n.pt loss=eiou cls_loss=qfl

        All losses: lossplug list
        All keys: the end of 'yolo cfg', and of the copy of 'yolo copy-cfg'
    """
ABOUT = """\
Unset, these keys change nothing. Beside each are its default, what it may be, and in parentheses the losses that it
belongs to. `lossplug list` prints the losses. Ultralytics without yolo-lossplug refuses these keys.\
"""


def with_ours(stock: str) -> str:
    """Return the help of `yolo` with a paragraph about our keys."""
    return f"{stock.rstrip()}\n{HELP}"


def section(columns: int = 120) -> str:
    """Return our keys in YAML, all unset, with comments that are broken at a width."""
    comments = catalogue.comments()
    entries = [
        _commented(f"{key}:{'' if unset is None else f' {unset}'} # {comments[key]}", columns)
        for key, unset in sorted(keys().items(), key=lambda item: list(comments).index(item[0]))
    ]
    return "\n".join([f"{'# yolo-lossplug ':-<{columns}}", _commented(f"# {ABOUT}", columns), *entries, ""])


def _commented(text: str, columns: int) -> str:
    indent = "# " if text.startswith("#") else "    # "
    return textwrap.fill(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# Wrappers around host functions.


def printing(stock: Any) -> Any:
    """Return a class like the host's, whose `print` adds our keys."""
    return type(stock.__name__, (stock,), {"print": staticmethod(functools.partial(print_yaml, stock.print))})


def print_yaml(stock: Callable[..., None], file: Any, *args: Any, **kwargs: Any) -> None:
    """Print a file, and our keys after the host's defaults."""
    from ultralytics.utils import DEFAULT_CFG_PATH, LOGGER

    stock(file, *args, **kwargs)
    if file == DEFAULT_CFG_PATH:
        LOGGER.info(section(terminal.width()))


def copy_default_cfg(stock: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Copy the host's defaults into the working folder, with our keys after them."""
    from ultralytics.utils import DEFAULT_CFG_PATH

    from yolo_lossplug.ultralytics_hook.console import say

    stock(*args, **kwargs)
    copy = Path.cwd() / DEFAULT_CFG_PATH.name.replace(".yaml", "_copy.yaml")
    if copy.is_file():
        with copy.open("a", encoding="utf-8") as file:
            file.write(f"\n{section()}")
        say(f"the keys of yolo-lossplug are at the end of {copy.name}, unset")
