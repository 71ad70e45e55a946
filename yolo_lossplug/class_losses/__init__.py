# SPDX-License-Identifier: AGPL-3.0-or-later
"""Class losses: one module per paper. Each module in this folder is imported and registers its own."""

from yolo_lossplug.registry import import_siblings

import_siblings(__name__, __path__)
