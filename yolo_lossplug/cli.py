# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ``lossplug`` command."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import yolo_lossplug
from yolo_lossplug import terminal
from yolo_lossplug.registry import LossPlugError

HELP = """\
usage: lossplug COMMAND ..., with arguments as `yolo` takes them
       lossplug COMMAND --help

  list       what loss= and cls_loss= take, with options, defaults and ranges
  explain    the parts of a name such as focal-inner-eiou: formulas, options,
             papers
  doctor     whether the plugin is active, with versions and devices, and why
             not if it is not
  verify     whether a loss is the one that runs, its scale beside stock, and
             the gain that would match it
  curves     draws losses and their gradients against IoU
  inspect    sizes, candidates and crowding of your data, faults of its labels,
             and what to compare first
  compare    trains with several losses and seeds, and says which differences
             are more than noise
  bench      measures which engine computes the loss fastest on this machine,
             for loss_engine=auto
  train ...  `yolo train ...` with the plugin enabled; likewise every other
             command of yolo\
"""
LIST_HELP = """\
usage: lossplug list [box] [prefix] [obb] [class] [classify]
                     [--json | --markdown]

What loss= and cls_loss= take, with options, defaults and ranges; only some
kinds of losses, if they are named. --json prints the same for programs, with
papers and remarks, --markdown the tables of the documentation.
loss= also takes a mixture of any two, loss=ciou+nwd, with loss_mix= as the
share of the first.
Example: lossplug list prefix obb\
"""
EXPLAIN_HELP = """\
usage: lossplug explain NAME [--bibtex]

The parts of a name, outermost first, with formulas, options, papers and
weaknesses; --bibtex prints citations alone.
NAME is also a mixture of two box losses such as inner-ciou+nwd, a prefix such
as focal-, or a key such as focal_gamma; tal_topk and tal_min_side also print
how many candidate anchors an object of a size has.
Example: lossplug explain focal-inner-eiou\
"""
DOCTOR_HELP = """\
usage: lossplug doctor

Whether the plugin is active in plain Python and in `yolo`, with the versions
of Python, torch, Triton and Ultralytics, the devices, the start-up hook, and
who installed Ultralytics. Names distributions that overwrite each other, and
keys of a fork. Exits with 1 if the plugin is not active.
Example: lossplug doctor\
"""
TOOLS = {
    "verify": "yolo_lossplug.tools.verify",
    **{name: f"yolo_lossplug.tools.{name}.command" for name in ("curves", "inspect", "compare", "bench")},
}
"""Module of each command: it has a HELP, and a main that takes parsed arguments."""
GONE = {"simulate": "use examples/simulate.py of the repository; `lossplug curves` draws gradients"}
"""Commands of earlier versions, and what to use instead."""


def main() -> None:
    """Run a `lossplug` command, or pass the arguments to Ultralytics with the plugin enabled."""
    try:
        try:
            run()
        finally:  # a command that ends with an exit status has printed, too
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
    elif command in GONE:
        fail(f"'{command}' is no longer a command: {GONE[command]}.")
    elif close := get_close_matches(command, (*own, *TOOLS), 1, 0.75):
        fail(f"'{command}' is not a command. Did you mean '{close[0]}'? lossplug --help lists them.")
    else:
        from yolo_lossplug.ultralytics_hook import typed

        typed.run_as_lossplug()


def is_help(words: Sequence[str]) -> bool:
    """Return whether the arguments of a command ask how to use it."""
    return any(word in ("help", "-h", "--help") for word in words)


def run_tool(name: str, words: Sequence[str]) -> None:
    """Run one of the tools; a mistake of the user is one line."""
    tool = importlib.import_module(TOOLS[name])
    if is_help(words):
        print(tool.HELP)
        return
    try:
        from yolo_lossplug.ultralytics_hook.console import parse

        tool.main(parse(words))
    except (LossPlugError, OSError) as error:  # the latter: a folder that cannot be written, say
        if isinstance(error, BrokenPipeError):
            raise
        fail(error)


