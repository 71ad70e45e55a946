# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ways to take a criterion's step, and the choice among them."""
