# SPDX-License-Identifier: AGPL-3.0-or-later
"""Engines with a fault, in place of the fast one: ``python -m tests.tools.faults KIND job.json`` measures one."""

import functools
import os
import signal
import sys
import time
from pathlib import Path

from yolo_lossplug.ultralytics_hook.engines import fast


def killed(result):
    os.kill(os.getpid(), signal.SIGSEGV)


def hanging(result):
    time.sleep(600)


def out_of_memory(result):
    raise MemoryError("no more")


def not_compiled(result):
    raise RuntimeError("ptxas failed")


def wrong_assignment(result):
    assigned, loss, items = result
    return (assigned[0].roll(1, 1), *assigned[1:]), loss, items


def wrong_loss(result):
    assigned, loss, items = result
    return assigned, loss + 0.01, items


def wrong_gradients(result):
    """The loss is right, and its gradients are 1 % too large."""
    assigned, loss, items = result
    return assigned, loss + 0.01 * (loss - loss.detach()), items


def step_with(fault, stock=fast.fast_step):
    @functools.wraps(stock)
    def step(*args):
        return fault(stock(*args))

    return step


if __name__ == "__main__":
    from yolo_lossplug.tools.bench import child

    fast.fast_step = step_with(globals()[sys.argv[1]])
    sys.exit(child.run_job(Path(sys.argv[2])))
