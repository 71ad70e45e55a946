# SPDX-License-Identifier: AGPL-3.0-or-later
"""The loss step on candidates and positives only, as pure tensor functions.

Task-aligned assignment (Feng et al., TOOD: Task-aligned One-stage Object Detection, ICCV 2021) as Ultralytics runs it.
The dense form holds (images, gts, anchors) tensors; here a gt is compared only with its candidates, the anchors whose
centre lies inside its box:

1. `grid`: the levels of the pyramid, and the rectangle of cells inside each box.
2. `pairs`: all (gt, anchor) pairs of these rectangles, in the order of the dense form.
3. `topk`, `assign`: the best k pairs of each gt, one gt for each anchor, and the normalised score.

The result equals that of the dense form bit for bit; comments say where the code depends on that. The loss terms
(`class_term`, `distance_term`) allocate no dense tensors either, except for the gradients of the head's outputs: sums
run over chunks, and only the positives are saved for backward.
"""
