# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mixtures of two box losses: what every box loss promises, and what only two of them can get wrong."""

import copy
import pickle
from pathlib import Path

import pytest
import torch

from tests import checks
from tests.models import evaluate, predicted, with_keys
from tests.runs import refuses
from tests.ultralytics_hook.test_engine import compared
from yolo_lossplug import LossPlugError, create_box_loss, list_box_losses
from yolo_lossplug.box_losses.mixture import mix
from yolo_lossplug.boxes import Pair
from yolo_lossplug.registry import BOX, ROTATED, box_loss
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.selection.names import parts_of
from yolo_lossplug.selection.select import select
from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook.workers import header

NAMES = [
    *("ciou+nwd", "inner-ciou+nwd", "nwd+mpdiou", "focal-eiou+focaler-siou", "wise-ciou+wise-inner-giou"),
    *("wiou-v3+uiou", "smooth-l1+alpha-diou"),
]
IN_CELLS = {"smooth-l1+alpha-diou"}
OWN = """\
from typing import Annotated
from yolo_lossplug import Option


def mine(pred, target, *, mine_scale: Annotated[float, Option("scale", above=0)] = 2.0):
    return mine_scale * (pred - target).abs().sum(-1)


def column(pred, target):
    return (pred - target).abs().sum(-1, keepdim=True)


def in_place(pred, target):
    target.add_(1)
    return (pred - target).abs().sum(-1)


def detached(pred, target):
    return (pred - target).abs().sum(-1).detach()
"""


@pytest.mark.parametrize("name", NAMES)
def test_contract(name, device):
    for check in checks.BOX if name not in IN_CELLS else ():
        check(name)
    for check in checks.BOX_ON_DEVICE:
        check(name, device)


