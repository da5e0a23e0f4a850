"""One reader for JSON and one for YAML: whatever a file holds, a value or one line that says what to do.

All text is UTF-8, whatever the locale.  Refused, next to what is not JSON or YAML: a key twice in one object
(every parser keeps the last, silently), nesting and numbers beyond Python's limits, half a surrogate pair,
which no file could hold again, and in YAML dates, numbers that are not finite, recursive anchors and anchors
that multiply.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from minillm.errors import UserError

# No float holds more.
DIGITS = 300
# Values in a YAML file once its anchors are expanded: the paper's configuration has under 2,000.
VALUES = 1_000_000
DEPTH = 200
# Integers from here on fit into no array, and are no id, count or seed of ours.
TOO_LARGE = 2**63
Kind = type | tuple[type, ...]


class _Refused(ValueError):
    """What Python's parser takes and we do not."""


def read_text(path: str | Path, absent: str = "no such file; check the path", again: str = "") -> str:
    """A text file, its line ends as they are.

    Raises UserError, one line: `absent` if there is no such file, `again` (what to do) if it is not UTF-8,
    and what the system says if it cannot be read.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: {absent}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(_line(path, f"not UTF-8 (byte {error.start + 1})", again)) from None


def parse_json(text: str, where: object, again: str = "") -> Any:
    """The value of a JSON text.  Raises UserError, one line that begins with `where` and ends in `again`."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text.strip() else ""
        problem = f"not JSON ({error.msg} at {place}column {error.colno})"
    except _Refused as error:
        problem = str(error)
    except RecursionError:
        problem = "nesting too deep"
    except UnicodeEncodeError:
        problem = "half a surrogate pair (\\ud800 to \\udfff) is not text"
    raise UserError(_line(where, problem, again)) from None


def read_json(path: str | Path, absent: str = "no such file; check the path", again: str = "") -> Any:
    """The value in a JSON file.  Raises UserError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, absent, again), path, again)


def read_object(path: str | Path, keys: Mapping[str, Kind], absent: str, again: str) -> dict[str, Any]:
    """The object in a JSON file, which must have `keys`, of these types.  Raises UserError as `read_json`."""
    return checked(read_json(path, absent, again), keys, path, again)


def checked(value: Any, keys: Mapping[str, Kind], where: object, again: str = "") -> dict[str, Any]:
    """`value`, if it is an object that has `keys` of these types (`is_a`); UserError if not."""
    if not isinstance(value, dict):
        raise UserError(_line(where, "not a JSON object, {...}", again))
    for key, kind in keys.items():
        if key not in value or not is_a(value[key], kind):
            raise UserError(_line(where, f"'{key}' is missing or of the wrong type", again))
    return value


def is_a(value: Any, kind: Kind) -> bool:
    """Whether a value is of this type; a bool is no number, nor is one that is not finite or over 64 bits."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < TOO_LARGE):
        return False
    return isinstance(value, kinds)


def all_are(values: Any, kind: Kind) -> bool:
    """Whether this is a list of values of this type."""
    return isinstance(values, list) and all(is_a(value, kind) for value in values)


def are_tokens(values: Any) -> bool:
    """Whether this is a list of token ids."""
    return all_are(values, int) and all(0 <= value < 2**31 for value in values)


def read_json_lines(
    path: str | Path, keys: Mapping[str, Kind], absent: str = "no such file; check the path", again: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line of a JSON-lines file that we wrote; blank ones are damage.

    Raises UserError as `read_object` does, naming the line.
    """
    # Not splitlines: it also splits at U+2028 and others, which JSON does not escape.
    lines = read_text(path, absent, again).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        yield number, checked(parse_json(line, where, again), keys, where, again)


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file (or JSON, which is YAML).  Raises UserError: one line naming file and key."""
    text = read_text(path)
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        check_plain(value, path)
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}" if mark else ""
        problem = " ".join((error.problem or error.context or "not YAML").split())
        raise UserError(f"{path}{place}: not YAML: {problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        # A character that YAML forbids; a date like 2024-13-45; a number beyond Python's limit.
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: nesting too deep, or an anchor that contains itself") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key twice in one mapping, and nesting beyond `DEPTH`."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        # The scanner looks at every open bracket for each token: 10,000 of them take half a minute.
        if self.flow_level >= DEPTH:
            raise RecursionError
        super().fetch_flow_collection_start(token)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key_node, _ in node.value:
                if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                    # As JSON writes it: `yes` and `true` are one key, and so are 1 and "1".
                    value = self.construct_object(key_node)
                    key = value if isinstance(value, str) else json.dumps(value, default=str)
                    if key in seen:
                        raise yaml.MarkedYAMLError(
                            problem=f"the key '{key[:80]}' is there twice; remove one",
                            problem_mark=key_node.start_mark,
                        )
                    seen.add(key)
        return super().construct_mapping(node, deep)


def check_plain(value: Any, where: object, under: str = "") -> None:
    """UserError, naming the key, for values that no key takes: dates, numbers not finite or too large.

    Also for what anchors make too deep or too large.  `under` is the key above the value.
    """
    todo: list[tuple[str, Any, int]] = [(under, value, 0)]
    count = 0
    while todo:
        key, part, depth = todo.pop()
        count += 1
        if depth > DEPTH or count > VALUES:
            raise UserError(
                f"{where}: {key[:80]}: nesting too deep, or anchors that contain themselves or multiply"
            )
        if problem := _problem(part):
            raise UserError(f"{where}: {key[:200] or '(top level)'}: {problem}")
        # Reversed, so that the first problem of the file is the one that is named.
        if isinstance(part, dict):
            todo += [
                (f"{key}.{name}" if key else str(name), inner, depth + 1)
                for name, inner in reversed(part.items())
            ]
        elif isinstance(part, list | tuple):
            todo += [(f"{key}.{i}", inner, depth + 1) for i, inner in reversed(list(enumerate(part)))]


def _problem(value: Any) -> str:
    """What is wrong with one value of a configuration; "" if nothing is."""
    if isinstance(value, datetime.date):
        return f"YAML reads this as the date {value}; put it in quotes"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if isinstance(value, int) and abs(value) >= TOO_LARGE:
        return "the number is too large; it must be below 2^63"
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        return "half a surrogate pair (\\ud800 to \\udfff) is not text"
    if isinstance(value, dict):
        key = next((key for key in value if not isinstance(key, str | int | float | None)), None)
        return "" if key is None else f"the key {str(key)[:80]!r} is not text; put it in quotes"
    if value is not None and not isinstance(value, str | int | float | list | tuple):
        return f"a value of the type {type(value).__name__} is not text, number, list or mapping"
    return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key '{double[:80]}' is there twice in one object")
    return result


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise _Refused(f"a number of {len(digits)} digits is too long")
    return int(digits)


def _line(where: object, problem: str, again: str) -> str:
    return f"{where}: {problem}" + (f"; {again}" if again else "")
