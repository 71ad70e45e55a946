# SPDX-License-Identifier: AGPL-3.0-or-later
"""Comparisons that are killed, whose files are damaged, or whose names are hostile."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.tools.test_compare import KEYS
from yolo_lossplug import LossPlugError
from yolo_lossplug.tools.compare import command, differ, jobs
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, Job
from yolo_lossplug.tools.compare.plan import plan_of
from yolo_lossplug.tools.compare.report import write_summary
from yolo_lossplug.ultralytics_hook.trial import one_run

MAIN = "metrics/mAP50-95(B)"
STAND_IN = """
import fcntl, json, os, pathlib, sys, time, types

def train(args):
    folder = pathlib.Path(args["project"])
    with (folder / "journal.txt").open("a") as journal, (folder / f"{args['name']}.alive").open("w") as alive:
        print(os.getpid(), file=journal, flush=True)
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("two trainings of", args["name"], file=journal, flush=True)
        time.sleep(0.3)
    value = args["seed"] / 10 + len(args["loss"]) / 100
    return {"metrics": {"metrics/mAP50-95(B)": value}, "losses": {}, "seconds": 1.0, "save_dir": str(folder)}

sys.modules["yolo_lossplug.ultralytics_hook.trial.one_run"] = types.SimpleNamespace(train=train)
from yolo_lossplug.tools.compare import train_one
train_one.with_average_precision = lambda result: result
sys.exit(train_one.main(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture
def stand_in(monkeypatch):
    """Trainings that take 0.3 s, in processes of their own as real ones."""
    stock = Job.prepare
    monkeypatch.setattr(Job, "prepare", lambda self, device: [sys.executable, "-c", STAND_IN, stock(self, device)[-1]])
    monkeypatch.setattr(one_run, "prepare", lambda *args: {})
    monkeypatch.setattr(jobs, "POLL", 0.02)


def arguments_of(folder, **more):
    return {**KEYS, "loss": "ciou,eiou", "seeds": 2, "project": str(folder), "name": "one", **more}


def begin(folder):
    """Start a comparison in a process of its own."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command.main(arguments_of(folder))
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        os._exit(status)


def results_of(folder):
    results = {file.name: json.loads(file.read_text()) for file in (folder / "one" / "runs").glob("*.result.json")}
    return {name: result["metrics"] for name, result in results.items()}


def trainings(folder):
    journal = folder / "one" / "runs" / "journal.txt"
    return journal.read_text().splitlines() if journal.is_file() else []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="comparisons are forked")
def test_a_comparison_survives_kills_at_any_moment(tmp_path, stand_in):
    """Of itself or of a training, at 20 moments: it goes on, nothing is lost, and no run is trained twice at once."""
    undisturbed = tmp_path / "undisturbed"
    assert os.waitpid(begin(undisturbed), 0)[1] == 0
    expected, rng = results_of(undisturbed), random.Random(0)
    assert len(expected) == 4
    for trial in range(20):
        folder = tmp_path / str(trial)
        process, sent = begin(folder), rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        time.sleep(rng.uniform(0.0, 3.0))
        pids = [line for line in trainings(folder) if line.isdecimal()]
        victim = int(pids[-1]) if pids and rng.random() < 0.4 else process
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(victim, sent)
        if victim == process and rng.random() < 0.5:
            os.waitpid(process, 0)
            process = 0
        kept = results_of(folder) if (folder / "one").is_dir() else {}
        if process:
            os.waitpid(process, 0)
        assert os.waitpid(begin(folder), 0)[1] == 0, (trial, sent)
        found = results_of(folder)
        assert found == expected and kept.items() <= found.items(), (trial, sent)
        assert not [line for line in trainings(folder) if not line.isdecimal()], (trial, sent)
        assert "4 of 4 runs finished" in (folder / "one" / "summary.md").read_text(encoding="utf-8")


def result(value, folder):
    metrics = {MAIN: value, "metrics/mAP50(B)": value}
    rest = {"losses": {"val/box_loss": 1.0}, "seconds": 2.0, "save_dir": str(folder), "versions": "a"}
    return {"metrics": metrics, "average_precision": {"AP_small": value}, **rest}


def finished_comparison(folder):
    """A comparison that has finished, with all files that a training leaves."""
    plan = plan_of(arguments_of(folder))
    photo = folder / "photo.png"
    folder.mkdir()
    Image.new("RGB", (32, 32), "#88aa88").save(photo)
    for job in command.jobs_of(plan, folder / "one"):
        Job.prepare(job, None)
        job.folder.mkdir(parents=True)
        job.result.write_text(json.dumps(result(0.1 + job.seed / 10 + (job.arm == "eiou") / 50, job.folder)))
        (job.folder / "results.csv").write_text(f"epoch,{MAIN}\n1,0.1\n2,0.2\n")
        boxes = {"hits": [], "misses": [], "alarms": [[1, 1, 9, 9]] * (job.arm == "eiou")}
        images = {str(photo): {**boxes, "is_hit": [], "shape": [32, 32], "pad": [0, 0]}}
        found = {"score": 0.5, "names": {}, "images": images}
        (job.folder / differ.DETECTIONS).write_text(json.dumps(found))
    command.write_plan(plan, folder / "one")
    return plan


DAMAGES = {
    "gone": None,
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "list": lambda content: b"[]",
    "mapping": lambda content: b"{}",
    "deep": lambda content: b"[" * 200_000,
    "binary": lambda content: bytes(range(256)),
}
FILES = [
    "compare.json",
    "runs/ciou-seed0.json",
    "runs/ciou-seed0.result.json",
    "runs/ciou-seed0/results.csv",
    f"runs/eiou-seed0/{differ.DETECTIONS}",
    "differ-eiou-seed0.png",
    "../photo.png",
]


@pytest.mark.slow
def test_a_damaged_file_leaves_all_else(tmp_path, stand_in):
    """Whatever becomes of a file: no traceback, all other results, and a summary."""
    plan = finished_comparison(tmp_path / "whole")
    command.run_plan(plan)
    assert (tmp_path / "whole" / "one" / "differ-eiou-seed0.png").is_file()
    for name in FILES:
        for kind, damage in DAMAGES.items():
            folder = tmp_path / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", folder)
            file = folder / "one" / name
            content = file.read_bytes()
            file.unlink()
            if damage:
                file.write_bytes(damage(content))
            try:
                directory, todo, _ = command.run_plan(plan_of(arguments_of(folder)))
            except LossPlugError as error:
                raise AssertionError((name, kind)) from error
            assert [job.state for job in todo] == [FINISHED] * 4, (name, kind)
            summary = (directory / "summary.md").read_text(encoding="utf-8")
            assert "4 of 4 runs finished" in summary and "`eiou`" in summary, (name, kind)


HOSTILE = [
    "$x^$",
    r"\frac{a",
    "a|b",
    "<script>alert(1)</script>",
    "=1+1",
    "@cmd",
    "[ciou",
    "`tick`",
    "two\nlines",
    "100 %_#&{}~^",
    "\x1b[31mred\x1b[0m",
    "很好",
]


class Tags(HTMLParser):
    """Names of all tags."""

    def __init__(self, html):
        super().__init__()
        self.names = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)


def test_text_of_users_is_text_everywhere(tmp_path):
    """Names of arms and classes, and reasons of failed runs, in every output."""
    arms, todo = ["ciou", *HOSTILE], []
    for k, arm in enumerate(arms):
        for seed in range(2):
            job = Job(arm, seed, tmp_path / "runs" / f"{k}-{seed}", {}, FINISHED)
            job.folder.mkdir(parents=True)
            values = {f"AP_{name}": 0.1 for name in HOSTILE}
            content = result(0.1 + k / 100 + seed / 1000, job.folder)
            job.result.write_text(json.dumps({**content, "average_precision": values}))
            (job.folder / "results.csv").write_text(f"epoch,{MAIN}\n1,0.1\n2,{0.1 + k / 100}\n")
            todo.append(job)
    failed = Job("ciou", 2, tmp_path / "runs" / "failed", {})
    failed.fail("\x1b[1mValueError\x1b[0m: <b>|\nmore")
    report = write_summary([*todo, failed], tmp_path, command="lossplug compare loss='$x^$'")
    assert (failed.state, failed.reason) == (FAILED, "ValueError: <b>|")
    for name in ("curves.png", "forest.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture).std() > 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "b" not in Tags(page).names and "\x1b" not in page
    markdown = (tmp_path / "summary.md").read_text(encoding="utf-8")
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    for line, next_line in zip(tables, tables[1:]):
        if next_line.startswith("|---"):
            width = next_line.count("|")
        assert line.replace("\\|", "").count("|") in (width, next_line.count("|")), line
    assert "\x1b" not in markdown and "<script>alert" not in markdown.replace("`<script>alert", "").replace(
        "\\<script>alert", ""
    )
    tex = (tmp_path / "summary.tex").read_text(encoding="utf-8")
    assert all(line.count("{") >= line.count(r"\{") for line in tex.splitlines()) and r"100 \%\_\#\&" in tex
    with (tmp_path / "summary.csv").open(encoding="utf-8", newline="") as text:
        names = {row["loss"] for row in csv.DictReader(text)}
    assert "'=1+1" in names and "'@cmd" in names and not any(name.startswith(("=", "@")) for name in names)
    assert "\x1b" not in report.terminal()


def test_names_of_folders_are_short_and_differ():
    names = ["x" * 200, "x" * 200 + "y", "cls_weights=" + str({f"class {i}": i for i in range(80)}), "ciou"]
    slugs = [jobs.slug(name) for name in names]
    assert len({*slugs}) == 4 and all(len(slug) < 100 for slug in slugs) and slugs[-1] == "ciou"
