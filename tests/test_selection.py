# SPDX-License-Identifier: AGPL-3.0-or-later
"""From keys to losses, and every message about a mistake."""

import importlib
import pickle
import sys
from itertools import product
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import pytest
import torch

from tests.runs import refuses
from yolo_lossplug import LossPlugError, Option, create_box_loss, create_class_loss, list_box_losses, list_class_losses
from yolo_lossplug.registry import BOX, CLASS, OVERLAP, REGISTRY, ROTATED, SOFTMAX, Parameter, box_loss, class_loss
from yolo_lossplug.selection import names
from yolo_lossplug.selection.keys import given_keys, keys, refuse_unknown
from yolo_lossplug.selection.own import load_module, load_own
from yolo_lossplug.selection.select import select


def all_of(*kinds):
    return ", ".join(sorted(spec.name for spec in REGISTRY if spec.kind in kinds))


MISTAKES = [
    ({"loss": "focal-eiuo"}, "loss=focal-eiuo is unknown. Did you mean 'focal-eiou'?"),
    ({"loss": "focl-eiou"}, "Did you mean 'focal-eiou'?"),
    (
        {"loss": "eiuo"},
        "loss=eiuo is unknown. Did you mean 'eiou'? `lossplug list` shows all; a user-defined loss is loss=",
    ),
    ({"loss": "nothing like it"}, f"Known: {all_of(BOX, OVERLAP)}; with prefixes focal-, wise-,"),
    ({"loss": ""}, "loss= is unknown. To keep Ultralytics' own, remove loss, or give loss=ciou."),
    ({"loss": "none"}, "loss=none is unknown. To keep Ultralytics' own, remove loss, or give loss=ciou."),
    ({"loss": "stock", "task": "obb"}, "remove loss, or give loss=probiou."),
    ({"cls_loss": "default"}, "remove cls_loss, or give cls_loss=bce."),
    ({"cls_loss": "none", "task": "classify"}, "remove cls_loss, or give cls_loss=ce."),
    ({"loss": "qfl"}, "loss=qfl is unknown; qfl is a class loss: cls_loss=qfl."),
    ({"loss": "VFL"}, "loss=VFL is unknown; VFL is a class loss: cls_loss=varifocal."),
    ({"loss": "focal"}, "focal is a class loss: cls_loss=focal; 'focal-' is a prefix, e.g. loss=focal-ciou."),
    ({"loss": "inner"}, "loss=inner is unknown; 'inner-' is a prefix, e.g. loss=inner-ciou."),
    ({"cls_loss": "Focal-EIoU"}, "Focal-EIoU is a box loss: loss=focal-eiou."),
    ({"cls_loss": "kld", "task": "classify"}, "kld is a box loss: loss=kld."),
    ({"loss": "CIoU,EIoU"}, "several losses: lossplug compare loss=CIoU,EIoU trains with each."),
    ({"loss": ["ciou", "eiou"]}, "several losses: lossplug compare loss=ciou,eiou"),
    ({"loss": "a.py:f,b.py:g"}, "several losses: lossplug compare"),
    ({"loss": ["ciou"]}, "loss=['ciou'] must be a name, e.g. loss=ciou."),
    ({"loss": "configs/eiou.yaml"}, "loss=configs/eiou.yaml is a recipe: cfg=configs/eiou.yaml."),
    ({"loss": "C:\\losses\\my.py"}, "lacks the function in that file: loss=C:\\losses\\my.py:function."),
    ({"loss": "/x/my.py:"}, "loss=/x/my.py: lacks the function in that file: loss=/x/my.py:function."),
    ({"loss": ":function"}, "loss=:function is unknown."),
    ({"loss": "losses/mine"}, "loss=losses/mine is a path; a user-defined loss is loss=file.py:function."),
    ({"loss": "/no,such/file.py:name"}, "there is no file"),
    ({"loss": 3}, "loss=3 must be a name, e.g. loss=ciou"),
    ({"loss": "focal-focal-iou"}, "loss=focal-focal-iou has 'focal-' twice"),
    (
        {"loss": "focal-l1"},
        f"The prefix 'focal-' needs an IoU loss (1 − IoU + penalties); 'l1' is not one. Use it with {all_of(OVERLAP)}.",
    ),
    ({"loss": "alpha-siou"}, "The prefix 'alpha-' is not defined for 'siou'. Use it with ciou, diou, eiou, giou, iou."),
    ({"loss": "focal-"}, "loss=focal- is unknown; focal is a class loss: cls_loss=focal; 'focal-' is a prefix, e.g."),
    ({"cls_loss": "focl"}, "cls_loss=focl is unknown. Did you mean 'focal'?"),
    ({"cls_loss": "focal-bce"}, "cls_loss=focal-bce is unknown"),
    ({"tal_iou": "goiu"}, "tal_iou=goiu is unknown. Did you mean 'giou'?"),
    ({"loss_engine": "fastest"}, "loss_engine=fastest is unknown. Did you mean 'fast'? Known: auto, fast, triton, ref"),
    ({"loss_engine": "triton", "task": "obb"}, "loss_engine=triton cannot be used with task=obb"),
    ({"focal_gamma": 0.5}, "focal_gamma=0.5 has no effect with loss=ciou; it belongs to focal-*."),
    ({"cls_focal_gamma": 2}, "cls_focal_gamma=2 has no effect with cls_loss=bce; it belongs to cls_loss=focal."),
    ({"cls_focal_alpha": None}, "cls_focal_alpha=None has no effect with cls_loss=bce"),
    ({"loss": "focal-eiou", "focal_gamma": -1}, "focal_gamma=-1 is out of range; it must be in [0, ∞)"),
    ({"loss": "focal-eiou", "focal_gamma": "x"}, "focal_gamma='x' must be a number in [0, ∞)"),
    ({"loss": "focal-eiou", "focal_gamma": True}, "focal_gamma=True must be a number"),
    ({"loss": "focal-eiou", "focal_gamma": float("nan")}, "focal_gamma=nan is out of range"),
    ({"loss": "riou", "riou_beta": 0.5}, "riou_beta=0.5 is out of range; it must be in (0.5, 1)"),
    ({"cls_loss": "focal", "cls_focal_alpha": 2}, "it must be in [0, 1]"),
    ({"cls_loss": "focal", "cls_focal_alpha": "x"}, "must be a number in [0, 1] or None"),
    ({"cls_smoothing": 1.0}, "cls_smoothing=1 is out of range; it must be in [0, 1)"),
    ({"cls_weights": 2}, "cls_weights=2 must be a list of one number for each class, or a mapping"),
    ({"cls_weights": []}, "cls_weights=[] must be a list"),
    ({"cls_weights": [1, -1]}, "cls_weights=-1 is out of range; it must be in [0, ∞)"),
    ({"cls_weights": {"car": "x"}}, "cls_weights='x' must be a number"),
    ({"loss": "focaler-iou", "focaler_d": 0.95}, "focaler_d=0.95 must be below focaler_u=0.95"),
    ({"tal_topk": 0}, "tal_topk=0 is out of range; it must be in [1, ∞)"),
    ({"tal_topk": 2.5}, "tal_topk=2.5 must be an integer in [1, ∞)"),
    ({"loss": "eiou", "task": "obb"}, "loss=eiou cannot be used with task=obb: its boxes are rotated"),
    ({"loss": "focal-eiou", "task": "obb"}, "this loss takes horizontal boxes. obb takes alpha-gwd, alpha-kld,"),
    ({"loss": "kldd", "task": "obb"}, "loss=kldd is unknown. Did you mean 'kld'?"),
    ({"cls_loss": "eiu"}, f"cls_loss=eiu is unknown. Known: {all_of(CLASS)}; a user-defined loss is cls_loss="),
    ({"loss": "kld"}, "loss=kld takes rotated boxes: it needs task=obb"),
    *(
        (
            {key: value, "task": "obb"},
            f"{key}={value} cannot be used with task=obb: its boxes are rotated, and this overlap takes horizontal "
            "boxes. Remove it; obb takes loss, cls_loss, loss_engine, cls_weights, lossplug_report, ignore, annotated, "
            "tal_topk, tal_alpha, tal_beta, tal_min_side, cls_smoothing, and the options of its losses.",
        )
        for key, value in {"tal_iou": "giou", "nms_iou": "diou"}.items()
    ),
    ({"loss": "eiou", "task": "classify"}, "loss=eiou has no effect with task=classify, which has no boxes"),
    ({"tal_topk": 3, "task": "classify"}, "It takes cls_loss (ce, focal, poly), their options, cls_smoothing and"),
    (
        {"cls_loss": "qfl", "task": "classify"},
        "cls_loss=qfl is not available for task=classify; choose ce, focal or poly.",
    ),
    ({"cls_loss": "ce"}, "cls_loss=ce is only available for task=classify; choose asl, bce,"),
    ({"cls_focal_alpha": 0.5, "task": "classify"}, "cls_focal_alpha=0.5 has no effect with task=classify"),
    ({"loss": 3, "task": "obb"}, "loss=3 must be a name, e.g. loss=probiou"),
    ({"cls_loss": "focal", "task": "semantic"}, "cls_loss=focal has no effect with task=semantic"),
    ({"loss": "no_such_module:name"}, "module 'no_such_module' cannot be imported"),
    ({"loss": "math:sqroot"}, "math has no function 'sqroot'"),
    ({"loss": "math:sqrt"}, "math.sqrt cannot be a box loss: its positional parameters must be exactly (pred, target)"),
]


