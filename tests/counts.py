# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much code there is: `python -m tests.counts`."""

import ast
import collections
import importlib.util
import tokenize

from tests.runs import ROOT

PACKAGE = ROOT / "yolo_lossplug"
LONG, COMPLEX = 300, 11
"""Lines of a module, and the cyclomatic complexity of a function, that are listed."""
LAYOUT = {tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENCODING, tokenize.ENDMARKER}


def files(folder):
    return sorted(folder.rglob("*.py"))


def lines(file):
    return len(file.read_text(encoding="utf-8").splitlines())


def code_lines(file):
    """Return the number of lines with code: no comments, no docstrings, no blank lines."""
    found, statement = set(), []
    with tokenize.open(file) as text:
        for token in tokenize.generate_tokens(text.readline):
            if token.type == tokenize.NEWLINE:
                if {part.type for part in statement} != {tokenize.STRING}:
                    found.update(n for part in statement for n in range(part.start[0], part.end[0] + 1))
                statement = []
            elif token.type not in LAYOUT:
                statement.append(token)
    return len(found)


def definitions(is_public):
    """Return functions and classes at the top of modules: by name, the node by module."""
    found = collections.defaultdict(dict)
    for file in files(PACKAGE):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if is_definition and is_public != node.name.startswith("_"):
                found[node.name][file.relative_to(PACKAGE).as_posix()] = node
    return found


def homonyms():
    """Return public functions and classes that several modules define, with these modules."""
    return {name: sorted(nodes) for name, nodes in sorted(definitions(True).items()) if len(nodes) > 1}


def complex_functions():
    """Yield complexity, file and name of functions from `COMPLEX` on."""
    from radon.complexity import cc_visit

    for file in files(PACKAGE):
        for block in cc_visit(file.read_text(encoding="utf-8")):
            if block.complexity >= COMPLEX and block.letter != "C":
                yield block.complexity, file.relative_to(PACKAGE).as_posix(), block.fullname


def main():
    sizes = {file.relative_to(PACKAGE).as_posix(): lines(file) for file in files(PACKAGE)}
    print(f"package: {sum(sizes.values()):,} lines, {sum(map(code_lines, files(PACKAGE))):,} of code")
    print(f"tests: {sum(map(lines, files(ROOT / 'tests'))):,} lines")
    long = sorted(((size, name) for name, size in sizes.items() if size > LONG), reverse=True)
    print(f"modules above {LONG} lines: {len(long)}", *(f"  {size} {name}" for size, name in long), sep="\n")
    if importlib.util.find_spec("radon"):
        found = sorted(complex_functions(), reverse=True)
        print(
            f"functions of complexity {COMPLEX} or more: {len(found)}",
            *("  {} {} {}".format(*f) for f in found),
            sep="\n",
        )
    else:
        print("functions by complexity: pip install radon")
    print(
        f"public names of several modules: {len(homonyms())}",
        *(f"  {n}: {' '.join(m)}" for n, m in homonyms().items()),
        sep="\n",
    )


if __name__ == "__main__":
    main()
