# SPDX-License-Identifier: AGPL-3.0-or-later
"""Imports point down only, and Ultralytics is imported in one folder."""

import ast
from pathlib import Path

import pytest

import yolo_lossplug
from tests.runs import ROOT

PACKAGE = Path(yolo_lossplug.__file__).parent
LAYERS = [
    {"boxes", "forms", "shapes", "state", "option", "paper", "charts", "_autoload"},
    {"registry"},
    {"box_losses", "class_losses", "nms", "assigner", "engine", "kernels"},
    {"selection"},
    {"ultralytics_hook"},
    {"tools"},
    {"cli", "__main__"},
]
UPWARD = {("_autoload", "ultralytics_hook"), ("ultralytics_hook", "__init__"), ("tools", "__init__")}
"""The start-up hook reaches up, when Ultralytics is imported; others ask for the version, and whether it is enabled."""
MODULES = sorted(PACKAGE.rglob("*.py"))


def unit(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "ultralytics":
            assert unit(path) in ("ultralytics_hook", "cli"), f"{path.name} imports {name}"
        if first == "yolo_lossplug" and unit(path) != "__init__":
            target = rest[0] if rest and any(rest[0] in layer for layer in LAYERS) else "__init__"
            if (unit(path), target) in UPWARD or unit(path) in ("cli", "__main__"):
                continue
            assert target != "__init__", f"{path.name} imports {name}"
            assert level(target) <= level(unit(path)), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_branch_on_the_name_of_a_loss(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            assert not words & {*yolo_lossplug.list_box_losses(), *yolo_lossplug.list_class_losses()}


def test_every_source_file_names_its_licence():
    files = [p for folder in ("yolo_lossplug", "tests", "examples", "configs") for p in (ROOT / folder).rglob("*")]
    for path in files:
        if path.suffix in (".py", ".yaml"):
            assert path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: AGPL-3.0-or-later"), path