@pytest.fixture
def unlisted(monkeypatch):
    """No list of names has been shown yet."""
    monkeypatch.setattr(names, "_listed", set())


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[str(args) for args, _ in MISTAKES])
def test_mistakes(args, message, unlisted):
    assert message in message_of(args)


def message_of(args):
    with pytest.raises(ValueError) as caught:
        select(args)
    assert isinstance(caught.value, LossPlugError)
    return str(caught.value)


def test_a_list_of_names_is_shown_once(unlisted):
    first, second = (message_of({"loss": name}) for name in ("nothing like it", "and another"))
    assert "Known: ciou, " in first and "Known" not in second
    assert second.startswith("loss=and another is unknown. `lossplug list` shows all; a user-defined loss is loss=")
    assert "Known: asl, " in message_of({"cls_loss": "nothing like it"}), "another list"


SPELLINGS = {
    "loss": "WIoUv3 wiou3 Wise-IoU-v3 WIoU_v1 PIoU2 PIoUv2 MPD-IoU focal-mpd-iou SmoothL1 Efficient-IoU inner-shapeiou",
    "cls_loss": "vfl VFL quality_focal ghmc GHM-C asymmetric binary-cross-entropy Focal-Loss poly1 EMASlide",
}
CANONICAL = {
    "loss": "wiou-v3 wiou-v3 wiou-v3 wiou piou-v2 piou-v2 mpdiou focal-mpdiou smooth-l1 eiou inner-shape-iou",
    "cls_loss": "varifocal varifocal qfl ghm ghm asl bce focal poly ema-slide",
}


