# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ``lossplug`` command."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Callable

import yolo_lossplug
from yolo_lossplug.registry import LossPlugError, Spec

HELP = """\
usage: lossplug COMMAND ..., with arguments as `yolo` takes them; lossplug COMMAND --help says more

  list        what loss= and cls_loss= take, with options, defaults and ranges
  explain     the parts of a name such as focal-inner-eiou, their formulas, options and papers
  doctor      whether the plugin is active, with versions and devices, and why not if it is not
  verify      whether a loss is the one that runs, its scale beside stock, and the gain that would match it
  curves      draws losses and their gradients against IoU
  simulate    the regression experiment of the DIoU paper: how fast boxes reach their targets
  inspect     sizes, candidates and crowding of your data, faults of its labels, and what to compare first
  compare     trains with several losses and seeds, and says which differences are more than noise
  bench       measures which engine computes the loss fastest on this machine, for loss_engine=auto
  train ...   `yolo train ...` with the plugin enabled; likewise every other command of yolo\
"""
LIST_HELP = """\
usage: lossplug list [--markdown]

What loss= and cls_loss= take, with options, defaults and ranges; --markdown prints the tables of the documentation.
loss= also takes a mixture of any two, loss=ciou+nwd, with loss_mix= as the share of the first.
Example: lossplug list\
"""
EXPLAIN_HELP = """\
usage: lossplug explain NAME [--bibtex]

The parts of a name, outermost first, with formulas, options, papers and weaknesses; --bibtex prints citations alone.
NAME is also a mixture of two box losses such as inner-ciou+nwd, a prefix such as focal-, or a key such as focal_gamma;
tal_topk and tal_min_side also print how many candidate anchors an object of a size has.
Example: lossplug explain focal-inner-eiou\
"""
DOCTOR_HELP = """\
usage: lossplug doctor

Whether the plugin is active in plain Python and in `yolo`, and with which Python, device, start-up hook and
Ultralytics; names distributions that overwrite each other, and keys of a fork. Exits with 1 if it is not active.
Example: lossplug doctor\
"""
ABOUT_CANDIDATES = ("tal_topk", "tal_min_side")
"""Keys whose explanation says how many candidates there are."""
MEAN_CANDIDATES = """\
Mean number of candidates, anchors whose centre lies in the object, at strides 8, 16 and 32, where a side below
tal_min_side counts as that long (16 in Ultralytics 8.4.190):"""
FEW_CANDIDATES = """\
With 16, an object below about 22 pixels does not have ten candidates on average, so that raising tal_topk above 10
does nothing there."""
TOOLS = ("verify", "curves", "simulate", "inspect", "compare", "bench")
"""Modules of `yolo_lossplug.tools` that are commands: each has a HELP, and a main that takes parsed arguments."""


