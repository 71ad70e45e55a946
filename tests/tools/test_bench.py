# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug bench` proves before it times, survives what an engine does, and remembers. No test asserts a time."""

import json
import math
import re
import sys
import types

import pytest
import torch

from tests.runs import ROOT, Log, refuses, run, slow
from tests.tools import faults
from yolo_lossplug import LossPlugError, kernels
from yolo_lossplug.tools.bench import child
from yolo_lossplug.tools.bench import command as bench
from yolo_lossplug.tools.bench.report import EngineResults, engines_report
from yolo_lossplug.ultralytics_hook.engines import fast, record
from yolo_lossplug.ultralytics_hook.trial import bench_cases, gauges, problems, timing
from yolo_lossplug.ultralytics_hook.trial.bench_cases import CLASS_KERNELS, STEP, TRAIN, Work

TINY = {"imgsz": 64, "batch": 2, "device": "cpu"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """A configuration folder of its own, and few steps."""
    monkeypatch.setattr(record, "USER_CONFIG_DIR", tmp_path / "config")
    monkeypatch.setattr(bench_cases, "SECONDS", {"cpu": 0.0, "cuda": 0.0})
    monkeypatch.setattr(bench_cases, "MIN_PAIRS", 2)
    monkeypatch.setattr(bench_cases, "MIN_TRAIN_PAIRS", 1)
    monkeypatch.setattr(timing, "MAX_SPREAD", math.inf)


@pytest.fixture
def in_process(monkeypatch):
    """Measure in this process, which is faster; return the cases that are measured."""
    seen = []

    class Process:
        def __init__(self, command, **_):
            job = child.Path(command[-1])
            seen.extend(
                (json.loads(job.read_text())["engine"], w["name"]) for w in json.loads(job.read_text())["works"]
            )
            self.returncode = child.run_job(job)
            if self.returncode == 130:
                raise KeyboardInterrupt

        def poll(self):
            return self.returncode

        def wait(self):
            return self.returncode

    monkeypatch.setattr(child, "subprocess", types.SimpleNamespace(Popen=Process, STDOUT=0))
    yield seen
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if "yolo_lossplug.kernels.launching" in sys.modules:  # a process of its own would end here
        sys.modules["yolo_lossplug.kernels.launching"].listeners.clear()


def measured(tmp_path, **keys):
    """Run bench with one small case, unless there is more; return folder, results and report."""
    return bench.bench({**TINY, "objects": [3], "project": str(tmp_path / "runs"), **keys})


def entries():
    return json.loads(record.file().read_text())["entries"]


def test_an_engine_is_proven_timed_and_remembered(tmp_path, in_process, monkeypatch):
    folder, results, report = measured(tmp_path, objects=[3, 60])
    assert in_process == [("fast", "2x3"), ("fast", "2x60")] and not results.disqualified
    assert [(one["dtype"], list(one["engines"])) for one in entries()] == [("float32", ["fast"])] * 2
    assert entries()[1]["case"] == "2 images, 120 objects in all, 64 px, yolov8n.yaml"
    verdict = f"from now on, in steps of 256 to 16k elements: {record.fastest_engines(CPU, lambda name: True)}. Other"
    assert verdict in report.verdicts[0]
    monkeypatch.setenv("COLUMNS", "80")
    said = report.terminal()
    assert max(len(line) for line in said.splitlines() if str(record.file()) not in line) <= 80
    for word in ("2 × 60", "stock", "fast", "loss_engine=auto takes here, from now on", str(record.file())):
        assert word in said
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "2 × 60" in page and 'src="data:image/png' in page and "2 × 60" in text
    assert "Made by\n\n```\nlossplug bench imgsz=64 batch=2 device=cpu objects=3,60 project=" in text
    one = json.loads((folder / "results.json").read_text())["cases"][0]["engines"]["fast"]
    assert one["objects"] == 6 and one["elements"] == 6 * 84 and len(one["first_ms"]) == 2
    assert (one["stock_mib"] is None) == (sys.platform != "linux")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["yolo26n.yaml", "yolov8n.yaml", "yolo26n-seg.yaml", "yolov8n-obb.yaml"])
