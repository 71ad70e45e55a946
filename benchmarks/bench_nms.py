# SPDX-License-Identifier: AGPL-3.0-or-later
"""Time of suppression by DIoU against Ultralytics' own torch suppression: python benchmarks/bench_nms.py.

Both sides alternate in one process; prints medians and their ratio, below 1 where DIoU is faster.
"""

import statistics
import time

import torch
import ultralytics
from ultralytics.utils.nms import TorchNMS

from yolo_lossplug.nms import diou_nms


def draw(count, spread):
    """Return random boxes and scores."""
    centre, size = torch.rand(count, 2) * spread, torch.rand(count, 2) * 60 + 8
    return torch.cat((centre - size / 2, centre + size / 2), 1), torch.rand(count)


def timed(function, *args):
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"ultralytics {ultralytics.__version__} · torch {torch.__version__} · {torch.get_num_threads()} threads")
    for count, spread in ((300, 640), (3000, 640), (3000, 60), (10000, 640)):
        boxes, scores = draw(count, spread)
        pairs = [(timed(TorchNMS.nms, boxes, scores, 0.5), timed(diou_nms, boxes, scores, 0.5)) for _ in range(7)]
        stock, ours = (statistics.median(side) for side in zip(*pairs))
        print(f"{count:6} boxes in {spread} px: stock {stock:.4f} s, diou {ours:.4f} s, ratio {ours / stock:.2f}")
