# SPDX-License-Identifier: AGPL-3.0-or-later
"""Task-aligned assignment on the anchors that can be assigned at all, as pure tensor functions.

Feng et al., TOOD: Task-aligned One-stage Object Detection, ICCV 2021, as Ultralytics runs it. The dense form holds
(images, objects, anchors) tensors; here an object meets only the anchors whose centre lies inside its box:

1. `grid`: the levels of the pyramid, and the rectangle of cells inside each box.
2. `pairs`: all (object, anchor) pairs of these rectangles, in the order of the dense form.
3. `selection`: the best k pairs of each object, one object for each anchor, and the normalised score.

The result is that of the dense form, bit for bit; what that takes is said where it is done.
"""
