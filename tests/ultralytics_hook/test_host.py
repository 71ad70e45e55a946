# SPDX-License-Identifier: AGPL-3.0-or-later
"""Device, dataset and model as commands get them, beside those of a training."""

from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.cfg import get_cfg

from tests.conftest import dataset
from tests.runs import TINY, refuses, slow, train
from yolo_lossplug import LossPlugError
from yolo_lossplug.ultralytics_hook import host
from yolo_lossplug.ultralytics_hook.compatibility import version_numbers
from yolo_lossplug.ultralytics_hook.console import VERSION
from yolo_lossplug.ultralytics_hook.trial import one_step

MODELS = {"detect": "yolov8n.yaml", "segment": "yolov8n-seg.yaml", "pose": "yolov8n-pose.yaml"}


class Stop(Exception):
    """Ends a training that has its model and its data."""


def trained(args):
    model, seen = YOLO(args["model"]), []

    def stop(trainer):
        seen.append(trainer)
        raise Stop

    model.add_callback("on_pretrain_routine_end", stop)
    with pytest.raises(Stop):
        model.train(**{**TINY, **args})
    return seen[0]


@pytest.mark.parametrize(
    ("task", "keys", "content"),
    [
        *(("detect", {"single_cls": True}, {}), ("detect", {}, {"channels": 1}), slow("pose", {}, {})),
        slow("segment", {}, {"names": ["w", "x", "y", "z"]}),
    ],
)
def test_network_and_data_are_those_of_a_training(task, keys, content, tmp_path):
    if "channels" in content and version_numbers(VERSION) < (8, 3, 140):
        pytest.skip("this release knows images of three channels only")
    file = tmp_path / "data.yaml"
    described = yaml.safe_load(Path(dataset(f"host-{task}", task=task)).read_text())
    file.write_text(yaml.safe_dump({**described, **content}))
    args = {"model": MODELS[task], "data": str(file), "imgsz": 64, "batch": 2, "project": str(tmp_path), **keys}
    trainer = trained(args)
    data = host.dataset_of(args, task)
    network = host.network_of(host.load_model(args["model"]), get_cfg(overrides={**args, "task": task}), data)
    assert {name: data[name] for name in ("names", "nc", "train")} == {
        name: trainer.data[name] for name in ("names", "nc", "train")
    }
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (network, trainer.model)]
    assert shapes[0] == shapes[1] and network.names == trainer.model.names and network.nc == trainer.model.nc
    step = one_step.trial({key: value for key, value in args.items() if key != "project"})
    assert step.batch["img"].shape[1] == content.get("channels", 3) and step.preds


@pytest.mark.slow
def test_a_checkpoint_keeps_its_weights(data, tmp_path):
    file = train(data=data, project=str(tmp_path), val=False).last
    model = host.load_model(file)
    network = host.network_of(model, get_cfg(overrides={"data": data}), host.dataset_of({"data": data}))
    expected = YOLO(file).model.state_dict()
    assert all(torch.equal(value.float(), expected[name].float()) for name, value in network.state_dict().items())


def test_what_cannot_be_had(tmp_path):
    exported = tmp_path / "x.onnx"
    exported.touch()
    refuses(r"model=.*x\.onnx cannot be used: .*should be a \*\.pt PyTorch model", host.load_model, str(exported))
    refuses("device=5,6 is not available here; give cpu, or the index of a GPU", host.device_of, "5,6")
    data = dataset("host-detect")
    made = host.load_model("yolov8n-pose.yaml")
    with pytest.raises(LossPlugError, match="a model of task=pose cannot be built for data="):
        host.network_of(made, get_cfg(overrides={"data": data}), host.dataset_of({"data": data}))
