# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug bench` has measured and proven, on this machine and on those whose records are shipped.

One JSON file in Ultralytics' configuration folder, with an entry for each device, versions, type and size class, and
files of the same form in `records/`, once there are any, which the wheel carries. `auto` takes the fastest engine that
is proven for the size at hand. Delete the file to forget; an entry of other versions is ignored.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import torch
import ultralytics
from filelock import FileLock, Timeout
from ultralytics.utils import USER_CONFIG_DIR

import yolo_lossplug
from yolo_lossplug import kernels
from yolo_lossplug.files import read_json, write_json
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.ultralytics_hook.console import warn_once
from yolo_lossplug.ultralytics_hook.decision import Fastest, Measured

RECORD_FILE, SHIPPED = "lossplug_engines.json", Path(__file__).parent / "records"
NOTICE = "Written by `lossplug bench`, read by loss_engine=auto. Delete this file, or an entry, to forget it."
LOCK_SECONDS = 30
"""To wait for another process that writes the file."""
LISTS = ("disqualified", "entries")
"""Lists in a file; what else it holds, as that of an earlier version may, is kept and ignored."""
TRITON_NAMES = ("triton", "triton-windows", "pytorch-triton", "pytorch-triton-rocm")
"""Distributions that bring Triton."""
REFERENCE, FAST = "reference", "fast"


class Key(NamedTuple):
    """Where an entry holds: the name of the device, and versions; `triton` says whether kernels are interpreted."""

    device: str
    torch: str
    triton: str
    ultralytics: str
    yolo_lossplug: str


def record_key(device: torch.device) -> Key:
    """Return where entries of this device and of the installed versions hold."""
    versions = torch.__version__, _triton_version(), ultralytics.__version__, yolo_lossplug.__version__
    return Key(device_name(device), *versions)


