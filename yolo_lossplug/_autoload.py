# SPDX-License-Identifier: AGPL-3.0-or-later
"""The start-up hook: waits for Ultralytics to be imported, and does nothing until then.

Python runs `start` at every start (see `yolo_lossplug.pth`), so this module imports nothing but `os`, `sys` and the
built-in `_thread`, which are loaded already, never raises and never prints. `YOLO_LOSSPLUG=0` switches it off.
"""

import _thread
import os
import sys

_NAMES = """utils utils.checks utils.torch_utils utils.dist utils.nms utils.ops cfg data.utils data.dataset nn.tasks
engine.model engine.trainer engine.tuner models.yolo.detect.predict models.yolo.detect.val models.yolo.detect.train
models.yolo.segment.val models.yolo.pose.val models.rtdetr.val"""
WATCHED = tuple(f"ultralytics.{name}" for name in _NAMES.split())
problem = ""
"""Why the plugin could not be enabled on this release of Ultralytics, empty if it could."""


class _Loader:
    """Loads a module as its own loader does, then lets the plugin change it."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        for owner, attribute in ((module.__spec__, "loader"), (module, "__loader__")):
            if getattr(owner, attribute, None) is self:  # a hook that was asked before us has put its own there
                setattr(owner, attribute, self._loader)
        self._loader.exec_module(module)
        _apply(module)

    def __getattr__(self, name):
        if name == "_loader":  # a copy is asked for attributes before it has any
            raise AttributeError(name)
        return getattr(self._loader, name)


class _Finder:
    """Finds the watched modules where everybody else would find them."""

    def __init__(self):
        self._asking = set()

    def find_spec(self, name, path=None, target=None):
        if name not in WATCHED:
            return None
        question = _thread.get_ident(), name
        if question in self._asking:  # another hook asks everybody but itself, us too, while we ask it
            return None
        self._asking.add(question)
        try:
            for finder in self._later():
                find_spec = getattr(finder, "find_spec", None)
                spec = find_spec(name, path, target) if find_spec else None
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loader(spec.loader)
                    return spec
            return None
        finally:
            self._asking.discard(question)

    def _later(self):
        """Return the finders behind this one: those before it have passed, or are asking right now."""
        finders = list(sys.meta_path)
        own = [position for position, finder in enumerate(finders) if isinstance(finder, _Finder)]
        return finders[own[-1] + 1 :] if own else finders


def start():
    """Enable the plugin unless `YOLO_LOSSPLUG=0`; what Python calls when it starts."""
    if not is_switched_off():
        install()


def is_switched_off():
    """Return whether the environment says so."""
    return os.environ.get("YOLO_LOSSPLUG", "").strip().lower() in ("0", "false", "no", "off")


def install():
    """Change what is imported of Ultralytics already, and watch for the rest. A second call does nothing."""
    global problem
    if is_installed():
        return
    problem = ""
    sys.meta_path.insert(0, _Finder())
    for name in WATCHED:
        module = sys.modules.get(name)
        if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
            _apply(module)


def uninstall():
    """Undo every change, and stop watching. A second call does nothing."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    patches = sys.modules.get("yolo_lossplug.ultralytics_hook.patches")
    if patches is not None:
        patches.revert()


def is_installed():
    """Return whether the plugin is enabled."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def _apply(module):
    if not is_installed():
        return
    try:
        from yolo_lossplug.ultralytics_hook import compatibility, patches

        reason = compatibility.unsupported(sys.modules["ultralytics"].__version__)
        if not reason:
            patches.apply(module)
    except Exception as error:  # plain Ultralytics must go on working whatever has happened here
        reason = error
    if reason:
        give_up(reason)
        sys.modules.pop("yolo_lossplug", None)  # so that the next `import yolo_lossplug` runs, and says why


def give_up(reason):
    """Undo every change, and keep the reason, words or an error, as `problem`."""
    global problem
    problem = reason if isinstance(reason, str) else _words(reason)
    try:
        uninstall()
    except Exception as error:
        problem = f"{problem}; undoing it failed: {_words(error)}"


def _words(error):
    """Return an error as words: ours are sentences, and the name of any other is part of what it says."""
    is_ours = type(error).__module__.partition(".")[0] == "yolo_lossplug"
    return str(error).rstrip(".") if is_ours else f"unexpected {type(error).__name__}: {error}"
