# SPDX-License-Identifier: AGPL-3.0-or-later
"""The start-up hook and the package around it, as they are installed."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.runs import PLACE, ROOT, python, run

IMPORTED = "import sys; print(*sorted(sys.modules))"


def modules(tmp_path, **env):
    return set(python(IMPORTED, cwd=tmp_path, env=env).stdout.split())


def test_a_start_imports_nothing_but_the_hook(tmp_path):
    """Beyond a bare interpreter: two small modules of ours, and none of others."""
    plain = modules(tmp_path, YOLO_LOSSPLUG="0")
    assert not any("lossplug" in name for name in plain if not name.startswith("_editable_impl"))
    assert modules(tmp_path) - plain == {"yolo_lossplug", "yolo_lossplug._autoload"}


def test_import_takes_no_framework_along_and_switched_off_does_not_enable(tmp_path):
    code = "import yolo_lossplug, sys; print('torch' in sys.modules, 'ultralytics' in sys.modules)"
    assert python(code, cwd=tmp_path).stdout.split() == ["False", "False"]
    code = "import sys, yolo_lossplug as y; y.Option; y.LossPlugError; y.box_loss; print('torch' in sys.modules)"
    assert python(code, cwd=tmp_path).stdout.split() == ["False"]
    code = "import yolo_lossplug as y; print(y.is_enabled()); y.enable(); print(y.is_enabled())"
    assert python(code, cwd=tmp_path, env={"YOLO_LOSSPLUG": "0"}).stdout.split() == ["False", "True"]


@pytest.mark.slow
def test_doctor_tells_where_no_hook_is_read(tmp_path):
    """A folder on the path is no place whose hooks Python reads."""
    site = [PLACE, *(path for path in sys.path if path.endswith("site-packages"))]
    code = f"import sys; sys.path += {site!r}; sys.argv = ['', 'doctor']; from yolo_lossplug.cli import main; main()"
    bare = venv.create(tmp_path / "bare", with_pip=False) or tmp_path / "bare"
    interpreter = bare / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = run([str(interpreter), "-c", code], tmp_path, check=False)
    assert done.returncode == 1 and "not active in plain `yolo`" in done.stdout


def test_public_names():
    import yolo_lossplug

    for name in yolo_lossplug.__all__:
        assert getattr(yolo_lossplug, name) is not None
        assert name in dir(yolo_lossplug)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        yolo_lossplug.nothing  # noqa: B018


@pytest.mark.slow
def test_watched_modules_keep_their_own_loader(tmp_path):
    """`python -m`, `inspect.getsource` and reloads go on working."""
    code = (
        "import ultralytics.cfg, importlib, inspect\n"
        "print(type(ultralytics.cfg.__spec__.loader).__name__, len(inspect.getsource(ultralytics.cfg)) > 9999)\n"
        "importlib.reload(ultralytics.cfg)\nprint(ultralytics.cfg.get_cfg(overrides={'loss': 'eiou'}).loss)\n"
    )
    lines = python(code, cwd=tmp_path).stdout.split()
    assert lines == ["SourceFileLoader", "True", "eiou"]


@pytest.mark.slow
def test_own_command(tmp_path):
    command = [sys.executable, "-m", "yolo_lossplug"]
    listing = run([str(Path(sys.executable).with_name("lossplug")), "list"], tmp_path).stdout
    for text in ("eiou", "focal_gamma=0.5 in [0, ∞)", "cls_loss=", "tal_topk=10"):
        assert text in listing
    state = run([*command, "doctor"], tmp_path)
    assert "active: `yolo` and Python know the keys of yolo-lossplug" in state.stdout
    off = run([*command, "doctor"], tmp_path, {"YOLO_LOSSPLUG": "0"}, check=False)
    assert off.returncode == 1 and "switched off by YOLO_LOSSPLUG=0" in off.stdout
    stock = run([*command, "train", "loss=eiou"], tmp_path, {"YOLO_LOSSPLUG": "off"}, False)
    assert "'loss' is not a valid YOLO argument" in stock.stdout
    assert "usage: lossplug COMMAND" in run(command, tmp_path).stdout
    assert run([*command, "--version"], tmp_path).stdout.strip() == "0.1.0"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source distribution, and a wheel made from the latter."""
    folder = tmp_path_factory.mktemp("built")
    run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    unpacked = tmp_path_factory.mktemp("unpacked")
    run(["tar", "-xzf", str(sdist), "-C", str(unpacked)], ROOT)
    (source,) = unpacked.iterdir()
    again = tmp_path_factory.mktemp("again")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(again)], source)
    return {"wheel": next(folder.glob("*.whl")), "wheel from sdist": next(again.glob("*.whl"))}