@functools.cache
def device_name(device: torch.device) -> str:
    """Return the name of a device: of a GPU as torch has it, of a processor its model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration, UnicodeError):  # not Linux, or a processor that has no such line
        return platform.processor() or platform.machine() or "cpu"


@functools.cache
def _triton_version() -> str:
    for name in TRITON_NAMES:  # importing Triton takes much longer
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            return f"{version}, interpreted" if kernels.is_interpreted() else version
    return "none"


def file() -> Path:
    """Return the file of this machine, which need not exist."""
    return Path(USER_CONFIG_DIR) / RECORD_FILE


def fastest_engines(device: torch.device, can_run: Callable[[str], bool]) -> Optional[Measured]:
    """Return the fastest proven engines on a device, by type and size class; None if nothing was measured there.

    Only of one that would be the fastest it is asked whether it can run here.
    """
    key, refused = record_key(device), disqualified_engines(device)
    found = {_identity(entry): entry for entry in (*_shipped_entries(), *_entries(file())) if _key_of(entry) == key}
    chosen = []
    for entry in found.values():
        if name := fastest(entry["engines"], lambda engine: engine not in refused and can_run(engine)):
            chosen.append(Fastest(entry["dtype"], entry["anchors_class"], entry["size_class"], name))
    return Measured(max(str(entry["measured"]) for entry in found.values()), tuple(sorted(chosen))) if chosen else None


def fastest(engines: Mapping[str, Any], can_run: Callable[[str], bool] = lambda name: True) -> str:
    """Return the engine to take, by its results in one case: one that was faster in three of four pairs, or the host's.

    Results are by name ``times_faster`` (median of the pairs) and ``quartiles`` of these. The name is empty if none was
    faster, but the engine for all devices was not measured.
    """
    won = {name: proof["times_faster"] for name, proof in engines.items() if proof["quartiles"][0] > 1}
    ranked = sorted(won, key=lambda name: -won[name])
    return next((name for name in ranked if can_run(name)), REFERENCE if FAST in engines else "")


def disqualified_engines(device: torch.device) -> dict[str, str]:
    """Return why engines must not run on a device unless they are asked for by name, with these versions."""
    refused = _read(file()).get("disqualified", [])
    where = record_key(device)._asdict() if refused else {}
    here = [entry for entry in refused if where.items() <= entry.items()]
    return {str(entry.get("engine")): f"lossplug bench, {entry.get('since')}: {entry.get('why')}" for entry in here}


def add(
    entries: Iterable[Mapping[str, Any]],
    key: Key,
    refused: Mapping[str, str],
    since: str,
    task: str = "detect",
    proven: Iterable[str] = (),
) -> None:
    """Add entries to the file; in one of the same device, versions, type and size class, engines are replaced.

    Engines that are refused are disqualified for the task since that day, with the reasons; one in the entries, or
    proven by steps of the same task, no longer is.

    Raises:
        LossPlugError: If the file cannot be written, or another process does not finish writing.
    """
    new = [dict(entry) for entry in entries]
    settled = {*refused, *proven}.union(*(entry["engines"] for entry in new))
    here = {**key._asdict(), "task": task}
    now = [{**here, "engine": name, "why": why, "since": since} for name, why in refused.items()]
    with _updated() as record:
        known = {_identity(entry): entry for entry in record["entries"] if _is_entry(entry)}
        for entry in new:
            earlier = known.get(_identity(entry), {"engines": {}})
            known[_identity(entry)] = {**entry, "engines": {**earlier["engines"], **entry["engines"]}}
        before, record["entries"] = record["disqualified"], list(known.values())
        before = [{"task": "detect", **refusal} for refusal in before]
        others = [e for e in before if str(e.get("engine")) not in settled or not here.items() <= e.items()]
        record["disqualified"] = [*others, *now]


def _key_of(entry: Mapping[str, Any]) -> Key:
    return Key(*(entry[name] for name in Key._fields))


def _identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return *_key_of(entry), *(entry[field] for field in Fastest._fields[:-1])


@contextlib.contextmanager
def _updated() -> Iterator[dict[str, Any]]:
    """Return a context in which the record is changed in place, alone: what another process writes then stays."""
    target = file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock", timeout=LOCK_SECONDS):
            record = {"about": NOTICE, "disqualified": [], "entries": [], **_read(target)}
            yield record
            write_json(target, record)
    except Timeout as error:
        raise LossPlugError(f"{target} is in use by another process for {LOCK_SECONDS} s. Run it again.") from error
    except OSError as error:
        raise LossPlugError(
            f"{target} cannot be written: {error.strerror}. Make it a file that can, or set YOLO_CONFIG_DIR to "
            f"a folder that can be written."
        ) from error


def _read(source: Path) -> dict[str, Any]:
    """Return the content of a record; empty, with a warning, if the file is not a record."""
    try:
        content = read_json(source)
        if isinstance(content, dict) and all(isinstance(content.get(name, []), list) for name in LISTS):
            readable = {name: [e for e in content[name] if isinstance(e, dict)] for name in LISTS if name in content}
            return {**content, **readable}  # a user may have edited it
        why = "it holds no record"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        why = str(error)
    warn_once(f"{source} is ignored: {why}. Delete it, and run `lossplug bench` again.")
    return {}


def _entries(source: Path) -> list[dict[str, Any]]:
    return [entry for entry in _read(source).get("entries", []) if _is_entry(entry)]


def _is_entry(entry: Any) -> bool:
    """Return whether an entry, which a user may have edited, can be read."""
    try:
        engines = entry["engines"].values()
        numbers = [(proof["times_faster"], proof["quartiles"][0], *proof["quartiles"]) for proof in engines]
        sizes = entry["anchors_class"], entry["size_class"]
        return (
            all(isinstance(n, (int, float)) for row in numbers for n in row)
            and all(isinstance(size, int) and 0 <= size < 64 for size in sizes)
            and all(isinstance(text, str) for text in (*_key_of(entry), entry["dtype"], entry["measured"]))
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return False


@functools.cache
def _shipped_entries() -> tuple[dict[str, Any], ...]:
    return tuple(entry for source in sorted(SHIPPED.glob("*.json")) for entry in _entries(source))
