# SPDX-License-Identifier: AGPL-3.0-or-later
"""Terms of the loss on assigned anchors, as pure tensor functions that never hold a tensor of the dense form.

What a step must return, the gradients of the head's outputs, is as large as these outputs. Beyond that nothing here
grows with them: sums run over parts, and what is kept for backward is that of the positives alone.
"""
