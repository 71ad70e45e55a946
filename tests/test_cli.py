# SPDX-License-Identifier: AGPL-3.0-or-later
"""The `lossplug` command: explanations, citations, and losses of other packages."""

import json
import sys

import pytest

from tests.runs import python, refuses, run, slow
from yolo_lossplug import LossPlugError, catalogue, list_box_losses, list_class_losses
from yolo_lossplug.catalogue import shown
from yolo_lossplug.cli import HELP, main
from yolo_lossplug.explain import bibtex, explanation
from yolo_lossplug.paper import ARXIV, Paper
from yolo_lossplug.registry import BOX, CLASS, MODIFIER, REGISTRY, ROTATED, SOFTMAX, box_loss
from yolo_lossplug.selection.keys import NAMES, keys, numeric_keys
from yolo_lossplug.selection.names import key_of
from yolo_lossplug.selection.select import select
from yolo_lossplug.sparse.candidates import candidate_rows


@pytest.fixture
def said(monkeypatch, capsys):
    """What a command prints, of its words."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["lossplug", *words])
        main()
        return capsys.readouterr().out

    return call


def test_explain_resolves_a_name_into_its_parts():
    text = explanation("inner-focal-EIoU")
    assert text.splitlines()[0] == "loss=focal-inner-eiou"
    for part in (
        "focal-: weight = sg(IoU^γ)",
        "focal_gamma=0.5 in [0, ∞)",
        "inner-: u → IoU of both boxes scaled by r",
        "inner_ratio=0.7 in (0, ∞)",
        "eiou: 1 − IoU + ρ²/c² + (w − W)²/cw² + (h − H)²/ch²",
        "Zhang, Ren, Zhang et al.: Focal and Efficient IOU Loss",
        "Note: Boxes that do not overlap their target get loss 0 and gradient 0.",
    ):
        assert part in text
    assert explanation("focal").startswith("cls_loss=focal\n")
    assert "is not at p = y" in explanation("focal")
    refuses("Did you mean 'inner-eiou'", explanation, "iner-eiou")


def test_explain_a_key_a_prefix_and_an_alias():
    assert explanation("focal_gamma").splitlines() == [
        "focal_gamma=0.5 in [0, ∞): exponent of the overlap in the weight; 0 changes nothing",
        "  belongs to loss=focal-",
    ]
    assert "belongs to cls_loss=focal" in explanation("cls-focal-gamma")
    assert explanation("tal_alpha") == "tal_alpha=0.5: exponent of the score in the assigner's metric ([0, ∞))"
    assert explanation("tal_topk").startswith("tal_topk=10: maximum number of anchors per object ([1, ∞))\n")
    assert explanation("tal_min_side").startswith("tal_min_side=none: side in pixels")
    for key in ("tal_topk", "tal_min_side"):
        shown = explanation(key)
        assert all("".join(row) in "".join(shown.split()) for row in candidate_rows())
        assert "below about 22 pixels" in shown and "raising tal_topk" in shown
    prefix = explanation("Focal-")
    assert prefix.startswith("loss=focal-*\nfocal-: weight = sg(IoU^γ)") and "sg(ProbIoU^γ)" in prefix
    assert bibtex("focal-") == bibtex("focal_gamma") and bibtex("focal-").startswith("@article{zhang2022focal")
    assert explanation("WIoUv3") == explanation("wiou-v3") and "also as wiouv3, wiou3" in explanation("wiou-v3")
    for name, message in (("qfll", "cls_loss=qfll is unknown. Did you mean 'qfl'"), ("inner", "'inner-' is a prefix")):
        refuses(message, explanation, name)


def test_every_key_and_loss_is_explained_and_every_paper_cited_once():
    for key, value in keys().items():
        parameter = numeric_keys().get(key)
        shown = explanation(key)
        assert shown.startswith((f"{key}=", f"cls_loss={key}", f"loss={key}")), key
        assert parameter is None or parameter.option.range in shown or key in NAMES, (key, value)
    for name in (*list_box_losses(), *list_class_losses()):
        assert explanation(name)
        bibtex(name)
    for paper in papers():
        assert all(", " in author for author in paper.authors.split(" and ")), "a given name is missing"
        listed = ", ".join(paper.families[:3]) + " et al." * (len(paper.families) > 3)
        assert paper.citation.startswith(f"{listed}: {paper.title}. ")
        assert paper.title and paper.venue and 2010 < paper.year < 2030
        assert not paper.journal or (paper.volume and paper.pages and paper.doi)
        assert paper.journal or paper.booktitle or (paper.address.startswith(ARXIV) and paper.venue == "arXiv")
        assert paper.bibtex.count("{") == paper.bibtex.count("}")
    cited = [paper.bibtex.partition(",")[0] for paper in papers()]
    assert len({paper.address for paper in papers()}) == len(set(cited)) == len(cited)
    text = bibtex("focal-inner-eiou")
    assert text.count("@article{") == text.count("@misc{") == 1 and text.count("abs/2101.08158") == 1
    assert "@article{zhang2022focal,\n  author = {Zhang, Yi-Fan and Ren, Weiqiang and" in text
    assert "  volume = {506},\n  pages = {146--157},\n  year = {2022},\n  doi = {10.1016/j.neucom.2022.07.042}," in text
    assert bibtex("l1") == ""


def test_a_key_of_the_host_is_not_explained_as_ours(monkeypatch):
    monkeypatch.setattr("yolo_lossplug.selection.keys.CLAIMED", {"tal_topk"})
    assert "this Ultralytics has a key of that name" in explanation("tal_topk")
    assert "tal_topk" not in {key for key, *_ in catalogue.common_keys()} and "tal_alpha=" in explanation("tal_alpha")


def papers():
    ours = (spec for spec in REGISTRY if spec.function.__module__.startswith("yolo_lossplug."))
    return sorted({spec.paper for spec in ours if spec.paper}, key=lambda paper: paper.address)


def test_a_paper_of_a_user_is_an_address_and_a_year_or_all_of_it(registry):
    @box_loss("addressed", paper="https://example.org/paper", year=2021)
    def addressed(pred, target):
        return (pred - target).abs().sum(-1)

    assert "  https://example.org/paper" in explanation("addressed").splitlines() and bibtex("addressed") == ""

    @box_loss("cited", paper=Paper("https://example.org", "Doe, Jane", "A Loss", "Journal", 2020, journal="Journal"))
    def cited(pred, target):
        return (pred - target).abs().sum(-1)

    years = {spec.name: spec.year for spec in registry}
    assert (years["addressed"], years["cited"], years["l1"]) == (2021, 2020, 0)
    assert "Doe: A Loss. Journal 2020. https://example.org" in explanation("cited")
    assert bibtex("cited").startswith("@article{doe2020a,\n  author = {Doe, Jane},")


def test_explain_as_a_command_and_a_loss_of_ones_own(said, tmp_path):
    for words, text in ((["wise-siou"], "loss=wise-siou"), (["wise-siou", "--bibtex"], "@misc{")):
        assert text in said("explain", *words)
    for words, message in ((["wse-siou"], "Did you mean 'wise-siou'?"), ([], "takes one name, not 0")):
        with pytest.raises(SystemExit) as caught:
            said("explain", *words)
        assert caught.value.code.startswith("LossPlug: " if words else "lossplug explain ")
        assert message in caught.value.code
    file = tmp_path / "own.py"
    file.write_text("def mine(pred, target):\n    return (pred - target).abs().sum(-1)\n")
    assert f"loss={file}:mine" in explanation(f"{file}:mine")


MODULE = """
from typing import Annotated
from yolo_lossplug import Option, box_loss

