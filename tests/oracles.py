# SPDX-License-Identifier: AGPL-3.0-or-later
"""One scalar formula per loss, in plain Python, written from the papers, under the name of the loss.

Boxes are (x1, y1, x2, y2); `rotated_oracles` has those of rotated ones.
`sg` marks what the gradient does not go through.
"""

import inspect
import math
from functools import cache
from types import SimpleNamespace

WHOLE = {}
"""Box losses: ``(p, t, *, options)``."""
TERMS = {}
"""Overlap losses: ``(g, *, options)``, the geometry of a pair, give a list of penalties."""
MODIFIERS = {}
"""Prefixes, first what acts first: ``(m, *, options)`` change `g`, `u`, `terms` and `weight` of a namespace."""
CLASS = {}
"""Class losses: ``(s, y, *, options)`` of a logit and a target."""
BATCH = {}
"""Class losses of which one element depends on the others: ``(logits, targets, *, options)`` give a list."""
SOFTMAX = {}
"""Losses of classify: ``(p, *, options)`` of the probability of the true class."""


def of(table, name):
    """Register a function as the oracle of a loss."""

    def register(function):
        table[name] = function
        return function

    return register


class Constants:
    """Marks numbers that are constants of the gradient: while they are held, each stays what it was at first."""

    def __init__(self):
        self.held = self.position = None

    def __call__(self, number):
        if self.held is None:
            return number
        if self.position == len(self.held):
            self.held.append(number)
        self.position += 1
        return self.held[self.position - 1]


sg = Constants()


def gradient(formula, point, step=1e-5):
    """Return the derivatives of a formula of several numbers at a point, by differences."""

    def value(i, change):
        sg.position = 0
        return formula([x + change * (i == j) for j, x in enumerate(point)])

    sg.held = []
    try:
        value(0, 0.0)
        return [(value(i, step) - value(i, -step)) / (2 * step) for i in range(len(point))]
    finally:
        sg.held = None


def geometry(p, t):
    (x1, y1, x2, y2), (a1, b1, a2, b2) = p, t
    g = SimpleNamespace(w=x2 - x1, h=y2 - y1, W=a2 - a1, H=b2 - b1)
    g.dx, g.dy = (x1 + x2 - a1 - a2) / 2, (y1 + y2 - b1 - b2) / 2
    g.inter = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
    g.union = g.w * g.h + g.W * g.H - g.inter
    g.u = g.inter / g.union
    g.p, g.t = p, t
    g.cw, g.ch = max(x2, a2) - min(x1, a1), max(y2, b2) - min(y1, b1)
    g.rho2, g.c2 = g.dx**2 + g.dy**2, g.cw**2 + g.ch**2
    g.distance = g.rho2 / g.c2
    return g


@of(WHOLE, "l1")
def l1(p, t):
    return sum(abs(a - b) for a, b in zip(p, t)) / 4


@of(WHOLE, "l2")
def l2(p, t):
    return sum((a - b) ** 2 for a, b in zip(p, t)) / 4


@of(WHOLE, "smooth-l1")
def smooth_l1(p, t, smooth_l1_beta=1.0):
    beta, total = smooth_l1_beta, 0.0
    for a, b in zip(p, t):
        d = abs(a - b)
        total += d * d / (2 * beta) if d < beta else d - beta / 2
    return total / 4


@of(TERMS, "iou")
def iou(g):
    return []


@of(TERMS, "giou")
def giou(g):
    hull = g.cw * g.ch
    return [(hull - g.union) / hull]


@of(TERMS, "diou")
def diou(g):
    return [g.distance]


@of(TERMS, "ciou")
def ciou(g):
    v = 4 / math.pi**2 * (math.atan(g.W / g.H) - math.atan(g.w / g.h)) ** 2
    return [g.distance, sg(v / (1 - g.u + v)) * v if v else 0.0]


@of(TERMS, "eiou")
def eiou(g):
    return [g.distance, (g.w - g.W) ** 2 / g.cw**2, (g.h - g.H) ** 2 / g.ch**2]


