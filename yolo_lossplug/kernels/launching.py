# SPDX-License-Identifier: AGPL-3.0-or-later
"""Launches of kernels that leave out Triton's Python where it is known what that would find.

Triton looks at every argument and option of every launch to find the binary, which for the kernels of a step takes
longer than the GPU needs for them. What it looks at is little: types, whether a pointer or a number is divisible by 16,
and whether a number is 1. Launches that agree in that have one binary, which is called directly from the second on.
"""

from typing import Any, Callable, NamedTuple

import triton
from torch import Tensor
from triton.runtime import driver

from yolo_lossplug.kernels import is_interpreted

KNOWN_RELEASES = (3, 6), (3, 9)
"""First and last release of Triton whose binaries are known to take the arguments of a launch in this way."""
IS_DIRECT = (
    not is_interpreted()
    and KNOWN_RELEASES[0] <= tuple(map(int, triton.__version__.split(".")[:2])) <= KNOWN_RELEASES[1]
)

EXACT_REGISTERS = 96
"""Of a thread of exact kernels, the most. Without a bound the assembler takes 48 or 64 for some, and spills one."""


class Launched(NamedTuple):
    """A binary that was launched: what runs it, its handle, what Triton knows of it, and its constants in order."""

    run: Callable[..., Any]
    function: Any
    packed: Any
    constants: tuple[Any, ...]


launched: dict[tuple, Launched] = {}
"""Binaries by what Triton distinguishes."""
listeners: list[Callable[[], Any]] = []
"""Called whenever a kernel was launched that may have been compiled for that."""


def launch(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any], is_exact: bool = True,
    num_warps: int = 4,
) -> None:  # fmt: skip
    """Launch a kernel.

    Args:
        kernel: A function that Triton compiles; its constants come last.
        grid: Programs along up to three axes.
        args: Tensors, integers and floats; the first is a tensor on the GPU.
        constants: The constants.
        is_exact: Whether no multiplication and addition are fused, as results are compared bit for bit.
        num_warps: Warps of a program; one value for each kernel.
    """
    if IS_DIRECT:
        device = args[0].get_device()
        key = (kernel.fn, device, *constants.values(), *_kinds(args))
        known = launched.get(key)
        if known is not None:
            stream, (x, y, z) = driver.active.get_current_stream(device), (*grid, 1, 1)[:3]
            # Hooks, which profilers of Triton set, see the first launch only.
            known.run(x, y, z, stream, known.function, known.packed, None, None, None, *args, *known.constants)
            return
    options = {"enable_fp_fusion": not is_exact, "num_warps": num_warps}
    if IS_DIRECT and is_exact and driver.active.get_current_target().backend == "cuda":
        options["maxnreg"] = EXACT_REGISTERS
    binary = kernel[grid](*args, **constants, **options)
    if IS_DIRECT:
        ordered = tuple(constants[p.name] for p in kernel.params if p.is_constexpr)
        launched[key] = Launched(binary.run, binary.function, binary.packed_metadata, ordered)
    for listener in listeners:
        listener()


def _kinds(args: tuple[Any, ...]) -> list[Any]:
    """Return what Triton distinguishes in arguments."""
    kinds: list[Any] = []
    add = kinds.append
    for value in args:
        if isinstance(value, Tensor):
            add(value.dtype)
            add(value.data_ptr() & 15)
        elif isinstance(value, int):  # a number of more than 31 bits has another type
            add((value & 15 == 0) + 2 * (value == 1) + (value >> 31 << 2))
        else:
            add(None)
    return kinds