@pytest.mark.parametrize("kind", ["wheel", "wheel from sdist"])
def test_what_a_wheel_carries(kind, built):
    names = zipfile.ZipFile(built[kind]).namelist()
    for name in ("yolo_lossplug.pth", "yolo_lossplug.start", "yolo_lossplug/py.typed", "yolo_lossplug/shapes.py"):
        assert name in names
    assert "yolo_lossplug/_pyinstaller/hook-yolo_lossplug.py" in names
    assert {f"yolo_lossplug/tools/report.{kind}" for kind in ("css", "js", "html.jinja")} <= {*names}, (
        "parts of reports"
    )
    for file in (ROOT / "configs").rglob("*.yaml"):
        assert f"yolo_lossplug/{file.relative_to(ROOT).as_posix()}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "configs", "examples"))]
    (metadata,) = [name for name in names if name.endswith("METADATA")]
    text = zipfile.ZipFile(built[kind]).read(metadata).decode()
    names = "Name: yolo-lossplug", "License-Expression: AGPL-3.0-or-later", "Requires-Dist: ultralytics<8.5,>=8.3.0"
    assert all(line in text for line in names)


def content(site):
    return {str(p.relative_to(site)) for p in site.rglob("*") if "__pycache__" not in p.parts}


RECIPES = """
from yolo_lossplug.ultralytics_hook.recipes import recipes
print(*(recipes()[name].is_file() for name in ("quickstart.yaml", "shapes128-obb.yaml")))
"""


@pytest.mark.parametrize("kind", ["wheel", "wheel from sdist", "editable"])
def test_install_and_uninstall(kind, built, tmp_path):
    """The hook runs after every kind of install, and nothing is left after uninstalling."""
    venv.create(tmp_path / "venv", with_pip=False)
    interpreter = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    purelib = [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = Path(run(purelib, tmp_path).stdout.strip())
    before = content(site)
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "--disable-pip-version-check"]
    source = [str(built[kind])] if kind in built else ["--no-build-isolation", "-e", str(ROOT)]
    backend = next(path for path in sys.path if path.endswith("site-packages"))
    run([*pip, "install", "--ignore-installed", "--no-deps", "--no-index", *source], tmp_path, {"PYTHONPATH": backend})

    bare = {"PYTHONNOUSERSITE": "1"}
    started = [str(interpreter), "-c", IMPORTED]
    assert "yolo_lossplug._autoload" in run(started, tmp_path, bare).stdout.split()
    assert "yolo_lossplug" not in run(started, tmp_path, {**bare, "YOLO_LOSSPLUG": "0"}).stdout.split()
    assert run([str(interpreter), "-c", RECIPES], tmp_path, bare).stdout.split() == ["True", "True"]

    if kind == "wheel":  # half an uninstall: the hook is left, the package is gone
        package = site / "yolo_lossplug"
        package.rename(site / "moved")
        assert "Error" not in run(started, tmp_path, bare).stdout
        (site / "moved").rename(package)
    run([*pip, "uninstall", "-y", "yolo-lossplug"], tmp_path)
    assert content(site) == before


BROKEN = """
import {module} as broken
{damage}
from ultralytics.utils import DEFAULT_CFG_DICT
import ultralytics.engine.trainer
print('loss' in DEFAULT_CFG_DICT)
try:
    import yolo_lossplug
except ImportError as error:
    print(error)
"""
BREAKS = {
    "an error of others": (
        "yolo_lossplug.registry",
        "broken.Registry.parameters = lambda self: 1 / 0",
        "unexpected ZeroDivisionError: division by zero.",
    ),
    "an error of ours": (
        "ultralytics.utils.tal",
        "del broken.TaskAlignedAssigner.iou_calculation\nimport ultralytics.nn.tasks",
        "this release of Ultralytics has changed what the plugin relies on: ultralytics.utils.tal.TaskAlignedAssigner."
        "iou_calculation is gone.",
    ),
    "a mistake": (
        "yolo_lossplug.registry",
        "def fail(self):\n raise broken.LossPlugError('It is wrong.')\nbroken.Registry.parameters = fail",
        "It is wrong.",
    ),
    "undoing": (
        "yolo_lossplug.ultralytics_hook.patches",
        "broken.apply = broken.revert = lambda *args: [][0]",
        "unexpected IndexError: list index out of range; undoing it failed: unexpected IndexError: list index out of "
        "range.",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BREAKS)
def test_the_hook_never_raises_whatever_it_meets(kind, tmp_path):
    """A broken plugin must not break plain Ultralytics, and tells who asks in words what is wrong."""
    module, damage, words = BREAKS[kind]
    code = BROKEN.format(module=module, damage=damage)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    known, said = done.stdout.splitlines()[-2:]
    assert known == "False" and done.stderr == ""
    assert said == f"yolo-lossplug is not enabled: {words}"
