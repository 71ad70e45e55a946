# SPDX-License-Identifier: AGPL-3.0-or-later
"""Kernels run on a GPU if there is one, else in Triton's interpreter."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]  # there is no Triton for macOS and Windows


@pytest.fixture(scope="session")
def kernel_device():
    """Return the device of the kernels: "cpu" in the interpreter, else "cuda"."""
    from yolo_lossplug import kernels

    return "cpu" if kernels.is_interpreted() else "cuda"
