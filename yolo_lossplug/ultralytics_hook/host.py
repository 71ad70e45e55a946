# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is asked of Ultralytics outside of a training: device, dataset, model and batches, as a trainer has them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from ultralytics import RTDETR, YOLO
from ultralytics.data import build_yolo_dataset
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace
from ultralytics.utils.torch_utils import select_device

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.ultralytics_hook.console import explained
from yolo_lossplug.ultralytics_hook.criterion import class_names
from yolo_lossplug.ultralytics_hook.family import is_named_rtdetr

STRIDE = 32
"""Sides of batches are multiples of it, as a trainer has them for all but the largest models."""
OF_DATA = ("data", "fraction", "single_cls")
"""Arguments that a trainer reads a dataset's description with."""


def device_of(value: Any) -> torch.device:
    """Return the device that a user names, of several the first, as the host chooses it.

    Raises:
        LossPlugError: If it is not there.
    """
    try:
        return select_device("" if value is None else value, verbose=False)
    except Exception as error:
        raise LossPlugError(f"device={value} is not available here; give cpu, or the index of a GPU.") from error


def dataset_of(args: Mapping[str, Any], task: Optional[str] = None) -> dict[str, Any]:
    """Return the description of a dataset, from arguments of `yolo train`; without a task of one with boxes.

    Raises:
        LossPlugError: If there is no such data.
    """
    known = {key: args[key] for key in OF_DATA if args.get(key) is not None}
    trainer: Any = SimpleNamespace()
    trainer.args = IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, **known, "task": task or "detect"})
    with explained(f"data={args['data']} cannot be read"):
        try:
            found = BaseTrainer.get_dataset(trainer)
        except RuntimeError as error:  # its words around the reason
            raise error.__cause__ or error from None
    return found if isinstance(found, dict) else trainer.data  # early releases return the splits


def load_model(name: Any, task: Any = None) -> Any:
    """Return a model of a file, of the class that the command line takes.

    Raises:
        LossPlugError: If it cannot be used.
    """
    with explained(f"model={name} cannot be used"):
        model = RTDETR(name) if is_named_rtdetr(name) else YOLO(name, task=task)
        model._check_is_pytorch_model()
    return model


def network_of(model: Any, cfg: Any, data: Optional[Mapping[str, Any]]) -> Any:
    """Return the network that a trainer starts from: for the classes, channels and keypoints of a dataset.

    Without the description of one it is the loaded model's own.

    Raises:
        LossPlugError: If the model cannot be built for it.
    """
    network = model.model
    if data is not None:
        kind = model.task_map[model.task]["trainer"]
        trainer = kind.__new__(kind)  # without a run, which would load the data and make a folder
        trainer.args, trainer.data, trainer.resume, trainer.callbacks = cfg, data, False, defaultdict(list)
        with explained(f"a model of task={model.task} cannot be built for data={cfg.data}"):
            source, weights = (network.yaml, network) if model.ckpt else (model.cfg, None)
            trainer.model = network = trainer.get_model(cfg=source, weights=weights, verbose=False)
            trainer.set_model_attributes()
    network.task, network.args = model.task, cfg
    network.nc = len(class_names(network))
    return network


def images_of(cfg: Any, data: dict[str, Any], split: str, batch: int = 1) -> Any:
    """Return the host's dataset of a split, whose labels it caches; that of ``train`` is augmented.

    Raises:
        LossPlugError: If it cannot be read.
    """
    with explained(f"data={cfg.data} cannot be read"):
        return build_yolo_dataset(cfg, data[split], batch, data, mode=split, stride=STRIDE)


def batches_of(cfg: Any, data: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the first batches of a training, shuffled and augmented; the same in every process.

    Raises:
        LossPlugError: If the data cannot be read.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dataset = images_of(cfg, data, "train", cfg.batch)
    loader = DataLoader(dataset, cfg.batch, shuffle=True, collate_fn=dataset.collate_fn)
    with explained(f"data={cfg.data} cannot be read"):
        return [batch for _, batch in zip(range(count), loader)]


def moved(batch: Mapping[str, Any], device: Union[str, torch.device]) -> dict[str, Any]:
    """Return a batch whose tensors are on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
