# SPDX-License-Identifier: AGPL-3.0-or-later
"""User-defined losses: ``loss=path/to/file.py:function`` and ``loss=package.module:function``."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType

from yolo_lossplug.registry import (
    CLASS,
    REGISTRY,
    SOFTMAX,
    LossPlugError,
    Spec,
    spec_of,
)
from yolo_lossplug.selection.names import suggest


def load_own(reference: str, kind: str) -> Spec:
    """Return the spec of a user's own function, named as ``package.module:name`` or ``path/to/file.py:name``.

    Raises:
        LossPlugError: If the file, module or function is not there, or its signature is unfit.
    """
    key = "cls_loss" if kind in (CLASS, SOFTMAX) else "loss"
    place, _, name = reference.rpartition(":")
    module = load_module(place, f"{key}={reference}")
    function = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, f in vars(module).items() if getattr(f, "__module__", None) == module.__name__]
        raise LossPlugError(f"{key}={reference}: {place} has no function '{name}'.{suggest(name, functions)}")
    for spec in REGISTRY:
        if spec.function is function and spec.kind == kind:
            return spec
    spec = spec_of(kind, reference, function)
    REGISTRY.add(spec)
    return spec


def load_module(place: str, asked: str) -> ModuleType:
    """Return the module of that dotted name or ``.py`` file; a file that is loaded already is not loaded again.

    Args:
        place: ``package.module`` or a path that ends in ``.py``.
        asked: The key and value that asked for it, for the message.

    Raises:
        LossPlugError: If it is not there or fails when loaded.
    """
    if not place.endswith(".py"):
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.append(str(Path.cwd()))  # so that a project's own package is found from its folder, by `yolo` too
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise LossPlugError(f"{asked}: module '{place}' cannot be imported ({error}).") from error
    path = Path(place).resolve()
    if not path.is_file():
        raise LossPlugError(f"{asked}: there is no file {path}.")
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) and Path(str(module.__file__)).resolve() == path:
            return module
    name = f"yolo_lossplug_own_{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # two folders may hold one name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LossPlugError(f"{asked}: {path} cannot be loaded as Python.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise LossPlugError(f"{asked}: {path} fails when loaded ({type(error).__name__}: {error}).") from error
    return module
