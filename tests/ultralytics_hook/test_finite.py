# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is said of a loss that becomes NaN."""

import pytest
import torch

from tests.runs import Log, train
from yolo_lossplug.ultralytics_hook.run import finite

RUNNING = {"loss": "eiou", "cls_loss": "bce"}
NAMES = ["box_loss", "cls_loss", "dfl_loss"]


def watched(*batches):
    terms = finite.NanTracker()
    terms.start()
    for batch in batches:
        terms.add(finite.flat_terms(batch))
    return terms


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_first_term_and_batch(bad):
    terms = watched(torch.ones(3), torch.tensor([bad, 1, 1]), torch.full((3,), bad))
    with Log() as log:
        finite.tell(terms, 4, NAMES, RUNNING)
        finite.tell(terms, 4, NAMES, RUNNING)
    assert log.text.count("became NaN") == 1
    assert "box_loss (loss=eiou) became NaN or infinite first, in epoch 5, batch 2." in log.text


def test_terms_by_name_and_finite_ones():
    nan = torch.tensor(float("nan"))
    terms = watched({"box_loss": torch.tensor(1.0), "cls_loss": nan, "dfl_loss": nan})
    assert terms.earliest() == (0, [1, 2])
    with Log() as log:
        finite.tell(terms, 0, NAMES, RUNNING)
    assert "cls_loss (cls_loss=bce), dfl_loss became" in log.text
    terms = watched(torch.ones(3), torch.zeros(3))
    with Log() as log:
        finite.tell(terms, 0, NAMES, RUNNING)
    assert not log.text and not terms.is_done


@pytest.mark.slow
def test_training_names_the_term(data, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def broken(pred, target):\n    return (pred - target).abs().sum(-1) * float('nan')\n")
    with Log() as log:
        train(data=data, project=str(tmp_path), loss=f"{file}:broken")
    (line,) = [line for line in log.text.splitlines() if "NaN or infinite first" in line]
    assert "box_loss (loss=" in line and "broken" in line and "epoch 1, batch 1." in line and "cls_loss" not in line
