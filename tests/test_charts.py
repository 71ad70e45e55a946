# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lines of plots stay apart: in colour, for the colour-blind, and in grey."""

from itertools import combinations, islice

import numpy as np

from yolo_lossplug import charts

ARMS = 12
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1, 1.089])
EYES = {
    "all": np.eye(3),
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
"""What is seen of linear RGB (Machado et al., 2009)."""


def lab(colour, eye="all"):
    rgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    parts = XYZ @ np.clip(np.array(EYES[eye]) @ linear, 0, 1) / WHITE
    x, y, z = np.where(parts > 0.008856, np.cbrt(parts), 7.787 * parts + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_12_lines_are_told_apart_by_every_eye_and_in_grey():
    styles = list(islice(charts.styles(), ARMS))
    assert len({style["color"] for style in styles}) == ARMS
    assert len({(style["color"], style["linestyle"]) for style in islice(charts.styles(), 60)}) == 60
    assert all(a["linestyle"] != b["linestyle"] and a["marker"] != b["marker"] for a, b in zip(styles, styles[1:]))
    for eye in EYES:
        least = min(np.linalg.norm(lab(a["color"], eye) - lab(b["color"], eye)) for a, b in combinations(styles, 2))
        assert least > 15, "a difference of 2 is just noticeable side by side"
    lightness = [lab(style["color"])[0] for style in styles]
    assert min(abs(a - b) for a, b in zip(lightness, lightness[1:])) > 20
    assert max(lightness) < 75, "from paper"