@pytest.mark.parametrize("key", SPELLINGS)
def test_usual_spellings_are_accepted_and_recorded_by_name(key):
    for spelling, name in zip(SPELLINGS[key].split(), CANONICAL[key].split()):
        assert select({key: spelling}).resolved()[key] == name, spelling
    for spelling, name in {"KF-IoU": "kfiou", "MG-IoU": "mgiou", "marginalized_giou": "mgiou"}.items():
        assert select({"loss": spelling, "task": "obb"}).box.name == name
    assert select({"cls_loss": "cross-entropy", "task": "classify"}).cls.name == "ce"


def test_a_name_of_a_user_goes_before_an_alias(registry):
    @class_loss("vfl", aliases=("my-vfl",))
    def vfl(logits, targets):
        return (logits - targets).square()

    assert create_class_loss("vfl").name == "vfl" == create_class_loss("My-VFL").name
    assert create_class_loss("vfl")(torch.zeros(1), torch.ones(1)).item() == 1
    refuses("'A' is not a valid name for a class loss", class_loss, "b", aliases=("A",))


def test_unknown_keys_of_older_yolos():
    for args, message in (
        ({"label_smoothing": 0.1}, "label_smoothing=0.1 is unknown. Use cls_smoothing=0.1."),
        ({"fl_gamma": 1.5}, "fl_gamma=1.5 is unknown. Use cls_loss=focal cls_focal_gamma=1.5."),
        ({"focal_gama": 1}, "focal_gama=1 is unknown. Did you mean 'focal_gamma'? `lossplug list` shows all."),
    ):
        with pytest.raises(LossPlugError) as caught:
            refuse_unknown(args)
        assert str(caught.value) == message


