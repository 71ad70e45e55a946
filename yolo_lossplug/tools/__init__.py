# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands of `lossplug` that measure, draw and compare losses. Each module has a `HELP` and a `main`."""
