# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every change to Ultralytics, in one table, each with its reason and undone exactly by `revert`.

A row changes one attribute of one module as soon as that module is imported, and not before.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from yolo_lossplug.ultralytics_hook import patching
from yolo_lossplug.ultralytics_hook.patching import Patch, around, in_place, made_by

CFG, NN, TRAINER = "ultralytics.cfg", "ultralytics.nn.tasks", "ultralytics.engine.trainer"
DEFAULTS_REASON = (
    "merges the defaults into a model's or a checkpoint's arguments: with our keys among them, every stock checkpoint "
    "would carry them"
)
AUGMENTS = "builds the augmentation, again without mosaic: it keeps regions, which leave the labels at its end"
# fmt: off
PATCHES = (
    Patch("ultralytics.utils", "DEFAULT_CFG_DICT", in_place("config.add_keys"),
          "the keys that every configuration, and the command line, is checked against; other modules hold the same "
          "dict"),
    Patch(CFG, "check_dict_alignment", around("config.check_dict_alignment"),
          "where the command line checks its keys, before it builds the model", ("base", "custom")),
    Patch(CFG, "check_cfg", around("config.check_cfg"),
          "where every configuration has its values checked; get_cfg looks it up when called", ("cfg",)),
    Patch(CFG, "entrypoint", around("typed.entrypoint"), "so that `yolo` prints our errors without a traceback"),
    Patch(CFG, "_YOLO_CLI_COMMAND", in_place("workers.replace_command"),
          "tune() and train(data=[...]) start their runs with it, in a process that may not read start-up hooks",
          is_optional=True),
    Patch(CFG, "CLI_HELP_MSG", made_by("defaults.with_ours"), "so that `yolo help` tells of our keys",
          is_optional=True),
    Patch(CFG, "YAML", made_by("defaults.printing"),
          "`yolo cfg` prints the file of the defaults with it, in which our keys are not", is_optional=True),
    Patch(CFG, "copy_default_cfg", around("defaults.copy_default_cfg"),
          "`yolo copy-cfg` copies the file of the defaults, in which our keys are not", is_optional=True),
    Patch(CFG, "yaml_print", around("defaults.print_yaml"),
          "what `yolo cfg` prints with in releases without a class for YAML", ("yaml_file",), is_optional=True),
    *(Patch(module, "check_file", around("recipes.check_file"),
            f"{who}, and our recipes and datasets are not among its files",
            ("file", "suffix", "download", "download_dir", "hard"))
      for module, who in (
          ("ultralytics.utils.checks", "check_yaml calls it, for cfg="),
          ("ultralytics.data.utils", "check_det_dataset calls it, imported by name, for data="))),
    *(Patch(module, "DEFAULT_CFG_DICT", made_by("config.without_keys"), f"{who} {DEFAULTS_REASON}")
      for module, who in (
          ("ultralytics.utils.torch_utils", "strip_optimizer"),
          (NN, "load_checkpoint"),
          ("ultralytics.engine.model", "a new model"))),
    *(Patch(f"ultralytics.models.yolo.detect.{module}", f"{owner}.postprocess", around("nms.postprocess"),
            f"{owner} has the arguments, and calls NMS; those of segment and pose call it", ("self", "preds"))
      for module, owner in (("predict", "DetectionPredictor"), ("val", "DetectionValidator"))),
    *(Patch(f"ultralytics.utils.{module}", "non_max_suppression", around("nms.suppress"),
            f"in {module} the overlap that nms_iou names is measured; the stock function runs where it is iou",
            ("prediction",), is_optional=True)
      for module in ("nms", "ops")),  # it has moved
    *(Patch("ultralytics.engine.model", f"Model.{mode}", around("config.in_mode", mode),
            f"keys of training would be accepted by {mode}(), and have no effect", ("self",))
      for mode in ("val", "predict", "track", "export", "benchmark")),
    Patch(NN, "*.init_criterion", around("trainer.init_criterion"),
          "where the trained model, its moving average, a resumed model and a distilled one make their criterion",
          ("self",)),
    Patch(NN, "BaseModel.loss", around("criterion.with_regions"),
          "where the criterion gets a batch, whose regions it leaves out of its class term", ("self", "batch")),
    Patch(NN, "RTDETRDetectionModel.loss", around("criterion.with_input_size_and_regions"),
          "the same; and boxes of RT-DETR are relative to the network input, whose size its criterion is not told",
          ("self", "batch")),
    *(Patch(f"ultralytics.{module}", f"{owner}.{method}", around(f"regions.data.{function}"), f"{owner} {reason}",
            parameters, is_optional=module != "data.dataset")
      for module, owner, method, function, parameters, reason in (
          ("data.dataset", "YOLODataset", "__init__", "init_dataset", ("self",),
           "gets its description and the arguments of the run, before it loads labels"),
          ("data.dataset", "YOLODataset", "update_labels_info", "update_labels_info", ("self", "label"),
           "gets a copy of labels that are not yet augmented: regions are marked, that of the folder is added"),
          ("data.dataset", "YOLODataset", "build_transforms", "build_transforms", ("self", "hyp"), AUGMENTS),
          ("models.rtdetr.val", "RTDETRDataset", "build_transforms", "build_transforms", ("self", "hyp"), AUGMENTS))),
    *(Patch(f"ultralytics.models.yolo.{task}.val", f"{owner}Validator.update_metrics",
            around("regions.validation.update_metrics"),
            f"{owner}Validator counts detections; those that regions make neither right nor wrong are left out before",
            ("self", "preds", "batch"), is_optional=task != "detect")
      # where two are, the second finds nothing to leave out
      for task, owner in (("detect", "Detection"), ("segment", "Segmentation"), ("pose", "Pose"))),
    *(Patch(f"ultralytics.models.yolo.detect.{module}", attribute, around("regions.plots.plot_hatched"),
            f"{attribute.partition('.')[0]} plots batches, with their regions hatched", ("self", "batch", "ni"))
      for module, attribute in (
          ("train", "DetectionTrainer.plot_training_samples"), ("val", "DetectionValidator.plot_val_samples"))),
    Patch(TRAINER, "get_cfg", around("trainer.get_cfg"),
          "where a trainer gets its arguments, new and resumed, before it writes args.yaml or loads anything"),
    Patch(TRAINER, "BaseTrainer.check_resume", around("trainer.check_resume"),
          "runs when a trainer's arguments are final: it may be of a kind that has no use for them",
          ("self", "overrides")),
    Patch(TRAINER, "BaseTrainer.__init__", around("trainer.make"),
          "every trainer has our callbacks, however it was made", ("self", "cfg", "overrides", "_callbacks")),
    Patch(TRAINER, "BaseTrainer.save_model", around("trainer.save_model"),
          "releases before 8.4.95 pickle the criterion into last.pt; what losses remember is saved beside it",
          ("self",)),
    Patch(TRAINER, "MultiTrainer.__init__", around("config.check_multi_trainer"),
          "it starts one run after another, each of which would fail on a mistake", ("self",), is_optional=True),
    Patch("ultralytics.engine.tuner", "Tuner.__init__", around("tuning.check_tuner"),
          "it starts from the values of the keys that it varies, and one that is not given has none", ("self",)),
    Patch("ultralytics.utils.dist", "generate_ddp_file", around("workers.generate_ddp_file"),
          "workers start from a script that knows nothing of us", ("trainer",)),
)
# fmt: on

