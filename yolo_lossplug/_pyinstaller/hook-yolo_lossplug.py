# SPDX-License-Identifier: AGPL-3.0-or-later
"""PyInstaller hook: what a frozen program needs that an analysis of import statements does not find."""

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs, collect_entry_point, collect_submodules

from yolo_lossplug.ultralytics_hook.recipes import folder

# Modules of losses are imported because they are in the folder, and much else when it is first used.
hiddenimports = collect_submodules("yolo_lossplug", filter=lambda name: "_pyinstaller" not in name)
# Ultralytics imports these by name for every trainer, and its own hook has only its data.
hiddenimports += collect_submodules("ultralytics.utils.callbacks")
# torchvision loads its operators by file, which its own hook knows by the name of older releases.
binaries = collect_dynamic_libs("torchvision", search_patterns=["*.so", "*.pyd", "*.dylib"])
# Losses of other packages are announced by metadata, which analysis does not read.
datas, third_party = collect_entry_point("yolo_lossplug.losses")
hiddenimports += third_party
# Recipes and datasets are found by name.
datas += [(str(folder()), "yolo_lossplug/configs")]
# Template, style and script of reports, what inspect cites, and records of which engine is fastest.
datas += collect_data_files("yolo_lossplug", includes=["tools/report.*", "tools/inspect/*.csv", "**/records/*.json"])
# Triton compiles kernels from their source.
module_collection_mode = {"yolo_lossplug.kernels": "py"}
