# SPDX-License-Identifier: AGPL-3.0-or-later
"""A dataset before training: its labels, the candidates of its objects, and what a model's assigner makes of them."""
