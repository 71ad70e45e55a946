# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs one after another, side by side and on Ray, with short commands in place of trainings."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from yolo_lossplug.tools.compare import jobs
from yolo_lossplug.tools.compare.command import Progress
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, RUNNING, Job

CODE = """
import json, pathlib, sys, time
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
start = time.time()
time.sleep(job["args"].get("sleep", 0.2))
if job["args"].get("fails"):
    pathlib.Path(job["error"]).write_text("ValueError: too bad\\n\\nTraceback")
    sys.exit(1)
if job["args"].get("dies"):
    sys.exit(9)
done = {"metrics": {}, "losses": {}, "seconds": 1.0, "save_dir": "", "start": start, "end": time.time(), **job["args"]}
pathlib.Path(job["result"]).write_text(json.dumps(done))
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    stock = Job.prepare

    def prepare(self, device):
        return [sys.executable, "-c", CODE, *stock(self, device)[-2:]]

    monkeypatch.setattr(Job, "prepare", prepare)

    def make(*args):
        return [Job(f"arm{i}", 0, tmp_path / f"run{i}", one) for i, one in enumerate(args)]

    return make


def tell_nothing(job):
    pass


def test_in_turn_goes_on_after_a_failure(made):
    todo, told = made({}, {"fails": True}, {"dies": True}, {}), []
    jobs.run_local(todo, [None], lambda job: told.append((job.arm, job.state)))
    assert [job.state for job in todo] == [FINISHED, FAILED, FAILED, FINISHED]
    assert todo[1].reason == "ValueError: too bad" and todo[2].reason == "exit status 9"
    assert told[:3] == [("arm0", RUNNING), ("arm0", FINISHED), ("arm1", RUNNING)]
    assert todo[0].read()["end"] <= todo[3].read()["start"]


def test_devices_have_one_run_each_at_a_time(made):
    todo = made({}, {"fails": True}, {}, {}, {})
    jobs.run_local(todo, (0, 1), tell_nothing)
    assert [job.state for job in todo] == [FINISHED, FAILED, FINISHED, FINISHED, FINISHED]
    runs = [job.read() for job in todo if job.state == FINISHED]
    assert {run["device"] for run in runs} == {0, 1}
    for one in runs:
        for other in runs:
            if one is not other and one["device"] == other["device"]:
                assert one["end"] <= other["start"] or other["end"] <= one["start"]
    assert any(one["start"] < other["end"] and other["start"] < one["end"] for one in runs for other in runs[1:])


@pytest.mark.parametrize("way", ["devices", pytest.param("ray", marks=pytest.mark.slow)])
def test_runs_side_by_side_have_a_line_each(made, way):
    if way == "ray":
        pytest.importorskip("ray", reason="Ray is in the extra 'ray': pip install -e '.[ray]'")
    todo = made(*[{"metrics": {"metrics/mAP50-95(B)": 0.3}}] * 2, {"fails": True}, {"dies": True})
    progress, lines = Progress(todo, "mAP50-95"), []

    def report(job):
        if job.state in (FINISHED, FAILED):
            lines.append(progress.line(job))

    if way == "ray":
        jobs.run_on_ray(todo, "cpu", report)
    else:
        jobs.run_local(todo, (0, 1), report)
    assert [line.partition(":")[0] for line in lines] == [f"{k} of 4" for k in (1, 2, 3, 4)]
    assert [re.search(r"about \d+ s left$", line) is not None for line in lines] == [True, True, True, False]
    ends = sorted(line.partition(": ")[2].partition(" · about")[0] for line in lines)
    assert ends[:2] == [f"arm{i} seed 0 finished · mAP50-95 0.3000" for i in (0, 1)]
    assert ends[2:] == ["arm2 seed 0 failed (ValueError: too bad)", "arm3 seed 0 failed (exit status 9)"]


@pytest.fixture
def interruptible():
    """Take note of Ctrl-C also where a shell has started the tests in the background, and ignores it for them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["turn", "devices"])
def test_an_interrupt_ends_what_runs(made, way, interruptible):
    todo = made({"sleep": 0.1}, {"sleep": 60}, {"sleep": 60})
    start = time.perf_counter()

    def interrupt(job):
        if job is todo[2 if way == "devices" else 1] and job.state == RUNNING:  # the first is finished then
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        if way == "turn":
            jobs.run_local(todo, [None], interrupt)
        else:
            jobs.run_local(todo, ("cpu", "cpu"), interrupt)
    assert time.perf_counter() - start < 30
    assert todo[0].state == FINISHED and not todo[1].result.is_file()


@pytest.mark.parametrize("second", [subprocess.TimeoutExpired("run", 0), KeyboardInterrupt()])
def test_no_run_outlives_the_comparison(second, monkeypatch):
    """One that does not end is killed after the time it has, or at once with a second Ctrl-C."""
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    process.stdout.readline()
    wait = process.wait
    monkeypatch.setattr(process, "wait", lambda timeout=None: wait() if timeout is None else _raise(second))
    with contextlib.suppress(KeyboardInterrupt):
        jobs._interrupt([process])
    assert process.poll() == -signal.SIGKILL


def _raise(error):
    raise error


def test_what_an_interrupted_run_has_left_is_removed(tmp_path):
    job = Job("arm", 0, tmp_path / "runs" / "run", {"epochs": 3})
    (job.folder / "weights").mkdir(parents=True)
    (job.folder / "weights" / "last.pt").write_text("half")
    job.error.write_text("KeyError: x")
    command = job.prepare("cpu")
    assert not job.folder.exists() and not job.error.exists() and job.state == RUNNING
    written = json.loads(job.file.read_text())
    assert written["args"] == {"epochs": 3, "device": "cpu"} and command[-2:] == [str(job.file), written["start"]]


def test_without_ray(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(jobs.LossPlugError, match=r"pip install 'yolo-lossplug\[ray\]'"):
        jobs.run_on_ray(made({}), "cpu", tell_nothing)
