"""What the local files of a configuration hold: a hash, computed once for a path, size and time of change.

Weights of 13B are 26 GB, so the hashes are kept in a small file and not computed for each plan.
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.data.file_kinds import IGNORED, TOKENIZER
from minillm.data.sources import resolve_path
from minillm.errors import UserError
from minillm.files import hash_of, sha256, whole_file
from minillm.readers import read_json

# Bytes from which a plan says that it reads them.
LARGE = 2**30


def is_local(source: str, path: str) -> bool:
    """Whether an entry of a configuration is read from local files: a hub's name may be a local folder."""
    if source in ("folder", "gguf"):
        return True
    try:
        return source == "hub" and resolve_path(path, "path").exists()
    except UserError:
        # A package or variable that is missing here: local all the same.
        return True


def content_of(section: str, path: str, run: Path) -> dict[str, Any] | None:
    """Content of the files that an entry of `section` is read from; None if they are not here.

    "content" is one hash over names and bytes, "files" their number, "bytes" their size.  `run` is the folder
    that keeps the hashes.
    """
    try:
        place = resolve_path(path, section)
        names = _names(section, place)
        return _content(path, place, names, run / layout.known_content()) if names else None
    except (UserError, OSError):
        return None


def _content(path: str, place: Path, names: dict[str, str], kept: Path) -> dict[str, Any]:
    known, hashed = _known(kept), {}
    total = 0
    for name in names:
        file = place / name if place.is_dir() else place
        status = file.stat()
        total += status.st_size
        key, state = str(file), [status.st_size, status.st_mtime_ns]
        if known.get(key, [])[:2] != state:
            if status.st_size >= LARGE:
                print(f"{file}: {status.st_size / LARGE:.0f} GB, read once to know them", file=sys.stderr)
            known[key] = [*state, sha256(file)]
            hashed[key] = known[key]
        names[name] = known[key][2]
    if hashed:
        _keep(kept, hashed)
    content = hash_of(*(f"{name} {value}" for name, value in names.items()))
    return {"path": path, "content": content, "files": len(names), "bytes": total}


def _names(section: str, place: Path) -> dict[str, str]:
    """Names of the files that are read, in order, without hashes yet; empty if there are none."""
    if place.is_file():
        return {place.name: ""}
    if not place.is_dir():
        return {}
    # A model or tokenizer is read from the folder itself, data in the hub's layout also from below.
    below = (
        place.glob("*") if section in ("models", "checkpoints", "tokenizers", "judge") else place.rglob("*")
    )
    found = sorted(path.relative_to(place).as_posix() for path in below if path.is_file())
    return {name: "" for name in found if _is_read(section, name)}


def _is_read(section: str, name: str) -> bool:
    def fits(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    if name.startswith(".") or "/." in name or name.lower().endswith(".md"):
        return False
    if section == "tokenizers":
        return fits(TOKENIZER)
    return section in ("datasets", "subsets", "harness") or not fits(IGNORED)


def _known(path: Path) -> dict[str, list[Any]]:
    """File -> size, time of change, hash; a damaged record is worth no more than none."""
    try:
        record = read_json(path)
    except UserError:
        return {}
    if not isinstance(record, dict):
        return {}
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, list) and len(value) == 3 and isinstance(value[2], str)
    }


def _keep(path: Path, hashed: Mapping[str, list[Any]]) -> None:
    """Add to what is known; where nothing can be written, it is computed again next time."""
    try:
        # Read again: another plan may have added to it meanwhile.
        with whole_file(path) as partial:
            partial.write_text(json.dumps(_known(path) | dict(hashed), indent=1) + "\n", encoding="utf-8")
    except OSError:
        return