def main() -> None:
    """Run a `lossplug` command, or pass the arguments to Ultralytics with the plugin enabled."""
    try:
        run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `lossplug list | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def run() -> None:
    """Run the command that the arguments name."""
    command, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("help", [])
    own = {"list": (show_losses, LIST_HELP), "explain": (show_parts, EXPLAIN_HELP), "doctor": (show_state, DOCTOR_HELP)}
    if command in ("help", "-h", "--help"):
        print(HELP)
    elif command == "--version":
        print(yolo_lossplug.__version__)
    elif command in own:
        function, text = own[command]
        print(text) if is_help(words) else function()
    elif command in TOOLS:
        run_tool(command, words)
    elif close := get_close_matches(command, (*own, *TOOLS), 1, 0.75):
        raise SystemExit(
            f"LossPlug: '{command}' is not a command. Did you mean '{close[0]}'? lossplug --help lists them."
        )
    else:
        from ultralytics.cfg import entrypoint

        entrypoint()


def is_help(words: Sequence[str]) -> bool:
    """Return whether the arguments of a command ask how to use it."""
    return any(word in ("help", "-h", "--help") for word in words)


def run_tool(name: str, words: Sequence[str]) -> None:
    """Run one of the tools; a mistake of the user is one line."""
    tool = importlib.import_module(f"yolo_lossplug.tools.{name}")
    if is_help(words):
        print(tool.HELP)
        return
    try:
        from yolo_lossplug.ultralytics_hook.console import parse

        tool.main(parse(words))
    except (LossPlugError, OSError) as error:  # the latter: a folder that cannot be written, say
        if isinstance(error, BrokenPipeError):
            raise
        raise SystemExit(f"LossPlug: {error}") from error


def refuse_words(command: str, words: Sequence[str], *accepted: str) -> None:
    """Exit with an error for a word that a command does not take."""
    for word in words:
        if word not in accepted:
            takes = f"it takes {', '.join(accepted)}" if accepted else "it takes no arguments"
            raise SystemExit(f"LossPlug: '{word}' cannot be given to {command}; {takes}. Remove it.")


def show_losses() -> None:
    """Print every loss with its formula and options."""
    refuse_words("list", sys.argv[2:], "--markdown")
    if "--markdown" in sys.argv:
        print(markdown(), keys_markdown(), options_markdown(), sep="\n")
        return
    for title, specs in _sections():
        print(title)
        for spec in specs:
            source = f"  [{spec.paper.address}, {spec.year}]" if spec.paper else ""
            print(f"  {shown(spec):<13}{spec.formula}{source}")
            if spec.note:
                print(f"  {'':<13}{spec.note}")
            for p in spec.parameters.values():
                print(f"  {'':<13}  {p.key}={p.default} in {p.option.range}: {p.option.help}")
    print("loss= with two losses", *(f"  {line}" for line in _mixture()), sep="\n")
    print("any loss")
    for key, default, values, meaning in common_keys():
        print(f"  {key}={default}: {meaning} ({values})")


def show_parts() -> None:
    """Print what a name of a loss is made of, or the citations of its parts."""
    names = [word for word in sys.argv[2:] if not word.startswith("-") and "=" not in word]
    refuse_words("explain", [word for word in sys.argv[2:] if word not in names], "--bibtex")
    if len(names) != 1:
        raise SystemExit(f"lossplug explain takes one name, not {len(names)}: lossplug explain focal-inner-eiou")
    try:
        print(bibtex(names[0]) if "--bibtex" in sys.argv else explanation(names[0]))
    except LossPlugError as error:
        raise SystemExit(f"LossPlug: {error}") from error


def explanation(name: str) -> str:
    """Return the parts of a box or class loss, with formulas, options, sources and weaknesses.

    Args:
        name: Name as in ``loss=name`` or ``cls_loss=name``, a prefix as ``focal-``, or a key as ``focal_gamma``.

    Raises:
        LossPlugError: If there is no such loss, prefix or key.
    """
    from yolo_lossplug.selection.names import key_of

    if option := _option(name):
        return option
    prefixes = _prefixes(name)
    if prefixes:
        lines = [f"{key_of(prefixes[-1].kind)}={prefixes[0].name}-*", *_described(prefixes)]
    else:
        losses = _losses(name)
        key = key_of(losses[0][-1].kind)
        lines = [f"{key}={'+'.join(map(_title, losses))}", *(_mixture() if len(losses) > 1 else [])]
        for specs in losses:
            lines += ["", f"{key}={_title(specs)}"] if len(losses) > 1 else []
            lines += _described(specs)
    return "\n".join(line for i, line in enumerate(lines) if line or i > 1)


def _title(specs: Sequence[Spec]) -> str:
    return "-".join(spec.name for spec in specs)


def _mixture() -> list[str]:
    """Return what is to be said of every mixture of two losses."""
    from yolo_lossplug.box_losses.mixture import FORMULA, NOTE
    from yolo_lossplug.selection.keys import MIX

    option = f"  {MIX.key}={MIX.default} in {MIX.option.range}: {MIX.option.help}"
    return [FORMULA, option, f"  Note: {NOTE}"]


def _described(specs: Sequence[Spec]) -> list[str]:
    """Return formulas, options, sources and weaknesses of the parts of one loss."""
    from yolo_lossplug.registry import OVERLAP

    is_sum = specs[-1].kind == OVERLAP
    lines = ["L = weight · (1 − u + Σ penalties), u = IoU unless a part changes it"] if is_sum else []
    for spec in specs:
        lines += ["", f"{shown(spec)}: {spec.formula}"]
        lines += [f"  also as {', '.join(spec.aliases)}"] if spec.aliases else []
        lines += [f"  {p.key}={p.default} in {p.option.range}: {p.option.help}" for p in spec.parameters.values()]
        if spec.paper:
            lines.append(f"  {spec.paper.citation}")
        if spec.note:
            lines.append(f"  Note: {spec.note}")
    return lines


def bibtex(name: str) -> str:
    """Return the BibTeX entries of a loss's parts, each paper once.

    Raises:
        LossPlugError: If there is no such loss.
    """
    from yolo_lossplug.selection.third_party import registry

    asked = registry().owners(_key(name)) or _prefixes(name) or [spec for specs in _losses(name) for spec in specs]
    return "\n\n".join(entries(asked))


def entries(specs: Iterable[Spec]) -> list[str]:
    """Return the BibTeX entries of losses, each paper once."""
    papers = dict.fromkeys(spec.paper for spec in specs if spec.paper)
    return [paper.bibtex for paper in papers if paper.bibtex]


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _option(name: str) -> str:
    """Return the explanation of a key, empty if the name is that of no key."""
    from yolo_lossplug.selection.keys import CLAIMED, MIX
    from yolo_lossplug.selection.third_party import registry

    key = _key(name)
    if key in CLAIMED:
        return (
            f"{key}: this Ultralytics has a key of that name, which keeps its meaning; that of yolo-lossplug is not "
            "available."
        )
    if key == MIX.key:
        return "\n".join(_mixture()[1:]).strip()
    common = [f"{k}={default}: {meaning} ({values})" for k, default, values, meaning in common_keys() if k == key]
    owners = registry().owners(key)
    if not owners:
        return "\n".join([*common, candidates_text()] if common and key in ABOUT_CANDIDATES else common)
    p = owners[0].parameters[key]
    belongs = ", ".join(dict.fromkeys(_belongs(owner).strip("`") for owner in owners))
    return f"{p.key}={p.default} in {p.option.range}: {p.option.help}\n  belongs to {belongs}"


