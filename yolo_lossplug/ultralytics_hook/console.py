# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the commands of `lossplug` take from Ultralytics: arguments, folders, log and progress bar."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RUNS_DIR, TQDM, checks, colorstr
from ultralytics.utils.files import increment_path

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import keys, refuse_none
from yolo_lossplug.ultralytics_hook import typed

VERSION = ultralytics.__version__
PREFIX = colorstr("LossPlug: ")


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command.

    Args:
        words: ``key=value`` as `yolo` takes it; ``--key value``, ``--key=value`` and ``--key`` for True do as well.

    Raises:
        LossPlugError: If a word is none of these, or ``none`` is the name of a loss.
    """
    # Not above: patches are applied at its import, and need us.
    from ultralytics.cfg import parse_key_value_pair

    args: dict[str, Any] = {}
    for pair in _pairs(typed.merged_words(words)):
        try:
            key, value = parse_key_value_pair(pair if "=" in pair else f"{pair}=True")
        except AssertionError as error:
            raise LossPlugError(f"'{pair}' has no value: write key=value, as for `yolo`.") from error
        except (SyntaxError, ValueError, NameError) as error:  # of older releases, which evaluate it
            raise LossPlugError(f"'{pair}' cannot be read: {error}.") from error
        refuse_none(key, value)
        args[key] = value
    return args


def _pairs(words: Sequence[str]) -> list[str]:
    pairs: list[str] = []
    for word in words:
        if word.startswith("--"):
            pairs.append(word[2:].replace("-", "_") if "=" not in word else word[2:])
        elif pairs and "=" not in pairs[-1] and "=" not in word:
            pairs[-1] += f"={word}"
        elif "=" in word:
            pairs.append(word)
        else:
            raise LossPlugError(f"'{word}' is not an argument: write key=value, as for `yolo`.")
    return pairs


def progress(total: int, title: str) -> Any:
    """Return Ultralytics' progress bar; `update(n)` moves it, `close()` ends it."""
    return TQDM(total=total, desc=title, disable=not sys.stdout.isatty())  # a log needs no line for every step


def bold(text: str) -> str:
    """Return a text in bold where a terminal shows it, as it is in a log or behind a pipe."""
    return str(colorstr("bold", text)) if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def say(text: str) -> None:
    """Log a line as Ultralytics does."""
    LOGGER.info(f"{PREFIX}{text}")


def warn(text: str) -> None:
    """Log a warning as Ultralytics does."""
    LOGGER.warning(f"{PREFIX}{text}")


warn_once = functools.cache(warn)
"""The same, once for each text."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ultralytics from logging while the context is open, for output that machines read."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise an error of the host as one of ours: what cannot be done, and the host's reason, in one line."""
    try:
        yield
    except LossPlugError:
        raise
    except Exception as error:
        raise LossPlugError(f"{what}: {' '.join(str(error).split())}") from error


def new_folder(kind: str, name: Any = None, project: Any = None) -> Path:
    """Return a folder for what a command writes that is not there yet: ``runs/kind/name``, ``name2``, ...

    The name is the kind if there is none. The folder is absolute: Ultralytics puts a relative one below its own.

    Raises:
        LossPlugError: If the name is not that of a folder.
    """
    name = str(name or kind)
    if Path(name).name != name or name == "..":
        raise LossPlugError(f"name={name} must be the name of a folder; set its location with project=.")
    return Path(increment_path(Path(project or RUNS_DIR / kind).absolute() / name))


def read_cfg(file: Any) -> dict[str, Any]:
    """Return the keys of the file that `cfg=` names, found and read as `yolo` does, without `cfg` itself.

    Raises:
        LossPlugError: If it does not exist, or does not hold keys and values in YAML.
    """
    from ultralytics.cfg import cfg2dict  # not above, as in `parse`

    with explained(f"cfg={file} cannot be read"):
        content = cfg2dict(checks.check_yaml(file))
    if not isinstance(content, dict):
        raise LossPlugError(f"cfg={file} must hold one 'key: value' a line.")
    return {str(key): value for key, value in content.items() if key != "cfg"}


def training_keys() -> frozenset[str]:
    """Return every key that a recipe of a training may hold: Ultralytics' and ours."""
    return frozenset((*DEFAULT_CFG_DICT, *keys(), "save_dir", "augmentations"))
