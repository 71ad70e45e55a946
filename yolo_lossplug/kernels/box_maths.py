# SPDX-License-Identifier: AGPL-3.0-or-later
"""Overlaps and box losses of pairs of boxes with their gradients, as device functions.

The formulas are those of `yolo_lossplug.box_losses`, including guards and ties; `STOCK_CIOU` is Ultralytics' own CIoU,
which adds an epsilon where ours guard. Gradients are with respect to the predicted box; in ties of a minimum or maximum
each argument gets half.
"""

import triton
import triton.language as tl

from yolo_lossplug.boxes import LIMIT, MIN_SIDE
from yolo_lossplug.forms import BoxKind
from yolo_lossplug.kernels.rounding import GUARD, arctan, exact_power, exp, rounded

STOCK_CIOU, IOU, GIOU = tl.constexpr(BoxKind.STOCK), tl.constexpr(BoxKind.IOU), tl.constexpr(BoxKind.GIOU)
DIOU, EIOU, SIOU = tl.constexpr(BoxKind.DIOU), tl.constexpr(BoxKind.EIOU), tl.constexpr(BoxKind.SIOU)
SIDE_GUARD, MAX_COORDINATE = tl.constexpr(MIN_SIDE), tl.constexpr(LIMIT)
STOCK_EPS = tl.constexpr(1e-7)
FOUR_BY_PI_SQUARED = tl.constexpr(0.40528473456935109)


@triton.jit
def pair_overlap(KIND: tl.constexpr, THETA: tl.constexpr, x1, y1, x2, y2, X1, Y1, X2, Y2, float_ptr):
    """Overlap, clamped at 0, of a gt box (lower case) and a predicted box (upper case), for the assigner."""
    if KIND == STOCK_CIOU:
        u, _, _, _, _ = _stock(x1, y1, x2, y2, X1, Y1, X2, Y2, float_ptr)
    else:
        loss, _, _, _, _ = _ours(KIND, THETA, X1, Y1, X2, Y2, x1, y1, x2, y2)
        u = 1.0 - loss
    return tl.where(u < 0, 0.0, u)  # NaN stays NaN


@triton.jit
def pair_loss(KIND: tl.constexpr, THETA: tl.constexpr, x1, y1, x2, y2, X1, Y1, X2, Y2, output_ptr):
    """Loss of predicted boxes (lower case) and targets (upper case), and its four derivatives."""
    if KIND == STOCK_CIOU:
        u, g1, g2, g3, g4 = _stock(x1, y1, x2, y2, X1, Y1, X2, Y2, output_ptr)
        return 1.0 - u, -g1, -g2, -g3, -g4
    return _ours(KIND, THETA, x1, y1, x2, y2, X1, Y1, X2, Y2)


@triton.jit
def _stock(x1, y1, x2, y2, X1, Y1, X2, Y2, like):
    """CIoU with the operations of `ultralytics.utils.metrics.bbox_iou` in their order, and its derivatives.

    Terms of the first box alone are rounded to the element type of `like`, as Ultralytics computes them in that type.
    """
    w, h = rounded(x2 - x1, like), rounded(rounded(y2 - y1, like) + STOCK_EPS, like)
    W, H = X2 - X1, Y2 - Y1 + STOCK_EPS
    width, height = tl.minimum(x2, X2) - tl.maximum(x1, X1), tl.minimum(y2, Y2) - tl.maximum(y1, Y1)
    iw, ih = tl.where(width < 0, 0.0, width), tl.where(height < 0, 0.0, height)
    inter = iw * ih
    union = rounded(w * h, like) + W * H - inter + STOCK_EPS
    iou = tl.div_rn(inter, union)
    cw, ch = tl.maximum(x2, X2) - tl.minimum(x1, X1), tl.maximum(y2, Y2) - tl.minimum(y1, Y1)
    c2 = cw * cw + ch * ch + STOCK_EPS
    dx, dy = X1 + X2 - x1 - x2, Y1 + Y2 - y1 - y2
    rho2 = (dx * dx + dy * dy) * 0.25
    aspect = rounded(tl.div_rn(w, h), like)
    angle = arctan(tl.div_rn(W, H)) - rounded(arctan(aspect), like)
    v = FOUR_BY_PI_SQUARED * (angle * angle)
    alpha = tl.div_rn(v, 1.0 - iou + v + STOCK_EPS)
    value = iou - (tl.div_rn(rho2, c2) + v * alpha)

    d_union = -inter / (union * union)
    d_inter = 1.0 / union - d_union
    d_width, d_height = tl.where(width > 0, d_inter * ih, 0.0), tl.where(height > 0, d_inter * iw, 0.0)
    d_c2 = rho2 / (c2 * c2)
    d_cw, d_ch = d_c2 * 2.0 * cw, d_c2 * 2.0 * ch
    d_dx, d_dy = -0.5 * dx / c2, -0.5 * dy / c2
    d_aspect = alpha * FOUR_BY_PI_SQUARED * 2.0 * angle / (1.0 + aspect * aspect)
    d_w, d_h = d_union * h + d_aspect / h, d_union * w - d_aspect * aspect / h
    g1 = -d_w - d_width * _step(x1, X1) - d_cw * _step(X1, x1) - d_dx
    g2 = -d_h - d_height * _step(y1, Y1) - d_ch * _step(Y1, y1) - d_dy
    g3 = d_w + d_width * _step(X2, x2) + d_cw * _step(x2, X2) - d_dx
    g4 = d_h + d_height * _step(Y2, y2) + d_ch * _step(y2, Y2) - d_dy
    return value, g1, g2, g3, g4


