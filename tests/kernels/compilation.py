# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the compiler makes of every kernel: python -m tests.kernels.compilation [target ...] [all].

Steps are taken with tensors in the memory of the host and a driver that launches nothing, so that Triton specialises
and compiles what it would launch on a GPU; it includes compiler and assembler. A row for every binary reports its
registers, its stack in bytes, which is where registers are spilled to, its shared memory in bytes, and its
instructions, which are not counted for AMD. Targets are sm_75, sm_80, sm_90 and others of NVIDIA, gfx942 and gfx1100
of AMD. The few cases that are taken by default have each kernel and each loss; `least` takes two of them, `all` every
combination. The status is 1 if a binary spills or has more than 168 registers.
"""

import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is imported

import torch
import triton

from tests.kernels.stand_in import StandIn, forget
from yolo_lossplug.forms import BoxKind, ClassKernel, ClassKind
from yolo_lossplug.kernels import assignment, box_term, class_term, decoding, gt_rows, launching, step

MODULES = (gt_rows, assignment, decoding, box_term, class_term, step)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BOX_KINDS = (*range(BoxKind.STOCK, BoxKind.SIOU + 1), decoding.NO_LOSS)
CLASS_KERNELS = (
    ClassKernel(ClassKind.BCE),
    ClassKernel(ClassKind.FOCAL, 1.5, 0.25),
    ClassKernel(ClassKind.QUALITY, 2.0),
    ClassKernel(ClassKind.VARIFOCAL, 2.0, 0.75),
)
MAX_REGISTERS = 168
"""Of a thread: with more, an SM of NVIDIA holds fewer than three blocks of 128 threads."""
SHOWN = ("KIND", "OVERLAP", "KEEP", "BINS", "SMOOTH", "WEIGHTED")
"""Constants that tell one binary of a kernel from another."""


class Case(NamedTuple):
    """A step to take; anchors of 640 pixels are 8,400, which is divisible by 16, others may not be."""

    dtype: torch.dtype
    kind: int
    class_kernel: ClassKernel
    smoothing: float = 0.0
    is_weighted: bool = False
    n_bins: int = 16
    topk2: int = 10
    n_anchors: int = 8400


class Resources(NamedTuple):
    """What a binary takes."""

    registers: int
    stack: int
    shared: int
    instructions: int


def few_cases():
    cases = [
        Case(DTYPES[i % 3], kind, CLASS_KERNELS[i % 4], 0.1 * (i % 2), i % 2 > 0, n_anchors=(8400, 8404)[i // 2 % 2])
        for i, kind in enumerate(BOX_KINDS)
    ]
    return [*cases, cases[1]._replace(n_bins=1, topk2=1, smoothing=0.0)]


def all_cases():
    """Return every combination of what a kernel depends on."""
    both = [(0.0, False), (0.1, False), (0.0, True), (0.1, True)]
    boxes = itertools.product(DTYPES, BOX_KINDS, (16, 1), (10, 1), (8400, 8404))
    classes = itertools.product(DTYPES, CLASS_KERNELS, both, (8400, 8404))
    return [
        *(Case(d, kind, CLASS_KERNELS[0], 0.0, False, bins, k2, n) for d, kind, bins, k2, n in boxes),
        *(Case(d, 0, kernel, *how, n_anchors=n) for d, kernel, how, n in classes),
    ]


def launch_all(case):
    """Launch a step forward and backward on arbitrary tensors."""
    b, n, classes, n_anchors = 2, 5, 80, case.n_anchors
    is_half = case.dtype != torch.float32
    rand = torch.rand
    levels = torch.zeros(3, 3, dtype=torch.int32)
    anchors = gt_rows.KernelAnchors(rand(n_anchors, 2), rand(n_anchors, 2), rand(n_anchors), levels, rand(2))
    gts = gt_rows.describe_gts(rand(n), rand(n), rand(n, 4), (b, classes), anchors, (16.0, 16.0))
    outputs, scores = (
        torch.zeros(b, c, n_anchors, dtype=case.dtype).requires_grad_() for c in (4 * case.n_bins, classes)
    )
    box_config = decoding.BoxTermConfig(case.kind, 4.0, case.n_bins)
    grid = decoding.decode(outputs.detach(), anchors, box_config, torch.arange(16.0)[: case.n_bins])
    overlap = max(case.kind, BoxKind.STOCK)
    config = assignment.AssignerConfig(10, case.topk2, 0.5, 6.0, 1e-9, overlap, 4.0, is_half)
    assigned = assignment.assign_rows(gts, scores.detach(), grid, anchors, config)
    weights = rand(classes) if case.is_weighted else None
    targets = class_term.ClassTargets(assigned.label, assigned.score, case.smoothing, weights)
    gains = (7.5, 0.5, 1.5)
    inputs = step.StepInputs(gts.boxes, assigned, grid, anchors, box_config, targets, case.class_kernel, gains)
    if case.kind == decoding.NO_LOSS:
        box_term.positive_slots(assigned, gts.boxes, grid, anchors)
        inputs = inputs._replace(box_sum=torch.zeros(()), box_grad=torch.zeros(10 * n, 4))
    step.step_losses(outputs, scores, inputs)[0].sum().backward()


def compiled(target, cases):
    """Return the binaries that a GPU would launch in some steps: name, description and resources."""
    driver = StandIn(target)
    driver.install()
    forget(MODULES)
    launching.launched.clear()
    for case in cases:
        launch_all(case)
    return [(*described(source), resources(metadata, binary)) for source, metadata, binary in driver.binaries]


def described(source):
    """Return the name of a kernel, and what tells its binary from others."""
    names, parts = source.fn.arg_names, []
    for key, value in source.constants.items():
        name = names[key[0]] if isinstance(key, tuple) else key
        if name in SHOWN:
            parts.append(f"{name}={int(value)}")
    kinds = [kind[1:] for kind in map(str, source.signature.values()) if kind in ("*fp16", "*bf16")]
    module = source.fn.fn.__module__.rpartition(".")[2]
    return f"{module}.{source.fn.fn.__name__}", " ".join([*kinds[:1], *parts])


def resources(metadata, binary):
    if metadata.target.backend == "hip":
        return _of_amd(metadata, binary)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [tool, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return Resources(
        int(registers), int(stack), metadata.shared, len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", text, re.M))
    )


def _of_amd(metadata, binary):
    """Return what a binary for AMD takes, from the notes in it, which are in MessagePack."""

    def number(key):
        kind, *rest = binary[binary.index(key) + len(key) :][:5]
        size = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(kind, 0)
        return int.from_bytes(bytes(rest[:size]), "big") if size else kind

    return Resources(number(b".vgpr_count"), number(b".private_segment_fixed_size"), metadata.shared, 0)


def main(words):
    """Compile, print the resources as a table, and return the status."""
    cases = all_cases() if "all" in words else few_cases()
    if "least" in words:
        cases = [cases[0], cases[-3]._replace(smoothing=0.1, is_weighted=True, topk2=1)]
    is_bad = False
    print("| target | kernel | binary | registers | stack | shared | instructions |\n|---|---|---|---|---|---|---|")
    for target in [word for word in words if word not in ("all", "least")] or ["sm_90"]:
        for name, description, taken in sorted(compiled(target, cases)):
            is_bad |= taken.registers > MAX_REGISTERS or taken.stack > 0
            print(f"| {target} | {name} | {description} | {' | '.join(map(str, taken))} |", flush=True)
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
