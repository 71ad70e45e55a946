# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every change to Ultralytics, in one table, each with its reason and undone exactly by `revert`.

A row wraps one attribute of one module as soon as that module is imported, and not before.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

from yolo_lossplug.registry import REGISTRY, LossPlugError

MARK = "__lossplug__"


class SeamMoved(Exception):
    """This release of Ultralytics lacks an attribute that a row wraps, or has it with another signature."""


@dataclass(frozen=True)
class Patch:
    """One change to the host.

    Attributes:
        module: Module that holds the attribute.
        attribute: Dotted name inside the module; ``*.method`` means on every class there that defines the method.
        make: Makes the replacement from the original.
        reason: Why here and nowhere else.
        parameters: Leading parameters that we rely on, checked before anything is changed.
        is_optional: Whether releases without the attribute are fine without the change.
    """

    module: str
    attribute: str
    make: Callable[[Any], Any]
    reason: str
    parameters: tuple[str, ...] = ()
    is_optional: bool = False


def _known_values(stock: dict[str, Any]) -> dict[str, Any]:
    from yolo_lossplug.selection.keys import keys

    return {key: value for key, value in stock.items() if key not in keys()}


def _wrap_alignment(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def check_dict_alignment(base: dict[str, Any], custom: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        from ultralytics.utils import DEFAULT_CFG_DICT

        from yolo_lossplug.ultralytics_hook import config

        config.register_own(custom, base, DEFAULT_CFG_DICT)
        config.point_to_ours(base, custom)
        config.know(custom, base)
        stock(base, custom, *args, **kwargs)
        if config.TRAINING in base:  # only the command line adds the names of modes to the keys
            config.check_given(base, custom)

    return check_dict_alignment


def _wrap_check_cfg(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def check_cfg(cfg: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        from yolo_lossplug.ultralytics_hook import config

        stock(cfg, *args, **kwargs)
        config.check_merged(cfg)

    return check_cfg


def _wrap_entrypoint(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def entrypoint(*args: Any, **kwargs: Any) -> None:
        from yolo_lossplug.ultralytics_hook import config

        try:
            config.refuse_typed_none((*args, *kwargs.values()))
            stock(*args, **kwargs)
        except LossPlugError as error:
            raise SystemExit(f"LossPlug: {error}") from error

    return entrypoint


def _wrap_mode(stock: Callable[..., Any], mode: str) -> Callable[..., Any]:
    @functools.wraps(stock)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        from yolo_lossplug.ultralytics_hook import config, nms

        config.refuse_keys_of_training(mode, kwargs)
        nms.check(self, mode, kwargs)
        return stock(self, *args, **kwargs)

    return method


def _wrap_postprocess(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def postprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        from yolo_lossplug.ultralytics_hook import nms

        return nms.postprocess(stock, self, *args, **kwargs)

    return postprocess


def _wrap_suppression(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def non_max_suppression(*args: Any, **kwargs: Any) -> Any:
        from yolo_lossplug.ultralytics_hook import nms

        return nms.suppress(stock, *args, **kwargs)

    return non_max_suppression


def _own_command(stock: list[str]) -> list[str]:
    return [stock[0], "-m", "yolo_lossplug"]


def _wrap_init_criterion(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def init_criterion(self: Any) -> Any:
        from yolo_lossplug.ultralytics_hook import trainer

        return trainer.init_criterion(stock, self)

    setattr(init_criterion, MARK, True)
    return init_criterion


def _wrap_get_cfg(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def get_cfg(*args: Any, **kwargs: Any) -> Any:
        from yolo_lossplug.ultralytics_hook import trainer

        return trainer.settle(stock(*args, **kwargs))

    return get_cfg


def _wrap_check_resume(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def check_resume(self: Any, overrides: Any) -> None:
        from yolo_lossplug.ultralytics_hook import trainer

        stock(self, overrides)
        trainer.check(self, overrides)

    return check_resume


def _wrap_trainer_init(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from yolo_lossplug.ultralytics_hook import trainer

        stock(self, *args, **kwargs)
        trainer.join(self)

    return __init__


def _wrap_save_model(stock: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(stock, MARK):
        return stock

    @functools.wraps(stock)
    def save_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        from yolo_lossplug.ultralytics_hook import trainer
        from yolo_lossplug.ultralytics_hook.run import memory

        models = trainer.models_with_criterion(self.ema.ema)
        criteria = [vars(model).pop("criterion") for model in models]
        try:
            saved = stock(self, *args, **kwargs)
        finally:
            for model, criterion in zip(models, criteria):
                model.criterion = criterion
        memory.save(self)
        return saved

    setattr(save_model, MARK, True)
    return save_model


def wrap_own_save_model(trainer: Any) -> None:
    """Keep the criterion out of what a trainer class of the user's own writes in place of the host's checkpoints."""
    own = type(trainer).save_model
    if not hasattr(own, MARK):
        trainer.save_model = functools.partial(_wrap_save_model(own), trainer)


def _wrap_multi_trainer(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from yolo_lossplug.ultralytics_hook import config

        stock(self, *args, **kwargs)
        config.register_own(self.args)
        config.check_merged(self.args)

    return __init__


def _wrap_tuner(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from yolo_lossplug.ultralytics_hook import config

        stock(self, *args, **kwargs)
        config.settle_space(self)

    return __init__


def _wrap_ddp_file(stock: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(stock)
    def generate_ddp_file(trainer: Any) -> str:
        from yolo_lossplug.ultralytics_hook.trainer import selection_of

        header = _worker_header(selection_of(trainer))
        path = stock(trainer)
        script = Path(path)
        script.write_text(header + script.read_text(encoding="utf-8"), encoding="utf-8")
        return path

    return generate_ddp_file


def _worker_header(selection: Any) -> str:
    """Return the lines that make a worker know our keys, and the run's losses if the user has registered them.

    Raises:
        LossPlugError: If a worker cannot get hold of such a loss.
    """
    lines = [
        "import sys",
        f"sys.path.extend(path for path in {sys.path!r} if path not in sys.path)",
        "import yolo_lossplug",
        "yolo_lossplug.enable()",
    ]
    for loss in (selection.box, selection.cls):
        spec = REGISTRY.get(loss.kind, loss.name)
        if spec is not None and _is_own(spec.function):
            lines.append(_import_of(loss.name, spec.function))
    return "\n".join(lines) + "\n"


def _is_own(function: Callable[..., Any]) -> bool:
    """Whether the user has registered a function."""
    return function.__module__.partition(".")[0] != "yolo_lossplug"


def _import_of(name: str, function: Callable[..., Any]) -> str:
    """Return the line that registers a loss in another process."""
    module = function.__module__
    if module != "__main__" and importlib.util.find_spec(module):
        return f"import {module}"
    file = Path(inspect.getsourcefile(function) or "")
    if file.is_file() and any(_asks_for_main(node) for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        return f"from yolo_lossplug.selection.own import load_module; load_module({str(file)!r}, 'loss')"
    raise LossPlugError(
        f"loss={name} is registered where the workers of multi-GPU training cannot load it from ({file}): put it into "
        f"a file of its own and give loss=file.py:{function.__name__}, or train below `if __name__ == '__main__':`."
    )


def _asks_for_main(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "__name__"


BBOX_LOSS = (
    "pred_dist",
    "pred_bboxes",
    "anchor_points",
    "target_bboxes",
    "target_scores",
    "target_scores_sum",
    "fg_mask",
)
SEAMS = (
    ("ultralytics.utils.loss", "BboxLoss.forward", ("self", *BBOX_LOSS)),
    ("ultralytics.utils.loss", "v8DetectionLoss.__init__", ("self", "model", "tal_topk")),
    ("ultralytics.utils.tal", "TaskAlignedAssigner.iou_calculation", ("self", "gt_bboxes", "pd_bboxes")),
)
"""What we rely on without changing it: module, attribute, leading parameters."""

DEFAULTS_REASON = (
    "merges the defaults into a model's or a checkpoint's arguments: with our keys among them, every stock checkpoint "
    "would carry them"
)
PATCHES = (
    Patch(
        "ultralytics.cfg",
        "check_dict_alignment",
        _wrap_alignment,
        "where the command line checks its keys, before it builds the model",
        ("base", "custom"),
    ),
    Patch(
        "ultralytics.cfg",
        "check_cfg",
        _wrap_check_cfg,
        "where every configuration has its values checked; get_cfg looks it up when called",
        ("cfg",),
    ),
    Patch("ultralytics.cfg", "entrypoint", _wrap_entrypoint, "so that `yolo` prints our errors without a traceback"),
    Patch(
        "ultralytics.cfg",
        "_YOLO_CLI_COMMAND",
        _own_command,
        "tune() and train(data=[...]) start their runs with it, in a process that may not read start-up hooks",
        is_optional=True,
    ),
    Patch("ultralytics.utils.torch_utils", "DEFAULT_CFG_DICT", _known_values, f"strip_optimizer {DEFAULTS_REASON}"),
    Patch("ultralytics.nn.tasks", "DEFAULT_CFG_DICT", _known_values, f"load_checkpoint {DEFAULTS_REASON}"),
    Patch("ultralytics.engine.model", "DEFAULT_CFG_DICT", _known_values, f"a new model {DEFAULTS_REASON}"),
    *(
        Patch(
            f"ultralytics.models.yolo.detect.{module}",
            f"{owner}.postprocess",
            _wrap_postprocess,
            "knows the arguments, and calls the suppression; those of segment and pose call it",
            ("self", "preds"),
        )
        for module, owner in (("predict", "DetectionPredictor"), ("val", "DetectionValidator"))
    ),
    *(
        Patch(
            f"ultralytics.utils.{module}",
            "non_max_suppression",
            _wrap_suppression,
            "measures the overlap that nms_iou names; the stock function runs where it is iou",
            ("prediction",),
            is_optional=True,
        )
        for module in ("nms", "ops")  # it has moved
    ),
    *(
        Patch(
            "ultralytics.engine.model",
            f"Model.{mode}",
            functools.partial(_wrap_mode, mode=mode),
            "keys of training would be accepted there, and have no effect",
            ("self",),
        )
        for mode in ("val", "predict", "track", "export", "benchmark")
    ),
    Patch(
        "ultralytics.nn.tasks",
        "*.init_criterion",
        _wrap_init_criterion,
        "where the trained model, its moving average, a resumed model and a distilled one make their criterion",
        ("self",),
    ),
    Patch(
        "ultralytics.engine.trainer",
        "get_cfg",
        _wrap_get_cfg,
        "where a trainer gets its arguments, new and resumed, before it writes args.yaml or loads anything",
    ),
    Patch(
        "ultralytics.engine.trainer",
        "BaseTrainer.check_resume",
        _wrap_check_resume,
        "runs when a trainer's arguments are final: it may be of a kind that has no use for them",
        ("self", "overrides"),
    ),
    Patch(
        "ultralytics.engine.trainer",
        "BaseTrainer.__init__",
        _wrap_trainer_init,
        "every trainer has our callbacks, however it was made",
        ("self", "cfg", "overrides", "_callbacks"),
    ),
    Patch(
        "ultralytics.engine.trainer",
        "BaseTrainer.save_model",
        _wrap_save_model,
        "releases before 8.4.95 pickle the criterion into last.pt; what losses remember is saved beside it",
        ("self",),
    ),
    Patch(
        "ultralytics.engine.trainer",
        "MultiTrainer.__init__",
        _wrap_multi_trainer,
        "it starts one run after another, each of which would fail on a mistake",
        ("self",),
        is_optional=True,
    ),
    Patch(
        "ultralytics.engine.tuner",
        "Tuner.__init__",
        _wrap_tuner,
        "it starts from the values of the keys that it varies, and one that is not given has none",
        ("self",),
    ),
    Patch(
        "ultralytics.utils.dist",
        "generate_ddp_file",
        _wrap_ddp_file,
        "workers start from a script that knows nothing of us",
        ("trainer",),
    ),
)

_undo: list[Callable[[], None]] = []
_patched: set[str] = set()


def modules() -> tuple[str, ...]:
    """Return the modules of Ultralytics that are changed."""
    return ("ultralytics.utils", *dict.fromkeys(patch.module for patch in PATCHES))


def apply(module: ModuleType) -> None:
    """Apply the rows of a module that has just been imported. A second call does nothing.

    Raises:
        SeamMoved: If this release lacks what a row needs; rows applied before stay until `revert`.
    """
    name = module.__name__
    if name in _patched:
        return
    _patched.add(name)
    if name == "ultralytics.utils":
        _add_keys(module)
    if name == "ultralytics.nn.tasks":
        for module_name, attribute, parameters in SEAMS:
            function = _look_up(importlib.import_module(module_name), attribute)
            _check_parameters(f"{module_name}.{attribute}", function, parameters)
    for patch in PATCHES:
        if patch.module == name:
            for owner, attribute in _targets(module, patch):
                _check_parameters(f"{name}.{patch.attribute}", vars(owner)[attribute], patch.parameters)
                _replace(owner, attribute, patch.make)


def revert() -> None:
    """Undo everything, last change first: Ultralytics holds the very objects that it held before."""
    while _undo:
        _undo.pop()()
    _patched.clear()


def seams() -> list[tuple[str, bool]]:
    """Return every attribute of the host that is changed or relied on, and whether this release has it."""
    rows = [(patch.module, patch.attribute) for patch in PATCHES] + [(module, name) for module, name, _ in SEAMS]
    return [(f"{module}.{attribute}", _has(module, attribute)) for module, attribute in rows]


def _has(name: str, attribute: str) -> bool:
    try:
        module = importlib.import_module(name)
    except ImportError:
        return False
    return bool(_owners(module, attribute))


def wrap_model_class(cls: type) -> None:
    """Wrap `init_criterion` where a model class that somebody has written outside Ultralytics overrides it."""
    for owner in cls.__mro__:
        if "init_criterion" in vars(owner) and not hasattr(vars(owner)["init_criterion"], MARK):
            _replace(owner, "init_criterion", _wrap_init_criterion)


def _replace(owner: Any, attribute: str, make: Callable[[Any], Any]) -> None:
    original = vars(owner)[attribute]
    if isinstance(original, list):  # other modules hold the same list
        _undo.append(functools.partial(original.__setitem__, slice(None), list(original)))
        original[:] = make(original)
        return
    _undo.append(functools.partial(setattr, owner, attribute, original))
    setattr(owner, attribute, make(original))


def _add_keys(utils: ModuleType) -> None:
    from yolo_lossplug.ultralytics_hook import config

    defaults, namespace = utils.DEFAULT_CFG_DICT, utils.DEFAULT_CFG
    known = config.keys()
    ours = {key for key in known if not any(_is_own(spec.function) for spec in REGISTRY.owners(key))}
    taken = sorted(set(defaults) & ours)
    if taken:
        raise SeamMoved(f"ultralytics has keys of its own named {', '.join(taken)}")
    REGISTRY.reserve(defaults)
    observer = config.key_adder(defaults, namespace)

    def undo() -> None:
        REGISTRY.observers.remove(observer)
        REGISTRY.reserve(())
        config.remove_keys(defaults, namespace)

    _undo.append(undo)
    config.add_keys(defaults, namespace)
    REGISTRY.observers.append(observer)


def _targets(module: ModuleType, patch: Patch) -> Iterator[tuple[Any, str]]:
    owners = _owners(module, patch.attribute)
    if not owners and not patch.is_optional:
        raise SeamMoved(f"{patch.module}.{patch.attribute} is gone")
    for owner in owners:
        yield owner, patch.attribute.rpartition(".")[2]


def _owners(module: ModuleType, name: str) -> list[Any]:
    """Return the module or the classes that define an attribute, which is dotted as that of a `Patch`."""
    path, _, attribute = name.rpartition(".")
    candidates = [c for c in vars(module).values() if inspect.isclass(c)] if path == "*" else [_look_up(module, path)]
    return [owner for owner in candidates if owner is not None and attribute in vars(owner)]


def _look_up(owner: Any, path: str) -> Any:
    """Return the attribute of a dotted path, the owner itself for an empty one, None if there is none."""
    for name in path.split(".") if path else ():
        owner = getattr(owner, name, None)
    return owner


def _check_parameters(name: str, function: Any, expected: tuple[str, ...]) -> None:
    if not expected:
        return
    if not callable(function):
        raise SeamMoved(f"{name} is gone")
    found = tuple(inspect.signature(function).parameters)[: len(expected)]
    if found != expected:
        raise SeamMoved(f"{name} takes ({', '.join(found)}, …) where ({', '.join(expected)}, …) was expected")
