# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train with what advice names for each problem of a dataset, and tell which of it helped.

`python examples/problems.py` trains all with the reported settings, `python examples/problems.py tiny seeds=2 epochs=2`
one of them with others. You should see a line for each run, and the differences from the stock loss at the end of each
problem. Ctrl-C keeps what is finished, and the same command goes on. `runs/problems/NAME/` holds the comparison, and
`runs/problems/results/` the runs of each problem as a table, with `about.json`, which says how they were made.
The data are synthetic and small, and trained on from scratch: what carries over is the method. For your own data:
`lossplug compare data=my.yaml model=yolov8n.pt arms="[{'loss':'ciou'},{'tal_topk':7}]" seeds=5 epochs=100`.
"""

import csv
import datetime
import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two runs go side by side, and a wider one would be no faster

from ultralytics.cfg import smart_value
from ultralytics.data.utils import check_det_dataset

import yolo_lossplug
from yolo_lossplug.charts import read_table
from yolo_lossplug.tools.compare.command import compare
from yolo_lossplug.tools.compare.plan import directory_of, jobs_of, plan_of
from yolo_lossplug.ultralytics_hook.trial.one_run import history

HERE = Path(__file__).parent
MODEL = HERE / "problems-model.yaml"
METRIC = "mAP50-95"
COMMON = {
    "epochs": 50,
    "imgsz": 160,
    "batch": 8,
    "optimizer": "AdamW",
    "lr0": 0.005,
    "warmup_epochs": 1,
    "mosaic": 0.0,
    "scale": 0.2,  # the stock 0.5 would halve objects of 4 pixels
    "val": False,  # the last epoch alone is validated, so that no run picks its best one
    "plots": False,
    "workers": 0,
    "amp": False,
}
ENGINE = "loss_engine"
OF_EACH = ("data", "model")
STOCK = {"loss": "ciou"}
FOCAL_GAIN = 5.0  # of configs/focal-cls.yaml: class losses that damp easy elements have a far smaller sum
PROBLEMS = {
    "plain": ("Control", [{"loss": "eiou"}, {"loss": "wiou-v3"}, {"loss": "focal-eiou"}]),
    "tiny": (
        "Tiny objects",
        [
            {"loss": "nwd"},
            {"loss": "ciou+nwd"},
            {"tal_min_side": 32},
            {"loss": "inner-ciou", "inner_ratio": 1.2},
        ],
    ),
    "crowds": ("Crowds", [{"nms_iou": "diou"}, {"tal_topk": 7}, {"tal_topk": 13}]),
    "rare": (
        "A rare class",
        [
            {"cls_weights": [1.0, 1.0, 2.5]},
            {"cls_loss": "qfl", "cls": FOCAL_GAIN},
            {"cls_loss": "varifocal", "cls": FOCAL_GAIN},
            {"data": "shapes-rare-repeated.yaml", "epochs": 39},  # of 124 images: 50 epochs of 96 are as many
        ],
    ),
    "labels": ("Wrong labels", [{"loss": "wiou-v3"}, {"loss": "alpha-ciou"}, {"loss": "focal-eiou"}]),
    "thin": ("Thin objects", [{"loss": "eiou"}, {"loss": "shape-iou", "shape_scale": 1.0}, {"loss": "focal-eiou"}]),
}
"""Title of each problem, and the keys that are compared with the stock loss: values of docs, recipes and papers."""


def main(names, **keys):
    """Compare for each problem, and write its table."""
    for name in names or PROBLEMS:
        arguments = arguments_of(name, **keys)
        folder = compare(arguments)
        print((folder / "summary.md").read_text(encoding="utf-8"))
        command = " ".join(
            ["python examples/problems.py", name, *(f"{k}={v}" for k, v in keys.items() if k != "project")]
        )
        write(name, arguments, command, folder.parent / "results")


def arguments_of(name, arms=None, **keys):
    """Return the arguments of a comparison; arms= takes the first of a problem only, to try the rest of it."""
    chosen = [STOCK, *PROBLEMS[name][1]][:arms]
    place = {"project": "runs/problems", "name": name, "metric": METRIC, "seeds": 5}
    devices = {} if "device" in keys else {"devices": "cpu,cpu"}
    data = f"shapes-{name}.yaml"
    return {"data": data, "model": str(MODEL), **COMMON, **devices, **place, **keys, "arms": chosen}


def write(name, arguments, command, folder):
    """Write what the runs of a problem have reached, without folders of this machine, and how they were made."""
    folder.mkdir(exist_ok=True)
    plan = plan_of(arguments)
    directory = directory_of(plan, plan.name, plan.project)
    done = [job for job in jobs_of(plan, directory) if job.read()]
    rows = [{k: v for k, v in row.items() if k != "save_dir"} for row in read_table(directory / "results.csv")]
    write_rows(rows, folder / f"{name}.csv")
    if plan.args["val"]:
        write_curves(name, [job for job in done if job.arm == plan.arms[0].name], folder / "stock_curves.csv")
    about = about_of(plan, [job.read() for job in done])
    file = folder / "about.json"
    problems = json.loads(file.read_text(encoding="utf-8"))["problems"] if file.is_file() else {}
    problems[name] = {
        "title": PROBLEMS[name][0],
        "data": arguments["data"],
        "command": command,
        "metric": plan.metric,
        "arms": {arm.name: {k: v for k, v in arm.keys.items() if k != ENGINE} for arm in plan.arms},
        "objects": objects_of(arguments["data"]),
    }
    file.write_text(json.dumps({**about, "problems": problems}, indent=2) + "\n", encoding="utf-8")


def write_rows(rows, file):
    """Write a table."""
    with file.open("w", encoding="utf-8", newline="") as text:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_curves(name, jobs, file):
    """Add the metrics of every epoch of some runs to a table, in place of those of the same problem."""
    kept = [row for row in read_table(file) if row["problem"] != name] if file.is_file() else []
    curves = [
        {"problem": name, "seed": job.seed, "epoch": int(row["epoch"])}
        | {metric: row[f"metrics/{metric}(B)"] for metric in ("mAP50", "mAP50-95")}
        for job in jobs
        for row in history(job.folder)
    ]
    write_rows(kept + curves, file)


def about_of(plan, results):
    """Return how the runs of all problems were made."""
    versions = {f"yolo-lossplug {yolo_lossplug.__version__}, {result['versions']}" for result in results}
    return {
        "date": datetime.date.today().isoformat(),
        "versions": "; ".join(sorted(versions)),
        "hardware": "; ".join(sorted({result["hardware"] for result in results})),
        "model": MODEL.name,
        "common": {**{k: v for k, v in plan.args.items() if k not in OF_EACH}, ENGINE: plan.arms[0].keys[ENGINE]},
        "seeds": list(plan.seeds),
    }


def objects_of(data):
    """Return statistics of the labels of a dataset, sides in pixels of the images."""
    found = check_det_dataset(data)
    train, val = (labels_of(found[split]) for split in ("train", "val"))
    boxes = np.concatenate(train)
    sides = boxes[:, 3:] * COMMON["imgsz"]
    return {
        "train images": len(train),
        "train objects": len(boxes),
        "val images": len(val),
        "val objects": sum(len(one) for one in val),
        "median objects per image": float(np.median([len(one) for one in train])),
        "median side": round(float(np.median(sides)), 1),
        "smallest side": round(float(sides.min()), 1),
        "largest side": round(float(sides.max()), 1),
        "median elongation": round(float(np.median(sides.max(1) / sides.min(1))), 2),
        "train objects per class": {found["names"][i]: int((boxes[:, 0] == i).sum()) for i in range(found["nc"])},
    }


def labels_of(images):
    """Return the labels (objects, 5) of every image in a folder."""
    folder = Path(images).parent.parent / "labels" / Path(images).name
    return [np.loadtxt(file, ndmin=2).reshape(-1, 5) for file in sorted(folder.glob("*.txt"))]


if __name__ == "__main__":
    words = sys.argv[1:]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    main(
        [word for word in words if "=" not in word],
        **{key: smart_value(value) for key, value in options.items()},
    )
