"""Damage to a file: bytes of any kind, and the values of JSON, YAML, CSV and arrays.

`damaged` draws one with hypothesis.  It says whether what comes out still means the same.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]
# What a value is replaced by.
EXTREMES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        -0.0,
        1e308,
        2**31,
        2**63,
        -(2**63),
        10**200,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "10", "1.5", "a\nb", "\u2028", "\x00", "\U0001f600", "../../x", "x" * 5000, "$(x)", "\ufeff"),
    *([], {}, [1], [None], ["a", "a"], {"a": 1}, [[1]], [1.5], [True], [-1], [2**40], DEEP),
]
# What a number in the text is replaced by.
NUMBERS = [
    *(
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "9" * 310,
        "9" * 5000,
        "1.5",
        "-1",
        "true",
        "null",
        '"7"',
        "2024-05-01",
    ),
    *("[" * 10_000, "{", "1_0", "0x10", "007", "1.0", ".5", "1e2", "*x", "&x [*x]", "~", "yes"),
]


@dataclass(frozen=True)
class Damage:
    """A file's new content, in words what was done to it, and whether it still means the same."""

    content: bytes
    what: str
    same: bool = False


def damaged(draw: Any, name: str, content: bytes) -> Damage:
    """One damage to the file `name`; `draw` is hypothesis's."""
    ending = PurePath(name).suffix
    if ending == ".gz" and draw(st.booleans()):
        inner = damaged(draw, name.removesuffix(".gz"), gzip.decompress(content))
        return Damage(gzip.compress(inner.content, mtime=0), inner.what, inner.same)
    kinds = {
        ".json": (_json_value, _json_value, _json_value, _same_json, _number),
        ".jsonl": (_json_line, _json_line, _json_line, _same_json_lines, _number, _lines),
        ".yaml": (_yaml_value, _yaml_value, _yaml_value, _yaml_value, _number, _lines),
        ".csv": (_cell, _cell, _lines, _number),
        ".tsv": (_cell, _cell, _lines, _number),
        ".npy": (_array, _array),
        ".txt": (_lines,),
    }.get(ending, ())
    kind = draw(st.sampled_from((*kinds, *kinds, _bytes)))
    damage: Damage = kind(draw, content)
    return damage


# --- bytes and lines
def _bytes(draw: Any, content: bytes) -> Damage:
    place = draw(st.integers(0, max(0, len(content) - 1)))
    length = draw(st.integers(1, 40))
    how = draw(st.sampled_from(["flip", "cut", "delete", "insert", "repeat", "prefix", "encode", "empty"]))
    if how == "flip":
        bits = bytearray(content or b"x")
        bits[min(place, len(bits) - 1)] ^= 1 << draw(st.integers(0, 7))
        return Damage(bytes(bits), f"flip a bit of byte {place}")
    noise = draw(
        st.sampled_from([b"\xff", b"\x00", b"\xed\xa0\x80", b"{", b'"', b"\n", b"\xe2\x80\xa8", b"["])
    )
    results = {
        "cut": content[:place],
        "delete": content[:place] + content[place + length :],
        "insert": content[:place] + noise + content[place:],
        "repeat": content[: place + length] + content[place:],
        "prefix": b"\xef\xbb\xbf" + content,
        "encode": content.decode("utf-8", "replace").encode("utf-16"),
        "empty": b"",
    }
    return Damage(results[how], f"{how} at byte {place}, {length} of them, {noise!r}")


def _lines(draw: Any, content: bytes) -> Damage:
    lines = content.split(b"\n")
    i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    how = draw(st.sampled_from(["drop", "repeat", "swap", "blank", "crlf", "join"]))
    if how == "crlf":
        return Damage(content.replace(b"\n", b"\r\n"), "CRLF")
    if how == "drop":
        lines.pop(i)
    elif how == "swap":
        lines[i], lines[j] = lines[j], lines[i]
    elif how == "join":
        lines[i : i + 2] = [b" ".join(lines[i : i + 2])]
    else:
        lines.insert(i, lines[j] if how == "repeat" else b"")
    return Damage(b"\n".join(lines), f"{how} line {i} ({j})")


def _number(draw: Any, content: bytes) -> Damage:
    """A number in the text, whatever the format."""
    text = content.decode("utf-8", "replace")
    places = list(re.finditer(r"(?<![\w.\"])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.\"])", text))
    if not places:
        return _bytes(draw, content)
    place, new = draw(st.sampled_from(places)), draw(st.sampled_from(NUMBERS))
    text = text[: place.start()] + new + text[place.end() :]
    return Damage(text.encode(), f"the number at {place.start()} becomes {new[:20]}")


