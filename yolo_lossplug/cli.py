# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ``lossplug`` command."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import yolo_lossplug
from yolo_lossplug import catalogue
from yolo_lossplug.registry import LossPlugError

HELP = """\
usage: lossplug COMMAND ..., with arguments as `yolo` takes them; lossplug COMMAND --help says more

  list        what loss= and cls_loss= take, with options, defaults and ranges
  explain     the parts of a name such as focal-inner-eiou, their formulas, options and papers
  doctor      whether the plugin is active, with versions and devices, and why not if it is not
  verify      whether a loss is the one that runs, its scale beside stock, and the gain that would match it
  curves      draws losses and their gradients against IoU
  simulate    the regression experiment of the DIoU paper: how fast boxes reach their targets
  compare     trains with several losses and seeds, and says which differences are more than noise
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
NAME is also a mixture of two box losses such as inner-ciou+nwd, a prefix such as focal-, or a key such as focal_gamma.
Example: lossplug explain focal-inner-eiou\
"""
DOCTOR_HELP = """\
usage: lossplug doctor

Whether the plugin is active in plain Python and in `yolo`, and with which Python, device, start-up hook and
Ultralytics; names distributions that overwrite each other, and keys of a fork. Exits with 1 if it is not active.
Example: lossplug doctor\
"""
TOOLS = ("verify", "curves", "simulate", "compare")
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
        print(catalogue.markdown(), catalogue.keys_markdown(), catalogue.options_markdown(), sep="\n")
        return
    for title, specs in catalogue._sections():
        print(title)
        for spec in specs:
            source = f"  [{spec.paper.address}, {spec.year}]" if spec.paper else ""
            print(f"  {catalogue.shown(spec):<13}{spec.formula}{source}")
            if spec.note:
                print(f"  {'':<13}{spec.note}")
            for p in spec.parameters.values():
                print(f"  {'':<13}  {p.key}={p.default} in {p.option.range}: {p.option.help}")
    print("loss= with two losses", *(f"  {line}" for line in catalogue._mixture()), sep="\n")
    print("any loss")
    for key, default, values, meaning in catalogue.common_keys():
        print(f"  {key}={default}: {meaning} ({values})")


def show_parts() -> None:
    """Print what a name of a loss is made of, or the citations of its parts."""
    names = [word for word in sys.argv[2:] if not word.startswith("-") and "=" not in word]
    refuse_words("explain", [word for word in sys.argv[2:] if word not in names], "--bibtex")
    if len(names) != 1:
        raise SystemExit(f"lossplug explain takes one name, not {len(names)}: lossplug explain focal-inner-eiou")
    try:
        print(catalogue.bibtex(names[0]) if "--bibtex" in sys.argv else catalogue.explanation(names[0]))
    except LossPlugError as error:
        raise SystemExit(f"LossPlug: {error}") from error


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
