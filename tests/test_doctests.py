# SPDX-License-Identifier: AGPL-3.0-or-later
"""The examples in docstrings, of the package as it is installed."""

import doctest
import importlib
import pkgutil

import yolo_lossplug


def test_examples_in_docstrings():
    tried = 0
    for found in pkgutil.walk_packages(yolo_lossplug.__path__, "yolo_lossplug."):
        if not found.name.endswith("__main__"):
            result = doctest.testmod(importlib.import_module(found.name))
            assert result.failed == 0, found.name
            tried += result.attempted
    assert tried > 8
