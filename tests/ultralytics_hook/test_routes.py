# SPDX-License-Identifier: AGPL-3.0-or-later
"""The routes that lead through other processes: command line, resume, workers, tuning, a life without the plugin."""

import pickletools
import shutil
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics import cfg

from tests.runs import ABSENT, PLACE, ROOT, TINY, WITHOUT_PLUGIN, interrupt, python, results, run, train, yolo
from yolo_lossplug.selection.keys import keys as all_keys

pytestmark = pytest.mark.slow
BANNER = "LossPlug: "


def banner(text):
    (line,) = [line for line in text.replace("\x1b[0m", "").splitlines() if f"{BANNER}box " in line]
    return line


def test_one_number_for_number_stock_run(data, tmp_path):
    """A seeded run with weights that move: switched off, installed but unused, and with the stock loss named."""
    rows = []
    train(data=data, project=str(tmp_path))  # the dataset's cache is there
    for name, env, keys in (("off", ABSENT, {}), ("unused", {}, {}), ("named", {}, {"loss": "ciou"})):
        words = ["train", "model=yolov8n.yaml", f"project={tmp_path}", f"name={name}"]
        yolo(*words, cwd=tmp_path, env=env, data=data, **{**TINY, "epochs": 2, "mosaic": 1.0, **keys})
        rows.append(results(tmp_path / name))
    assert rows[0] == rows[1] == rows[2]
    recorded = [yaml.safe_load((tmp_path / name / "args.yaml").read_text()) for name in ("off", "unused")]
    for args in recorded:
        for key in ("name", "save_dir"):
            del args[key]
    assert recorded[0] == recorded[1]


IMPORTS = {
    "not at all": "from ultralytics import YOLO",
    "before": "import yolo_lossplug; from ultralytics import YOLO",
    "after a model": "from ultralytics import YOLO; YOLO('yolov8n.yaml'); import yolo_lossplug",
}


@pytest.mark.parametrize("order", IMPORTS)
def test_python_imports(order, tmp_path):
    """Without the start-up hook (-S) the import alone is enough, in any order; with the hook, no import is needed."""
    hook = order == "not at all"
    path = "" if hook else f"import sys; sys.path[:] = {[PLACE, *(p for p in sys.path if p != str(ROOT))]!r}\n"
    code = (
        f"{path}import sys\nassert ('yolo_lossplug' in sys.modules) is {hook}\n{IMPORTS[order]}\n"
        "try:\n    YOLO('yolov8n.yaml').train(data='none.yaml', loss='eiuo')\n"
        "except ValueError as error:\n    print(type(error).__name__, error)\n"
    )
    done = python(code, cwd=tmp_path, flags=[] if hook else ["-S"])
    assert "LossPlugError loss=eiuo is unknown. Did you mean 'eiou'?" in done.stdout


def copy_of_run(folder, target):
    """Copy last.pt of a run, so that it is resumed in another folder, the one above the copy's."""
    checkpoint = torch.load(folder / "weights" / "last.pt", map_location="cpu", weights_only=False)
    checkpoint["train_args"]["save_dir"] = str(target.parent)
    torch.save(checkpoint, target / "last.pt")
    return target / "last.pt"


def test_resume_brings_the_choice_back(interrupted, tmp_path):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    last = copy_of_run(folder, folder / "weights")
    before = results(folder)
    assert len(before) == 1
    done = yolo("train", f"model={last}", "resume=True", "loss=giou", "tal_topk=9", cwd=tmp_path)
    line = banner(done.stdout)
    assert "box focal-eiou(focal_gamma=0.4) · class qfl(cls_qfl_beta=2.0) · assigner tal(topk=7" in line
    ignored = "loss=giou, tal_topk=9 are ignored: a resumed run goes on with loss=focal-eiou, tal_topk=7."
    assert done.stdout.count(ignored) == 1 and "Resume ignores" not in done.stdout
    after = results(folder)
    assert len(after) == 3 and after[0] == before[0]


