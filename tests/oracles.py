# SPDX-License-Identifier: AGPL-3.0-or-later
"""One scalar formula per loss, in plain Python, written from the papers. Boxes are (x1, y1, x2, y2)."""

import math
from types import SimpleNamespace


def geometry(p, t):
    (x1, y1, x2, y2), (a1, b1, a2, b2) = p, t
    g = SimpleNamespace(w=x2 - x1, h=y2 - y1, W=a2 - a1, H=b2 - b1)
    g.dx, g.dy = (x1 + x2 - a1 - a2) / 2, (y1 + y2 - b1 - b2) / 2
    g.inter = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
    g.union = g.w * g.h + g.W * g.H - g.inter
    g.u = g.inter / g.union
    g.cw, g.ch = max(x2, a2) - min(x1, a1), max(y2, b2) - min(y1, b1)
    g.distance = (g.dx**2 + g.dy**2) / (g.cw**2 + g.ch**2)
    return g


def l1(p, t):
    return sum(abs(a - b) for a, b in zip(p, t)) / 4


def l2(p, t):
    return sum((a - b) ** 2 for a, b in zip(p, t)) / 4


def smooth_l1(p, t, smooth_l1_beta=1.0):
    beta, total = smooth_l1_beta, 0.0
    for a, b in zip(p, t):
        d = abs(a - b)
        total += d * d / (2 * beta) if d < beta else d - beta / 2
    return total / 4


def iou_terms(g):
    return []


def giou_terms(g):
    hull = g.cw * g.ch
    return [(hull - g.union) / hull]


def diou_terms(g):
    return [g.distance]


def ciou_terms(g):
    v = 4 / math.pi**2 * (math.atan(g.W / g.H) - math.atan(g.w / g.h)) ** 2
    return [g.distance, v * v / (1 - g.u + v) if v else 0.0]


def eiou_terms(g):
    return [g.distance, (g.w - g.W) ** 2 / g.cw**2, (g.h - g.H) ** 2 / g.ch**2]


def siou_terms(g, siou_theta=4.0):
    rho = math.hypot(g.dx, g.dy)
    angle = math.sin(2 * math.asin(min(min(abs(g.dx), abs(g.dy)) / rho, 1.0))) if rho else 0.0
    gamma = 2 - angle
    distance = 2 - math.exp(-gamma * (g.dx / g.cw) ** 2) - math.exp(-gamma * (g.dy / g.ch) ** 2)
    shape = sum((1 - math.exp(-abs(a - b) / max(a, b))) ** siou_theta for a, b in ((g.w, g.W), (g.h, g.H)))
    return [distance / 2, shape / 2]


def log_iou(p, t):
    return -math.log(max(geometry(p, t).u, 1e-6))


def riou(p, t, riou_beta=0.95):
    """The integral from u to 1 of the gradient that the paper describes, by Simpson's rule."""
    beta = riou_beta
    delta = 1 - beta
    pole = beta + delta * beta / (beta - delta)
    width = pole - beta  # the gradient a·x + b − k/(c − x) is largest where a = k/(c − x)², at x = beta: k = a·width²

    def shape(x):  # zero at 1 by the choice of b
        return x + (width**2 / (pole - 1) - 1) - width**2 / (pole - x)

    def integral(start):
        n = 20000
        step = (1 - start) / n
        inner = sum((4 if i % 2 else 2) * shape(start + i * step) for i in range(1, n))
        return step / 3 * (shape(start) + inner + shape(1))

    return integral(geometry(p, t).u) / integral(0.0)


TERMS = {
    "iou": iou_terms,
    "giou": giou_terms,
    "diou": diou_terms,
    "ciou": ciou_terms,
    "eiou": eiou_terms,
    "siou": siou_terms,
}
WHOLE = {"l1": l1, "l2": l2, "smooth-l1": smooth_l1, "log-iou": log_iou, "riou": riou}


def plain(terms):
    def loss(p, t, **options):
        g = geometry(p, t)
        return 1 - g.u + sum(terms(g, **options))

    return loss


def alpha(terms):
    def loss(p, t, alpha_power=3.0, **options):
        g = geometry(p, t)
        return 1 - g.u**alpha_power + sum(max(x, 0.0) ** alpha_power for x in terms(g, **options))

    return loss


def focal(loss):
    def weighted(p, t, focal_gamma=0.5, **options):
        return geometry(p, t).u ** focal_gamma * loss(p, t, **options)

    return weighted


BOX = {**WHOLE, **{name: plain(terms) for name, terms in TERMS.items()}}
BOX.update({f"alpha-{name}": alpha(TERMS[name]) for name in ("iou", "giou", "diou", "ciou", "eiou")})
BOX.update({f"focal-{name}": focal(plain(terms)) for name, terms in TERMS.items()})


def sigmoid(s):
    return 1 / (1 + math.exp(-s)) if s >= 0 else math.exp(s) / (1 + math.exp(s))


def bce(s, y):
    return max(s, 0) - s * y + math.log1p(math.exp(-abs(s)))


def cls_focal(s, y, cls_focal_gamma=2.0, cls_focal_alpha=0.25):
    p = sigmoid(s)
    p_t = y * p + (1 - y) * (1 - p)
    a_t = 1.0 if cls_focal_alpha is None else cls_focal_alpha * y + (1 - cls_focal_alpha) * (1 - y)
    return a_t * (1 - p_t) ** cls_focal_gamma * bce(s, y)


def qfl(s, y, cls_qfl_beta=2.0):
    return abs(y - sigmoid(s)) ** cls_qfl_beta * bce(s, y)


def varifocal(s, y, cls_vfl_gamma=2.0, cls_vfl_alpha=0.75):
    return (y if y > 0 else cls_vfl_alpha * sigmoid(s) ** cls_vfl_gamma) * bce(s, y)


CLASS = {"bce": bce, "focal": cls_focal, "qfl": qfl, "varifocal": varifocal}
