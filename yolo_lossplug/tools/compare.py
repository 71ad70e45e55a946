# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug compare`: trains with several losses and seeds, and says which differences are more than noise."""

from __future__ import annotations

import json
import re
import shlex
import signal
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import yolo_lossplug
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection import keys
from yolo_lossplug.tools import jobs, summary
from yolo_lossplug.tools.arguments import merge
from yolo_lossplug.tools.arms import Arm, arms
from yolo_lossplug.tools.jobs import FAILED, FINISHED, RUNNING, WAITING, Job
from yolo_lossplug.ultralytics_hook import training
from yolo_lossplug.ultralytics_hook.console import VERSION, say, training_keys
from yolo_lossplug.ultralytics_hook.console import folder as new_folder

HELP = """\
usage: lossplug compare data=DATA model=MODEL loss=NAME,NAME,... [seeds=3] [key=value ...]

Trains with each loss and each seed, everything else equal, and writes into runs/compare/NAME/: a folder for every run,
results.csv, summary.md, summary.csv, curves.png and ranking.png, with paired differences against the first loss.
  loss=ciou,eiou   every key of ours takes several values, an option where it belongs: cls_loss=bce,qfl tal_topk=7,10
  seeds=3          number of seeds, 0 to 2, or their list: seeds=0,7,42
  name=NAME        the same name with the same keys goes on: finished runs are kept, losses and seeds may be added
  devices=0,1      one run at a time on each of these; without it the runs follow each other on device=
  engine=ray       on a Ray cluster (pip install 'yolo-lossplug[ray]')
  cfg=FILE         a recipe as of `yolo train`, and the command line over it; options go to the losses that have them
Every other key is one of `yolo train`. All runs take the same loss_engine; default auto.
Example: lossplug compare data=coco128.yaml model=yolov8n.yaml loss=ciou,eiou,wiou-v3 seeds=3 epochs=100\
"""
OWN = ("seeds", "devices", "engine", "name", "project")
RESERVED = {
    "seed": "give seeds= instead",
    "resume": "an unfinished comparison goes on when the same command is given again",
    "exist_ok": "the comparison has a folder of its own: give name=",
    "mode": "it always trains",
}
ENGINES = ("local", "ray")
PLAN, LOCK = "compare.json", "compare.lock"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        arms: The choices of losses; the first is what the others are measured against.
        seeds: The seeds.
        args: What all runs have in common, as `yolo train` takes it.
        devices: Devices of the runs that go side by side; empty for one after another.
        engine: ``local`` or ``ray``.
        name: Name of the comparison; None for the default.
        project: Where its folder is; None for the default.
    """

    arms: list[Arm]
    seeds: tuple[int, ...]
    args: dict[str, Any]
    devices: tuple[Any, ...]
    engine: str
    name: Any
    project: Any


def main(args: dict[str, Any]) -> None:
    """Compare, and exit with 1 if a run has failed. What a cluster sends before it kills ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = compare(args)
    print(f"\n{(place / 'summary.md').read_text(encoding='utf-8')}\nwritten to {place}")
    if any(row["state"] == FAILED for row in summary.read_table(place / "results.csv")):
        raise SystemExit(1)


def compare(args: Mapping[str, Any]) -> Path:
    """Train with each loss and seed that has no result yet, and write the summary.

    Args:
        args: As the command takes them; see `HELP`.

    Returns:
        The folder of the comparison.

    Raises:
        LossPlugError: If an argument is wrong; nothing is trained or written then.
        KeyboardInterrupt: After Ctrl-C; the summary of what is finished is written, and the same call goes on.
    """
    plan = plan_of(args)
    if len(plan.arms) < 2:
        say(f"there is one loss, {plan.arms[0].name}: its seeds show the noise, and it is compared with nothing")
    place = place_of(plan, plan.name, plan.project)
    todo = jobs_of(plan, place)
    waiting = [job for job in todo if job.state == WAITING]
    if waiting:
        training.prepare({**plan.args, **plan.arms[0].keys})
    place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        return _run(plan, place, todo, waiting)


