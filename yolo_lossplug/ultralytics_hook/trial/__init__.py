# SPDX-License-Identifier: AGPL-3.0-or-later
"""One step, or one training, taken by hand."""
