# SPDX-License-Identifier: AGPL-3.0-or-later
"""Kernels run on a GPU where there is one, and in Triton's interpreter elsewhere."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]  # there is no Triton for macOS and Windows


@pytest.fixture(scope="session")
def place():
    """Where kernels run."""
    from yolo_lossplug import kernels

    return "cpu" if kernels.is_interpreted() else "cuda"
