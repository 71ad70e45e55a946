# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train two losses on the embedded dataset and print what each reached.

You should see, for each run, a line `LossPlug: box eiou · ...` before the first epoch. Any key of `yolo train` can be
added: `python examples/train.py epochs=25 imgsz=160`.
"""

import sys
from pathlib import Path

from ultralytics import YOLO
from ultralytics.cfg import smart_value

import yolo_lossplug  # noqa: F401  enough; not even needed where the package is installed

DATA = Path(__file__).parent.parent / "configs" / "data" / "shapes128.yaml"


def main(epochs=3, imgsz=96, **keys):
    """Train the stock loss and another one."""
    for loss in ("ciou", "focal-eiou"):
        model = YOLO("yolov8n.yaml")
        metrics = model.train(data=str(DATA), loss=loss, epochs=epochs, imgsz=imgsz, plots=False, **keys)
        print(f"{loss}: mAP50 {metrics.box.map50:.3f} after {epochs} epochs, in {model.trainer.save_dir}")


if __name__ == "__main__":
    main(**{key: smart_value(value) for key, value in (word.split("=", 1) for word in sys.argv[1:])})
