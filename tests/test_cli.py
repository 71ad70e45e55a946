# SPDX-License-Identifier: AGPL-3.0-or-later
"""The `lossplug` command: explanations, citations, and losses of other packages."""

import sys

import pytest

from tests.runs import python, run
from yolo_lossplug import LossPlugError, list_box_losses, list_class_losses
from yolo_lossplug.cli import bibtex, explanation
from yolo_lossplug.papers import PAPERS
from yolo_lossplug.registry import REGISTRY


def test_explain_resolves_a_name_into_its_parts():
    text = explanation("inner-focal-EIoU")
    assert text.splitlines()[0] == "loss=focal-inner-eiou"
    for part in (
        "focal-: weight = sg(IoU^γ)",
        "focal_gamma=0.5 in [0, ∞)",
        "inner-: u → IoU of both boxes scaled by r",
        "inner_ratio=0.7 in (0, ∞)",
        "eiou: 1 − IoU + ρ²/c² + (w − W)²/cw² + (h − H)²/ch²",
        "Zhang and Ren and Zhang and Jia and Wang and Tan: Focal and Efficient IOU Loss",
        "Note: Boxes that do not overlap their target get loss 0 and gradient 0.",
    ):
        assert part in text
    assert explanation("focal").startswith("cls_loss=focal\n")
    assert "is not at p = y" in explanation("focal")
    with pytest.raises(LossPlugError, match="Did you mean 'inner-eiou'"):
        explanation("iner-eiou")


def test_every_loss_can_be_explained_and_every_paper_cited():
    for name in (*list_box_losses(), *list_class_losses()):
        assert explanation(name)
        bibtex(name)
    ours = [spec for spec in REGISTRY if spec.function.__module__.startswith("yolo_lossplug.")]
    assert {spec.paper for spec in ours if spec.paper} == set(PAPERS)
    assert all(PAPERS[spec.paper].year == spec.year for spec in ours if spec.paper)


def test_bibtex_names_each_paper_once():
    text = bibtex("focal-inner-eiou")
    assert text.count("@misc{") == 2 and text.count("2101.08158") == 1
    assert "@misc{zhang2022focal,\n  author = {Zhang and Ren" in text
    assert bibtex("l1") == ""


def test_commands(tmp_path):
    command = [sys.executable, "-m", "yolo_lossplug", "explain"]
    assert "loss=wise-siou" in run([*command, "wise-siou"], tmp_path).stdout
    assert "@misc{" in run([*command, "wise-siou", "--bibtex"], tmp_path).stdout
    for words, message in ((["wse-siou"], "Did you mean 'wise-siou'?"), ([], "takes one name, not 0")):
        done = run([*command, *words], tmp_path, check=False)
        assert done.returncode == 1 and message in done.stdout and "Traceback" not in done.stdout


MODULE = """
from typing import Annotated
from yolo_lossplug import Option, box_loss

@box_loss("third-party")
def third_party(pred, target, *, third_scale: Annotated[float, Option("factor", above=0)] = 2.0):
    return third_scale * (pred - target).abs().sum(-1)
"""


def test_losses_of_other_packages(tmp_path):
    """An installed package registers its losses; a broken one is named in a warning, and breaks nothing."""
    (tmp_path / "third_losses.py").write_text(MODULE)
    metadata = tmp_path / "third-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    entries = "[yolo_lossplug.losses]\ngood = third_losses\nbad = no_such_module_of_losses\n"
    (metadata / "entry_points.txt").write_text(entries)
    code = (
        "from ultralytics.cfg import get_cfg\n"
        "print('SCALE', get_cfg(overrides={'loss': 'third-party', 'third_scale': 3}).third_scale)\n"
        "import yolo_lossplug; print(yolo_lossplug.is_enabled(), 'third-party' in yolo_lossplug.list_box_losses())\n"
    )
    done = python(code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert "SCALE 3" in done.stdout and "True True" in done.stdout
    assert "the losses of 'no_such_module_of_losses' are not available: No module named" in done.stdout


def test_a_misspelt_command_and_a_reader_who_has_gone(tmp_path):
    command = [sys.executable, "-m", "yolo_lossplug"]
    done = run([*command, "verfy"], tmp_path, check=False)
    assert done.returncode == 1 and "Did you mean 'verify'" in done.stdout and "Traceback" not in done.stdout
    done = run(["bash", "-c", f"{sys.executable} -m yolo_lossplug list | head -1"], tmp_path)
    assert done.stdout.strip() == "loss="
    done = run([*command, "curves", "loss=ciou", "project=/proc/nowhere"], tmp_path, check=False)
    assert done.returncode == 1 and "/proc" in done.stdout and "Traceback" not in done.stdout


def test_explain_a_loss_of_ones_own(tmp_path, registry):
    file = tmp_path / "own.py"
    file.write_text("def mine(pred, target, *, own_scale=1.0):\n    return (pred - target).abs().sum(-1) * own_scale\n")
    file.write_text(file.read_text().replace(", *, own_scale=1.0", "").replace(" * own_scale", ""))
    assert f"loss={file}:mine" in explanation(f"{file}:mine")


@pytest.mark.parametrize("command", ["list", "explain", "doctor", "verify", "curves", "simulate", "compare"])
def test_every_command_has_help_with_an_example(command, monkeypatch, capsys):
    from yolo_lossplug import cli

    monkeypatch.setattr(sys, "argv", ["lossplug", command, "--help"])
    cli.main()
    said = capsys.readouterr().out
    assert said.startswith(f"usage: lossplug {command}") and f"Example: lossplug {command}" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--json"], "'--json' cannot be given to list; it takes --markdown. Remove it."),
        (["list", "--markdown", "loss=eiou"], "'loss=eiou' cannot be given to list"),
        (["list", "eiou"], "'eiou' cannot be given to list"),
        (["explain", "eiou", "--json"], "'--json' cannot be given to explain; it takes --bibtex. Remove it."),
        (["explain", "eiou", "cfg=recipe.yaml"], "'cfg=recipe.yaml' cannot be given to explain"),
        (["explain", "--bib", "eiou"], "'--bib' cannot be given to explain"),
        (["doctor", "--json"], "'--json' cannot be given to doctor; it takes no arguments. Remove it."),
    ],
)
def test_words_that_a_command_does_not_take_are_refused(words, message, monkeypatch, capsys):
    from yolo_lossplug import cli

    monkeypatch.setattr(sys, "argv", ["lossplug", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert message in caught.value.code and capsys.readouterr().out == ""


def test_flags_of_list_and_explain(monkeypatch, capsys):
    from yolo_lossplug import cli

    for words, start in (
        (["list"], "loss="),
        (["list", "--markdown"], "| key |"),
        (["explain", "--bibtex", "eiou"], "@"),
    ):
        monkeypatch.setattr(sys, "argv", ["lossplug", *words])
        cli.main()
        assert capsys.readouterr().out.startswith(start)