@of(TERMS, "siou")
def siou(g, siou_theta=4.0):
    rho = math.hypot(g.dx, g.dy)
    angle = math.sin(2 * math.asin(min(min(abs(g.dx), abs(g.dy)) / rho, 1.0))) if rho else 0.0
    gamma = 2 - angle
    distance = 2 - math.exp(-gamma * (g.dx / g.cw) ** 2) - math.exp(-gamma * (g.dy / g.ch) ** 2)
    shape = sum((1 - math.exp(-abs(a - b) / max(a, b))) ** siou_theta for a, b in ((g.w, g.W), (g.h, g.H)))
    return [distance / 2, shape / 2]


@of(WHOLE, "log-iou")
def log_iou(p, t):
    return -math.log(max(geometry(p, t).u, 1e-6))


@of(WHOLE, "riou")
def riou(p, t, riou_beta=0.95):
    """The integral from u to 1 of the gradient that the paper describes, over that from 0 to 1."""
    return rectified(geometry(p, t).u, riou_beta) / rectified(0.0, riou_beta)


@cache
def rectified(start, beta, n=4000):
    """Return the integral by Simpson's rule, over the logarithm of the distance from the pole, which is near 1."""
    delta = 1 - beta
    pole = beta + delta * beta / (beta - delta)
    width = pole - beta  # the gradient a·x + b − k/(c − x) is largest where a = k/(c − x)², at x = beta: k = a·width²

    def shape(s):  # zero at 1 by the choice of b
        gap = math.exp(s)
        return (pole - gap + (width**2 / (pole - 1) - 1) - width**2 / gap) * gap

    low, high = math.log(pole - 1), math.log(pole - start)
    step = (high - low) / n
    inner = sum((4 if i % 2 else 2) * shape(low + i * step) for i in range(1, n))
    return step / 3 * (shape(low) + inner + shape(high))


@of(TERMS, "mpdiou")
def mpdiou(g):
    (x1, y1, x2, y2), (a1, b1, a2, b2) = g.p, g.t
    diagonal = 640**2 + 640**2
    return [((x1 - a1) ** 2 + (y1 - b1) ** 2) / diagonal, ((x2 - a2) ** 2 + (y2 - b2) ** 2) / diagonal]


@of(TERMS, "shape-iou")
def shape_iou(g, shape_scale=0.0):
    larger = max(g.W, g.H)
    ww, hh = (g.W / larger) ** shape_scale, (g.H / larger) ** shape_scale
    ww, hh = 2 * ww / (ww + hh), 2 * hh / (ww + hh)
    distance = (hh * g.dx**2 + ww * g.dy**2) / (g.cw**2 + g.ch**2)
    omega_w, omega_h = hh * abs(g.w - g.W) / max(g.w, g.W), ww * abs(g.h - g.H) / max(g.h, g.H)
    return [distance, 0.5 * ((1 - math.exp(-omega_w)) ** 4 + (1 - math.exp(-omega_h)) ** 4)]


def edges(g):
    (x1, y1, x2, y2), (a1, b1, a2, b2) = g.p, g.t
    return ((abs(x1 - a1) + abs(x2 - a2)) / g.W + (abs(y1 - b1) + abs(y2 - b2)) / g.H) / 4


@of(TERMS, "piou")
def piou(g):
    return [1 - math.exp(-(edges(g) ** 2))]


@of(WHOLE, "piou-v2")
def piou_v2(p, t, piou_lambda=1.3):
    g = geometry(p, t)
    x = piou_lambda * math.exp(-edges(g))
    return sg(3 * x * math.exp(-x * x)) * (1 - g.u + sum(piou(g)))


@of(WHOLE, "nwd")
def nwd(p, t, nwd_constant=12.8):
    g = geometry(p, t)
    return 1 - math.exp(-math.sqrt(g.dx**2 + g.dy**2 + ((g.w - g.W) ** 2 + (g.h - g.H) ** 2) / 4) / nwd_constant)


@of(WHOLE, "gcd")
def gcd(p, t):
    g = geometry(p, t)
    squared = 0.0
    for d, a, b in ((g.dx, g.w, g.W), (g.dy, g.h, g.H)):
        squared += (d / a) ** 2 + (d / b) ** 2 + (((a - b) / a) ** 2 + ((a - b) / b) ** 2) / 4
    return 1 - math.exp(-math.sqrt(squared / 2))


def between(p, t, share):
    return tuple((1 - share) * a + share * b for a, b in zip(p, t))


