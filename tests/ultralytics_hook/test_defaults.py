# SPDX-License-Identifier: AGPL-3.0-or-later
"""`yolo help`, `yolo cfg` and `yolo copy-cfg` know our keys."""

from pathlib import Path

import pytest
import yaml
from ultralytics import cfg
from ultralytics.utils import DEFAULT_CFG_DICT, DEFAULT_CFG_PATH

from tests.runs import Log, refuses
from yolo_lossplug import catalogue
from yolo_lossplug.selection.keys import keys, numeric_keys
from yolo_lossplug.tools import verify
from yolo_lossplug.ultralytics_hook import console, defaults


def said(*words):
    with Log() as log:
        cfg.entrypoint(" ".join(["yolo", *words]))
    return "\n".join(log.lines)


def test_the_help_names_our_keys():
    text = said("help")
    assert "keys of yolo-lossplug" in text and "loss=eiou cls_loss=qfl" in text
    assert max(map(len, defaults.HELP.splitlines())) <= 80
    assert text.strip().startswith("Arguments received") and "yolo copy-cfg" in text


@pytest.mark.parametrize("columns", [60, 80])
def test_the_defaults_are_printed_with_our_keys(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = said("cfg")
    host, _, ours = text.partition("# yolo-lossplug -")
    assert list(yaml.safe_load(host.partition("\n\n")[2])) == list(yaml.safe_load(DEFAULT_CFG_PATH.read_text("utf-8")))
    assert yaml.safe_load(f"#{ours}") == keys()
    assert max(map(len, ours.splitlines())) <= columns
    unbroken = ours.replace("\n    #", "")
    assert "\ntal_topk: # 10: maximum number of anchors per object ([1, ∞))\n" in unbroken
    assert "\nfocal_gamma: # 0.5 in [0, ∞): exponent of the overlap in the weight; " in unbroken


def test_every_key_is_explained_with_its_default():
    comments = catalogue.comments()
    assert set(comments) == set(keys())
    for key, p in numeric_keys().items():
        default = "none" if p.default is None else str(p.default)
        assert comments[key].startswith(default) and p.option.range in comments[key]
    assert "(loss=NAME+NAME)" in comments["loss_mix"] and "(loss=focal-)" in comments["focal_gamma"]


def test_other_files_are_printed_as_they_are(tmp_path):
    file = tmp_path / "other.yaml"
    file.write_text("a: 1\n")
    with Log() as log:
        cfg.yaml_print(file) if hasattr(cfg, "yaml_print") else cfg.YAML.print(file)
    assert "a: 1" in log.lines[0] and len(log.lines) == 1


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the defaults, as `yolo copy-cfg` writes it."""
    monkeypatch.chdir(tmp_path)
    said("copy-cfg")
    return tmp_path / "default_copy.yaml"


def test_a_copy_has_our_keys_unset(copy):
    text = copy.read_text(encoding="utf-8")
    assert text.startswith(DEFAULT_CFG_PATH.read_text(encoding="utf-8")) and text.count("# yolo-lossplug -") == 1
    content = yaml.safe_load(text)
    assert {key: content[key] for key in keys()} == keys() and set(content) == set(DEFAULT_CFG_DICT)
    assert max(map(len, defaults.section().splitlines())) <= 120


def test_a_copy_is_accepted_everywhere_and_a_key_that_is_set_in_it_works(copy):
    assert not {key for key, value in console.read_cfg(copy).items() if key in keys() and value != keys()[key]}
    args = cfg.get_cfg(copy)
    assert vars(args) == vars(cfg.get_cfg()) or vars(args) == {**vars(cfg.get_cfg()), "cfg": None}
    found, rows = verify.verify({"cfg": str(copy), "model": "yolov8n.yaml", "imgsz": 64, "batch": 2})
    assert found["runs"].startswith("box ciou · class bce") and all(row.agrees for row in rows)
    copy.write_text(copy.read_text("utf-8").replace("\nloss: #", "\nloss: eiuo #"), "utf-8")
    refuses("Did you mean 'eiou'", cfg.get_cfg, copy)
    copy.write_text(copy.read_text("utf-8").replace("\nloss: eiuo #", "\nloss: eiou #"), "utf-8")
    assert verify.verify({"cfg": str(copy), "model": "yolov8n.yaml", "imgsz": 64})[0]["runs"].startswith("box eiou")


def test_switched_off_the_host_prints_its_own(enabled, tmp_path, monkeypatch):
    enabled.disable()
    monkeypatch.chdir(tmp_path)
    assert "lossplug" not in said("help") + said("cfg") + said("copy-cfg")
    assert Path("default_copy.yaml").read_bytes() == DEFAULT_CFG_PATH.read_bytes()
