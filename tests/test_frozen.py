# SPDX-License-Identifier: AGPL-3.0-or-later
"""Programs built by PyInstaller, and others that lack modules of losses."""

import sys
from pathlib import Path

import pytest

import yolo_lossplug
from tests.runs import TINY, python, results, run

PROGRAM = f"""
import pathlib
import sys

import yolo_lossplug
from ultralytics import YOLO

if __name__ == "__main__":
    if sys.argv[1:] == ["list"]:
        print("LISTED", *yolo_lossplug.list_box_losses(), *yolo_lossplug.list_class_losses())
    elif sys.argv[1:] == ["page"]:
        from yolo_lossplug.tools.report import Report
        Report("Report").write(pathlib.Path("report.html"))
    else:
        YOLO("yolov8n.yaml").train(**{TINY!r}, **dict(word.split("=", 1) for word in sys.argv[1:]))
"""
SPEC = """
import os

analysis = Analysis(["program.py"], excludes={excludes!r})
large = [entry for entry in analysis.binaries if entry[2] != "SYMLINK" and os.path.getsize(entry[1]) > 10e6]
files = [entry for entry in analysis.binaries if entry not in large]
program = EXE(PYZ(analysis.pure), analysis.scripts, [], exclude_binaries=True, name="program")
folder = COLLECT(program, files, analysis.datas, name="program")
for name, source, _ in large:
    place = os.path.join(folder.name, "_internal", name)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.symlink(source, place)
"""
"""As `pyinstaller program.py` makes it, but that gigabytes of libraries are linked rather than copied."""
EXCLUDED = ["triton", "ray", "optuna", "tensorboard", "torch.utils.tensorboard", "pytest", "mypy", "IPython", "tkinter"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Build a program of one folder, and return its executable."""
    pytest.importorskip("PyInstaller", reason="PyInstaller is in the extra 'freeze'")
    if sys.platform == "win32":
        pytest.skip("links need a privilege on Windows, and copies gigabytes")
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "program.spec").write_text(SPEC.format(excludes=EXCLUDED))
    run([sys.executable, "-m", "PyInstaller", "--noconfirm", "program.spec"], folder)
    return str(folder / "dist" / "program" / "program")


@pytest.mark.parametrize("keys", [{}, {"loss": "focal-eiou", "cls_loss": "qfl"}], ids=["stock", "ours"])
def test_a_frozen_program_trains(keys, program, data, tmp_path):
    done = run([program, f"data={data}", f"project={tmp_path}", *(f"{k}={v}" for k, v in keys.items())], tmp_path)
    (folder,) = (file.parent for file in tmp_path.rglob("results.csv"))
    assert len(results(folder)) == 1
    assert ("box focal-eiou(focal_gamma=0.5) · class qfl" in done.stdout) is bool(keys)
    assert ("LossPlug" in done.stdout) is bool(keys)


def test_a_frozen_program_has_every_loss_and_writes_reports(program, tmp_path):
    (line,) = (line for line in run([program, "list"], tmp_path).stdout.splitlines() if line.startswith("LISTED"))
    assert line.split()[1:] == [*yolo_lossplug.list_box_losses(), *yolo_lossplug.list_class_losses()]
    run([program, "page"], tmp_path)
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")


HIDDEN = """
import pkgutil, sys
stock = pkgutil.iter_modules
def iter_modules(path=None, prefix=""):
    return (m for m in stock(path, prefix) if "yolo_lossplug" not in str(getattr(m.module_finder, "path", "")))
pkgutil.iter_modules = iter_modules
"""
"""What a builder does that only follows import statements."""


@pytest.mark.slow
def test_without_modules_of_losses_a_stock_run_is_a_stock_run(data, tmp_path):
    done = python(HIDDEN + PROGRAM, f"data={data}", f"project={tmp_path / 'hidden'}", cwd=tmp_path)
    assert "LossPlug" not in done.stdout
    whole = python(PROGRAM, f"data={data}", f"project={tmp_path / 'whole'}", cwd=tmp_path)
    assert "LossPlug" not in whole.stdout
    one, other = (results(next((tmp_path / name).rglob("results.csv")).parent) for name in ("hidden", "whole"))
    assert one == other


MISSING = """
for word in "loss=eiou cls_loss=qfl loss=ciou tal_topk=7 task=obb,cls_loss=focal".split():
    keys = dict(pair.split("=") for pair in word.split(","))
    try:
        YOLO("yolov8n.yaml").train(data=sys.argv[1], project=sys.argv[2], **keys)
    except yolo_lossplug.LossPlugError as error:
        print("REFUSED", error)
"""


@pytest.mark.slow
def test_without_modules_of_losses_our_keys_say_what_is_missing(data, tmp_path):
    code = f"{HIDDEN}{PROGRAM.partition('if __name__')[0]}{MISSING}"
    lines = [line for line in python(code, data, tmp_path, cwd=tmp_path).stdout.splitlines() if "REFUSED" in line]
    assert len(lines) == 5 and not list(Path(tmp_path).rglob("args.yaml"))
    for line in lines:
        assert "is unknown: this program was built without the modules of losses" in line
        assert "pyinstaller --collect-submodules yolo_lossplug" in line


def test_the_hook_is_announced():
    """PyInstaller reads it from the folder that the entry point names."""
    from importlib.metadata import entry_points

    found = entry_points()
    chosen = found.select(group="pyinstaller40") if hasattr(found, "select") else found["pyinstaller40"]
    (entry,) = {entry.value: entry for entry in chosen if entry.value.startswith("yolo_lossplug")}.values()
    (folder,) = entry.load()()
    assert Path(folder, "hook-yolo_lossplug.py").is_file()
