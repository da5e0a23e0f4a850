"""A run without its models in one file: what tables and figures are made from, and what they said.

Names in it are those of a checkout (results/<run>/..., config/paper/...), so that paths which results record
are right where it is unpacked.  The same run gives the same bytes: names are sorted, and no time, owner or
mode of a file goes in.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from minillm.config import layout
from minillm.config.strict import load
from minillm.errors import UserError
from minillm.files import CARD, PROVENANCE, RECORD, record_hash, whole_file, whole_folder
from minillm.publish.settings import MetricsSettings
from minillm.readers import checked, parse_json, read_text
from minillm.redact import holds

# The list of the other files, at the root.
LIST = "archive.json"
FORMAT = "minillm-archive-1"
README = "README.md"
# The published numbers that tables compare with.
PAPER = Path("config/paper")
AGAIN = "make the archive again"
ELSEWHERE = "elsewhere"
# What items and the checklist read, and what they made of it; no weights, tokenizers, training rows or logs,
# and nothing of annotators but their counts.
KEPT = (
    layout.settings_file("**/*"),
    layout.fetched("**/*"),
    layout.local("**/[!.]*"),
    f"{layout.training_data('*')}/{CARD}",
    f"{layout.teaching_data('*', '*')}/{CARD}",
    layout.card(layout.test_set("*", "*")),
    layout.card(layout.subset_rows("*")),
    *(
        path
        for rows in (
            layout.pseudo_answers("*", "*"),
            layout.generations("**", "*"),
            layout.samples("*", "*"),
        )
        for path in (rows, layout.meta(rows))
    ),
    layout.grid_choice("**/*"),
    *(f"{layout.model('**')}/{name}" for name in (PROVENANCE, "metrics.jsonl", "selection.json")),
    layout.metric("**", "*", "*"),
    layout.benchmark("**/*"),
    layout.metrics_table(),
    layout.index(),
    layout.checklist(),
    *(layout.table("*", kind) for kind in ("csv", "md", "tex", "json")),
    *(layout.figure("*", kind) for kind in ("png", "json")),
)
# Names of environment variables that hold what nobody else may read, and how keys of some services look.
SECRET = re.compile(r"(?i)(key|token|secret|passw|credential)")
TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,})")
# An absolute path among other words, as in a command or in the source of a card.
AMONG_WORDS = re.compile(r"(?<![^\s'\"=:,])/[^\s'\"/,]+(?:/[^\s'\"/,]+)+/?")


def archive(run: Path, out: Path, paper: Path = PAPER) -> list[str]:
    """Write the archive of the finished run `run` (results/<run>) to `out`; returns what to print.

    Raises UserError, one line, as `contents` does.
    """
    files, notes = contents(run, paper)
    _write(files, out)
    return [f"{out}: {len(files)} files, {out.stat().st_size:,} bytes", *notes]


def contents(run: Path, paper: Path = PAPER) -> tuple[dict[str, bytes], list[str]]:
    """(Name -> bytes of all files of an archive, what to tell whoever makes it.)

    Paths of this machine in JSON files are replaced: those below the run or the checkout by relative ones,
    others by elsewhere/NAME.  Raises UserError, one line, if the run is not finished, if a file is no JSON,
    and if one would still hold a path of this machine, a value of a secret environment variable, or what
    looks like a key.
    """
    name = name_of(run)
    files: dict[str, bytes] = {}
    replaced = []
    prefixes = machine_paths(run, name)
    for path in kept_files(run):
        inside = f"{layout.run_folder(name)}/{path}"
        content = (run / path).read_bytes()
        if path.endswith(".json"):
            neutral = _without_paths(content, run / path, prefixes)
            if neutral != content:
                replaced.append(inside)
            content = neutral
        check(content, run / path, prefixes)
        files[inside] = content
    if paper.is_dir():
        files |= {(PAPER / path.name).as_posix(): path.read_bytes() for path in sorted(paper.glob("*.csv"))}
    files[README] = _readme(name).encode()
    record = {
        "format": FORMAT,
        "run": name,
        "files": {path: digest(files[path]) for path in sorted(files)},
        "paths_replaced": sorted(replaced),
    }
    record[RECORD] = record_hash(record)
    files[LIST] = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
    notes = []
    if replaced:
        notes.append(f"paths of this machine were replaced in {len(replaced)} files ({LIST} lists them)")
    hosts = _hosts(files)
    if hosts:
        notes.append(f"provenance.json names the machines that trained: {', '.join(hosts)}")
    return files, notes


def name_of(run: Path) -> str:
    """The name of a finished run, from its settings.  Raises UserError if it is none."""
    settings = run / layout.settings_file("metrics")
    if not settings.is_file():
        raise UserError(
            f"{run}: no run here (no {layout.settings_file('metrics')}); name one like results/demo"
        )
    if not (run / layout.metrics_table()).is_file() or not (run / layout.table("main", "csv")).is_file():
        raise UserError(f"{run}: has no tables yet; let the run finish")
    return load(MetricsSettings, settings).table.run


def kept_files(run: Path) -> list[str]:
    """Paths below the run's folder of what an archive of it holds, sorted."""
    found = (path for pattern in KEPT for path in run.glob(pattern) if path.is_file())
    return sorted({path.relative_to(run).as_posix() for path in found})


def digest(content: bytes) -> str:
    """SHA-256 of bytes in hex."""
    return hashlib.sha256(content).hexdigest()


# --- what must not leave the machine
Prefixes = list[tuple[str, str]]


def machine_paths(run: Path, name: str) -> Prefixes:
    """(path of this machine, what stands for it), the longest first."""
    places = {str(path): layout.run_folder(name) for path in (run.absolute(), run.resolve())}
    places |= {str(path): "." for path in (Path.cwd(), Path.cwd().resolve())}
    # One like /root may stand in any text.
    if len(Path.home().parts) > 2:
        places[str(Path.home())] = ELSEWHERE
    places = {path: to for path, to in places.items() if len(Path(path).parts) > 2}
    return sorted(places.items(), key=lambda pair: -len(pair[0]))


def _without_paths(content: bytes, path: Path, prefixes: Prefixes) -> bytes:
    """The JSON file `content` without absolute paths, as it is if it has none."""
    text = content.decode("utf-8", "replace")
    value = parse_json(text, path, "make it again")
    neutral = _neutral(value, prefixes)
    if neutral == value:
        return content
    if isinstance(neutral, dict) and RECORD in neutral:
        neutral[RECORD] = record_hash(neutral)
    # Settings are one line.
    indent = 1 if "\n" in text.strip() else None
    return (json.dumps(neutral, indent=indent, ensure_ascii=False) + "\n").encode()