def test_spellings_order_and_aliases():
    for spelling in ("focal-eiou", "Focal-EIoU", "focal_eiou", " focal eiou ", "FOCAL_EIOU"):
        assert select({"loss": spelling}).box == create_box_loss("focal-eiou"), spelling
    assert select({"loss": "alpha-focal-ciou"}).box == select({"loss": "focal-alpha-ciou"}).box
    assert select({"loss": "alpha-focal-ciou"}).box.name == "focal-alpha-ciou"
    for kind, other in ((BOX, OVERLAP), (CLASS, CLASS), (ROTATED, ROTATED), (SOFTMAX, SOFTMAX)):
        kinds = {kind, other}
        aliases, known = REGISTRY.aliases(*kinds), set(names.names_with_prefixes(kind))
        assert aliases and len(aliases) == len(set(aliases))
        assert not known & set(aliases)
        assert all(names.normalise(alias) == alias for alias in aliases)
    assert select({"loss": "wise-iou"}).box.name == "wise-iou", "a prefix, and no version of wiou"


def test_nothing_asked_for_is_stock_and_what_is_resolved_can_be_given_again():
    for args in ({}, keys(), {"epochs": 3, "iou": 0.7, "box": 7.5}, {"task": "classify", **keys()}):
        selection = select(args)
        assert not selection.is_active
        assert selection.resolved() == {}
    assert select({"loss": "ciou", "cls_loss": "bce"}).resolved()["loss_engine"] == "reference"
    for asked in ({"loss_engine": "auto"}, {"loss": "eiou"}, {"tal_beta": 5.0}, {"cls_smoothing": 0.1}):
        assert select({"loss": "ciou", **asked}).resolved()["loss_engine"] == "auto"
    chosen = {"loss": "focal_EIoU", "cls_loss": "focal", "cls_focal_alpha": None, "tal_topk": 13.0}
    resolved = select(chosen).resolved()
    assert resolved == {
        **{"loss": "focal-eiou", "focal_gamma": 0.5, "cls_loss": "focal", "cls_focal_gamma": 2.0},
        **{"cls_focal_alpha": None, "cls_smoothing": 0.0, "tal_topk": 13, "tal_alpha": 0.5, "tal_beta": 6.0},
        **{"tal_iou": "ciou", "loss_engine": "auto"},
    }
    assert type(resolved["tal_topk"]) is int
    assert select(resolved).resolved() == resolved
    assert select(resolved) == select(chosen)
    resolved = select({"cls_loss": "qfl", "task": "obb"}).resolved()
    assert resolved["loss"] == "probiou" and "tal_iou" not in resolved
    assert select({**resolved, "task": "obb"}).resolved() == resolved
    resolved = select({"cls_loss": "focal", "cls_weights": [1, 2], "task": "classify"}).resolved()
    assert set(resolved) == {"cls_loss", "cls_focal_gamma", "cls_smoothing", "cls_weights", "loss_engine"}
    assert select({**resolved, "task": "classify"}).resolved() == resolved


