# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where regions enter the host: its dataset, its class term, its validation and its plots."""
