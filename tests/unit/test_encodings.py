"""Text files are UTF-8 by name, whatever the locale: every call that opens one says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ("minillm", "benchmarks", "examples", "workflow/scripts", "slurm")
# Files of the kernel, which are ASCII and not ours.
KERNEL = "/proc/"


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, call) of each call that opens a text file without naming its encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg for keyword in node.keywords}
        text = ast.unparse(node)
        if "encoding" in named or KERNEL in text:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("read_text", "write_text") and "readers" not in text and not _is_our_reader(node):
            yield node.lineno, text
        if isinstance(node.func, ast.Name) and name == "open":
            modes = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
            modes += [
                k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)
            ]
            if not any("b" in str(mode) for mode in modes):
                yield node.lineno, text


def _is_our_reader(node: ast.Call) -> bool:
    """`read_text(path)` of minillm/readers.py or publish/results.py, which decode UTF-8 themselves."""
    return isinstance(node.func, ast.Name)


def test_the_search_finds_what_it_is_for() -> None:
    source = (
        "open(a)\nopen(a, 'rb')\nopen(a, 'w', encoding='utf-8')\na.read_text()\na.write_text(b)\nread_text(a)"
    )
    assert [line for line, _ in calls(ast.parse(source))] == [1, 4, 5]


def test_every_text_file_is_opened_as_utf8() -> None:
    found = [
        f"{path.relative_to(REPO)}:{line}: {call}"
        for folder in FOLDERS
        for path in sorted((REPO / folder).rglob("*.py"))
        for line, call in calls(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []
