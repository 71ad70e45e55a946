# SPDX-License-Identifier: AGPL-3.0-or-later
"""What mkdocstrings does with the docstrings of the package: examples become blocks of code."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*\n(?:(?!\n).+\n?)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Fence doctests, which Markdown would take for quotations."""

    def on_object(self, *, obj, **_):
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value
            )