def test_real_data_end_to_end_heads_and_whole_training_steps(tmp_path, in_process, data, model):
    keys = {} if "-" in model else {"data": data, "objects": None}
    _, results, report = measured(tmp_path, model=model, train_step=True, **keys)
    (step, by_name), (train, trained) = results.cases
    assert (step.kind, step.name, train.kind) == (STEP, "2x3" if "-" in model else "2-data", TRAIN)
    assert not results.disqualified and by_name["fast"]["objects"] > 0 and "ratio" in trained["fast"]
    assert "A whole training step" in report.terminal()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (faults.wrong_assignment, r"differs in case 2x3: assignment of \d+ anchors, where \d+ are positive"),
        (faults.wrong_loss, r"differs in case 2x3: loss .* instead of .*"),
        (
            faults.wrong_gradients,
            r"differs in case 2x3: gradients of boxes by 1\.0e-02 of their norm; gradients of scores",
        ),
        (faults.out_of_memory, r"out of memory \(case 2x3\)"),
        (faults.not_compiled, r"RuntimeError: ptxas failed \(case 2x3\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_engine_with_a_fault_is_disqualified(tmp_path, in_process, monkeypatch, fault, why):
    measured(tmp_path)
    monkeypatch.setattr(fast, "fast_step", faults.step_with(fault))
    _, results, report = measured(tmp_path)
    assert re.match(why, results.disqualified["fast"])
    assert f"fast is disqualified: {results.disqualified['fast'][:20]}" in " ".join(report.terminal().split())
    # What was proven before no longer counts, except where another step may have memory enough.
    assert ("fast" in record.disqualified_engines(CPU)) == (fault is not faults.out_of_memory)
    assert ("takes Ultralytics' own step" in report.verdicts[0]) == (fault is not faults.out_of_memory)
    monkeypatch.undo()


def test_one_engine_does_not_suffer_for_another(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(timing, "use_kernels", lambda leaf, is_trial: None)  # "triton" takes the steps of the fast one

    def run(engine, *args, stock=child.run_engine):
        with monkeypatch.context() as patched:
            if engine == "fast":
                patched.setattr(fast, "fast_step", faults.step_with(faults.out_of_memory))
            return stock(engine, *args)

    monkeypatch.setattr(child, "run_engine", run)
    monkeypatch.setattr(kernels, "missing", lambda device: None)
    _, results, _ = measured(tmp_path, engines="reference,fast,triton")
    assert list(results.disqualified) == ["fast"] and list(entries()[0]["engines"]) == ["triton"]


def test_a_case_for_which_the_host_has_no_memory_is_skipped(tmp_path, in_process, monkeypatch):
    def step(*args, amp):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(timing, "timed_step", step)
    _, results, report = measured(tmp_path)
    assert not results.disqualified and not record.disqualified_engines(CPU)
    assert "2x3 is skipped: the host's own step is out of memory." in report.terminal()


def test_a_failure_of_the_host_is_not_held_against_an_engine(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(timing, "timed_step", lambda *args, **kwargs: [][0])
    _, results, report = measured(tmp_path)
    assert not results.disqualified and not record.disqualified_engines(CPU) and entries() == []
    said = " ".join(report.terminal().split())
    assert "2x3 is skipped: the host's own step fails: IndexError: list index out of range." in said


def test_what_a_busy_machine_times_is_not_recorded(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(timing, "MAX_SPREAD", -1.0)
    _, results, report = measured(tmp_path)
    assert not results.disqualified and entries() == [] and "the machine was busy" in report.terminal()
    assert "The machine was too busy: `loss_engine=auto` stays what it was." in report.verdicts


def test_kernels_that_cannot_run_here_are_named_and_nothing_is_held_against_them(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda device: "the kernels need a GPU, and the device is cpu")
    _, results, _ = measured(tmp_path, engines="fast,triton")
    assert results.disqualified == {"triton": "the kernels need a GPU, and the device is cpu"}
    assert {name for name, _ in in_process} == {"fast"} and not record.disqualified_engines(CPU)


def test_stock_alone_shows_the_noise_and_writes_no_record(tmp_path, in_process):
    _, _, report = measured(tmp_path, engines="reference")
    assert in_process == [("reference", "2x3")] and entries() == []
    assert "No engine is proven" in report.terminal()


ALL = {"all": True, "model": "yolov8n.yaml", "objects": [3, 7], "batch": 1, "name": "everything"}


@pytest.mark.slow
def test_everything_in_one_go_is_resumed_by_case(tmp_path, in_process, monkeypatch):
    names = ["1x3", "1x7", "4x3", "4x7", "8-xview", "train-yolov8n-1x7"]
    taken = []

    def step(criterion, problem, amp, stock=timing.timed_step):
        taken.append(1)
        if len(taken) == 9:  # in the second case
            raise KeyboardInterrupt
        return stock(criterion, problem, amp)

    monkeypatch.setattr(timing, "timed_step", step)
    with pytest.raises(KeyboardInterrupt), Log() as log:
        measured(tmp_path, **ALL)
    assert "the same command with name=everything continues" in log.text
    finished = {file.name for file in (tmp_path / "runs" / "everything" / "cases").glob("*.fast.json")}
    assert finished == {"1x3.fast.json"} and in_process == [("fast", name) for name in names]
    before = json.loads((tmp_path / "runs" / "everything" / "cases" / "1x3.fast.json").read_text())
    folder, results, _ = measured(tmp_path, **ALL)
    after = results.cases[0][1]["fast"]
    assert folder.name == "everything" and {key: after[key] for key in before} == before
    assert "stock_mib" in after and "stock_mib" not in before  # memory comes last
    assert [work.name for work, by_name in results.cases if by_name] == names
    in_process.clear()
    measured(tmp_path, **ALL)
    assert in_process == []
    with pytest.raises(LossPlugError, match="name=everything is a bench with other keys, or of another machine"):
        measured(tmp_path, **{**ALL, "objects": [3]})


@pytest.mark.slow
def test_a_result_that_was_cut_off_is_measured_again(tmp_path, in_process):
    folder, *_ = measured(tmp_path, name="cut")
    (folder / "cases" / "2x3.fast.json").write_text('{"elements":')
    in_process.clear()
    _, results, _ = measured(tmp_path, name="cut")
    assert in_process == [("fast", "2x3")] and not results.disqualified and not record.disqualified_engines(CPU)


def test_a_record_that_cannot_be_written_is_said_first(tmp_path, in_process):
    record.file().mkdir(parents=True)
    refuses(r"lossplug_engines\.json cannot be written: .*or set YOLO_CONFIG_DIR", measured, tmp_path)
    assert in_process == [] and not (tmp_path / "runs").exists()


def works(device="cpu", **keys):
    return bench._works({**bench.DEFAULTS, **keys}, device, ["fast"])


def test_what_a_gpu_is_judged_by():
    found = works("cuda", all=True)
    steps = [work for work in found if work.kind == STEP]
    assert {(work.batch, work.objects) for work in steps} == {
        *((batch, n) for batch in (16, 64) for n in (7, 30, 100, 300, 1000)),
        (128, problems.XVIEW),
    }
    assert all(work.amp for work in found) and not any(work.amp for work in works("cuda", all=True, amp=False))
    assert [work.name for work in found if work.kind == CLASS_KERNELS] == [CLASS_KERNELS]
    assert {(work.model, work.objects) for work in found if work.kind == TRAIN} == {
        (f"yolov8{size}.yaml", n) for size in "ns" for n in (7, 300)
    }
    assert [work.objects for work in works()] == [7, 30, 300] and not any(work.amp for work in works(amp=True))
    assert bench.is_fit("triton", found[-1]) and not bench.is_fit(
        "fast", next(w for w in found if w.kind == CLASS_KERNELS)
    )


def test_tables_of_a_gpu():
    """Launches, waits and bandwidth; the numbers are made up."""
    work = Work("16x7", STEP, "yolov8n.yaml", 16, 640, 7, None, True)
    rate = work._replace(name=CLASS_KERNELS, kind=CLASS_KERNELS)
    gpu = {"device_ms": 1.0, "launches": 500, "syncs": 7}
    result = {
        **{
            **{"objects": 112, "anchors": 134400, "elements": 940800, "dtype": "float16", "baseline": ""},
            **{"is_steady": False, "pairs": 5},
        },
        **{"stock_ms": [1.0, 2.0, 3.0], "ours_ms": [0.5, 1.0, 1.5], "ratio": [1.5, 2.0, 2.5]},
        "latency": {"stock_ms": [3.0, 4.0, 5.0], "ours_ms": [2.0, 3.0, 4.0]},
        "exchanged": 2,
        **{"stock_gpu": gpu, "ours_gpu": {**gpu, "launches": 11, "syncs": 0}, "stock_mib": None, "ours_mib": None},
    }
    rates = {"rates": {"bce": {"copy": 2.5, "forward": 0.8, "backward": 0.75}}}
    cases = ((work, {"fast": result, "triton": result}), (rate, {"triton": rates}))
    results = EngineResults(cases, {}, {}, record.record_key(CPU), "2026-01-02", "lossplug bench", record.file())
    said = engines_report(results).terminal()
    rows = [" ".join(line.split()) for line in said.splitlines()]
    for row in ("16 × 7 stock 4.00 1.00 500 7", "16 × 7 triton 3.00 1.00 11 0", "bce 2.50 80 % 75 %"):
        assert row in rows
    assert "quartiles more than 30 % apart" in said
    assert "16x7: triton exchanged 2 anchors of equal metric, up to rounding." in said


def test_a_mistake_is_named_before_anything_is_measured(tmp_path):
    for keys, message in (
        ({"objects": "many"}, "objects=many must be numbers of objects per image, each once"),
        ({"objects": 7, "data": "x.yaml"}, "objects=7 has no effect with data="),
        ({"engines": "fast,tritn"}, "'tritn' is unknown. Did you mean 'triton'?"),
        ({"batch": 0}, "batch=0 must be a whole number, at least 1"),
        ({"imgsz": 100}, "imgsz=100 must be a multiple of 32"),
        ({"loss": "eiou"}, "loss=eiou cannot be given to bench. Remove it."),
        ({"objekts": 3}, "objekts=3 cannot be given to bench. Did you mean 'objects'?"),
        ({"all": "yes"}, "all=yes must be True or False"),
        ({"adopt": True}, "adopt=True cannot be given to bench. Train with loss_engine=fast instead"),
        ({"limit": -1}, "limit=-1 must be a number, at least 1"),
        ({"device": "0,1"}, "names several: bench measures on one"),
        ({"device": "17"}, "device=17 is not available"),
        ({"model": "yolov8n-cls.yaml"}, "is of task=classify; bench measures those of detect, segment, pose, obb"),
        ({"model": "yolov8n-seg.yaml", "task": "obb"}, "is of task=segment, not of task=obb. Remove one"),
        ({"task": "classify"}, "task=classify cannot be measured: bench takes detect, segment, pose, obb"),
        ({"task": "obb", "engines": "triton"}, "engines=triton"),
        ({"model": "yolo26n-pose.yaml"}, "has keypoint terms that read other outputs"),
        ({"model": "nowhere.yaml"}, "model=nowhere.yaml cannot be used: "),
        ({"data": "nowhere.yaml"}, "data=nowhere.yaml"),
    ):
        refuses(re.escape(message), bench.bench, {"device": "cpu", "project": str(tmp_path / "runs"), **keys})
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("task", [slow("segment"), slow("pose"), "obb"])
def test_steps_of_other_tasks_are_proven_and_timed_without_a_record(task, in_process, tmp_path):
    for refused in (task, "detect"):
        record.add((), record.record_key(CPU), {"fast": f"it hangs in {refused}"}, "2026-01-01", refused)
    folder, results, report = measured(tmp_path, task=task)
    assert [*record.disqualified_engines(CPU).values()] == ["lossplug bench, 2026-01-01: it hangs in detect"]
    assert in_process == [("fast", "2x3")] and not results.entries and not results.disqualified
    made = read_case(folder)
    assert made["task"] == task and made["ratio"][1] > 0 and "stays what it was" in report.markdown()


def read_case(folder):
    (case,) = json.loads((folder / "results.json").read_text())["cases"]
    return case["engines"]["fast"]


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_a_step_of_another_task_that_is_off_is_found_out(task, monkeypatch):
    model = bench_cases.model_of(bench_cases.TASK_MODELS[task])
    one = problems.drawn_task_problem(task, problems.ObjectSpec(2, 5), 0, head=bench_cases.head_of(model, 128))
    stock, ours = (timing.engine_criterion(model, name) for name in ("reference", "fast"))
    assert timing.engine_agreement(stock, ours, one).differs == []
    ours.hyp = type(ours.hyp)(**{**vars(ours.hyp), "box": 7.6})
    assert "loss" in timing.engine_agreement(stock, ours, one).differs[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("killed", "its process was killed by SIGSEGV (case 2x3)"),
        ("hanging", "took no step for 2 s (case 2x3)"),
    ],
)
def test_after_a_process_with_a_fault_the_others_continue(tmp_path, monkeypatch, fault, why):
    monkeypatch.setattr(child, "job_command", lambda job: [sys.executable, "-m", "tests.tools.faults", fault, str(job)])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(child, "START_SECONDS", 60.0)
    _, results, _ = measured(tmp_path, limit=2 if fault == "hanging" else 240)
    assert results.disqualified["fast"].startswith(why)


@pytest.mark.slow
def test_the_command_with_interpreted_kernels(tmp_path):
    words = ["bench", "engines=reference,triton", "imgsz=64", "batch=2", "device=cpu"]
    environment = {"YOLO_CONFIG_DIR": str(tmp_path), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "yolo_lossplug", *words, f"project={tmp_path}"]
    said = run(command, tmp_path, environment).stdout
    assert re.search(r"^2 × 7 +triton +\d", said, re.MULTILINE) and "disqualified" not in said and "interpreter" in said
    (file,) = tmp_path.rglob("results.json")
    assert json.loads(file.read_text())["triton"].endswith("interpreted")


# Parts.


def test_steps_are_fair_warmed_up_and_of_equal_batches(monkeypatch):
    head = problems.Head(imgsz=64)
    one, other = (problems.drawn_problem(problems.ObjectSpec(4, 20), 3, head=head) for _ in range(2))
    assert torch.equal(one.scores, other.scores) and torch.equal(one.batch["bboxes"], other.batch["bboxes"])
    assert one.n_objects == 80 and one.scores.shape == (4, 80, 84) and one.boxes.shape == (4, 64, 84)
    skewed = problems.drawn_problem(problems.ObjectSpec(4, -50), 0, head=head)
    assert skewed.most_objects == 50 and skewed.n_objects < 150
    crowd = problems.object_counts(problems.ObjectSpec(128, problems.XVIEW), torch.Generator().manual_seed(0))
    assert int(crowd.sum()) == 75357 and int(crowd.max()) == 4967 and int(crowd.min()) >= 1
    assert problems.drawn_problem(problems.ObjectSpec(2, 0), 0, head=head).most_objects == 0
    values = torch.zeros(1, 84)
    values[0, 50] = 1
    with timing.gpu_ties():
        assert torch.topk(values, 4, dim=-1, largest=True).indices.tolist() == [[50, 0, 1, 2]]
    assert torch.topk.__module__ != timing.__name__
    seen = []
    _, times = timing.alternate(("a", "b"), [0, 1, 2], 4, 0, lambda side, _: seen.append(side) or 1.0)
    assert "".join(seen) == "ab" + "abbaabba" and times == ([1.0] * 4, [1.0] * 4)
    seen = []
    _, times = timing.alternate(("a", "b"), [0], 1, 0, lambda side, _: seen.append(side) or 1.0, warm_up=0.01)
    assert len(seen) > 4 and times == ([1.0], [1.0])
    model = bench_cases.model_of("yolov8n.yaml")
    one = problems.drawn_problem(problems.ObjectSpec(1, 3), 0, head=problems.Head(imgsz=64))
    criterion, taken = timing.engine_criterion(model, "reference"), []

    def counted(preds, batch):
        taken.append(preds["scores"].grad)
        return criterion(preds, batch)

    monkeypatch.setattr(timing, "branches", lambda criterion: [("main", criterion)])
    assert timing.queued_seconds(counted, one, n=3) > 0
    assert taken == [None] * 3  # as after `zero_grad`


def test_the_host_goes_image_by_image_where_its_tensors_do_not_fit(monkeypatch):
    model = bench_cases.model_of("yolov8n.yaml")
    head = problems.Head(imgsz=128)
    one = problems.drawn_problem(problems.ObjectSpec(2, 20), 0, head=head)
    stock, spared = (timing.engine_criterion(model, "reference") for _ in range(2))
    assert not gauges.spare_memory(spared, one)
    monkeypatch.setattr(gauges, "available_memory", lambda: 1000.0)
    assert gauges.spare_memory(spared, one) and type(spared.assigner) is gauges.OneImageAtATime
    assert timing.engine_agreement(stock, spared, one).differs == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says it")
def test_memory_of_a_step_holds_its_gradients():
    model = bench_cases.model_of("yolov8n.yaml")
    one = problems.drawn_problem(problems.ObjectSpec(8, 30), 0)
    stock, fast_one = (gauges.memory_of(timing.engine_criterion(model, name), one) for name in ("reference", "fast"))
    assert stock["gradients"] == fast_one["gradients"] == pytest.approx(8 * 144 * 8400 * 4 / 2**20)
    assert stock["step"] > fast_one["step"] > 0.9 * fast_one["gradients"]
