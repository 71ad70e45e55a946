# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rotated boxes as Gaussian distributions: losses of the obb task.

A box is (x, y, w, h, angle), and its Gaussian has the mean (x, y) and the covariance R·diag(w², h²)/k·Rᵀ, with k = 12
in ProbIoU, the variance of a uniform density, and k = 4 in the others. Sides below a hundredth of a unit count as that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Callable, NamedTuple

import torch
from torch import Tensor

from yolo_lossplug.box_losses.eiou import PAPER as FOCAL
from yolo_lossplug.box_losses.modifiers import ALPHA, RAISE, WEIGHT, AlphaPower, FocalGamma
from yolo_lossplug.boxes import power
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, rotated_box_loss, rotated_modifier

PROBIOU = Paper(
    "https://arxiv.org/abs/2106.06072",
    "Llerena, Jeffri M. and Zeni, Luis Felipe and Kristen, Lucas N. and Jung, Claudio",
    "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for Object Detection",
    "arXiv",
    2021,
)
GWD = Paper(
    "https://arxiv.org/abs/2101.11952",
    "Yang, Xue and Yan, Junchi and Ming, Qi and Wang, Wentao and Zhang, Xiaopeng and Tian, Qi",
    "Rethinking Rotated Object Detection with Gaussian Wasserstein Distance Loss",
    "ICML",
    2021,
    booktitle="Proceedings of the 38th International Conference on Machine Learning",
    volume="139",
    pages="11830--11841",
)
KLD = Paper(
    "https://arxiv.org/abs/2106.01883",
    "Yang, Xue and Yang, Xiaojiang and Yang, Jirui and Ming, Qi and Wang, Wentao and Tian, Qi and Yan, Junchi",
    "Learning High-Precision Bounding Box for Rotated Object Detection via Kullback-Leibler Divergence",
    "NeurIPS",
    2021,
    booktitle="Advances in Neural Information Processing Systems",
    volume="34",
    pages="18381--18394",
)
KFIOU = Paper(
    "https://arxiv.org/abs/2201.12558",
    "Yang, Xue and Zhou, Yue and Zhang, Gefan and Yang, Jirui and Wang, Wentao and Yan, Junchi and Zhang, Xiaopeng "
    "and Tian, Qi",
    "The KFIoU Loss for Rotated Object Detection",
    "ICLR",
    2023,
    booktitle="International Conference on Learning Representations",
)
MIN_ROTATED_SIDE, MAX_ROTATED_SIDE = 1e-2, 1e6
"""Sides outside are clamped: squared determinants of larger ones overflow float32."""
MAX_DISTANCE = 100.0
"""Larger Bhattacharyya distances are clamped to it, as in Ultralytics."""

Tau = Annotated[float, Option("τ of 1 − 1/(τ + f): 1 gives the loss the range [0, 1)", at_least=1)]


class Gaussian(NamedTuple):
    """Means and covariances of boxes, by their axes: sums of products of these do not cancel for long thin boxes.

    Attributes:
        x: Mean (N,).
        y: Mean (N,).
        angle: Direction of the first axis in radians (N,).
        first: Variance along the first axis (N,).
        second: Variance along the second axis (N,).
    """

    x: Tensor
    y: Tensor
    angle: Tensor
    first: Tensor
    second: Tensor

    @property
    def root(self) -> Tensor:
        """Square root of the determinant (N,)."""
        return (self.first * self.second).sqrt()

    def spread(self, dx: Tensor, dy: Tensor) -> Tensor:
        """Return dᵀ·adj(Σ)·d (N,), which is dᵀ·Σ⁻¹·d times the determinant."""
        cos, sin = torch.cos(self.angle), torch.sin(self.angle)
        return self.second * (dx * cos + dy * sin).square() + self.first * (dy * cos - dx * sin).square()


def gaussian(boxes: Tensor, k: float) -> Gaussian:
    """Return the Gaussians of boxes (N, 5) with covariance R·diag(w², h²)/k·Rᵀ."""
    x, y, w, h, angle = boxes.unbind(-1)
    first, second = (side.clamp(MIN_ROTATED_SIDE, MAX_ROTATED_SIDE).square() / k for side in (w, h))
    return Gaussian(x, y, angle, first, second)


def mixed_traces(p: Gaussian, t: Gaussian) -> tuple[Tensor, Tensor]:
    """Return tr(Σₚ·Σₜ) and tr(adj(Σₜ)·Σₚ), each (N,)."""
    like, unlike = p.first * t.first + p.second * t.second, p.first * t.second + p.second * t.first
    cos2 = torch.cos(p.angle - t.angle).square()
    return cos2 * like + (1 - cos2) * unlike, cos2 * unlike + (1 - cos2) * like


