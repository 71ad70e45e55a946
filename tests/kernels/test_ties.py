# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two assignments may differ in ties that were made, and in nothing else."""

import pytest
import torch
from ultralytics.utils.tal import TaskAlignedAssigner

from yolo_lossplug.ultralytics_hook.engines.agreement import AssignerInputs, Exchanged, assigned_as, exchanged_anchors

N_ANCHORS, TOPK = 12, 3


class Problem:
    """An image with two gts over all anchors; those from 2 on predict the first one, all alike but for their scores."""

    def __init__(self, scores):
        points = torch.stack((torch.linspace(20, 40, N_ANCHORS), torch.full((N_ANCHORS,), 30.0)), 1)
        gts = torch.tensor([[[0.0, 0, 60, 60], [0, 0, 60, 62]]])
        boxes = torch.tensor([[2.0, 2, 58, 57]]).expand(1, N_ANCHORS, -1).clone()
        boxes[:, :2] = torch.tensor([0.0, 0, 60, 61])  # as near to one as to the other
        made = torch.zeros(1, N_ANCHORS, 2)
        made[0, :, 0] = torch.tensor(scores)
        self.inputs = AssignerInputs(made, boxes, points, torch.tensor([[[0], [1]]]), gts, torch.ones(1, 2, 1))
        self.assigner = TaskAlignedAssigner(topk=TOPK, num_classes=2, alpha=0.5, beta=6.0)
        self.assigner.bs, self.assigner.n_max_boxes = 1, 2

    def judged(self, expected, actual):
        return exchanged_anchors(self.assigner, self.inputs, sides(expected), sides(actual))


def sides(gts):
    gts = torch.tensor([[-1 if gt is None else gt for gt in gts] + [-1] * (N_ANCHORS - len(gts))])
    return gts >= 0, gts.clamp(min=0)


@pytest.fixture
def case():
    """Anchors 3 and 4 tie, 5 is a little less, 6 much less."""
    scores = [0.0, 0, 0.5, 0.25, 0.25 * (1 + 1e-6), 0.25 * (1 - 1e-4), 0.1, 0, 0, 0, 0, 0]
    return Problem(scores)


def test_metrics(case):
    """That tie, that do not, which nothing replaces, and which one side flushes to zero."""
    expected = [None, None, 0, 0]
    assert case.judged(expected, expected) == Exchanged(0, 0)
    assert case.judged([*expected, None], [None, None, 0, None, 0]) == Exchanged(2, 0)
    for other in (5, 6):
        actual = [0 if i == other else None for i in range(10)]
        assert case.judged([None, None, None, 0], actual) == Exchanged(0, 2)
    assert case.judged(expected, [None, None, 0, None]) == Exchanged(0, 1)
    case.inputs.scores.zero_()
    assert case.judged([0, None, 0], [0, None, None]) == Exchanged(1, 0)
    case.assigner.get_box_metrics = lambda *args, gt_masks: None  # without the masks no tie can be seen
    assert case.judged([0, None, 0], [0, None, None]) == Exchanged(0, 1)


def test_contests(case):
    exact, near = case.inputs.boxes.clone(), case.inputs.boxes
    near[0, 0] = torch.tensor([0.0, 0, 60, 60])  # one's own box
    assert case.judged([0], [1]) == Exchanged(0, 1)
    case.inputs.gts[0, 1] = case.inputs.gts[0, 0] + torch.tensor([0, 0, 0, 1e-5])
    near.copy_(exact)
    assert case.judged([None, None, 0], [None, None, 1]) == Exchanged(1, 0)


def test_the_host_scores_what_it_is_given(case):
    expected = case.assigner(*case.inputs)
    given = sides([None, None, 0, None, 0])
    with assigned_as(case.assigner, given):
        actual = case.assigner(*case.inputs)
    assert torch.equal(actual[3], given[0]) and torch.equal(actual[4][given[0]], given[1][given[0]])
    assert actual[2][0, 4, 0] > 0 and not torch.equal(actual[3], expected[3])
    assert torch.equal(case.assigner(*case.inputs)[3], expected[3])