def _run(plan: Plan, place: Path, todo: list[Job], waiting: list[Job]) -> Path:
    """Run what waits, and write the summary after every run."""
    _write_plan(plan, place)
    lost = sum(job.state == FINISHED and not job.folder.is_dir() for job in todo)
    if lost:
        say(f"{lost} of the finished runs have lost their folder: they count, and are missing in curves.png")

    def tell(job: Job) -> None:
        say_states(job, todo, is_short=not plan.devices and plan.engine == ENGINES[0])
        if job.state in (FINISHED, FAILED) and any(one.state in (WAITING, RUNNING) for one in todo):
            summary.write(todo, place, _header(plan))

    say(f"{len(todo)} runs in {place}, {len(todo) - len(waiting)} of them finished before")
    try:
        if plan.engine == "ray":
            jobs.run_on_ray(waiting, plan.args.get("device", "cpu"), tell)
        elif plan.devices:
            jobs.run_on_devices(waiting, plan.devices, tell)
        else:
            jobs.run_in_turn(waiting, tell)
    except KeyboardInterrupt:
        say(f"interrupted. What is finished stays in {place}; the same command with name={place.name} goes on.")
        raise
    finally:
        for job in todo:
            job.state = WAITING if job.state == RUNNING else job.state
        summary.write(todo, place, _header(plan))
    return place


def plan_of(args: Mapping[str, Any]) -> Plan:
    """Return what is compared, checked.

    Raises:
        LossPlugError: If an argument is wrong.
    """
    unused = {*RESERVED, "save_dir", *(["device"] if "devices" in args else [])}
    given = merge(args, training_keys() - unused)
    args = given.values
    for key, why in RESERVED.items():
        if key in args:
            raise LossPlugError(f"{key}={args[key]} cannot be given to compare: {why}.")
    for key in ("data", "model"):
        if not args.get(key):
            raise LossPlugError(
                f"{key}= is missing: lossplug compare data=coco128.yaml model=yolov8n.yaml loss=ciou,eiou"
            )
    common = {key: value for key, value in args.items() if key not in OWN and key not in keys()}
    task = training.check(common)
    chosen = [_with_engine(arm, common) for arm in arms(args, task, given.recipe)]
    given.say_unused(chosen)
    engine = str(args.get("engine", ENGINES[0]))
    if engine not in ENGINES:
        raise LossPlugError(f"engine={engine} is unknown. Known: {', '.join(ENGINES)}.")
    devices = tuple(_listed(args.get("devices", ())))
    if devices and engine == "ray":
        raise LossPlugError("devices= has no effect with engine=ray: Ray places the runs. Remove it.")
    if devices and "device" in args:
        raise LossPlugError(
            f"device={args['device']} has no effect with devices=: each run has one of those. Remove it."
        )
    return Plan(chosen, _seeds(args.get("seeds", 3)), common, devices, engine, args.get("name"), args.get("project"))


def _with_engine(arm: Arm, common: Mapping[str, Any]) -> Arm:
    """Return an arm with the engine named, so that all runs have the same, those with stock numbers too.

    Without the key such a run takes the host's own step and the others what ``auto`` chooses, and their seconds would
    tell engines apart rather than losses.

    Raises:
        LossPlugError: If the arguments of its runs are wrong.
    """
    keys_with_engine = {"loss_engine": "auto", **arm.keys}
    try:
        training.check({**common, **keys_with_engine})
    except LossPlugError:
        training.check({**common, **arm.keys})  # a task or family with another criterion has one engine
        return arm
    return replace(arm, keys=keys_with_engine)


def place_of(plan: Plan, name: Any, project: Any) -> Path:
    """Return the folder of a comparison: the one that it began in, or a new one.

    Raises:
        LossPlugError: If a comparison of that name has other keys.
    """
    first = new_folder("compare", name, project)
    before = first.parent / str(name or "compare")
    candidates = [before, *sorted(first.parent.glob(f"{before.name}[0-9]*"))] if name is None else [before]
    for candidate in candidates:
        if not (candidate / PLAN).is_file():
            continue
        try:
            known = json.loads((candidate / PLAN).read_text(encoding="utf-8"))
        except ValueError as error:
            raise LossPlugError(f"{candidate / PLAN} cannot be read ({error}); give another name=.") from error
        before_args, args = (_comparable(args) for args in (known["args"], plan.args))
        if before_args == args:
            return candidate
        if name is not None:
            differing = sorted(key for key in {*before_args, *args} if before_args.get(key) != args.get(key))
            raise LossPlugError(
                f"name={name} is a comparison with another {', '.join(differing)}: its runs and these would not "
                f"differ by the loss alone. Give another name."
            )
    return first if name is None else before


