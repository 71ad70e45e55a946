# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train on data that are labelled in part, with and without the keys that say so, and with all labels.

`python examples/regions.py` trains all arms with one seed after another, `python examples/regions.py parts seeds=2
epochs=3` those of one of the two datasets. You should see a line for each run, and a table of means at the end. Ctrl-C
keeps what is finished in `runs/regions/results.csv`, and the same command goes on. The data are synthetic and small,
and trained on from scratch: what carries over is the method.
"""

import csv
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from ultralytics import YOLO
from ultralytics.cfg import smart_value
from ultralytics.utils import SETTINGS
from ultralytics.utils.metrics import box_iou

import yolo_lossplug
from yolo_lossplug.partly import write_partly

MODEL = Path(__file__).parent / "problems-model.yaml"
FOLDER = Path("runs/regions")
COMMON = {
    "epochs": 50,
    "imgsz": 160,
    "batch": 8,
    "optimizer": "AdamW",
    "lr0": 0.005,
    "warmup_epochs": 1,
    "mosaic": 0.0,
    "val": False,
    "plots": False,
    "workers": 0,
    "amp": False,
    "device": "cpu",
    "verbose": False,
}
NAMES = ["circle", "square", "triangle"]
HALVES, KNOWN = ["first/images", "second/images"], [NAMES[:2], NAMES[2:]]
IGNORED = {"train": "ignored/images", "names": [*NAMES, "ignored"]}
ARMS = {
    "parts": {
        "stock": {"train": HALVES, "names": NAMES},
        "annotated": {"train": HALVES, "names": NAMES, "annotated": KNOWN},
        "all labels": {"train": "images/train", "names": NAMES},
    },
    "ignored": {
        "kept as a class": IGNORED,
        "dropped": {**IGNORED, "classes": [0, 1, 2]},
        "ignore": {**IGNORED, "ignore": ["ignored"]},
    },
}
"""What the description of the data says, by dataset and arm; `classes` is a key of Ultralytics."""
MEASURES = ("mAP50", "mAP50-95", "recall", "precision", "confidence")
CONFIDENCE = 0.25


def main():
    """Train what is not in the table yet, and print the means."""
    words = [word for word in sys.argv[1:] if "=" not in word]
    given = {key: smart_value(value) for key, _, value in (word.partition("=") for word in sys.argv[1:] if "=" in word)}
    seeds, images = given.pop("seeds", 5), given.pop("images", 160)
    FOLDER.mkdir(parents=True, exist_ok=True)
    table = FOLDER / "results.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8"))) if table.is_file() else []
    for seed in range(seeds):
        for data, arm in [(one, arm) for one in words or ARMS for arm in ARMS[one]]:
            if any((row["data"], row["arm"], row["seed"]) == (data, arm, str(seed)) for row in rows):
                continue
            rows.append({"data": data, "arm": arm, "seed": str(seed), **trained(data, arm, seed, images, given)})
            with table.open("w", encoding="utf-8", newline="") as text:
                writer = csv.DictWriter(text, ["data", "arm", "seed", *MEASURES], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            print(*rows[-1].values(), flush=True)
    print("\n" + means(rows))


def trained(data, arm, seed, images, given):
    """Train an arm, and return its measures on the validation images, all of whose objects are labelled."""
    source = write_partly(Path(SETTINGS["datasets_dir"]) / f"regions-{data}-{images}", data, images, validation=64)
    about = dict(ARMS[data][arm])
    keys = {"classes": about.pop("classes")} if "classes" in about else {}
    file = FOLDER / f"{data}-{arm.replace(' ', '-')}.yaml"
    file.write_text(yaml.safe_dump({"path": str(source.resolve()), "val": "images/val", **about}))
    model, place = YOLO(MODEL, task="detect"), {"project": str(FOLDER.resolve()), "name": "run", "exist_ok": True}
    model.train(data=str(file), seed=seed, **{**COMMON, **place, **keys, **given})
    final, whole = YOLO(Path(model.trainer.last)), FOLDER / "val.yaml"
    splits = dict.fromkeys(("train", "val"), "images/val")
    whole.write_text(yaml.safe_dump({"path": str(source.resolve()), **splits, "names": about["names"]}))
    plain = {"imgsz": 160, "plots": False, "workers": 0, "device": "cpu", "verbose": False}
    judged = final.val(data=str(whole), classes=[0, 1, 2], **plain)
    values = (judged.box.map50, judged.box.map, *at_confidence(final, source))
    return dict(zip(MEASURES, (f"{value:.4f}" for value in values)))


def at_confidence(model, source):
    """Return recall, precision and mean confidence of the detections from `CONFIDENCE` on, matched at IoU 0.5."""
    found = right = objects = 0
    confidence = 0.0
    for file in sorted((source / "images" / "val").iterdir()):
        (result,) = model.predict(str(file), conf=CONFIDENCE, imgsz=160, device="cpu", verbose=False, classes=[0, 1, 2])
        text = (source / "labels" / "val" / f"{file.stem}.txt").read_text()
        gts = torch.tensor([list(map(float, line.split())) for line in text.splitlines()]).view(-1, 5)
        corners = torch.cat((gts[:, 1:3] - gts[:, 3:] / 2, gts[:, 1:3] + gts[:, 3:] / 2), 1)
        boxes, free = result.boxes, torch.ones(len(gts), dtype=torch.bool)
        for box, cls in zip(boxes.xyxyn, boxes.cls):  # by falling confidence
            iou = box_iou(box[None], corners)[0] * free * (gts[:, 0] == cls)
            if len(iou) and iou.max() >= 0.5:
                free[iou.argmax()] = False
                right += 1
        found, objects, confidence = found + len(boxes), objects + len(gts), confidence + float(boxes.conf.sum())
    return right / objects, right / max(1, found), confidence / max(1, found)


def means(rows):
    """Return means and standard deviations of the arms as a table in Markdown."""
    lines = [f"| data | arm | seeds | {' | '.join(MEASURES)} |", "|---" * (3 + len(MEASURES)) + "|"]
    for data, arm in dict.fromkeys((row["data"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["arm"]) == (data, arm)]
        cells = []
        for name in MEASURES:
            values = [float(row[name]) for row in mine]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {data} | {arm} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    assert yolo_lossplug.is_enabled()
    main()
