# SPDX-License-Identifier: AGPL-3.0-or-later
"""A public name means one thing in the package, and a private helper is written once."""

import ast
from itertools import combinations

from tests.counts import definitions, homonyms

EXCEPTIONS = {
    "alpha": "the prefix, of horizontal and of rotated boxes",
    "box_loss": "the decorator of losses, and the function of the kernels that evaluates one",
    "focal": "a prefix of horizontal and of rotated boxes, and a class loss of detection and of classify",
    "main": "each command has one",
    "poly": "the class loss, of detection and of classify",
}
"""Names of several modules, with the reason: most are losses and prefixes, whose functions have their names."""
MOST = 20
BASELINE = """
Assigned Objects Plan Recorder Report Run Step Table Terms about apply assign assignment_outputs candidates
check check_seams ciou command compare corners count counts criterion_of crowding describe differences diou
disqualified draw evaluate faults folder giou grad_norms install iou is_interpreted is_pointwise key_of kind_of
listed load markdown measure measured mixed name_of normalise overlap plan_of plug power record
refuse_keys_of_training refuse_unknown resolve revert rows run running save say self_test shown step summary
table tables terms verdict weights_of write
"""
"""Names that await another one; none may join them."""


def test_public_names_of_several_modules_are_exceptions():
    found = homonyms()
    assert len(EXCEPTIONS) <= MOST and EXCEPTIONS.keys() <= found.keys(), "a name is no exception any more"
    unknown = {name: modules for name, modules in found.items() if name not in {*EXCEPTIONS, *BASELINE.split()}}
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
