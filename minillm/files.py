"""Files that are either whole or absent, and the content hashes that identify the inputs of stages."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from minillm.errors import UserError
from minillm.readers import read_object

PROVENANCE = "provenance.json"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary sibling to write to; it replaces `path` only if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Like `whole_file`, for a folder; an earlier one at `path` is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: str | Path) -> str:
    """SHA-256 of one file in hex, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: str | Path) -> str:
    """Hash that identifies an input: of a model's weights, a data folder (from its card), or a file's bytes.

    Raises UserError if a folder is neither.
    """
    path = Path(path)
    if path.is_file():
        return sha256(path)
    for name in (PROVENANCE, "card.json"):
        if (path / name).is_file():
            record = read_object(path / name, {"content": str}, "no such file", "make the folder again")
            return str(record["content"])
    raise UserError(
        f"{path}: neither a model folder ({PROVENANCE}) nor a data folder (card.json); make it again"
    )


def stage_key(settings: object, inputs: Mapping[str, str]) -> str:
    """Name of a stage's checkpoints: equal settings and inputs give the same key, any others another."""
    text = json.dumps([settings, dict(sorted(inputs.items()))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
