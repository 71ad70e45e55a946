# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train on data that are labelled in part, with and without the keys that say so, and with all labels.

`python examples/regions.py` trains all arms with one seed after another, `python examples/regions.py parts seeds=2
epochs=3` those of one of the two datasets. You should see a line for each run, and at the end means and verdicts, which
are in `runs/regions/results.md` too. Ctrl-C keeps what is finished in `runs/regions/results.csv`, and the same command
goes on. The data are synthetic and small, and trained on from scratch: what carries over is the method.
"""

import csv
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from ultralytics import YOLO
from ultralytics.cfg import smart_value
from ultralytics.utils import SETTINGS
from ultralytics.utils.metrics import box_iou

import yolo_lossplug
from yolo_lossplug.partly import write_partly
from yolo_lossplug.tools.compare.significance import MIN_SEEDS, holm, mean_and_deviation

MODEL = Path(__file__).parent / "problems-model.yaml"
FOLDER = Path("runs/regions")
COMMON = {
    "epochs": 40,
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
PAIRS = {
    "parts": (("annotated", "stock"), ("annotated", "all labels")),
    "ignored": (("ignore", "dropped"), ("ignore", "kept as a class")),
}
"""Arms whose runs with the same seed are compared."""
MEASURES = ("mAP50", "mAP50-95", "recall", "precision", "confidence")
SHOWN = ("mAP50", "mAP50-95", "recall", "precision", "F1", "calibration gap")
CONFIDENCE = 0.25
HEAD = f"""\
# Data that are labelled in part

Synthetic images of 160 px, 96 to train on and 64 to judge by, which have all labels; a narrow detector from scratch,
40 epochs, no mosaic: `python examples/regions.py`. The last weights are judged, by the three classes.
Recall, precision and F1 are those of detections with a confidence of {CONFIDENCE} or more, matched at IoU 0.5; the
calibration gap is how far their mean confidence is from their precision, and the lower the better.

- `parts`: one half of the images has the labels of two classes alone, the other those of the third. `stock` does not
  know; `annotated` has the key of that name; `all labels` is the same images with all labels.
- `ignored`: in one quarter of each image, all objects are under one box of a class of its own. `kept as a class` trains
  on it, `dropped` leaves it out, `ignore` has the key of that name.
"""


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
    text = summary(rows)
    (FOLDER / "results.md").write_text(text, encoding="utf-8")
    print("\n" + text)


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


def values_of(rows, data, arm):
    """Return the measures of an arm, each with its values by seed."""
    mine = sorted((row for row in rows if (row["data"], row["arm"]) == (data, arm)), key=lambda row: int(row["seed"]))
    values = {name: np.array([float(row[name]) for row in mine]) for name in MEASURES}
    recall, precision = values["recall"], values["precision"]
    values["F1"] = 2 * recall * precision / np.maximum(1e-9, recall + precision)
    values["calibration gap"] = np.abs(precision - values.pop("confidence"))
    return values


def differences(rows, data, measure):
    """Return the paired differences of both comparisons of a dataset; higher is better."""
    sign = -1 if measure == "calibration gap" else 1
    found = {arm: values_of(rows, data, arm)[measure] for pair in PAIRS[data] for arm in pair}
    return {pair: sign * (found[pair[0]] - found[pair[1]]) for pair in PAIRS[data]}


def summary(rows):
    """Return means of the arms, and verdicts on them, in Markdown; of the seeds that all arms of a dataset have."""
    means = [f"| data | arm | seeds | {' | '.join(SHOWN)} |", "|---" * (3 + len(SHOWN)) + "|"]
    verdicts = ["| data | arms | measure | mean difference | interval | verdict |", "|---" * 6 + "|"]
    for data in dict.fromkeys(row["data"] for row in rows):
        seeds = [{row["seed"] for row in rows if (row["data"], row["arm"]) == (data, arm)} for arm in ARMS[data]]
        common = set.intersection(*seeds)
        kept = [row for row in rows if row["data"] == data and row["seed"] in common]
        for arm in ARMS[data] if common else ():
            pairs = [mean_and_deviation(values_of(kept, data, arm)[name].tolist()) for name in SHOWN]
            cells = [f"{mean:.3f}" + (f" ± {spread:.3f}" if spread is not None else "") for mean, spread in pairs]
            means.append(f"| {data} | {arm} | {len(common)} | {' | '.join(cells)} |")
        for name in SHOWN if len(common) >= MIN_SEEDS else ():
            for (arm, other), one in holm(differences(kept, data, name)).items():
                cells = (f"`{arm}` and `{other}`", name, f"{one.mean:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}")
                verdicts.append(f"| {data} | {' | '.join(cells)} | {one.verdict} |")
    note = (
        "Differences of runs with the same seed, the first arm less the second, counted so that higher is better,\n"
        "with Student's interval, at 95 % for the two comparisons of a measure together (Holm), not for all measures.\n"
    )
    return "\n".join([HEAD, *means, "", "## Verdicts", "", note, *verdicts, ""])


if __name__ == "__main__":
    assert yolo_lossplug.is_enabled()
    main()
