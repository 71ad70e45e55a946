# SPDX-License-Identifier: AGPL-3.0-or-later
"""A loss step on candidates and positives only, as pure tensor functions.

Task-aligned assignment (Feng et al., TOOD: Task-aligned One-stage Object Detection, ICCV 2021) as Ultralytics runs it.
The dense form holds (images, gts, anchors) tensors; here a gt meets only the anchors whose centre lies inside its box:

1. `grid`: the levels of the pyramid, and the rectangle of cells inside each box.
2. `pairs`: all (object, anchor) pairs of these rectangles, in the order of the dense form.
3. `topk`, `assign`: the best k pairs of each gt, one gt for each anchor, and the normalised score.

The result is that of the dense form, bit for bit; what that takes is said where it is done. The terms of the loss on
the positives (`class_term`, `distance_term`) hold nothing of the dense form either: a step returns the gradients of the
head's outputs, which are as large as these outputs, and beyond that sums run over parts, and what is kept for backward
is that of the positives alone.
"""
