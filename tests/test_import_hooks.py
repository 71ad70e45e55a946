# SPDX-License-Identifier: AGPL-3.0-or-later
"""The start-up hook beside import hooks of others: every module is loaded once, by them and by us."""

import itertools

import pytest

from tests.runs import ROOT, python

HOST = ("utils", "cfg", "nn.tasks", "engine.trainer")
PREPARE = """
import builtins, importlib.util, sys, threading
import yolo_lossplug._autoload as ours

sys.path.insert(0, {host!r})
builtins.executed, applied = [], []
ours._apply = lambda module: applied.append(module.__name__)
(own,) = [finder for finder in sys.meta_path if isinstance(finder, ours._Finder)]


class Loader:
    def __init__(self, loader, seen):
        self.loader, self.seen = loader, seen

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.seen.append(module.__name__)


class Asking:
    \"\"\"Asks every other finder but itself, and knows nothing of being asked while it asks.\"\"\"

    def __init__(self):
        self.seen = []

    def find_spec(self, name, path=None, target=None):
        if not name.startswith("ultralytics."):
            return None
        for finder in sys.meta_path:
            if finder is not self:
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    spec.loader = Loader(spec.loader, self.seen)
                    return spec


class Starting:
    \"\"\"Starts from the first finder again, and passes when it is asked while it asks.\"\"\"

    def __init__(self):
        self.seen, self.asking = [], set()

    def find_spec(self, name, path=None, target=None):
        question = threading.get_ident(), name
        if not name.startswith("ultralytics.") or question in self.asking:
            return None
        self.asking.add(question)
        spec = importlib.util.find_spec(name)
        self.asking.discard(question)
        spec.loader = Loader(spec.loader, self.seen)
        return spec


class Nesting(Asking):
    \"\"\"Imports another watched module before it finds one.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name == "ultralytics.nn.tasks":
            import ultralytics.engine.trainer
        return super().find_spec(name, path, target)


finders = dict(own=own, asking=Asking(), starting=Starting(), nesting=Nesting())
sys.meta_path.remove(own)
stock = list(sys.meta_path)
"""
IMPORT = """
import ultralytics.utils, ultralytics.cfg, ultralytics.nn.tasks, ultralytics.engine.trainer
"""
CHECK = """
modules = sorted("ultralytics." + name for name in {names!r})
assert sorted(name for name in executed if name in modules) == modules, executed
assert sorted(applied) == modules, applied
theirs = [finder for name, finder in finders.items() if name != "own" and finder in sys.meta_path]
for finder in theirs:
    seen = [module for module in finder.seen if module in modules]
    assert set(seen) == set(modules), seen
    assert len(theirs) > 1 or len(seen) == len(modules), seen  # two of others load twice without us, too
assert not own._asking
print("LOADED ONCE")
"""
ORDERS = [
    order
    for others in (["asking"], ["starting"], ["nesting"], ["asking", "starting"])
    for order in itertools.permutations(["own", *others])
]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A package named like the host, whose modules note that they are executed."""
    folder = tmp_path_factory.mktemp("host")
    for name in HOST:
        file = folder.joinpath("ultralytics", *name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        for package in (file.parent, folder / "ultralytics"):
            (package / "__init__.py").touch()
        file.write_text("import builtins, time\nbuiltins.executed.append(__name__)\ntime.sleep(0.01)\n")
    return str(folder)


def imported(host, cwd, arrange, code=IMPORT):
    source = PREPARE.format(host=host) + arrange + code + CHECK.format(names=HOST)
    return python(source, cwd=cwd).stdout


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_hooks_before_and_behind_ours(order, host, tmp_path):
    arrange = f"sys.meta_path[:] = [*(finders[name] for name in {order!r}), *stock]"
    assert "LOADED ONCE" in imported(host, tmp_path, arrange)


@pytest.mark.parametrize("order", [("own", "asking"), ("asking", "own"), ("starting", "own")], ids="-".join)
def test_hooks_in_threads(order, host, tmp_path):
    """Threads that import the same modules at once, while others only look for them."""
    arrange = f"sys.setswitchinterval(1e-6); sys.meta_path[:] = [*(finders[name] for name in {order!r}), *stock]"
    code = """
failures = []
def work(number):
    names = ["ultralytics.utils", "ultralytics.cfg", "ultralytics.nn.tasks", "ultralytics.engine.trainer"]
    try:
        for name in names[number % 4 :] + names[: number % 4]:
            importlib.util.find_spec(name) if number % 2 else importlib.import_module(name)
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failures, failures
"""
    assert "LOADED ONCE" in imported(host, tmp_path, arrange, code)


def test_a_hook_behind_all_others_or_one_that_wraps_ours(host, tmp_path):
    """It is not asked for what others find, and is no hindrance."""
    arrange = "sys.meta_path[:] = [own, *stock, finders.pop('asking')]"
    assert "LOADED ONCE" in imported(host, tmp_path, arrange)
    # Something that stands in our place and hands on what it is asked.
    arrange = """
class Wrapper:
    def find_spec(self, *args):
        return own.find_spec(*args)
sys.meta_path[:] = [Wrapper(), *stock]
"""
    assert "LOADED ONCE" in imported(host, tmp_path, arrange)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["0", "1", "len(sys.meta_path)"])
def test_the_real_host_beside_a_second_hook(place, tmp_path):
    code = f"""
import sys
class Asking:
    def find_spec(self, name, path=None, target=None):
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        return next((spec for spec in specs if spec is not None), None)
sys.meta_path.insert({place}, Asking())
import ultralytics.engine.trainer, yolo_lossplug
from ultralytics.cfg import get_cfg
print(yolo_lossplug.is_enabled(), get_cfg(overrides={{"loss": "eiou"}}).loss)
"""
    assert python(code, cwd=tmp_path).stdout.split()[-2:] == ["True", "eiou"]


@pytest.mark.slow
def test_a_loader_can_be_copied(tmp_path):
    code = """
import copy, importlib.util, yolo_lossplug
spec = importlib.util.find_spec("ultralytics.cfg")
print(type(copy.copy(spec.loader)).__name__, copy.deepcopy(spec).loader.name)
"""
    assert python(code, cwd=tmp_path).stdout.split() == ["_Loader", "ultralytics.cfg"]


HOOK = ROOT / "yolo_lossplug" / "ultralytics_hook"
FIRST = sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in HOOK.glob("*.py"))
ORDER = """
import importlib, sys
sys.path[:0] = [{root!r}]
import ultralytics
for name in {names!r}:
    for module in [m for m in sys.modules if m.partition(".")[0] in ("ultralytics", "yolo_lossplug")]:
        del sys.modules[module]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "yolo_lossplug._autoload"]
    import ultralytics
    importlib.import_module(name)
    from ultralytics.cfg import get_cfg
    import yolo_lossplug
    assert yolo_lossplug.is_enabled(), (name, yolo_lossplug._autoload.problem)
    assert yolo_lossplug.ultralytics_hook is sys.modules["yolo_lossplug.ultralytics_hook"], name
"""


@pytest.mark.slow
def test_any_module_of_ours_may_be_imported_first(tmp_path):
    """Ultralytics' modules are changed at their import, by functions of modules that may be on their way in."""
    names = [name for name in FIRST if not name.endswith("__init__")] + ["yolo_lossplug.tools.arguments"]
    python(ORDER.format(root=str(ROOT), names=names), cwd=tmp_path)