def test_resume_of_an_end_to_end_head(data, tmp_path):
    folder = interrupt("yolov10n.yaml", data=data, project=tmp_path, loss="eiou", tal_topk=6)
    code = (
        "import sys\nfrom ultralytics import YOLO\n"
        "def show(trainer):\n"
        "    c = trainer.model.criterion\n"
        "    parts = c.one2many, c.one2one\n"
        "    print('PARTS', [p.bbox_loss.loss.name for p in parts], [p.assigner.topk for p in parts], c.updates)\n"
        "model = YOLO(sys.argv[1])\nmodel.add_callback('on_train_start', show)\nmodel.train(resume=True)\n"
    )
    done = python(code, folder / "weights" / "last.pt", cwd=tmp_path)
    assert "PARTS ['eiou', 'eiou'] [6, 7] 1" in done.stdout


def globals_of(checkpoint):
    """Return every word that unpickling a checkpoint would read, names of modules among them."""
    with zipfile.ZipFile(checkpoint) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        pickled = archive.read(name)
    return {str(arg) for _, arg, _ in pickletools.genops(pickled) if isinstance(arg, str)}


def test_checkpoints_hold_nothing_of_ours(interrupted, interrupted_stock):
    for folder in (interrupted, interrupted_stock):
        for file in (folder / "weights").glob("*.pt"):
            words = globals_of(file)
            assert not [word for word in words if "lossplug" in word.lower()]
    stock_words = globals_of(interrupted_stock / "weights" / "last.pt")
    assert not stock_words & set(all_keys())


USE = """
import sys
from ultralytics import YOLO
last, data, project = sys.argv[1:]
model = YOLO(last)
model.predict(data.replace('.yaml', '') and project + '/image.png', imgsz=64, verbose=False)
print('MAP', model.val(data=data, imgsz=64, plots=False, project=project, workers=0).box.map)
print('EXPORTED', model.export(format='torchscript', imgsz=64))
YOLO(last).train(data=data, epochs=1, imgsz=64, batch=4, workers=0, plots=False, project=project, name='tuned')
print('TUNED')
"""


def test_a_checkpoint_lives_without_the_plugin(interrupted, data, tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), np.full((64, 64, 3), 99, np.uint8))
    copy = tmp_path / "copy.pt"
    copy.write_bytes((interrupted / "weights" / "last.pt").read_bytes())
    done = python(WITHOUT_PLUGIN + USE, copy, data, tmp_path, cwd=tmp_path, env=ABSENT)
    for word in ("MAP", "EXPORTED", "TUNED"):
        assert word in done.stdout
    assert BANNER not in done.stdout and "AutoInstall" not in done.stdout


RESUME = "import sys\nfrom ultralytics import YOLO\nYOLO(sys.argv[1]).train(resume=True)\nprint('RESUMED')"


def test_a_run_resumes_without_the_plugin_only_as_stock(interrupted_stock, tmp_path, interrupted):
    last = copy_of_run(interrupted_stock, tmp_path)
    done = python(WITHOUT_PLUGIN + RESUME, last, cwd=tmp_path, env=ABSENT)
    assert "RESUMED" in done.stdout
    # One with our loss would go on with another.
    last = copy_of_run(interrupted, tmp_path)
    done = python(WITHOUT_PLUGIN + RESUME, last, cwd=tmp_path, env=ABSENT, check=False)
    assert done.returncode != 0 and "RESUMED" not in done.stdout
    assert "is not a valid YOLO argument" in done.stdout


def test_several_datasets_by_the_command_of_the_host(data, other_data, tmp_path):
    """Without a trainer class, every dataset is trained in a process of its own."""
    code = (
        "import sys\nfrom ultralytics import YOLO\n"
        "print(YOLO('yolov8n.yaml').train(data=sys.argv[1].split(','), **eval(sys.argv[2])))\n"
    )
    keys = {**TINY, "project": str(tmp_path), "loss": "eiou"}
    done = python(code, f"{data},{other_data}", repr(keys), cwd=tmp_path)
    assert done.stdout.count("box eiou") == 2
    assert sorted(results(file.parent)[-1]["epoch"] for file in tmp_path.rglob("results.csv")) == [1, 1]


