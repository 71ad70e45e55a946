# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every kernel of a step compiles for GPUs, in a process without the interpreter; no GPU is needed for that."""

import os
import re
import subprocess
import sys

import pytest
import triton

from tests.runs import ROOT

IS_KNOWN = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 2)


@pytest.mark.slow
@pytest.mark.skipif(not IS_KNOWN, reason="older Triton is asked in another way")
def test_every_kernel_compiles(tmp_path):
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.kernels.compilation"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\w+)\.(\w+) .*: (\d+) registers, (\d+) bytes of stack", done.stdout, re.M)
    assert {name for _, name, *_ in found} == {
        *("_describe", "_select", "_contest", "_resolve", "_keep", "_normalise"),
        *("_decode", "_forward", "_backward", "_list", "_finish"),
    }
    assert {module for module, *_ in found} == {"gt_rows", "assignment", "decoding", "box_term", "class_term", "step"}
    assert all(int(stack) <= 64 for *_, stack in found)  # nothing of size is kept in slow memory
