# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images of 1, 3, 7 and 10 channels: what trains is inspected, verified and benched, and so is data of another form."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics.data import converter

from tests.conftest import dataset
from tests.runs import slow, train
from yolo_lossplug.tools import verify
from yolo_lossplug.tools.bench import command as bench
from yolo_lossplug.tools.inspect import command as inspect
from yolo_lossplug.ultralytics_hook.compatibility import version_numbers
from yolo_lossplug.ultralytics_hook.console import VERSION
from yolo_lossplug.ultralytics_hook.engines import record
from yolo_lossplug.ultralytics_hook.trial import bench_cases
from yolo_lossplug.ultralytics_hook.trial.bench_cases import STEP, Work

OLD = version_numbers(VERSION) < (8, 3, 140)
pytestmark = pytest.mark.skipif(OLD, reason="this release knows images of three channels only")


def written(folder, channels):
    """Write a dataset of images with a number of channels, pages of a TIFF where a PNG has no room, and return it."""
    content = yaml.safe_load(Path(dataset("channels")).read_text())
    for image in Path(content["path"]).rglob("*.png"):
        grey = cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)
        target = folder / image.relative_to(content["path"])
        target.parent.mkdir(parents=True, exist_ok=True)
        if channels in (1, 3):
            cv2.imwrite(str(target), np.stack([grey] * channels, -1))
        else:
            cv2.imwritemulti(str(target.with_suffix(".tiff")), [grey // (i + 1) for i in range(channels)])
        label = folder / "labels" / image.relative_to(f"{content['path']}/images").with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text((Path(content["path"]) / label.relative_to(folder)).read_text())
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "path": str(folder), "channels": channels}))
    return str(folder / "data.yaml")


@pytest.mark.parametrize("channels", [slow(1), slow(3), slow(7), slow(10)])
def test_every_command_takes_what_trains(channels, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "USER_CONFIG_DIR", tmp_path / "config")
    data, tiny = written(tmp_path / "data", channels), {"imgsz": 64, "batch": 2, "device": "cpu"}
    trained = str(train(data=data, loss="eiou", project=str(tmp_path), val=False).best)
    _, rows = verify.verify({"model": trained, "loss": "siou", **tiny})
    assert all(row.agrees for row in rows)
    inspect.main({"model": trained, "data": data, "imgsz": 64, "batch": 4, "project": str(tmp_path / "inspect")})
    assert next(tmp_path.rglob("report.html")).is_file()
    monkeypatch.setattr(bench_cases, "SECONDS", {"cpu": 0.0, "cuda": 0.0})
    for case in ({"data": data}, {"model": trained, "objects": 3}):
        _, results, _ = bench.bench({**case, "train_step": True, **tiny, "project": str(tmp_path / "bench")})
        assert not results.disqualified
        for _, by_name in results.cases:
            assert "ratio" in by_name["fast"], by_name


def test_batches_of_a_bench_come_from_data_of_another_form(tmp_path, monkeypatch):
    """The host makes its own layout of it, images included."""

    async def convert(*args, **kwargs):
        return Path(written(tmp_path / "data", 3))

    monkeypatch.setattr(converter, "convert_ndjson_to_yolo", convert)
    (tmp_path / "x.ndjson").write_text('{"type": "dataset"}')
    work = Work("", STEP, "yolov8n.yaml", 2, 64, 0, str(tmp_path / "x.ndjson"), False)
    model = bench_cases.model_of(work.model, work.data)
    problems = bench_cases.problems_of(work, model, torch.device("cpu"), 2)
    assert model.nc == 3 and [problem.batch["img"].shape for problem in problems] == [(2, 3, 64, 64)] * 2
