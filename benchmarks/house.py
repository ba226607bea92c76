"""How large the house is: files, lines, functions, and imports between its rooms.

    python benchmarks/house.py                             # the package beside this folder
    python benchmarks/house.py OTHER/pianogen_hf           # that of another commit, e.g. in a `git worktree`

A room is a folder of the package, sub-folders included, or a module in its root; an arrow is a room that another one
imports. Lines are counted that are neither blank nor comments nor docstrings.
"""

import argparse
import ast
import io
import statistics
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pianogen_hf"


def code_lines(text):
    """Numbers of the lines that hold code."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return lines


def rooms_imported(tree):
    """Rooms of the package that a file imports, "" for the package itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        yield from ((name.split(".") + [""])[1] for name in names if name.split(".")[0] == PACKAGE.name)


def measure(package):
    """Figures by name."""
    functions, lines, imports, arrows = [], 0, 0, set()
    paths = sorted(package.rglob("*.py"))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree, code = ast.parse(text), code_lines(text)
        lines += len(code)
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for other in rooms_imported(tree):
            imports += 1
            arrows |= {(room, other)} if other != room else set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(len(code & set(range(node.lineno, node.end_lineno + 1))))
    return {
        "files": len(paths),
        "lines of code": lines,
        "files in the root": len(list(package.glob("*.py"))),
        "rooms": len({path.relative_to(package).parts[0] for path in paths}),
        "functions": len(functions),
        "median length of a function": statistics.median(functions),
        "functions of at most 40 lines": f"{sum(size <= 40 for size in functions) / len(functions):.1%}",
        "imports within the package": imports,
        "arrows between rooms": len(arrows),
    }


def main():
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE)
    for name, value in measure(parser.parse_args().package).items():
        print(f"{name:32} {value:,}" if isinstance(value, int) else f"{name:32} {value}")


if __name__ == "__main__":
    main()
