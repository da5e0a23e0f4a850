"""Files that are either whole or absent, and the content hashes that identify the inputs of stages."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from minillm.errors import UserError
from minillm.readers import read_object

# The records of a model folder and of a data folder.
PROVENANCE = "provenance.json"
CARD = "card.json"
TOKENIZER = "tokenizer/"
# In a data folder: the chat template by which its rows were rendered.
CHAT_TEMPLATE = "chat_template.jinja"
# In the place of weights: where a model answers.
SERVED = "server.json"
# Key of a JSON file that holds the hash of its other keys.
RECORD = "record_sha256"
# Keys of settings that count only if the configuration sets them, so that a key that is newer than a run's
# results re-runs none of it.
NEWER = (
    *("forms", "coins", "chat", "turns", "also", "adapter", "licence", "gated"),
    *("instruction", "where", "metrics", "served_name", "key_variable"),
    *("alpha_beta", "signal", "taid", "assistant", "token_weights"),
    "sampler",
    *("teacher_texts", "baseline_top_k", "reward_floor", "method"),
    *("log_ratio_at_least", "most_uncertain", "switch", "drift", "drift_block", "per_response"),
    *("gold", "extrapolate", "teacher", "until"),
    *("trial", "against"),
)
# The same for keys whose default has a name.
NEWER_DEFAULTS = {"backend": "transformers"}


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
        # A file system without locks: nothing can be waited for.
        return True
    return True


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all.

    An object gets a last key, `RECORD`: the hash of all the others, so that an edit is noticed.
    """
    if isinstance(value, Mapping):
        value = {**value, RECORD: record_hash(value)}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def record_hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its key `RECORD`, whatever the order of its keys."""
    rest = {key: value for key, value in record.items() if key != RECORD}
    # Through JSON: its keys are texts and its lists lists.
    return hash_of(json.dumps(json.loads(json.dumps(rest)), sort_keys=True))


def check_record(record: Mapping[str, Any], path: str | Path, again: str) -> None:
    """Raises UserError, ending in `again`, if what a file of ours says is not what was written.

    Files of version 0.1.0 and earlier have no such hash: they pass.
    """
    if RECORD in record and record[RECORD] != record_hash(record):
        raise UserError(f"{path}: changed since it was written ({RECORD} is that of other values); {again}")


# --- content hashes
def sha256(path: str | Path) -> str:
    """SHA-256 of one file in hex, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(*parts: str) -> str:
    """SHA-256 of texts, one a line."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hashes(folder: Path, pattern: str = "**/*") -> dict[str, str]:
    """Name below the folder -> SHA-256, of every file (that fits) but the one that records them."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file())
    return {name: sha256(folder / name) for name in names if name not in (PROVENANCE, CARD)}


def model_content(files: Mapping[str, str]) -> str:
    """Hash of a model's weights, configuration and tokenizer, not of how or when it was made.

    `files`: as `hashes` returns them.
    """
    return hashlib.sha256(
        "".join(f"{name} {files[name]}\n" for name in sorted(files) if _of_model(name)).encode()
    ).hexdigest()


def _of_model(name: str) -> bool:
    whole = ("config.json", "tokenizer.json", SERVED)
    return "/" not in name and (name.endswith(".safetensors") or name in whole)


def data_content(files: Mapping[str, str]) -> str:
    """Hash of a data folder's tokenizer, rows, corpus, and chat template if rows are rendered by one.

    `files`: as for `model_content`.
    """
    kinds = (".npy", ".jsonl", ".jinja")
    rows = [name for name in sorted(files) if "/" not in name and name.endswith(kinds)]
    return hash_of(tokenizer_content(files), *(f"{name} {files[name]}" for name in rows))


def tokenizer_content(files: Mapping[str, str]) -> str:
    """Hash of tokenizer.json, which is the whole of a fast tokenizer; of all its files if there is none."""
    own = {name.removeprefix(TOKENIZER): files[name] for name in sorted(files) if name.startswith(TOKENIZER)}
    whole = own.get("tokenizer.json")
    return whole or hash_of(*(f"{name} {own[name]}" for name in own))


def identity(path: str | Path) -> str:
    """Hash that identifies an input: of a model's weights, a data folder, or a file's bytes.

    A folder is read whole and compared with its record: 26 GB of weights take about 13 s, once for a stage.
    Raises UserError if a folder is neither, or not what its record says.
    """
    path = Path(path)
    if path.is_file():
        return sha256(path)
    for name in (PROVENANCE, CARD):
        if (path / name).is_file():
            record = read_object(path / name, {"content": str}, "no such file", "make the folder again")
            problem = next(iter(differences(path, name, record)), None)
            if problem:
                raise UserError(f"{path}: {problem}; make the folder again")
            return str(record["content"])
    raise UserError(
        f"{path}: neither a model folder ({PROVENANCE}) nor a data folder ({CARD}); make it again"
    )


def differences(folder: Path, name: str, record: Mapping[str, Any]) -> Iterator[str]:
    """What is not as the record of a model (PROVENANCE) or data folder (CARD) says, in words."""
    if RECORD in record and record[RECORD] != record_hash(record):
        yield f"{name} has changed since it was written"
    found = hashes(folder)
    recorded = record.get("files")
    for file, value in (recorded if isinstance(recorded, dict) else {}).items():
        if file not in found:
            yield f"{file} is gone"
        elif found[file] != value:
            yield f"{file} is not what {name} says ({value[:12]}..., found {found[file][:12]}...)"
    content = (model_content if name == PROVENANCE else data_content)(found)
    if content != record.get("content"):
        yield f"its content is not what {name} says ({record.get('content')}, found {content[:12]}...)"


def origin(settings: object, sources: Mapping[Path, str]) -> dict[str, Any]:
    """Keys of a metric file that say what it was made of: paths, their hashes, the hash of the settings.

    For metrics that need a model: others are computed again to see whether they are those of their sources.
    """
    return {
        "sources": list(map(str, sources)),
        "sources_sha256": {str(path): value for path, value in sources.items()},
        "settings_sha256": settings_hash(dataclasses.asdict(settings)),  # type: ignore[call-overload]
    }


def stage_key(settings: object, inputs: Mapping[str, str]) -> str:
    """Name of a stage's checkpoints: equal settings and inputs give the same key, any others another."""
    return settings_hash([settings, dict(sorted(inputs.items()))])[:16]


def settings_hash(settings: object) -> str:
    """SHA-256 of settings, whatever the order of their keys, without those that are newer and not set."""
    return hashlib.sha256(json.dumps(without_unset(settings), sort_keys=True).encode()).hexdigest()


def without_unset(value: Any) -> Any:
    """`value` without the keys in `NEWER` that are None, and in `NEWER_DEFAULTS` that have their default.

    At any depth; tuples become lists.
    """
    if isinstance(value, Mapping):
        return {k: without_unset(v) for k, v in value.items() if not _is_unset(k, v)}
    return [without_unset(v) for v in value] if isinstance(value, list | tuple) else value


def _is_unset(key: Any, value: Any) -> bool:
    return (key in NEWER and value is None) or (key in NEWER_DEFAULTS and value == NEWER_DEFAULTS[key])
