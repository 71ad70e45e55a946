# SPDX-License-Identifier: AGPL-3.0-or-later
"""One scalar formula per loss of rotated boxes (x, y, w, h, angle), with matrices written out."""

import math

from tests.oracles import of, own, raised, sg, split

ROTATED = {}
"""Losses of rotated boxes: ``(p, t, *, options)``."""
ROTATED_MODIFIERS = {}
"""Their prefixes: ``(loss, p, t, *, options)``."""


def turned(box, k):
    """Return the covariance R·diag(w², h²)/k·Rᵀ as a, b, d of [[a, b], [b, d]]."""
    _, _, w, h, angle = box
    c, s = math.cos(angle), math.sin(angle)
    return (w * w * c * c + h * h * s * s) / k, (w * w - h * h) * c * s / k, (w * w * s * s + h * h * c * c) / k


def det(m):
    return m[0] * m[2] - m[1] ** 2


def times(m, n):
    (a, b, d), (e, f, h) = m, n
    return ((a * e + b * f, a * f + b * h), (b * e + d * f, b * f + d * h)), a * e + 2 * b * f + d * h


def inverse(m):
    return m[2] / det(m), -m[1] / det(m), m[0] / det(m)


def quadratic(m, d):
    return m[0] * d[0] ** 2 + 2 * m[1] * d[0] * d[1] + m[2] * d[1] ** 2


@of(ROTATED, "probiou")
def probiou(p, t):
    d, sp, st = (p[0] - t[0], p[1] - t[1]), turned(p, 12), turned(t, 12)
    s = [(a + b) / 2 for a, b in zip(sp, st)]
    b = quadratic(inverse(s), d) / 8 + 0.5 * math.log(det(s) / math.sqrt(det(sp) * det(st)))
    return math.sqrt(max(1 - math.exp(-min(b, 100)), 0))


@of(ROTATED, "gwd")
def gwd(p, t, gwd_tau=1.0):
    sp, st = turned(p, 4), turned(t, 4)
    half, product = times(sp, st)[1] / 2, det(sp) * det(st)
    gap = math.sqrt(max(half**2 - product, 0))
    cross = math.sqrt(half + gap) + math.sqrt(max(half - gap, 0))  # roots of the eigenvalues of Σₚ·Σₜ
    squared = (p[0] - t[0]) ** 2 + (p[1] - t[1]) ** 2 + sp[0] + sp[2] + st[0] + st[2] - 2 * cross
    return 1 - 1 / (gwd_tau + math.log1p(math.sqrt(max(squared, 0)) / (2 * (det(sp) * det(st)) ** 0.125)))


@of(ROTATED, "kld")
def kld(p, t, kld_tau=1.0):
    d, sp, st = (p[0] - t[0], p[1] - t[1]), turned(p, 4), turned(t, 4)
    spread = quadratic(inverse(st), d) + times(inverse(st), sp)[1] + math.log(det(st) / det(sp))
    return 1 - 1 / (kld_tau + math.log1p(math.sqrt(max(0.5 * spread - 1, 0))))


@of(ROTATED, "kfiou")
def kfiou(p, t):
    sp, st = turned(p, 4), turned(t, 4)
    sums = inverse([a + b for a, b in zip(sp, st)])
    ((a, b), (c, d)), _ = times(sp, sums)
    gain = (a * sp[0] + b * sp[1], a * sp[1] + b * sp[2], c * sp[1] + d * sp[2])
    vp, vt, v = (4 * math.sqrt(max(det(s), 0)) for s in (sp, st, [x - y for x, y in zip(sp, gain)]))
    side = math.sqrt(t[2] * t[3])
    centres = sum(0.5 * x * x if abs(x) < 1 else abs(x) - 0.5 for x in ((p[0] - t[0]) / side, (p[1] - t[1]) / side))
    return math.exp(1 - 3 * v / (vp + vt - v)) - 1 + centres / 2


def corners(box):
    x, y, w, h, angle = box
    c, s = math.cos(angle), math.sin(angle)
    return [(x + i * w * c - j * h * s, y + i * w * s + j * h * c) for i in (-0.5, 0.5) for j in (-0.5, 0.5)]


@of(ROTATED, "mgiou")
def mgiou(p, t):
    total = 0.0
    for angle in (p[4], p[4] + math.pi / 2, t[4], t[4] + math.pi / 2):
        shadows = [[x * math.cos(angle) + y * math.sin(angle) for x, y in corners(box)] for box in (p, t)]
        (a, b), (c, d) = ((min(shadow), max(shadow)) for shadow in shadows)
        inter, hull = max(min(b, d) - max(a, c), 0), max(b, d) - min(a, c)
        union = b - a + d - c - inter
        total += inter / union - (hull - union) / hull
    return (1 - total / 4) / 2


@of(ROTATED_MODIFIERS, "alpha")
def rotated_alpha(loss, p, t, alpha_power=3.0):
    return 1 - raised(1 - loss, alpha_power)


@of(ROTATED_MODIFIERS, "focal")
def rotated_focal(loss, p, t, focal_gamma=0.5):
    return loss * sg((1 - probiou(p, t)) ** focal_gamma)


def rotated(name):
    """Return the oracle of a loss of rotated boxes with its prefixes, None if there is none."""
    parts = split(name, ROTATED, ROTATED_MODIFIERS)

    def stacked(p, t, **options):
        base, *modifiers = parts
        loss = base(p, t, **own(base, options))
        for modify in modifiers:
            loss = modify(loss, p, t, **own(modify, options))
        return loss

    return parts and stacked