# --- values
def _changed(draw: Any, value: Any) -> tuple[Any, str]:
    """The value with one part, at any depth, dropped, renamed, repeated or replaced; and what was done."""
    parent: Any = {"": value}
    key: Any = ""
    while isinstance(parent[key], dict | list) and parent[key] and draw(st.integers(0, 5)):
        parent = parent[key]
        key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
    root = parent if key == "" else None
    how = draw(
        st.sampled_from(["replace", "replace", "replace", "drop", "rename", "repeat", "text", "float"])
    )
    if how == "drop" and root is None:
        del parent[key]
    elif how == "rename" and isinstance(parent, dict) and root is None:
        parent[f"{key}x"] = parent.pop(key)
    elif how == "repeat" and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif how == "text":
        parent[key] = str(parent[key])
    elif how == "float" and isinstance(parent[key], int):
        parent[key] = parent[key] + 0.5
    else:
        parent[key] = draw(st.sampled_from(EXTREMES))
    return (value if root is None else root[""]), f"{how} {str(key)[:40]!r}"


def _json_value(draw: Any, content: bytes) -> Damage:
    value, what = _changed(draw, json.loads(content))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 9)) == 0 and '": ' in text:
        # The first key once more.
        text = text.replace('{"', '{"a": 1, "a": 2, "', 1)
        what += " and a key twice"
    return Damage(text.encode(), what)


def _json_line(draw: Any, content: bytes) -> Damage:
    lines = content.removesuffix(b"\n").split(b"\n")
    i = draw(st.integers(0, len(lines) - 1))
    damage = _json_value(draw, lines[i])
    lines[i] = damage.content
    return Damage(b"\n".join([*lines, b""]), f"line {i + 1}: {damage.what}")


def _same_json(draw: Any, content: bytes) -> Damage:
    value = json.loads(content)
    how = {"indent": draw(st.sampled_from([None, 3])), "ensure_ascii": draw(st.booleans())}
    return Damage(json.dumps(value, **how).encode(), f"written again, {how}", same=True)


def _same_json_lines(draw: Any, content: bytes) -> Damage:
    how = {"separators": (",", ":"), "ensure_ascii": draw(st.booleans())}
    lines = content.removesuffix(b"\n").split(b"\n")
    again = [json.dumps(json.loads(line), **how).encode() for line in lines]
    return Damage(b"\n".join([*again, b""]), f"written again, {how}", same=True)


def _yaml_value(draw: Any, content: bytes) -> Damage:
    value = yaml.safe_load(content)
    if draw(st.integers(0, 9)) == 0:
        flow = draw(st.booleans())
        text = yaml.safe_dump(value, default_flow_style=flow, sort_keys=False)
        return Damage(text.encode(), "written again", same=True)
    value, what = _changed(draw, value)
    return Damage(yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode(), what)


def _cell(draw: Any, content: bytes) -> Damage:
    delimiter = "\t" if b"\t" in content else ","
    rows = list(csv.reader(io.StringIO(content.decode()), delimiter=delimiter))
    i = draw(st.integers(0, len(rows) - 1))
    j = draw(st.integers(0, len(rows[i]) - 1)) if rows[i] else 0
    values = ["", "nan", "inf", "1e400", "9" * 400, "-", "x", "a\nb", '"', "1,5", "true", " 3 ", "\u00e9" * 9]
    how = draw(st.sampled_from(["replace", "replace", "drop", "add"]))
    if how == "drop":
        del rows[i][j : j + 1]
    else:
        rows[i][j : j + (how == "replace")] = [draw(st.sampled_from(values))]
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return Damage(out.getvalue().encode(), f"{how} cell {i}, {j}")


def _array(draw: Any, content: bytes) -> Damage:
    array = np.load(io.BytesIO(content))
    how = draw(
        st.sampled_from(["cut", "float", "long", "flat", "deep", "negative", "large", "header", "same"])
    )
    new = {
        "cut": array[:-1],
        "float": array.astype(np.float32),
        "long": array.astype(np.int64),
        "flat": array.reshape(-1),
        "deep": array[None],
        "negative": -array,
        "large": np.full_like(array, 2**31 - 1),
        "header": array,
        "same": array,
    }[how]
    file = io.BytesIO()
    np.save(file, new)
    written = file.getvalue()
    if how == "header":
        old = draw(st.sampled_from([b"(", b"<i4", b"False", b"descr", b"shape", b"}"]))
        written = written.replace(
            old, draw(st.sampled_from([b"", b"(9" + b"9" * 30 + b",", b"|O", b"[[[["])), 1
        )
    return Damage(written, f"array: {how}", same=how == "same")
