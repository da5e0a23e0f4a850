"""One reader for JSON and one for YAML: whatever a file holds, a value or one line that says what to do.

All text is UTF-8, whatever the locale.  Refused, next to what is not JSON or YAML: a key twice in one object
(every parser keeps the last, silently), nesting and numbers beyond Python's limits, half a surrogate pair,
which no file could hold again, and in YAML dates, recursive anchors and anchors that multiply.
"""

from __future__ import annotations

import datetime
import json
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
    """`value`, if it is an object that has `keys` of these types (a bool is no number); UserError if not."""
    if not isinstance(value, dict):
        raise UserError(_line(where, "not a JSON object, {...}", again))
    for key, kind in keys.items():
        found = value.get(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            raise UserError(_line(where, f"'{key}' is missing or of the wrong type", again))
    return value


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
        _walk(value, path)
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
    """SafeLoader that refuses a key twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key '{key_node.value}' is there twice; remove one",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _walk(value: Any, path: str | Path) -> None:
    """UserError for dates, which no key takes, and for what anchors make too deep or too large."""
    todo: list[tuple[str, Any, int]] = [("", value, 0)]
    count = 0
    while todo:
        key, part, depth = todo.pop()
        count += 1
        if depth > DEPTH or count > VALUES:
            raise UserError(
                f"{path}: {key[:80]}: nesting too deep, or anchors that contain themselves or multiply"
            )
        if isinstance(part, datetime.date):
            raise UserError(f"{path}: {key}: YAML reads this as the date {part}; put it in quotes")
        if isinstance(part, dict):
            todo += [
                (f"{key}.{name}" if key else str(name), inner, depth + 1) for name, inner in part.items()
            ]
        elif isinstance(part, list):
            todo += [(f"{key}.{i}", inner, depth + 1) for i, inner in enumerate(part)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key '{double}' is there twice in one object")
    return result


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise _Refused(f"a number of {len(digits)} digits is too long")
    return int(digits)


def _line(where: object, problem: str, again: str) -> str:
    return f"{where}: {problem}" + (f"; {again}" if again else "")
