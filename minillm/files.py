"""Files that are either whole or absent, and the content hashes that identify the inputs of stages."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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


@contextmanager
def only_one(path: str | Path, patience: float = 120) -> Iterator[None]:
    """While the block runs, no other process makes `path`; one of an earlier start is waited for.

    Raises UserError, one line, if that still runs after `patience` seconds.  There is no lock where the
    file system has none, or while there is no folder to put it into (Snakemake makes it before a job).
    """
    lock = Path(path).parent / f".{Path(path).name}.lock"
    if not lock.parent.is_dir():
        yield
        return
    end = time.monotonic() + patience
    while True:
        with open(lock, "a", encoding="utf-8") as file:
            if _locked(file):
                # Not of a process that ended, and removed its file, after this one was opened.
                if lock.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                    try:
                        yield
                        return
                    finally:
                        lock.unlink(missing_ok=True)
                continue
        if time.monotonic() > end:
            raise UserError(
                f"{path}: another process is making it, perhaps of an earlier start; wait until it is done, "
                "or end it, and run the same command again"
            )
        time.sleep(0.5)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


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
