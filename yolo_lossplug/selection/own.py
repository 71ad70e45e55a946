# SPDX-License-Identifier: AGPL-3.0-or-later
"""User-defined losses: ``loss=path/to/file.py:function`` and ``loss=package.module:function``."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

from yolo_lossplug.registry import REGISTRY, LossPlugError, Spec, spec_of
from yolo_lossplug.selection.keys import CLAIMED
from yolo_lossplug.selection.names import is_user_defined, key_of, parts_of, suggest
from yolo_lossplug.selection.resolve import unknown

_modules: dict[Path, ModuleType] = {}
"""Loaded modules by the resolved path of their file."""


def load_own(reference: str, kind: str) -> Spec:
    """Return the spec of a user-defined function, named as ``package.module:name`` or ``path/to/file.py:name``.

    Raises:
        LossPlugError: If the file, module or function does not exist, or its signature does not fit.
    """
    key = key_of(kind)
    if not is_user_defined(reference):
        raise LossPlugError(unknown(kind, reference))
    module_name, _, name = reference.rpartition(":")
    module = load_module(module_name, f"{key}={reference}")
    function = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, f in vars(module).items() if getattr(f, "__module__", None) == module.__name__]
        raise LossPlugError(f"{key}={reference}: {module_name} has no function '{name}'.{suggest(name, functions)}")
    spec = next((spec for spec in REGISTRY if spec.function is function and spec.kind == kind), None)
    if spec is None:
        spec = spec_of(kind, reference, function)
        REGISTRY.add(spec)
    return spec


def names_reference(args: Mapping[str, Any]) -> bool:
    """Return whether arguments name a user-defined loss in a file or module, which is not loaded."""
    return any(":" in str(args.get(key)) for key in ("loss", "cls_loss") if key not in CLAIMED)


def load_references(name: str, kind: str) -> list[Spec]:
    """Return the specs of the user-defined functions in a name: of one loss, or of the parts of a mixture."""
    return [load_own(part, kind) for part in parts_of(name) if ":" in part]


def load_module(source: str, asked: str) -> ModuleType:
    """Return the module of that dotted name or ``.py`` file; a file that is loaded already is not loaded again.

    Raises:
        LossPlugError: If it does not exist or fails when loaded; `asked` is what the user has given.
    """
    if not source.endswith(".py"):
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.append(str(Path.cwd()))  # so that a project's own package is found from its folder, by `yolo` too
        try:
            return importlib.import_module(source)
        except ImportError as error:
            raise LossPlugError(f"{asked}: module '{source}' cannot be imported ({error}).") from error
    path = Path(source).resolve()
    if not path.is_file():
        raise LossPlugError(f"{asked}: there is no file {path}.")
    if cached := _cached_module(path):
        return cached
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
    _modules[path] = module
    return module


def _cached_module(path: Path) -> Optional[ModuleType]:
    """Return the module that was loaded or imported from a resolved path, None if there is none in `sys.modules`."""
    module = _modules.get(path)
    if module is None or sys.modules.get(module.__name__) is not module:
        files = ((m, Path(file)) for m in list(sys.modules.values()) if (file := getattr(m, "__file__", None)))
        inode = path.stat().st_ino  # resolving a path is slow: only files with the same inode are resolved
        module = next((m for m, file in files if _inode(file) == inode and file.resolve() == path), None)
    if module is not None:
        _modules[path] = module
    return module


def _inode(file: Path) -> Optional[int]:
    try:
        return file.stat().st_ino
    except OSError:  # inside an archive, say
        return None
