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
    g.p, g.t = p, t
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


def mpdiou_terms(g):
    (x1, y1, x2, y2), (a1, b1, a2, b2) = g.p, g.t
    diagonal = 640**2 + 640**2
    return [((x1 - a1) ** 2 + (y1 - b1) ** 2) / diagonal, ((x2 - a2) ** 2 + (y2 - b2) ** 2) / diagonal]


def shape_iou_terms(g, shape_scale=0.0):
    total = g.W**shape_scale + g.H**shape_scale
    ww, hh = 2 * g.W**shape_scale / total, 2 * g.H**shape_scale / total
    distance = (hh * g.dx**2 + ww * g.dy**2) / (g.cw**2 + g.ch**2)
    omega_w, omega_h = hh * abs(g.w - g.W) / max(g.w, g.W), ww * abs(g.h - g.H) / max(g.h, g.H)
    return [distance, 0.5 * ((1 - math.exp(-omega_w)) ** 4 + (1 - math.exp(-omega_h)) ** 4)]


def edges(g):
    (x1, y1, x2, y2), (a1, b1, a2, b2) = g.p, g.t
    return ((abs(x1 - a1) + abs(x2 - a2)) / g.W + (abs(y1 - b1) + abs(y2 - b2)) / g.H) / 4


def piou_terms(g):
    return [1 - math.exp(-(edges(g) ** 2))]


def piou_v2(p, t, piou_lambda=1.3):
    g = geometry(p, t)
    x = piou_lambda * math.exp(-edges(g))
    return 3 * x * math.exp(-x * x) * (1 - g.u + sum(piou_terms(g)))


def nwd(p, t, nwd_constant=12.8):
    g = geometry(p, t)
    return 1 - math.exp(-math.sqrt(g.dx**2 + g.dy**2 + ((g.w - g.W) ** 2 + (g.h - g.H) ** 2) / 4) / nwd_constant)


def between(p, t, share):
    return tuple((1 - share) * a + share * b for a, b in zip(p, t))


def interp_iou(p, t, interp_alpha=0.98):
    return 2 - geometry(p, t).u - geometry(between(p, t, interp_alpha), t).u


def d_interp_iou(p, t, interp_low=0.6, interp_high=0.99):
    u = geometry(p, t).u
    return 2 - u - geometry(between(p, t, min(max(1 - u, interp_low), interp_high)), t).u


def wiou(p, t):
    g = geometry(p, t)
    return math.exp(g.distance) * (1 - g.u)


def wiou_v2(p, t, wiou_gamma=0.5, wiou_momentum=0.01):
    """In the first step, whose mean is 1."""
    return (1 - geometry(p, t).u) ** wiou_gamma * wiou(p, t)


def factor(p, t, alpha, delta):
    beta = 1 - geometry(p, t).u
    return beta / (delta * alpha ** (beta - delta))


def wiou_v3(p, t, wiou_alpha=1.9, wiou_delta=3.0, wiou_momentum=0.01):
    return factor(p, t, wiou_alpha, wiou_delta) * wiou(p, t)


def scaled(box, ratio):
    x1, y1, x2, y2 = box
    x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * ratio / 2, (y2 - y1) * ratio / 2
    return x - w, y - h, x + w, y + h


def uiou(p, t, uiou_start=2.0, uiou_end=0.5):
    """In the first epoch."""
    g = geometry(scaled(p, uiou_start), scaled(t, uiou_start))
    return 1 - g.u + sum(ciou_terms(g))


TERMS = {
    "iou": iou_terms,
    "giou": giou_terms,
    "diou": diou_terms,
    "ciou": ciou_terms,
    "eiou": eiou_terms,
    "siou": siou_terms,
    "mpdiou": mpdiou_terms,
    "shape-iou": shape_iou_terms,
    "piou": piou_terms,
}
WHOLE = {
    "l1": l1,
    "l2": l2,
    "smooth-l1": smooth_l1,
    "log-iou": log_iou,
    "riou": riou,
    "piou-v2": piou_v2,
    "nwd": nwd,
    "interp-iou": interp_iou,
    "d-interp-iou": d_interp_iou,
    "wiou": wiou,
    "wiou-v2": wiou_v2,
    "wiou-v3": wiou_v3,
    "uiou": uiou,
}


