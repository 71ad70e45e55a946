# SPDX-License-Identifier: AGPL-3.0-or-later
"""The contract on many releases of Ultralytics: `python -m tests.versions [RELEASE ...] [--write] [--tests ...]`.

Each release is installed into a folder of its own (`.versions`, or LOSSPLUG_VERSIONS), beside the torch of this
environment, which is not changed. Without names all of `RELEASES` are run; `newest` is the newest of today.
"""

import argparse
import os
import subprocess
import sys
import time
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.runs import ROOT
from tests.tables import mark, write

RELEASES = ("8.3.0", "8.3.99", "8.3.196", "8.3.253", "8.4.0", "8.4.103", "8.4.139", "8.4.180", "newest")
MORE = {"8.3.0": ["numpy<2.4"], "8.3.99": ["numpy<2.4"]}
"""What a release needs that it does not say: releases before 8.3.108 call np.trapz."""
CONTRACT = ["tests/test_contract.py"]
KEPT = ("torch", "torchvision")
"""What is never installed again."""
FOLDER = Path(os.environ.get("LOSSPLUG_VERSIONS", ROOT / ".versions"))


def install(release):
    """Return a folder with a release, and with what this environment lacks for it."""
    folder = FOLDER / release
    done = folder / "done"
    if done.is_file() and release != "newest":
        return folder
    wanted = "ultralytics<8.5" if release == "newest" else f"ultralytics=={release}"
    pip(folder, "--no-deps", wanted)
    (found,) = folder.glob("ultralytics-*.dist-info/METADATA")
    needs = Parser().parsestr(found.read_text(encoding="utf-8")).get_all("Requires-Dist")
    missing = [str(need) for need in map(Requirement, needs) if is_missing(need)] + MORE.get(release, [])
    if missing:
        pip(folder, *missing)
    done.touch()
    return folder


def pip(folder, *words):
    command = [sys.executable, "-m", "pip", "install", "-qq", "--upgrade", "--target", str(folder), *words]
    subprocess.run(command, check=True)


def is_missing(need):
    """Whether this environment lacks what a release needs."""
    if need.name in KEPT or (need.marker and not need.marker.evaluate({"extra": ""})):
        return False
    try:
        return not need.specifier.contains(metadata.version(need.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return need.name != "ultralytics-thop"  # it counts operations, and would bring torch along


def run(release, tests=CONTRACT):
    """Return the version, whether the contract holds, the last line of the tests, and the seconds they took."""
    folder = install(release)
    (found,) = folder.glob("ultralytics-*.dist-info")
    version = found.name.removeprefix("ultralytics-").removesuffix(".dist-info")
    environment = {**os.environ, "PYTHONPATH": str(folder), "LOSSPLUG_HOST": version}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *tests]
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        print(*lines[-40:], sep="\n")
    return version, done.returncode == 0, lines[-1].strip("= "), time.perf_counter() - start


def main():
    """Run the contract, print a table, and exit with 1 if it does not hold somewhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("releases", nargs="*", default=RELEASES)
    parser.add_argument("--write", action="store_true", help="put the table into docs/compatibility.md")
    parser.add_argument(
        "--tests", nargs=argparse.REMAINDER, default=CONTRACT, help="arguments of pytest; the last option"
    )
    args = parser.parse_args()
    rows = []
    for release in args.releases:
        rows.append(run(release, args.tests))
        version, is_kept, said, seconds = rows[-1]
        print(f"{version:<10} {'holds' if is_kept else 'FAILS':<6} {said} ({seconds:.0f} s)", flush=True)
    if args.write:
        cells = [[version, mark(is_kept), said.partition(" in ")[0]] for version, is_kept, said, _ in rows]
        write("versions", ["ultralytics", "contract", "tests"], cells, "one machine, CPU")
    return not all(is_kept for _, is_kept, _, _ in rows)


if __name__ == "__main__":
    sys.exit(main())
