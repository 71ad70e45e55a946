# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ``lossplug`` command."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from difflib import get_close_matches

import yolo_lossplug
from yolo_lossplug.registry import LossPlugError, Spec

HELP = """\
usage: lossplug COMMAND ..., with arguments as `yolo` takes them; lossplug COMMAND --help says more

  list        what loss= and cls_loss= take, with options, defaults and ranges
  explain     the parts of a name such as focal-inner-eiou, their formulas, options and papers
  doctor      whether the plugin is active here, and with which Ultralytics
  verify      whether a loss is the one that runs, its scale beside stock, and the gain that would match it
  curves      draws losses and their gradients against IoU
  simulate    the regression experiment of the DIoU paper: how fast boxes reach their targets
  compare     trains with several losses and seeds, and says which differences are more than noise
  train ...   `yolo train ...` with the plugin enabled; likewise every other command of yolo\
"""
LIST_HELP = """\
usage: lossplug list [--markdown]

What loss= and cls_loss= take, with options, defaults and ranges; --markdown prints the table of the README.
Example: lossplug list\
"""
EXPLAIN_HELP = """\
usage: lossplug explain NAME [--bibtex]

The parts of a name, outermost first, with formulas, options, papers and weaknesses; --bibtex prints citations alone.
Example: lossplug explain focal-inner-eiou\
"""
DOCTOR_HELP = """\
usage: lossplug doctor

Whether the plugin is active in plain Python and in `yolo`, and with which Ultralytics; exits with 1 if it is not.
Example: lossplug doctor\
"""
TOOLS = ("verify", "curves", "simulate", "compare")
"""Modules of `yolo_lossplug.tools` that are commands: each has a HELP, and a main that takes parsed arguments."""


def main() -> None:
    """Run a command of ours, or hand the arguments to Ultralytics with the plugin enabled."""
    try:
        run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `lossplug list | head`: nobody reads on
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
        raise SystemExit(f"LossPlug: '{command}' is no command. Did you mean '{close[0]}'? lossplug --help lists them.")
    else:
        from ultralytics.cfg import entrypoint

        entrypoint()


def is_help(words: Sequence[str]) -> bool:
    """Return whether the arguments of a command ask how to use it."""
    return any(word in ("help", "-h", "--help") for word in words)


