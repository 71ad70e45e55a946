# SPDX-License-Identifier: AGPL-3.0-or-later
"""Take out one change to the host after another, and see whether the test of what it is for fails.

`python -m tests.ultralytics_hook.rows` prints what each of these tests does without its row.
"""

import json
from pathlib import Path

import pytest

import tests.conftest  # noqa: F401  (settings of Ultralytics, before it is imported)
import yolo_lossplug
from yolo_lossplug.ultralytics_hook import patches

TESTS = {
    "utils.DEFAULT_CFG_DICT": "test_config.py::test_keys_are_in_the_defaults_and_mean_nothing",
    "cfg.check_dict_alignment": "test_config.py::test_an_unknown_loss_is_reported_before_its_unknown_options",
    "cfg.check_cfg": "test_config.py::test_mistakes_before_data_and_model",
    "cfg.entrypoint": "test_config.py::test_the_command_prints_a_mistake_without_a_traceback",
    "cfg._YOLO_CLI_COMMAND": "test_patches.py::test_runs_that_the_host_starts_are_started_by_us",
    "cfg.CLI_HELP_MSG": "test_defaults.py::test_the_help_names_our_keys",
    "cfg.YAML": "test_defaults.py::test_the_defaults_are_printed_with_our_keys",
    "cfg.yaml_print": "test_defaults.py::test_the_defaults_are_printed_with_our_keys",
    "cfg.copy_default_cfg": "test_defaults.py::test_a_copy_has_our_keys_unset",
    "utils.checks.check_file": "test_recipes.py::test_a_recipe_is_found_from_any_folder",
    "data.utils.check_file": "test_recipes.py::test_a_dataset_is_found_from_any_folder[shapes128]",
    "utils.torch_utils.DEFAULT_CFG_DICT": "test_training.py::test_a_stock_run_records_nothing",
    "nn.tasks.DEFAULT_CFG_DICT": "test_training.py::test_a_stock_run_records_nothing",
    "engine.model.DEFAULT_CFG_DICT": "test_training.py::test_a_stock_run_records_nothing",
    "models.yolo.detect.predict.DetectionPredictor.postprocess": "test_nms.py::test_predict_and_val",
    "models.yolo.detect.val.DetectionValidator.postprocess": "test_nms.py::test_predict_and_val",
    "utils.nms.non_max_suppression": "test_nms.py::test_whole_suppression_equals_the_rule_class_by_class",
    "utils.ops.non_max_suppression": "test_nms.py::test_whole_suppression_equals_the_rule_class_by_class",
    **{
        f"engine.model.Model.{mode}": f"test_config.py::test_keys_of_training_are_refused_first[{mode}]"
        for mode in ("val", "predict", "track", "export", "benchmark")
    },
    "nn.tasks.*.init_criterion": "test_criterion.py::test_every_head_runs_it",
    "nn.tasks.RTDETRDetectionModel.loss": "test_detr.py::test_the_size_of_the_input_comes_from_the_batch",
    "nn.tasks.BaseModel.loss": "test_regions_run.py::test_a_training_leaves_regions_out",
    "data.dataset.YOLODataset.__init__": "test_regions_data.py::test_regions_leave_the_labels_of_every_task[detect]",
    "data.dataset.YOLODataset.update_labels_info": "test_regions_data.py::test_regions_leave_the_labels_of_every_task",
    "data.dataset.YOLODataset.build_transforms": "test_regions_run.py::test_regions_outlive_mosaic[yolov8n.yaml]",
    "models.rtdetr.val.RTDETRDataset.build_transforms": "test_regions_run.py::test_regions_outlive_mosaic",
    **{
        f"models.yolo.{module}.update_metrics": f"test_regions_run.py::test_detections_in_regions_do_not_count[{name}]"
        for module, name in (
            ("detect.val.DetectionValidator", "yolov8n"),
            ("segment.val.SegmentationValidator", "yolov8n-seg"),
            ("pose.val.PoseValidator", "yolov8n-pose"),
        )
    },
    **{
        f"models.yolo.detect.{name}": "test_regions_run.py::test_regions_are_hatched"
        for name in ("train.DetectionTrainer.plot_training_samples", "val.DetectionValidator.plot_val_samples")
    },
    "engine.trainer.get_cfg": "test_training.py::test_the_choice_is_recorded",
    "engine.trainer.BaseTrainer.check_resume": "test_config.py::test_tasks_and_families_that_cannot_use_it",
    "engine.trainer.BaseTrainer.__init__": "test_training.py::test_banner",
    "engine.trainer.BaseTrainer.save_model": "test_run.py::test_the_hosts_trainer_saves_without_the_criterion",
    "engine.trainer.MultiTrainer.__init__": "test_config.py::test_a_sequence_of_datasets_is_checked_before_the_first",
    "engine.tuner.Tuner.__init__": "test_config.py::test_a_tuner_starts_from_the_defaults_of_our_keys",
    "utils.dist.generate_ddp_file": "test_patches.py::test_the_script_of_a_worker_enables_us",
}
"""By row, as `name_of` writes it, the test that fails without it."""


def name_of(row):
    """Return module and attribute of a row, below `ultralytics`."""
    return f"{row.module}.{row.attribute}".removeprefix("ultralytics.")


def failed(*names):
    """Return whether tests fail; one that is not there is an error."""
    folder = Path(__file__).parent
    status = pytest.main(["-q", "--tb=no", "-p", "no:cacheprovider", "-m", "", *(f"{folder / name}" for name in names)])
    assert status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), names
    return status != pytest.ExitCode.OK


def main():
    """Print as JSON whether anything fails with all rows, and whether the test of each row fails without it."""
    rows = patches.PATCHES
    absent = {name.removeprefix("ultralytics.") for name, is_there in patches.seams() if not is_there}
    found = {"nothing": failed(*dict.fromkeys(TESTS.values()))}
    for left_out in rows:
        if name_of(left_out) not in absent:
            patches.PATCHES = tuple(row for row in rows if row is not left_out)
            yolo_lossplug.disable()
            yolo_lossplug.enable()
            found[name_of(left_out)] = failed(TESTS[name_of(left_out)])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
