"""Follows the recipe for a measurement of CONTRIBUTING.md in a copy of the checkout, as a person would."""

from __future__ import annotations

import re
from pathlib import Path

# `FILE` is new: / `FILE`, above the line `ANCHOR`: / `FILE`, at the end: and then the block that goes there.
STEP = re.compile(
    r"^`([^`\n]+)`( is new|, above the line `([^\n]*)`|, at the end):\n\n```\w*\n(.*?)```$",
    re.MULTILINE | re.DOTALL,
)


def follow(root: Path) -> list[str]:
    """Write what the recipe says into the checkout `root`; returns the files that were touched."""
    guide = (root / "CONTRIBUTING.md").read_text()
    section = guide.split("\n## A measurement\n")[1].split("\n## ")[0]
    touched = []
    for file, place, anchor, block in STEP.findall(section):
        path = root / file
        if place == " is new":
            assert not path.exists(), file
            path.write_text(block)
        elif anchor:
            text = path.read_text()
            assert text.count(f"{anchor}\n") == 1, anchor
            path.write_text(text.replace(f"{anchor}\n", f"{block}{anchor}\n"))
        else:
            path.write_text(path.read_text() + block)
        touched.append(file)
    return touched
