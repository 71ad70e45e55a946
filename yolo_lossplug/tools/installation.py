# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug doctor` shows of an environment: interpreter, device, start-up hook, and who installed Ultralytics."""

from __future__ import annotations

import importlib
import platform
import site
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Optional

import torch
import yaml

from yolo_lossplug import kernels
from yolo_lossplug.registry import REGISTRY
from yolo_lossplug.selection.keys import CLAIMED, keys

HOST = "ultralytics"
HOOK_FILES = ("yolo_lossplug.start", "yolo_lossplug.pth") if sys.version_info >= (3, 15) else ("yolo_lossplug.pth",)
"""Files that this Python reads when it starts, the first there is."""


class Owner(NamedTuple):
    """An installed distribution that has brought the package `ultralytics`."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def facts() -> list[str]:
    """Return interpreter, torch, device, Triton and start-up hook, a line each."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    hook, device, name = start_up_hook(map(Path, (*site.getsitepackages(), *user))), default_device(), ""
    if device.type == "cuda":
        name = f" ({torch.cuda.get_device_name(device)}), {torch.cuda.device_count()} in all"
    rows = {
        "python": f"{platform.python_version()}, {sys.executable}",
        "torch": f"{torch.__version__}, device {device}{name}",
        "triton": triton_state(),
        "start-up hook": str(hook or "none in the folders that this Python reads hooks from"),
    }
    return [f"{name:<15}{value}" for name, value in rows.items()]


def default_device() -> torch.device:
    """Return the device that Ultralytics trains on if it is not told another."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def triton_state() -> str:
    """Return the release of Triton, and whether `loss_engine=triton` can run; on a GPU that is tried, in a minute."""
    try:
        version = f"{importlib.import_module('triton').__version__}, "
    except Exception:  # one that is broken raises anything, which `missing` tells
        version = ""
    device, can = default_device(), "can run"
    missing = kernels.missing(device)
    if missing is None and device.type == "cuda":
        missing, can = _trouble_on(device), "can run: its kernels compile"
    return f"{version}loss_engine=triton " + (f"cannot run: {missing}" if missing else can)


def _trouble_on(device: torch.device) -> Optional[str]:
    """Return what is wrong with the kernels on a GPU, where they are compiled and compared with the host's step."""
    try:
        choice = importlib.import_module("yolo_lossplug.ultralytics_hook.engines.choice")
        return choice.kernel_trouble(choice.Setting(str(device), 16, (8.0, 16.0, 32.0), 80, (20, 20), torch.float16))
    except Exception as error:  # an Ultralytics that is broken raises anything
        return f"the trial fails ({type(error).__name__}: {error})"


def start_up_hook(folders: Iterable[Path]) -> Optional[Path]:
    """Return the file of the start-up hook in the first of some folders that has one, None if none has."""
    return next((file for folder in folders for file in map(folder.joinpath, HOOK_FILES) if file.is_file()), None)


def owners_line(found: Sequence[Owner]) -> str:
    """Return who has installed Ultralytics, as a line of the facts."""
    return f"{'installed by':<15}{', '.join(map(str, found)) or 'no distribution that pip knows'}"


def owners(folder: Optional[Path] = None, path: Optional[Sequence[str]] = None) -> list[Owner]:
    """Return the distributions whose records list the package `ultralytics`, by name.

    Args:
        folder: The package's folder; None for any, as where the package cannot be imported any more.
        path: Folders with installed distributions, those of `sys.path` by default.
    """
    found = metadata.distributions(path=list(sys.path if path is None else path))
    files = ((d, file) for d in found for file in d.files or () if file.as_posix() == f"{HOST}/__init__.py")
    places = {(Owner(d.metadata["Name"], d.version), Path(str(file.locate())).resolve().parent) for d, file in files}
    return sorted({owner for owner, place in places if folder is None or place == folder.resolve()})


def advice_on_owners(found: Sequence[Owner], is_importable: bool = True) -> list[str]:
    """Return what is wrong with who has installed Ultralytics and the way out, a line each, empty if nothing is."""
    if not found:
        return []
    kept, *rest = sorted(found, key=lambda owner: owner.name == HOST)
    reinstall = f"  pip install --force-reinstall --no-deps {kept.name}=={kept.version}"
    later = [] if kept.name == HOST else ["  pip install --no-deps yolo-lossplug, now and for every update"]
    if rest:
        return [
            f"{len(found)} distributions own the folder {HOST}: {', '.join(map(str, found))}. Each overwrites the "
            f"files of the other, and uninstalling one removes them for both. To keep {kept.name}:",
            f"  pip uninstall {' '.join(owner.name for owner in rest)}",
            reinstall,
            *later,
        ]
    if not is_importable:
        return [f"It was installed as {kept}. To install its files again:", reinstall, *later]
    if later:
        return [f"{HOST} is that of {kept}. So that pip does not install {HOST} over it:", *later]
    return []


def advice_on_keys(defaults: Path) -> list[str]:
    """Return which of our keys are among Ultralytics' own in this file, as those of a fork may; a line, or none."""
    own = {key for key in (*keys(), *CLAIMED) if not any(owner.is_user_defined for owner in REGISTRY.owners(key))}
    taken = sorted(own.intersection(yaml.safe_load(defaults.read_text(encoding="utf-8"))))
    line = (
        f"This Ultralytics is a fork with keys of its own named {', '.join(taken)}: they mean what the fork makes of "
        "them, and select nothing of yolo-lossplug."
    )
    return [line] if taken else []
