# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is compared and where: the plan that arguments give, checked before anything is trained or written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from yolo_lossplug.files import write_json
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.tools.arguments import Arguments, merge, split_list
from yolo_lossplug.tools.arms import ARMS, Arm, chosen_by, values_by_key
from yolo_lossplug.tools.compare import jobs, measures
from yolo_lossplug.tools.compare.average_precision import class_key
from yolo_lossplug.tools.compare.comparison import without_folders
from yolo_lossplug.tools.compare.jobs import FINISHED, WAITING, Job
from yolo_lossplug.ultralytics_hook.console import new_folder, training_keys
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
PLAN = "compare.json"


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

    @cached_property
    def directory(self) -> Path:
        """Where it is: the folder of an earlier comparison with the same keys, or a new one."""
        return directory_of(self, self.name, self.project)


def plan_of(args: Mapping[str, Any]) -> Plan:
    """Return what is compared, checked.

    Raises:
        LossPlugError: If an argument is wrong.
    """
    given = _merged(args)
    values = {key: str(value) if isinstance(value, Path) else value for key, value in given.values.items()}
    common = {key: value for key, value in values.items() if key not in OWN and key not in keys()}
    task = one_run.check_arguments(common)
    chosen = [_with_engine(arm, common) for arm in chosen_by(values, task, given.recipe)]
    given.say_unused(chosen)
    devices, engine = _devices(values)
    metric, seeds = _metric(values), _seeds(values.get("seeds", 3))
    arms = {ARMS: [_typed(arm) for arm in chosen]} if ARMS in values else values_by_key(chosen)
    command = _command({**common, **arms, "metric": metric, "seeds": seeds})
    return Plan(chosen, seeds, common, devices, engine, values.get("name"), values.get("project"), metric, command)


def _merged(args: Mapping[str, Any]) -> Arguments:
    """Return arguments with those of a recipe, of which data and model are there, and none that compare sets itself."""
    for key, why in RESERVED.items():
        if key in args:
            raise LossPlugError(f"{key}={args[key]} cannot be given to compare: {why}.")
    given = merge(args, training_keys() - {*RESERVED, "save_dir", *(["device"] if "devices" in args else [])})
    for key in ("data", "model"):
        if not given.values.get(key):
            example = "lossplug compare data=coco128.yaml model=yolov8n.yaml loss=ciou,eiou"
            raise LossPlugError(f"{key}= is missing: {example}")
    return given


def checked_plan(args: Mapping[str, Any]) -> Plan:
    """Return what is compared; where a run is left to train, its data and model are read, and have the metric.

    Raises:
        LossPlugError: If an argument is wrong, or no object that is validated has the class of the metric.
    """
    plan = plan_of(args)
    if any(job.state == WAITING for job in jobs_of(plan, plan.directory)):
        split = one_run.TEST if plan.metric.startswith(measures.TEST) else "val"
        task, names = one_run.prepare({**plan.args, **plan.arms[0].keys}, split)
        _check_metric(plan.metric, task, [*measures.SIZES, *map(class_key, names.values())])
    return plan


def _check_metric(metric: str, task: str, known: list[str]) -> None:
    """Refuse a metric that a task or its data does not have; `known` are the names of AP by size and class."""
    plain, part = metric.removeprefix(measures.TEST), measures.TASKS_WITH.get(metric[-3:])
    if plain.startswith("AP_") and plain not in known:
        is_of_boxes = part and plain[:-3] in known
        why = "this exists for boxes only" if is_of_boxes else "no object that is validated has this class"
        raise LossPlugError(f"metric={metric}: {why}. Known: {', '.join(known)}.")
    if not plain.startswith("AP_") and part and task not in part:
        raise LossPlugError(f"metric={metric} belongs to task={part[0]}, not to task={task}. Remove {metric[-3:]}.")


def _metric(args: Mapping[str, Any]) -> str:
    """Return the primary metric; whether the data has its class is checked when it is read."""
    metric = str(args.get("metric", measures.ORDER[0]))
    plain = metric.removeprefix(measures.TEST)
    words = (*measures.ORDER, "accuracy_top1", "accuracy_top5")
    if not plain.startswith("AP_") and re.sub(r"^metrics/|\([BMP]\)$", "", plain) not in words:
        known = ", ".join((*measures.ORDER, *measures.SIZES, "AP_<class>"))
        raise LossPlugError(
            f"metric={metric} is unknown. Known: {known}; mAP50-95(M), ... of masks and mAP50-95(P), ... of keypoints; "
            "with test/ before it for split=test."
        )
    if metric != plain and args.get("split") != one_run.TEST:
        raise LossPlugError(f"metric={metric} needs the test split: add split=test.")
    return metric