def _neutral(value: Any, prefixes: Prefixes, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {_text(k, prefixes): _neutral(v, prefixes, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_neutral(item, prefixes, key) for item in value]
    return _text(value, prefixes, key) if isinstance(value, str) else value


def _text(text: str, prefixes: Prefixes, key: str = "") -> str:
    for prefix, to in prefixes:
        text = re.sub(rf"{re.escape(prefix)}(?=/|\W|$)", to, text)
    if key in ("command", "source"):
        return without_paths(text)
    whole = text.startswith("/") and not text.startswith("//") and text.count("/") > 1
    return _elsewhere(text) if whole and "\n" not in text else text


def without_paths(text: str) -> str:
    """A text with elsewhere/NAME for each absolute path among its words."""
    return AMONG_WORDS.sub(lambda match: _elsewhere(match[0]), text)


def _elsewhere(path: str) -> str:
    """What stands for a path that is not below the run: of a run that was moved it may be."""
    moved = re.fullmatch(r".*/(results/[^/]+/.+)", path)
    return moved[1] if moved else f"{ELSEWHERE}/{PurePosixPath(path).name}"


def check(content: bytes, path: Path, prefixes: Prefixes) -> None:
    """UserError if a file holds a path of this machine, or a secret."""
    text = content.decode("utf-8", "replace")
    for prefix, _ in prefixes:
        if re.search(rf"{re.escape(prefix)}(?=/|\W|$)", text):
            raise UserError(f"{path}: holds the path {prefix} of this machine; {AGAIN} from a run without it")
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8 and not value.isdigit() and holds(text, value):
            raise UserError(f"{path}: holds the value of ${name}; remove it, or unset the variable")
    if path.suffix == ".json" and (token := TOKEN.search(text)):
        raise UserError(f"{path}: holds what looks like a key ({token[0][:6]}...); remove it")


def _hosts(files: Mapping[str, bytes]) -> list[str]:
    records = [json.loads(content) for path, content in files.items() if path.endswith(f"/{PROVENANCE}")]
    return sorted({str(host) for record in records for host in record.get("hosts") or ()})


# --- the file
def _write(files: Mapping[str, bytes], out: Path) -> None:
    with (
        whole_file(out) as partial,
        open(partial, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(files):
            # Mode 0644, time, owner and group 0.
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            tar.addfile(entry, io.BytesIO(files[name]))


def unpack(file: Path, folder: Path) -> None:
    """Unpack an archive into `folder`, which must not hold anything yet; all of it or nothing.

    Raises UserError, one line, for what is no archive of `archive`, a damaged one, one with a name that would
    lead out of the folder, with a link, a device or a name twice, or with a file that it does not list.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    with whole_folder(folder) as partial:
        for name, content in _entries(file):
            target = partial / name
            # A name that is too long, or a folder of another one.
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            except OSError as error:
                raise UserError(f"{file}: {name!r} cannot be written ({error.strerror or error})") from None
        record = read_list(partial, str(file))
        found = {path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()}
        differing = [*changed_files(partial, record), *sorted(found - {LIST, *record["files"]})]
        if differing:
            raise UserError(f"{file}: {differing[0]} is not what {LIST} says; {AGAIN}")


def _entries(file: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file in an archive; UserError for what no archive of ours has."""
    seen: set[str] = set()
    try:
        with tarfile.open(file, "r:gz") as tar:
            for entry in tar:
                if not entry.isfile() or entry.issparse():
                    raise UserError(f"{file}: {entry.name!r} is not a plain file; nothing was unpacked")
                if not _is_inside(entry.name) or entry.name in seen:
                    raise UserError(f"{file}: refused name {entry.name!r}; nothing was unpacked")
                seen.add(entry.name)
                content = tar.extractfile(entry)
                yield entry.name, content.read() if content else b""
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; check the path") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise UserError(f"{file}: no archive, or a damaged one ({error}); {AGAIN}") from None


def _is_inside(name: str) -> bool:
    """Whether a name is a plain relative path: no root, no `..`, no other spelling of another name."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") for part in parts)
    return plain and "\\" not in name and "\0" not in name and ":" not in parts[0]


def read_list(folder: Path, where: str = "") -> dict[str, Any]:
    """The list of an unpacked archive.  Raises UserError if there is none, or it is damaged."""
    path, where = folder / LIST, where or str(folder)
    record = parse_json(read_text(path, f"no {LIST} here: not an archive of a run"), path, AGAIN)
    record = checked(record, {"format": str, "run": str, "files": dict}, path, AGAIN)
    if record["format"] != FORMAT:
        raise UserError(f"{where}: format {record['format']!r}, not {FORMAT}; use the version that made it")
    if not _is_inside(record["run"]) or not all(_is_inside(name) for name in record["files"]):
        raise UserError(f"{where}: {LIST} names files outside of the archive; {AGAIN}")
    if record.get(RECORD) != record_hash(record):
        raise UserError(f"{where}: {LIST} has changed since it was written; {AGAIN}")
    return record


def changed_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Names of the listed files that are gone or have other bytes."""
    return [
        name
        for name, recorded in record["files"].items()
        if not (folder / name).is_file() or digest((folder / name).read_bytes()) != recorded
    ]


def _readme(name: str) -> str:
    folder = layout.run_folder(name)
    return f"""# Generations and metrics of the run {name}

`{folder}/` has settings, responses, metrics, provenance, logs of the trainings, run times, tables and
figures, and no model. `{LIST}` lists all files with their SHA-256. MiniLLM-repro, in the version that
`{folder}/{layout.model("**")}/{PROVENANCE}` name, makes the tables again and compares them byte by byte:

    minillm rebuild FOLDER

where FOLDER is this one. They go into `rebuilt/`.
"""
