"""The package's rooms: imports run downward only, and in no circle, in and between rooms."""

from __future__ import annotations

import ast
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# From the bottom; what stands on one line may not import each other's rooms.
FLOORS = (
    ("errors",),
    ("readers",),
    ("files", "counts", "scores", "objectives", "redact"),
    ("endpoint", "token_sets"),
    ("config",),
    ("data",),
    ("models",),
    ("runtime",),
    ("sampling",),
    ("training",),
    ("evaluation",),
    ("publish",),
    ("fits",),
    ("plan", "workflow", "verify", "chat", "methods"),
    ("init",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, ast.Module]:
    """Name below minillm -> its tree; `__init__` files hold only a docstring, the package's own apart."""
    found = {}
    for path in (REPO / "minillm").rglob("*.py"):
        parts = path.relative_to(REPO / "minillm").with_suffix("").parts
        tree = ast.parse(path.read_text())
        if parts[-1] == "__init__":
            assert len(parts) == 1 or len(tree.body) <= 1, path
        else:
            found[".".join(parts)] = tree
    return found


MODULES = modules()


def imported(tree: ast.Module) -> set[str]:
    """Modules of the package that a module imports when it runs, also inside functions.

    Imports for the type checker are left out.
    """
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minillm":
            base = (node.module or "").removeprefix("minillm").removeprefix(".")
            names = {".".join(filter(None, (base, alias.name))) for alias in node.names}
            found |= (names | {base}) & MODULES.keys()
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("minillm.") for alias in node.names} & MODULES.keys()
        todo += ast.iter_child_nodes(node)
    return found


IMPORTS = {name: imported(tree) for name, tree in MODULES.items()}


def test_no_import_runs_upward() -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if (here := name.split(".")[0]) != (there := other.split(".")[0]) and FLOOR[there] >= FLOOR[here]
    ]
    assert not upward


def test_no_circle_of_imports() -> None:
    left = {name: set(others) for name, others in IMPORTS.items()}
    while ends := [name for name, others in left.items() if not others & left.keys()]:
        for name in ends:
            del left[name]
    assert not left


def test_an_upward_import_is_seen() -> None:
    tree = ast.parse("def late():\n    from minillm.training import supervised\n")
    assert imported(tree) == {"training.supervised"} and FLOOR["training"] > FLOOR["data"]
