"""Rows and texts in every format that people bring, and one line for those that are none."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from minillm.config.data import Dataset
from minillm.data.sources import read_entries, read_rows, read_texts
from minillm.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"instruction": "Add.", "input": "007", "output": "NA"},
    {"instruction": "Quote, twice", "input": "", "output": 'a "b",\nc'},
    {"instruction": "größer\u2028", "input": "1e5", "output": "null"},
]
TEXTS = ["007", "NA", "a, b"]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], path: Path, dialect: str = "excel") -> bytes:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
    return path.read_bytes()


def parquet(rows: list[dict[str, Any]], path: Path) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".GZ": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def content(ending: str, rows: list[dict[str, Any]], folder: Path) -> bytes:
    kind = ending.lower()
    if kind == ".json":
        return json.dumps(rows, indent=1).encode()
    if kind in (".csv", ".tsv"):
        return table(rows, folder / "made", "excel" if kind == ".csv" else "excel-tab")
    return parquet(rows, folder / "made") if kind in (".parquet", ".pq") else json_lines(rows)


def folder(path: Path, **more: Any) -> Dataset:
    return Dataset(source="folder", path=str(path), **more)


def line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


ENDINGS = [".jsonl", ".ndjson", ".JSONL", ".jsonlines", ".json", ".csv", ".CSV", ".tsv", ".parquet", ".pq"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
    for packed, pack in PACK.items():
        path = tmp_path / f"rows{ending}{packed}"
        path.write_bytes(pack(content(ending, ROWS, tmp_path)))
        found = read_rows(folder(path, start=1), "d")
        assert [(r.id, r.instruction, r.input, r.outputs) for r in found] == [
            (i, row["instruction"], row["input"], (row["output"],)) for i, row in enumerate(ROWS) if i
        ]
        # Nothing becomes a number or missing.
        assert [entry for *_, entry in read_entries(folder(path), "d")] == ROWS


@pytest.mark.parametrize("ending", [*ENDINGS, ".txt", ".TXT", ""])
def test_texts_are_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
    for packed, pack in PACK.items():
        path = tmp_path / f"texts{ending}{packed}"
        plain = ending.lower() in (".txt", "")
        rows = [{"text": text} for text in TEXTS]
        path.write_bytes(pack("\n".join([*TEXTS, ""]).encode() if plain else content(ending, rows, tmp_path)))
        assert read_texts(folder(path), "d") == TEXTS


def test_an_array_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf\n" + json.dumps(ROWS).encode())
        assert [r.instruction for r in read_rows(folder(path), "d")] == [r["instruction"] for r in ROWS]
    path.write_text(json.dumps([ROWS[0], 5]), encoding="utf-8")
    assert line(lambda: read_rows(folder(path), "d")) == (
        f"{path} row 1: a row must be an object, {{...}}; write one array of objects, or one object per line"
    )


@pytest.mark.parametrize("name", ["a.xlsx", "a.ZIP", "a.docx", "a.jsonl.zip", "a.html", "a.yaml.gz"])
def test_other_endings_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(json_lines(ROWS))
    ending = [part for part in name.lower().split(".") if part != "gz"][-1]
    for read in (read_rows, read_texts, read_entries):
        said = line(lambda read=read: read(folder(path), "d"))
        assert said.startswith(
            f"{path}: files ending in '.{ending}' cannot be read; convert it: rows to .jsonl,"
        )


@pytest.mark.parametrize(
    ("name", "held", "problem"),
    [
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "this is a gzip file; end its name in .gz"),
        ("a.txt", zstd(b"{}"), "this is a Zstandard file; end its name in .zst"),
        ("a.csv", b"PK\x03\x04", "this is a zip archive or an Office file; unpack it, or save it as CSV"),
        ("a.txt", "text".encode("utf-16"), "this is UTF-16; convert the file to UTF-8"),
        ("a.jsonl.gz", json_lines(ROWS), "cannot be decompressed (Not a gzipped file (b'{\"'))"),
        ("a.jsonl.gz", gzip.compress(json_lines(ROWS), mtime=0)[:-9], "cannot be decompressed ("),
        ("a.jsonl.xz", lzma.compress(json_lines(ROWS))[:-9], "cannot be decompressed ("),
        ("a.jsonl.bz2", bz2.compress(json_lines(ROWS))[:-9], "cannot be decompressed ("),
        ("a.jsonl.zst", b"no zstd", "cannot be decompressed ("),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet ("),
        ("a.csv", b"instruction,output,output\n", "the column 'output' is there twice; rename one"),
        ("a.csv", b"instruction,output\na,b,c\n", "3 fields, but 2 columns; quote fields that hold"),
        ("a.csv", b'instruction,output\na,"b" c\n', "not CSV ("),
        ("a.csv", b"instruction,output\na,\xff\n", "not UTF-8 (byte 22); convert the file to UTF-8"),
        (
            "a.jsonl",
            b'{"a": 1, "a": 2}\n',
            "the key 'a' is there twice in one object; fix or delete this line",
        ),
        ("a.json", b"[{}", "not JSON ("),
    ],
)
def test_damage_is_one_line(tmp_path: Path, name: str, held: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(held)
    said = line(lambda: (read_texts if ".txt" in name else read_rows)(folder(path), "d"))
    assert said.startswith(str(path)) and problem in said


def test_fields_longer_than_the_csv_modules_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\n" + "x" * 200_000 + ",y\n", encoding="utf-8")
    assert len(read_rows(folder(path), "d")[0].instruction) == 200_000
