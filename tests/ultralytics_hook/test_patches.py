# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changes to the host: complete, undone exactly, refused where a seam has moved."""

import functools
import importlib
import inspect
import json
import os
import sys
import types
from pathlib import Path

import pytest
from ultralytics.cfg import get_cfg
from ultralytics.utils import dist

from tests.runs import ABSENT, ROOT, Log, python
from tests.ultralytics_hook import rows
from yolo_lossplug import LossPlugError, _autoload, box_loss
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook import compatibility, members, patches, patching, trainer
from yolo_lossplug.ultralytics_hook.workers import header


def snapshot():
    """Return the objects that the host's modules and classes hold, by name, and the contents of its defaults."""
    held = {"meta_path": [id(finder) for finder in sys.meta_path]}
    for name in patches.modules():
        module = importlib.import_module(name)
        values = {key: value for key, value in vars(module).items() if not key.startswith("__")}
        held.update({f"{name}.{key}": id(value) for key, value in values.items()})
        held.update({f"{name}.{key}": repr(value) for key, value in values.items() if isinstance(value, list)})
        for cls in (value for value in vars(module).values() if inspect.isclass(value)):
            held.update({f"{name}.{cls.__name__}.{key}": id(value) for key, value in vars(cls).items()})
    utils = sys.modules["ultralytics.utils"]
    held["defaults"] = list(utils.DEFAULT_CFG_DICT.items())
    held["namespace"] = list(vars(utils.DEFAULT_CFG).items())
    return held


def test_enable_and_disable_are_idempotent_and_exact(enabled):
    enabled.disable()
    snapshot()  # imports what is not imported yet
    before = snapshot()
    assert not enabled.is_enabled()
    for _ in range(2):
        enabled.enable()
    during = snapshot()
    assert enabled.is_enabled()
    for _ in range(2):
        enabled.disable()
    assert snapshot() == before
    assert _autoload.problem == ""
    for patch in patches.PATCHES:
        name = patch.attribute.split(".")[-1]
        changed = [key for key in before if key.startswith(f"{patch.module}.") and key.endswith(f".{name}")]
        assert changed or patch.is_optional
        assert not changed or any(before[key] != during.get(key) for key in changed), (
            f"{patch.module}.{name} is as it was"
        )
    assert len(during["defaults"]) > len(before["defaults"])


def test_every_change_is_watched_for_and_says_why():
    assert set(patches.modules()) == set(_autoload.WATCHED)
    names = [rows.name_of(patch) for patch in patches.PATCHES]
    assert len(set(names)) == len(names) and set(names) == set(rows.TESTS)
    reasons = [patch.reason.strip() for patch in patches.PATCHES]
    assert all(reasons) and len(set(reasons)) == len(reasons)