def test_create_list_and_pickle():
    assert create_box_loss("focal-eiou", focal_gamma=1).options == {"focal_gamma": 1.0}
    assert str(create_box_loss("focal-eiou")) == "focal-eiou(focal_gamma=0.5)"
    assert str(create_class_loss("bce")) == "bce"
    with pytest.raises(LossPlugError, match=r"alpha_power=2 is not an option of 'focal-eiou'; it takes focal_gamma"):
        create_box_loss("focal-eiou", alpha_power=2)
    refuses(r"gamma=2 is not an option of 'bce'; it takes none", create_class_loss, "bce", gamma=2)
    refuses("Did you mean 'qfl'", create_class_loss, "qfll")
    assert list_class_losses() == tuple(sorted(spec.name for spec in REGISTRY if spec.kind == CLASS))
    assert {"bce", "focal", "qfl", "ema-slide"} <= set(list_class_losses())
    assert {"ciou", "focal-eiou", "alpha-ciou", "riou", "wiou-v3", "inner-siou", "wise-piou"} <= set(list_box_losses())
    assert list(list_box_losses()) == sorted(list_box_losses())
    selection = select({"loss": "focal-alpha-ciou", "cls_loss": "varifocal", "tal_iou": "siou"})
    copied = pickle.loads(pickle.dumps(selection))
    assert copied == selection
    pred, target = torch.tensor([[0.0, 0, 4, 2]]), torch.tensor([[1.0, 0, 4, 4]])
    assert torch.equal(copied.box(pred, target), selection.box(pred, target))


@pytest.mark.parametrize("kind", ["numpy.array", "numpy.float32", "torch.tensor", "pandas.Series", "polars.Series"])
def test_arrays_are_lists(kind):
    module, _, name = kind.partition(".")
    kind = getattr(pytest.importorskip(module), name)
    selection = select({"cls_weights": kind([1.0, 2.5]), "loss": "focal-iou", "focal_gamma": np.float32(0.25)})
    assert selection.cls_weights == [1.0, 2.5] and selection.given == {"cls_weights", "loss", "focal_gamma"}
    assert given_keys({"cls_weights": kind([3.0, 1.0]), "focal_gamma": None}) == {"cls_weights": [3.0, 1.0]}
    assert select({**selection.resolved(), "cls_weights": kind([1.0, 2.5])}) == selection
    refuses("cls_weights=-1 is out of range", select, {"cls_weights": kind([1.0, -1.0])})


def test_an_array_of_another_shape_is_refused_and_context_by_hand():
    for value in (np.array([]), np.array(2.0), np.ones((2, 2))):
        refuses("cls_weights=", select, {"cls_weights": value})
    pred, target = torch.rand(2, 3, 4, dtype=torch.float64).requires_grad_()
    sizes = 640, (480, 640), [640, 480], torch.tensor([480, 640]), torch.tensor(640.0)
    for imgsz, stride in product(sizes, (8, 8.0, torch.tensor(8), torch.full((3, 1), 8.0))):
        height, width = (imgsz, imgsz) if torch.as_tensor(imgsz).ndim == 0 else imgsz
        corners = (64 * (pred - target).square()).sum(-1) / (height**2 + width**2)
        expected = create_box_loss("iou")(pred, target) + corners
        torch.testing.assert_close(create_box_loss("mpdiou")(pred, target, imgsz=imgsz, stride=stride), expected)
        distance = create_box_loss("nwd")(pred * 8, target * 8)
        torch.testing.assert_close(create_box_loss("nwd")(pred, target, stride=stride), distance)
    for context, message in (
        ({"imgsz": "640"}, r"imgsz=640 must be a number, or numbers of shape \(2,\)"),
        ({"imgsz": (1, 2, 3)}, r"imgsz=\(1, 2, 3\) must be a number"),
        ({"stride": torch.ones(2, 1)}, r"stride=.* or numbers of shape \(3, 1\)"),
    ):
        refuses(f"(?s){message}", create_box_loss("mpdiou"), torch.rand(3, 4), torch.rand(3, 4), **context)


OWN = """
from typing import Annotated

from yolo_lossplug import Option, box_loss


def plain(pred, target):
    return (pred - target).square().mean(-1)


@box_loss("own-decorated")
def decorated(pred, target, *, own_scale: Annotated[float, Option("factor", above=0)] = 2.0):
    return own_scale * plain(pred, target)
"""


