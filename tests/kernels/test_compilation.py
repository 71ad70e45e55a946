# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the compiler makes of the kernels, in processes without the interpreter; no GPU is needed for that."""

import os
import re
import subprocess
import sys

import pytest
import triton

from tests.runs import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6), reason="older Triton has other drivers"
    ),
]
PLANTED_ASSEMBLY = """
import sys
import triton
import triton.language as tl
from tests.kernels import compilation
from yolo_lossplug.kernels import class_term

@triton.jit
def fast_exp(x):
    return tl.inline_asm_elementwise("ex2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)

class_term.fast_exp = fast_exp
sys.exit(compilation.main(["gfx942", "least"]))
"""
PLANTED_SPILL = """
import sys
from tests.kernels import compilation
from yolo_lossplug.kernels import class_term

class_term.WARPS = 1
sys.exit(compilation.main(["sm_90", "least"]))
"""


def started(tmp_path, *words):
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env = {**kept, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{ROOT}"}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)


def is_fine(process):
    """Return whether a compilation is free of faults, and its table; a compiler may say that it failed and go on."""
    table, said = process.communicate()
    return process.returncode == 0 and not re.search("error|could not", said), f"{table}\n{said}"


def test_no_kernel_spills(tmp_path):
    tables = []
    command = ("-m", "tests.kernels.compilation")
    for process in [
        started(tmp_path, *command, "sm_90"),
        started(tmp_path, *command, "sm_75", "gfx942", "gfx1100", "least"),
    ]:
        fine, table = is_fine(process)
        assert fine, table
        tables.append(table)
    for target, table in (("sm_90", tables[0]), *((name, tables[1]) for name in ("sm_75", "gfx942", "gfx1100"))):
        assert set(re.findall(rf"^\| {target} \| (\w+\.\w+) \|", table, re.M)) >= {
            *(f"assignment.{name}" for name in ("_select", "_contest", "_resolve", "_keep", "_normalise")),
            *("gt_rows._describe", "decoding._probabilities", "decoding._corners", "step._finish"),
            *("box_term._forward", "box_term._backward", "class_term._forward", "class_term._backward"),
        }


@pytest.mark.parametrize("planted", [PLANTED_SPILL, PLANTED_ASSEMBLY], ids=["spill", "assembly"])
def test_faults_are_found(tmp_path, planted):
    file = tmp_path / "planted.py"  # Triton reads the source of a kernel
    file.write_text(planted, encoding="utf-8")
    fine, table = is_fine(started(tmp_path, file))
    assert not fine and "_backward" in table


def test_later_launches_are_those_of_triton(tmp_path):
    fine, text = is_fine(started(tmp_path, "-m", "tests.kernels.overhead"))
    assert fine, text
    assert re.search(r"1[0-9] launches: \d+ µs by Triton, \d+ µs here", text)