@triton.jit
def _ours(KIND: tl.constexpr, THETA: tl.constexpr, left, top, right, bottom, X1, Y1, X2, Y2):
    """1 − IoU + penalties and its derivatives: see the functions in `yolo_lossplug.box_losses`."""
    x1, y1, x2, y2 = _limited(left), _limited(top), _limited(right), _limited(bottom)
    X1, Y1, X2, Y2 = _limited(X1), _limited(Y1), _limited(X2), _limited(Y2)
    w, h, W, H = x2 - x1, y2 - y1, X2 - X1, Y2 - Y1
    width, height = tl.minimum(x2, X2) - tl.maximum(x1, X1), tl.minimum(y2, Y2) - tl.maximum(y1, Y1)
    iw, ih = tl.where(width < 0, 0.0, width), tl.where(height < 0, 0.0, height)
    inter = iw * ih
    union = w * h + W * H - inter
    iou, d_inter, d_union = _ratio(inter, union)
    loss = 1.0 - iou
    d_inter, d_union = -d_inter, -d_union
    d_w, d_h, d_cw, d_ch, d_ox, d_oy = 0.0 * w, 0.0 * w, 0.0 * w, 0.0 * w, 0.0 * w, 0.0 * w

    cw, cw1, cw2 = _hull(x1, x2, X1, X2)
    ch, ch1, ch2 = _hull(y1, y2, Y1, Y2)
    ox, oy = ((x1 + x2) - (X1 + X2)) * 0.5, ((y1 + y2) - (Y1 + Y2)) * 0.5
    if KIND == GIOU:
        hull = cw * ch
        penalty, d_gap, d_hull = _ratio(hull - union, hull)
        loss += penalty
        d_union -= d_gap
        d_hull += d_gap
        d_cw += d_hull * ch
        d_ch += d_hull * cw
    if KIND == DIOU or KIND == EIOU:
        penalty, d_rho2, d_c2 = _ratio(ox * ox + oy * oy, cw * cw + ch * ch)
        loss += penalty
        d_ox += d_rho2 * 2.0 * ox
        d_oy += d_rho2 * 2.0 * oy
        d_cw += d_c2 * 2.0 * cw
        d_ch += d_c2 * 2.0 * ch
    if KIND == EIOU:
        penalty, d_gap, d_square = _ratio((w - W) * (w - W), cw * cw)
        loss += penalty
        d_w += d_gap * 2.0 * (w - W)
        d_cw += d_square * 2.0 * cw
        penalty, d_gap, d_square = _ratio((h - H) * (h - H), ch * ch)
        loss += penalty
        d_h += d_gap * 2.0 * (h - H)
        d_ch += d_square * 2.0 * ch
    if KIND == SIOU:
        ax, ay = tl.abs(ox), tl.abs(oy)
        product, d_product, d_squares = _ratio(ax * ay, ax * ax + ay * ay)
        gamma = 2.0 - 2.0 * product
        rx, d_ox2, d_cw2 = _ratio(ox * ox, cw * cw)
        ry, d_oy2, d_ch2 = _ratio(oy * oy, ch * ch)
        ex, ey = exp(-gamma * rx), exp(-gamma * ry)
        bx, d_bx = _shape(w, W)
        by, d_by = _shape(h, H)
        loss += ((1.0 - ex) + (1.0 - ey)) * 0.5
        loss += (exact_power(bx, THETA) + exact_power(by, THETA)) * 0.5
        d_rx, d_ry = 0.5 * gamma * ex, 0.5 * gamma * ey
        d_gamma = 0.5 * (rx * ex + ry * ey)
        d_p, d_s = -2.0 * d_gamma * d_product, -2.0 * d_gamma * d_squares
        d_ox += d_rx * d_ox2 * 2.0 * ox + _sign(ox) * (d_p * ay + d_s * 2.0 * ax)
        d_oy += d_ry * d_oy2 * 2.0 * oy + _sign(oy) * (d_p * ax + d_s * 2.0 * ay)
        d_cw += d_rx * d_cw2 * 2.0 * cw
        d_ch += d_ry * d_ch2 * 2.0 * ch
        d_w += 0.5 * THETA * exact_power(bx, THETA - 1.0) * d_bx
        d_h += 0.5 * THETA * exact_power(by, THETA - 1.0) * d_by

    d_inter -= d_union
    d_w += d_union * h
    d_h += d_union * w
    d_width = tl.where(width > 0, d_inter * ih, 0.0)
    d_height = tl.where(height > 0, d_inter * iw, 0.0)
    g1 = -d_w - d_width * _step(x1, X1) + d_cw * cw1 + d_ox * 0.5
    g2 = -d_h - d_height * _step(y1, Y1) + d_ch * ch1 + d_oy * 0.5
    g3 = d_w + d_width * _step(X2, x2) + d_cw * cw2 + d_ox * 0.5
    g4 = d_h + d_height * _step(Y2, y2) + d_ch * ch2 + d_oy * 0.5
    return loss, _within(left, g1), _within(top, g2), _within(right, g3), _within(bottom, g4)


