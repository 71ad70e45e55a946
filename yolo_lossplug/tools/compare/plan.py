# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is compared: the plan that arguments give, checked before anything is trained or written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.tools.arguments import merge, split_list
from yolo_lossplug.tools.arms import ARMS, Arm, chosen_by, values_by_key
from yolo_lossplug.tools.compare import measures
from yolo_lossplug.tools.compare.comparison import without_folders
from yolo_lossplug.ultralytics_hook.console import training_keys
from yolo_lossplug.ultralytics_hook.trial import one_run

OWN = (ARMS, "seeds", "devices", "engine", "name", "project", "metric")
RESERVED = {
    "seed": "give seeds= instead",
    "resume": "the same command continues an unfinished comparison",
    "exist_ok": "a comparison has its own folder: give name=",
    "mode": "it always trains",
    "match_gains": "`lossplug verify loss=NAME` prints the gain that matches, and arms=[...] takes gains for each arm",
}
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        arms: The choices of losses; the others are compared with the first.
        seeds: The seeds.
        args: Common arguments of all runs, as `yolo train` takes them.
        devices: Devices of runs that go side by side; empty for one after another.
        engine: ``local`` or ``ray``.
        name: Name of the comparison; None for the default.
        project: Where its folder is; None for the default.
        metric: The primary metric, which carries the verdict.
        command: The command that gives it.
    """

    arms: list[Arm]
    seeds: tuple[int, ...]
    args: dict[str, Any]
    devices: tuple[Any, ...]
    engine: str
    name: Any
    project: Any
    metric: str
    command: str


def plan_of(args: Mapping[str, Any]) -> Plan:
    """Return what is compared, checked.

    Raises:
        LossPlugError: If an argument is wrong.
    """
    _refuse_reserved(args)
    unused = {*RESERVED, "save_dir", *(["device"] if "devices" in args else [])}
    given = merge(args, training_keys() - unused)
    values = {key: str(value) if isinstance(value, Path) else value for key, value in given.values.items()}
    _refuse_missing(values)
    common = {key: value for key, value in values.items() if key not in OWN and key not in keys()}
    task = one_run.check_arguments(common)
    chosen = [_with_engine(arm, common) for arm in chosen_by(values, task, given.recipe)]
    given.say_unused(chosen)
    devices, engine = _devices(values)
    name, project = values.get("name"), values.get("project")
    metric, seeds = _metric(values), _seeds(values.get("seeds", 3))
    arms = {ARMS: [_typed(arm) for arm in chosen]} if ARMS in values else values_by_key(chosen)
    command = _command({**common, **arms, "metric": metric, "seeds": seeds})
    return Plan(chosen, seeds, common, devices, engine, name, project, metric, command)


def _metric(args: Mapping[str, Any]) -> str:
    """Return the primary metric; whether the data has its class is checked when it is read.

    Raises:
        LossPlugError: If no run could have it.
    """
    metric = str(args.get("metric", measures.ORDER[0]))
    plain = metric.removeprefix(measures.TEST)
    words = (*measures.ORDER, "accuracy_top1", "accuracy_top5")
    if not plain.startswith("AP_") and re.sub(r"^metrics/|\([BMP]\)$", "", plain) not in words:
        known = ", ".join((*measures.ORDER, *measures.SIZES, "AP_<class>"))
        raise LossPlugError(f"metric={metric} is unknown. Known: {known}; with test/ before it for split=test.")
    if metric != plain and args.get("split") != one_run.TEST:
        raise LossPlugError(f"metric={metric} needs the test split: add split=test.")
    return metric


def _refuse_reserved(args: Mapping[str, Any]) -> None:
    """Raise an error for keys that a comparison sets itself, or does not take.

    Raises:
        LossPlugError: If there is one.
    """
    for key, why in RESERVED.items():
        if key in args:
            raise LossPlugError(f"{key}={args[key]} cannot be given to compare: {why}.")


def _refuse_missing(args: Mapping[str, Any]) -> None:
    """Raise an error if data or model is missing.

    Raises:
        LossPlugError: If one is.
    """
    for key in ("data", "model"):
        if not args.get(key):
            example = "lossplug compare data=coco128.yaml model=yolov8n.yaml loss=ciou,eiou"
            raise LossPlugError(f"{key}= is missing: {example}")


def _devices(args: Mapping[str, Any]) -> tuple[tuple[Any, ...], str]:
    """Return the devices of runs that go side by side, and the engine.

    Raises:
        LossPlugError: If the engine is unknown, or does not take devices.
    """
    engine = str(args.get("engine", ENGINES[0]))
    devices = tuple(_numbered(args.get("devices", ())))
    if engine not in ENGINES:
        raise LossPlugError(f"engine={engine} is unknown. Known: {', '.join(ENGINES)}.")
    if devices and engine == "ray":
        raise LossPlugError("devices= has no effect with engine=ray: Ray schedules the runs. Remove it.")
    if devices and "device" in args:
        raise LossPlugError(
            f"device={args['device']} has no effect with devices=, which each run takes one of. Remove it."
        )
    return devices, engine


def _with_engine(arm: Arm, common: Mapping[str, Any]) -> Arm:
    """Return an arm with the engine named, so that all runs have the same, those with stock numbers too.

    Without the key such a run takes the host's own step and the others what ``auto`` chooses, and their seconds would
    tell engines apart rather than losses.

    Raises:
        LossPlugError: If the arguments of its runs are wrong.
    """
    keys_with_engine = {"loss_engine": "auto", **arm.keys}
    try:
        one_run.check_arguments({**common, **keys_with_engine})
    except LossPlugError:
        one_run.check_arguments({**common, **arm.keys})  # a task with another criterion has one engine
        return arm
    return replace(arm, keys=keys_with_engine)


def _typed(arm: Arm) -> dict[str, Any]:
    """Return the keys of an arm without the engine that `_with_engine` names."""
    return {key: value for key, value in arm.keys.items() if (key, value) != ("loss_engine", "auto")}


def _seeds(value: Any) -> tuple[int, ...]:
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    seeds = tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else tuple(_numbered(value))
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise LossPlugError(
            f"seeds={value} must be a number of seeds, at least 1, or a list of different ones: seeds=0,7."
        )
    return seeds


def _numbered(value: Any) -> list[Any]:
    """Return the values of a key that takes several, of which words of digits are numbers."""
    return [int(word) if str(word).isdecimal() else word for word in split_list(value) if word != ""]


def _command(args: Mapping[str, Any]) -> str:
    """Return the command that gives a plan; what is the default is left out, and so are folders of this machine."""
    words = {key: value for key, value in args.items() if (key, value) != ("metric", measures.ORDER[0])}
    seeds = args["seeds"]
    words["seeds"] = len(seeds) if seeds == tuple(range(len(seeds))) else ",".join(map(str, seeds))
    texts = {key: without_folders(str(value)) for key, value in words.items()}
    return " ".join(["lossplug compare", *(shlex.quote(f"{key}={text}") for key, text in texts.items())])