BBOX_LOSS = (
    "self", "pred_dist", "pred_bboxes", "anchor_points", "target_bboxes", "target_scores", "target_scores_sum",
    "fg_mask",
)  # fmt: skip
SEAMS = (
    ("ultralytics.utils.loss", "BboxLoss.forward", BBOX_LOSS),
    ("ultralytics.utils.loss", "v8DetectionLoss.__init__", ("self", "model", "tal_topk")),
    ("ultralytics.utils.tal", "TaskAlignedAssigner.iou_calculation", ("self", "gt_bboxes", "pd_bboxes")),
)
"""What we rely on without changing it: module, attribute, leading parameters."""

_patched: set[str] = set()


def modules() -> tuple[str, ...]:
    """Return the modules of Ultralytics that are changed."""
    return tuple(dict.fromkeys(patch.module for patch in PATCHES))


def apply(module: ModuleType) -> None:
    """Apply the rows of a module that has just been imported, once.

    Raises:
        SeamMoved: If this release lacks what a row, or we, need; rows applied before stay until `revert`.
    """
    name = module.__name__
    if name in _patched:
        return
    _patched.add(name)
    for seam, path, parameters in SEAMS if name == NN else ():
        function = patching.look_up(importlib.import_module(seam), path)
        patching.check_parameters(f"{seam}.{path}", function, parameters)
    for patch in PATCHES:
        if patch.module == name:
            for owner, attribute in patching.targets(module, patch):
                if patch.parameters:
                    patching.check_parameters(f"{name}.{patch.attribute}", vars(owner)[attribute], patch.parameters)
                try:
                    patching.apply_change(patch.change, owner, attribute)
                except Exception:  # somebody has put something of another kind there
                    if not patch.is_optional:
                        raise


def revert() -> None:
    """Undo everything: Ultralytics holds the very objects that it held before, and what others have put in."""
    patching.undo_changes()
    _patched.clear()


def seams() -> list[tuple[str, bool]]:
    """Return every attribute of the host that is changed or relied on, and whether this release has it."""
    rows = [(patch.module, patch.attribute) for patch in PATCHES] + [(module, name) for module, name, _ in SEAMS]
    return [(f"{module}.{attribute}", patching.exists(module, attribute)) for module, attribute in rows]