def candidates_text() -> str:
    """Return how many candidate anchors objects of some sizes have, for a terminal."""
    from yolo_lossplug.sparse.candidates import rows

    lines = [f"  {size:<7}{host:>8}{raised:>8}" for size, host, raised in rows()]
    return "\n".join([f"\n{MEAN_CANDIDATES}", f"  {'pixels':<7}{'16':>8}{'32':>8}", *lines, "", FEW_CANDIDATES])


def _prefixes(name: str) -> list[Spec]:
    """Return the prefixes of a name like ``focal-``, of horizontal and of rotated boxes; none for another name."""
    from yolo_lossplug.selection.names import PREFIXES
    from yolo_lossplug.selection.third_party import registry

    prefixes = (spec for spec in registry() if spec.kind in PREFIXES.values())
    return [spec for spec in prefixes if f"{spec.name}-" == name.strip().lower()]


def _losses(name: str) -> list[list[Spec]]:
    """Return the specs of each loss in a name, outermost first: of one, or of two where they are mixed.

    A name of both kinds is the box loss.
    """
    from yolo_lossplug.registry import BOX, CLASS, ROTATED, SOFTMAX
    from yolo_lossplug.selection.names import is_known, is_user_defined, mixed, names_with_prefixes, parts_of, suggest

    kinds, parts = (BOX, CLASS, ROTATED, SOFTMAX), parts_of(name)
    kind = next((k for k in kinds if all(is_user_defined(part) or is_known(k, part) for part in parts)), None)
    kind = kind or next((k for k in kinds if suggest(name, names_with_prefixes(k))), BOX)  # for a better message
    return [_parts(kind, part) for part in mixed(kind, name) or (name,)]


