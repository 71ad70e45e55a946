# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which releases of Ultralytics are supported."""

from __future__ import annotations

import re

FLOOR, CEILING = (8, 3, 0), (8, 5)


def unsupported(version: str) -> str:
    """Return why a release is not supported, empty if it is.

    Args:
        version: ``ultralytics.__version__``.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if FLOOR <= numbers < CEILING:
        return ""
    return (
        f"ultralytics {version} is not supported; yolo-lossplug works with >={'.'.join(map(str, FLOOR))}, "
        f"<{'.'.join(map(str, CEILING))}: install one of these, or a newer yolo-lossplug"
    )
