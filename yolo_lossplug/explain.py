# SPDX-License-Identifier: AGPL-3.0-or-later
"""Explanations of a name or a key for `lossplug explain`, and citations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from yolo_lossplug.box_losses.mixture import FORMULA, MIXTURE_NOTE
from yolo_lossplug.catalogue import belongs_to, common_keys, shown, with_range
from yolo_lossplug.registry import BOX, CLASS, OVERLAP, ROTATED, SOFTMAX, Parameter, Spec
from yolo_lossplug.selection import keys
from yolo_lossplug.selection.loss import specs_of
from yolo_lossplug.selection.names import PREFIXES, key_of, may_be, names_with_prefixes, parts_of, suggest
from yolo_lossplug.selection.resolve import mixed
from yolo_lossplug.selection.third_party import registry
from yolo_lossplug.sparse.candidates import candidate_rows

MEAN_CANDIDATES = (
    "Mean number of candidates, anchors whose centre lies in the object, at strides 8, 16 and 32, where a side below "
    "tal_min_side counts as that long (16 in Ultralytics 8.4.190):"
)
FEW_CANDIDATES = (
    "With 16, an object below about 22 pixels does not have ten candidates on average, so that raising tal_topk above "
    "10 does nothing there."
)


def explanation(name: str) -> str:
    """Return the parts of a box or class loss, with formulas, options, sources and weaknesses.

    Args:
        name: Name as in ``loss=name`` or ``cls_loss=name``, a prefix as ``focal-``, or a key as ``focal_gamma``.

    Raises:
        LossPlugError: If there is no such loss, prefix or key.
    """
    if key := _key(name):
        return key
    if prefixes := _prefixes(name):
        lines = [f"{key_of(prefixes[-1].kind)}={prefixes[0].name}-*", *_described(prefixes)]
    else:
        lines = _described_losses(_losses(name))
    return "\n".join(line for i, line in enumerate(lines) if line or i > 1)


def _described_losses(losses: Sequence[Sequence[Spec]]) -> list[str]:
    key, titles = key_of(losses[0][-1].kind), ["-".join(spec.name for spec in specs) for specs in losses]
    parts = [[f"{key}={title}", *_described(specs)] for title, specs in zip(titles, losses)]
    if len(losses) == 1:
        return parts[0]
    return [f"{key}={'+'.join(titles)}", *_mixture(), *(line for part in parts for line in ("", *part))]


def bibtex(name: str) -> str:
    """Return the BibTeX entries of a loss's parts, each paper once.

    Raises:
        LossPlugError: If there is no such loss.
    """
    asked = registry().owners(_as_key(name)) or _prefixes(name) or [spec for specs in _losses(name) for spec in specs]
    return "\n\n".join(bibtex_entries(asked))


def bibtex_entries(specs: Iterable[Spec]) -> list[str]:
    """Return the BibTeX entries of losses, each paper once."""
    papers = dict.fromkeys(spec.paper for spec in specs if spec.paper)
    return [paper.bibtex for paper in papers if paper.bibtex]


def _mixture() -> list[str]:
    return [FORMULA, f"  {_explained(keys.MIX)}", f"  Note: {MIXTURE_NOTE}"]


def _explained(p: Parameter) -> str:
    return f"{with_range(p)}: {p.option.help}"


def _described(specs: Sequence[Spec]) -> list[str]:
    """Return formulas, options, sources and weaknesses of the parts of one loss."""
    is_sum = specs[-1].kind == OVERLAP
    lines = ["L = weight · (1 − u + Σ penalties), u = IoU unless a part changes it"] if is_sum else []
    for spec in specs:
        lines += ["", f"{shown(spec)}: {spec.formula}"]
        lines += [f"  also as {', '.join(spec.aliases)}"] if spec.aliases else []
        lines += [f"  {_explained(p)}" for p in spec.parameters.values()]
        lines += [f"  {spec.paper.citation}"] if spec.paper else []
        lines += [f"  Note: {spec.note}"] if spec.note else []
    return lines


def _as_key(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _key(name: str) -> str:
    """Return the explanation of a key, empty if the name is that of no key."""
    key = _as_key(name)
    if key in keys.CLAIMED:
        why = "this Ultralytics has a key of that name, which keeps its meaning"
        return f"{key}: {why}; that of yolo-lossplug is not available."
    if key == keys.MIX.key:
        return "\n".join(_mixture()[1:]).strip()
    if owners := registry().owners(key):
        return f"{_explained(owners[0].parameters[key])}\n  belongs to {', '.join(belongs_to(key))}"
    lines = [f"{k}={default}: {meaning} ({values})" for k, default, values, meaning in common_keys() if k == key]
    if lines and key in ("tal_topk", "tal_min_side"):
        lines += [f"\n{MEAN_CANDIDATES}", f"  {'pixels':<7}{'16':>8}{'32':>8}"]
        lines += [f"  {size:<7}{host:>8}{raised:>8}" for size, host, raised in candidate_rows()]
        lines += ["", FEW_CANDIDATES]
    return "\n".join(lines)


def _prefixes(name: str) -> list[Spec]:
    """Return the prefixes of a name like ``focal-``, of horizontal and of rotated boxes; none for another name."""
    prefixes = (spec for spec in registry() if spec.kind in PREFIXES.values())
    return [spec for spec in prefixes if f"{spec.name}-" == name.strip().lower()]


def _losses(name: str) -> list[list[Spec]]:
    """Return the specs of each loss in a name, outermost first; a name of both kinds is the box loss."""
    kinds, parts = (BOX, CLASS, ROTATED, SOFTMAX), parts_of(name)
    kind = next((k for k in kinds if all(may_be(k, part) for part in parts)), None)
    kind = kind or next((k for k in kinds if suggest(name, names_with_prefixes(k))), BOX)  # for a better message
    return [specs_of(kind, part) for part in mixed(kind, name) or (name,)]