def fail(problem: object) -> NoReturn:
    """Exit with an error of the user."""
    raise SystemExit(terminal.fit_error(f"LossPlug: {problem}"))


def refuse_words(command: str, words: Sequence[str], *accepted: str) -> None:
    """Exit with an error for a word that a command does not take."""
    for word in words:
        if word not in accepted:
            takes = f"it takes {', '.join(accepted)}" if accepted else "it takes no arguments"
            close = get_close_matches(word, accepted, 1)
            remedy = f"Did you mean '{close[0]}'?" if close else "Remove it."
            fail(f"'{word}' cannot be given to {command}; {takes}. {remedy}")


def show_losses() -> None:
    """Print the losses with formulas and options, all or those of some kinds."""
    from yolo_lossplug import catalogue

    words = sys.argv[2:]
    refuse_words("list", words, *catalogue.GROUPS, "--json", "--markdown")
    groups = [word for word in words if word in catalogue.GROUPS]
    if "--json" in words and "--markdown" in words:
        fail("'--json' and '--markdown' cannot be given together. Remove one.")
    if "--json" in words:
        print(json.dumps(catalogue.records(groups), indent=2))
    elif "--markdown" in words:
        keys = [] if groups else [catalogue.keys_markdown(), catalogue.options_markdown()]
        print(catalogue.losses_markdown(groups), *keys, sep="\n")
    else:
        print(terminal.fit(catalogue.listing(groups)))


def show_parts() -> None:
    """Print what a name of a loss is made of, or the citations of its parts."""
    from yolo_lossplug import explain

    names = [word for word in sys.argv[2:] if not word.startswith("-") and "=" not in word]
    refuse_words("explain", [word for word in sys.argv[2:] if word not in names], "--bibtex")
    if len(names) != 1:
        raise SystemExit(f"lossplug explain takes one name, not {len(names)}: lossplug explain focal-inner-eiou")
    try:
        print(explain.bibtex(names[0]) if "--bibtex" in sys.argv else terminal.fit(explain.explanation(names[0])))
    except LossPlugError as error:
        fail(error)


def show_state() -> None:
    """Print the environment, and whether the plugin is active in plain Python and `yolo`; exit with 1 if it is not."""
    refuse_words("doctor", sys.argv[2:])
    from yolo_lossplug import _autoload
    from yolo_lossplug.tools import installation

    try:
        import ultralytics
        import ultralytics.engine.tuner  # with it every module that is changed: shows a seam that has moved
    except ImportError as error:
        owners = installation.owners()
        lines = [*installation.facts(), installation.owners_line(owners)]
        lines.append(f"not active: Ultralytics cannot be imported: {error}")
        lines += installation.advice_on_owners(owners, is_importable=False)
        show_lines(f"yolo-lossplug {yolo_lossplug.__version__}", *lines)
        raise SystemExit(1) from error
    folder = Path(ultralytics.__file__).parent
    owners = installation.owners(folder)
    show_lines(
        f"yolo-lossplug {yolo_lossplug.__version__} · ultralytics {ultralytics.__version__}",
        *(*installation.facts(), f"{'ultralytics':<15}{folder}", installation.owners_line(owners)),
        *installation.advice_on_owners(owners),
        *installation.advice_on_keys(ultralytics.utils.DEFAULT_CFG_PATH),
    )
    if not yolo_lossplug.is_enabled():
        show_lines(f"not active: {_autoload.problem or 'switched off by YOLO_LOSSPLUG=0'}")
        raise SystemExit(1)
    code = "import sys; sys.exit('yolo_lossplug' not in sys.modules)"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        show_lines(
            "not active in plain `yolo`: this Python reads no start-up hook from where the package is installed. "
            "Use `lossplug train ...`, or `import yolo_lossplug` in Python."
        )
        raise SystemExit(1)
    show_lines("active: `yolo` and Python know the keys of yolo-lossplug")


def show_lines(*lines: str) -> None:
    """Print lines as they fit the terminal."""
    for line in lines:
        print(terminal.fit(line))
