# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that are complete, or as they were, whenever they are read."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional
from uuid import uuid4


@contextmanager
def beside(file: Path) -> Iterator[Path]:
    """Give a name beside a file, and move what is written there over it at the end; its folder is made.

    The name is used once, since several processes may write the same file.

    Raises:
        OSError: If it cannot be written, as on a full disk; it names the file.
    """
    unfinished = file.with_name(f".{uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from None
    finally:
        unfinished.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> Path:
    """Write a file and return it; its folder is made."""
    with beside(file) as unfinished:
        unfinished.write_bytes(content)
    return file


def write_text(file: Path, text: str) -> Path:
    """Write a text in UTF-8, with line ends as they are, and return the file."""
    return write_bytes(file, text.encode("utf-8"))


def write_json(
    file: Path, content: Any, indent: Optional[int] = 2, default: Optional[Callable[[Any], Any]] = None
) -> Path:
    """Write what `json.dumps` makes of a value, and return the file."""
    return write_text(file, f"{json.dumps(content, indent=indent, default=default)}\n")


def read_json(file: Path) -> Any:
    """Return the value in a file.

    Raises:
        OSError: If the file cannot be read, or is none, as a pipe, which would be waited for.
        ValueError: If it does not hold JSON.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(f"{file} is not a regular file")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
