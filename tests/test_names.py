# SPDX-License-Identifier: AGPL-3.0-or-later
"""A public name means one thing in the package, and a private helper is written once."""

import ast
from itertools import combinations

from tests.counts import definitions, homonyms

EXCEPTIONS = {"main": "each command has one"}
"""Names of several modules, with the reason."""
MOST = 20


def test_public_names_of_several_modules_are_exceptions():
    found = homonyms()
    assert len(EXCEPTIONS) <= MOST and EXCEPTIONS.keys() <= found.keys(), "a name is no exception any more"
    unknown = {name: modules for name, modules in found.items() if name not in EXCEPTIONS}
    assert not unknown, "choose another name, or give the reason in EXCEPTIONS"


def code(node):
    """Return the body of a function or class, without its docstring, as text."""
    return [ast.dump(part) for part in node.body[ast.get_docstring(node) is not None :]]


def test_private_helpers_are_written_once():
    twice = [
        f"{name} of {one} and {other}"
        for name, nodes in definitions(False).items()
        for one, other in combinations(nodes, 2)
        if code(nodes[one]) == code(nodes[other])
    ]
    assert not twice, "import it, or move it to where both may import it from"
