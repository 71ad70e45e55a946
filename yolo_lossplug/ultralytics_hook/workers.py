# SPDX-License-Identifier: AGPL-3.0-or-later
"""Other processes that train for this one: workers of multi-GPU training, and runs that Ultralytics starts."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any, Callable

from yolo_lossplug.registry import LossPlugError, Spec
from yolo_lossplug.selection.names import is_known, is_user_defined, parts_of
from yolo_lossplug.selection.resolve import resolve_name
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.ultralytics_hook.patching import Undo
from yolo_lossplug.ultralytics_hook.run import runs


def replace_command(command: list[str]) -> Undo:
    """Let the command that starts other runs be ours; others hold the same list."""
    stock, ours = list(command), [command[0], "-m", "yolo_lossplug"]
    command[:] = ours

    def undo() -> None:
        if command == ours:
            command[:] = stock

    return undo


def generate_ddp_file(stock: Callable[[Any], str], trainer: Any) -> str:
    """Write the script that workers start from, with what they need to know of us before everything else."""
    first, path = header(runs.of(trainer).selection), stock(trainer)
    Path(path).write_text(first + Path(path).read_text(encoding="utf-8"), encoding="utf-8")
    return path


def header(selection: Selection) -> str:
    """Return the lines that make a worker know our keys, and the losses of the run if the user has registered them.

    Raises:
        LossPlugError: If a worker cannot load such a loss.
    """
    lines = [
        "import sys",
        f"sys.path.extend(path for path in {sys.path!r} if path not in sys.path)",
        "import yolo_lossplug",
        "yolo_lossplug.enable()",
    ]
    for loss in (selection.box, selection.cls):
        for part in parts_of(loss.name):
            if not is_user_defined(part) and is_known(loss.kind, part):  # the arguments name what is in files
                spec, modifiers = resolve_name(loss.kind, part)
                lines += [_import_of(owner) for owner in (*modifiers, spec) if owner.is_user_defined]
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _import_of(spec: Spec) -> str:
    function = spec.function
    module = function.__module__
    if module != "__main__" and importlib.util.find_spec(module):
        return f"import {module}"
    file = Path(inspect.getsourcefile(function) or "")
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ()
    compared = (node.left for node in nodes if isinstance(node, ast.Compare))
    if any(isinstance(left, ast.Name) and left.id == "__name__" for left in compared):
        return f"from yolo_lossplug.selection.own import load_module; load_module({str(file)!r}, 'loss')"
    raise LossPlugError(
        f"loss={spec.name} is registered where the workers of multi-GPU training cannot load it from ({file}): move it "
        f"to a file of its own and pass loss=file.py:{function.__name__}, or train below `if __name__ == '__main__':`."
    )
