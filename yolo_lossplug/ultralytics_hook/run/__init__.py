# SPDX-License-Identifier: AGPL-3.0-or-later
"""What belongs to one training: its selection, the memory of its losses, and its report."""