def _devices(args: Mapping[str, Any]) -> tuple[tuple[Any, ...], str]:
    """Return the devices of runs that go side by side, and the engine."""
    engine, devices = str(args.get("engine", ENGINES[0])), tuple(_numbered(args.get("devices", ())))
    if engine not in ENGINES:
        raise LossPlugError(f"engine={engine} is unknown. Known: {', '.join(ENGINES)}.")
    if devices and engine == "ray":
        raise LossPlugError("devices= has no effect with engine=ray: Ray schedules the runs. Remove it.")
    if devices and "device" in args:
        why = "has no effect with devices=, which each run takes one of. Remove it."
        raise LossPlugError(f"device={args['device']} {why}")
    return devices, engine


def _with_engine(arm: Arm, common: Mapping[str, Any]) -> Arm:
    """Return an arm with the engine named, so that all runs have the same, those with stock numbers too.

    Without the key such a run takes the host's own step and the others what ``auto`` chooses, and their seconds would
    tell engines apart rather than losses.
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
        what = "a number of seeds, at least 1, or a list of different ones: seeds=0,7."
        raise LossPlugError(f"seeds={value} must be {what}")
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


def directory_of(plan: Plan, name: Any, project: Any) -> Path:
    """Return the folder of a comparison: that of an earlier one with the same keys, or a new one.

    Raises:
        LossPlugError: If a comparison of that name has other keys.
    """
    new = new_folder("compare", name, project)
    first = new.parent / str(name or "compare")
    if name is None:
        # Ultralytics numbers folders as name2 or, in newer releases, as name-2.
        numbered = re.compile(re.escape(first.name) + r"-?\d+")
        candidates = [first, *sorted(file for file in first.parent.glob("*") if numbered.fullmatch(file.name))]
        return next((old for old in candidates if _differing_keys(old, plan) == [] and _fits(plan, old)), new)
    if differing := _differing_keys(first, plan):
        why = "its runs and these would not differ by the loss alone. Give another name."
        raise LossPlugError(f"name={name} is a comparison with another {', '.join(differing)}: {why}")
    return first


def _differing_keys(directory: Path, plan: Plan) -> Optional[list[str]]:
    """Return the keys in which a plan differs from the comparison in a folder; None if there is no comparison."""
    before, now = _earlier_args(directory), jobs.comparable(plan.args)
    return None if before is None else sorted(k for k in {*before, *now} if before.get(k) != now.get(k))


def _earlier_args(directory: Path) -> Optional[dict[str, Any]]:
    """Return the common arguments of the comparison in a folder; None if there is none.

    Where its plan is gone or damaged, they are what all of its runs were trained with.
    """
    plan, *others = map(jobs.args_in, (directory / PLAN, *(directory / "runs").glob("*.json")))
    runs, ours = [args for args in others if args is not None], {*keys(), "seed"}
    if plan is None and runs:
        plan = {k: v for k, v in runs[0].items() if k not in ours and all(run.get(k) == v for run in runs)}
    return None if plan is None else jobs.comparable(plan)


def jobs_of(plan: Plan, directory: Path) -> list[Job]:
    """Return the runs of a comparison, seed by seed, so that an early look compares all losses."""
    return [_job(plan, arm, seed, directory / "runs") for seed in plan.seeds for arm in plan.arms]


def _fits(plan: Plan, directory: Path) -> bool:
    """Return whether the finished runs of a comparison had the losses that a plan has under their names."""
    try:
        return bool(jobs_of(plan, directory))
    except LossPlugError:
        return False


def _job(plan: Plan, arm: Arm, seed: int, runs: Path) -> Job:
    """Return one run, finished if its result is there."""
    folder = runs / f"{jobs.slug(arm.name)}-seed{seed}"
    args = {**plan.args, **arm.keys, "seed": seed, "project": str(runs), "name": folder.name, "exist_ok": True}
    job = Job(arm.name, seed, folder, args)
    job.refuse_others()
    job.state = FINISHED if job.read() else WAITING
    return job


def write_plan(plan: Plan, directory: Path) -> None:
    """Write what tells that the comparison in a folder is that of a plan."""
    write_json(directory / PLAN, {"args": plan.args, "seeds": plan.seeds}, default=str)
