# SPDX-License-Identifier: AGPL-3.0-or-later
"""What losses remember: through a run, a checkpoint, a resume, and on several ranks."""

import contextlib
import io
import pickle
import types
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

from tests.runs import STILL, TINY, Log, python, results, train
from yolo_lossplug import create_box_loss, create_class_loss
from yolo_lossplug.selection.select import select
from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook.run import memory, runs

CHOICE = {"loss": "wiou-v3", "cls_loss": "ema-slide", "wiou_momentum": 0.3}
PLAIN = {"hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "degrees": 0, "translate": 0, "scale": 0, "fliplr": 0, "erasing": 0}
"""No augmentation and no shuffling, which a resumed run would draw anew."""
PAIR = torch.tensor([[1.0, 1, 3, 3], [0, 0, 9, 9]]), torch.tensor([[0.0, 0, 4, 4], [0, 0, 9, 10]])


def remembered(folder):
    return torch.load(Path(folder) / "weights" / "lossplug.pt", weights_only=True)


def run(folder, data, stop_after=None, resume=None):
    states = []

    def note(trainer):
        states.append({key: value.clone() for key, value in runs.of(trainer).state.tensors.items()})

    def stop(trainer):
        if stop_after is not None and trainer.epoch == stop_after:
            raise KeyboardInterrupt

    model = YOLO(resume or "yolov8n.yaml")
    model.add_callback("on_train_epoch_end", note)
    model.add_callback("on_train_batch_start", stop)
    keys = {"resume": True} if resume else {**TINY, **STILL, **PLAIN, **CHOICE, "epochs": 3, "batch": 8, "data": data}
    with contextlib.suppress(KeyboardInterrupt):
        model.train(**keys, **({} if resume else {"project": str(folder), "name": "run"}))
    return states


@pytest.mark.slow
def test_a_resumed_run_remembers_number_for_number(data, tmp_path, monkeypatch):
    """The weights stay, and are such that half precision holds them: only what the losses remember can differ."""
    from ultralytics.nn.tasks import DetectionModel

    init = DetectionModel.__init__

    def seeded(self, *args, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            init(self, *args, **kwargs)
        for value in (*self.parameters(), *self.buffers()):
            if value.is_floating_point():
                value.data.copy_(value.data.half().float())
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0

    monkeypatch.setattr(DetectionModel, "__init__", seeded)
    whole = run(tmp_path / "whole", data)
    first = run(tmp_path / "parts", data, stop_after=1)
    rest = run(tmp_path / "parts", data, resume=str(tmp_path / "parts" / "run" / "weights" / "last.pt"))
    assert len(whole) == 3 and len(first) == 1 and len(rest) == 2
    for expected, found in zip(whole, [*first, *rest]):
        assert set(found) == {"main.iou_loss.mean", "main.target", "main.steps"}
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-6, atol=0)  # sums of a shuffled batch
    assert whole[0]["main.iou_loss.mean"] != whole[2]["main.iou_loss.mean"]
    rows = [results(tmp_path / folder / "run") for folder in ("whole", "parts")]
    for expected, found in zip(*rows):
        for part in ("train/box_loss", "train/cls_loss", "val/box_loss"):
            assert found[part] == pytest.approx(expected[part], rel=1e-6)
    assert remembered(tmp_path / "whole" / "run")["epoch"] == 3


@pytest.mark.slow
def test_the_epoch_is_handed_on(data, tmp_path):
    seen = []
    callbacks = [("on_train_batch_end", lambda t: seen.append(t.model.criterion.bbox_loss.loss.state.progress))]
    train(data=data, project=str(tmp_path), loss="uiou", epochs=4, callbacks=callbacks, val=False)
    assert sorted(set(seen)) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.slow
def test_a_state_of_another_epoch_is_not_used(data, tmp_path):
    run(tmp_path, data, stop_after=2)
    weights = tmp_path / "run" / "weights"
    content = remembered(tmp_path / "run")
    torch.save({**content, "epoch": 7}, weights / "lossplug.pt")
    with Log() as log:
        states = run(tmp_path, data, resume=str(weights / "last.pt"))
    assert "after epoch 7, but this run continues after epoch 2; they start with a new state" in log.text
    assert states[0]["main.steps"] == 1


def test_means_of_steps_before_and_their_guards():
    loss = create_box_loss("wiou-v3", wiou_momentum=0.5)
    pred, target = PAIR[0].clone().requires_grad_(), PAIR[1]
    iou_loss = (1 - (1 - create_box_loss("iou")(*PAIR))).mean()
    first, second = loss(pred, target), loss(pred, target)
    mean = loss.state.state.tensors["own.iou_loss.mean"]
    assert first[0] != second[0]
    assert mean.item() == pytest.approx(0.5 + 0.5 * iou_loss.item())
    with torch.no_grad():
        for _ in range(3):
            loss(pred, target)
    loss(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4))
    loss.state.state.commit()
    settled = loss.state.state.tensors["own.iou_loss.mean"].clone()
    loss(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4))
    loss.state.state.commit()
    assert loss.state.state.tensors["own.iou_loss.mean"] == settled, "an empty batch moved the mean"
    loss.state.running_mean("iou_loss", torch.tensor([float("nan")]), 0.5, 1.0)
    loss.state.state.commit()
    assert loss.state.state.tensors["own.iou_loss.mean"] == settled, "a value that is not finite moved the mean"
    loss = create_class_loss("ema-slide")
    logits, targets = torch.zeros(1, 4, 2, requires_grad=True), torch.zeros(1, 4, 2)
    loss(logits, targets)
    assert loss.state.state.tensors["own.steps"] == 0, "a batch without objects is no step"
    targets[0, 0, 0] = 0.5
    loss(logits, targets)
    decay = 0.999 * (1 - torch.exp(torch.tensor(-1 / 2000))).item()
    assert loss.state.state.tensors["own.target"].item() == pytest.approx(decay + (1 - decay) * 0.5, rel=1e-6)