def determinant_of_sum(p: Gaussian, t: Gaussian) -> Tensor:
    """Return |Σₚ + Σₜ| (N,)."""
    return p.first * p.second + t.first * t.second + mixed_traces(p, t)[1]


def hellinger(p: Gaussian, t: Gaussian) -> Tensor:
    """Return √(1 − exp(−B)) (N,), in [0, 1], B the Bhattacharyya distance."""
    dx, dy = p.x - t.x, p.y - t.y
    determinant = determinant_of_sum(p, t)
    shift = (p.spread(dx, dy) + t.spread(dx, dy)) / determinant / 4
    shape = (determinant / (4 * p.root * t.root)).log() / 2
    return power(1 - torch.exp(-(shift + shape).clamp(0, MAX_DISTANCE)), 0.5)


def wasserstein(p: Gaussian, t: Gaussian) -> Tensor:
    """Return the 2-Wasserstein distance (N,): the root of |μₚ − μₜ|² + tr(Σₚ + Σₜ − 2(Σₚ^½ Σₜ Σₚ^½)^½)."""
    centre = (p.x - t.x).square() + (p.y - t.y).square()
    cross = power(mixed_traces(p, t)[0] + 2 * p.root * t.root, 0.5)
    shape = p.first + p.second + t.first + t.second - 2 * cross
    return power(centre + shape.clamp(min=0), 0.5)


def rotated_loss_of(
    pred: Tensor,
    target: Tensor,
    *,
    base: Callable[..., Tensor],
    modifiers: Sequence[Callable[..., Tensor]] = (),
    **context: Any,
) -> Tensor:
    """Return a loss after its modifiers, innermost first, each of which takes the loss (N,) and the boxes (N, 5)."""
    loss = base(pred, target, **context)
    for modify in modifiers:
        loss = modify(loss, pred, target)
    return loss


@rotated_box_loss(
    "probiou",
    aliases=("prob-iou",),
    formula="√(1 − exp(−B)), B the Bhattacharyya distance",
    latex=(
        r"L = \sqrt{1 - e^{-B}}",
        (
            r"B = \frac{1}{8}\,d^{\top} \Sigma^{-1} d + \frac{1}{2} "
            r"\ln\frac{\left|\Sigma\right|}{\sqrt{\left|\Sigma_p\right| \left|\Sigma_t\right|}}"
        ),
        r"d = \mu_p - \mu_t, \quad \Sigma = \frac{\Sigma_p + \Sigma_t}{2}",
    ),
    paper=PROBIOU,
    note="What Ultralytics trains with. A square says nothing about its angle.",
)
def probiou(pred: Tensor, target: Tensor) -> Tensor:
    """ProbIoU loss = Hellinger distance = √(1 − exp(−B)), in [0, 1], B the Bhattacharyya distance of the Gaussians.

    Nothing is detached.
    """
    return hellinger(gaussian(pred, 12), gaussian(target, 12))


@rotated_box_loss(
    "gwd",
    formula="1 − 1/(τ + ln(1 + d)), d the Wasserstein distance over 2·⁸√(|Σₚ|·|Σₜ|)",
    latex=(
        r"L = 1 - \frac{1}{\tau + \ln(1 + d)}",
        (
            r"d^2 = \frac{\left|\mu_p - \mu_t\right|^2 + \text{tr}\left(\Sigma_p + \Sigma_t - "
            r"2\,(\Sigma_p^{1/2} \Sigma_t \Sigma_p^{1/2})^{1/2}\right)}"
            r"{4\sqrt[4]{\left|\Sigma_p\right| \left|\Sigma_t\right|}}"
        ),
    ),
    paper=GWD,
    note="Normalised by the size of the boxes, as is usual in practice, and not in the paper: so it has no unit.",
)
def gwd(pred: Tensor, target: Tensor, *, gwd_tau: Tau = 1.0) -> Tensor:
    """GWD loss = 1 − 1/(τ + ln(1 + d)), in [0, 1) for τ = 1.

    d² = |μₚ − μₜ|² + tr(Σₚ + Σₜ − 2(Σₚ^½ Σₜ Σₚ^½)^½), divided by 4·⁴√(|Σₚ|·|Σₜ|).
    Nothing is detached.
    """
    p, t = gaussian(pred, 4), gaussian(target, 4)
    distance = wasserstein(p, t) / (2 * (p.root * t.root).pow(0.25))
    return 1 - 1 / (gwd_tau + torch.log1p(distance))


