# SPDX-License-Identifier: AGPL-3.0-or-later
"""What was measured decides which engine `auto` takes: where it holds, and what two writers leave of it."""

import importlib.metadata
import json
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from tests.models import is_plugged, predicted, with_keys
from tests.runs import ROOT, Log, python, train
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook import trainer
from yolo_lossplug.ultralytics_hook.decision import Decision, Fastest, Measured, size_class
from yolo_lossplug.ultralytics_hook.engines import choice, fast, record
from yolo_lossplug.ultralytics_hook.engines.fast import FastMixin
from yolo_lossplug.ultralytics_hook.running import banner_line

CPU, DAY = torch.device("cpu"), "2026-01-02"
FASTER, SLOWER = {"times_faster": 3.0, "quartiles": [2.0, 4.0]}, {"times_faster": 0.5, "quartiles": [0.4, 0.6]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A configuration folder of its own for each test."""
    monkeypatch.setattr(record, "USER_CONFIG_DIR", tmp_path)
    record.warn_once.cache_clear()
    return tmp_path


def entry(size=9, dtype="float32", key=None, anchors=8, **engines):
    sizes = {"dtype": dtype, "anchors_class": anchors, "size_class": size}
    return {**(key or record.record_key(CPU))._asdict(), **sizes, "measured": DAY, "engines": engines}


def add(*entries, refused=None):
    record.add(entries, record.record_key(CPU), refused or {}, DAY)


def measured(can_run=lambda name: True):
    return record.fastest_engines(CPU, can_run)


def test_an_entry_is_found_and_can_be_read_and_deleted(folder):
    assert measured() is None
    add(entry(fast=FASTER))
    assert measured() == Measured(DAY, (("float32", 8, 9, "fast"),))
    assert json.loads(record.file().read_text())["entries"][0]["engines"]["fast"]["times_faster"] == 3
    record.file().unlink()
    assert measured() is None


def test_entries_of_this_machine_replace_shipped_ones_and_the_newest_date_is_told(monkeypatch):
    shipped = {**entry(size=12, fast=SLOWER), "measured": "2025-12-31"}
    monkeypatch.setattr(record, "_shipped_entries", lambda: (entry(fast=SLOWER), shipped))
    assert measured() == Measured(DAY, (("float32", 8, 9, "reference"), ("float32", 8, 12, "reference")))
    add(entry(fast=FASTER))
    assert measured() == Measured(DAY, (("float32", 8, 9, "fast"), ("float32", 8, 12, "reference")))


@pytest.mark.parametrize("field", record.Key._fields)
def test_entries_of_another_device_or_version_are_ignored(field):
    add(entry(key=record.record_key(CPU)._replace(**{field: "other"}), fast=SLOWER))
    assert measured() is None
    record.add([], record.record_key(CPU)._replace(**{field: "other"}), {"fast": "it hangs"}, DAY)
    assert record.disqualified_engines(CPU) == {}


def test_interpreted_kernels_and_other_distributions_are_other_versions(monkeypatch):
    record._triton_version.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreted = record.record_key(CPU)
    record._triton_version.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    compiled = record.record_key(CPU)
    record._triton_version.cache_clear()
    assert interpreted == compiled._replace(triton=interpreted.triton)
    assert compiled.triton == "none" or interpreted.triton == f"{compiled.triton}, interpreted"

    def version(name):
        if name == "triton-windows":
            return "3.6.0"
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert record._triton_version.__wrapped__() == "3.6.0"


def test_the_fastest_is_one_that_won_three_of_four_pairs():
    close = {"times_faster": 5.0, "quartiles": [0.9, 9.0]}
    assert record.fastest({"fast": FASTER, "triton": close}) == "fast"
    assert record.fastest({"fast": FASTER, "triton": {**FASTER, "times_faster": 4.0}}) == "triton"
    assert record.fastest({"fast": FASTER, "triton": {**FASTER, "times_faster": 4.0}}, lambda n: n == "fast") == "fast"
    assert record.fastest({"fast": SLOWER, "triton": close}) == "reference"
    assert record.fastest({"triton": SLOWER}) == ""  # nothing is known of the other one


def test_a_later_bench_replaces_what_it_measured_again_and_keeps_the_rest():
    add(entry(fast=SLOWER, triton=FASTER), entry(size=12, fast=FASTER))
    add(entry(fast=FASTER))
    add(entry(dtype="float16", fast=SLOWER))
    entries = json.loads(record.file().read_text())["entries"]
    known = {(entry["dtype"], entry["size_class"]): entry["engines"] for entry in entries}
    assert known == {
        ("float32", 9): {"fast": FASTER, "triton": FASTER},
        ("float32", 12): {"fast": FASTER},
        ("float16", 9): {"fast": SLOWER},
    }


def test_a_disqualified_engine_is_not_taken_until_it_is_proven_again():
    add(entry(fast=SLOWER, triton=FASTER))
    add(refused={"triton": "it hangs"})
    assert measured().engines == (("float32", 8, 9, "reference"),)
    assert record.disqualified_engines(CPU) == {"triton": f"lossplug bench, {DAY}: it hangs"}
    add(entry(fast=SLOWER, triton=FASTER))
    assert measured().engines == (("float32", 8, 9, "triton"),) and record.disqualified_engines(CPU) == {}


WITHOUT_QUARTILES = json.dumps({"entries": [entry(fast={**FASTER, "quartiles": []})]})
ADOPTED = '{"adopted": ["cpu", null]}'
"""What `bench adopt=True` wrote in an earlier version, damaged."""
PARTLY_READABLE = ('{"entries": [{"device": 1}, 7]}', '{"disqualified": ["fast", 1]}', ADOPTED, WITHOUT_QUARTILES)
DAMAGED = (b"{", b"[]", b'{"entries": 3}', b"[" * 200_000, b"\x80\xff", b"", *map(str.encode, PARTLY_READABLE))


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:40]))
def test_a_file_that_is_no_record_does_no_harm(content):
    record.file().write_bytes(content)
    with Log() as log:
        assert measured() is None and not record.disqualified_engines(CPU)
    assert ("is ignored" in log.text) == (content.decode(errors="replace") not in PARTLY_READABLE)
    add(entry(fast=FASTER))
    assert measured().engine("float32", 4**8, 4**9) == "fast"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
def test_a_pipe_or_a_folder_in_its_place_does_no_harm():
    for make in (os.mkfifo, os.mkdir):
        make(record.file())
        with Log() as log:
            assert measured() is None and not record.disqualified_engines(CPU)
        assert "is not a regular file. Delete it" in log.text
        (os.rmdir if record.file().is_dir() else os.unlink)(record.file())
        record.warn_once.cache_clear()


def test_whatever_stands_in_an_entry_does_no_harm():
    """Each value of an entry in turn is something else."""
    others = (None, [], {}, "", "x", -1, 2**70, 1e308, float("nan"), [[]], {"x": []})
    for path in (("device",), ("measured",), ("dtype",), ("size_class",), ("engines",), ("engines", "fast"),
                 ("engines", "fast", "quartiles"), ("engines", "fast", "times_faster")):  # fmt: skip
        for other in others:
            changed = entry(fast=FASTER)
            place = changed
            for key in path[:-1]:
                place[key] = dict(place[key])
                place = place[key]
            place[path[-1]] = other
            refusals = [changed, {**entry(), "engine": other}]
            record.file().write_text(json.dumps({"entries": [changed], "disqualified": refusals}))
            assert measured() is None or len(measured().engines) == 1
            assert 1 <= len(record.disqualified_engines(CPU)) <= 2
            add(refused={"triton": "it hangs"})


def write_some(begin):
    for size in range(begin, begin + 10):
        add(entry(size=size, fast=FASTER))


WRITER = """
import sys, time
from pathlib import Path
from tests.ultralytics_hook import test_engine_record as tests
from yolo_lossplug.ultralytics_hook.engines import record
folder, number = Path(sys.argv[1]), int(sys.argv[2])
record.USER_CONFIG_DIR = folder
(folder / f"ready{number}").touch()
while not (folder / f"ready{1 - number}").exists():
    time.sleep(0.001)
tests.write_some(10 * number)
"""


@pytest.mark.slow
def test_two_processes_that_write_at_once_lose_nothing(folder):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: python(WRITER, folder, i, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}), range(2)))
    assert len(json.loads(record.file().read_text())["entries"]) == 20


def test_a_size_takes_the_nearest_class_that_was_measured():
    rows = ("float16", 8, 9, "triton"), ("float32", 8, 8, "reference"), ("float32", 8, 11, "fast")
    known = Measured(DAY, tuple(Fastest(*row) for row in rows))
    engines = {size: known.engine("float32", 4**8, 4**size) for size in range(5, 15)}
    assert engines == {
        **dict.fromkeys((5, 6, 13, 14), ""),
        **dict.fromkeys((7, 8, 9), "reference"),
        **dict.fromkeys((10, 11, 12), "fast"),
    }
    assert known.engine("bfloat16", 4**8, 4**9) == ""
    near = [known.engine("float32", 4**anchors, 4**8) for anchors in (6, 7, 9, 10)]
    assert near == ["", "reference", "reference", ""]
    assert str(known) == "float16, 66k anchors: triton; float32, 66k anchors: reference, fast from 4.2M elements"
    assert size_class(0) == size_class(3) == 0 and size_class(4**9 - 1) == 8 and size_class(4**9) == 9
    assert "cpu" in choice.FAST_DEVICE_TYPES and "cuda" not in choice.FAST_DEVICE_TYPES
    for shipped in record._shipped_entries():
        assert "interpreted" not in shipped["triton"]


# What `auto` makes of it.


ANCHORS = size_class(2 * 1344)
"""Class of two images of 256 pixels."""


@pytest.fixture(scope="module")
def step_inputs():
    return predicted("yolov8n", size=256)


@pytest.mark.parametrize("name", ["reference", "fast"])
def test_auto_takes_the_fastest_for_the_size_of_a_step(step_inputs, name):
    made, preds, data = step_inputs
    size = size_class(5 * preds["scores"].shape[2])
    add(entry(size=size, anchors=ANCHORS, fast=FASTER if name == "fast" else SLOWER))
    criterion = with_keys(made, loss="eiou")
    others = ", other sizes fast" if name == "reference" else ""
    assert str(criterion.lossplug.decision) == f"{name} (bench {DAY}){others}"
    assert (fast.fast_step(criterion, dict(preds), data, {}) is None) == (name == "reference")
    for other in ("fast", "reference"):
        assert str(with_keys(made, loss="eiou", loss_engine=other).lossplug.decision) == other
    expected = with_keys(made, loss="eiou", loss_engine="reference")(dict(preds), data)[0]
    torch.testing.assert_close(criterion(dict(preds), data)[0], expected, rtol=1e-5, atol=1e-6)
    assert is_plugged(criterion, select({"loss": "eiou"}))


def test_a_size_that_was_not_measured_is_as_without_a_record(step_inputs):
    made, preds, data = step_inputs
    add(entry(size=size_class(5 * preds["scores"].shape[2]) + 2, anchors=ANCHORS, fast=SLOWER))
    assert fast.fast_step(with_keys(made, loss="eiou"), dict(preds), data, {}) is not None


def test_a_crowded_image_does_not_go_to_the_host(step_inputs, monkeypatch):
    """A record counts the objects of all images; the host's dense tensors grow with those of the most crowded one."""
    made, preds, data = step_inputs
    add(entry(size=size_class(5 * preds["scores"].shape[2]), anchors=ANCHORS, fast=SLOWER))
    criterion = with_keys(made, loss="eiou")
    monkeypatch.setattr(fast, "DENSE_ON_GPU", 10)
    assert fast.fast_step(criterion, dict(preds), data, {}) is None  # 2 images of 3 objects at most
    monkeypatch.setattr(fast, "dense_size", lambda *args: 4 * 5 * preds["scores"].shape[2])
    assert fast.fast_step(criterion, dict(preds), data, {}) is not None


def test_what_differs_in_bench_is_not_chosen(step_inputs):
    add(refused={"fast": "differs in case 16x7: loss"})
    criterion = with_keys(step_inputs[0], loss="eiou")
    assert str(criterion.lossplug.decision) == f"reference (lossplug bench, {DAY}: differs in case 16x7: loss)"
    assert isinstance(with_keys(step_inputs[0], loss="eiou", loss_engine="fast"), FastMixin)


def test_masks_are_the_hosts_where_bench_has_found_a_difference_and_on_a_gpu(monkeypatch):
    monkeypatch.setattr(choice.install, "proven_part", lambda criterion: "masks")
    monkeypatch.setattr(choice, "why_not_fast", lambda criterion: "it fails")
    for device, refused, part in (("cpu", {}, "masks"), ("cuda", {}, ""), ("cpu", {"fast": "masks differ"}, "")):
        monkeypatch.setattr(record, "disqualified_engines", lambda device, refused=refused: refused)
        assert choice.decide_engine("auto", SimpleNamespace(device=torch.device(device))).part == part


def on_a_gpu(engine, monkeypatch):
    """Return what is decided on a GPU, where the fast engine passes its test."""
    monkeypatch.setattr(choice, "why_not_fast", lambda criterion: None)
    monkeypatch.setattr(record, "device_name", lambda device: "NVIDIA Some")
    return choice.decide_engine(engine, SimpleNamespace(device=torch.device("cuda")))


def test_a_gpu_without_a_record(monkeypatch):
    assert on_a_gpu("fast", monkeypatch) == Decision("fast")
    decision = on_a_gpu("auto", monkeypatch)
    assert decision == Decision("fast", is_lazy=True, is_unmeasured=True)
    assert "engine fast in crowds, else reference" in banner(decision, loss="eiou")
    assert banner(decision, loss="eiou").endswith(" · lossplug bench measures faster engines here")
    assert "lossplug bench" not in banner(on_a_gpu("fast", monkeypatch), loss="eiou")


def banner(decision, **keys):
    actual = {"loss": "eiou", "loss_engine": decision, **{f"tal_{k}": 0 for k in ("topk", "alpha", "beta", "iou")}}
    return banner_line(select(keys), actual)


def test_a_gpu_with_a_record(monkeypatch):
    monkeypatch.setattr(record, "device_name", lambda device: "NVIDIA Some")
    monkeypatch.setattr(choice, "_can_run", lambda criterion, engine: True)
    key = record.record_key(torch.device("cuda"))
    record.add([entry(9, "float16", key, fast=SLOWER), entry(11, "float16", key, triton=FASTER)], key, {}, DAY)
    decision = on_a_gpu("auto", monkeypatch)
    assert decision.name == "triton" and decision.is_lazy
    line = banner(decision, loss="eiou")
    assert f"engine reference, triton from 4.2M elements (bench {DAY})" in line and "lossplug bench" not in line


@pytest.mark.slow
def test_a_training_says_which_engine_and_record_it_takes(data, tmp_path):
    add(*(entry(size=size, anchors=4, fast=FASTER) for size in range(4, 14)))
    with Log() as log:
        stock = train(data=data, project=str(tmp_path), loss="ciou")
        train(data=data, project=str(tmp_path), loss="eiou")
        asked = train(data=data, project=str(tmp_path), loss="ciou", loss_engine="auto")
        untouched = train(data=data, project=str(tmp_path))
    first, second, third = (line for line in log.lines if line.startswith(trainer.say.__globals__["PREFIX"]))
    assert " · engine reference · " in first and stock.args.loss_engine == "reference"
    for line in (second, third):
        assert f" · engine fast (bench {DAY}) · ultralytics" in line
    assert asked.args.loss_engine == "auto"
    assert not hasattr(untouched.args, "loss_engine")
