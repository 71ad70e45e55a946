# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice of `lossplug inspect`: what was seen, and a comparison to run."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from yolo_lossplug.tools.inspect.facts import Facts
from yolo_lossplug.tools.inspect.rules import RULES, Keys, Rule

NO_REASON = "no reason to change the stock loss"


class Advice(NamedTuple):
    """One piece of advice: its rule, what was seen and what comes first, commands to paste, and the source."""

    name: str
    text: str
    command: str
    source: str


def _word(key: str, value: Any) -> str:
    """Return a key with its value as a shell passes it on; a backslash stays, as in paths of Windows."""
    if isinstance(value, tuple) and isinstance(value[0], Mapping):
        return _word_of_mappings(key, value)
    word = f"{key}={','.join(map(str, value)) if isinstance(value, (tuple, list)) else value}"
    return word if re.fullmatch(r"[\w@%+=:,./\\-]+", word) else shlex.quote(word)


def _word_of_mappings(key: str, values: Sequence[Mapping[str, Any]]) -> str:
    def quoted(name: str) -> str:
        return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"

    text = ",".join("{" + ",".join(f"{quoted(name)}:{n}" for name, n in value.items()) + "}" for value in values)
    names = "".join(name for value in values for name in value)
    is_plain = not {*'"$`\\!'}.intersection(names)  # what a shell reads between double quotes
    return f'{key}="[{text}]"' if is_plain else shlex.quote(f"{key}=[{text}]")


def advise(facts: Facts) -> list[Advice]:
    """Return the advice of all rules that apply, in the order of the table; one line if none does.

    Rules that compare values of the same key give one piece of advice.
    """
    groups: dict[str, list[Rule]] = {}
    for rule in RULES:
        if rule.applies(facts):
            groups.setdefault(rule.varied(facts), []).append(rule)
    given = [_advice(facts, rules) for rules in groups.values()]
    return given or [Advice("none", NO_REASON, _compare(facts, {}), "no threshold of this table is reached")]


def _advice(facts: Facts, rules: Sequence[Rule]) -> Advice:
    """Return one piece of advice of rules that compare values of the same key."""
    texts = [rule.text(facts) for rule in rules]
    text = ". ".join([texts[0], *(f"{other[:1].upper()}{other[1:]}" for other in texts[1:])])
    found = [rule.keys(facts) for rule in rules]
    command = "" if found == [None] else _compare(facts, functools.reduce(_joined, filter(None, found), {}))
    sources = dict.fromkeys(source for rule in rules for source in rule.sources())
    return Advice(rules[0].name, text, command, "; ".join(sources))


def _joined(keys: Keys, others: Keys) -> Keys:
    """Return keys with those of another comparison; values that both compare follow each other."""
    both = {key: value for key, value in others.items() if isinstance(value, tuple) and key in keys}
    values = {key: (*keys[key], *(one for one in value if one not in keys[key])) for key, value in both.items()}
    return {**keys, **others, **values}


def _compare(facts: Facts, keys: Keys) -> str:
    """Return the lines of comparisons, one for each imgsz."""
    about = {"data": facts.data, "model": facts.model}
    others = {"loss": "probiou" if facts.task == "obb" else "ciou", **keys, "seeds": 3}
    sizes = others.pop("imgsz", facts.imgsz)
    lines = [{**about, "imgsz": size, **others} for size in sizes]
    return "\n".join(" ".join(["lossplug compare", *(_word(*pair) for pair in line.items())]) for line in lines)
