# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Python time of a step's launches, by Triton and by `launching`: python -m tests.kernels.overhead.

Nothing is launched: a driver stands in for that of a GPU, so that what is measured is what comes before its call.
"""

import statistics
import time

from tests.kernels.compilation import MODULES, Case, launch_all  # which makes Triton compile, not interpret
from tests.kernels.stand_in import StandIn
from yolo_lossplug.forms import BoxKind, ClassKernel, ClassKind
from yolo_lossplug.kernels import launching

import torch  # isort: skip

ROUNDS = 300


def by_triton(kernel, grid, args, constants, is_exact=True, num_warps=4):
    """Launch as `launching.launch` does the first time."""
    more = {"maxnreg": launching.EXACT_REGISTERS} if is_exact else {}
    kernel[grid](*args, **constants, enable_fp_fusion=not is_exact, num_warps=num_warps, **more)


def launches_of_a_step(case):
    seen = []

    def launch(*args, **options):
        seen.append((args, options))
        launching.launch(*args, **options)

    for module in MODULES:
        module.launch = launch
    launch_all(case)
    return seen


def taken(launch, seen, driver):
    """Return the seconds of a round, and what a GPU would have been called with."""
    driver.launches.clear()
    start = time.perf_counter()
    for args, options in seen:
        launch(*args, **options)
    return time.perf_counter() - start, list(driver.launches)


def is_same(one, other):
    """Return whether two launches are of one binary, of one size, and have the same arguments."""
    pairs = list(zip(one[2], other[2]))
    return one[:2] == other[:2] and len(one[2]) == len(other[2]) and all(a is b or a == b for a, b in pairs)


def main():
    driver = StandIn("sm_90")
    driver.install()
    seen = launches_of_a_step(Case(torch.float16, BoxKind.EIOU, ClassKernel(ClassKind.BCE)))
    times = {by_triton: [], launching.launch: []}
    for _ in range(ROUNDS):
        made = {launch: taken(launch, seen, driver) for launch in times}
        for launch, (seconds, _) in made.items():
            times[launch].append(seconds)
    (_, before), (_, after) = made.values()
    before = [(function, (*size, 1, 1)[:3], args) for function, size, args in before]
    assert len(before) == len(after) == len(seen) and all(map(is_same, before, after))
    slow, fast = (1e6 * statistics.median(side) for side in times.values())
    print(f"{len(seen)} launches: {slow:.0f} µs by Triton, {fast:.0f} µs here, a ratio of {fast / slow:.2f}")


if __name__ == "__main__":
    main()
