# SPDX-License-Identifier: AGPL-3.0-or-later
"""Comparisons that are killed, whose files are damaged, or whose names are hostile."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import psutil
import pytest
from filelock import FileLock, Timeout
from PIL import Image

from tests.tools.test_compare import KEYS
from yolo_lossplug import LossPlugError
from yolo_lossplug.tools.compare import command, differ, jobs
from yolo_lossplug.tools.compare import report as compare_report
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
sys.exit(train_one.main(pathlib.Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.fixture
def stand_in(monkeypatch):
    """Trainings that take 0.3 s, in processes of their own as real ones."""
    stock = Job.prepare
    monkeypatch.setattr(
        Job, "prepare", lambda self, device: [sys.executable, "-c", STAND_IN, *stock(self, device)[-2:]]
    )
    monkeypatch.setattr(one_run, "prepare", lambda *args: ("detect", {}))
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


def begun(folder, count):
    return lambda: len(trainings(folder)) >= count


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_training_keeps_its_run_and_leaves_that_of_another(tmp_path, stand_in):
    """A run is locked while it is trained; a process that begins after its run was taken over trains nothing."""
    job = command.jobs_of(plan_of(arguments_of(tmp_path)), tmp_path / "one")[0]
    late = job.prepare(None)
    with subprocess.Popen(job.prepare(None), stdin=subprocess.PIPE) as process:
        wait_for(begun(tmp_path, 1))
        with pytest.raises(Timeout):
            FileLock(job.lock).acquire(timeout=0)
        assert process.wait() == 0 and job.read()
    assert subprocess.run(late, stdin=subprocess.DEVNULL, check=False).returncode == 130
    assert trainings(tmp_path) == [str(process.pid)] and job.read()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="comparisons are forked")
def test_a_comparison_survives_kills_at_any_moment(tmp_path, stand_in, monkeypatch):
    """Of itself or of a training, at 20 moments: it goes on, nothing is lost, and no run is trained twice at once."""
    for draw in ("draw_curves", "draw_forest"):  # most of the time of a summary
        monkeypatch.setattr(compare_report, draw, lambda *_: None)
    undisturbed = tmp_path / "undisturbed"
    assert os.waitpid(begin(undisturbed), 0)[1] == 0
    expected, rng = results_of(undisturbed), random.Random(0)
    assert len(expected) == 4
    for trial in range(20):
        folder = tmp_path / str(trial)
        process, sent = begin(folder), rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        wait_for(begun(folder, rng.randint(0, 4)))
        time.sleep(rng.uniform(0.0, 0.5))
        if rng.random() < 0.4:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                for training in psutil.Process(process).children():
                    training.send_signal(sent)
        else:
            os.kill(process, sent)  # not waited for yet, so it is no other's
        kept = results_of(folder)
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
            if kind in ("list", "mapping", "deep") and not name.endswith(".json"):
                continue
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


@pytest.mark.filterwarnings("error")
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


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_none_cut(data, tmp_path):
    """A limit on the size of files ends a write in the middle, as a full disk does."""
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    program += "from yolo_lossplug.cli import run_tool; run_tool('inspect', __import__('sys').argv[1:])"
    words = [f"data={data}", "imgsz=64", "fraction=0.1", f"project={tmp_path}", "name=out"]
    run = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    *_, last = run.stderr.splitlines()
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert last.startswith("LossPlug: ") and str(tmp_path / "out" / "sizes.png") in last
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"classes.csv", "objects.csv"}


def test_names_of_folders_are_short_and_differ():
    names = ["x" * 200, "x" * 200 + "y", "cls_weights=" + str({f"class {i}": i for i in range(80)}), "ciou"]
    slugs = [jobs.slug(name) for name in names]
    assert len({*slugs}) == 4 and all(len(slug) < 100 for slug in slugs) and slugs[-1] == "ciou"
