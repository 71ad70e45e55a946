# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which releases of Ultralytics are supported."""

from __future__ import annotations

import re

FLOOR, CEILING = (8, 3, 0), (8, 5)
TESTED = (8, 4, 190)
"""The newest release that the tests were run with."""


def version_numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers that can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def unsupported(version: str) -> str:
    """Return why a release is not supported, empty if it is."""
    if FLOOR <= version_numbers(version) < CEILING:
        return ""
    return (
        f"ultralytics {version} is not supported; yolo-lossplug works with >={'.'.join(map(str, FLOOR))}, "
        f"<{'.'.join(map(str, CEILING))}: install one of these, or a newer yolo-lossplug"
    )