def _parts(kind: str, name: str) -> list[Spec]:
    """Return the specs of a loss of a kind, outermost first."""
    from yolo_lossplug.selection.names import is_user_defined, resolve
    from yolo_lossplug.selection.own import load_own

    if is_user_defined(name):
        return [load_own(name, kind)]
    spec, modifiers = resolve(kind, name)
    return [*modifiers, spec]


def shown(spec: Spec) -> str:
    """Return a name as it is written before or after others."""
    from yolo_lossplug.selection.names import PREFIXES

    return f"{spec.name}-" if spec.kind in PREFIXES.values() else spec.name


def _sections() -> list[tuple[str, list[Spec]]]:
    """Return what there is to list: titles, each with its specs by name."""
    from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, ROTATED, ROTATED_MODIFIER, SOFTMAX
    from yolo_lossplug.selection.third_party import registry

    sections = (
        ("loss=", (BOX, OVERLAP)),
        ("loss= prefixes", (MODIFIER,)),
        ("loss= for task=obb", (ROTATED,)),
        ("loss= prefixes for task=obb", (ROTATED_MODIFIER,)),
        ("cls_loss=", (CLASS,)),
        ("cls_loss= for task=classify", (SOFTMAX,)),
    )
    return [
        (title, sorted((spec for spec in registry() if spec.kind in kinds), key=lambda spec: spec.name))
        for title, kinds in sections
    ]


def common_keys() -> list[tuple[str, str, str, str]]:
    """Return key, default, values and meaning of every key that belongs to no loss in particular."""
    from yolo_lossplug.selection.keys import (
        ASSIGNER_OVERLAPS,
        CLAIMED,
        ENGINES,
        NAMES,
        NMS_OVERLAPS,
        NUMBERS,
        REPORT,
        WEIGHTS,
    )

    names = {
        "loss": (
            "name, prefix-name, file.py:function or package.module:function, or two of these: ciou+nwd",
            "box loss; probiou for task=obb",
        ),
        "cls_loss": ("name, file.py:function or package.module:function", "class loss; ce for task=classify"),
        "tal_iou": (", ".join(ASSIGNER_OVERLAPS), "overlap inside the assigner, clamped at 0"),
        "nms_iou": (", ".join(NMS_OVERLAPS), "overlap in the NMS of val, predict, track and of validation in training"),
        "loss_engine": (", ".join(ENGINES), "how the loss is computed; all engines compute the same loss"),
    }
    rows = [
        *((key, default, *names[key]) for key, default in NAMES.items()),
        *(
            (p.key, "none" if p.default is None else str(p.default), p.option.range, p.option.help)
            for p in NUMBERS.values()
        ),
        (
            WEIGHTS,
            "none",
            "list of one number per class, or mapping from names to numbers",
            "weight of each class",
        ),
        (REPORT, "False", "True, False", "write what the assigner does, by epoch, to lossplug_report.csv and a plot"),
    ]
    return [row for row in rows if row[0] not in CLAIMED]


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table.

    Args:
        head: Titles of the columns, separated by `` | ``.
        rows: The cells of every row; bars in them are escaped.
    """
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    rule = "|---" * (head.count("|") + 1)
    return "".join([f"| {head} |\n{rule}|\n", *(f"| {line} |\n" for line in lines)])


def markdown(link: Callable[[Spec, str], str] = lambda spec, name: name) -> str:
    """Return the tables of losses for the documentation, one for each key and task.

    Args:
        link: Makes a link of a loss's name.
    """
    head = "name | formula | options = default in range | source | remark"
    return "\n".join(
        f"### {title}\n\n{table(head, ([link(spec, _marked(spec)), *_cells(spec)] for spec in specs))}"
        for title, specs in _sections()
    )


def _marked(spec: Spec) -> str:
    """Return the name of a loss as code, with a sign if it takes prefixes."""
    from yolo_lossplug.registry import OVERLAP

    return f"`{shown(spec)}`{' ∘' if spec.kind == OVERLAP else ''}"


def _cells(spec: Spec) -> tuple[str, str, str, str]:
    """Return formula, options, source and remark of a loss."""
    options = "<br>".join(f"`{p.key}` = {p.default} in {p.option.range}" for p in spec.parameters.values())
    source = f"[{spec.year}]({spec.paper.address})" if spec.paper else ""
    return spec.formula, options, source, spec.note


def keys_markdown() -> str:
    """Return the table of keys that belong to no loss in particular."""
    return table("key | default | values | meaning", ([f"`{key}`", *rest] for key, *rest in common_keys()))


def options_markdown() -> str:
    """Return the table of the losses' own keys."""
    from yolo_lossplug.registry import REGISTRY
    from yolo_lossplug.selection.keys import MIX

    mixture = [f"`{MIX.key}`", str(MIX.default), MIX.option.range, MIX.option.help, "`loss=ciou+nwd`"]
    rows = (
        [f"`{p.key}`", str(p.default), p.option.range, p.option.help, ", ".join(dict.fromkeys(map(_belongs, owners)))]
        for p in REGISTRY.parameters().values()
        if (owners := REGISTRY.owners(p.key))
    )
    return table("key | default | range | meaning | belongs to", sorted([mixture, *rows]))


