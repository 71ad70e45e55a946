# SPDX-License-Identifier: AGPL-3.0-or-later
"""Imports point down only, and Ultralytics is imported in one folder."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import yolo_lossplug
from tests.runs import ROOT
from yolo_lossplug.registry import REGISTRY

PACKAGE = Path(yolo_lossplug.__file__).parent
LAYERS = [
    {
        *("boxes", "files", "forms", "shapes", "state", "option", "partly", "signature", "paper", "charts", "terminal"),
        "_autoload",
    },
    {"registry"},
    {"box_losses", "class_losses", "nms", "regions", "sparse", "kernels"},
    {"selection"},
    {"catalogue", "explain"},
    {"ultralytics_hook"},
    {"tools"},
    {"cli", "__main__", "_pyinstaller"},
]
HOOK = "yolo_lossplug.ultralytics_hook."
HOOK_LAYERS = [
    {"originals", "patching"},
    {"compatibility", "console", "counts", "decision", "derived", "family", "members", "min_side", "typed"},
    {"attached", "defaults", "nms", "patches", "recipes", "regions", "rotated"},
    {"assigner", "detr"},
    {"run"},
    {"engines"},
    {"config", "running", "unknown", "workers"},
    {"criterion", "tuning"},
    {"host", "trainer"},
    {"dataset"},
    {"trial"},
]
"""The same inside of the hook."""
UPWARD = {("_autoload", "ultralytics_hook"), ("ultralytics_hook", "__init__"), ("tools", "__init__")}
"""The start-up hook reaches up, when Ultralytics is imported; others ask for the version, and whether it is enabled."""
MODULES = sorted(PACKAGE.rglob("*.py"))


def unit(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name, layers=LAYERS):
    return next(i for i, layer in enumerate(layers) if name in layer)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_down():
    for path, name in ((module, name) for module in MODULES for name in imports(module)):
        first, *rest = name.split(".")
        if first == "ultralytics":
            assert unit(path) in ("ultralytics_hook", "cli"), f"{path.name} imports {name}"
        if first == "yolo_lossplug" and unit(path) != "__init__":
            target = rest[0] if rest and any(rest[0] in layer for layer in LAYERS) else "__init__"
            if (unit(path), target) in UPWARD or unit(path) in ("cli", "__main__"):
                continue
            assert target != "__init__", f"{path.name} imports {name}"
            assert level(target) <= level(unit(path)), f"{path.name} imports {name}"


def module_name(path):
    """Return the dotted name of a module, that of a package for its `__init__`."""
    return ".".join(("yolo_lossplug", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def graph():
    """Return the modules that each module imports, at its top or inside of functions."""
    names = {module_name(path) for path in MODULES}

    def module_of(name):
        return name if name in names else name.rpartition(".")[0]

    return {module_name(path): {module_of(name) for name in imports(path)} & names for path in MODULES}


def test_no_import_circle():
    """Not inside of a layer either, nor by an import inside of a function; the start-up hook alone reaches up."""
    edges = graph()
    edges["yolo_lossplug._autoload"] = set()
    TopologicalSorter({name: targets - {name, "yolo_lossplug"} for name, targets in edges.items()}).prepare()


def test_imports_of_the_hook_point_down():
    def hook_level(name):
        return level(name.removeprefix(HOOK).partition(".")[0], HOOK_LAYERS)

    inside = {name: targets for name, targets in graph().items() if name.startswith(HOOK)}
    upward = [
        f"{name} imports {target}"
        for name, targets in inside.items()
        for target in targets & inside.keys()
        if hook_level(target) > hook_level(name)
    ]
    assert len(inside) > 30 and not upward
    hook = "yolo_lossplug.ultralytics_hook"
    assert {name for name in graph()[f"{hook}.patches"] if name.startswith(hook) and name != hook} == {
        f"{hook}.patching"
    }


LOSSES = {*yolo_lossplug.list_box_losses(), *(spec.name for spec in REGISTRY)}
OPTIONS = set(REGISTRY.parameters())


def words(*nodes):
    constants = (c.value for node in nodes if node for c in ast.walk(node) if isinstance(c, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def compared(code):
    kinds = (ast.Compare, getattr(ast, "MatchValue", ast.Compare))
    return words(*(node for node in ast.walk(code) if isinstance(node, kinds)))


def tables(code):
    for node in ast.walk(code):
        if isinstance(node, ast.Dict):
            yield words(*node.keys)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            yield {keyword.arg for keyword in node.keywords}


def decides_on_losses(code):
    """Return whether code has a branch or a table of losses, or names an option of one: that belongs into its file.

    One column of several that is named like a loss makes no table of losses.
    """
    is_table = any(len(keys & LOSSES) > len(keys - LOSSES) for keys in tables(code))
    return is_table or bool(compared(code) & LOSSES) or bool(words(code) & OPTIONS)


def test_no_branch_on_the_name_of_a_loss():
    for path in MODULES:
        is_own = unit(path) in ("box_losses", "class_losses")
        assert is_own or not decides_on_losses(ast.parse(path.read_text(encoding="utf-8"))), path
    for branch in BRANCHES if sys.version_info >= (3, 10) else BRANCHES[:-1]:
        assert decides_on_losses(ast.parse(branch)), branch
    none = ast.parse('row = {"iou": 0.5, "loss": name}; STOCK = "ciou"; CHOICES = ("iou", "giou")')
    assert not decides_on_losses(none)


BRANCHES = [
    'if name == "eiou": pass',
    'kind = {"giou": 1, "focal-eiou": 2}[name]',
    'kind = {"qfl": 1}.get(name)',
    "kind = dict(iou=1, giou=2)[name]",
    'theta = options.get("siou_theta", 0.0)',
    'is_rotated = name in ("kld", "many", "other", "words")',
    'match name:\n    case "ce" | "focal": pass',
]


def test_every_source_file_names_its_licence():
    files = [p for folder in ("yolo_lossplug", "tests", "examples", "configs") for p in (ROOT / folder).rglob("*")]
    for path in files:
        if path.suffix in (".py", ".yaml"):
            assert path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: AGPL-3.0-or-later"), path