@box_loss("third-party")
def third_party(pred, target, *, third_scale: Annotated[float, Option("factor", above=0)] = 2.0):
    return third_scale * (pred - target).abs().sum(-1)
"""


@pytest.mark.slow
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


ENDED = """\
import time
from yolo_lossplug import cli

def run():
    print(1)
    time.sleep(0.5)
    raise SystemExit(3)

cli.run = run
cli.main()
"""


@pytest.mark.slow
def test_a_misspelt_command_and_a_reader_who_has_gone(tmp_path, said):
    for words, message in (("verfy", "Did you mean 'verify'"), ("curves loss=ciou project=/proc/nowhere", "/proc")):
        with pytest.raises(SystemExit, match=message):
            said(*words.split())
    for words, message in (["frobnicate"], "'frobnicate' is unknown."), (["train", "epcohs=3"], "mean 'epochs'?"):
        done = run([sys.executable, "-m", "yolo_lossplug", *words], tmp_path, check=False)
        assert done.returncode == 1 and message in done.stdout.splitlines()[0] and "Traceback" not in done.stdout
    done = run(["bash", "-c", f"{sys.executable} -m yolo_lossplug list | head -1"], tmp_path)
    assert done.stdout.startswith("box: loss=NAME")
    (tmp_path / "ended.py").write_text(ENDED, encoding="utf-8")
    ended = run(["bash", "-c", f"{sys.executable} ended.py | true"], tmp_path, {"PYTHONUNBUFFERED": ""})
    assert not ended.stdout, "a command that ends with a status has a reader, too"


def test_every_command_has_help_with_an_example(said):
    for command in ("list", "explain", "doctor", "verify", "curves", "inspect", "compare", "bench"):
        text = said(command, "--help")
        assert text.startswith(f"usage: lossplug {command}") and f"Example: lossplug {command}" in text
        assert max(len(line.encode()) for line in (*text.splitlines(), *HELP.splitlines())) <= 80


def test_flags_and_words_that_a_command_does_not_take(said, capsys):
    for words, message in {
        "list --jsn": "'--jsn' cannot be given to list; it takes box, prefix, obb, class, classify, --json, --markdown."
        " Did you mean '--json'?",
        "list bx": "Did you mean 'box'?",
        "list obb --json --markdown": "'--json' and '--markdown' cannot be given together",
        "list --markdown loss=eiou": "'loss=eiou' cannot be given to list",
        "list eiou": "'eiou' cannot be given to list",
        "explain eiou --json": "'--json' cannot be given to explain; it takes --bibtex. Remove it.",
        "explain eiou cfg=recipe.yaml": "'cfg=recipe.yaml' cannot be given to explain",
        "explain --bib eiou": "'--bib' cannot be given to explain",
        "doctor --json": "'--json' cannot be given to doctor; it takes no arguments. Remove it.",
        "simulate loss=iou": "'simulate' is no longer a command: use examples/simulate.py",
    }.items():
        with pytest.raises(SystemExit) as caught:
            said(*words.split())
        assert message in caught.value.code and capsys.readouterr().out == "", words
    for words, start in {
        "list": "box: loss=NAME",
        "list classify": "classify: cls_loss=NAME",
        "list obb --json": "[\n",
        "list obb --markdown": "### loss= for task=obb",
        "list --markdown": "### loss=",
        "explain --bibtex eiou": "@",
    }.items():
        assert said(*words.split()).startswith(start), words


@pytest.mark.parametrize("words", ["list", "explain focal-inner-eiou", slow("doctor")])
def test_what_is_printed_fits_the_terminal(words, said, monkeypatch):
    for columns in (48, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = said(*words.split()).splitlines()
        assert len(lines) > 5
        for line in lines:
            assert len(line.encode()) <= columns or len(line.split()[-1]) > columns - 25, "a path is not broken"


GROUPS = {"box": BOX, "prefix": MODIFIER, "obb": ROTATED, "class": CLASS, "classify": SOFTMAX}


@pytest.mark.parametrize("group", GROUPS)
def test_list_of_one_kind(group):
    expected = {shown(spec) for spec in REGISTRY if spec.kind in catalogue.GROUPS[group]}
    records = catalogue.records([group])
    assert {f"{r['name']}-" if r["kind"] == "prefix" else r["name"] for r in records} == expected
    listed = {line[2:16].strip(" ∘") for line in catalogue.listing([group]).splitlines() if line[:3].strip()}
    assert expected <= listed and REGISTRY.names(GROUPS[group])
    assert not ({shown(spec) for spec in REGISTRY} - expected) & listed


def test_records_hold_what_a_program_needs():
    records = catalogue.records()
    assert len(records) == len(list(REGISTRY)) == len({(r["key"], r["name"], *r["tasks"]) for r in records})
    for record in json.loads(json.dumps(records)):
        spec = REGISTRY.specs[next(k for k, s in REGISTRY.specs.items() if matches(s, record))]
        assert [o["key"] for o in record["options"]] == list(spec.parameters)
        assert [o["default"] for o in record["options"]] == [p.default for p in spec.parameters.values()]
        assert (record["formula"], record["note"]) == (spec.formula, spec.note)
        assert (record["paper"] or {}).get("address") == (spec.paper and spec.paper.address)
        for task in record["tasks"]:
            select(
                {"task": task, record["key"]: record["name"] + ("" if record["kind"] != "prefix" else "-" + BASE[task])}
            )
        if record["key"] == "loss" and record["kind"] == "box":
            takes = can(record["tasks"][0], f"focal-{record['name']}")
            assert record["takes_prefixes"] == takes, record["name"]


BASE = {**dict.fromkeys(("detect", "segment", "pose"), "iou"), "obb": "kld"}


def matches(spec, record):
    is_same = (spec.name, key_of(spec.kind)) == (record["name"], record["key"])
    return is_same and spec.formula == record["formula"]


def can(task, name):
    try:
        return bool(select({"task": task, "loss": name}))
    except LossPlugError:
        return False


def test_explain_a_mixture():
    text = explanation("inner-ciou + NWD")
    assert text.startswith("loss=inner-ciou+nwd\nNAME+NAME: L = loss_mix·L₁ + (1 − loss_mix)·L₂\n")
    for words in (
        *("loss_mix=0.5 in (0, 1)", "loss=inner-ciou\nL = weight", "inner_ratio=0.7", "loss=nwd\n", "nwd_constant"),
    ):
        assert words in text, words
    assert text.count("arXiv") >= 2 and "differ in scale" in text
    assert [entry.split("{")[1].split(",")[0] for entry in bibtex("inner-ciou+nwd").split("\n\n")] == [
        bibtex(part).split("{")[1].split(",")[0] for part in ("inner-iou", "ciou", "nwd")
    ]
    assert explanation("loss_mix").startswith(
        "loss_mix=0.5 in (0, 1): share of the first of two losses, as in loss=ciou+nwd\n"
    )
    assert explanation("probiou+kld").startswith("loss=probiou+kld\n")
    refuses(r"loss=ciou\+nwdd: loss=nwdd is unknown. Did you mean 'nwd'", explanation, "ciou+nwdd")
    refuses("only box losses can be mixed", explanation, "qfl+focal")
