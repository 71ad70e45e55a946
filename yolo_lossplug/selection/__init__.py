# SPDX-License-Identifier: AGPL-3.0-or-later
"""From training keys to checked and bound loss functions; nothing of a training framework.

1. `third_party`: the registry, with the losses of installed packages in it.
2. `names`, `resolve`: the grammar of names, and what a name stands for.
3. `keys`: the keys, their defaults and values.
4. `own`: user-defined losses in a file or module.
5. `loss`: a function with its options bound.
6. `select`: all that one run trains with.
"""