@of(WHOLE, "interp-iou")
def interp_iou(p, t, interp_alpha=0.98):
    return 2 - geometry(p, t).u - geometry(between(p, t, interp_alpha), t).u


@of(WHOLE, "d-interp-iou")
def d_interp_iou(p, t, interp_low=0.6, interp_high=0.99):
    u = geometry(p, t).u
    return 2 - u - geometry(between(p, t, sg(min(max(1 - u, interp_low), interp_high))), t).u


@of(WHOLE, "wiou")
def wiou(p, t):
    g = geometry(p, t)
    return math.exp(g.rho2 / sg(g.c2)) * (1 - g.u)


@of(WHOLE, "wiou-v2")
def wiou_v2(p, t, wiou_gamma=0.5, wiou_momentum=0.01):
    """In the first step, whose mean is 1."""
    return sg((1 - geometry(p, t).u) ** wiou_gamma) * wiou(p, t)


def focusing(g, alpha, delta):
    beta = 1 - g.u
    return sg(beta / (delta * alpha ** (beta - delta)))


@of(WHOLE, "wiou-v3")
def wiou_v3(p, t, wiou_alpha=1.9, wiou_delta=3.0, wiou_momentum=0.01):
    return focusing(geometry(p, t), wiou_alpha, wiou_delta) * wiou(p, t)


def scaled(box, ratio):
    x1, y1, x2, y2 = box
    x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * ratio / 2, (y2 - y1) * ratio / 2
    return x - w, y - h, x + w, y + h


@of(WHOLE, "uiou")
def uiou(p, t, uiou_start=2.0, uiou_end=0.5):
    """In the first epoch."""
    g = geometry(scaled(p, uiou_start), scaled(t, uiou_start))
    return 1 - g.u + sum(ciou(g))


@of(MODIFIERS, "inner")
def inner(m, inner_ratio=0.7):
    m.u = geometry(scaled(m.g.p, inner_ratio), scaled(m.g.t, inner_ratio)).u


@of(MODIFIERS, "focaler")
def focaler(m, focaler_d=0.0, focaler_u=0.95):
    m.u = min(max((m.u - focaler_d) / (focaler_u - focaler_d), 0.0), 1.0)


@of(MODIFIERS, "alpha")
def alpha(m, alpha_power=3.0):
    m.u, m.terms = raised(m.u, alpha_power), [raised(x, alpha_power) for x in m.terms]


def raised(x, power):
    """Return a power; what rounding leaves of 0 stays 0, of which a small power would be large."""
    return x**power if x > 1e-14 else 0.0


@of(MODIFIERS, "focal")
def focal(m, focal_gamma=0.5):
    m.weight *= sg(m.g.u**focal_gamma)


@of(MODIFIERS, "wise")
def wise(m, wiou_alpha=1.9, wiou_delta=3.0, wiou_momentum=0.01):
    """In the first step."""
    m.weight *= focusing(m.g, wiou_alpha, wiou_delta)


def split(name, bases, modifiers):
    """Return the parts of a name, the base first and then what acts first; None if it has unknown ones."""
    prefixes = set()
    while name not in bases:
        prefix = next((m for m in modifiers if name.startswith(f"{m}-")), None)
        if prefix is None:
            return None
        prefixes.add(prefix)
        name = name.removeprefix(f"{prefix}-")
    return bases[name], *(function for m, function in modifiers.items() if m in prefixes)


def own(function, options):
    """Return those of some options that a function has."""
    return {key: value for key, value in options.items() if key in inspect.signature(function).parameters}


def mixture(first, second):
    def value(function, p, t, options):
        takes_all = "options" in inspect.signature(function).parameters
        return function(p, t, **(options if takes_all else own(function, options)))

    def mixed(p, t, loss_mix=0.5, **options):
        return loss_mix * value(first, p, t, options) + (1 - loss_mix) * value(second, p, t, options)

    return mixed


def box(name):
    """Return the oracle of a box loss with its prefixes, or of a mixture of two; None if there is none."""
    if "+" in name:
        return mixture(*map(box, name.split("+")))
    if name in WHOLE:
        return WHOLE[name]
    parts = split(name, TERMS, MODIFIERS)

    def stacked(p, t, **options):
        base, *modifiers = parts
        g = geometry(p, t)
        m = SimpleNamespace(g=g, u=g.u, terms=base(g, **own(base, options)), weight=1.0)
        for modify in modifiers:
            modify(m, **own(modify, options))
        return m.weight * (1 - m.u + sum(m.terms))

    return parts and stacked