def test_values_by_hand_and_of_rotated_boxes():
    pred, target = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 2, 1]], [[2, 0, 6, 4], [0, 0, 2, 2]]], dtype=torch.float64)
    expected = torch.tensor([0.4441222081, 0.2941213409], dtype=torch.float64)
    torch.testing.assert_close(create_box_loss("ciou+nwd")(pred, target), expected, rtol=0, atol=1e-10)
    rng = torch.Generator().manual_seed(0)
    pred, target = torch.rand(2, 9, 5, generator=rng, dtype=torch.float64) + 0.5
    first, second = (create_box_loss(name)(pred, target) for name in ("probiou", "focal-kld"))
    loss = create_box_loss("probiou+focal-kld", loss_mix=0.7)
    assert loss.kind == ROTATED
    torch.testing.assert_close(loss(pred, target), mix(first, second, 0.7), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_the_mixture_of_those_of_the_parts(name):
    pred, target = checks.near_pairs(2)
    for share in (0.01, 0.3, 0.99):
        found = []
        for each in (name, *name.split("+")):
            value = create_box_loss(each, **({"loss_mix": share} if each == name else {}))(pred, target)
            found.append((value, torch.autograd.grad(value.sum(), pred)[0]))
        for both, first, second in zip(*found):
            torch.testing.assert_close(both, share * first + (1 - share) * second, rtol=1e-12, atol=1e-12)


def test_overlap_losses_share_the_geometry(monkeypatch):
    made, stock = [], Pair.__init__
    monkeypatch.setattr(Pair, "__init__", lambda self, *boxes: (made.append(self), stock(self, *boxes))[1])
    create_box_loss("focal-eiou+siou")(*checks.random_pairs())
    assert len(made) == 1


def test_an_option_of_both_parts_reaches_both_and_none_of_others_is_taken():
    assert create_box_loss("focal-eiou+focal-siou", focal_gamma=2.0) == create_box_loss(
        "Focal_EIoU + focal siou", focal_gamma=2.0, loss_mix=0.5
    )
    pred, target = checks.random_pairs()
    expected = mix(*(create_box_loss(f"focal-{n}", focal_gamma=2.0)(pred, target) for n in ("eiou", "siou")), 0.5)
    torch.testing.assert_close(create_box_loss("focal-eiou+focal-siou", focal_gamma=2.0)(pred, target), expected)
    assert create_box_loss("ciou+nwd", nwd_constant=3).options == {"loss_mix": 0.5, "nwd_constant": 3.0}
    with pytest.raises(LossPlugError, match=r"focal_gamma=1 is not an option of 'ciou\+nwd'; it takes loss_mix, nwd"):
        create_box_loss("ciou+nwd", focal_gamma=1)
    refuses("loss_mix=0.3 is not an option of 'ciou'", create_box_loss, "ciou", loss_mix=0.3)


def test_each_part_remembers_on_its_own():
    """A mixture of a stateful family with itself: the means are those of the parts alone."""
    rng = torch.Generator().manual_seed(7)
    steps = [torch.rand(2, 6, 4, generator=rng).cumsum(-1) for _ in range(3)]
    run, alone = State(), [State(), State()]
    names = ("wise-ciou", "wiou-v2")
    mixed = create_box_loss("+".join(names), wiou_momentum=0.5).within(run.scoped("main"))
    parts = [create_box_loss(n, wiou_momentum=m).within(s.scoped("main")) for n, s, m in zip(names, alone, (0.5, 0.5))]
    for pred, target in steps:
        expected = mix(*(part(pred, target) for part in parts), 0.5)
        torch.testing.assert_close(mixed(pred, target), expected)
        for state in (run, *alone):
            state.commit()
    assert set(run.tensors) == {"main.first.iou_loss.mean", "main.second.iou_loss.mean"}
    for key, state in zip(("first", "second"), alone):
        assert torch.equal(run.tensors[f"main.{key}.iou_loss.mean"], state.tensors["main.iou_loss.mean"])
        assert run.tensors[f"main.{key}.iou_loss.mean"] != 1
    loss = create_box_loss("nwd+wiou-v3")
    loss(*checks.near_pairs(1))
    assert set(loss.state.state.tensors) == {"own.second.iou_loss.mean"} and create_box_loss("ciou+nwd").state is None


def test_what_is_remembered_is_saved_and_restored(tmp_path):
    pairs = [(pred.detach(), target) for pred, target in map(checks.near_pairs, range(3))]
    whole, later = State(), State()
    loss = create_box_loss("wise-ciou+wise-eiou", wiou_momentum=0.5)
    for pair in pairs[:2]:
        loss.within(whole.scoped("main"))(*pair)
        whole.commit()
    whole.save(tmp_path / "state.pt")
    later.load(tmp_path / "state.pt")
    assert len(later.tensors) == 2 and create_box_loss("wise-ciou+wise-eiou").kernel is None
    found = [loss.within(state.scoped("main"))(*pairs[2]) for state in (whole, later)]
    assert torch.equal(*found) and not torch.equal(found[0], loss(*pairs[2]))


@pytest.fixture
def own(tmp_path, registry):
    folder = tmp_path / "c++"
    folder.mkdir()
    (folder / "losses.py").write_text(OWN, encoding="utf-8")
    return f"{folder}/losses.py"


@pytest.mark.parametrize("name", ["{own}:mine+nwd", "nwd + {own}:mine"])
def test_user_defined_parts(name, own):
    name = name.format(own=own)
    selection = select({"loss": name, "mine_scale": 3, "loss_mix": 0.2})
    assert selection.box.options == {"loss_mix": 0.2, "mine_scale": 3.0, "nwd_constant": 12.8}
    assert select(selection.resolved()).box == selection.box and "+" in selection.box.name
    pred, target = checks.random_pairs()
    first, second = (
        part(pred, target) for part in (create_box_loss(f"{own}:mine", mine_scale=3), create_box_loss("nwd"))
    )
    share = 0.2 if name.startswith(own) else 0.8
    torch.testing.assert_close(selection.box(pred, target), mix(first, second, share))
    assert pickle.loads(pickle.dumps(selection.box))(pred, target).equal(selection.box(pred, target))
    assert "import yolo_lossplug_own" not in header(selection), "workers load what the arguments name"


def test_each_part_is_checked(own):
    reasons = {
        "column": "must return shape (9,)",
        "in_place": "changes its inputs in place",
        "detached": "has no gradient",
    }
    for function, message in reasons.items():
        for name in (f"{own}:{function}+ciou", f"ciou+{own}:{function}"):
            with pytest.raises(LossPlugError, match=r"loss '[^'+]*c\+\+/losses.py:" + function) as caught:
                create_box_loss(name)(*checks.near_pairs(1))
            assert message in str(caught.value)


def test_a_loss_that_the_user_registered_reaches_the_workers_and_has_no_plus_in_its_name():
    @box_loss("of-this-test")
    def of_this_test(pred, target):
        return (pred - target).abs().sum(-1)

    assert f"import {__name__}" in header(select({"loss": "ciou+of-this-test"}))
    refuses(r"'one\+other' is not a valid name for a box loss", box_loss, "one+other")


def test_grammar(own, monkeypatch):
    for name, parts in {
        **{"ciou": ("ciou",), "CIoU+ inner-NWD ": ("CIoU", "inner-NWD"), "a.py:f+nwd": ("a.py:f", "nwd")},
        **{"nwd+pkg.losses:f": ("nwd", "pkg.losses:f"), "/c++/a.py:f": ("/c++/a.py:f",)},
        "/c++/a.py:f + /d+/b.py:g": ("/c++/a.py:f", "/d+/b.py:g"),
        **{"C:\\c++\\a.py:f+ciou": ("C:\\c++\\a.py:f", "ciou"), "ciou+nwd,giou": ("ciou+nwd,giou",)},
        **{"a+b+c": ("a", "b", "c"), "ciou+": ("ciou", "")},
    }.items():
        assert parts_of(name) == parts, name
    monkeypatch.chdir(Path(own).parent.parent)
    assert parts_of("c++/losses.py:mine") == ("c++/losses.py:mine",)
    assert parts_of("ciou+c++/losses.py:mine") == ("ciou", "c++/losses.py:mine")
    assert select({"loss": "c++/losses.py:mine"}).box.name == f"{own}:mine"


MISTAKES = [
    ({"loss": "ciou+nwd+giou"}, "loss=ciou+nwd+giou has 3 losses; a mixture has two, and loss_mix is the share"),
    ({"loss": "ciou+"}, "loss=ciou+ lacks a loss before or after a '+'; write loss=ciou+nwd, or remove the '+'."),
    ({"loss": "ciou+CIoU"}, "loss=ciou+CIoU has the loss 'ciou' twice; use loss=ciou, or two different losses."),
    ({"loss": "wiou-v3+wiouv3"}, "has the loss 'wiou-v3' twice"),
    ({"loss": "ciou+nwdd"}, "loss=ciou+nwdd: loss=nwdd is unknown. Did you mean 'nwd'?"),
    ({"loss": "probiou+kldd", "task": "obb"}, "loss=kldd is unknown. Did you mean 'kld'?"),
    ({"loss": "ciou+inner-nwd"}, "loss=ciou+inner-nwd: loss=inner-nwd is not possible. The prefix 'inner-' needs"),
    ({"loss": "ciou+a.py"}, "loss=a.py lacks the function in that file"),
    ({"loss": "ciou+kld"}, "mixes a loss of horizontal boxes (ciou) with one of rotated boxes (kld)"),
    ({"loss": "probiou+kld"}, "loss=probiou+kld takes rotated boxes: it needs task=obb"),
    ({"loss": "ciou+nwd", "task": "obb"}, "loss=ciou+nwd cannot be used with task=obb: its boxes are rotated"),
    ({"loss": "ciou+no/such.py:name"}, "no/such.py:name: there is no file"),
    ({"loss": "ciou+nwd,inner-ciou+nwd"}, "several losses: lossplug compare loss=ciou+nwd,inner-ciou+nwd"),
    ({"cls_loss": "ciou+nwd"}, "only box losses can be mixed (loss=ciou+nwd); choose one class loss."),
    ({"loss_mix": 0.3}, "loss_mix=0.3 has no effect with loss=ciou; it belongs to two losses, loss=ciou+nwd."),
    ({"loss": "ciou+nwd", "loss_mix": 1}, "loss_mix=1 is out of range; it must be in (0, 1): share of the first"),
    ({"loss": "ciou+nwd", "focal_gamma": 1}, "focal_gamma=1 has no effect with loss=ciou+nwd; it belongs to focal-*."),
]


def test_mistakes_and_the_key():
    for args, message in MISTAKES:
        with pytest.raises(LossPlugError) as caught:
            select(args)
        assert message in str(caught.value), args
    assert "loss_mix" in keys() and "ciou+nwd" not in list_box_losses()
    resolved = select({"loss": "CIoU + NWD"}).resolved()
    assert list(resolved.items())[:3] == [("loss", "ciou+nwd"), ("loss_mix", 0.5), ("nwd_constant", 12.8)]
    assert create_box_loss("ciou+nwd").kind == BOX


def test_engines_agree_on_a_mixture():
    inputs = predicted("yolov8n", size=256)
    for name in ("ciou+nwd", "inner-ciou+mpdiou", "wise-ciou+wiou-v3"):
        assert compared(*inputs, n_steps=2, loss=name, loss_mix=0.7).bbox_loss.loss.name == name


OURS = {"probiou": {"loss": "alpha-probiou", "alpha_power": 1.0}, "ciou": {"loss": "alpha-ciou", "alpha_power": 1.0}}
"""The stock losses as this package computes them: named alone they are the host's, which has guards of its own."""


BY_ENGINE = [
    ("yolov8n", "ciou+nwd", "reference"),
    ("yolov8n", "ciou+nwd", "fast"),
    ("yolov8n-obb", "probiou+kld", "reference"),  # rotated boxes have no other
    ("yolov8n-obb", "gwd+focal-kld", "reference"),
]


@pytest.mark.parametrize(("kind", "name", "engine"), BY_ENGINE)
def test_the_box_term_is_the_mixture_by_hand(kind, name, engine):
    made, preds, given = predicted(kind)

    def terms(**chosen):
        criterion = with_keys(made, loss_engine=engine, **chosen)
        return evaluate(criterion, preds, copy.deepcopy(given))[0]

    first, second = (terms(**OURS.get(part, {"loss": part})) for part in name.split("+"))
    found = terms(loss=name, loss_mix=0.7)
    assert first[0] != second[0]
    torch.testing.assert_close(found[0], mix(first[0], second[0], 0.7), rtol=1e-5, atol=0)
    assert torch.equal(found[1:], first[1:])