def jobs_of(plan: Plan, place: Path) -> list[Job]:
    """Return the runs of a comparison, seed by seed, so that an early look compares all losses."""
    made = []
    for seed in plan.seeds:
        for arm in plan.arms:
            run = place / "runs" / f"{slug(arm.name)}-seed{seed}"
            args = {**plan.args, **arm.keys, "seed": seed, "project": str(run.parent), "name": run.name}
            job = Job(arm.name, seed, run, {**args, "exist_ok": True})
            job.state = FINISHED if job.read() else WAITING
            made.append(job)
    return made


def slug(name: str) -> str:
    """Return a name as that of a folder; different names differ in it.

    >>> slug("focal-eiou focal_gamma=0.3")
    'focal-eiou_focal_gamma=0.3'
    >>> slug("own/losses.py:mine")
    'own_losses.py_mine-3d9c8131'
    """
    plain = re.sub(r"[^\w.=-]", "_", name)
    return plain if plain == name.replace(" ", "_") else f"{plain}-{zlib.crc32(name.encode()):08x}"


def _seeds(value: Any) -> tuple[int, ...]:
    seeds = tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else tuple(_listed(value))
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise LossPlugError(
            f"seeds={value} must be a number of seeds, at least 1, or a list of different ones: seeds=0,7."
        )
    return seeds


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _comparable(args: Mapping[str, Any]) -> Any:
    """Return what must be the same in all runs, as it is read from a file; a comparison may move to other devices."""
    kept = {key: value for key, value in args.items() if key not in ("device", "workers")}
    return json.loads(json.dumps(kept, default=str))


def _write_plan(plan: Plan, place: Path) -> None:
    (place / PLAN).write_text(
        json.dumps({"args": plan.args, "seeds": plan.seeds}, indent=2, default=str), encoding="utf-8"
    )


def _header(plan: Plan) -> list[str]:
    """Return what a reader must know to repeat the comparison."""
    ours: dict[str, list[str]] = {}
    for arm in plan.arms:
        for key, value in arm.keys.items():
            ours.setdefault(key, []).append(str(value))
    lists = {key: ",".join(dict.fromkeys(values)) for key, values in ours.items()}
    seeds = plan.seeds if plan.seeds != tuple(range(len(plan.seeds))) else len(plan.seeds)
    words = {**plan.args, **lists, "seeds": ",".join(map(str, seeds)) if isinstance(seeds, tuple) else seeds}
    command = " ".join(shlex.quote(f"{key}={value}") for key, value in words.items())
    versions = f"yolo-lossplug {yolo_lossplug.__version__} · ultralytics {VERSION} · torch {torch.__version__}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return [f"`lossplug compare {command}`", f"{versions} · {device}"]


def say_states(job: Job, todo: Sequence[Job], is_short: bool = False) -> None:
    """Say how far the runs are when one has started or ended: a line, or a table where no run has the terminal."""
    states = (FINISHED, FAILED, RUNNING, WAITING)
    counts = " · ".join(f"{sum(one.state == state for one in todo)} {state}" for state in states)
    say(f"{job.arm} seed {job.seed}: {job.state}{f' ({job.reason})' if job.reason else ''} · {counts}")
    if not is_short:
        print(table(todo), flush=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep another comparison out of a directory while the context is open; the lock ends with its process.

    Raises:
        LossPlugError: If one is running there.
    """
    try:
        lock = FileLock(directory / LOCK).acquire(timeout=0)
    except Timeout:
        raise LossPlugError(
            f"another comparison is running in {directory}; wait for it to end, or give another name=."
        ) from None
    with lock:
        yield


def table(todo: Sequence[Job]) -> str:
    """Return the state of every run: losses down, seeds across."""
    seeds = sorted({job.seed for job in todo})
    states: dict[str, dict[int, str]] = {}
    for job in todo:
        states.setdefault(job.arm, {})[job.seed] = job.state
    width = max(len(name) for name in states) + 2
    head = "".join(f"{f'seed {seed}':<12}" for seed in seeds)
    rows = [f"{name:<{width}}" + "".join(f"{row.get(seed, ''):<12}" for seed in seeds) for name, row in states.items()]
    return "\n".join([f"{'':<{width}}{head}", *rows])