def run_tool(name: str, words: Sequence[str]) -> None:
    """Run one of the tools; an error of the user's is one line, and Ctrl-C is no error of ours."""
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
        print(markdown())
        return
    from yolo_lossplug.selection import ASSIGNER_OVERLAPS, ENGINES, NAMES, NUMBERS

    for title, _, specs in _sections():
        print(title)
        for spec in specs:
            source = f"  [{spec.paper}, {spec.year}]" if spec.paper else ""
            print(f"  {shown(spec):<13}{spec.formula}{source}")
            if spec.note:
                print(f"  {'':<13}{spec.note}")
            for p in spec.parameters.values():
                print(f"  {'':<13}  {p.key}={p.default} in {p.option.range}: {p.option.help}")
    print("any loss")
    for p in NUMBERS.values():
        print(f"  {p.key}={p.default} in {p.option.range}: {p.option.help}")
    print(f"  tal_iou={NAMES['tal_iou']}: overlap inside the assigner, one of {', '.join(ASSIGNER_OVERLAPS)}")
    print(f"  nms_iou={NAMES['nms_iou']}: overlap in the suppression of val, predict and track, or diou")
    print(f"  loss_engine={NAMES['loss_engine']}: one of {', '.join(ENGINES)}")
    print("  lossplug_report=False: True writes what the assigner does, by epoch, to lossplug_report.csv and a plot")
    print("  cls_weights: a list of one weight for each class, or a mapping from names of classes to weights")


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
        name: Name as in ``loss=name`` or ``cls_loss=name``.

    Raises:
        LossPlugError: If there is no such loss.
    """
    from yolo_lossplug.papers import PAPERS
    from yolo_lossplug.registry import CLASS, OVERLAP, SOFTMAX

    specs = _parts(name)
    is_class = specs[-1].kind in (CLASS, SOFTMAX)
    title = "-".join(spec.name for spec in specs)
    lines = [f"{'cls_loss' if is_class else 'loss'}={title}"]
    if specs[-1].kind == OVERLAP:
        lines.append("L = weight · (1 − u + Σ penalties), u = IoU unless a part changes it")
    for spec in specs:
        lines += ["", f"{shown(spec)}: {spec.formula}"]
        lines += [f"  {p.key}={p.default} in {p.option.range}: {p.option.help}" for p in spec.parameters.values()]
        if spec.paper:
            paper = PAPERS.get(spec.paper)
            cited = f"{paper.authors}: {paper.title}. {paper.venue} {paper.year}. " if paper else ""
            lines.append(f"  {cited}{spec.paper}")
        if spec.note:
            lines.append(f"  Note: {spec.note}")
    return "\n".join(line for i, line in enumerate(lines) if line or i > 1)


def bibtex(name: str) -> str:
    """Return the BibTeX entries of a loss's parts, each paper once.

    Raises:
        LossPlugError: If there is no such loss.
    """
    from yolo_lossplug.papers import PAPERS

    addresses = dict.fromkeys(spec.paper for spec in _parts(name) if spec.paper in PAPERS)
    return "\n\n".join(PAPERS[address].bibtex(address) for address in addresses)


def _parts(name: str) -> list[Spec]:
    """Return the specs of a name, outermost first; a name of both kinds is the box loss."""
    from yolo_lossplug.registry import BOX, CLASS, ROTATED, SOFTMAX
    from yolo_lossplug.selection import kind_of, load_own, resolve

    if ":" in name:
        return [load_own(name, BOX)]
    spec, modifiers = resolve(kind_of(name, BOX, CLASS, ROTATED, SOFTMAX), name)
    return [*modifiers, spec]


def shown(spec: Spec) -> str:
    """Return a name as it is written before or after others."""
    from yolo_lossplug.selection import PREFIXES

    return f"{spec.name}-" if spec.kind in PREFIXES.values() else spec.name


def _sections() -> list[tuple[str, str, list[Spec]]]:
    """Return what there is to list: title, title in Markdown, and the specs by name."""
    import yolo_lossplug.selection  # noqa: F401  fills the registry
    from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, REGISTRY, ROTATED, ROTATED_MODIFIER, SOFTMAX

    sections = (
        ("loss=", "`loss=`", (BOX, OVERLAP)),
        ("loss= prefixes", "prefix", (MODIFIER,)),
        ("loss= of task=obb", "`loss=` of obb", (ROTATED,)),
        ("loss= prefixes of task=obb", "prefix of obb", (ROTATED_MODIFIER,)),
        ("cls_loss=", "`cls_loss=`", (CLASS,)),
        ("cls_loss= of task=classify", "`cls_loss=` of classify", (SOFTMAX,)),
    )
    return [
        (title, marked, sorted((spec for spec in REGISTRY if spec.kind in kinds), key=lambda spec: spec.name))
        for title, marked, kinds in sections
    ]


def markdown() -> str:
    """Return the table of losses of the README."""
    rows = [f"| {title} | {_cells(spec)} |" for _, title, specs in _sections() for spec in specs]
    head = "| key | name | formula | options = default in range | source |\n|---|---|---|---|---|"
    return "\n".join([head, *rows, ""])


def _cells(spec: Spec) -> str:
    """Return name, formula, options and source of a loss as cells of a Markdown table."""
    from yolo_lossplug.registry import OVERLAP

    name = f"`{shown(spec)}`{' ∘' if spec.kind == OVERLAP else ''}"
    options = "<br>".join(f"`{p.key}` = {p.default} in {p.option.range}" for p in spec.parameters.values())
    source = f"[{spec.year}]({spec.paper})" if spec.paper else ""
    return f"{name} | {spec.formula.replace('|', chr(92) + '|')} | {options} | {source}"


def show_state() -> None:
    """Print whether the plugin is active in plain Python and `yolo`, and exit with 1 if it is not."""
    refuse_words("doctor", sys.argv[2:])
    import ultralytics
    import ultralytics.engine.tuner  # with it every module that is changed: shows a seam that has moved

    from yolo_lossplug import _autoload

    print(f"yolo-lossplug {yolo_lossplug.__version__} · ultralytics {ultralytics.__version__}")
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
