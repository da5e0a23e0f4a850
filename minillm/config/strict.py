"""Strict loading: plain data (YAML, JSON) into frozen dataclasses, or one line that names file and key."""

from __future__ import annotations

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from minillm.errors import UserError
from minillm.readers import check_plain, read_json

T = TypeVar("T")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*$")]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
# A seed times a thousand, and plus offsets of 2^42 that separate streams, still fits into 64 bits.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def parse(cls: type[T], raw: Any, where: str, under: str = "") -> T:
    """`raw` (what YAML or JSON held) as `cls`; `under` is the key above it.

    Raises UserError with one line, `where: key.path: what is wrong`, for the first problem.
    """
    adapter = TypeAdapter(cls)
    check_plain(raw, where, under)
    try:
        # Through JSON: strict mode then takes lists for tuples, and nothing else is converted.
        return adapter.validate_json(json.dumps(raw))
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(adapter, error, under)}") from None


def _first_problem(adapter: TypeAdapter[Any], error: ValidationError, under: str) -> str:
    problems = error.errors(include_url=False)
    # An unknown key first: it is often the misspelt form of one that is then missing.
    problem = next((p for p in problems if p["type"] in UNKNOWN), problems[0])
    key = ".".join([*filter(None, [under]), *map(str, problem["loc"])]) or "(top level)"
    if problem["type"] in UNKNOWN:
        keys = _siblings(adapter.json_schema(), problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]), keys, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(keys))}"
        return f"{key}: unknown key; {advice}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; add it"
    message = problem["msg"]
    if isinstance(problem["input"], str) and problem["type"].startswith(("float", "int")):
        message += f", not the text {reprlib.repr(problem['input'])}"
        if problem["type"].startswith("float"):
            message += " (YAML reads 1e-4 as text: write 1.0e-4)"
    elif not isinstance(problem["input"], dict | list):
        message += f", not {reprlib.repr(problem['input'])}"
    return f"{key}: {message[0].lower()}{message[1:]}"


def _siblings(schema: dict[str, Any], location: tuple[int | str, ...]) -> list[str]:
    """The keys that would be valid in the place of the last part of `location`."""
    node = schema
    for part in (*location[:-1], None):
        while "$ref" in node or "anyOf" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node["anyOf"][0]
        if part is None:
            break
        if "properties" in node and part in node["properties"]:
            node = node["properties"][part]
        else:
            inner = node.get("items") or node.get("additionalProperties")
            inner = inner or next(iter(node.get("patternProperties", {}).values()), {})
            node = inner if isinstance(inner, dict) else {}
    return list(node.get("properties", {}))


def whole_schema(cls: type) -> dict[str, Any]:
    """JSON schema of a dataclass without references, so that it can stand inside another's schema."""
    schema = TypeAdapter(cls).json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, list):
            return [inlined(part) for part in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            node = {
                **definitions[node["$ref"].rsplit("/", 1)[1]],
                **{k: v for k, v in node.items() if k != "$ref"},
            }
        return {key: inlined(part) for key, part in node.items()}

    whole: dict[str, Any] = inlined(schema)
    return whole


def hint(name: str, names: Iterable[str]) -> str:
    """What to write instead of an unknown name: the most similar of `names`, or all of them."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"


def must_be_one_of(name: str, names: Collection[str], where: str, key: str, among: str = "") -> None:
    """Raises UserError, one line naming `where` and `key`, if `name` is not in `names` (`among` in words)."""
    if name not in names:
        problem = f"'{name}' is not among {among}" if among else f"there is no '{name}'"
        raise UserError(f"{where}: {key}: {problem}; {hint(name, names)}")


def must_differ(items: Sequence[object], where: str, key: str) -> None:
    """Raises UserError, one line naming `where` and `key`, if an item of a list is there twice."""
    for i, item in enumerate(items):
        if item in items[:i]:
            shown = reprlib.repr(item) if isinstance(item, str) else item
            raise UserError(f"{where}: {key}.{i}: {shown} is there twice; remove one")


def check_lists(value: Any, where: str, key: str = "") -> None:
    """`must_differ` for every list of names, paths, seeds or other scalars in a section, however deep.

    Pairs of numbers, such as AdamW's betas, are no lists: their type has a fixed length.
    """
    if dataclasses.is_dataclass(value):
        value = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if "tuple[Share, Share]" not in str(field.type)
        }
    if isinstance(value, tuple) and all(isinstance(item, str | int | float) for item in value):
        must_differ(value, where, key)
    elif isinstance(value, dict | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            check_lists(part, where, f"{key}.{name}" if key else str(name))


def load(cls: type[T], path: str | Path) -> T:
    """The settings file of a stage as `cls`.  Raises UserError if it is missing or damaged."""
    return parse(cls, read_json(path, "no such settings file"), str(path))


def merged(default: T, values: dict[str, Any], where: str, under: str) -> T:
    """`default` with single keys replaced, checked just as strictly."""
    changed = {**dataclasses.asdict(default), **values}  # type: ignore[call-overload]
    return parse(type(default), changed, where, under)