def _belongs(spec: Spec) -> str:
    """Return how an option's loss is asked for."""
    from yolo_lossplug.selection.names import key_of

    return f"`{key_of(spec.kind)}={shown(spec)}`"


def show_state() -> None:
    """Print the environment, and whether the plugin is active in plain Python and `yolo`; exit with 1 if it is not."""
    refuse_words("doctor", sys.argv[2:])
    from yolo_lossplug.tools import installation

    try:
        import ultralytics
        import ultralytics.engine.tuner  # with it every module that is changed: shows a seam that has moved
    except ImportError as error:
        print(f"yolo-lossplug {yolo_lossplug.__version__}", *installation.facts(), sep="\n")
        print(f"not active: Ultralytics cannot be imported: {error}")
        for line in installation.advice_on_owners(installation.owners(), is_importable=False):
            print(line)
        raise SystemExit(1) from error
    folder = Path(ultralytics.__file__).parent
    print(f"yolo-lossplug {yolo_lossplug.__version__} · ultralytics {ultralytics.__version__}")
    print(*installation.facts(), f"{'ultralytics':<15}{folder}", sep="\n")
    advice = installation.advice_on_owners(installation.owners(folder))
    for line in (*advice, *installation.advice_on_keys(ultralytics.utils.DEFAULT_CFG_PATH)):
        print(line)
    _show_activity()


def _show_activity() -> None:
    """Print whether the plugin is active in plain Python and `yolo`, and exit with 1 if it is not."""
    from yolo_lossplug import _autoload

    if not yolo_lossplug.is_enabled():
        print(f"not active: {_autoload.problem or 'switched off by YOLO_LOSSPLUG=0'}")
        raise SystemExit(1)
    code = "import sys; sys.exit('yolo_lossplug' not in sys.modules)"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        print(
            "not active in plain `yolo`: this Python reads no start-up hook from where the package is installed. "
            "Use `lossplug train ...`, or `import yolo_lossplug` in Python."
        )
        raise SystemExit(1)
    print("active: `yolo` and Python know the keys of yolo-lossplug")
