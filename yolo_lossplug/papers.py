# SPDX-License-Identifier: AGPL-3.0-or-later
"""The papers that losses come from, by the address that a loss names."""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    """A citation.

    Attributes:
        authors: Family names, joined by "and".
        title: Title.
        venue: Where it was published.
        year: When.
    """

    authors: str
    title: str
    venue: str
    year: int

    def bibtex(self, address: str) -> str:
        """Return the BibTeX entry, with the paper's address."""
        key = f"{self.authors.split(' ')[0].lower()}{self.year}{self.title.split(' ')[0].split('-')[0].lower()}"
        fields = {"author": self.authors, "title": f"{{{self.title}}}", "year": self.year}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join(
            [f"@misc{{{key},", *lines, f"  howpublished = {{{self.venue}}},", f"  url = {{{address}}}", "}"]
        )


ARXIV = "https://arxiv.org/abs/"
PAPERS = {
    f"{ARXIV}1504.08083": Paper("Girshick", "Fast R-CNN", "ICCV", 2015),
    f"{ARXIV}1608.01471": Paper(
        "Yu and Jiang and Wang and Cao and Huang", "UnitBox: An Advanced Object Detection Network", "ACM MM", 2016
    ),
    f"{ARXIV}1708.02002": Paper(
        "Lin and Goyal and Girshick and He and Dollar", "Focal Loss for Dense Object Detection", "ICCV", 2017
    ),
    f"{ARXIV}1811.05181": Paper("Li and Liu and Wang", "Gradient Harmonized Single-stage Detector", "AAAI", 2019),
    f"{ARXIV}1902.09630": Paper(
        "Rezatofighi and Tsoi and Gwak and Sadeghian and Reid and Savarese",
        "Generalized Intersection over Union: A Metric and A Loss for Bounding Box Regression",
        "CVPR",
        2019,
    ),
    f"{ARXIV}1911.08287": Paper(
        "Zheng and Wang and Liu and Li and Ye and Ren",
        "Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression",
        "AAAI",
        2020,
    ),
    f"{ARXIV}2006.04388": Paper(
        "Li and Wang and Wu and Chen and Hu and Li and Tang and Yang",
        "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection",
        "NeurIPS",
        2020,
    ),
    f"{ARXIV}2008.03511": Paper(
        "Wang and Zhang", "Single-Shot Two-Pronged Detector with Rectified IoU Loss", "ACM MM", 2020
    ),
    f"{ARXIV}2008.13367": Paper(
        "Zhang and Wang and Dayoub and Suenderhauf", "VarifocalNet: An IoU-aware Dense Object Detector", "CVPR", 2021
    ),
    f"{ARXIV}2009.14119": Paper(
        "Ben-Baruch and Ridnik and Zamir and Noy and Friedman and Protter and Zelnik-Manor",
        "Asymmetric Loss For Multi-Label Classification",
        "ICCV",
        2021,
    ),
    f"{ARXIV}2101.11952": Paper(
        "Yang and Yan and Ming and Wang and Zhang and Tian",
        "Rethinking Rotated Object Detection with Gaussian Wasserstein Distance Loss",
        "ICML",
        2021,
    ),
    f"{ARXIV}2106.01883": Paper(
        "Yang and Yang and Yang and Ming and Wang and Tian and Yan",
        "Learning High-Precision Bounding Box for Rotated Object Detection via Kullback-Leibler Divergence",
        "NeurIPS",
        2021,
    ),
    f"{ARXIV}2106.06072": Paper(
        "Llerena and Zeni and Kristen and Jung",
        "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for Object Detection",
        "arXiv",
        2021,
    ),
    f"{ARXIV}2201.12558": Paper(
        "Yang and Zhou and Zhang and Yang and Wang and Yan and Zhang and Tian",
        "The KFIoU Loss for Rotated Object Detection",
        "ICLR",
        2023,
    ),
    f"{ARXIV}2101.08158": Paper(
        "Zhang and Ren and Zhang and Jia and Wang and Tan",
        "Focal and Efficient IOU Loss for Accurate Bounding Box Regression",
        "Neurocomputing",
        2022,
    ),
    f"{ARXIV}2110.13389": Paper(
        "Wang and Xu and Yang and Yu",
        "A Normalized Gaussian Wasserstein Distance for Tiny Object Detection",
        "arXiv",
        2021,
    ),
    f"{ARXIV}2110.13675": Paper(
        "He and Erfani and Ma and Bailey and Chi and Hua",
        "Alpha-IoU: A Family of Power Intersection over Union Losses for Bounding Box Regression",
        "NeurIPS",
        2021,
    ),
    f"{ARXIV}2204.12511": Paper(
        "Leng and Tan and Liu and Cubuk and Shi and Cheng and Anguelov",
        "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
        "ICLR",
        2022,
    ),
    f"{ARXIV}2205.12740": Paper(
        "Gevorgyan", "SIoU Loss: More Powerful Learning for Bounding Box Regression", "arXiv", 2022
    ),
    f"{ARXIV}2208.02019": Paper(
        "Yu and Huang and Chen and Su and Liu and Wang",
        "YOLO-FaceV2: A Scale and Occlusion Aware Face Detector",
        "arXiv",
        2022,
    ),
    f"{ARXIV}2301.10051": Paper(
        "Tong and Chen and Xu and Yu",
        "Wise-IoU: Bounding Box Regression Loss with Dynamic Focusing Mechanism",
        "arXiv",
        2023,
    ),
    f"{ARXIV}2307.07662": Paper(
        "Ma and Xu", "MPDIoU: A Loss for Efficient and Accurate Bounding Box Regression", "arXiv", 2023
    ),
    f"{ARXIV}2311.02877": Paper(
        "Zhang and Xu and Zhang",
        "Inner-IoU: More Effective Intersection over Union Loss with Auxiliary Bounding Box",
        "arXiv",
        2023,
    ),
    f"{ARXIV}2312.17663": Paper(
        "Zhang and Zhang",
        "Shape-IoU: More Accurate Metric considering Bounding Box Shape and Scale",
        "arXiv",
        2023,
    ),
    f"{ARXIV}2401.10525": Paper(
        "Zhang and Zhang", "Focaler-IoU: More Focused Intersection over Union Loss", "arXiv", 2024
    ),
    f"{ARXIV}2408.06636": Paper(
        "Luo and Cai and Shao and Wang", "Unified-IoU: For High-Quality Object Detection", "arXiv", 2024
    ),
    f"{ARXIV}2507.12420": Paper(
        "Liu and Watanabe",
        "InterpIoU: Rethinking Bounding Box Regression with Interpolation-Based IoU Optimization",
        "arXiv",
        2025,
    ),
    "https://doi.org/10.1016/j.neunet.2023.11.041": Paper(
        "Liu and Wang and Li and Zhao and Zhao and Ma",
        "Powerful-IoU: More straightforward and faster bounding box regression loss with a nonmonotonic focusing "
        "mechanism",
        "Neural Networks 170",
        2024,
    ),
}