@rotated_box_loss(
    "kld",
    formula="1 − 1/(τ + ln(1 + √D)), D the Kullback-Leibler divergence",
    latex=(
        r"L = 1 - \frac{1}{\tau + \ln(1 + \sqrt{D})}",
        (
            r"D = \frac{1}{2}\left(d^{\top} \Sigma_t^{-1} d + \text{tr}(\Sigma_t^{-1} \Sigma_p) + "
            r"\ln\frac{\left|\Sigma_t\right|}{\left|\Sigma_p\right|}\right) - 1, \quad d = \mu_p - \mu_t"
        ),
    ),
    paper=KLD,
    note="Has no unit. The divergence of the prediction from the target; it is not symmetric.",
)
def kld(pred: Tensor, target: Tensor, *, kld_tau: Tau = 1.0) -> Tensor:
    """KLD loss = 1 − 1/(τ + ln(1 + √D)), in [0, 1) for τ = 1.

    D = ½·((μₚ − μₜ)ᵀ Σₜ⁻¹ (μₚ − μₜ) + tr(Σₜ⁻¹ Σₚ) + ln(|Σₜ|/|Σₚ|)) − 1.
    The root is that of the authors' code. Nothing is detached.
    """
    p, t = gaussian(pred, 4), gaussian(target, 4)
    spread = t.spread(p.x - t.x, p.y - t.y) + mixed_traces(p, t)[1]
    divergence = spread / (2 * t.first * t.second) + (t.root / p.root).log() - 1
    return 1 - 1 / (kld_tau + torch.log1p(power(divergence.clamp(min=0), 0.5)))


@rotated_box_loss(
    "kfiou",
    aliases=("kf-iou",),
    formula="exp(1 − 3·KFIoU) − 1 + mean smooth L1 of the centres",
    latex=(
        r"L = e^{1 - 3\,\text{KFIoU}} - 1 + L_c",
        r"\text{KFIoU} = \frac{V}{V_p + V_t - V}, \quad V = 4\sqrt{\left|\Sigma\right|}",
        r"\Sigma = \Sigma_p - \Sigma_p (\Sigma_p + \Sigma_t)^{-1} \Sigma_p",
    ),
    paper=KFIOU,
    note="The overlap of the Kalman-filtered Gaussian, at most 1/3, times 3 so that a perfect box costs nothing.",
)
def kfiou(pred: Tensor, target: Tensor) -> Tensor:
    """KFIoU loss = exp(1 − 3·KFIoU) − 1 + L_c, KFIoU = V/(Vₚ + Vₜ − V), in [0, ∞).

    V are the areas 4·√|Σ|, that of the overlap from Σ = Σₚ − Σₚ(Σₚ + Σₜ)⁻¹Σₚ, which does not know the centres; L_c is
    the mean smooth L1 distance of the centres in units of the target's mean side.
    The factor 3 is ours. Nothing is detached.
    """
    p, t = gaussian(pred, 4), gaussian(target, 4)
    overlap = p.root * t.root / determinant_of_sum(p, t).sqrt()  # |Σₚ − Σₚ(Σₚ + Σₜ)⁻¹Σₚ| = |Σₚ|·|Σₜ|/|Σₚ + Σₜ|
    kf = overlap / (p.root + t.root - overlap)
    side = 2 * t.root.sqrt().unsqueeze(-1)
    centres = torch.nn.functional.smooth_l1_loss(pred[:, :2] / side, target[:, :2] / side, reduction="none")
    return torch.exp(1 - 3 * kf) - 1 + centres.mean(-1)


@rotated_modifier(
    "alpha",
    stage=RAISE,
    formula="1 − u → 1 − u^α",
    latex=r"1 - u \to 1 - u^{\alpha}",
    paper=ALPHA,
    note="α > 1 raises the weight of pairs of high overlap. For losses of the form 1 − u.",
    bases=("probiou", "gwd", "kld"),
)
def rotated_alpha(loss: Tensor, pred: Tensor, target: Tensor, *, alpha_power: AlphaPower = 3.0) -> Tensor:
    """Raise the overlap u of a loss 1 − u to the power α.

    Nothing is detached.
    """
    return 1 - power((1 - loss).clamp(min=0), alpha_power)


@rotated_modifier(
    "focal",
    stage=WEIGHT,
    formula="weight = sg(ProbIoU^γ)",
    latex=r"L \to \text{sg}(\text{ProbIoU}^{\gamma}) \cdot L",
    paper=FOCAL,
    note="ProbIoU, the overlap that Ultralytics assigns rotated boxes by, instead of the paper's IoU.",
)
def rotated_focal(loss: Tensor, pred: Tensor, target: Tensor, *, focal_gamma: FocalGamma = 0.5) -> Tensor:
    """Weight each pair by its detached overlap, 1 − the Hellinger distance, to the power γ.

    The weight is detached.
    """
    return loss * (1 - probiou(pred.detach(), target)).clamp(min=0).pow(focal_gamma)
