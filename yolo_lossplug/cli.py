# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ``lossplug`` command."""

from __future__ import annotations

import subprocess
import sys

import yolo_lossplug

HELP = """\
usage: lossplug list            what loss= and cls_loss= take, with options, defaults and ranges
       lossplug list --markdown the same as tables, for the README
       lossplug doctor          whether the plugin is active here, and with which Ultralytics
       lossplug train ...       `yolo train ...` with the plugin enabled; likewise every other command of yolo\
"""


def main() -> None:
    """Run a command of ours, or hand the arguments to Ultralytics with the plugin enabled."""
    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    own = {"list": show_losses, "doctor": show_state, "help": show_help, "-h": show_help, "--help": show_help}
    if command in own:
        own[command]()
    elif command == "--version":
        print(yolo_lossplug.__version__)
    else:
        from ultralytics.cfg import entrypoint

        entrypoint()


def show_help() -> None:
    """Print how to use the command."""
    print(HELP)


def show_losses() -> None:
    """Print every loss with its formula and options."""
    if "--markdown" in sys.argv:
        print(markdown())
        return
    from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, REGISTRY
    from yolo_lossplug.selection import ASSIGNER_OVERLAPS, ENGINES, NAMES, NUMBERS

    sections = {"loss=": (BOX, OVERLAP), "loss= prefixes": (MODIFIER,), "cls_loss=": (CLASS,)}
    for title, kinds in sections.items():
        print(title)
        for spec in sorted((s for s in REGISTRY if s.kind in kinds), key=lambda s: s.name):
            name = f"{spec.name}-" if spec.kind == MODIFIER else spec.name
            print(f"  {name:<13}{spec.formula}")
            if spec.note:
                print(f"  {'':<13}{spec.note}")
            for p in spec.parameters.values():
                print(f"  {'':<13}  {p.key}={p.default} in {p.option.range}: {p.option.help}")
    print("any loss")
    for p in NUMBERS.values():
        print(f"  {p.key}={p.default} in {p.option.range}: {p.option.help}")
    print(f"  tal_iou={NAMES['tal_iou']}: overlap inside the assigner, one of {', '.join(ASSIGNER_OVERLAPS)}")
    print(f"  loss_engine={NAMES['loss_engine']}: one of {', '.join(ENGINES)}")
    print("  cls_weights: a list of one weight for each class, or a mapping from names of classes to weights")


def markdown() -> str:
    """Return the tables of losses of the README."""
    import yolo_lossplug.selection  # noqa: F401  fills the registry
    from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, REGISTRY

    parts = []
    for title, kinds in (("`loss=`", (BOX, OVERLAP)), ("prefix", (MODIFIER,)), ("`cls_loss=`", (CLASS,))):
        parts.append(f"| {title} | formula | options = default in range | source | note |\n|---|---|---|---|---|")
        for spec in sorted((s for s in REGISTRY if s.kind in kinds), key=lambda s: s.name):
            name = f"`{spec.name}{'-' if spec.kind == MODIFIER else ''}`{' ∘' if spec.kind == OVERLAP else ''}"
            options = "<br>".join(f"`{p.key}` = {p.default} in {p.option.range}" for p in spec.parameters.values())
            source = f"[{spec.year}]({spec.paper})" if spec.paper else ""
            formula = spec.formula.replace("|", "\\|")
            parts.append(f"| {name} | {formula} | {options} | {source} | {spec.note} |")
        parts.append("")
    return "\n".join(parts)


def show_state() -> None:
    """Print whether the plugin is active in plain Python and `yolo`, and exit with 1 if it is not."""
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
