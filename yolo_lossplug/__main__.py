# SPDX-License-Identifier: AGPL-3.0-or-later
"""``python -m yolo_lossplug``: the same as the ``lossplug`` command."""

from yolo_lossplug.cli import main

main()