def test_tune(data, tmp_path):
    """The tuner writes every key of the configuration into the command of each run."""
    code = "import sys\nfrom ultralytics import YOLO\nYOLO('yolov8n.yaml').tune(**eval(sys.argv[1]))"
    for space, said, count in (({"tal_topk": (8, 15)}, "assigner tal(topk=", 1), ({"lr0": (1e-4, 1e-3)}, BANNER, 0)):
        keys = {**TINY, "data": data, "project": str(tmp_path), "iterations": 1, "space": space}
        done = python(code, repr(keys), cwd=tmp_path)
        assert done.stdout.count(said) == count and "1/1 iterations complete" in done.stdout, space


def test_own_loss_on_the_command_line(data, tmp_path):
    words = ["train", "model=yolov8n.yaml", f"loss={ROOT / 'examples' / 'own_loss.py'}:log_cosh", "log_cosh_scale=3"]
    done = yolo(*words, cwd=tmp_path, data=data, project=tmp_path, **TINY)
    assert ":log_cosh(log_cosh_scale=3.0)" in banner(done.stdout)
    for word, message in {
        "log_cosh_scale=-3": "log_cosh_scale=-3 is out of range; it must be in",
        "log_cosh_scal=3": "log_cosh_scal=3 is unknown. Did you mean 'log_cosh_scale'",
    }.items():
        with pytest.raises(SystemExit, match=f"LossPlug: {message}"):
            cfg.entrypoint(" ".join(["yolo", *words[:-1], word, f"data={data}"]))


EXAMPLES = {
    "train": ["ciou: mAP50", "focal-eiou: mAP50"],
    "own_loss": ["box log-cosh(log_cosh_scale=2.0)"],
    "compare seeds=1": ["2 of 2 runs finished", "## Metrics", "| `eiou` |"],
    "tune iterations=2": ["box focal-eiou(focal_gamma=0.5)", "2/2 iterations complete", "Best fitness"],
    "tune iterations=2 use_ray=True": ["box focal-eiou(focal_gamma=", "focal_gamma=", "box="],
}


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples(command, tmp_path):
    example, *more = command.split()
    if "use_ray=True" in more:
        pytest.importorskip("ray.tune", reason="Ray is in the extra 'ray': pip install -e '.[ray]'")
    words = ["epochs=1", "imgsz=64", f"project={tmp_path}", "device=cpu", "fraction=0.2", *more]
    done = run([sys.executable, str(ROOT / "examples" / f"{example}.py"), *words], cwd=tmp_path)
    assert BANNER in done.stdout
    for text in EXAMPLES[command]:
        assert text in done.stdout
    lines = (ROOT / "examples" / f"{example}.py").read_text().splitlines()
    assert len(lines) <= 42


SHIM = '''
import importlib.abc, importlib.util, os, sys
if "LOCAL_RANK" in os.environ:
    import torch
    import torch.distributed

    def on_two_cpus(trainer_module):
        """What a machine with two GPUs does, on CPU: gloo, and a model that is not moved."""
        base, world = trainer_module.BaseTrainer, int(os.environ["WORLD_SIZE"])
        init, callbacks = base.__init__, base.run_callbacks

        def __init__(self, *args, **kwargs):
            init(self, *args, **kwargs)
            self.world_size, self.ddp = world, False

        def _setup_ddp(self, *args):
            self.device = torch.device("cpu")
            torch.distributed.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=world)

        def run_callbacks(self, event):
            callbacks(self, event)
            if event == "on_fit_epoch_end":
                from yolo_lossplug.ultralytics_hook.running import running
                leaf, ema = self.model.module.criterion, getattr(getattr(self.ema, "ema", None), "criterion", None)
                runs = running(leaf)
                print("RANK", os.environ["RANK"], type(self.model).__name__, runs["loss"], runs["cls_loss"],
                      "EMA", ema and running(ema)["loss"], flush=True)

        base.__init__, base._setup_ddp, base.run_callbacks = __init__, _setup_ddp, run_callbacks
        base.final_eval = lambda self: None
        if "world_size" in __import__("inspect").signature(base._do_train).parameters:
            base.train = lambda self: self._do_train(world)
        parallel = torch.nn.parallel.DistributedDataParallel

        class OnCpu(parallel):
            def __init__(self, module, device_ids=None, **kwargs):
                super().__init__(module, **kwargs)

        OnCpu.__name__ = "DistributedDataParallel"
        trainer_module.nn.parallel.DistributedDataParallel = OnCpu

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name != "ultralytics.engine.trainer":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                on_two_cpus(module)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())
'''

