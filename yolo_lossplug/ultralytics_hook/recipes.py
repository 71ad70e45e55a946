# SPDX-License-Identifier: AGPL-3.0-or-later
"""The recipes and datasets of the package, which `cfg=` and `data=` find by name from any folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Callable

PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """Return the folder of the YAML files: inside an installed package, beside that of a clone."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


@functools.cache
def recipes() -> dict[str, Path]:
    """Return the YAML files by name."""
    return {file.name: file for file in sorted(folder().rglob("*.yaml"))}


def check_file(stock: Callable[..., Any], file: Any, *args: Any, **kwargs: Any) -> Any:
    """Find a file as Ultralytics does, and one of ours where it finds none of that name."""
    if (ours := recipes().get(str(file).strip())) is None or stock(file, hard=False):
        return stock(file, *args, **kwargs)
    return stock(str(ours), *args, **kwargs)
