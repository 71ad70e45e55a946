# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where PyInstaller finds our hook (entry point ``pyinstaller40``)."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """Return the folders that hold hooks for PyInstaller."""
    return [str(Path(__file__).parent)]
