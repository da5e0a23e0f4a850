"""Files of rows and texts in the formats that people have: JSON lines or an array, CSV, Parquet, plain text.

The ending says which, in any case, and whether the file is compressed.  Rows are their columns as the file
has them: nothing is converted, no text becomes a number or missing.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.readers import parse_json

Entries = Iterator[tuple[str, dict[str, Any]]]

JSON = (".jsonl", ".ndjson", ".jsonlines", ".json")
TABLES = {".csv": "excel", ".tsv": "excel-tab"}
PARQUET = (".parquet", ".pq")
TEXT = ("", ".txt", ".text", ".md", ".raw", ".tokens")
ROWS = (*JSON, *TABLES, *PARQUET)
# First bytes of files that are no text, whatever their names say.
MAGIC = {
    b"\x1f\x8b": "a gzip file; end its name in .gz",
    b"BZh": "a bzip2 file; end its name in .bz2",
    b"\xfd7zXZ\x00": "an xz file; end its name in .xz",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; end its name in .zst",
    b"PK\x03\x04": "a zip archive or an Office file; unpack it, or save it as CSV",
    b"PAR1": "a Parquet file; end its name in .parquet",
    b"%PDF": "a PDF; save its text as .txt",
    b"\xff\xfe": "UTF-16; convert the file to UTF-8",
    b"\xfe\xff": "UTF-16; convert the file to UTF-8",
}


def is_plain_text(path: Path) -> bool:
    """Whether the file's ending says that it holds plain text, not rows."""
    return _endings(path)[0] in TEXT


def entries(path: Path) -> Entries:
    """(place for errors, columns) of each row of a file.  Blank lines are no rows.

    A file without an ending, or with that of a text, holds JSON lines.  Raises UserError, one line naming
    file and line, for an ending that is not known and for what does not parse.
    """
    ending, content = _read(path)
    if ending in TABLES:
        return _table(path, content, TABLES[ending])
    if ending in PARQUET:
        return _parquet(path, content)
    # An array of rows is a line that starts with "[", which no row does.
    if content.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[" and ending in JSON:
        return _array(path, content)
    return _json_lines(path, content)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each non-blank line of a plain text.  Raises UserError as `entries` does."""
    return _lines(path, _read(path)[1])


def _endings(path: Path) -> tuple[str, str]:
    """(ending in lower case, that of a compression after it or "")."""
    ending = path.suffix.lower()
    if ending not in COMPRESSED:
        return ending, ""
    return Path(path.stem).suffix.lower(), ending


def _read(path: Path) -> tuple[str, bytes]:
    """(ending, content, unpacked)."""
    ending, compression = _endings(path)
    if ending not in (*ROWS, *TEXT):
        raise UserError(
            f"{path}: files ending in '{ending}' cannot be read; convert it: "
            f"rows to {', '.join(ROWS)}, plain text to .txt, compressed or not ({', '.join(COMPRESSED)})"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if compression:
        try:
            content = COMPRESSED[compression](content)
        except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
            raise UserError(f"{path}: cannot be decompressed ({error}); copy it again") from None
    if ending not in PARQUET:
        kind = next((kind for magic, kind in MAGIC.items() if content.startswith(magic)), "")
        if kind:
            raise UserError(f"{path}: this is {kind}")
    return ending, content


def _gunzip(content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except zlib.error as error:
        raise ValueError(error) from None


def _unzstd(content: bytes) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd") as stream:
        return bytes(stream.read())


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": _gunzip,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _unzstd,
}


def _lines(path: Path, content: bytes) -> Iterator[tuple[int, str]]:
    """Only newlines end a line: JSON may hold other marks."""
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        text = _decoded(line, f"{path}:{number}", " of the line")
        if text.strip():
            yield number, text


def _decoded(content: bytes, where: object, unit: str = "") -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 (byte {error.start + 1}{unit}); convert the file to UTF-8"
        ) from None


def _json_lines(path: Path, content: bytes) -> Entries:
    for number, line in _lines(path, content):
        where = f"{path}:{number}"
        entry = parse_json(line, where, "fix or delete this line")
        if not isinstance(entry, dict):
            problem = "a row must be an object, one {...} per line; fix or delete this line"
            raise UserError(f"{where}: {problem}")
        yield where, entry


def _array(path: Path, content: bytes) -> Entries:
    again = "write one array of objects, or one object per line"
    rows = parse_json(_decoded(content.removeprefix(codecs.BOM_UTF8), path), path, again)
    for i, entry in enumerate(rows):
        where = f"{path} row {i}"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: a row must be an object, {{...}}; {again}")
        yield where, entry


def _table(path: Path, content: bytes, dialect: str) -> Entries:
    text = _decoded(content.removeprefix(codecs.BOM_UTF8), path)
    # The default is 128 KiB.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), dialect, strict=True)
    try:
        head = next(reader, [])
        double = next((name for name in head if head.count(name) > 1), None)
        if double is not None:
            raise UserError(f"{path}:1: the column '{double[:80]}' is there twice; rename one")
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if fields and len(fields) != len(head):
                problem = f"{len(fields)} fields, but {len(head)} columns"
                raise UserError(f"{where}: {problem}; quote fields that hold the separator")
            if fields:
                yield where, dict(zip(head, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error}); fix this line") from None


def _parquet(path: Path, content: bytes) -> Entries:
    import pyarrow.parquet

    try:
        # Checked in full: damaged offsets would be read beyond the end of a buffer.
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        table.validate(full=True)
        rows = table.to_pylist()
    except Exception as error:
        # pyarrow raises many kinds of exceptions for a damaged file.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as Parquet ({reason}); copy it again") from None
    for i, entry in enumerate(rows):
        yield f"{path} row {i}", entry
