# SPDX-License-Identifier: AGPL-3.0-or-later
"""Compare two losses with two seeds on the embedded dataset from Python, and print the differences.

You should see four trainings, and a table where all is "within noise": two seeds and three epochs show nothing.
The same from the command line: `lossplug compare data=configs/data/shapes128.yaml model=yolov8n.yaml loss=ciou,eiou`.
"""

import sys
from pathlib import Path

from ultralytics.cfg import smart_value

from yolo_lossplug.tools.compare.command import compare

DATA = Path(__file__).parent.parent / "configs" / "data" / "shapes128.yaml"


def main(**keys):
    """Train, and print the summary."""
    run = {"data": str(DATA), "model": "yolov8n.yaml", "epochs": 3, "imgsz": 64, "plots": False}
    folder = compare({**run, "loss": "ciou,eiou", "seeds": 2, **keys})
    print((folder / "summary.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(**{key: smart_value(value) for key, value in (word.split("=", 1) for word in sys.argv[1:])})
