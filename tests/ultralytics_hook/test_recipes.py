# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recipes and datasets of the package, by name and from any folder; names of Ultralytics and the user go first."""

import sys
from itertools import chain
from pathlib import Path

import pytest
import yaml
from ultralytics.data import utils
from ultralytics.utils import checks

from tests.runs import ROOT, TINY, results, run, slow, train, yolo
from yolo_lossplug.ultralytics_hook import console, recipes

FILES = sorted((ROOT / "configs").rglob("*.yaml"))
DATASETS = [file.stem for file in FILES if file.parent.name == "data"]


@pytest.fixture(autouse=True)
def anywhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_a_recipe_is_found_from_any_folder():
    for file in FILES:
        for hard in (True, False):
            assert Path(checks.check_yaml(file.name, hard=hard)).read_bytes() == file.read_bytes()
            assert Path(checks.check_file(Path(file.name), hard=hard)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", [name if name == "shapes128" else slow(name) for name in DATASETS])
def test_a_dataset_is_found_from_any_folder(name):
    found = utils.check_det_dataset(f"{name}.yaml")
    assert Path(found["yaml_file"]).name == f"{name}.yaml"
    train = found["train"] if isinstance(found["train"], list) else [found["train"]]
    images = [Path(entry).iterdir() if Path(entry).is_dir() else Path(entry).read_text().split() for entry in train]
    assert len({*chain(*images)}) == 96


def test_a_file_of_the_working_folder_or_of_ultralytics_goes_first(tmp_path, monkeypatch):
    (tmp_path / "eiou.yaml").write_text("loss: giou\n")
    assert checks.check_yaml("eiou.yaml") == "eiou.yaml"
    assert console.read_cfg("eiou.yaml") == {"loss": "giou"}
    recipe = recipes.recipes()["eiou.yaml"]
    monkeypatch.setattr(recipes, "recipes", lambda: {"default.yaml": recipe, "coco8.yaml": recipe})
    for name in ("default.yaml", "coco8.yaml"):
        assert checks.ROOT / "cfg" in Path(checks.check_yaml(name)).parents


def test_what_the_host_refuses_is_refused():
    with pytest.raises(AssertionError, match="acceptable suffix"):
        checks.check_file("eiou.yaml", ".pt")
    for name in ("nothing.yaml", "elsewhere/eiou.yaml", "eiou"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            checks.check_file(name)
        assert checks.check_file(name, hard=False) == []


def test_off_nothing_is_found(enabled):
    from ultralytics.data import utils

    enabled.disable()
    for function in (checks.check_yaml, utils.check_file):
        with pytest.raises(FileNotFoundError):
            function("eiou.yaml")
    enabled.enable()
    for function in (checks.check_yaml, utils.check_file):
        assert Path(function("eiou.yaml")).is_file()


def test_commands_read_recipes_by_name_which_name_datasets_that_are_found_everywhere():
    assert console.read_cfg("focal-eiou.yaml") == {"loss": "focal-eiou", "focal_gamma": 0.5}
    named = [yaml.safe_load(file.read_text(encoding="utf-8")).get("data") for file in FILES]
    assert {name for name in named if name} == {"shapes128.yaml"} <= recipes.recipes().keys()


@pytest.mark.slow
def test_quickstart_from_an_empty_folder(tmp_path):
    keys = {"imgsz": 32, "batch": 16, "project": str(tmp_path / "runs"), "name": "quick"}
    done = yolo("train", "cfg=quickstart.yaml", cwd=tmp_path, **{**TINY, **keys})
    assert "box eiou" in done.stdout and len(results(tmp_path / "runs" / "quick")) == 1
    trainer = train(cfg="quickstart.yaml", **{**keys, "name": "python"})
    assert trainer.args.loss == "eiou" and len(results(tmp_path / "runs" / "python")) == 1
    done = run([sys.executable, "-m", "yolo_lossplug", "verify", "cfg=focal-eiou.yaml", "imgsz=64"], tmp_path)
    assert "focal-eiou" in done.stdout
