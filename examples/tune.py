# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tune numbers of a loss with Ultralytics' own tuner, or with Ray Tune: `python examples/tune.py use_ray=True`.

You should see a line `LossPlug: box focal-eiou(focal_gamma=...) · ...` in every run, with another value each time, and
the best at the end. Any key of `yolo train` can be added: `python examples/tune.py iterations=30 epochs=50 imgsz=640`.
Ray Tune needs `pip install 'yolo-lossplug[ray]'`.
"""

import sys
from pathlib import Path

from ultralytics import YOLO
from ultralytics.cfg import smart_value

import yolo_lossplug  # noqa: F401  enough; not even needed where the package is installed

DATA = Path(__file__).parent.parent / "configs" / "data" / "shapes128.yaml"
SPACE = {"focal_gamma": (0.1, 1.5), "box": (4.0, 12.0)}
"""Keys of ours and of Ultralytics, with their ranges."""


def main(iterations=2, use_ray=False, epochs=1, imgsz=64, **keys):
    """Vary the keys, and print what came out."""
    run = {"data": str(DATA.resolve()), "loss": "focal-eiou", "epochs": epochs, "imgsz": imgsz, "plots": False, **keys}
    if not use_ray:
        YOLO("yolov8n.yaml").tune(space=SPACE, iterations=iterations, val=True, save=False, **run)
        return
    from ray import tune

    space = {key: tune.uniform(*limits) for key, limits in SPACE.items()}
    found = YOLO("yolov8n.yaml").tune(space=space, use_ray=True, iterations=iterations, **run)
    for result in found:
        tried = ", ".join(f"{key}={result.config[key]:.3f}" for key in SPACE)
        print(f"{tried}: {result.error or result.metrics.get('metrics/mAP50-95(B)')}")


if __name__ == "__main__":
    main(**{key: smart_value(value) for key, value in (word.split("=", 1) for word in sys.argv[1:])})
