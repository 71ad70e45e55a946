# SPDX-License-Identifier: AGPL-3.0-or-later
"""Kernels run on a GPU where there is one, and in Triton's interpreter elsewhere."""

import pytest

pytest.importorskip("triton", reason="Triton has no build for this platform")


@pytest.fixture(scope="session")
def place():
    """Where kernels run."""
    from yolo_lossplug import kernels

    return "cpu" if kernels.is_interpreted() else "cuda"
