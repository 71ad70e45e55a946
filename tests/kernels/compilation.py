# SPDX-License-Identifier: AGPL-3.0-or-later
"""Compile every kernel of a step without a GPU: python -m tests.kernels.compilation [capability [all]].

A launch is taken down with its arguments and compiled for an NVIDIA GPU of that capability, 90 unless named, for some
of the losses or for all; Triton brings compiler and assembler along. A line for every variant says its registers, its
stack, and its instructions.
"""

import inspect
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from yolo_lossplug.kernels import assignment, box_maths, box_term, class_term, step

OPTIONS = ("num_warps", "enable_fp_fusion")
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
}


class Taken:
    """Stands in for a kernel, and compiles what it is launched with."""

    def __init__(self, kernel, capability):
        self.kernel, self.target, self.found = kernel, GPUTarget("cuda", capability, 32), {}

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **kwargs):
        options = {key: kwargs.pop(key) for key in OPTIONS if key in kwargs}
        bound = inspect.signature(self.kernel.fn).bind(*args, **kwargs).arguments
        constants = {p.name for p in self.kernel.params if p.is_constexpr}
        types = {name: "constexpr" if name in constants else type_of(value) for name, value in bound.items()}
        values = {name: value for name, value in bound.items() if name in constants}
        key = (tuple(types.items()), tuple(values.items()))
        if key not in self.found:
            aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind[0] == "*"}
            source = ASTSource(self.kernel, types, constexprs=values, attrs=aligned)
            self.found[key] = triton.compile(source, target=self.target, options=options)


def type_of(value):
    """Return how Triton names the type of an argument."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def resources(compiled):
    """Return registers, bytes of stack and number of instructions of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack), len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.M))


def take_down(capability):
    """Put something in the place of every kernel that is launched; return these by name."""
    taken = {}
    for module in (assignment, box_term, class_term, step):
        for name in sorted(set(re.findall(r"\b(_\w+)\[", inspect.getsource(module)))):
            stand_in = Taken(getattr(module, name), capability)
            setattr(module, name, stand_in)
            taken[f"{module.__name__.rpartition('.')[2]}.{name}"] = stand_in
    return taken


def launch_all(dtype, topk2, kind, formula, n_bins):
    """Launch a step forward and backward on tensors of no meaning."""
    b, n, classes, n_anchors = 2, 5, 80, 8400
    rand = torch.rand
    levels = torch.zeros(3, 3, dtype=torch.int32)
    anchors = assignment.Anchors(rand(n_anchors, 2), rand(n_anchors, 2), rand(n_anchors), levels, rand(2))
    objects = assignment.describe(rand(n), rand(n), rand(n, 4), (b, classes), anchors, (16.0, 16.0))
    outputs, scores = (torch.zeros(b, c, n_anchors, dtype=dtype).requires_grad_() for c in (4 * n_bins, classes))
    wanted = box_term.Wanted(kind, 4.0, n_bins, dtype != torch.float32)
    grid = box_term.decode(outputs.detach(), anchors, wanted)
    overlap = max(kind, box_maths.HOST.value)
    numbers = assignment.Numbers(10, topk2, 0.5, 6.0, 1e-9, overlap, 4.0, dtype != torch.float32)
    assigned = assignment.assign(objects, scores.detach(), grid, anchors, numbers)
    plain = class_term.Targets(assigned.label, assigned.score)
    targets = plain._replace(smoothing=0.1, weights=rand(classes)) if dtype == torch.bfloat16 else plain
    given = step.Step(objects.boxes, assigned, grid, anchors, wanted, targets, formula, (7.5, 0.5, 1.5))
    if kind == box_term.NO_LOSS:
        box_term.listed(assigned, objects.boxes, grid, anchors)
        given = given._replace(box_sum=torch.zeros(()), slopes=torch.zeros(10 * n, 4))
    step.losses(outputs, scores, given)[0].sum().backward()


def main(capability=90, which=""):
    """Compile, and print what it takes."""
    taken = take_down(capability)
    formulas = [class_term.Formula(kind, 2.0, 0.25) for kind in range(4)]
    kinds = [*range(box_maths.HOST.value, box_maths.SIOU.value + 1), box_term.NO_LOSS]
    if which != "all":
        kinds = [box_maths.HOST.value, box_maths.SIOU.value, box_term.NO_LOSS]
    for i, kind in enumerate(kinds):
        dtype = list(TYPES)[i % 3]
        launch_all(dtype, (10, 1)[i % 2], kind, formulas[i % 4], (16, 16, 1)[i % 3])
    for name, kernel in taken.items():
        for (types, values), compiled in kernel.found.items():
            about = " ".join([t[1:] for _, t in types if t in ("*fp16", "*bf16")][:1])
            about += "".join(f" {key}={value}" for key, value in values if key in ("KIND", "OVERLAP", "KEEP", "BINS"))
            registers, stack, instructions = resources(compiled)
            print(f"{name} {about}: {registers} registers, {stack} bytes of stack, {instructions} instructions")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