@pytest.mark.slow
def test_without_any_one_change_a_test_fails():
    """With all changes the tests of what they are for pass, and without a change that of this one does not."""
    done = python("from tests.ultralytics_hook import rows; rows.main()", cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("nothing") is False
    assert len(found) > 20 and not [name for name, is_missed in found.items() if not is_missed]


def test_runs_that_the_host_starts_are_started_by_us():
    from ultralytics import cfg
    from ultralytics.engine import trainer

    if not hasattr(cfg, "_YOLO_CLI_COMMAND"):
        pytest.skip("this release of Ultralytics has its command in the middle of a function")
    assert cfg._YOLO_CLI_COMMAND == trainer._YOLO_CLI_COMMAND == [sys.executable, "-m", "yolo_lossplug"]


def test_supported_releases_and_one_newer_than_the_tested(monkeypatch):
    for version in ("8.3.0", "8.3.253", "8.4.999"):
        assert compatibility.unsupported(version) == ""
    for version in ("8.2.103", "8.5.0", "9.0"):
        reason = compatibility.unsupported(version)
        assert version in reason and ">=8.3.0, <8.5" in reason
    newest = ".".join(map(str, compatibility.TESTED))
    with Log() as log:
        trainer.warn_of_release(newest)
        assert not log.lines
        trainer.warn_of_release("8.4.991")
        trainer.warn_of_release("8.4.991")
    (line,) = log.lines
    assert f"ultralytics 8.4.991 is newer than {newest}" in line
    assert members.box_loss_error() < 1e-6
    stock = members.BboxLoss.forward

    @functools.wraps(stock)
    def moved(self, *args):
        box, dfl = stock(self, *args)
        return box * 1.01, dfl

    monkeypatch.setattr(members.BboxLoss, "forward", moved)
    with pytest.raises(LossPlugError, match=rf"ultralytics 8.4.992 computes another box loss.*ultralytics=={newest}"):
        trainer.warn_of_release("8.4.992")


FAKE = """
import sys
import ultralytics
{damage}
import ultralytics.engine.trainer, ultralytics.nn.tasks, ultralytics.utils.dist
from ultralytics.utils import DEFAULT_CFG_DICT
assert "loss" not in DEFAULT_CFG_DICT
from ultralytics import YOLO
model = YOLO("yolov8n.yaml")
import numpy as np
print("PREDICTED", len(model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)))
assert not hasattr(ultralytics.engine.trainer.BaseTrainer.check_resume, "__wrapped__")
try:
    import yolo_lossplug
except ImportError as error:
    print("REASON", error)
else:
    print("ENABLED", yolo_lossplug.is_enabled())
"""
DAMAGES = {
    "version": ("ultralytics.__version__ = '8.5.0'", "ultralytics 8.5.0 is not supported"),
    "gone": (
        "import ultralytics.utils.tal as tal\ndel tal.TaskAlignedAssigner.iou_calculation",
        "ultralytics.utils.tal.TaskAlignedAssigner.iou_calculation is gone",
    ),
    "signature": (
        "import ultralytics.utils.loss as loss\nloss.BboxLoss.forward = lambda self, boxes, scores: None",
        "ultralytics.utils.loss.BboxLoss.forward takes (self, boxes, scores, …) where (self, pred_dist,",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_release_that_moved_a_seam_is_left_alone(damage, tmp_path):
    """Nothing is printed, everything but our keys works, and an explicit import says what moved."""
    code, reason = DAMAGES[damage]
    done = python(FAKE.format(damage=code), cwd=tmp_path)
    assert "PREDICTED 1" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "REASON" in line]
    assert "yolo-lossplug is not enabled: " in line and reason in line
    assert "LossPlug" not in done.stdout


@pytest.mark.slow
def test_what_adds_the_keys_imports_nothing_of_the_host(tmp_path):
    """It runs in the middle of the host's own import."""
    code = "import sys, yolo_lossplug.ultralytics_hook.config\nassert 'ultralytics' not in sys.modules"
    python(code, cwd=tmp_path, env=ABSENT)
    code = "import ultralytics\nfrom ultralytics.utils import DEFAULT_CFG_DICT\nassert 'loss' in DEFAULT_CFG_DICT"
    python(code, cwd=tmp_path)


def test_wrappers_of_other_plugins_keep_the_seam_and_are_bound():
    expected = ("self", "cfg", "overrides")

    def theirs(self, *args, **kwargs):
        return None

    def hosts(self, config, overrides):
        return None

    hosts.__module__ = "ultralytics.engine.trainer"
    for function in (theirs, lambda self, cfg, *rest: None, lambda me, config, given: None, type("C", (), {})):
        patching.check_parameters("theirs", function, expected)
    for other in (hosts, lambda self, *, cfg: None, lambda self: None, None):
        with pytest.raises(patching.SeamMoved):
            patching.check_parameters("other", other, expected)

    class Owner:
        plain = functools.partial(lambda *args: args)
        method = functools.partialmethod(lambda *args: args, 1)
        static = staticmethod(lambda *args: args)

    one = Owner()
    for name in ("plain", "method", "static"):
        assert patching.as_function(Owner, vars(Owner)[name])(one, 2) == getattr(one, name)(2)


@pytest.fixture
def unusable(enabled):
    """A function with a change of ours that cannot be imported."""
    module = types.ModuleType("host")
    module.function = lambda value: value
    undo = patching.around("no_such_module.function")(module, "function")
    yield module.function
    undo()


def test_a_hook_that_cannot_be_imported_leaves_a_run_alone(unusable, enabled):
    with Log() as log:
        assert unusable(3) == 3
    (line,) = log.lines
    assert "not active, this run is one of plain Ultralytics: unexpected ModuleNotFoundError" in line
    assert not enabled.is_enabled() and "ModuleNotFoundError" in _autoload.problem


def test_a_class_is_found_whatever_stands_in_its_place(monkeypatch):
    from ultralytics.utils import loss, tal

    for module, name in ((loss, "v8DetectionLoss"), (loss, "v8ClassificationLoss"), (tal, "TaskAlignedAssigner")):
        stock = getattr(module, name)
        for other in (lambda *args, **kwargs: None, type("Mine", (stock,), {})):
            monkeypatch.setattr(module, name, other)
            assert patching.look_up(module, name) is stock
        monkeypatch.setattr(module, name, stock)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each change has a process of its own")
def test_trainings_under_changes_of_third_parties(data, tmp_path):
    code = "import sys; from tests.ultralytics_hook import others; others.main(*sys.argv[1:])"
    done = python(code, data, tmp_path, cwd=ROOT, env=ABSENT)
    assert json.loads(done.stdout.splitlines()[-1]) == [], done.stdout[-9000:]


def test_the_script_of_a_worker_enables_us():
    class Trainer:
        args, model, callbacks, hub_session = get_cfg(overrides={"loss": "eiou"}), None, {}, None

    trainer = Trainer()
    file = dist.generate_ddp_file(trainer)
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        assert lines[2:4] == ["import yolo_lossplug", "yolo_lossplug.enable()"]
        assert not [line for line in lines[:2] if "ultralytics" in line and line.startswith(("import", "from"))]
    finally:
        dist.ddp_cleanup(trainer, str(file))

    @box_loss("of-this-test")
    def of_this_test(pred, target):
        return (pred - target).abs().sum(-1)

    assert __name__ not in header(select({})) + header(select({"loss": "eiou"}))
    assert f"import {__name__}" in header(select({"loss": "of-this-test"}))
