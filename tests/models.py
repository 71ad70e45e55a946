# SPDX-License-Identifier: AGPL-3.0-or-later
"""Small models with batches for them, made once."""

import copy
import functools

import torch


@functools.cache
def model(name, nc=3):
    """Return a model from its YAML with training arguments, in training mode."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    kinds = {"-seg": tasks.SegmentationModel, "-pose": tasks.PoseModel, "-obb": tasks.OBBModel}
    cls = next((kind for suffix, kind in kinds.items() if suffix in name), tasks.DetectionModel)
    made = cls(f"{name}.yaml", nc=1 if "-pose" in name else nc, verbose=False)
    made.args = get_cfg()
    made.names = dict(enumerate("abc"))
    return made.train()


def batch(name, nc=3, empty=False, size=64, device="cpu"):
    """Return a batch of two images with five objects, or none, for the task of a model."""
    rng = torch.Generator().manual_seed(7)
    n = 0 if empty else 5
    nc = 1 if "-pose" in name else nc
    made = {
        "img": torch.rand(2, 3, size, size, generator=rng),
        "batch_idx": torch.tensor([0.0, 0, 0, 1, 1])[:n],
        "cls": torch.randint(nc, (n, 1), generator=rng).float(),
        "bboxes": torch.rand(n, 4, generator=rng) * 0.4 + torch.tensor([0.3, 0.3, 0.2, 0.2]),
    }
    if "-obb" in name:
        made["bboxes"] = torch.cat((made["bboxes"], torch.rand(n, 1, generator=rng)), 1)
    if "-seg" in name:
        made["masks"] = torch.randint(0, 4, (2, size // 4, size // 4), generator=rng).float() * (not empty)
        made["sem_masks"] = torch.randint(0, nc, (2, size // 4, size // 4), generator=rng)
    if "-pose" in name:
        made["keypoints"] = torch.rand(n, 17, 3, generator=rng)
        made["keypoints"][..., 2] = 2
    made = {key: value.to(device) for key, value in made.items()}
    return {**made, "resized_shape": [[size, size]] * 2} if "-obb" in name else made  # 8.4.0 reads it


def predicted(name, **keys):
    """Return a model on a device, its predictions for a batch without a gradient, and the batch."""
    made, given = model(name), batch(name, **keys)
    if keys.get("device", "cpu") != "cpu":
        made = copy.deepcopy(made).to(keys["device"])
    torch.manual_seed(0)
    with torch.no_grad():
        return made, made(given["img"]), given


def with_keys(made, **keys):
    """Return the criterion that a model makes when its arguments have these keys."""
    from ultralytics.utils import IterableSimpleNamespace

    stock = made.args
    task = {"Segment": "segment", "Pose": "pose", "OBB": "obb"}
    head = type(made.model[-1]).__name__
    kind = next((name for part, name in task.items() if part in head), "detect")
    try:
        made.args = IterableSimpleNamespace(**{**vars(stock), "task": kind, **keys})
        return made.init_criterion()
    finally:
        made.args = stock


def evaluate(criterion, preds, batch):
    """Return the loss parts of a criterion on given predictions, and the items that it logs."""
    loss, items = criterion(preds, batch)
    return loss, items if isinstance(items, dict) else dict(enumerate(items.tolist()))


LEAVES = ("angle", "boxes", "kpts", "mask_coefficient", "proto", "scores")
"""Outputs of a head that a loss has gradients of."""


def step(criterion, preds, data, n_steps=1):
    """Take steps and return the loss, its items, and the gradients of the outputs of every branch of a head."""
    preds = copy.copy(preds) if "boxes" in preds else {key: copy.copy(value) for key, value in preds.items()}
    leaves = []
    for branch in [preds[key] for key in ("one2many", "one2one") if key in preds] or [preds]:
        for key in (key for key in LEAVES if isinstance(branch.get(key), torch.Tensor)):
            branch[key] = branch[key].detach().requires_grad_()
            leaves.append(branch[key])
    for _ in range(n_steps):
        loss, items = criterion(dict(preds), data)
    return loss.detach(), items, torch.autograd.grad(loss.sum(), leaves, allow_unused=True)


def with_agreeing_engines(made, preds, data, engines, n_steps=1, rtol=1e-5, grad_rtol=1e-4, **keys):
    """Assert that two engines give the same loss, items and gradients; return the criterion of the second."""
    runs = []
    for name in engines:
        criterion = with_keys(made, loss_engine=name, **keys)
        runs.append(step(criterion, preds, data, n_steps))
    (expected, expected_items, grads), (loss, items, others) = runs
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=1e-6)
    assert list(items) == list(expected_items)
    for grad, other in zip(grads, others):
        if grad is None:  # a host that does not reach the boxes where there is no object
            assert other is None or not other.any()
            continue
        assert other.dtype == grad.dtype
        assert (other.float() - grad.float()).norm() <= grad_rtol * grad.float().norm()
    return criterion


def is_plugged(criterion, selection):
    """Return whether every part of a criterion runs what is selected."""
    from yolo_lossplug.ultralytics_hook.running import mismatches

    return not mismatches(criterion, selection)