def sigmoid(s):
    return 1 / (1 + math.exp(-s)) if s >= 0 else math.exp(s) / (1 + math.exp(s))


@of(CLASS, "bce")
def bce(s, y):
    return max(s, 0) - s * y + math.log1p(math.exp(-abs(s)))


@of(CLASS, "focal")
def class_focal(s, y, cls_focal_gamma=2.0, cls_focal_alpha=0.25):
    p = sigmoid(s)
    p_t = y * p + (1 - y) * (1 - p)
    a_t = 1.0 if cls_focal_alpha is None else cls_focal_alpha * y + (1 - cls_focal_alpha) * (1 - y)
    return a_t * (1 - p_t) ** cls_focal_gamma * bce(s, y)


@of(CLASS, "qfl")
def qfl(s, y, cls_qfl_beta=2.0):
    return abs(y - sigmoid(s)) ** cls_qfl_beta * bce(s, y)


@of(CLASS, "varifocal")
def varifocal(s, y, cls_vfl_gamma=2.0, cls_vfl_alpha=0.75, cls_vfl_detach=0):
    weight = cls_vfl_alpha * sigmoid(s) ** cls_vfl_gamma
    return (y if y > 0 else sg(weight) if cls_vfl_detach else weight) * bce(s, y)


@of(CLASS, "mal")
def mal(s, y, cls_mal_gamma=1.5):
    return bce(s, y**cls_mal_gamma) if y > 0 else sg(sigmoid(s) ** cls_mal_gamma) * bce(s, 0)


@of(CLASS, "poly")
def poly(s, y, cls_poly_epsilon=1.0):
    p = sigmoid(s)
    return bce(s, y) + cls_poly_epsilon * (1 - (y * p + (1 - y) * (1 - p)))


@of(CLASS, "asl")
def asl(s, y, cls_asl_gamma_pos=1.0, cls_asl_gamma_neg=4.0, cls_asl_clip=0.05):
    shifted = max(sigmoid(s) - cls_asl_clip, 0.0)
    missed = bce(s, 0) if cls_asl_clip == 0 else -math.log(1 - shifted)
    return y * sigmoid(-s) ** cls_asl_gamma_pos * bce(s, 1) + (1 - y) * shifted**cls_asl_gamma_neg * missed


@of(BATCH, "slide")
def slide(logits, targets):
    """The mean of the whole batch decides."""
    positive = [y for y in targets if y > 0]
    return slid(logits, targets, sum(positive) / len(positive))


@of(BATCH, "ema-slide")
def ema_slide(logits, targets):
    """In the first step, whose mean was 1."""
    positive = [y for y in targets if y > 0]
    decay = 0.999 * (1 - math.exp(-1 / 2000))
    return slid(logits, targets, decay + (1 - decay) * sum(positive) / len(positive))


def slid(logits, targets, mean):
    mean = max(mean, 0.2)
    weights = [1 if y <= mean - 0.1 else math.exp(1 - mean) if y < mean else math.exp(1 - y) for y in targets]
    return [w * bce(s, y) for w, s, y in zip(weights, logits, targets)]


@of(BATCH, "ghm")
def ghm(logits, targets, cls_ghm_bins=10, cls_ghm_momentum=0.75):
    """In the first step."""
    lengths = [sg(abs(sigmoid(s) - y)) for s, y in zip(logits, targets)]
    bins = [min(int(length * cls_ghm_bins), cls_ghm_bins - 1) for length in lengths]
    used = len(set(bins))
    density = {b: (1 - cls_ghm_momentum) * bins.count(b) for b in bins}
    return [len(bins) / density[b] / used * bce(s, y) for b, s, y in zip(bins, logits, targets)]


@of(SOFTMAX, "ce")
def ce(p):
    return -math.log(p)


@of(SOFTMAX, "focal")
def softmax_focal(p, cls_focal_gamma=2.0):
    return -((1 - p) ** cls_focal_gamma) * math.log(p)


@of(SOFTMAX, "poly")
def softmax_poly(p, cls_poly_epsilon=1.0):
    return -math.log(p) + cls_poly_epsilon * (1 - p)
