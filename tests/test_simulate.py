# SPDX-License-Identifier: AGPL-3.0-or-later
"""The example that repeats the regression experiment of the DIoU paper."""

import runpy

import torch

from tests.runs import ROOT
from yolo_lossplug import create_box_loss


def test_boxes_reach_their_targets_and_iou_does_not_move_disjoint_ones(tmp_path, capsys):
    example = runpy.run_path(str(ROOT / "examples" / "simulate.py"))
    # Inside the target I = w·h and U = 4: ∂IoU/∂w = ∂IoU/∂h = 1/4, and the factor is 0.1·(2 − 1/4) = 0.175.
    box, target = (torch.tensor([numbers]).t() for numbers in ([10.25, 10.0, 1.0, 1.0], [10.0, 10.0, 2.0, 2.0]))
    moved = example["step"](create_box_loss("iou"), box, target, 0.1)
    assert torch.allclose(moved.t(), torch.tensor([10.25, 10.0, 1 + 0.175 / 4, 1 + 0.175 / 4]))
    example["main"]("iou,eiou,wiou-v3", 2, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    last = {line.split()[0]: float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[:3]}
    assert last["iou"] > 3 > 100 * last["eiou"] and last["wiou-v3"] < 0.5
