"""Names of the code that the documentation mentions exist."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from minillm.config.reference import classes

REPO = Path(__file__).parents[2]
MODULES = sorted((REPO / "minillm").rglob("*.py"))
# configuration.md is generated from the names themselves.
PAGES = [
    REPO / "README.md",
    REPO / "config/README.md",
    REPO / "results/README.md",
    *(page for page in sorted((REPO / "docs").glob("*.md")) if page.stem != "configuration"),
]
KEYS = {field.name for cls in classes().values() for field in dataclasses.fields(cls)}
# Ends of file names, which look like attributes of a module.
FILES = set(
    ["csv", "html", "jinja", "json", "jsonl", "lock", "md", "npy", "pdf", "png", "py", "toml", "yaml", "yml"]
)


def defined(path: Path) -> set[str]:
    """What a module defines: functions, classes, their methods and constants ("MiniBatch.loss")."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        own = [getattr(target, "name", getattr(target, "id", "")) for target in targets]
        names |= {*own, *(f"{own[0]}.{getattr(inner, 'name', '')}" for inner in getattr(node, "body", []))}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_names_of_the_code_exist(page: Path) -> None:
    """Paths and names in backticks.

    `rooms/module.py` is a file; `module.name` is defined in a module of that name or is a key of a
    configuration.
    """
    unknown = []
    for text in re.findall(r"`([^`\n]+)`", page.read_text()):
        for path in re.findall(r"(?<![\w<>*./])[\w/]+\.py\b", text):
            if not any(
                f"/{file.relative_to(REPO)}".endswith(f"/{path}") for file in REPO.rglob(path.split("/")[-1])
            ):
                unknown.append(path)
        if name := re.fullmatch(r"([a-z_]\w*)\.(\w+(?:\.\w+)*)(?:\(.*\))?", text):
            module, rest = name.groups()
            named = module == "torch" or any(rest in defined(path) for path in MODULES if path.stem == module)
            if not named and rest.split(".")[-1] not in FILES and not {module, *rest.split(".")} <= KEYS:
                unknown.append(text)
    assert not unknown