@triton.jit
def _step(a, b):
    """Derivative of the maximum of two values with respect to the first."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _limited(x):
    return tl.where(x > MAX_COORDINATE, MAX_COORDINATE, tl.where(x < -MAX_COORDINATE, -MAX_COORDINATE, x))


@triton.jit
def _within(x, grad):
    """Derivative through the clamp of `_limited`: 0 beyond the limit."""
    return tl.where(tl.abs(x) > MAX_COORDINATE, 0.0, grad)


@triton.jit
def _ratio(numerator, denominator):
    """Ratio and its two derivatives, 0 where the denominator does not exceed `GUARD`."""
    is_above = denominator > GUARD
    safe = tl.where(is_above, denominator, 1.0)
    value = tl.where(is_above, tl.div_rn(numerator, safe), 0.0)
    value = tl.where(denominator == denominator, value, denominator)
    grad = tl.where(is_above, 1.0 / safe, 0.0)
    return value, grad, -value * grad


@triton.jit
def _hull(a, b, A, B):
    """Length of the smallest interval with four points, and its derivatives with respect to the first two."""
    low, high = tl.minimum(a, b), tl.maximum(a, b)
    some_low, some_high = tl.minimum(low, A), tl.maximum(high, A)
    through_low = _step(A, low) * _step(B, some_low)
    through_high = _step(high, A) * _step(some_high, B)
    is_low, is_high = _step(b, a), _step(a, b)
    length = tl.maximum(some_high, B) - tl.minimum(some_low, B)
    return (
        length,
        is_high * through_high - is_low * through_low,
        (1.0 - is_high) * through_high - (1.0 - is_low) * through_low,
    )


@triton.jit
def _shape(side, target):
    """1 − exp(−|w − W| / max(w, W)) with sides clamped at 0, and its derivative with respect to w."""
    w, W = tl.where(side < 0, 0.0, side), tl.where(target < 0, 0.0, target)
    larger = tl.maximum(w, W)
    floor = tl.where(larger < SIDE_GUARD, SIDE_GUARD, larger)
    gap = tl.abs(w - W)
    difference = tl.div_rn(gap, floor)
    decay = exp(-difference)
    grad = _sign(w - W) / floor
    grad -= tl.where(larger >= SIDE_GUARD, gap / (floor * floor) * _step(w, W), 0.0)
    return 1.0 - decay, tl.where(side > 0, grad * decay, 0.0)