def test_own_files_and_modules(tmp_path, registry, monkeypatch):
    file = tmp_path / "own_losses.py"
    file.write_text(OWN)
    selection = select({"loss": f"{file}:decorated", "own_scale": 3})
    pred, target = torch.tensor([[0.0, 0, 4, 2]]), torch.tensor([[0.0, 0, 4, 6]])
    assert selection.box(pred, target).tolist() == [12.0]
    assert selection.resolved()["own_scale"] == 3.0
    assert "own_scale" in keys()
    assert select({"loss": f"{file}:plain"}).box(pred, target).tolist() == [4.0]
    assert create_box_loss("own-decorated")(pred, target).tolist() == [8.0]
    refuses("own_scale=-1 is out of range", select, {"loss": f"{file}:decorated", "own_scale": -1})
    refuses(r"has no function 'decorate'. Did you mean 'decorated'\?", select, {"loss": f"{file}:decorate"})
    monkeypatch.chdir(tmp_path)
    resolved = select({"loss": "own_losses.py:decorated"}).resolved()
    assert resolved["loss"] == f"{tmp_path / 'own_losses.py'}:decorated"
    monkeypatch.chdir("/")
    assert select(resolved).resolved() == resolved
    pair = torch.ones(1, 4), torch.zeros(1, 4)
    for folder, factor in (("a", 1), ("b", 10)):
        (tmp_path / folder).mkdir()
        code = f"def l(pred, target):\n    return {factor} * (pred - target).sum(-1)\n"
        (tmp_path / folder / "mine.py").write_text(code)
    assert [create_box_loss(f"{tmp_path}/{folder}/mine.py:l")(*pair).item() for folder in "aba"] == [4, 40, 4]
    (tmp_path / "own_module_for_test.py").write_text(
        "def cubed(pred, target):\n    return (pred - target).abs().pow(3).sum(-1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    loss = create_box_loss("own_module_for_test:cubed")
    assert loss(torch.zeros(1, 4), torch.ones(1, 4)).tolist() == [4.0]
    assert pickle.loads(pickle.dumps(loss)) == loss
    (tmp_path / "broken_for_test.py").write_text("1 / 0\n")
    message = r"broken_for_test.py fails when loaded \(ZeroDivisionError: division by zero\)"
    refuses(message, load_own, f"{tmp_path / 'broken_for_test.py'}:loss", BOX)
    assert not [name for name in sys.modules if "broken_for_test" in name]


def test_a_file_is_loaded_once_whatever_it_is_called_by(tmp_path, monkeypatch, registry):
    file, link = tmp_path / "counted.py", tmp_path / "link.py"
    file.write_text("import sys\nsys.counted = getattr(sys, 'counted', 0) + 1\ndef l(pred, target): ...\n")
    link.symlink_to(file)
    monkeypatch.setattr(sys, "counted", 0, raising=False)
    module = load_module(str(file), "loss")
    monkeypatch.chdir(tmp_path)
    assert load_module("counted.py", "loss") is load_module("link.py", "loss") is module and sys.counted == 1
    monkeypatch.delitem(sys.modules, module.__name__)
    assert load_module(str(file), "loss") is not module and sys.counted == 2
    (tmp_path / "imported_for_test.py").write_text("def l(pred, target): ...\n")
    (tmp_path / "link_for_test.py").symlink_to(tmp_path / "imported_for_test.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    imported = importlib.import_module("link_for_test")
    assert load_module(str(tmp_path / "imported_for_test.py"), "loss") is imported
    file = tmp_path / "quick.py"
    file.write_text("def l(pred, target): ...\n")
    load_module(str(file), "loss")
    resolved = []
    stock = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path, *args: resolved.append(path) or stock(path, *args))
    load_module(str(file), "loss")
    assert resolved == [file]


def test_what_an_own_loss_returns_is_checked():
    for name, (function, message) in {
        "column": (lambda pred, target: (pred - target).sum(-1, keepdim=True), r"must return .* but returned \(3, 1\)"),
        "scalar": (lambda pred, target: (pred - target).mean(), r"must return shape .* but returned \(\)\."),
        "coordinates": (lambda pred, target: pred - target, r"must return shape .* but returned \(3, 4\)\."),
        "constant": (lambda pred, target: (pred - target).detach().abs().sum(-1), "has no gradient"),
    }.items():
        box_loss(name)(function)
        with pytest.raises(LossPlugError, match=f"loss '{name}' {message}"):
            create_box_loss(name)(torch.zeros(3, 4, requires_grad=True), torch.ones(3, 4))
    assert create_box_loss("constant")(torch.zeros(3, 4), torch.ones(3, 4)).tolist() == [4, 4, 4]
    for name, (function, message) in {
        "in-place": (lambda logits, targets: (logits - targets.clamp_(0.1)).square(), "changes its inputs in place"),
        "nothing": (lambda logits, targets: None, "must return a tensor, not None"),
    }.items():
        class_loss(name)(function)
        refuses(f"loss '{name}' {message}", create_class_loss(name), torch.zeros(3), torch.zeros(3))


def refused(decorator, function):
    with pytest.raises(LossPlugError) as caught:
        decorator(function)
    return str(caught.value)


def test_bad_signatures_and_names_are_refused_with_the_reason():
    def swapped(target, pred): ...
    def starred(pred, target, *args): ...
    def positional(pred, target, gamma=1.0): ...
    def bare(pred, target, *, gamma=1.0): ...
    def no_default(pred, target, *, gamma: Annotated[float, Option("g")]): ...
    def text(pred, target, *, gamma: Annotated[str, Option("g")] = "x"): ...
    def out_of_range(pred, target, *, gamma: Annotated[float, Option("g", above=1)] = 0.5): ...

    exactly = "positional parameters must be exactly (pred, target)"
    for function, reason in (
        (swapped, exactly),
        (starred, exactly),
        (positional, "put '*' before the options"),
        (bare, "annotate its option 'gamma' as Annotated[float, Option('meaning')]"),
        (no_default, "its option 'gamma' needs a default"),
        (text, "must be a float or an int"),
        (out_of_range, "gamma=0.5 is out of range"),
    ):
        message = refused(box_loss("bad-signature"), function)
        assert reason in message
        assert REGISTRY.get(BOX, "bad-signature") is None
    assert "must be exactly (logits, targets)" in refused(class_loss("bad-signature"), swapped)
    for name in ("", "Upper", "under_score", "a:b"):
        refuses("is not a valid name for a box loss", box_loss, name)

    def mine(pred, target): ...
    def stealing(pred, target, *, focal_gamma: Annotated[float, Option("another meaning")] = 7.0): ...

    assert "box loss 'ciou' is already registered by yolo_lossplug.box_losses.diou.ciou" in refused(
        box_loss("ciou"), mine
    )
    assert "option 'focal_gamma'" in refused(box_loss("stealing"), stealing)


def test_definitions_read_again_and_options_without_a_default(registry):
    def version(factor):
        @box_loss("redefined")
        def redefined(pred, target):
            return factor * (pred - target).abs().sum(-1)

    version(1)
    version(2)
    assert create_box_loss("redefined")(torch.zeros(1, 4), torch.ones(1, 4)).tolist() == [8.0]

    @box_loss("clipped")
    def clipped(pred, target, *, clip_at: Annotated[Optional[float], Option("largest loss", above=0)] = None):
        loss = (pred - target).abs().sum(-1)
        return loss if clip_at is None else loss.clamp(max=clip_at)

    assert keys()["clip_at"] == "auto"
    for given, value in (({}, 4), ({"clip_at": "auto"}, 4), ({"clip_at": None}, 4), ({"clip_at": 3}, 3)):
        assert select({"loss": "clipped", **given}).box(torch.zeros(1, 4), torch.ones(1, 4)).item() == value


def test_ranges_as_text():
    for option, text in (
        (Option("", above=0.5, below=1), "(0.5, 1)"),
        (Option("", at_least=0, at_most=1), "[0, 1]"),
        (Option(""), "(-∞, ∞)"),
    ):
        assert option.range == text
        assert Parameter("k", float, False, 0.7, option).check(0.7) == 0.7
