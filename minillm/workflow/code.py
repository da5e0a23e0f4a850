"""Which files of the package a stage depends on, read from its imports."""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path


def sources(root: Path, module: str) -> list[str]:
    """The package's files that `module` imports, itself included: the code that its results depend on.

    Imports for the type checker do not count.  Paths begin with `root`, which is relative, so that moving the
    checkout re-runs nothing.
    """
    return list(_sources(root, module))


@cache
def _sources(root: Path, module: str) -> tuple[str, ...]:
    seen: set[Path] = set()
    todo = [module]
    while todo:
        path = _file_of(root, todo.pop())
        if path is not None and path not in seen:
            seen.add(path)
            todo += _imports(path)
    return tuple(sorted(os.path.relpath(path) for path in seen if path.stat().st_size))


@cache
def _file_of(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """The package's modules that a file imports, also in its functions, and the names imported from them."""
    names: list[str] = []
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] == "minillm"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minillm":
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        todo += ast.iter_child_nodes(node)
    return tuple(names)
