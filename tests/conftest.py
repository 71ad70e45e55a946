# SPDX-License-Identifier: AGPL-3.0-or-later
import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # torch reads it when it is imported: a worker for each core, a thread for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Ultralytics reads its settings when it is imported: tests have their own, and leave nothing behind.
HOME = Path(tempfile.mkdtemp(prefix="yolo-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(YOLO_CONFIG_DIR=str(HOME), YOLO_AUTOINSTALL="false", YOLO_OFFLINE="true")
for variable in ("YOLO_LOSSPLUG", *(() if "LOSSPLUG_HOST" in os.environ else ("PYTHONPATH",))):
    os.environ.pop(variable, None)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if not torch.cuda.is_available():  # kernels run in Triton's interpreter, which it asks when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

FOLDERS = {f"{name}_dir": str(HOME / name) for name in ("datasets", "weights", "runs")}
WITHOUT_RAY = {"raytune": False} if "LOSSPLUG_HOST" in os.environ else {}
"""Old releases fail in their own callback where a new Ray is installed."""
CODE = f"from ultralytics.utils import SETTINGS; SETTINGS.update({ {**FOLDERS, 'sync': False, **WITHOUT_RAY}!r})"
subprocess.run([sys.executable, "-c", CODE], check=True, stdout=subprocess.DEVNULL, cwd=HOME)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_report_header(config):
    if config.option.markexpr == "not slow":
        return "quick tests only; all of them: pytest -m '' -n auto --dist loadfile"
    return None


EXPENSIVE = {"built", "compared", "interrupted", "measure", "pair", "program", "scenes", "site", "trained"}
"""Fixtures that take long: every test that uses one is slow."""


@pytest.hookimpl(tryfirst=True)  # before slow tests are deselected
def pytest_collection_modifyitems(items):
    for item in items:
        if EXPENSIVE & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)


@pytest.fixture(scope="session")
def data():
    """A dataset of 12 tiny images."""
    return dataset("tiny")


@pytest.fixture(scope="session")
def other_data():
    """Another one."""
    return dataset("other", seed=1)


def dataset(name, seed=0, task="detect"):
    from yolo_lossplug.shapes import CLASSES, write_shapes

    folder = write_shapes(HOME / "datasets" / name, images=12, size=64, validation=4, seed=seed, task=task)
    names = "".join(f"  {i}: {label}\n" for i, label in enumerate(CLASSES))
    file = HOME / f"{name}.yaml"
    points = "kpt_shape: [4, 3]\nflip_idx: [0, 3, 2, 1]\n" if task == "pose" else ""
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\n{points}names:\n{names}")
    return str(file)


@pytest.fixture
def enabled():
    """Leave the plugin as it should be, whatever the test does."""
    import yolo_lossplug

    yolo_lossplug.enable()
    yield yolo_lossplug
    yolo_lossplug.disable()
    yolo_lossplug.enable()


@pytest.fixture(autouse=True)
def registry():
    """The registry, which forgets what a test registers."""
    import yolo_lossplug.selection.keys  # with the losses of the package
    from yolo_lossplug.registry import REGISTRY

    before = dict(REGISTRY.specs)
    yield REGISTRY
    if [*REGISTRY.specs.values()] != [*before.values()]:
        yolo_lossplug.disable()  # takes the keys of the new losses along
        REGISTRY.specs.clear()
        REGISTRY.specs.update(before)
        yolo_lossplug.enable()


@pytest.fixture
def collector(tmp_path):
    """The collector of a run that criteria made with ``save_dir="here"`` belong to."""
    from yolo_lossplug.ultralytics_hook.run import runs

    args = types.SimpleNamespace(save_dir="here", lossplug_report=True)
    trainer = types.SimpleNamespace(args=args, save_dir=tmp_path, resume=False)
    runs.begin(trainer)
    yield runs.find({"save_dir": "here"}).collector
    runs.end(trainer)


@pytest.fixture(scope="module")
def measure():
    """`tests.browser.measure` with a browser."""
    from tests import browser

    if browser.CHROMIUM is None:
        pytest.skip("needs Chromium in the PATH")
    with browser.launched() as chromium:
        yield functools.partial(browser.measure, chromium)


@pytest.fixture(scope="session")
def interrupted(data, tmp_path_factory):
    """The folder of a run with losses of ours, stopped by Ctrl-C in its second epoch of three."""
    from tests.runs import interrupt

    keys = {"loss": "focal-eiou", "focal_gamma": 0.4, "cls_loss": "qfl", "tal_topk": 7}
    return interrupt("yolov8n.yaml", data=data, project=tmp_path_factory.mktemp("interrupted"), **keys)


@pytest.fixture(scope="session")
def interrupted_stock(data, tmp_path_factory):
    """The folder of a stock run that the plugin saw, stopped the same way."""
    from tests.runs import interrupt

    return interrupt("yolov8n.yaml", data=data, project=tmp_path_factory.mktemp("interrupted_stock"))
