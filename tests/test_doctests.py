# SPDX-License-Identifier: AGPL-3.0-or-later
"""The examples in docstrings, of the package as it is installed."""

import doctest
import importlib
import pkgutil

import pytest

import yolo_lossplug
from tests.runs import ROOT, python

OPTIONAL = ("triton", "PyInstaller")


def modules():
    """Import the modules of the package, but for those that need what is not installed everywhere."""
    for found in pkgutil.walk_packages(yolo_lossplug.__path__, "yolo_lossplug."):
        if found.name.endswith("__main__") or "-" in found.name:  # a hook of PyInstaller collects modules
            continue
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise


def test_examples_in_docstrings():
    tried = 0
    for module in modules():
        result = doctest.testmod(module)
        assert result.failed == 0, module.__name__
        tried += result.attempted
    assert tried > 8


HIDDEN = """
import sys
sys.modules["triton"] = None
from tests.test_doctests import modules, test_examples_in_docstrings
test_examples_in_docstrings()
print(*(module.__name__ for module in modules()))
"""


@pytest.mark.slow
def test_all_other_modules_are_imported_where_there_is_no_triton():
    found = set(python(HIDDEN, cwd=ROOT).stdout.split())
    assert {"yolo_lossplug.kernels", "yolo_lossplug.ultralytics_hook.engines.choice"} <= found
    assert not {"yolo_lossplug.kernels.step", "yolo_lossplug.ultralytics_hook.engines.triton"} & found