def stacked(modifiers, base):
    """Return the loss with modifiers, whose options are given by the words of the keys."""

    def loss(p, t, **given):
        of_modifiers = {"inner_ratio", "focaler_d", "focaler_u", "alpha_power", "focal_gamma"}
        of_modifiers |= {key for key in given if key.startswith("wiou_")}
        g = geometry(p, t)
        terms = TERMS[base](g, **{key: value for key, value in given.items() if key not in of_modifiers})
        u, weight = g.u, 1.0
        if "inner" in modifiers:
            ratio = given.get("inner_ratio", 0.7)
            u = geometry(scaled(p, ratio), scaled(t, ratio)).u
        if "focaler" in modifiers:
            low, high = given.get("focaler_d", 0.0), given.get("focaler_u", 0.95)
            u = min(max((u - low) / (high - low), 0.0), 1.0)
        if "alpha" in modifiers:
            power = given.get("alpha_power", 3.0)
            u, terms = u**power, [max(x, 0.0) ** power for x in terms]
        if "focal" in modifiers:
            weight *= g.u ** given.get("focal_gamma", 0.5)
        if "wise" in modifiers:
            weight *= factor(p, t, given.get("wiou_alpha", 1.9), given.get("wiou_delta", 3.0))
        return weight * (1 - u + sum(terms))

    return loss


def box(name):
    """Return the oracle of a name, None if there is none."""
    if name in WHOLE:
        return WHOLE[name]
    longest_first = sorted(TERMS, key=len, reverse=True)
    base = next((base for base in longest_first if name == base or name.endswith(f"-{base}")), None)
    modifiers = name.removesuffix(base or "").strip("-").split("-") if base else ["?"]
    known = {"inner", "focaler", "alpha", "focal", "wise", ""}
    return stacked(set(modifiers), base) if set(modifiers) <= known else None


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


def poly(s, y, cls_poly_epsilon=1.0):
    p = sigmoid(s)
    return bce(s, y) + cls_poly_epsilon * (1 - (y * p + (1 - y) * (1 - p)))


def asl(s, y, cls_asl_gamma_pos=1.0, cls_asl_gamma_neg=4.0, cls_asl_clip=0.05):
    p = sigmoid(s)
    shifted = max(p - cls_asl_clip, 0.0)
    missed = bce(s, 0) if cls_asl_clip == 0 else -math.log(1 - shifted)
    return y * sigmoid(-s) ** cls_asl_gamma_pos * bce(s, 1) + (1 - y) * shifted**cls_asl_gamma_neg * missed


CLASS = {"bce": bce, "focal": cls_focal, "qfl": qfl, "varifocal": varifocal, "poly": poly, "asl": asl}


def slide(logits, targets, mean=None):
    """The whole batch: its mean decides; a list of losses."""
    positive = [y for y in targets if y > 0]
    mean = max(sum(positive) / len(positive) if mean is None else mean, 0.2)
    weights = [1 if y <= mean - 0.1 else math.exp(1 - mean) if y < mean else math.exp(1 - y) for y in targets]
    return [w * bce(s, y) for w, s, y in zip(weights, logits, targets)]


def ghm(logits, targets, cls_ghm_bins=10, cls_ghm_momentum=0.75):
    """The first step of a run; a list of losses."""
    bins = [min(int(abs(sigmoid(s) - y) * cls_ghm_bins), cls_ghm_bins - 1) for s, y in zip(logits, targets)]
    used = len(set(bins))
    density = {b: (1 - cls_ghm_momentum) * bins.count(b) for b in bins}
    return [len(bins) / density[b] / used * bce(s, y) for b, s, y in zip(bins, logits, targets)]


BATCH = {"slide": slide, "ghm": ghm, "ema-slide": slide}
"""Class losses of which one element depends on the others."""
