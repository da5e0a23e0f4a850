"""What the campaign damages: a reader with its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """A reader: the files that it reads, those of them that are damaged, and how it is called."""

    name: str
    files: dict[str, bytes]
    read: Callable[[Path], Any]
    damaged: tuple[str, ...] = ()


def files_below(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def lines(*entries: Any) -> bytes:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()


def stage_output(folder: Path, run: Callable[[Path], object], where: str = "") -> Any:
    """What a stage wrote, without the key `where`, which names the folder, and without hashes of files."""
    out = folder / "out"
    out.mkdir()
    run(out)
    written = {}
    for name, content in files_below(out).items():
        value = json.loads(content) if name.endswith(".json") and where else content.decode()
        if isinstance(value, dict):
            json.dumps(value, allow_nan=False)
            value = {k: v for k, v in value.items() if k != where and not k.endswith("_sha256")}
        written[name] = value
    return written
