# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug doctor` shows of an environment, and what it advises."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import pytest
import torch

from tests.runs import python, run
from yolo_lossplug import Option, class_loss
from yolo_lossplug.tools import installation
from yolo_lossplug.tools.installation import Owner, advice_on_keys, advice_on_owners, owners
from yolo_lossplug.ultralytics_hook.engines import choice

STOCK = Owner("ultralytics", "8.4.190")
HEADLESS = Owner("ultralytics-opencv-headless", "8.4.142")


def install(site, owner, files=("ultralytics/__init__.py", "ultralytics/cfg/__init__.py")):
    info = site / f"{owner.name.replace('-', '_')}-{owner.version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner.name}\nVersion: {owner.version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in (*files, f"{info.name}/RECORD")))


def test_owners_are_read_from_records(tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    install(site, HEADLESS)
    install(site, STOCK)
    install(site, Owner("torch", "2.0"), files=["torch/__init__.py"])
    install(site, Owner("ultralytics-thop", "2.0"), files=["thop/__init__.py", "docs/ultralytics/__init__.py"])
    install(elsewhere, Owner("fork", "1.0"))
    path = [str(site), str(elsewhere)]
    assert owners(path=path) == [Owner("fork", "1.0"), STOCK, HEADLESS]
    assert owners(site / "ultralytics", path) == [STOCK, HEADLESS]
    assert owners(elsewhere / "ultralytics", path) == [Owner("fork", "1.0")]
    assert owners(tmp_path / "checkout" / "ultralytics", path) == []
    (site / "torch-2.0.dist-info" / "RECORD").unlink()
    assert owners(site / "ultralytics", path) == [STOCK, HEADLESS]


def test_two_owners_of_one_folder_have_a_way_out_and_one_is_left_in_peace():
    first, *rest = advice_on_owners([STOCK, HEADLESS])
    assert (
        "2 distributions own the folder ultralytics: ultralytics 8.4.190, ultralytics-opencv-headless 8.4.142" in first
    )
    assert [line.strip() for line in rest] == [
        "pip uninstall ultralytics",
        "pip install --force-reinstall --no-deps ultralytics-opencv-headless==8.4.142",
        "pip install --no-deps yolo-lossplug, now and for every update",
    ]
    assert advice_on_owners([]) == advice_on_owners([STOCK]) == []
    first, second = advice_on_owners([HEADLESS])
    assert str(HEADLESS) in first and "pip install --no-deps yolo-lossplug" in second


@pytest.mark.parametrize("owner", [STOCK, HEADLESS])
def test_a_package_that_cannot_be_imported_can_be_installed_again(owner):
    first, second, *rest = advice_on_owners([owner], is_importable=False)
    assert str(owner) in first
    assert second.strip() == f"pip install --force-reinstall --no-deps {owner.name}=={owner.version}"
    assert bool(rest) is (owner is HEADLESS)


def test_keys_of_a_fork(tmp_path, registry):
    @class_loss("theirs")
    def theirs(logits, targets, *, their_weight: Annotated[float, Option("weight")] = 1.0):
        return (logits - targets) * their_weight

    stock, fork = tmp_path / "stock.yaml", tmp_path / "fork.yaml"
    stock.write_text("patience: 100\ntask: detect\ntheir_weight: 1.0\n")
    fork.write_text("# Ultralytics\npatience: 100\nloss: giou\nfocal_gamma:\n")
    assert advice_on_keys(stock) == []
    (line,) = advice_on_keys(fork)
    assert "a fork with keys of its own named focal_gamma, loss: they mean what the fork makes of them" in line


def test_the_hook_is_the_first_that_is_read(tmp_path):
    folders = [tmp_path / name for name in ("none", "one", "two")]
    for folder in folders[1:]:
        folder.mkdir()
        (folder / installation.HOOK_FILES[-1]).touch()
    assert installation.start_up_hook(folders) == folders[1] / installation.HOOK_FILES[-1]
    assert installation.start_up_hook(folders[:1]) is None


def test_facts_also_without_triton(monkeypatch):
    text = "\n".join(installation.facts())
    for word in (sys.executable, torch.__version__, str(installation.default_device()), "loss_engine=triton can"):
        assert word in text
    monkeypatch.setitem(sys.modules, "triton", None)
    installation.kernels._missing_triton.cache_clear()
    assert installation.triton_state().startswith("loss_engine=triton cannot run: Triton cannot be imported")
    monkeypatch.undo()
    installation.kernels._missing_triton.cache_clear()


@pytest.mark.parametrize("trouble", [None, "the kernels fail (no compiler)"])
def test_kernels_are_tried_on_a_gpu(trouble, monkeypatch):
    asked = []
    monkeypatch.setattr(installation, "default_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(installation.kernels, "missing", lambda device: None)
    monkeypatch.setattr(choice, "kernel_trouble", lambda setting: asked.append(setting) or trouble)
    said = f"cannot run: {trouble}" if trouble else "can run: its kernels compile"
    assert installation.triton_state().endswith(f"loss_engine=triton {said}")
    assert asked[0].device == "cuda:0" and asked[0].dtype == torch.float16


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages with a copy of Ultralytics that two distributions have installed."""
    import ultralytics

    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(
        Path(ultralytics.__file__).parent, folder / "ultralytics", ignore=shutil.ignore_patterns("__pycache__")
    )
    install(folder, STOCK)
    install(folder, HEADLESS)
    return folder


def doctor(site, cwd):
    return run([sys.executable, "-m", "yolo_lossplug", "doctor"], cwd, {"PYTHONPATH": str(site)}, check=False)


@pytest.mark.slow
def test_doctor_beside_a_headless_distribution(site, tmp_path):
    done = doctor(site, tmp_path)
    assert done.returncode == 0 and "active: `yolo` and Python know the keys of yolo-lossplug" in done.stdout
    assert str(site / "ultralytics") in done.stdout
    assert "installed by   ultralytics 8.4.190, ultralytics-opencv-headless 8.4.142" in done.stdout
    for line in advice_on_owners([STOCK, HEADLESS]):
        assert " ".join(line.split()) in " ".join(done.stdout.split())


@pytest.mark.slow
def test_doctor_in_a_fork(site, tmp_path):
    defaults = site / "ultralytics" / "cfg" / "default.yaml"
    stock = defaults.read_text(encoding="utf-8")
    defaults.write_text(f"{stock}\nloss: giou # of the fork\n", encoding="utf-8")
    done = doctor(site, tmp_path)
    defaults.write_text(stock, encoding="utf-8")
    assert (
        "This Ultralytics is a fork with keys of its own named loss: they mean what the fork makes of them"
        in " ".join(done.stdout.split())
    )


@pytest.mark.slow
def test_doctor_without_the_host(site, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); sys.modules['ultralytics'] = None\n"
        "import yolo_lossplug.cli as cli; sys.argv = ['', 'doctor']; cli.main()"
    )
    done = python(code, cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "not active: Ultralytics cannot be imported" in done.stdout
    assert "pip install --force-reinstall --no-deps ultralytics-opencv-headless==8.4.142" in done.stdout
