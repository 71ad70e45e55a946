# SPDX-License-Identifier: AGPL-3.0-or-later
"""Norms of the gradients of a loss on the first batches of a dataset, with the weights that training starts from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import TASKS
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook.criterion import class_names
from yolo_lossplug.ultralytics_hook.family import is_rtdetr, with_task
from yolo_lossplug.ultralytics_hook.trial import one_run, one_step
from yolo_lossplug.ultralytics_hook.trial.problems import moved

N_BATCHES, SEED = 4, 0
"""Batches of a measurement, and its seed, whatever the seeds of the runs are."""
WEIGHTS = {"one2many": "o2m", "one2one": "o2o"}
"""Attributes of the host's end-to-end criterion that weight its branches; releases without them add both."""


def norms(args: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the L2 norms of the gradients of the box and the class term by the head's outputs, for each arm.

    All arms see the same batches, augmented as in training, and the same weights; nothing is trained. The gradient is
    that of all batches and branches together, an end-to-end branch with the weight that the host gives it at the start.

    Args:
        args: As `yolo train` takes them, common to all arms.
        arms: Further arguments of each: our keys, or gains.

    Returns:
        Norms by Ultralytics' keys of the gains, ``box`` and ``cls``; gains are included.

    Raises:
        LossPlugError: If the model has no gains to match, or model or data cannot be used.
    """
    with _seeded():
        try:
            return _norms(args, arms)
        except LossPlugError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise LossPlugError(f"the gradients for match_gains=True cannot be measured: {reason}") from error


def _norms(args: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    data = check_det_dataset(args["data"])
    host = _host(args, data)
    device = device_of(args.get("device"))
    host.to(device).train()
    steps = []
    for keys in arms:
        cfg = get_cfg(overrides={**args, **keys, "loss_engine": "reference", "mode": "train", "task": host.task})
        one = one_step.Trial(host, {}, None, cfg, select(with_task(vars(cfg), type(host))))
        steps.append((one_step.criterion_of(one), one))  # one criterion for all batches: some losses remember
    squares = [dict.fromkeys(("box", "cls"), 0.0) for _ in arms]
    for batch in _batches(args, data, host):
        on_device = moved(batch, device)
        on_device["img"] = on_device["img"].float() / 255
        with torch.no_grad():
            outputs = host(on_device["img"])
        for total, (criterion, one) in zip(squares, steps):
            found = _squares(criterion, one._replace(batch=dict(on_device), preds=_leaves(outputs)))
            total.update({key: total[key] + found[key] for key in total})
    return [{key: value**0.5 for key, value in total.items()} for total in squares]


def _squares(criterion: Any, one: one_step.Trial) -> dict[str, float]:
    """Return the squared norms of one step, summed over branches."""
    by_branch = one_step.grad_norms(criterion, one)
    weighted = [
        [(value * getattr(criterion, WEIGHTS.get(branch, ""), 1.0)) ** 2 for value in values]
        for branch, values in by_branch.items()
    ]
    box, cls, *_ = (sum(values) for values in zip(*weighted)) if weighted else (0.0, 0.0)
    return {"box": box, "cls": cls}


def _host(args: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    """Return the model that a training would start from.

    Raises:
        LossPlugError: If its gains are no keys.
    """
    made = one_run.load(args["model"], args.get("task"))
    if made.task not in TASKS or is_rtdetr(type(made.model)):
        raise LossPlugError(
            f"match_gains=True: model={args['model']} has no gains box= and cls= to scale. Remove match_gains."
        )
    names = {0: "item"} if args.get("single_cls") else data["names"]
    host = one_step.with_classes(made.model, names, data.get("kpt_shape"))
    pretrained = args.get("pretrained")
    if isinstance(pretrained, (str, Path)):
        host.load(one_run.load(pretrained, made.task).model)
    elif pretrained is False:
        fresh = type(host)(host.yaml, nc=len(names), verbose=False)
        fresh.names, fresh.task = host.names, host.task
        host = fresh
    host.nc = len(class_names(host))  # as a trainer sets it
    return host


def _batches(args: Mapping[str, Any], data: dict[str, Any], host: Any) -> Iterator[dict[str, Any]]:
    """Yield the first batches with objects of the training split, shuffled and augmented as in training."""
    cfg = get_cfg(overrides={**args, "mode": "train", "task": host.task, "cache": False})
    stride = max(int(host.stride.max()), 32)
    dataset = build_yolo_dataset(cfg, data["train"], cfg.batch, data, mode="train", stride=stride)
    loader = DataLoader(
        dataset,
        batch_size=min(cfg.batch, len(dataset)),
        shuffle=not cfg.rect,
        collate_fn=dataset.collate_fn,
        generator=torch.Generator().manual_seed(SEED),
    )
    n_seen = 0
    for batch in loader:
        if len(batch["cls"]):
            n_seen += 1
            yield batch
        if n_seen == N_BATCHES:
            return


def _leaves(preds: Any) -> Any:
    """Return the outputs of a head with tensors that gradients end in; its input features stay as they are.

    So the graph of the whole network, with its memory, is not needed.
    """
    if isinstance(preds, Tensor):
        return preds.detach().requires_grad_(preds.is_floating_point())
    if isinstance(preds, Mapping):
        return {key: value if key == "feats" else _leaves(value) for key, value in preds.items()}
    return type(preds)([_leaves(value) for value in preds]) if isinstance(preds, (list, tuple)) else preds


def device_of(value: Any) -> torch.device:
    """Return the first device that a value of `device=` names; the processor where that is not here.

    Ultralytics' own choice would set the environment that the runs inherit.

    >>> device_of("cpu"), device_of(["cpu", "cpu"])
    (device(type='cpu'), device(type='cpu'))
    """
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    word = str("" if first is None else first).strip("[]() ").partition(",")[0].removeprefix("cuda:")
    if word in ("cpu", "mps"):
        return torch.device(word)
    index = int(word) if word.isdigit() else 0
    return torch.device("cuda", index) if index < torch.cuda.device_count() else torch.device("cpu")


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed what draws weights, order and augmentation, and give the caller its own states back."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # the runs need it
