# SPDX-License-Identifier: AGPL-3.0-or-later
"""The only place that imports, and changes, Ultralytics."""