PARENT = """
import os, subprocess, sys
import yolo_lossplug
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import dist
overrides = eval(sys.argv[1])
trainer = (RTDETRTrainer if "rtdetr" in overrides["model"] else DetectionTrainer)(overrides=overrides)
trainer.world_size, trainer.ddp = 2, True
takes_world = "world_size" in __import__("inspect").signature(dist.generate_ddp_command).parameters
command, file = dist.generate_ddp_command(*((2, trainer) if takes_world else (trainer,)))
try:
    sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": sys.argv[2], **eval(sys.argv[3])}).returncode)
finally:
    dist.ddp_cleanup(trainer, str(file))
"""


def on_two_ranks(folder, env=None, script=None, check=True, **keys):
    """Train by the host's own launcher and script with two gloo ranks, from a script or by PARENT."""
    (folder / "shim").mkdir(exist_ok=True)
    (folder / "shim" / "sitecustomize.py").write_text(SHIM)
    keys = {**TINY, "model": "yolov8n.yaml", "project": str(folder), "cls_loss": "qfl", **keys}
    command = [str(script)] if script else ["-c", PARENT]
    return run([sys.executable, *command, repr(keys), str(folder / "shim"), repr(env or {})], folder, check=check)


@pytest.mark.parametrize("hook", [True, False], ids=["with the start-up hook", "by the script alone"])
def test_two_workers(hook, data, tmp_path):
    done = on_two_ranks(tmp_path, {} if hook else {"YOLO_LOSSPLUG": "0"}, data=data, loss="eiou")
    for rank in (0, 1):
        assert f"RANK {rank} DistributedDataParallel eiou qfl(cls_qfl_beta=2.0) EMA" in done.stdout, done.stdout[-4000:]
    assert "EMA eiou" in done.stdout, "validation ran another loss"
    assert done.stdout.count("box eiou") == 1, "one banner, from the first rank"
    assert list(tmp_path.rglob("last.pt"))


def test_two_workers_of_rtdetr(data, tmp_path):
    """With a running mean, which the ranks share."""
    done = on_two_ranks(
        tmp_path, model=str(Path(__file__).with_name("rtdetr-narrow.yaml")), data=data, loss="wise-eiou"
    )
    for rank in (0, 1):
        assert f"RANK {rank} DistributedDataParallel wise-eiou(" in done.stdout, done.stdout[-4000:]
    assert "EMA wise-eiou(" in done.stdout and done.stdout.count("matcher host's") == 1


def test_a_loss_registered_by_the_users_script_reaches_the_workers(data, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from yolo_lossplug import box_loss\n\n"
        "@box_loss('of-the-script')\ndef of_the_script(pred, target):\n    return (pred - target).abs().sum(-1)\n\n"
        f"if __name__ == '__main__':\n    exec({PARENT!r})\n"
    )
    done = on_two_ranks(tmp_path, script=script, data=data, loss="of-the-script")
    assert "RANK 1 DistributedDataParallel of-the-script" in done.stdout
    script.write_text(script.read_text().replace("if __name__ == '__main__':\n    ", ""))
    done = on_two_ranks(tmp_path, script=script, check=False, data=data, loss="of-the-script")
    assert "loss=of-the-script is registered where the workers of multi-GPU training cannot load it from" in done.stdout
