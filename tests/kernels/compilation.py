# SPDX-License-Identifier: AGPL-3.0-or-later
"""Compile every kernel of a step without a GPU: python -m tests.kernels.compilation [capability [all]].

A launch is recorded with its arguments and compiled for an NVIDIA GPU of that capability, 90 unless named, for some
of the losses or for all; Triton includes compiler and assembler. A line for every variant reports its registers, its
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

from yolo_lossplug.forms import ClassKernel
from yolo_lossplug.kernels import assignment, box_maths, box_term, class_term, decoding, gt_rows, step

OPTIONS = ("num_warps", "enable_fp_fusion")
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
}


class Recorder:
    """Replaces a kernel, and compiles the variants that it is launched with."""

    def __init__(self, kernel, capability):
        self.kernel, self.target, self.compiled = kernel, GPUTarget("cuda", capability, 32), {}

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **kwargs):
        options = {key: kwargs.pop(key) for key in OPTIONS if key in kwargs}
        bound = inspect.signature(self.kernel.fn).bind(*args, **kwargs).arguments
        constants = {p.name for p in self.kernel.params if p.is_constexpr}
        types = {name: "constexpr" if name in constants else type_of(value) for name, value in bound.items()}
        values = {name: value for name, value in bound.items() if name in constants}
        key = (tuple(types.items()), tuple(values.items()))
        if key not in self.compiled:
            aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind[0] == "*"}
            source = ASTSource(self.kernel, types, constexprs=values, attrs=aligned)
            self.compiled[key] = triton.compile(source, target=self.target, options=options)


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


def record_launches(capability):
    """Replace every kernel that is launched by a recorder; return the recorders by name."""
    recorders = {}
    for module in (gt_rows, assignment, decoding, box_term, class_term, step):
        for name in sorted(set(re.findall(r"\b(_\w+)\[", inspect.getsource(module)))):
            stand_in = Recorder(getattr(module, name), capability)
            setattr(module, name, stand_in)
            recorders[f"{module.__name__.rpartition('.')[2]}.{name}"] = stand_in
    return recorders


def launch_all(dtype, topk2, kind, class_kernel, n_bins):
    """Launch a step forward and backward on arbitrary tensors."""
    b, n, classes, n_anchors = 2, 5, 80, 8400
    rand = torch.rand
    levels = torch.zeros(3, 3, dtype=torch.int32)
    anchors = gt_rows.KernelAnchors(rand(n_anchors, 2), rand(n_anchors, 2), rand(n_anchors), levels, rand(2))
    gts = gt_rows.describe_gts(rand(n), rand(n), rand(n, 4), (b, classes), anchors, (16.0, 16.0))
    outputs, scores = (torch.zeros(b, c, n_anchors, dtype=dtype).requires_grad_() for c in (4 * n_bins, classes))
    box_config = decoding.BoxTermConfig(kind, 4.0, n_bins, dtype != torch.float32)
    grid = decoding.decode(outputs.detach(), anchors, box_config)
    overlap = max(kind, box_maths.STOCK_CIOU.value)
    config = assignment.AssignerConfig(10, topk2, 0.5, 6.0, 1e-9, overlap, 4.0, dtype != torch.float32)
    assigned = assignment.assign_rows(gts, scores.detach(), grid, anchors, config)
    plain = class_term.ClassTargets(assigned.label, assigned.score)
    targets = plain._replace(smoothing=0.1, weights=rand(classes)) if dtype == torch.bfloat16 else plain
    inputs = step.StepInputs(gts.boxes, assigned, grid, anchors, box_config, targets, class_kernel, (7.5, 0.5, 1.5))
    if kind == decoding.NO_LOSS:
        box_term.positive_slots(assigned, gts.boxes, grid, anchors)
        inputs = inputs._replace(box_sum=torch.zeros(()), box_grad=torch.zeros(10 * n, 4))
    step.step_losses(outputs, scores, inputs)[0].sum().backward()


def main(capability=90, which=""):
    """Compile, and print the resources."""
    recorders = record_launches(capability)
    class_kernels = [ClassKernel(kind, 2.0, 0.25) for kind in range(4)]
    kinds = [*range(box_maths.STOCK_CIOU.value, box_maths.SIOU.value + 1), decoding.NO_LOSS]
    if which != "all":
        kinds = [box_maths.STOCK_CIOU.value, box_maths.SIOU.value, decoding.NO_LOSS]
    for i, kind in enumerate(kinds):
        dtype = list(TYPES)[i % 3]
        launch_all(dtype, (10, 1)[i % 2], kind, class_kernels[i % 4], (16, 16, 1)[i % 3])
    for name, kernel in recorders.items():
        for (types, values), compiled in kernel.compiled.items():
            description = " ".join([t[1:] for _, t in types if t in ("*fp16", "*bf16")][:1])
            description += "".join(
                f" {key}={value}" for key, value in values if key in ("KIND", "OVERLAP", "KEEP", "BINS")
            )
            registers, stack, instructions = resources(compiled)
            print(f"{name} {description}: {registers} registers, {stack} bytes of stack, {instructions} instructions")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