def test_a_file_is_complete_or_not_there(tmp_path, monkeypatch):
    state = State()
    state.save(tmp_path / "lossplug.pt")
    assert not list(tmp_path.iterdir())
    state.tensors["main.x.mean"] = torch.tensor(0.25)
    state.epoch = 4
    state.save(tmp_path / "lossplug.pt")
    before = (tmp_path / "lossplug.pt").read_bytes()
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        state.save(tmp_path / "lossplug.pt")
    assert (tmp_path / "lossplug.pt").read_bytes() == before
    again = State()
    again.load(tmp_path / "lossplug.pt")
    assert again.tensors == {"main.x.mean": torch.tensor(0.25)} and again.epoch == 4
    State().save(tmp_path / "lossplug.pt")
    assert not list(tmp_path.iterdir()), "a run without state leaves that of an earlier one"
    assert State().progress == 0.0
    assert types.SimpleNamespace(**vars(State())).epochs == 0


def damaged(file):
    """Yield what becomes of the file of a state, and a word of what is said then."""
    whole, content = file.read_bytes(), torch.load(file, weights_only=True)

    def saved(**other):
        written = io.BytesIO()
        torch.save({**content, **other}, written)
        return written.getvalue()

    for data in (whole[:100], whole[:-50], b"", b"text", b"[" * 10**5, pickle.dumps([1, 2], 2), saved(tensors=[1, 2])):
        yield data, "it is damaged, or another file"
    yield saved(losses=["wiou-v2"]), "it belongs to wiou-v2, not to wiou-v3 and ghm"
    wrong = {key: torch.zeros(3, 7) for key in content["tensors"]}
    yield saved(tensors=wrong), "its numbers are not those that wiou-v3 and ghm keeps"
    for tensors in ({key: value * torch.nan for key, value in content["tensors"].items()}, {}):
        yield saved(tensors=tensors), "it holds numbers that are not finite, or none"
    yield None, "is missing beside the checkpoint"


def test_a_damaged_state_is_a_new_one(tmp_path):
    selection = select({"loss": "wiou-v3", "cls_loss": "ghm"})
    file = tmp_path / "lossplug.pt"
    trainer = types.SimpleNamespace(resume=True, args=types.SimpleNamespace(resume=tmp_path / "last.pt"), save_dir="no")
    state = State()
    for branch in ("one2many", "one2one"):
        for loss, shape in ((selection.box, (0, 4)), (selection.cls, (1, 4, 2))):
            loss.within(state.scoped(branch))(torch.rand(shape, requires_grad=True), torch.rand(shape))
    state.save(file, ["wiou-v3", "ghm"])
    again = State()
    with Log() as log:
        memory.restore_state(again, selection, trainer)
    assert again.tensors.keys() == state.tensors.keys() and not log.lines
    for data, words in damaged(file):
        file.unlink(missing_ok=True)
        if data is not None:
            file.write_bytes(data)
        again = State()
        with Log() as log:
            memory.restore_state(again, selection, trainer)
        (line,) = log.lines
        assert not again.tensors and words in line and str(tmp_path if data is not None else "lossplug.pt") in line
    with Log() as log:
        memory.restore_state(State(), select({"loss": "uiou", "cls_loss": "qfl"}), trainer)
    assert not log.lines, "neither remembers anything"


@pytest.mark.slow
def test_a_folder_that_is_used_again_keeps_no_state_of_another_run(data, tmp_path):
    keys = {"data": data, "project": str(tmp_path), "name": "run", "exist_ok": True}
    for loss in ("wiou-v3", "eiou", "wiou-v3", None):
        trainer = train(**keys, loss=loss)
        assert (trainer.wdir / "lossplug.pt").exists() is (loss == "wiou-v3")
        assert runs.find(vars(trainer.args)) is None, "the run is over, and its state is still held"


RANKS = """
import os, sys, torch
import torch.distributed as dist
from yolo_lossplug import create_box_loss, create_class_loss
dist.init_process_group("gloo")
rank = dist.get_rank()
box = create_box_loss("wiou-v3", wiou_momentum=0.5)
ghm, slide = create_class_loss("ghm"), create_class_loss("ema-slide")
with torch.no_grad():
    box(torch.zeros(0, 4), torch.zeros(0, 4))
for step in range(3):
    if rank == 0 or step == 2:  # the other rank's host skips the box loss where there is no object
        pred = torch.tensor([[0.0, 0, 2 + step, 2]], requires_grad=True)
        box(pred, torch.tensor([[0.0, 0, 4, 2]])).sum().backward()
    box.state.state.commit()
    logits = torch.linspace(-3, 3, 8 + 4 * rank).view(1, -1, 1).requires_grad_()
    targets = (logits.detach() > 1).float() * (0.5 + 0.2 * rank) * (rank == 0 or step == 2)
    for loss in (ghm, slide):
        loss(logits, targets).sum().backward()
states = [{k: v.tolist() for k, v in sorted(x.state.state.tensors.items())} for x in (box, ghm, slide)]
everyone = [None, None]
dist.all_gather_object(everyone, states)
if rank == 0:
    print("SAME", everyone[0] == everyone[1], everyone[0])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_agree(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    code = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
    done = python(code, "--nproc_per_node=2", "--master_port=29611", script, cwd=tmp_path)
    assert "SAME True" in done.stdout
    assert "own.iou_loss.mean" in done.stdout and "own.shares" in done.stdout and "own.target" in done.stdout
