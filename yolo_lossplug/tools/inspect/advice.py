# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice of `lossplug inspect`: what was seen, and a comparison to run."""

from __future__ import annotations

import functools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from yolo_lossplug.files import write_json
from yolo_lossplug.selection.keys import WEIGHTS
from yolo_lossplug.tools.inspect.facts import EPOCHS, SEEDS, Facts
from yolo_lossplug.tools.inspect.rules import MAX_NAMES, RULES, SIDE, Keys, Rule, measurements, weights_of

WEIGHTS_FILE = f"{WEIGHTS}.yaml"
NO_REASON = "no reason to change the stock loss"


class Advice(NamedTuple):
    """One piece of advice.

    Attributes:
        name: Name of its rule.
        text: What was seen, and what comes first.
        source: Where that comes from.
        measured: What came of it on synthetic data, empty where it was not measured.
        command: Commands to paste, empty where there is nothing to compare.
        estimate: In words how long these take.
    """

    name: str
    text: str
    source: str
    measured: str = ""
    command: str = ""
    estimate: str = ""


def _word(key: str, value: Any) -> str:
    """Return a key with its value as a shell passes it on; a backslash stays, as in paths of Windows."""
    if isinstance(value, tuple) and isinstance(value[0], Mapping):
        return _word_of_mappings(key, value)
    word = f"{key}={','.join(map(str, value)) if isinstance(value, (tuple, list)) else value}"
    return word if re.fullmatch(r"[\w@%+=:,./\\-]+", word) else shlex.quote(word)


def _word_of_mappings(key: str, values: Sequence[Mapping[str, Any]]) -> str:
    names = {name: "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for value in values for name in value}
    text = ",".join("{" + ",".join(f"{names[name]}:{n}" for name, n in value.items()) + "}" for value in values)
    is_plain = not {*'"$`\\!'}.intersection("".join(names))  # what a shell reads between double quotes
    return f'{key}="[{text}]"' if is_plain else shlex.quote(f"{key}=[{text}]")


def advise(facts: Facts, folder: Optional[Path] = None) -> list[Advice]:
    """Return the advice of all rules that apply, in the order of the table; one line if none does.

    Rules that compare values of the same key give one piece of advice.

    Args:
        facts: The facts.
        folder: Where `write_weights` writes; None for commands with all that they need.
    """
    groups: dict[str, list[Rule]] = {}
    for rule in RULES:
        if rule.applies(facts):
            groups.setdefault(rule.varied(facts), []).append(rule)
    given = [_advice(facts, rules, folder) for rules in groups.values()]
    none = Advice("none", NO_REASON, "no threshold of this table is reached")
    return given or [none._replace(**_compare(facts, {}, folder))]


def _advice(facts: Facts, rules: Sequence[Rule], folder: Optional[Path]) -> Advice:
    """Return one piece of advice of rules that compare values of the same key."""
    texts = [rule.text(facts) for rule in rules]
    text = ". ".join([texts[0], *(f"{other[:1].upper()}{other[1:]}" for other in texts[1:])])
    sources = "; ".join(dict.fromkeys(rule.source for rule in rules))
    measured = " ".join(dict.fromkeys(measurements(*rule.measured) for rule in rules if rule.measured))
    found = [keys for rule in rules if (keys := rule.keys(facts)) is not None]
    commands = _compare(facts, functools.reduce(_joined, found, {}), folder) if found else {}
    return Advice(rules[0].name, text, sources, measured, **commands)


def _joined(keys: Keys, others: Keys) -> Keys:
    """Return keys with those of another comparison; values that both compare follow each other."""
    both = {key: value for key, value in others.items() if isinstance(value, tuple) and key in keys}
    values = {key: (*keys[key], *(one for one in value if one not in keys[key])) for key, value in both.items()}
    return {**keys, **others, **values}


def _compare(facts: Facts, keys: Keys, folder: Optional[Path]) -> dict[str, str]:
    """Return the command, a line for each imgsz, and the estimate of a piece of advice."""
    keys = {"epochs": EPOCHS, **facts.kept, "loss": {"obb": "probiou"}.get(facts.task, "ciou"), **keys}
    sizes = [*map(int, keys.pop("imgsz", facts.imgsz))]
    runs = SEEDS * math.prod(len(v) for v in keys.values() if isinstance(v, tuple))
    if folder and WEIGHTS in keys and len(facts.rare) > MAX_NAMES:
        del keys[WEIGHTS]
        keys["cfg"] = folder / WEIGHTS_FILE
    sides, lines = dict(zip(facts.imgsz, facts.mean_side)), []
    for imgsz in sizes:
        about = {"data": facts.data, "model": facts.model, "imgsz": imgsz, **keys, "seeds": SEEDS}
        words = (_word(key, f"{max(0.1, sides[imgsz]):.1f}" if v == SIDE else v) for key, v in about.items())
        lines.append(" ".join(["lossplug compare", *words]))
    return {"command": "\n".join(lines), "estimate": facts.pace.hours(sizes, runs) if facts.pace else ""}


def write_weights(facts: Facts, folder: Path) -> None:
    """Write the weights of many rare classes, which no command line has room for, into a folder."""
    if len(facts.rare) > MAX_NAMES:
        write_json(folder / WEIGHTS_FILE, {WEIGHTS: weights_of(facts)})
